"""Shorter updates: the models that are made, their norms, and the comparison at the same norm."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from fusinglib.errors import InputError
from fusinglib.evaluation import claims, figures, headlines, shrinkage, worlds
from fusinglib.fusion.geometry import Updates
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import Run
from fusinglib.study.settings import FamilyTable, Shrinkage
from fusinglib.study.store import Store

OWN = {"scales": [0.5, 1.0], "counts": [1], "draws": 2}


@pytest.fixture
def settings(mini) -> Shrinkage:
    return Shrinkage.from_parameters({**mini, **OWN, "seeds": [0]})


def weights(store: Store, run) -> np.ndarray:
    tensors = load_file(store.model(run) / "model.safetensors")
    return np.concatenate([tensors[name].ravel().astype(np.float64) for name in sorted(tensors)])


def test_updates_are_scaled_and_means_rescaled(settings):
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    results = shrinkage.with_norms(execute(plan, store, settings), plan, store)
    assert results["accuracy"].notna().all()
    start = weights(store, plan.rows[0]["run"].parents[0])
    found = {}
    for row, update in zip(plan.rows, results["update"], strict=True):
        if row["base"] == "random":
            assert np.isnan(update)
            continue
        moved = weights(store, row["run"].parents[0]) - start
        norm = 100 * np.linalg.norm(moved) / np.linalg.norm(start)
        assert update == pytest.approx(norm, rel=1e-4, abs=1e-9)
        key = row["source_family"], row["target"], row["base"], row["scale"], row["norm"]
        found.setdefault(key, []).append(moved)
    families = results.query("base == 'fused'")[["source_family", "target"]].drop_duplicates()
    for family, target in families.itertuples(index=False):
        for base in ("fused", "intertrained"):
            (half,) = found[family, target, base, 0.5, "own"]
            (whole,) = found[family, target, base, 1.0, "own"]
            np.testing.assert_allclose(half, 0.5 * whole, atol=1e-6)
        length = np.linalg.norm(found[family, target, "fused", 1.0, "own"][0])
        own = found.get((family, target, "drawn", 1.0, "own"), [])
        fixed = found.get((family, target, "drawn", 1.0, "fixed"), [])
        for one, other in zip(own, fixed, strict=True):
            assert np.linalg.norm(other) == pytest.approx(length, rel=1e-4)
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert cosine == pytest.approx(1, abs=1e-6)
    drawn = results.query("base == 'drawn'")
    assert set(drawn["models"]) == {1} and set(drawn["draw"]) == {0, 1}
    assert (drawn["sources"].map(len) == drawn["models"]).all()
    curves = shrinkage.curves(results, plan.families)
    counts = shrinkage.by_count(results, plan.families)
    assert list(curves["scale"]) == [0.5, 1.0, 0.5, 1.0, 1.0]
    equal = curves.set_index(["base", "scale"])["update"]
    assert equal["fused", 1.0] == pytest.approx(equal["scaled single", 1.0], rel=1e-6)
    assert np.isinf(counts["models"]).sum() == 2
    whole = curves.query("base == 'fused' and scale == 1")["gain"].iloc[0]
    assert counts[np.isinf(counts["models"])]["gain"].tolist() == pytest.approx([whole, whole])
    figures.shrinkage_figure(curves, counts)._repr_png_()


def test_the_models_as_they_are_are_those_of_the_family_table(settings, mini):
    """So that their runs are shared; and 1.0 has to be among the scales."""
    table = plan_experiment(FamilyTable.from_parameters({**mini, "arms": [], "seeds": [0]}))
    keys = {row["run"].key for row in plan_experiment(settings).rows}
    assert {row["run"].key for row in table.rows} <= keys
    with pytest.raises(InputError, match="'scales' is .*expected 1.0 among them"):
        Shrinkage.from_parameters({**mini, **OWN, "scales": [0.5]})


def test_draws_are_new_for_every_target_and_world(mini):
    few = ["sentiment", "topic", "yesno", "entailment", "answerable"]
    families = {"few": few, "one": ["emotion", "irony", "mood", "stance_cars"]}
    changed = {"families": families, "sources": ["few"], "targets": ["one"], "world_seeds": [0, 1]}
    settings = Shrinkage.from_parameters({**mini, **OWN, **changed, "counts": [1], "seeds": [0]})
    plan = plan_experiment(settings)
    drawn = {
        (row["world"], row["target"], row["draw"]): row["sources"]
        for row in plan.rows
        if row["base"] == "drawn"
    }
    for axis in range(3):
        fixed = {key[:axis] + key[axis + 1 :] for key in drawn}
        varied = [
            {sources for key, sources in drawn.items() if key[:axis] + key[axis + 1 :] == others}
            for others in fixed
        ]
        assert max(map(len, varied)) > 1
    assert drawn == {
        (row["world"], row["target"], row["draw"]): row["sources"]
        for row in plan_experiment(settings).rows
        if row["base"] == "drawn"
    }


def test_more_models_than_there_are_cannot_be_drawn(mini):
    settings = Shrinkage.from_parameters({**mini, **OWN, "counts": [1, 9]})
    with pytest.raises(InputError, match="'counts' has 9, but for the target .* use fewer"):
        plan_experiment(settings)


def test_updates_of_existing_models_are_measured_too():
    """They have no parents, and lead to no pretrained model by themselves."""
    pretrained = Run("import", {"of": "pretrained"})
    models = [Run("import", {"number": number}) for number in range(3)]
    mean = Run("fuse", {}, tuple(models))
    half = Run("fuse", {"method": "task_arithmetic", "scale": 0.5}, (mean, pretrained))
    scaled = Run("fuse", {"method": "scaled", "which": 1}, (*models, pretrained))
    rescaled = Run("fuse", {"rescaled": True}, (models[0], mean, pretrained))
    products = np.diag([1.0, 4.0, 9.0])
    updates = Updates([model.key for model in models], products, origin=10.0)
    norm = np.sqrt(14) / 3 / 10 * 100
    for model, expected in (
        (models[1], 20.0), (mean, norm), (half, norm / 2), (scaled, norm), (rescaled, norm),
    ):  # fmt: skip
        assert shrinkage._norm(model, updates) == pytest.approx(expected)
        assert {run.key for run in shrinkage._fused(model)} <= {model.key for model in models}


TARGETS = ["a", "b", "c", "d"]


def made_up(gain: float, worlds: int, taught: float = 0.2) -> pd.DataFrame:
    """Results in which the mean ends this much above the scaled single, and pretrained above
    random weights, on average."""
    rng, rows = np.random.default_rng(0), []
    more = rng.normal(0, 0.01, (worlds, len(TARGETS)))
    more += gain - more.mean()
    for world in range(worlds):
        for column, target in enumerate(TARGETS):
            cell = {"world": world, "target": target, "seed": 0, "source_seed": 0, "draw": 0}
            cell |= {"source_family": "s", "scale": 1.0, "update": 2.0}
            level = rng.normal(0.6, 0.1)
            nothing = level - 0.05 - taught + rng.normal(0, 0.01)
            start = {**cell, "source_family": "", "scale": 0.0}
            rows.append({**start, "base": "random", "accuracy": nothing})
            rows.append({**start, "base": "pretrained", "accuracy": level - 0.05})
            rows.append({**cell, "base": "scaled single", "accuracy": level})
            rows.append({**cell, "base": "fused", "accuracy": level + more[world, column]})
            rows.append({**cell, "base": "fused", "scale": 0.5, "accuracy": 0.0})
    return pd.DataFrame(rows)


def test_the_mean_is_compared_with_the_scaled_single_in_every_scope():
    results, families = made_up(0.02, 4), {"some": TARGETS}
    over = shrinkage.at_equal_norm(results, families)
    assert list(over["scope"]) == [*worlds.SCOPES]
    assert over["estimate"].tolist() == pytest.approx([2, 2])
    *said, check = headlines.of_shrinkage(results, families, over).splitlines()
    assert len(said) == 2 and all("2.0 points above one model with an upd" in one for one in said)
    assert all(one.endswith("a better start.") for one in said) and "check passed" in check
    alone = shrinkage.at_equal_norm(made_up(0.02, 1), {"some": TARGETS})
    assert list(alone["scope"]) == [claims.HERE]


def test_where_pretraining_does_not_help_the_comparison_is_undecided():
    results, families = made_up(0.02, 4, taught=0.0), {"some": TARGETS}
    over = shrinkage.at_equal_norm(results, families)
    *said, check = headlines.of_shrinkage(results, families, over).splitlines()
    assert (over["low"] > 0).all() and "check failed" in check
    assert all(one.endswith("undecided.") for one in said)


def test_the_check_counts_every_replicate():
    parts = [
        made_up(0.02, 1, taught=0.1 * seed).assign(seed=seed, source_seed=seed)
        for seed in (1, 2, 3)
    ]
    results, families = pd.concat(parts, ignore_index=True), {"some": TARGETS}
    said = headlines.of_shrinkage(results, families, shrinkage.at_equal_norm(results, families))
    means = results.groupby("base")["accuracy"].mean()
    gap = 100 * (means["pretrained"] - means["random"])
    assert f"pretrained - random is {gap:+.1f} points" in said and gap > 15


def test_without_the_scaled_single_nothing_is_said():
    results, families = made_up(0.02, 4), {"some": TARGETS}
    results.loc[results["base"] == "scaled single", "accuracy"] = np.nan
    over = shrinkage.at_equal_norm(results, families)
    assert "Runs are missing" in headlines.of_shrinkage(results, families, over)
