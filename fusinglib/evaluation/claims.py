"""The paper's claims: the statistic that decides each, its interval, and a verdict.

A statistic is a plain function of a `Sample`; its interval is that of all tables (`worlds.interval`
over many worlds, `statistics.interval` in one). A claim is supported where the whole interval lies
above its threshold (or from it on, where the claim says "all but"), contradicted where it lies
below, and else undecided at this size. A verdict speaks of the model and the data of its results
alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fusinglib.evaluation import reference, statistics, tables, worlds
from fusinglib.evaluation.statistics import mean_of_runs

MEMBER = "member of"
"""Begins the keys of a sample that say which targets belong to a family."""

Sample = dict[tuple, np.ndarray]
"""Accuracies by base model, and which targets belong to which family.

Arrays of shape (..., source seeds, seeds, targets): fractions, NaN where a model was trained on the
target. A key is (base, source family), with the value of the varied column in front where there is
one; in a heatmap it is (base, sources). (`MEMBER`, family) is 1 for its targets, else 0.
"""


def runs_of(sample: Sample, *start) -> list[np.ndarray]:
    """The runs of all base models whose key begins so."""
    return [array for key, array in sample.items() if key[: len(start)] == start]


def accuracy(sample: Sample, *start, family: str = "") -> np.ndarray:
    """Their mean accuracy in points, over all targets or those of one family."""
    if not family:
        return 100 * np.mean([mean_of_runs(array) for array in runs_of(sample, *start)], axis=0)
    member = sample[MEMBER, family]
    with np.errstate(invalid="ignore"):  # a family may have been drawn away
        means = [mean_of_runs(array * member) for array in runs_of(sample, *start)]
        return 100 * np.mean(means, axis=0) / mean_of_runs(member)


def gain(sample: Sample) -> np.ndarray:
    """Fused over pretrained, mean of source families."""
    return accuracy(sample, "fused") - accuracy(sample, "pretrained")


def stability(sample: Sample) -> np.ndarray:
    """How much less fused varies over seeds than pretrained: the difference of their Table 3s."""
    spreads = [
        np.mean([_std(array) for array in runs_of(sample, base)], axis=0)
        for base in ("pretrained", "fused")
    ]
    return 100 * (spreads[0] - spreads[1])


def _std(runs: np.ndarray) -> np.ndarray:
    """`statistics.std` of every resample; NaN for one seed."""
    if runs.shape[-2] < 2:
        return np.full(runs.shape[:-3], np.nan)
    return runs.std(axis=-2, ddof=1).mean(axis=(-2, -1))


def intertraining(sample: Sample) -> np.ndarray:
    """Intertrained over fused, mean of source families."""
    return accuracy(sample, "intertrained") - accuracy(sample, "fused")


def own_family(sample: Sample) -> np.ndarray:
    """How much more intertrained than fused models gain from sources of the target's own family."""
    return _advantage(sample, "intertrained") - _advantage(sample, "fused")


def _advantage(sample: Sample, base: str) -> np.ndarray:
    """Own source family over the others, mean of the families that are source and target."""
    families = [key[1] for key in sample if key[0] == base and (MEMBER, key[1]) in sample]
    if len(families) < 2:
        return np.full(runs_of(sample, base)[0].shape[:-3], np.nan)
    own = [accuracy(sample, base, f, family=f) for f in families]
    others = [accuracy(sample, base, s, family=t) for t in families for s in families if s != t]
    return np.mean(own, axis=0) - np.mean(others, axis=0)


def losing_singles(sample: Sample) -> np.ndarray:
    """The share of intertrained models that lie below pretrained, in percent."""
    (start,) = runs_of(sample, "pretrained")
    return _share([_gain(array, start) < 0 for array in runs_of(sample, "intertrained")],
                  [_gain(array, start) for array in runs_of(sample, "intertrained")])  # fmt: skip


def _gain(runs: np.ndarray, start: np.ndarray, seen: np.ndarray | float = 0.0) -> np.ndarray:
    """The mean gain over `start` on the targets that a model, or another one, has not `seen`; NaN
    where no target is left."""
    gains = runs - start + 0 * seen
    count = (~np.isnan(gains)).sum(axis=(-3, -2, -1))
    with np.errstate(invalid="ignore"):
        return np.nansum(gains, axis=(-3, -2, -1)) / count


def _share(holds: list[np.ndarray], values: list[np.ndarray]) -> np.ndarray:
    """In how many of the models something holds, in percent of those that have a value."""
    with np.errstate(invalid="ignore"):
        return 100 * np.sum(holds, axis=0) / (~np.isnan(values)).sum(axis=0)


def pairs_above(which: Callable) -> Callable[[Sample], np.ndarray]:
    """The share of pairs, in percent, that lie above `which` (of the better, the mean) of two."""

    def share(sample: Sample) -> np.ndarray:
        gains = _pair_gains(sample)
        return _share([pair > which(one, two) for pair, one, two in gains], [g[0] for g in gains])

    return share


def above_worse(sample: Sample) -> np.ndarray:
    """The share of pairs, in percent, that beat the worse of their two models; a pair that has no
    target in a resample is not held against them."""
    gains = _pair_gains(sample)
    failed = np.sum([pair <= np.minimum(one, two) for pair, one, two in gains], axis=0)
    return 100 * (1 - failed / len(gains))


def middle(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The mean of two numbers."""
    return (one + two) / 2


def good_pairs(sample: Sample) -> np.ndarray:
    """The rank correlation of the gain of a pair with the mean gain of its two models."""
    gains = np.array([(pair, middle(one, two)) for pair, one, two in _pair_gains(sample)])
    ranks = stats.rankdata(gains, axis=0, nan_policy="omit")
    ranks -= np.nanmean(ranks, axis=0)
    with np.errstate(invalid="ignore"):  # where nothing varies it is not defined
        products = np.nansum(ranks[:, 0] * ranks[:, 1], axis=0)
        return products / np.sqrt(np.prod(np.nansum(ranks**2, axis=0), axis=0))


def _pair_gains(sample: Sample) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Gains of every pair and of its two models over pretrained, on the pair's targets."""
    (start,) = runs_of(sample, "pretrained")
    return [
        tuple(
            _gain(model, start, seen=pair)
            for model in (pair, *(sample["intertrained", (name,)] for name in names))
        )
        for (base, names), pair in sample.items()
        if base == "fused"
    ]


def interaction(sample: Sample) -> np.ndarray:
    """How much more intertrained than fused models lose under decay."""
    return _lost(sample, "intertrained") - _lost(sample, "fused")


def decay_loss(sample: Sample) -> np.ndarray:
    """What is lost under decay, mean of the three base models."""
    return np.mean([_lost(sample, b) for b in ("pretrained", "intertrained", "fused")], axis=0)


def more_data(sample: Sample) -> np.ndarray:
    """Fused models of the largest source size over those of the smallest."""
    return -_lost(sample, "fused")


def flatter(sample: Sample) -> np.ndarray:
    """How much more intertrained than fused models rise from the smallest to the largest size."""
    return _lost(sample, "fused") - _lost(sample, "intertrained")


def _lost(sample: Sample, base: str) -> np.ndarray:
    """Accuracy at the least value of the varied column less that at the greatest."""
    values = sorted({key[0] for key in sample if key[0] != MEMBER})
    return accuracy(sample, values[0], base) - accuracy(sample, values[-1], base)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the statistic that has to exceed the threshold if it holds, or with
    `or_equal` to reach it.

    `bounds` are the least and the greatest value of the statistic. `said` is what the paper says
    where none of its tables gives the statistic. `per_family`: the claim is made of every target
    family. `seeds` says whether seeds are drawn anew in the bootstrap: a spread over them would
    come out too small if so.
    """

    number: int
    text: str
    statistic: Callable[[Sample], np.ndarray]
    threshold: float = 0.0
    said: str = ""
    per_family: bool = False
    seeds: bool = True
    bounds: tuple[float, float] = (-np.inf, np.inf)
    or_equal: bool = False

    def verdict(self, low: float, high: float) -> str:
        """Supported, contradicted or undecided; without an interval nothing is decided."""
        if low > self.threshold or (self.or_equal and low == self.threshold):
            return "supported"
        return "contradicted" if high < self.threshold else "undecided"


SHARE = (0.0, 100.0)

CLAIMS = {
    "family_table": [  # section 4 and Table 1; for stability section 1 and Table 3
        Claim(1, "fusing all beats pretraining", gain, per_family=True),
        Claim(2, "fusing is more stable", stability, said="+1.9", seeds=False),
        Claim(3, "well-chosen intertraining beats fusing all", intertraining),
        Claim(4, "intertraining depends on the family, fusing does not", own_family),
    ],
    "pairwise_heatmap": [  # section 4 and Figure 2; words taken as more than a third, 9 of 10, half
        Claim(
            5, "many single models are worse than pretrained", losing_singles,
            threshold=100 / 3, said="many", bounds=SHARE,
        ),
        Claim(
            6, "all but one pair beat their worse model", above_worse,
            threshold=90, said="all but one", bounds=SHARE, or_equal=True,
        ),
        Claim(
            7, "most pairs beat the mean of the two", pairs_above(middle),
            threshold=50, said="most", bounds=SHARE,
        ),
        Claim(
            8, "pairs often beat the better one", pairs_above(np.maximum),
            threshold=50, said="often", bounds=SHARE,
        ),
        Claim(9, "good models make good pairs", good_pairs, said="yes", bounds=(-1.0, 1.0)),
    ],
    "weight_decay": [  # section 4.1 and Table 2
        Claim(10, "decay nullifies intertraining but not fusing", interaction),
        Claim(11, "decay lowers results", decay_loss),
    ],
    "source_size": [  # section 4.2 and Figure 3
        Claim(12, "more source data, better fused models", more_data, said="yes"),
        Claim(
            13, "fusing gains from less data and flattens sooner", flatter, said="yes"
        ),
    ],
}  # fmt: skip
"""All 13 claims, by the notebook that decides them; statistics are in points or percent."""


def in_the_paper(experiment: str, claim: Claim, family: str = "") -> str:
    """What the paper's own tables give for a claim, else what it says."""
    if claim.said or family not in ("", *reference.FAMILY_SIZES):
        return claim.said
    if experiment == "weight_decay":
        runs = {
            (decay, base): np.array([[[number / 100]]])
            for decay, row in reference.TABLE_2.iterrows()
            for base, number in row.items()
        }
    else:  # a family stands as one target
        table = reference.TABLE_1.drop(columns="average")
        runs = {key: row.to_numpy()[None, None] / 100 for key, row in table.iterrows()}
        names = list(table.columns)
        runs = with_members(runs, names, {name: [name] for name in names})
        runs = only(runs, names, [family] if family else names)
    return f"{float(claim.statistic(runs)):+.1f}"


VARIED = {"weight_decay": ["weight_decay"], "source_size": ["source_size"]}
"""The column that an experiment varies."""


def sample_of(experiment: str, results: pd.DataFrame, families: dict) -> Sample:
    """The results of an experiment as a `Sample`, with an axis of worlds in front."""
    targets = tables.distinct_targets(families)
    source = "sources" if experiment == "pairwise_heatmap" else "source_family"
    runs = tables.arrays(results, [*VARIED.get(experiment, []), "base", source], targets)
    return with_members(runs, targets, families)


def with_members(runs: Sample, targets: list[str], families: dict) -> Sample:
    """Runs on these targets, and which of these belong to which family."""
    shape = (1,) * (next(iter(runs.values())).ndim - 1)
    members = {
        (MEMBER, family): np.isin(targets, names).astype(float).reshape(*shape, -1)
        for family, names in families.items()
    }
    return runs | members


def only(sample: Sample, targets: list[str], names: list[str]) -> Sample:
    """The runs on some of the targets."""
    kept = tables.positions(targets, names)
    return {key: array[..., kept] for key, array in sample.items()}


def verdicts(experiment: str, results: pd.DataFrame, families: dict) -> pd.DataFrame:
    """The claims that an experiment decides: a row for each claim (claim 1: for each target family)
    and scope of the interval; over many worlds there are the two `worlds.SCOPES`.

    Returns: a DataFrame with the columns claim, scope, estimate, low, high, ``threshold``,
    ``paper``, ``verdict``, and ``decided by``: how many seeds, worlds or tasks would decide it
    if the estimate stayed what it is ("-" where it is decided, "more targets" where seeds alone
    cannot).
    """
    targets, rows = tables.distinct_targets(families), []
    sample = sample_of(experiment, results, families)
    whole = not tables.scored(results).isna().any()
    for claim in CLAIMS[experiment]:
        for family in families if claim.per_family else [""]:
            some = only(sample, targets, families[family]) if family else sample
            name = f"{claim.number} {claim.text}" + (f" on {family}" if family else "")
            paper = in_the_paper(experiment, claim, family)
            for scope, found, decided in _found(claim, some) if whole else NOTHING:
                low, high = np.clip([found.low, found.high], *claim.bounds)
                verdict = claim.verdict(low, high)
                decided = decided() if verdict == "undecided" else "-"
                said = [claim.threshold, paper, verdict, decided]
                rows.append([name, scope, found.estimate, low, high, *said])
    names = ["claim", "scope", "estimate", "low", "high", "threshold", "paper", "verdict"]
    return pd.DataFrame(rows, columns=[*names, "decided by"])


HERE = "other targets like these"
"""What an interval speaks of in one world."""

NOTHING = [(HERE, statistics.Difference(*[np.nan] * 3), lambda: "-")]
"""What is found where runs are missing."""


def _found(claim: Claim, sample: Sample) -> list[tuple]:
    """The scopes, their intervals, and how to find what would decide the claim."""
    if max(len(array) for array in sample.values()) == 1:
        world = {key: array[0] for key, array in sample.items()}
        found = statistics.interval(world, claim.statistic, seeds=claim.seeds)
        return [(HERE, found, lambda: _seeds_needed(claim, world, found))]
    if max(array.shape[-1] for array in sample.values()) == 1:
        found = statistics.over_seeds(claim.statistic(sample))
        return [(worlds.SCOPES[0], found, lambda: "-")]
    values = worlds.by_type(sample, claim.statistic)
    return [
        (scope, found, lambda s=scope: worlds.in_words(worlds.needed(values, claim.threshold, s)))
        for scope, found in worlds.intervals(values).items()
    ]


def _seeds_needed(claim: Claim, world: Sample, found: statistics.Difference) -> str:
    """How many seeds would decide a claim, going by what of its variance comes from seeds."""
    seeds, targets = np.max([array.shape[1:] for array in world.values()], axis=0)
    if np.isnan(found.low):  # a single target, or a statistic that is not defined
        return "-"
    everywhere, of_seeds = (
        float(np.nanvar(statistics.resample(world, claim.statistic, seeds=claim.seeds, targets=t)))
        for t in (True, False)
    )
    gap = abs(found.estimate - claim.threshold)
    return seeds_needed(gap, max(everywhere - of_seeds, 0), of_seeds * seeds, targets, seeds)


def seeds_needed(
    gap: float, of_targets: float, of_one_seed: float, targets: int, seeds: int
) -> str:
    """The least number of seeds whose interval leaves out a value `gap` away from the estimate.

    `of_targets` is the variance that the choice of targets contributes, which more seeds do not
    lessen; `of_one_seed` that of a single seed. It is a rough guide, from the variances alone, and
    more than the `seeds` at hand, which did not decide.
    """
    allowed = (gap / stats.t.ppf(0.975, targets - 1)) ** 2 * (targets - 1) / targets - of_targets
    if allowed <= 0:
        return "more targets"
    return str(max(seeds + 1, int(np.ceil(of_one_seed / allowed))))
