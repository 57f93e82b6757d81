"""Many worlds: intervals that know of other worlds and other tasks, and whence their width.

A value for every world and task, d[w, t], is taken as

    d[w, t] = effect + world[w] + type[t] + rest[w, t],

all but the effect drawn at random and independent: a two-way table with both ways random (Searle,
Casella and McCulloch 1992, "Variance components", chapter 4). The rest holds what a world does to
one task, and the randomness of source models and seeds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from fusinglib.errors import InputError
from fusinglib.evaluation import statistics
from fusinglib.evaluation.statistics import LEVEL, Difference

SCOPES = ("other worlds, these tasks", "other worlds and other tasks")
"""What an interval speaks of."""

MOST = 10_000
"""More worlds or tasks than this are never asked for."""


class Squares(NamedTuple):
    """Mean squares of a two-way table, in squared units of its values, and its size."""

    of_worlds: float
    of_types: float
    of_rest: float
    worlds: int
    types: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Squares":
        """Of a table (worlds, tasks), two or more of each."""
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
        """What a table of another size should have, going by the components of this one."""
        world, type_, rest = self.components
        return Squares(types * world + rest, worlds * type_ + rest, rest, worlds, types)

    def width(self, scope: str) -> float:
        """Half the width of the 95 % interval of the mean in one of the `SCOPES`.

        Other worlds with these tasks: a t interval over the means of the worlds. Other task
        types as well: the variance of the mean is that of its mean squares, worlds + types - rest,
        with Satterthwaite's (1946) degrees of freedom; the interval is never narrower than the t
        interval over worlds or that over types. In simulations (`benchmarks/coverage.py`) the first
        covers the truth in 94 to 96 % of cases, the second in 94 to 97 %; where neither worlds nor
        types vary it is too wide, and covers it in up to 99.9 %.
        """
        size, freedom = self.worlds * self.types, np.array([self.worlds - 1, self.types - 1])
        parts = np.array([self.of_worlds, self.of_types]) / size
        alone = [self._half(*pair) for pair in zip(parts, freedom, strict=True)]
        if scope == SCOPES[0]:
            return alone[0]
        rest = self.of_rest / size
        variance = max(parts.sum() - rest, parts.max())
        uncertainty = (parts**2 / freedom).sum() + rest**2 / freedom.prod()
        return max(*alone, self._half(variance, variance**2 / uncertainty) if uncertainty else 0.0)

    @staticmethod
    def _half(variance: float, freedom: float) -> float:
        return float(stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(variance))


def difference(a: np.ndarray, b: np.ndarray, scope: str = SCOPES[1]) -> Difference:
    """Mean of ``a - b`` with its 95 % interval: over many worlds that of `intervals` in a scope,
    in one that of `statistics.paired_difference`.

    Arguments: arrays of the shape (worlds, source seeds, seeds, tasks), which broadcast.
    """
    both = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(both) == 1:
        return statistics.paired_difference(both[0], np.zeros_like(both[0]))
    values = both.mean(axis=(1, 2))
    if values.shape[1] < 2:
        return statistics.over_seeds(values[:, 0])
    return intervals(values)[scope]


def by_type(arrays: dict, statistic: Callable[[dict], np.ndarray]) -> np.ndarray:
    """What each of T tasks adds to a statistic in each world, (worlds, T): its value with all
    plus T - 1 times how much it falls, against the mean over types, without this one (the
    jackknife; of a mean over tasks it is the type's own value).

    Arguments: ``arrays`` of shape (worlds, source seeds, seeds, T), or with 1 for an axis in which
    nothing varies; ``statistic`` of such a dict gives a number for each world.
    """
    count = max(array.shape[-1] for array in arrays.values())
    without = np.stack([
        statistic({key: np.delete(array, one, axis=-1) for key, array in arrays.items()})
        for one in range(count)
    ], axis=-1)  # fmt: skip
    falls = without.mean(axis=-1, keepdims=True) - without
    return statistic(arrays)[..., None] + (count - 1) * falls


def intervals(values: np.ndarray) -> dict[str, Difference]:
    """The mean of a table (worlds, tasks) with its 95 % interval in each of the `SCOPES`."""
    estimate, found = float(values.mean()), Squares.of(values)
    widths = {scope: found.width(scope) for scope in SCOPES}
    return {
        scope: Difference(estimate, estimate - width, estimate + width)
        for scope, width in widths.items()
    }


def by_world(arrays: dict[str, np.ndarray], seeds: Sequence[int]) -> pd.DataFrame:
    """Differences world by world, in points: for each comparison a row per world, with the interval
    that this world gives alone (`statistics.paired_difference`), then one for each of the `SCOPES`.

    Arguments: differences by comparison, (worlds, source seeds, seeds, tasks), as fractions;
    the seeds of the worlds, by which they are named.
    """
    rows = []
    for comparison, differences in arrays.items():
        for world, one in zip(seeds, differences, strict=True):
            alone = statistics.paired_difference(one, np.zeros_like(one))
            rows.append((comparison, str(world), *(100 * number for number in alone)))
        for scope, found in intervals(differences.mean(axis=(1, 2))).items():
            rows.append((comparison, scope, *(100 * number for number in found)))
    return pd.DataFrame(rows, columns=["comparison", "world", "estimate", "low", "high"])


def forecast(differences: np.ndarray, first: int) -> pd.DataFrame:
    """What the first worlds foretold of the interval that all have, in points, in both `SCOPES`.

    Argument: differences (worlds, source seeds, seeds, tasks), as fractions.

    Returns: a row per scope with the half-widths ``of the first``, ``foretold`` for all worlds and
    ``found`` with all.
    """
    values = 100 * differences.mean(axis=(1, 2))
    some, every = Squares.of(values[:first]), Squares.of(values)
    rows = {
        scope: [
            some.width(scope),
            some.expected(*values.shape).width(scope),
            every.width(scope),
        ]
        for scope in SCOPES
    }
    columns = [f"of the first {first}", "foretold", "found"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("half-width")


def needed(values: np.ndarray, threshold: float, scope: str) -> tuple[int | None, int | None]:
    """How many worlds, with these tasks, would decide on which side of the threshold the mean
    lies, if it stayed what it is; and how many tasks, with these worlds. None where not even
    `MOST` would. Other tasks decide nothing about these ones, so there is no number of them in
    the first scope."""
    gap, found = abs(float(values.mean()) - threshold), Squares.of(values)
    worlds = _least(lambda count: found.expected(count, found.types).width(scope) < gap)
    types = _least(lambda count: found.expected(found.worlds, count).width(scope) < gap)
    return worlds, None if scope == SCOPES[0] else types


def in_words(needed: tuple[int | None, int | None]) -> str:
    """ "14 worlds or 40 tasks", of what would do (see `needed`)."""
    ways = zip(needed, ("worlds", "tasks"), strict=True)
    return " or ".join(f"{count} {what}" for count, what in ways if count) or "neither"


def to_decide(differences: dict[str, np.ndarray]) -> pd.DataFrame:
    """How many worlds, and how many tasks, decide on which side of zero each difference lies.

    Argument: as of `by_world`. Returns: a row per comparison and scope with the estimate and the
    half-width of its interval, in points, and the numbers as text (see `needed`).
    """
    rows = {}
    for comparison, array in differences.items():
        values = 100 * array.mean(axis=(1, 2))
        for scope, found in intervals(values).items():
            width = found.high - found.estimate
            counts = ["*", "*"]
            if abs(found.estimate) <= width:
                counts = [str(count or "–") for count in needed(values, 0.0, scope)]
            rows[comparison, scope] = [found.estimate, width, *counts]
    columns = ["estimate", "half-width", "worlds", "tasks"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.set_axis(pd.MultiIndex.from_tuples(rows, names=["difference", "scope"]))


def _least(enough) -> int | None:
    """The least count from 2 that is enough; where one is, all greater ones are."""
    low, high = 1, 2
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def variances(differences: np.ndarray) -> pd.DataFrame:
    """Where the uncertainty of a mean difference comes from.

    Argument: differences of the shape (worlds, source seeds, seeds, tasks), in points.

    Returns: a row for each of world, task, source seed (where there are two or more; else it
    is part of the rows around it), seed, and the rest, with ``std``, the standard deviation
    of its effect on one run, in points, and ``share``, what it contributes to the variance of the
    mean, in percent.
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
