"""What was tried before: suggestions for what to try next, and paired comparisons."""

import json

import pandas as pd
import pytest

from fusinglib.evaluation import tried
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import OF_TARGETS, Plan
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
    assert both["difference"].estimate == pytest.approx(expected.mean())
    assert both["difference"].high - both["difference"].low > 0
    assert both["scope"] == "seeds and texts like these"
    assert (found["seconds"] > 0).all() and (found["seeds"] == 3).all()


def compared(mini) -> tuple[FusePlayground, Plan, Store]:
    """A comparison of two models' mean, finished."""
    settings = FusePlayground.from_parameters(
        {**mini, "models": ["sentiment", "mood"], "target": "irony", "method": "mean",
         "weights": [], "method_settings": {}}
    )  # fmt: skip
    store, plan = Store(settings.store_folder()), plan_experiment(settings)
    execute(plan, store, settings)
    return settings, plan, store


def test_seeds_of_models_with_heads_are_those_of_the_settings(mini):
    """Their target runs count from a million; what was tried says the seed that was asked for."""
    settings, plan, store = compared(mini)
    for row in plan.rows:
        file = store.path(row["run"]) / "run.json"
        said = json.loads(file.read_text())
        said["settings"]["seed"] += OF_TARGETS
        file.write_text(json.dumps(said))
    found = tried.tried(plan, store)
    assert all(set(runs) == set(settings.seeds) for runs in found["runs"])


def test_a_quarantined_base_model_leaves_the_other_rows(mini):
    _, plan, store = compared(mini)
    fused = next(row["run"] for row in plan.rows if row["base"] == "fused").parents[0]
    store.quarantine(store.path(fused))
    assert set(tried.tried(plan, store)["method"]) == {"pretrained", "one model"}
