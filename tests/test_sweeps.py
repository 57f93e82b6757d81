import numpy as np
import pandas as pd
import pytest
from test_tables import FAMILIES, pick, study

from fusinglib.evaluation import sweeps, tables


def over_decays():
    """Under decay 1 intertrained loses 20 points, fused 5, pretrained 10."""
    lost = {"intertrained": 0.20, "fused": 0.05, "pretrained": 0.10}
    results = study(random=False)
    under = results.assign(accuracy=results["accuracy"] - results["base"].map(lost))
    return pd.concat([results.assign(weight_decay=0.0), under.assign(weight_decay=1.0)])


def test_accuracy_in_a_sweep_is_that_of_its_parts():
    results = over_decays()
    table = sweeps.table(results, FAMILIES, "weight_decay")
    assert len(table) == 2 * 5
    cell = table.query("weight_decay == 1 and base == 'fused' and source_family == 'digits'")
    runs = pick(results, weight_decay=1.0, base="fused", source_family="digits")
    assert cell["accuracy"].item() == pytest.approx(100 * runs.mean())
    pretrained = pick(results, weight_decay=1.0, base="pretrained", source_family="")
    gain = 100 * (runs.mean() - pretrained.mean())
    assert cell["difference"].item() == pytest.approx(gain)
    assert cell["low"].item() < gain < cell["high"].item()
    start = table.query("base == 'pretrained'")
    assert start[["difference", "low", "high"]].isna().all(axis=None)


def test_changes_and_their_interaction():
    table = sweeps.changes(over_decays(), FAMILIES, "weight_decay")
    assert list(table["weight_decay"].unique()) == [1.0]
    found = table.groupby("change")[["estimate", "low", "high"]].agg(["min", "max"])
    expected = {"fused": -5, "intertrained": -20, "pretrained": -10, "fused - intertrained": 15}
    for change, value in expected.items():
        assert found.loc[change].to_numpy() == pytest.approx(np.full(6, value))
    assert len(table.query("change == 'fused - intertrained'")) == 2


def test_differences_in_a_sweep_are_those_of_its_parts():
    results = over_decays()
    table = sweeps.differences(results, FAMILIES, "weight_decay")
    assert list(table.columns[:3]) == ["weight_decay", "comparison", "source_family"]
    part = tables.differences(results.query("weight_decay == 1"), FAMILIES)
    expected = part.query("target_family == 'all'").drop(columns="target_family")
    found = table.query("weight_decay == 1").drop(columns="weight_decay")
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), expected.reset_index(drop=True), check_dtype=False
    )


def test_tasks_that_reach_a_size():
    sizes = {name: {"train": size} for name, size in zip("abc", (10, 50, 100), strict=True)}
    table = sweeps.reached(sizes, {"x": ["a", "b"], "y": ["b", "c"]}, [10, 50, 51])
    assert list(table["tasks that reach it"]) == [3, 2, 1]
    assert set(table["tasks"]) == {3}


def sizes(gains):
    """Two targets and seeds: fused gains so much over pretrained at each source size, intertrained
    nothing; gains of None are runs with a missing one."""
    rows = [
        {
            "source_size": size, "base": base, "source_family": "f" if source else "",
            "target": target, "source_seed": 0, "seed": seed,
            "accuracy": 0.5 + (gain or 0) * (base == "fused") + 0.01 * (seed + (target == "b")),
        }
        for size, gain in gains.items()
        for base, source in [("pretrained", 0), ("fused", 1), ("intertrained", 1)]
        for target in "ab"
        for seed in (0, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_turning_points_are_where_intervals_leave_out_zero():
    table = sweeps.turning_points(
        sizes({10: 0.0, 100: 0.2, 1000: 0.4, 9000: 0.4}), {"t": ["a", "b"]}, "source_size"
    )
    assert table.loc[("fused", "f")].tolist() == [100, 1000]
    assert table.loc[("intertrained", "f")].tolist() == ["–", 10]


def test_a_gain_that_does_not_last_does_not_help_from_there_on():
    results = sizes({10: 0.2, 100: 0.0, 1000: 0.2})
    table = sweeps.turning_points(results, {"t": ["a", "b"]}, "source_size")
    assert table.loc[("fused", "f")].tolist() == [1000, "–"]


def test_turning_points_are_unknown_with_missing_runs():
    results = sizes({10: 0.0, 100: 0.2})
    results.loc[(results["base"] == "fused") & (results["seed"] == 1), "accuracy"] = np.nan
    table = sweeps.turning_points(results, {"t": ["a", "b"]}, "source_size")
    assert table.loc[("fused", "f")].tolist() == ["–", "–"]
