"""The playground's numbers: intervals over seeds and test texts, collapses, silent targets."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fusinglib.evaluation import figures, playground
from fusinglib.evaluation.playground import SCOPES

THESE, LIKE = SCOPES


def outcome(accuracies: dict[str, list[float]]) -> pd.DataFrame:
    """Results of a playground: accuracies of seeds from each base model."""
    return pd.DataFrame(
        {"base": base, "seed": seed, "accuracy": accuracy}
        for base, of_seeds in accuracies.items()
        for seed, accuracy in enumerate(of_seeds)
    )


def test_this_test_set_is_a_t_interval_over_seeds():
    right = np.random.default_rng(0).integers(-1, 2, (4, 300)).astype(float)
    expected = stats.ttest_1samp(right.mean(axis=1), 0).confidence_interval(0.95)
    assert playground.gap(right, THESE).interval[1:] == pytest.approx(tuple(expected))


def test_texts_like_these_know_that_the_test_set_is_a_sample():
    """Texts that all seeds answer alike: nothing varies on this test set, but texts do."""
    right = np.repeat(np.random.default_rng(0).integers(0, 2, (1, 400)), 3, axis=0).astype(float)
    expected = stats.ttest_1samp(right[0], 0).confidence_interval(0.95)
    found = playground.gap(right, LIKE).interval
    assert found.high - found.low >= 0.99 * (expected.high - expected.low)
    assert playground.gap(right, THESE).interval.high < found.high


def test_no_interval_has_zero_width():
    """Seeds that agree by chance are known no better than to the rounding of a count."""
    right = np.repeat([[1.0] * 60 + [0.0] * 40], 3, axis=0)
    found = playground.gap(right, THESE)
    assert found.variance == pytest.approx(1 / 12 / 100**2 / 3) and found.value == 0.6
    assert np.isnan(playground.gap(right[:1], LIKE).interval[1:]).all()  # of one seed


def test_intervals_cover_the_truth_of_other_texts():
    """400 draws of 200 texts, easy or hard for both models, and more so for one."""
    rng, hits = np.random.default_rng(0), 0

    def chances(count: int) -> np.ndarray:
        ease = rng.normal(0.5, 1.5, count)
        return stats.logistic.cdf(np.stack([ease + rng.normal(0.3, 0.8, count), ease]))

    one, two = chances(2_000_000).mean(axis=1)
    for _ in range(400):
        answers = (rng.random((5, 2, 200)) < chances(200)).astype(float)
        found = playground.gap(answers[:, 0] - answers[:, 1], LIKE).interval
        hits += found.low <= one - two <= found.high
    assert 0.92 <= hits / 400 <= 0.985


def test_collapses_are_told():
    results = outcome({
        "pretrained": [0.8, 0.81, 0.82], "intertrained": [0.8, 0.8, 0.8], "fused": [0.5, 0.8, 0.82],
    })  # fmt: skip
    (said,) = playground.collapses(results)
    assert said.startswith("1 of 3 runs from fused ended more than 10 points below the median")
    assert playground.collapses(results[results["seed"] > 0]) == []


def test_a_cross_marks_a_target_without_signal():
    rows = outcome({"pretrained": [0.6, 0.6], "fused": [0.9, 0.9]})
    rows = rows.assign(source_family=np.where(rows["base"] == "fused", "few", ""), source_seed=0)
    results = pd.concat([
        rows.assign(target="silent", majority=0.6, n_test=500),
        rows.assign(target="telling", majority=0.3, n_test=500),
    ])  # fmt: skip
    results = pd.concat([results, results[results["base"] == "fused"].assign(base="intertrained")])
    ax = figures.family_figure(results, {"few": ["silent", "telling"]}).axes[0]
    crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert len(crosses) == 3 and all(len(line.get_xdata()) == 1 for line in crosses)
