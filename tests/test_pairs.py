"""Tables of the pairwise heatmap, from results made up by hand."""

import numpy as np
import pandas as pd
import pytest

from fusinglib.evaluation import pairs, tables

TASKS = ["a", "b", "c", "d", "e"]


def heatmap(pair_gains, spread=0.0, seeds=3):
    """Results of a heatmap: model a gains 2 points everywhere, the others nothing."""
    rows = [("pretrained", (), target, 0.0) for target in TASKS]
    rows += [
        ("intertrained", (name,), target, 0.02 * (name == "a"))
        for name in TASKS
        for target in TASKS
        if target != name
    ]
    rows += [
        ("fused", tuple(pair.split()), target, gain)
        for pair, gain in pair_gains.items()
        for target in TASKS
        if target not in pair.split()
    ]
    noise = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "base": base, "source_family": "", "source_seed": 0, "sources": sources,
            "target": target, "seed": seed, "accuracy": 0.5 + gain + noise.normal(0, spread),
        }
        for base, sources, target, gain in rows
        for seed in range(seeds)
    )  # fmt: skip


def test_pairs_are_classed_beside_their_two_models():
    gains = {"a b": 0.03, "a c": 0.015, "a d": 0.005, "a e": -0.01}
    table = pairs.table(heatmap(gains, spread=1e-4)).set_index("two")
    assert list(table["rank"]) == list(pairs.CLASSES)
    assert table["certain"].all()
    assert table["gain"].to_list() == pytest.approx([3, 1.5, 0.5, -1], abs=0.05)
    assert table["gain_one"].to_list() == pytest.approx([2] * 4, abs=0.05)
    assert table["gain_two"].to_list() == pytest.approx([0] * 4, abs=0.05)
    assert set(table["targets"]) == {3}
    # All three targets point the same way: 2 of 8 sign patterns, the least that there is.
    assert table["p"].to_list() == pytest.approx([2 / 8] * 4)
    assert pairs.least_p(heatmap(gains)) == 2 / 8
    shares = pairs.shares(table)["share"]
    assert shares.to_list() == [25, 50, 75, 0]


def test_noisy_pairs_are_uncertain_and_missing_ones_have_no_class():
    results = heatmap({"a b": 0.02, "a c": 0.02}, spread=0.05)
    results.loc[results["sources"].isin([("a", "c")]) & (results["seed"] == 1), "accuracy"] = np.nan
    table = pairs.table(results)
    assert not table["certain"].any()
    assert table["rank"].to_list()[1] == "" and np.isnan(table["p"][1]) and table["p"][0] <= 1
    assert pairs.shares(table)["share"].notna().all()


def test_a_pair_as_good_as_its_models_is_not_below_the_better_one():
    """Chosen on the runs it is compared with, the better of two equals looks better than it is."""
    rng = np.random.default_rng(0)
    fused, one, two = rng.normal(0, 0.02, (3, 2000, 1, 4, 3))
    crossed, naive = [], []
    for world in range(2000):
        three = [array[world : world + 1] for array in (fused, one, two)]
        crossed.append(pairs.above_better(*three).mean())
        naive.append(three[0].mean() - max(three[1].mean(), three[2].mean()))
    error = np.std(crossed) / np.sqrt(len(crossed))
    assert np.mean(crossed) == pytest.approx(0, abs=4 * error) and np.mean(naive) < -0.003


def test_the_better_model_is_taken_from_other_seeds_or_targets():
    fused = np.zeros((1, 1, 2, 2))
    one = np.array([[1.0, 1.0], [-3.0, -3.0]]).reshape(1, 1, 2, 2)  # better in seed 0, worse in 1
    found = pairs.above_better(fused, one, 0 * one)
    assert found[0, 0].tolist() == [[0, 0], [3, 3]]  # seed 0 goes by seed 1, and seed 1 by seed 0
    by_target = np.array([[1.0, -3.0]]).reshape(1, 1, 1, 2)
    found = pairs.above_better(fused[:, :, :1], by_target, 0 * by_target)
    assert found[0, 0].tolist() == [[0, 3]]
    assert pairs.units(np.zeros((1, 2, 3, 4))).shape == (4,)
    assert pairs.units(np.zeros((5, 2, 3, 4))).shape == (5,)


def test_a_cluster_counts_as_one_target_of_a_pair():
    results = heatmap({"a b": 0.03, "a c": 0.0})
    seen = results["sources"].map(lambda names: "c" in names)
    results = results[~(seen & (results["target"] == "d"))]  # c and d are variants of one task
    units, families = tables.clustered(results, {"all": TASKS}, {"both": ["c", "d"]}, "sources")
    assert families == {"all": ["a", "b", "both", "e"]}
    table = pairs.table(units).set_index("two")
    assert table["targets"].tolist() == [2, 2]
    assert pairs.unseen(units, ("a", "b")) == ["both", "e"]
    assert pairs.unseen(units, ("a", "c")) == ["b", "e"]
    assert table.loc["b", "gain"] == pytest.approx(3.0)


def test_the_diagonal_has_the_gains_over_all_other_targets():
    diagonal = pairs.diagonal(heatmap({"a b": 0.0}))
    assert list(diagonal.index) == TASKS
    assert diagonal["estimate"].to_list() == pytest.approx([2, 0, 0, 0, 0])
