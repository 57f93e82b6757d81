"""Intervals that cover other tasks and, with many worlds, other worlds; and the sources of their
width.

A value for every world and task, d[w, t], is modelled as

    d[w, t] = effect + world[w] + type[t] + rest[w, t],

where all terms but the effect are random and independent: a two-way table with two random factors
(Searle, Casella and McCulloch 1992, "Variance components", chapter 4). The rest contains the
interaction of world and task, and the randomness of source models and seeds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fusinglib.errors import InputError
from fusinglib.evaluation.statistics import Difference, Estimate

SCOPES = ("other worlds, these tasks", "other worlds, other tasks from this mix of families")
"""What an interval covers. The second treats tasks as drawn one by one: if families differ, it
holds for the mix of families in the study, not for other families (see `by_family`)."""

MOST = 100
"""Never ask for more worlds, tasks or seeds than this."""


COVERAGE = """\
How often these intervals hold, in simulated studies of ten worlds with tasks and residuals drawn
from the recorded ones (benchmarks/coverage.py): 94 to 95 % in both scopes. In the second scope
their misses are one-sided, since few tasks gain much: the truth is above the interval in 3.8 to
4.5 % of studies and below it in 1.0 to 1.2 %. If families differ by a standard deviation of 1 to
1.8 points, it holds for other families in only 82 to 73 %, the interval over families in 95 %."""


class Squares(NamedTuple):
    """Mean squares of a two-way table, in squared units of its values, and its size."""

    of_worlds: float
    of_types: float
    of_rest: float
    worlds: int
    types: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Squares":
        """From a table (worlds, tasks) with at least two of each."""
        worlds, types = values.shape
        if min(worlds, types) < 2:
            raise InputError(f"expected two worlds and two tasks or more, not {values.shape}")
        of_world = values.mean(axis=1, keepdims=True)
        of_type = values.mean(axis=0, keepdims=True)
        rest = ((values - of_world - of_type + values.mean()) ** 2).sum()
        return cls(
            types * float(of_world.var(ddof=1)), worlds * float(of_type.var(ddof=1)),
            float(rest) / ((worlds - 1) * (types - 1)), worlds, types,
        )  # fmt: skip

    @property
    def components(self) -> tuple[float, float, float]:
        """Variances of world, type and rest, estimated from the mean squares; never below 0."""
        world = max(self.of_worlds - self.of_rest, 0) / self.types
        type_ = max(self.of_types - self.of_rest, 0) / self.worlds
        return world, type_, self.of_rest

    def expected(self, worlds: int, types: int) -> "Squares":
        """The expected mean squares of a table of another size, from the components of this one."""
        world, type_, rest = self.components
        return Squares(types * world + rest, worlds * type_ + rest, rest, worlds, types)

    def variance(self, scope: str) -> tuple[float, float]:
        """The variance of the mean in one of the `SCOPES`, and its degrees of freedom.

        Other worlds with these tasks: that of the means of the worlds. Other tasks as well: that of
        the mean squares, worlds + tasks - rest, or the greater of worlds and tasks alone, with
        Satterthwaite's (1946) degrees of freedom, at least the smaller of worlds - 1 and tasks - 1
        (without that bound they can fall below one, and intervals become unbounded).
        """
        size, freedom = self.worlds * self.types, np.array([self.worlds - 1, self.types - 1])
        squares = np.array([self.of_worlds, self.of_types]) / size
        if scope == SCOPES[0]:
            return float(squares[0]), float(freedom[0])
        rest, least = self.of_rest / size, float(freedom.min())
        variance = float(max(squares.sum() - rest, squares.max()))
        uncertainty = float((squares**2 / freedom).sum() + rest**2 / freedom.prod())
        return variance, max(variance**2 / uncertainty, least) if uncertainty else least

    def estimate(self, value: float, scope: str) -> Estimate:
        """The mean `value` of the table in one of the `SCOPES`."""
        return Estimate(value, *self.variance(scope))


def table_of(differences: np.ndarray) -> np.ndarray:
    """Differences (worlds, source seeds, seeds, tasks) as a table of independent rows, (rows,
    tasks): the worlds, or in a single world its source seeds."""
    rows = differences[0][:, None] if len(differences) == 1 else differences
    return rows.mean(axis=(1, 2))


def by_seed(arrays: dict, statistic: Callable[[dict], np.ndarray]) -> np.ndarray:
    """What each seed contributes to a statistic, averaged over worlds: like `by_type` for tasks."""
    seeds = {key: array.swapaxes(2, 3) for key, array in arrays.items()}
    turned = by_type(seeds, lambda some: statistic({k: v.swapaxes(2, 3) for k, v in some.items()}))
    return turned.mean(axis=0)


def bootstrapped(arrays: dict, statistic: Callable[[dict], np.ndarray]) -> Estimate:
    """A statistic that is not a mean over tasks (a share of models, a rank correlation), for other
    worlds and other tasks: its mean over worlds, and the variance of that over bootstrap draws of
    tasks and, where there are several, of worlds (Owen 2007, "The pigeonhole bootstrap", which is
    conservative). Its degrees of freedom are the smaller of worlds - 1 and tasks - 1.

    Arguments as of `by_type`.
    """
    count, tasks = (max(array.shape[axis] for array in arrays.values()) for axis in (0, -1))
    rng = np.random.default_rng(0)
    drawn = rng.integers(tasks, size=(RESAMPLES, tasks))
    of_worlds = statistic({k: np.moveaxis(v[..., drawn], 3, 0) for k, v in arrays.items()})
    rows = rng.integers(count, size=(RESAMPLES, count))
    draws = np.take_along_axis(of_worlds, rows, axis=1).mean(axis=1)
    defined = draws[~np.isnan(draws)]  # a family may have been drawn away
    variance = float(defined.var(ddof=1)) if len(defined) > 1 else np.nan
    freedom = min(count, tasks) - 1 if count > 1 else tasks - 1
    return Estimate(float(statistic(arrays).mean()), variance, freedom)


RESAMPLES = 400
"""Draws of a bootstrap; its standard deviation is known to 4 %."""


def estimate(values: np.ndarray, scope: str) -> Estimate:
    """The mean of a table (rows, tasks), rows as in `table_of`, in one of the `SCOPES`.

    A single row is a t test over its tasks, a single task one over the rows.
    """
    rows, types = values.shape
    if min(rows, types) < 2 or np.isnan(values).any():
        return Estimate.of(values.ravel()) if rows * types else Estimate(np.nan)
    return Squares.of(values).estimate(float(values.mean()), scope)


def difference(a: np.ndarray, b: np.ndarray | float, scope: str = SCOPES[1]) -> Difference:
    """Mean of ``a - b`` with its 95 % interval in a scope; none for one task in one world.

    In one world it covers other tasks like these: a t interval over the tasks' differences (which
    contain the randomness of seeds) and, with several source seeds, over these as well.

    Arguments: arrays of the shape (worlds, source seeds, seeds, tasks), which broadcast.
    """
    return known(a, b, scope).interval


def known(a: np.ndarray, b: np.ndarray | float, scope: str = SCOPES[1]) -> Estimate:
    """The `Estimate` of `difference`."""
    both = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if both.size and both.shape[0] == both.shape[-1] == 1:
        return Estimate(float(both.mean()))
    return estimate(table_of(both), scope)


def by_type(arrays: dict, statistic: Callable[[dict], np.ndarray]) -> np.ndarray:
    """What each of T tasks contributes to a statistic in each world, (worlds, T): its value with
    all tasks, plus T - 1 times how much it falls without this one, relative to the mean over tasks
    (the jackknife; for a mean over tasks it is the task's own value).

    Arguments: ``arrays`` of shape (worlds, source seeds, seeds, T), or with 1 for an axis in which
    nothing varies; ``statistic`` of such a dict gives a number for each world.
    """
    count = max(array.shape[-1] for array in arrays.values())
    without = np.stack([
        statistic({
            key: np.delete(array, one, axis=-1) if array.shape[-1] > 1 else array
            for key, array in arrays.items()
        })
        for one in range(count)
    ], axis=-1)  # fmt: skip
    falls = without.mean(axis=-1, keepdims=True) - without
    return statistic(arrays)[..., None] + (count - 1) * falls


def by_world(arrays: dict[str, np.ndarray], seeds: Sequence[int]) -> pd.DataFrame:
    """Differences world by world, in points: for each comparison one row per world, with its own
    interval, then one for each of the `SCOPES`.

    Arguments: differences by comparison, (worlds, source seeds, seeds, tasks), as fractions;
    the seeds of the worlds, by which they are named.
    """
    rows = []
    for comparison, differences in arrays.items():
        for world, one in zip(seeds, differences, strict=True):
            alone = difference(one[None], 0.0)
            rows.append((comparison, str(world), *(100 * number for number in alone)))
        for scope in SCOPES:
            found = difference(differences, 0.0, scope)
            rows.append((comparison, scope, *(100 * number for number in found)))
    return pd.DataFrame(rows, columns=["comparison", "world", "estimate", "low", "high"])


def by_family(differences: dict[str, np.ndarray], families: dict[str, list[str]]) -> pd.DataFrame:
    """Differences family by family, in points: for each comparison a row per target family (over
    other worlds and other tasks of this family), then one for their mean over `OTHER_FAMILIES`,
    which treats the families as drawn, not the tasks: a wide interval, since families are few.

    Arguments: as of `by_world`; the targets of each family, in the order of the tasks.
    """
    targets = list(dict.fromkeys(target for members in families.values() for target in members))
    rows = []
    for comparison, array in differences.items():
        parts = [array[..., [targets.index(name) for name in names]] for names in families.values()]
        found = {name: difference(part, 0.0) for name, part in zip(families, parts, strict=True)}
        means = np.stack([part.mean(axis=-1) for part in parts], axis=-1)
        found[OTHER_FAMILIES] = difference(means, 0.0)
        rows += [(comparison, name, *(100 * number for number in one))
                 for name, one in found.items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["comparison", "family", "estimate", "low", "high"])


OTHER_FAMILIES = "other worlds, other families"
"""What an interval covers that treats whole families as drawn."""


def forecast(differences: np.ndarray, first: int) -> pd.DataFrame:
    """What the first worlds forecast for the interval of all worlds, in points, in both `SCOPES`.

    Argument: differences (worlds, source seeds, seeds, tasks), as fractions.

    Returns: a row per scope with the half-widths ``of the first``, ``forecast`` for all worlds and
    ``actual`` with all.
    """
    values = 100 * differences.mean(axis=(1, 2))
    some, every = Squares.of(values[:first]), Squares.of(values)
    sizes = [some, some.expected(*values.shape), every]
    rows = {scope: [one.estimate(0.0, scope).reach() for one in sizes] for scope in SCOPES}
    columns = [f"of the first {first}", "forecast", "actual"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("half-width")


def needed(values: np.ndarray, threshold: float, scope: str) -> dict[str, str]:
    """How many worlds, with these tasks, would decide with 80 % power on which side of the
    threshold the mean lies; and how many tasks, with these worlds (in the second scope; other tasks
    decide nothing about these).

    Each as text, with the range of that number if the study were repeated (`in_range`).
    """
    found = Squares.of(values)
    ways = {"worlds": lambda count: found.expected(count, found.types)}
    if scope != SCOPES[0]:
        ways["tasks"] = lambda count: found.expected(found.worlds, count)

    def least(way: Callable[[int], Squares], gap: float) -> float:
        return _least(lambda count: way(count).estimate(0.0, scope).reach(POWER) < gap)

    known = estimate(values, scope)
    return {what: in_range(lambda gap, way=way: least(way, gap), known, threshold)
            for what, way in ways.items()}  # fmt: skip


POWER = 0.80
"""The power required to decide."""


def in_range(count: Callable[[float], float], known: Estimate, threshold: float) -> str:
    """How many of something decide if the true mean is a given gap away from the threshold: at the
    estimate, and in brackets at the 10 and 90 % quantiles of the gap if the study were repeated
    (normal around the estimate).

    "> 100" beyond `MOST`.
    """
    gap, error = abs(known.value - threshold), np.sqrt(known.variance)
    low, high = stats.foldnorm.ppf([0.1, 0.9], gap / error, scale=error) if error else (gap, gap)
    counts = (count(one) for one in (gap, high, low))
    middle, few, many = (str(n) if n <= MOST else f"> {MOST}" for n in counts)
    return middle if few == many else f"{middle} ({few} to {many})"


def to_decide(differences: dict[str, np.ndarray]) -> pd.DataFrame:
    """How many worlds, and how many tasks, would decide on which side of zero each difference lies.

    Argument: as of `by_world`. Returns: a row per comparison and scope with the estimate and the
    half-width of its interval, in points, and the numbers as text (see `needed`; "*": decided).
    """
    rows = {}
    for comparison, array in differences.items():
        values = 100 * array.mean(axis=(1, 2))
        for scope in SCOPES:
            known = estimate(values, scope)
            decided = abs(known.value) > known.reach()
            counts = {} if decided else needed(values, 0.0, scope)
            ways = [counts.get(what, "*" if decided else "–") for what in ("worlds", "tasks")]
            rows[comparison, scope] = [known.value, known.reach(), *ways]
    columns = ["estimate", "half-width", "worlds", "tasks"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.set_axis(pd.MultiIndex.from_tuples(rows, names=["difference", "scope"]))


def _least(enough) -> float:
    """The smallest count from 2 to `MOST` that is enough, otherwise infinity."""
    return next((count for count in range(2, MOST + 1) if enough(count)), np.inf)


def variances(differences: np.ndarray) -> pd.DataFrame:
    """Where the uncertainty of a mean difference comes from.

    Argument: differences of the shape (worlds, source seeds, seeds, tasks), in points.

    Returns: a row for each of world, task, source seed (if there are at least two; otherwise it is
    part of the neighbouring rows), seed, and the rest, with ``std``, the standard deviation of its
    effect on one run, in points, and ``share``, what it contributes to the variance of the mean, in
    percent.
    """
    worlds, sources, seeds, types = differences.shape
    world, type_, rest = Squares.of(differences.mean(axis=(1, 2))).components
    found = {"world": world, "task": type_}
    counts = {"world": worlds, "task": types}
    own = differences.mean(axis=2)
    if sources > 1:
        found["source seed"] = _between(own)
        counts["source seed"] = worlds * sources
        found["world"] = max(world - found["source seed"] / sources, 0)
    if seeds > 1:
        found["seed"] = float(differences.var(axis=2, ddof=1).mean())
        counts["seed"] = worlds * sources * seeds * types
        rest = max(rest - found["seed"] / (sources * seeds), 0)
    found["world x task"], counts["world x task"] = rest, worlds * types
    of_mean = {name: variance / counts[name] for name, variance in found.items()}
    total = sum(of_mean.values()) or np.nan
    rows = {
        name: [np.sqrt(found[name]), counts[name], 100 * of_mean[name] / total] for name in found
    }
    columns = ["std", "draws", "share"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("source")


def _between(values: np.ndarray) -> float:
    """The variance of source seeds within worlds: (worlds, source seeds, tasks)."""
    worlds, sources, types = values.shape
    means = values.mean(axis=2, keepdims=True)
    within = values - values.mean(axis=1, keepdims=True)
    rest = within - within.mean(axis=2, keepdims=True)
    freedom = worlds * (sources - 1)
    of_means = types * ((means - means.mean(axis=1, keepdims=True)) ** 2).sum() / freedom
    of_rest = (rest**2).sum() / (freedom * (types - 1))
    return float(max(of_means - of_rest, 0) / types)
