"""What was tried before: suggestions for what to try next, and paired comparisons."""

import pandas as pd
import pytest

from fusinglib.evaluation import tried
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FusePlayground
from fusinglib.study.store import Store


def rows(*said: tuple[str, list[str], float]) -> pd.DataFrame:
    """Rows of `tried`: method, models and dev accuracy."""
    table = pd.DataFrame(said, columns=["method", "models", "dev"])
    return table.assign(key=["".join(models) for models in table["models"]])


ALONE = [("one model", ["a"], 50.0), ("one model", ["b"], 60.0), ("one model", ["c"], 55.0)]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([], ["b", "c"]),
        ([("mean", ["b", "c"], 62.0)], ["b", "c", "a"]),
        ([("mean", ["a", "b"], 62.0), ("mean", ["b", "c"], 61.0)], ["b", "a", "c"]),
        ([("mean", ["b", "c"], 62.0), ("mean", ["a", "b", "c"], 61.0)], []),  # nothing is left
        ([("mean", ["b", "x"], 70.0)], ["b", "c"]),  # x may not be chosen
        ([("ties", ["b", "c"], 70.0)], ["b", "c"]),  # not a mean
    ],
)  # fmt: skip
def test_the_next_step_of_a_greedy_search(means, expected):
    assert sorted(tried.suggestion(rows(*ALONE, *means), ["a", "b", "c"])) == sorted(expected)


def test_a_greedy_search_needs_two_models_alone():
    assert tried.suggestion(rows(ALONE[0]), ["a", "b"]) == []
    assert tried.suggestion(rows(*ALONE), ["a"]) == []


def test_two_base_models_are_compared_run_by_run(mini):
    settings = FusePlayground.from_parameters(
        {
            **mini,
            "models": ["sentiment", "mood"],
            "target": "irony",
            "seeds": [0, 1, 2],
            "method": "mean",
            "weights": [],
            "method_settings": {},
        }
    )
    store = Store(settings.store_folder())
    plan = plan_experiment(settings)
    execute(plan, store, settings)
    found = tried.tried(plan, store)
    keys = found.set_index("method")["key"]
    both = tried.paired(found, keys["mean"], keys["pretrained"], plan, store)
    wide = 100 * results(plan, store).pivot(index="seed", columns="base", values="accuracy")
    expected = wide["fused"] - wide["pretrained"]
    assert both["scores"]["first"].tolist() == pytest.approx(wide["fused"].tolist())
    assert both["same"].estimate == pytest.approx(expected.mean())
    assert both["like"].estimate == pytest.approx(expected.mean())
    assert both["like"].high - both["like"].low > 0
    assert (found["seconds"] > 0).all() and (found["seeds"] == 3).all()
