import os

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fusinglib.errors import InputError
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


def test_difference_is_the_mean_of_the_pairs_and_deterministic():
    rng = np.random.default_rng(3)
    a, b = rng.random((3, 5)), rng.random((3, 5))
    result = statistics.paired_difference(a, b)
    assert result.estimate == pytest.approx((a - b).mean())
    assert result.low < result.estimate < result.high
    assert result == statistics.paired_difference(a, b)
    swapped = statistics.paired_difference(b, a)
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low))


def test_pairing_cancels_what_both_share():
    shared = np.random.default_rng(0).random((3, 4))
    result = statistics.paired_difference(shared + 0.05, shared)
    assert result == pytest.approx((0.05, 0.05, 0.05))


def test_interval_without_seed_noise_is_the_bootstrap_of_the_targets():
    """Two values in equal number: resampled means are binomial, so the quantiles are known."""
    difference = np.tile([0.0] * 8 + [1.0] * 8, (4, 1))
    result = statistics.paired_difference(difference, np.zeros_like(difference))
    tail = statistics.expanded_tail(16)
    expected = statistics.stats.binom.ppf([tail, 1 - tail], 16, 0.5) / 16
    assert (result.low, result.high) == pytest.approx(tuple(expected))


def test_seeds_are_drawn_anew_for_every_target():
    """With equal targets the variance is that of seeds x targets independent draws, not of seeds.

    Drawing seeds for all targets together would give an interval four times as wide.
    """
    difference = np.tile([[-1.0], [1.0]], (1, 16))
    result = statistics.paired_difference(difference, np.zeros_like(difference))
    tail = statistics.expanded_tail(16)
    expected = 2 * statistics.stats.binom.ppf([tail, 1 - tail], 32, 0.5) / 32 - 1
    assert (result.low, result.high) == pytest.approx(tuple(expected))


def test_expanded_tail_approaches_the_plain_one():
    assert statistics.expanded_tail(2) < statistics.expanded_tail(6) < statistics.expanded_tail(50)
    assert statistics.expanded_tail(100_000) == pytest.approx(0.025, abs=1e-5)


def test_one_target_has_an_estimate_and_no_interval():
    result = statistics.paired_difference(RUNS[:, :1], RUNS[:, 1:])
    assert result.estimate == pytest.approx(0.1)
    assert np.isnan([result.low, result.high]).all()


def test_one_seed_has_an_interval_over_targets():
    result = statistics.paired_difference(np.array([[0.1, 0.2, 0.3]]), np.zeros((1, 3)))
    assert 0.1 <= result.low < 0.2 < result.high <= 0.3


def test_a_missing_run_makes_the_difference_nan():
    holed = RUNS.copy()
    holed[0, 0] = NAN
    assert np.isnan(statistics.paired_difference(holed, RUNS)).all()
    assert np.isnan(statistics.paired_difference(RUNS, holed)).all()


def test_source_seeds_widen_the_interval():
    noise = np.random.default_rng(1).normal(0, 0.01, (4, 3, 8))
    pretrained = np.full((1, 3, 8), 0.5)
    alike = statistics.paired_difference(0.6 + noise, pretrained)
    shifts = np.array([-0.1, 0.1, -0.1, 0.1]).reshape(4, 1, 1)
    unlike = statistics.paired_difference(0.6 + noise + shifts, pretrained)
    assert unlike.estimate == pytest.approx(alike.estimate)
    assert unlike.high - unlike.low > 5 * (alike.high - alike.low)


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (3,)])
def test_arrays_that_do_not_pair_are_refused(shape):
    with pytest.raises(InputError, match="shapes"):
        statistics.paired_difference(np.zeros((3, 3)), np.zeros(shape))


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Simulated studies of six targets and three seeds, targets and runs drawn at random.

    An interval that is too wide fails the upper bounds, one over seeds alone covers about half.
    """
    rng = np.random.default_rng(7)
    spread, noise, truth, studies = 0.04, 0.03, 0.02, 400
    covered, widths = 0, []
    for _ in range(studies):
        runs = truth + rng.normal(0, spread, 6) + rng.normal(0, noise, (3, 6))
        result = statistics.paired_difference(runs, np.zeros((3, 6)), resamples=1000)
        covered += result.low <= truth <= result.high
        widths.append(result.high - result.low)
    assert 0.92 <= covered / studies <= 0.985
    error = np.sqrt((spread**2 + noise**2 / 3) / 6)
    assert np.mean(widths) < 1.3 * 2 * 2.571 * error  # 2.571: t quantile with 5 degrees of freedom


def test_standard_error_of_seeds_alone_is_that_of_the_mean():
    """Where all targets are alike, only seeds vary: sd / sqrt(n), with n instead of n - 1."""
    seeds = np.array([0.1, 0.2, 0.4, 0.7])
    runs = np.repeat(seeds[:, None], 200, axis=1)
    expected = seeds.std() / np.sqrt(4 * 200)
    assert statistics.standard_error(runs, 0 * runs) == pytest.approx(expected, rel=0.05)


def test_standard_error_needs_targets_and_all_runs():
    assert np.isnan(statistics.standard_error(RUNS[:, :1], RUNS[:, :1] * 0))
    holed = RUNS.copy()
    holed[0, 0] = NAN
    assert np.isnan(statistics.standard_error(holed, RUNS))


def test_sign_flips_of_a_small_case():
    """Of 8 sign patterns of 1, 2, 4 two have a mean as far from 0 as 7/3, and four as 5/3."""
    values = np.array([[0.1, 0.2, 0.4]])
    assert statistics.sign_flip(values, 0 * values) == pytest.approx(2 / 8)
    values = np.array([[-0.1, 0.2, 0.4]])
    assert statistics.sign_flip(values, 0 * values) == pytest.approx(4 / 8)
    assert np.isnan(statistics.sign_flip(values, NAN * values))
    assert np.isnan(statistics.sign_flip(values[:, :1], 0 * values[:, :1]))


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
