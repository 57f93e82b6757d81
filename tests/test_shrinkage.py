"""Shorter updates: the models that are made, their norms, and the comparison at the same norm."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from fusinglib.errors import InputError
from fusinglib.evaluation import figures, headlines, shrinkage
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable, Shrinkage
from fusinglib.study.store import Store

OWN = {"scales": [0.5, 1.0], "counts": [1, 2, 9], "draws": 2}


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
    assert set(drawn["models"]) <= {1, 2} and set(drawn["draw"]) == {0, 1}
    assert (drawn["sources"].map(len) == drawn["models"]).all()
    curves = shrinkage.curves(results, plan.families)
    counts = shrinkage.by_count(results, plan.families)
    assert list(curves["scale"]) == [0.5, 1.0] * 2
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


TARGETS = ["a", "b", "c", "d"]


def made_up(gain, lengths: dict[str, float], count: int = 3) -> pd.DataFrame:
    """Results in which accuracy is a function of base, scale and norm, plus a target's own."""
    rng, rows = np.random.default_rng(0), []
    for world in range(count):
        for target in TARGETS:
            level, longer = rng.normal(0.6, 0.1), rng.uniform(0.8, 1.2)
            cell = {"world": world, "target": target, "seed": 0, "source_seed": 0, "draw": 0}
            rows.append({**cell, "base": "pretrained", "source_family": "", "scale": 0.0,
                         "update": 0.0, "accuracy": level + gain("pretrained", 0.0)})  # fmt: skip
            for base, length in lengths.items():
                for scale in (0.5, 1.0, 2.0):
                    norm = scale * length * longer
                    rows.append({**cell, "base": base, "source_family": "s", "scale": scale,
                                 "update": norm, "accuracy": level + gain(base, norm)})  # fmt: skip
    return pd.DataFrame(rows)


def test_where_only_the_norm_counts_the_curves_lie_over_each_other():
    results = made_up(lambda base, norm: 0.01 * norm, {"fused": 1.0, "intertrained": 2.5})
    equal = shrinkage.at_equal_norm(results, {"all of them": TARGETS})
    assert list(equal["scale"]) == [0.5, 1.0, 2.0]
    assert equal["estimate"].tolist() == pytest.approx([0, 0, 0], abs=1e-9)


def test_what_the_mean_gains_at_the_same_norm_is_found():
    def gain(base: str, norm: float) -> float:
        return 0.01 * norm + 0.02 * (base == "fused")

    results = made_up(gain, {"fused": 1.0, "intertrained": 2.5})
    equal = shrinkage.at_equal_norm(results, {"all of them": TARGETS})
    assert equal["estimate"].tolist() == pytest.approx([2, 2, 2])
    assert "2.0 points above one model with an update of the same norm" in (
        headlines.of_shrinkage(equal)
    )


def test_beyond_the_longest_update_of_the_single_model_nothing_is_said():
    results = made_up(lambda base, norm: 0.0, {"fused": 1.0, "intertrained": 0.6})
    equal = shrinkage.at_equal_norm(results, {"all of them": TARGETS})
    assert list(equal["scale"]) == [0.5, 1.0]
    short = made_up(lambda base, norm: 0.0, {"fused": 1.0, "intertrained": 0.1})
    nothing = shrinkage.at_equal_norm(short, {"all of them": TARGETS})
    assert nothing.empty and "cannot be compared" in headlines.of_shrinkage(nothing)
