"""The paper's claims: the statistic that decides each, its interval, and a verdict.

A statistic is a plain function of a `Sample`; its interval is the one used in all tables
(`worlds.estimate`), of what each target contributes (`worlds.by_type`); for shares and ranks, where
that is too rough, it is a t interval with a bootstrap variance. A claim is supported if the whole
interval is above its threshold, contradicted if it is below, and otherwise undecided at this size.
Many claims are tested at once, so the main verdict is corrected for their number (Holm 1979); the
raw one is given as well. A verdict holds only for the model and data of its results.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from scipy import stats

from fusinglib.evaluation import reference, statistics, tables, worlds
from fusinglib.evaluation.statistics import LEVEL, mean_of_runs

MEMBER = "member of"
"""First element of the keys of a sample that say which targets belong to a family."""

TIE = 1e-9
"""Accuracies that differ by less come from the same number of correct answers, up to rounding."""

Sample = dict[tuple, np.ndarray]
"""Accuracies by base model, and which targets belong to which family.

Arrays of shape (..., source seeds, seeds, targets): fractions, NaN where a model was trained on the
target. A key is (base, source family), preceded by the value of the varied column if there is one;
in a heatmap it is (base, sources). (`MEMBER`, family) is 1 for its targets, else 0.
"""


def runs_of(sample: Sample, *start) -> list[np.ndarray]:
    """The runs of all base models whose key starts with these."""
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
    gains = [_gain(array, start) for array in runs_of(sample, "intertrained")]
    return _share([gain < -TIE for gain in gains], gains)


def _gain(runs: np.ndarray, start: np.ndarray, seen: np.ndarray | float = 0.0) -> np.ndarray:
    """The mean gain over `start` on the targets that a model, or another one, has not `seen`; NaN
    where no target is left."""
    gains = runs - start + 0 * seen
    count = (~np.isnan(gains)).sum(axis=(-3, -2, -1))
    with np.errstate(invalid="ignore"):
        return np.nansum(gains, axis=(-3, -2, -1)) / count


def _share(holds: list[np.ndarray], values: list[np.ndarray]) -> np.ndarray:
    """For how many models something holds, in percent of those that have a value."""
    with np.errstate(invalid="ignore"):
        return 100 * np.sum(holds, axis=0) / (~np.isnan(values)).sum(axis=0)


def pairs_above(which: Callable) -> Callable[[Sample], np.ndarray]:
    """The share of pairs, in percent, that lie above `which` (of the better, the mean) of two."""

    def share(sample: Sample) -> np.ndarray:
        gains = _pair_gains(sample)
        above = [pair > which(one, two) + TIE for pair, one, two in gains]
        return _share(above, [pair for pair, _, _ in gains])

    return share


def middle(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """The mean of two numbers."""
    return (one + two) / 2


def good_pairs(sample: Sample) -> np.ndarray:
    """The rank correlation of the gain of a pair with the mean gain of its two models."""
    gains = np.array([(pair, middle(one, two)) for pair, one, two in _pair_gains(sample)])
    ranks = stats.rankdata(gains, axis=0, nan_policy="omit")
    ranks -= np.nanmean(ranks, axis=0)
    with np.errstate(invalid="ignore"):  # undefined if nothing varies
        products = np.nansum(ranks[:, 0] * ranks[:, 1], axis=0)
        return products / np.sqrt(np.prod(np.nansum(ranks**2, axis=0), axis=0))


def _pair_gains(sample: Sample) -> list[tuple[np.ndarray, ...]]:
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
    """The loss under decay, mean of the three base models."""
    return np.mean([_lost(sample, b) for b in ("pretrained", "intertrained", "fused")], axis=0)


def more_data(sample: Sample) -> np.ndarray:
    """Fused models of the largest source size over those of the smallest."""
    return -_lost(sample, "fused")


def flatter(sample: Sample) -> np.ndarray:
    """How much more intertrained than fused models rise from the smallest to the largest size."""
    return _lost(sample, "fused") - _lost(sample, "intertrained")


def _lost(sample: Sample, base: str) -> np.ndarray:
    """Accuracy at the smallest value of the varied column minus that at the largest."""
    values = sorted({key[0] for key in sample if key[0] != MEMBER})
    return accuracy(sample, values[0], base) - accuracy(sample, values[-1], base)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the statistic that has to exceed the threshold if it holds.

    `bounds` are the smallest and largest possible values of the statistic. `said` is what the paper
    says if none of its tables gives the statistic. `per_family`: the claim is made for every target
    family. `smooth`: the variance follows from what each target contributes (`worlds.by_type`); for
    shares of models and ranks it does not (`worlds.bootstrapped`).
    """

    number: int
    text: str
    statistic: Callable[[Sample], np.ndarray]
    threshold: float = 0.0
    said: str = ""
    per_family: bool = False
    bounds: tuple[float, float] = (-np.inf, np.inf)
    smooth: bool = True


SHARE = (0.0, 100.0)

CLAIMS = {
    "family_table": [  # section 4 and Table 1; for stability section 1 and Table 3
        Claim(1, "fusing all beats pretraining", gain, per_family=True),
        Claim(2, "fusing is more stable", stability, said="+1.9"),
        Claim(3, "well-chosen intertraining beats fusing all", intertraining),
        Claim(4, "intertraining depends on the family, fusing does not", own_family),
    ],
    # Section 4 and Figure 2. "Many" is taken as more than a third; the others are compared with
    # what comes out where a pair and its two models are all alike: two of three pairs beat the
    # worse one, half of them the mean of the two, one of three the better one.
    "pairwise_heatmap": [
        Claim(
            5, "many single models are worse than pretrained", losing_singles,
            threshold=100 / 3, said="many", bounds=SHARE, smooth=False,
        ),
        Claim(
            6, "all but one pair beat their worse model", pairs_above(np.minimum),
            threshold=200 / 3, said="all but one", bounds=SHARE, smooth=False,
        ),
        Claim(
            7, "most pairs beat the mean of the two", pairs_above(middle),
            threshold=50, said="most", bounds=SHARE, smooth=False,
        ),
        Claim(
            8, "pairs often beat the better one", pairs_above(np.maximum),
            threshold=100 / 3, said="often", bounds=SHARE, smooth=False,
        ),
        Claim(9, "good models make good pairs", good_pairs, said="yes", bounds=(-1.0, 1.0),
              smooth=False),
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
    """What the paper's own tables give for a claim, or else what it says."""
    if claim.said or family not in ("", *reference.FAMILY_SIZES):
        return claim.said
    if experiment == "weight_decay":
        runs = {
            (decay, base): np.array([[[number / 100]]])
            for decay, row in reference.TABLE_2.iterrows()
            for base, number in row.items()
        }
    else:  # a family counts as one target
        table = reference.TABLE_1.drop(columns="average")
        runs = {key: row.to_numpy()[None, None] / 100 for key, row in table.iterrows()}
        names = list(table.columns)
        runs = with_members(cast(Sample, runs), names, {name: [name] for name in names})
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
    """The claims that an experiment decides: one row per claim (claim 1: per target family) and
    scope of the interval; with many worlds the scopes are the two `worlds.SCOPES`.

    Returns: a DataFrame with the columns claim, scope, ``verdict`` (corrected for the number of
    claims in this table, see `adjusted`), estimate, low, high, ``threshold``, ``paper``, ``p`` (of
    the threshold, two-sided), ``p adjusted``, ``raw verdict`` (where the interval lies), and
    ``decided by``: how many seeds, worlds or tasks would decide the raw verdict with 80 % power
    ("-" if it is decided; `worlds.in_range`). Where runs from random weights do as well as those
    from pretrained, nothing is decided ("pretrained - random").
    """
    targets, rows = tables.distinct_targets(families), []
    sample = sample_of(experiment, results, families)
    whole = bool(tables.scored(results).notna().all())
    scopes = scopes_of(tables.world_count(results)) if whole else []
    insane = [scope for scope in scopes if not tables.sane(results, families, scope)]
    for claim in CLAIMS[experiment]:
        for family in families if claim.per_family else [""]:
            some = only(sample, targets, families[family]) if family else sample
            if claim.statistic is stability and tables.replicates(results):
                some = {key: array.swapaxes(1, 2) for key, array in some.items()}
            name = f"{claim.number} {claim.text}" + (f" on {family}" if family else "")
            paper = in_the_paper(experiment, claim, family)
            for scope, found, decided in _found(claim, some) if whole else NOTHING:
                low, high = np.clip(found.interval[1:], *claim.bounds)
                p = found.p_value(claim.threshold) if scope not in insane else np.nan
                raw = verdict(p, found.value - claim.threshold)
                decided = decided() if raw == UNDECIDED else "-"
                decided = INSANE if scope in insane else decided
                said = [claim.threshold, paper, p, raw, decided]
                rows.append([name, scope, found.value, low, high, *said])
    names = ["claim", "scope", "estimate", "low", "high", "threshold", "paper", "p", "raw verdict"]
    return adjusted(pd.DataFrame(rows, columns=[*names, "decided by"]))


UNDECIDED = "undecided"
INSANE = "pretrained - random"
"""What would decide a claim where pretraining does not clearly help."""


def verdict(p: float, gap: float) -> str:
    """Supported or contradicted at 5 %, by the sign of the gap to the threshold; without a p-value
    nothing is decided."""
    if not p <= 1 - LEVEL:
        return UNDECIDED
    return "supported" if gap > 0 else "contradicted"


def adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """A table of verdicts with those corrected for the number of claims in it (`statistics.holm`),
    scope by scope. Tables of several experiments may be concatenated first. Claims that a failed
    sanity check leaves untested count as well: which ones these are is not known beforehand."""
    untested = table["decided by"] == INSANE
    counted = table["p"].mask(untested, 1.0).groupby(table["scope"], sort=False)
    p = counted.transform(statistics.holm).mask(untested)
    gaps = table["estimate"] - table["threshold"]
    led = [verdict(*pair) for pair in zip(p, gaps, strict=True)]
    rest = table.drop(columns=["verdict", "p adjusted"], errors="ignore")
    rest.insert(2, "verdict", led)
    rest.insert(list(rest.columns).index("p") + 1, "p adjusted", p)
    return rest


HERE = "other targets like these"
"""What an interval covers in one world."""


def scopes_of(count: int) -> tuple[str, ...]:
    """What intervals of differences cover in so many worlds."""
    return worlds.SCOPES if count > 1 else (HERE,)


NOTHING = [(HERE, statistics.Estimate(np.nan), lambda: "-")]
"""The result if runs are missing."""


def _found(claim: Claim, sample: Sample) -> list[tuple]:
    """The scopes, the estimates, and how to find what would decide the claim."""
    count, sources, seeds, targets = np.max([array.shape for array in sample.values()], axis=0)
    here = statistics.Estimate.of(claim.statistic(sample))
    if targets == 1:
        return [(worlds.SCOPES[0] if count > 1 else HERE, here, lambda: "-")]
    rows = sample if count > 1 else {key: one.swapaxes(0, 1) for key, one in sample.items()}
    if claim.smooth:
        values = worlds.by_type(rows, claim.statistic)
        other = worlds.estimate(values, worlds.SCOPES[1])
    else:
        other = worlds.bootstrapped(rows, claim.statistic)
    of_rows = claim.smooth and count == seeds == 1 < sources  # the rows are source seeds
    if count == 1 and not of_rows:
        return [(HERE, other, lambda: _seeds_needed(claim, sample, other, seeds))]

    def decided(scope: str) -> str:
        if not claim.smooth:
            return "more worlds" if scope == worlds.SCOPES[0] else "more worlds and tasks"
        ways = worlds.needed(values, claim.threshold, scope)
        if of_rows:
            return f"{ways['worlds']} source seeds or {ways['tasks']} targets"
        return " or ".join(f"{number} {what}" for what, number in ways.items())

    if of_rows:
        return [(HERE, other, lambda: decided(worlds.SCOPES[1]))]
    return [(scope, found, lambda s=scope: decided(s))
            for scope, found in zip(worlds.SCOPES, (here, other), strict=True)]  # fmt: skip


def _seeds_needed(claim: Claim, sample: Sample, found: statistics.Estimate, seeds: int) -> str:
    """How many seeds would decide a claim, from the part of its variance that comes from seeds;
    more seeds do not reduce what comes from the choice of targets."""
    if not claim.smooth:
        return "more targets"
    if seeds < 2 or np.isnan(found.variance):
        return "-"
    of_seeds = worlds.by_seed(sample, claim.statistic).var(ddof=1) / seeds
    if np.isnan(of_seeds):  # a spread over seeds, of two of them
        return "-"
    of_targets = max(found.variance - of_seeds, 0.0)

    def least(gap: float) -> float:
        reaches = (
            found._replace(variance=of_targets + of_seeds * seeds / count).reach(worlds.POWER)
            for count in range(seeds + 1, worlds.MOST + 1)
        )
        return next((seeds + 1 + at for at, reach in enumerate(reaches) if reach < gap), np.inf)

    if found._replace(variance=of_targets).reach(worlds.POWER) >= abs(
        found.value - claim.threshold
    ):
        return "more targets"
    return f"{worlds.in_range(least, found, claim.threshold)} seeds"
