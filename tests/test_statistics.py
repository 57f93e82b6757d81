import os

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fusinglib.evaluation import reference, statistics

NAN = float("nan")

# Three seeds of two targets.
RUNS = np.array([[0.5, 0.2], [0.6, 0.2], [0.1, 0.5]])


def test_mean_deviation_and_median_of_a_small_case():
    assert statistics.mean(RUNS) == pytest.approx(0.35)
    # Per target: squares of (0.1, 0.2, -0.3) sum to 0.14, of (-0.1, -0.1, 0.2) to 0.06; over 2.
    assert statistics.std(RUNS) == pytest.approx((np.sqrt(0.07) + np.sqrt(0.03)) / 2)
    assert statistics.median(RUNS) == pytest.approx((0.5 + 0.2) / 2)


def test_collapse_rate_counts_runs_more_than_ten_points_below_their_own_median():
    assert statistics.collapse_rate(RUNS) == pytest.approx(1 / 6)
    exactly_ten = np.array([[0.8], [0.8], [0.7]])
    assert statistics.collapse_rate(exactly_ten) == 0
    assert statistics.collapse_rate(exactly_ten - [[0], [0], [0.001]]) == pytest.approx(1 / 3)


def test_one_seed_has_no_deviation_and_cannot_collapse():
    assert np.isnan(statistics.std(RUNS[:1]))
    assert np.isnan(statistics.collapse_rate(RUNS[:1]))
    assert statistics.median(RUNS[:1]) == statistics.mean(RUNS[:1]) == pytest.approx(0.35)


def test_deviation_and_median_are_taken_within_each_source_seed():
    two = np.stack([RUNS, RUNS + 0.3])
    assert statistics.std(two) == pytest.approx(statistics.std(RUNS))
    assert statistics.median(two) == pytest.approx(statistics.median(RUNS) + 0.15)
    assert statistics.collapse_rate(two) == pytest.approx(statistics.collapse_rate(RUNS))


@pytest.mark.parametrize(
    "statistic",
    [statistics.mean, statistics.std, statistics.median, statistics.collapse_rate],
)
def test_a_missing_run_makes_every_statistic_nan(statistic):
    holed = RUNS.copy()
    holed[1, 1] = NAN
    assert np.isnan(statistic(holed))


def test_an_estimate_is_a_t_test():
    values = np.random.default_rng(3).normal(1, 2, 7)
    found = statistics.Estimate.of(values)
    test = stats.ttest_1samp(values, 0.3)
    assert found.interval[1:] == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found.p_value(0.3) == pytest.approx(test.pvalue)
    assert found.interval.estimate == found.value == pytest.approx(values.mean())


def test_an_estimate_of_too_few_or_missing_values_has_no_interval():
    for values in ([], [0.5], [0.5, NAN]):
        found = statistics.Estimate.of(values)
        assert np.isnan([*found.interval[1:], found.p_value(0.0), found.reach()]).all()
    assert statistics.Estimate.of([0.5]).value == 0.5


def test_an_estimate_without_variance_is_sure():
    found = statistics.Estimate.of([0.5, 0.5])
    assert found.interval == (0.5, 0.5, 0.5)
    assert (found.p_value(0.5), found.p_value(0.4)) == (1.0, 0.0)


def test_reach_is_found_with_its_power():
    """A true mean that far off is told apart from zero in 80 % of studies."""
    found = statistics.Estimate(0.0, 1.0 / 12, 11)
    rng = np.random.default_rng(0)
    studies = rng.normal(found.reach(0.80), 1, (20_000, 12))
    assert (stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.02
    )


def test_sign_flips_of_a_small_case():
    """Of 8 sign patterns of 1, 2, 4 two have a mean as far from 0 as 7/3, and four as 5/3."""
    assert statistics.sign_flip([0.1, 0.2, 0.4]) == pytest.approx(2 / 8)
    assert statistics.sign_flip([-0.1, 0.2, 0.4]) == pytest.approx(4 / 8)
    assert np.isnan(statistics.sign_flip([0.1, NAN])) and np.isnan(statistics.sign_flip([0.1]))


def test_holm_of_a_small_case():
    """The least p times 4, the next times 3...; a missing one is not counted."""
    corrected = statistics.holm([0.01, NAN, 0.04, 0.02, 0.3])
    assert corrected == pytest.approx([0.04, NAN, 0.08, 0.06, 0.3], nan_ok=True)
    assert statistics.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_false_discovery_of_a_small_case():
    """Benjamini and Hochberg: p * m / rank, made to rise; a missing one is not counted."""
    corrected = statistics.false_discovery([0.01, NAN, 0.03, 0.02, 0.8])
    expected = [0.04, NAN, 0.04, 0.04, 0.8]
    assert corrected == pytest.approx(expected, nan_ok=True)


def test_the_detectable_difference_is_detected_as_often_as_it_says():
    difference = statistics.detectable_difference(spread=2.0, seeds=5)
    rng = np.random.default_rng(0)
    a, b = rng.normal(difference, 2, (20_000, 5)), rng.normal(0, 2, (20_000, 5))
    detected = (stats.ttest_ind(a, b, axis=1).pvalue < 0.05).mean()
    assert detected == pytest.approx(0.80, abs=0.02)
    assert np.isnan(statistics.detectable_difference(2.0, seeds=1))


GENERAL = "cola sst2 mrpc qqp mnli qnli rte wnli boolq cb copa multirc wic wsc".split()


@pytest.fixture(scope="session")
def published():
    """Accuracy of the authors' 20 runs of each pretrained model, runs x data sets, by model."""
    file = os.environ.get("FUSINGLIB_PUBLISHED_RUNS", "")
    if not os.path.isfile(file):
        pytest.skip("FUSINGLIB_PUBLISHED_RUNS names no file with the authors' 20-run baselines")
    runs = pd.read_csv(file).query("dataset != 'stsb'")
    return {
        base: part.pivot(index="run", columns="dataset", values="accuracy") / 100
        for base, part in runs.groupby("base")
    }


def spread_of_mean(runs, together):
    """Standard deviation over runs of the mean over data sets: (runs, data sets)."""
    if together:
        return runs.mean(axis=1).std(ddof=1)
    return np.sqrt(runs.var(axis=0, ddof=1).sum()) / runs.shape[1]


@pytest.mark.parametrize(
    ("base", "collapsed", "spreads", "detectable"),
    [
        ("google_t5_v1_1_base", 11.7, (4.92, 4.01), (9.9, 8.1)),
        ("roberta_base", 0.7, (0.84, 0.69), (1.7, 1.4)),
    ],
)
def test_published_runs_have_their_figures(published, base, collapsed, spreads, detectable):
    runs = published[base]
    assert runs.shape == (20, 35)
    assert 100 * statistics.collapse_rate(runs) == pytest.approx(collapsed, abs=0.05)
    general = runs[GENERAL].to_numpy()
    found = [100 * spread_of_mean(general, together) for together in (True, False)]
    assert found == pytest.approx(spreads, abs=0.005)
    least = [statistics.detectable_difference(spread, seeds=5) for spread in found]
    assert least == pytest.approx(detectable, abs=0.05)


def test_published_runs_of_t5_have_other_medians_than_means(published):
    runs = published["google_t5_v1_1_base"].to_numpy()
    assert 100 * statistics.mean(runs) == pytest.approx(68.8, abs=0.05)
    assert 100 * statistics.median(runs) == pytest.approx(72.4, abs=0.05)


def test_the_quoted_figures_are_those_of_the_published_runs(published):
    names = {name.replace("microsoft_", "").replace("google_", ""): name for name in published}
    assert len(names) == len(reference.PUBLISHED)
    for model, row in reference.PUBLISHED.iterrows():
        every = published[names[model.replace("-", "_")]]
        runs, general = every.to_numpy(), every[GENERAL].to_numpy()
        found = [statistics.mean(runs), statistics.median(runs), statistics.collapse_rate(runs)]
        found += [spread_of_mean(general, together) for together in (True, False)]
        assert [100 * number for number in found] == pytest.approx(row.to_list(), abs=0.005)


def test_detectable_over_targets_is_what_a_one_sample_test_detects():
    """In simulations, a difference of that size is found in 80 % of studies."""
    spread, effect, seeds, targets = 3.0, 2.0, 3, 12
    difference = statistics.detectable_over_targets(spread, effect, seeds, targets)
    rng = np.random.default_rng(0)
    true = difference + rng.normal(0, effect, (4000, 1, targets))
    runs = true + rng.normal(0, np.sqrt(2) * spread, (4000, seeds, targets))
    found = stats.ttest_1samp(runs.mean(axis=1), 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.80, abs=0.02)
    assert np.isnan(statistics.detectable_over_targets(3.0, 2.0, 3, targets=1))


def test_barrier_is_the_height_over_the_straight_line_between_the_ends():
    assert statistics.barrier([4, 3, 2, 1, 0]) == 0  # straight
    assert statistics.barrier([4, 1, 0.5, 0.2, 0]) == 0  # below it
    assert statistics.barrier([1, 3, 2]) == pytest.approx(1.5)
    assert statistics.barrier([4, 4, 0]) == pytest.approx(2)  # never rises, and has a barrier
    assert np.isnan(statistics.barrier([1, NAN, 2]))


def test_rise_is_over_the_least_before():
    assert statistics.rise([4, 3, 3, 0]) == 0
    assert statistics.rise([4, 1, 3, 2, 0]) == 2
    assert np.isnan(statistics.rise([1, NAN, 2]))
