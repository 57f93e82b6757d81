"""Numbers from runs: arrays of accuracies of shape (seeds, targets) in, plain numbers out.

Several source seeds are a leading axis: (source seeds, seeds, targets). A missing run is NaN and
makes the result NaN: nothing is ever silently averaged over fewer runs.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

COLLAPSE = 0.10  # a run this far below the median of its seeds has collapsed
LEVEL = 0.95  # of every interval


class Difference(NamedTuple):
    """A mean difference with its 95 % interval, in the units of the inputs."""

    estimate: float
    low: float
    high: float


def mean(accuracy):
    """Mean over seeds and targets."""
    return float(np.mean(accuracy))


def std(accuracy):
    """Standard deviation over seeds (ddof 1) of each target, averaged over targets.

    This is our reading of the paper's Table 3. With several source seeds it is computed within each
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
    """Fraction of runs more than 10 points (0.10) below the median of their target's seeds.

    The median is that of the same base model on the same target. NaN for one seed, which has
    nothing to fall below.
    """
    accuracy = np.asarray(accuracy, dtype=float)
    if accuracy.shape[-2] < 2 or np.isnan(accuracy).any():
        return float("nan")
    below = np.median(accuracy, axis=-2, keepdims=True) - accuracy
    return float(np.mean(below > COLLAPSE + 1e-9))  # exactly 10 points is not a collapse


def mean_of_runs(runs):
    """The mean over source seeds, seeds and targets, which are the last axes."""
    return runs.mean(axis=(-3, -2, -1))


class Estimate(NamedTuple):
    """A mean, its estimated variance, and the degrees of freedom of that.

    If the variance is unknown there is no interval and no p-value.
    """

    value: float
    variance: float = float("nan")
    freedom: float = float("nan")

    @classmethod
    def of(cls, values):
        """The mean of independent values; its variance is known if there are at least two."""
        values = np.asarray(values, dtype=float)
        if len(values) < 2:
            return cls(float(values.mean()) if len(values) else float("nan"))
        return cls(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)

    def reach(self, power=0.5):
        """How far from the mean a value is detected at 5 %, two-sided, with that power (0.5: half
        the width of the 95 % interval), in the approximation by central t quantiles."""
        quantiles = stats.t.ppf([(1 + LEVEL) / 2, power], self.freedom)
        return float(quantiles.sum() * np.sqrt(self.variance))

    def p_value(self, value):
        """Two-sided p-value of a t test of a true mean of ``value``."""
        if self.variance == 0:
            return float(self.value == value)
        gap = abs(self.value - value)
        return float(2 * stats.t.sf(gap / np.sqrt(self.variance), self.freedom))

    @property
    def interval(self):
        """The 95 % t interval, as a `Difference`."""
        width = self.reach()
        return Difference(self.value, self.value - width, self.value + width)


def over_seeds(values):
    """The mean of the values of several seeds with its 95 % t interval, which assumes a normal
    distribution. One value has no interval; no values give NaN."""
    return Estimate.of(values).interval


def sign_flip(differences):
    """Two-sided p-value of a permutation test of the mean of independent differences.

    Under the null hypothesis the sign of every difference (of a world, or of a target) is
    arbitrary. All sign patterns are tried if they are few, otherwise 10,000 of them
    (`scipy.stats.permutation_test`); with n differences no p is below ``2 / 2 ** n``. NaN for a
    single one, which says nothing, and if one is missing.
    """
    differences = np.asarray(differences, dtype=float)
    if differences.size < 2 or np.isnan(differences).any():
        return float("nan")
    test = stats.permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10_000,
        rng=0,
    )
    return float(test.pvalue)


def false_discovery(p_values):
    """P-values corrected to control the false discovery rate (Benjamini and Hochberg 1995); NaN
    stays NaN."""
    p_values = np.asarray(p_values, dtype=float)
    corrected = np.full_like(p_values, np.nan)
    known = ~np.isnan(p_values)
    corrected[known] = stats.false_discovery_control(p_values[known])
    return corrected


def holm(p_values):
    """P-values corrected to control the family-wise error rate (Holm 1979); NaN stays NaN and does
    not count."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)[: int((~np.isnan(p_values)).sum())]
    corrected = np.full_like(p_values, np.nan)
    steps = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def at_once(estimates):
    """Intervals and p-values that hold for several mean differences at once, all from the same
    runs: by the quantile of the largest of all t statistics (Dunnett 1955, but each difference has
    its own variance).

    The statistics are simulated: of normal runs that vary alike, minus those that all share, as
    many as the fewest degrees of freedom among the estimates leave; 10,000 draws, always the same.

    Arguments: ``estimates``, a list of `Estimate` with variances above zero. Returns: the
    half-width of the 95 % intervals in standard errors, and two-sided p-values of a mean of zero.
    """
    rng, parts = np.random.default_rng(0), []
    count = max(round(min(one.freedom for one in estimates)), 1) + 1
    for _ in range(100):
        runs = rng.standard_normal((100, count, len(estimates)))
        runs -= rng.standard_normal((100, count, 1))
        t = runs.mean(axis=1) / runs.std(axis=1, ddof=1) * np.sqrt(count)
        parts.append(np.abs(t).max(axis=1))
    largest = np.concatenate(parts)
    found = [abs(one.value) / np.sqrt(one.variance) for one in estimates]
    return float(np.quantile(largest, LEVEL)), [
        float((1 + np.sum(largest >= t)) / (1 + len(largest))) for t in found
    ]


def barrier(losses):
    """How far the losses along a line rise above the straight line between those of its ends.

    ``max_p (L(p) - (1 - p) L(0) - p L(1))``, at equally spaced positions p from 0 to 1, ends
    included (Entezari et al. 2021, "The role of permutation invariance in linear mode
    connectivity"). Never below 0, since it is 0 at the ends. NaN if a position is missing.
    """
    losses = np.asarray(losses, dtype=float)
    return float(np.max(losses - np.linspace(losses[0], losses[-1], len(losses))))


def rise(losses):
    """The largest rise of the losses along a line above the smallest one before: 0 if they never
    rise, as in monotonic linear interpolation (Lucas et al. 2021)."""
    losses = np.asarray(losses, dtype=float)
    return float(np.max(losses - np.minimum.accumulate(losses)))


def detectable_difference(spread, seeds, power=0.80):
    """The smallest difference that ``seeds`` runs against as many detect with the given power.

    For a two-sided two-sample t test at 5 %, in the usual approximation by central t quantiles:
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
    """The smallest mean difference detected with the given power, if targets are a sample.

    For a two-sided one-sample t test at 5 % of the targets' differences, each the mean of ``seeds``
    runs minus that of as many, in the approximation of `detectable_difference`: ``(t(.975, m - 1) +
    t(power, m - 1)) * sqrt((effect ** 2 + 2 * spread ** 2 / k) / m)`` for k seeds and m targets.
    More seeds do not reduce what comes from ``effect``. NaN for one target.

    Arguments: ``spread``, the standard deviation of one run on a target; ``effect``, that of the
    true difference over targets. Returns: in their unit.
    """
    if targets < 2:
        return float("nan")
    quantiles = stats.t.ppf((1 + LEVEL) / 2, targets - 1) + stats.t.ppf(power, targets - 1)
    return float(quantiles * np.sqrt((effect**2 + 2 * spread**2 / seeds) / targets))
