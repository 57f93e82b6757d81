"""Numbers from runs: arrays of accuracies of shape (seeds, targets) in, plain numbers out.

Several source seeds are an axis in front: (source seeds, seeds, targets). A missing run is NaN and
makes the result NaN: nothing is ever averaged over fewer runs in silence.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from fusinglib.errors import InputError

COLLAPSE = 0.10  # a run this far below the median of its seeds has collapsed
LEVEL = 0.95  # of every interval


class Difference(NamedTuple):
    """A mean difference with its 95 % interval, in the unit of the inputs."""

    estimate: float
    low: float
    high: float


def mean(accuracy):
    """Mean over seeds and targets."""
    return float(np.mean(accuracy))


def std(accuracy):
    """Standard deviation over seeds (ddof 1) of each target, averaged over targets.

    This is our reading of the paper's Table 3. With several source seeds it is taken within each
    and then averaged, so it measures the randomness of finetuning on the target alone. NaN for one
    seed.
    """
    accuracy = np.asarray(accuracy, dtype=float)
    if accuracy.shape[-2] < 2:
        return float("nan")
    return float(accuracy.std(axis=-2, ddof=1).mean())


def median(accuracy):
    """Median over seeds of each target, averaged over targets (and source seeds)."""
    return float(np.median(accuracy, axis=-2).mean())


def collapse_rate(accuracy):
    """Share of runs more than 10 points (0.10) below the median of their target's seeds.

    The median is that of the same base model on the same target. NaN for one seed, which has
    nothing to fall below.
    """
    accuracy = np.asarray(accuracy, dtype=float)
    if accuracy.shape[-2] < 2 or np.isnan(accuracy).any():
        return float("nan")
    below = np.median(accuracy, axis=-2, keepdims=True) - accuracy
    return float(np.mean(below > COLLAPSE + 1e-9))  # exactly 10 points is no collapse


def resample(arrays, statistic, *, seeds=True, targets=True, resamples=10_000):
    """The values of a statistic under a hierarchical bootstrap, (resamples,).

    Each resample draws source seeds, targets, and for every target its seeds, all with replacement
    and the same for all arrays, so that what belongs together stays paired. Without ``seeds`` or
    ``targets``, those stay as they are.

    Arguments: ``arrays``, a dict of arrays of shape (source seeds, seeds, targets); an axis of
    length 1 holds for all of the others' (a base model without sources, a property of targets).
    ``statistic`` takes such a dict, with an axis of resamples in front, and returns a number for
    each.
    """
    shape = np.max([array.shape for array in arrays.values()], axis=0)
    rng = np.random.default_rng(0)
    source = rng.integers(shape[0], size=(resamples, shape[0], 1, 1))
    target = rng.integers(shape[2], size=(resamples, 1, 1, shape[2]))
    run = rng.integers(shape[1], size=(resamples, 1, shape[1], shape[2]))
    run = run if seeds else 0 * run + np.arange(shape[1])[:, None]
    target = target if targets else 0 * target + np.arange(shape[2])
    values = []
    for start in range(0, resamples, CHUNK):
        chunk = [index[start : start + CHUNK] for index in (source, run, target)]
        drawn = {
            key: array[tuple(i if n > 1 else 0 for i, n in zip(chunk, array.shape, strict=True))]
            for key, array in arrays.items()
        }
        values.append(statistic(drawn))
    return np.concatenate(values)


CHUNK = 1000
"""Resamples that are drawn at a time, which bounds the memory."""


def interval(arrays, statistic, **options):
    """A statistic with its 95 % interval over source seeds, seeds and targets.

    The quantiles of `resample` are those of the expanded percentile interval (Hesterberg 2015,
    "What teachers should know about the bootstrap"), which corrects the plain one's narrowness for
    few targets. In simulations it covers a mean difference in 93 to 99 % of cases from six targets
    on (the plain one in 86 to 98 %; the high ends where seeds vary more than targets), in 90 % with
    three targets and in 76 % with two.

    The interval covers the choice of targets (as if drawn from a larger population of tasks) and
    the randomness of finetuning on them. It does not cover the world (data, splits), pretraining,
    or, with one source seed, the randomness of the source models; with two or three it is a rough
    guide to that.

    Arguments: as of `resample`. Returns: a `Difference`; without interval for one target, all NaN
    where the statistic is not a number.
    """
    estimate = float(statistic(arrays))
    targets = max(array.shape[-1] for array in arrays.values())
    if targets < 2 or np.isnan(estimate):
        return Difference(estimate, float("nan"), float("nan"))
    tail = expanded_tail(targets)
    low, high = np.nanquantile(resample(arrays, statistic, **options), [tail, 1 - tail])
    return Difference(estimate, float(low), float(high))


def mean_of_runs(runs):
    """The mean over source seeds, seeds and targets, which are the last axes."""
    return runs.mean(axis=(-3, -2, -1))


def paired_difference(a, b, **options):
    """The mean of ``a - b`` over targets and seeds with its `interval`, paired by both.

    Arguments: two arrays of shape (seeds, targets), or (source seeds, seeds, targets), which
    broadcast: a base model without sources has one source seed. Returns: a `Difference`, in the
    unit of the inputs.
    """
    return interval(_paired(a, b), lambda runs: mean_of_runs(runs["a"]), **options)


def standard_error(a, b):
    """The bootstrap standard error of the mean of ``a - b``: that of `paired_difference`."""
    arrays = _paired(a, b)
    if arrays["a"].shape[-1] < 2 or np.isnan(arrays["a"]).any():
        return float("nan")
    return float(resample(arrays, lambda runs: mean_of_runs(runs["a"])).std(ddof=1))


def _paired(a, b):
    """The differences of two arrays of runs, to be resampled."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.ndim < 2 or a.shape[-2:] != b.shape[-2:] or a.size == 0:
        raise InputError(
            f"expected two arrays of the same seeds and targets, not of shapes {a.shape} and "
            f"{b.shape}"
        )
    return {"a": (a - b).reshape(-1, *a.shape[-2:])}


def over_seeds(values):
    """The mean of the values of several seeds with its 95 % t interval, which takes them as drawn
    from a normal distribution. Without an interval for one value, all NaN for none."""
    values = np.asarray(values, dtype=float)
    if not len(values):
        return Difference(*[float("nan")] * 3)
    estimate = float(values.mean())
    if len(values) < 2:
        return Difference(estimate, float("nan"), float("nan"))
    error = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return Difference(estimate, estimate - error, estimate + error)


def sign_flip(a, b, resamples=10_000, seed=0):
    """Two-sided p-value of a permutation test of the mean of ``a - b``, paired by target and seed.

    Under the null hypothesis both base models are alike, so every paired difference may as well
    have the other sign. All sign patterns are tried where they are few, else ``resamples`` of them
    (`scipy.stats.permutation_test`). It speaks of these targets and source models alone. NaN for a
    single pair, which says nothing, and where a run is missing.
    """
    difference = (np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).ravel()
    if difference.size < 2 or np.isnan(difference).any():
        return float("nan")
    test = stats.permutation_test(
        (difference,),
        lambda values, axis: values.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=seed,
    )
    return float(test.pvalue)


def false_discovery(p_values):
    """P-values corrected for their number (Benjamini and Hochberg 1995); NaN stays NaN."""
    p_values = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p_values, np.nan)
    known = ~np.isnan(p_values)
    corrected[known] = stats.false_discovery_control(p_values[known])
    return corrected


def expanded_tail(n):
    """The bootstrap quantile that stands for 2.5 %, given ``n`` resampled units (2 or more)."""
    t = stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return float(stats.norm.cdf(-np.sqrt(n / (n - 1)) * t))


def barrier(losses):
    """How far the losses along a line rise above the straight line between those of its ends.

    ``max_p (L(p) - (1 - p) L(0) - p L(1))``, at equally spaced places p from 0 to 1, ends included
    (Entezari et al. 2021, "The role of permutation invariance in linear mode connectivity"). Never
    below 0: there is none at the ends. NaN where a place is missing.
    """
    losses = np.asarray(losses, dtype=float)
    return float(np.max(losses - np.linspace(losses[0], losses[-1], len(losses))))


def rise(losses):
    """How far the losses along a line rise at most above the least one before: 0 where they never
    rise, as in monotonic linear interpolation (Lucas et al. 2021)."""
    losses = np.asarray(losses, dtype=float)
    return float(np.max(losses - np.minimum.accumulate(losses)))


def detectable_difference(spread, seeds, power=0.80):
    """The least difference that ``seeds`` runs against as many detect with the given power.

    Of a two-sided two-sample t-test at 5 %, in the usual approximation by central t quantiles:
    ``(t(.975, 2k - 2) + t(power, 2k - 2)) * spread * sqrt(2 / k)`` for k seeds. NaN for one seed.

    Arguments: ``spread``, the standard deviation of what one run measures, e.g. the mean
    of its targets. Returns: in its unit.
    """
    if seeds < 2:
        return float("nan")
    freedom = 2 * seeds - 2
    quantiles = stats.t.ppf((1 + LEVEL) / 2, freedom) + stats.t.ppf(power, freedom)
    return float(quantiles * spread * np.sqrt(2 / seeds))


def detectable_over_targets(spread, effect, seeds, targets, power=0.80):
    """The least mean difference that is detected with the given power, if targets are a sample.

    Of a two-sided one-sample t-test at 5 % of the targets' differences, each the mean of ``seeds``
    runs less that of as many, in the approximation of `detectable_difference`:
    ``(t(.975, m - 1) + t(power, m - 1)) * sqrt((effect ** 2 + 2 * spread ** 2 / k) / m)`` for k
    seeds and m targets. More seeds do not lessen what comes of ``effect``. NaN for one target.

    Arguments: ``spread``, the standard deviation of one run on a target; ``effect``, that of the
    true difference over targets. Returns: in their unit.
    """
    if targets < 2:
        return float("nan")
    quantiles = stats.t.ppf((1 + LEVEL) / 2, targets - 1) + stats.t.ppf(power, targets - 1)
    return float(quantiles * np.sqrt((effect**2 + 2 * spread**2 / seeds) / targets))
