"""Where the source models of several worlds lie, each beside its own pretrained model."""

import numpy as np
import pytest

from fusinglib.evaluation import exploration
from fusinglib.fusion import geometry
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable
from fusinglib.study.store import Store


def test_source_models_are_compared_with_their_own_worlds_pretrained_model(mini):
    settings = FamilyTable.from_parameters({**mini, "world_seeds": [0, 5], "seeds": [0]})
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    assert exploration.alikeness(plan, store).empty
    execute(plan, store, settings)
    table = exploration.alikeness(plan, store)
    assert sorted(table.index) == ["irony", "mood", "sentiment"]
    by_world = []
    for world in (0, 5):
        rows = [row for row in plan.rows if row["world"] == world]
        (origin,) = {row["run"].parents[0] for row in rows if row["base"] == "pretrained"}
        runs = [run for run in plan.runs if run.kind == "source" and origin in run.parents]
        assert len(runs) == 3
        found = geometry.updates(store.model(origin), [store.model(run) for run in runs])
        names = [run.settings["task"]["name"] for run in runs]
        by_world.append(dict(zip(names, 100 * found.norms / found.origin, strict=True)))
    for name, norm in table["update"].items():
        assert norm == pytest.approx(np.mean([norms[name] for norms in by_world]))
    assert (table["least cosine"] <= table["greatest cosine"]).all()
    assert (table["note"] == "").all()
