"""Odd names of tasks and families, through notebooks, figures, the summary page and widgets."""

import pandas as pd
import pytest
import yaml

from fusinglib import widgets
from fusinglib.__main__ import main
from fusinglib.evaluation import pairs
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import PairwiseHeatmap
from fusinglib.study.store import Store

ODD = ["two words", "$x^$", "<b>bold</b>"]


@pytest.fixture
def odd(mini, encoder, tmp_path) -> dict:
    """Parameters of a study of own tasks with odd names, in a family with one."""
    own = {}
    for number, name in enumerate(ODD):
        file = tmp_path / f"{number}.csv"
        rows = [f"the baker sold the bread {i} {number},{i % 2}" for i in range(60)]
        file.write_text("text,label\n" + "\n".join(rows) + "\n")
        own[name] = {"files": str(file), "columns": ["text"], "labels": ["zorp", "blip"]}
    families = {"families": {"a & b": ODD}, "sources": ["a & b"], "targets": ["a & b"]}
    return {**mini, **families, "own_tasks": own, "model": str(encoder), "target_batch_size": 8}


def test_a_pair_of_odd_names_can_be_looked_at(odd):
    settings = PairwiseHeatmap.from_parameters(odd)
    plan, store = plan_experiment(settings), Store(odd["store"])
    results = execute(plan, store, settings)
    cells = pairs.table(results)
    assert [*zip(cells["one"], cells["two"], strict=True)] == [
        (ODD[0], ODD[1]), (ODD[0], ODD[2]), (ODD[1], ODD[2])
    ]  # fmt: skip
    assert pairs.diagonal(results).index.tolist() == ODD
    shown = widgets.explorer(settings, results)
    shown.buttons[ODD[0], ODD[2]].click()
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown.detail.value and "<b>bold" not in shown.detail.value


@pytest.mark.slow
@pytest.mark.parametrize("name", ["family_table", "pairwise_heatmap"])
def test_notebooks_of_odd_names_and_their_summary(odd, name, tmp_path, capsys):
    folder, out = tmp_path / "params", tmp_path / "out"
    folder.mkdir()
    kept = {k: v for k, v in odd.items() if name == "family_table" or k not in (
        "intertraining", "arms")}  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(kept))
    assert main(["run", "--all", "--params", str(folder), "--output", str(out)]) == 0
    assert pd.read_csv(out / f"{name}.csv")["accuracy"].notna().all()
    page = (out / "summary.html").read_text()
    assert "<b>bold</b>" not in page and "two words" in page
