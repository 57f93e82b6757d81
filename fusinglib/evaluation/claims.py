"""The paper's claims: the statistic that decides each, its interval, and a verdict.

A statistic is a plain function of a `Sample`; its interval comes from a bootstrap over targets and
seeds, in which every base model keeps the same draws. A claim is supported where the whole interval
lies above its threshold (or from it on, where the claim says "all but"), contradicted where it lies
below, and else undecided at this size. A verdict speaks of the model and the data of its results
alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from fusinglib.evaluation import reference, statistics, tables, worlds


@dataclass(frozen=True)
class Sample:
    """Accuracies by base model, and which targets belong to which family.

    `runs`: key -> (source seeds, seeds, targets), as fractions, NaN where a model was trained on
    the target. A key is (base, source family), with the value of the varied column in front where
    there is one; in a heatmap it is (base, sources). `members`: family -> bool (targets,).
    """

    runs: dict[tuple, np.ndarray]
    members: dict[str, np.ndarray]

    def drawn(self, source, seed, target) -> "Sample":
        """The sample of these source seeds, seeds (per target) and targets."""
        runs = {
            key: array[source if len(array) > 1 else slice(None)][:, seed, target]
            for key, array in self.runs.items()
        }
        return Sample(runs, {name: mask[target] for name, mask in self.members.items()})

    def of(self, *start) -> list[np.ndarray]:
        """The runs of all base models whose key begins so."""
        return [array for key, array in self.runs.items() if key[: len(start)] == start]

    def accuracy(self, *start, family: str = "") -> float:
        """Their mean accuracy in points, over one family or all targets."""
        columns = self.members[family] if family else slice(None)
        return 100 * float(np.mean([array[..., columns].mean() for array in self.of(*start)]))


def gain(sample: Sample, family: str) -> float:
    """Fused over pretrained, mean of source families, on a target family."""
    return sample.accuracy("fused", family=family) - sample.accuracy("pretrained", family=family)


def stability(sample: Sample) -> float:
    """How much less fused varies over seeds than pretrained: the difference of their Table 3s."""
    spreads = [
        np.mean([statistics.deviation(array) for array in sample.of(base)])
        for base in ("pretrained", "fused")
    ]
    return 100 * float(spreads[0] - spreads[1])


def intertraining(sample: Sample) -> float:
    """Intertrained over fused, mean of source families."""
    return sample.accuracy("intertrained") - sample.accuracy("fused")


def own_family(sample: Sample) -> float:
    """How much more intertrained than fused models gain from sources of the target's own family."""
    return _advantage(sample, "intertrained") - _advantage(sample, "fused")


def _advantage(sample: Sample, base: str) -> float:
    """Own source family over the others, mean of the families that are source and target."""
    sources = [key[1] for key in sample.runs if key[0] == base and key[1] in sample.members]
    table = np.array([[sample.accuracy(base, s, family=t) for s in sources] for t in sources])
    others = ~np.eye(len(sources), dtype=bool)
    return float(np.diag(table).mean() - table[others].mean()) if others.any() else float("nan")


def losing_singles(sample: Sample) -> float:
    """The share of intertrained models that lie below pretrained, in percent."""
    (start,) = sample.of("pretrained")
    gains = [array - start for array in sample.of("intertrained")]
    return 100 * float(np.mean([np.nanmean(g) < 0 for g in gains if not np.isnan(g).all()]))


def pairs_above(which: Callable) -> Callable[[Sample], float]:
    """The share of pairs, in percent, that lie above `which` (max or middle) of their two."""

    def share(sample: Sample) -> float:
        above = [pair > which([one, two]) for pair, one, two in _pair_gains(sample)]
        return 100 * float(np.mean(above))

    return share


def above_worse(sample: Sample) -> float:
    """The share of pairs, in percent, that beat the worse of their two models; a pair that has no
    target in a resample is not held against them."""
    pairs = len(sample.of("fused"))
    failed = sum(pair <= min(one, two) for pair, one, two in _pair_gains(sample))
    return 100 * (1 - failed / pairs)


def middle(two) -> float:
    """The mean of two numbers."""
    return sum(two) / 2


def good_pairs(sample: Sample) -> float:
    """The rank correlation of the gain of a pair with the mean gain of its two models."""
    gains = np.array(_pair_gains(sample))
    if np.ptp(gains[:, 0]) == 0 or np.ptp(gains[:, 1:].mean(axis=1)) == 0:
        return np.nan  # it is not defined
    return float(stats.spearmanr(gains[:, 0], gains[:, 1:].mean(axis=1)).statistic)


def _pair_gains(sample: Sample) -> list[tuple[float, float, float]]:
    """Gains of every pair and of its two models over pretrained, on the pair's targets."""
    (start,) = sample.of("pretrained")
    found = []
    for (base, names), pair in sample.runs.items():
        if base == "fused" and not np.isnan(pair).all():
            unseen = ~np.isnan(pair)
            models = [pair, *(sample.runs["intertrained", name] for name in names.split())]
            found.append(tuple(float((model - start)[unseen].mean()) for model in models))
    return found


def interaction(sample: Sample) -> float:
    """How much more intertrained than fused models lose under decay."""
    return _lost(sample, "intertrained") - _lost(sample, "fused")


def decay_loss(sample: Sample) -> float:
    """What is lost under decay, mean of the three base models."""
    return float(np.mean([_lost(sample, b) for b in ("pretrained", "intertrained", "fused")]))


def more_data(sample: Sample) -> float:
    """Fused models of the largest source size over those of the smallest."""
    return -_lost(sample, "fused")


def flatter(sample: Sample) -> float:
    """How much more intertrained than fused models rise from the smallest to the largest size."""
    return _lost(sample, "fused") - _lost(sample, "intertrained")


def _lost(sample: Sample, base: str) -> float:
    """Accuracy at the least value of the varied column less that at the greatest."""
    values = sorted({key[0] for key in sample.runs})
    return sample.accuracy(values[0], base) - sample.accuracy(values[-1], base)


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the statistic that has to exceed the threshold if it holds, or with
    `or_equal` to reach it.

    `bounds` are the least and the greatest value of the statistic. `said` is what the paper says
    where none of its tables gives the statistic. `seeds` says whether seeds are drawn anew in the
    bootstrap: a spread over them would come out too small if so.
    """

    number: int
    text: str
    statistic: Callable[..., float]
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
            8, "pairs often beat the better one", pairs_above(max),
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


def in_the_paper(experiment: str, claim: Claim, more: dict) -> str:
    """What the paper's own tables give for a claim, else what it says."""
    if claim.said or more.get("family", "general") not in reference.FAMILY_SIZES:
        return claim.said
    if experiment == "weight_decay":
        runs = {
            (decay, base): np.array([[[accuracy / 100]]])
            for decay, row in reference.TABLE_2.iterrows()
            for base, accuracy in row.items()
        }
        members = {"general": np.array([True])}
    else:  # a family stands as one target
        table = reference.TABLE_1.drop(columns="average")
        runs = {key: row.to_numpy()[None, None] / 100 for key, row in table.iterrows()}
        members = {name: table.columns == name for name in table.columns}
    return f"{claim.statistic(Sample(runs, members), **more):+.1f}"


VARIED = {"weight_decay": ["weight_decay"], "source_size": ["source_size"]}
"""The column that an experiment varies."""


def sample_of(experiment: str, results: pd.DataFrame, families: dict) -> Sample:
    """The results of an experiment as a `Sample`."""
    targets = tables.distinct_targets(families)
    members = {family: np.isin(targets, members) for family, members in families.items()}
    source = "sources" if experiment == "pairwise_heatmap" else "source_family"
    keys = [*VARIED.get(experiment, []), "base", source]
    seeds = sorted(results["seed"].unique())
    runs = {}
    for key, part in results.groupby(keys, sort=False):
        columns = [sorted(part["source_seed"].unique()), seeds, targets]
        index = pd.MultiIndex.from_product(columns)
        accuracy = part.set_index(["source_seed", "seed", "target"])["accuracy"].reindex(index)
        runs[key] = accuracy.to_numpy().reshape([len(column) for column in columns])
    return Sample(runs, members)


def verdicts(experiment: str, results: pd.DataFrame, families: dict, resamples=1000):
    """The claims that an experiment decides: a row each (claim 1: a row per target family); over
    many worlds those of `verdicts_over_worlds`.

    Returns: a DataFrame with the columns claim, estimate, low, high, ``threshold``, ``paper``,
    ``verdict`` and ``seeds``: how many would decide it if the estimate stayed what it is ("-" where
    it is decided, "more targets" where seeds alone cannot).
    """
    if "world" in results and results["world"].nunique() > 1:
        return verdicts_over_worlds(experiment, results, families)
    rows = []
    whole = not results["accuracy"].isna().any()
    sample = sample_of(experiment, results, families)
    for claim in CLAIMS[experiment]:
        for family in families if claim.per_family else [""]:
            more = {"family": family} if family else {}
            estimate = claim.statistic(sample, **more) if whole else np.nan
            low, high, seeds = _interval(sample, claim, more, estimate, resamples)
            rows.append(
                {
                    "claim": f"{claim.number} {claim.text}" + (f" on {family}" if family else ""),
                    "estimate": estimate,
                    "low": low,
                    "high": high,
                    "threshold": claim.threshold,
                    "paper": in_the_paper(experiment, claim, more),
                    "verdict": claim.verdict(low, high),
                    "seeds": seeds,
                }
            )
    return pd.DataFrame(rows)


def verdicts_over_worlds(experiment: str, results: pd.DataFrame, families: dict) -> pd.DataFrame:
    """The claims that an experiment decides over many worlds (column ``world`` of the results).

    A statistic is taken in every world and averaged; its interval is that of `worlds.intervals`, of
    what each task type adds to it in each world, found by leaving that type out (the jackknife: of
    a mean over task types it is the type's own value).

    Returns: a DataFrame with a row for each claim and scope (`worlds.SCOPES`), with the columns of
    `verdicts` but ``decided by`` for ``seeds``: how many worlds, or task types, would decide it if
    the estimate stayed what it is ("-" where it is decided).
    """
    samples = [
        sample_of(experiment, part, families) for _, part in results.groupby("world", sort=True)
    ]
    rows = []
    for claim in CLAIMS[experiment]:
        for family in families if claim.per_family else [""]:
            values = np.stack([_by_type(claim, sample, family) for sample in samples])
            name = f"{claim.number} {claim.text}" + (f" on {family}" if family else "")
            paper = in_the_paper(experiment, claim, {"family": family} if family else {})
            for scope, found in worlds.intervals(values).items():
                low, high = np.clip([found.low, found.high], *claim.bounds)
                verdict = claim.verdict(low, high)
                decided = "-"
                if verdict == "undecided":
                    decided = _counts(worlds.needed(values, claim.threshold, scope))
                said = [claim.threshold, paper, verdict, decided]
                rows.append([name, scope, found.estimate, low, high, *said])
    names = ["claim", "scope", "estimate", "low", "high", "threshold", "paper", "verdict"]
    return pd.DataFrame(rows, columns=[*names, "decided by"])


def _by_type(claim: Claim, sample: Sample, family: str) -> np.ndarray:
    """What each of T task types adds to a statistic, with the mean of the statistic itself: that
    plus T - 1 times how much it falls, against the mean of all, without the type."""
    more = {"family": family} if family else {}
    sources, seeds, targets = np.max([array.shape for array in sample.runs.values()], axis=0)
    every_seed = np.arange(seeds)[:, None]
    kept = np.flatnonzero(sample.members[family]) if family else np.arange(targets)

    def value(types: np.ndarray) -> float:
        some = Sample(sample.runs, {family: sample.members[family]} if family else sample.members)
        return _value(claim, some.drawn(np.arange(sources), every_seed, types), more)

    without = np.array([value(kept[kept != one]) for one in kept])
    return value(kept) - (len(kept) - 1) * (without - without.mean())


WAYS = ("worlds", "task types")


def _counts(needed: tuple[int | None, int | None]) -> str:
    """ "14 worlds or 40 task types", of what would do."""
    words = [f"{count} {what}" for count, what in zip(needed, WAYS, strict=True) if count]
    return " or ".join(words) or "neither"


def _interval(sample: Sample, claim: Claim, more: dict, estimate: float, resamples: int):
    """The 95 % interval of a statistic, and how many seeds would decide the claim."""
    first = next(iter(sample.runs.values()))
    sources = max(len(array) for array in sample.runs.values())
    seeds, targets = first.shape[1:]
    if np.isnan(estimate) or targets < 2:
        return np.nan, np.nan, "-"
    rng = np.random.default_rng(0)
    every_seed, every_target = np.arange(seeds)[:, None], np.arange(targets)
    everywhere, seeds_only = np.empty(resamples), np.empty(resamples)
    for number in range(resamples):
        source = rng.integers(sources, size=sources)
        seed = rng.integers(seeds, size=(seeds, targets)) if claim.seeds else every_seed
        target = rng.integers(targets, size=targets)
        everywhere[number] = _value(claim, sample.drawn(source, seed, target), more)
        seeds_only[number] = _value(claim, sample.drawn(source, seed, every_target), more)
    tail = statistics.expanded_tail(targets)
    low, high = np.nanquantile(everywhere, [tail, 1 - tail])
    gap = abs(estimate - claim.threshold)
    of_seeds = np.nanvar(seeds_only)
    of_targets = max(np.nanvar(everywhere) - of_seeds, 0)
    if claim.verdict(low, high) != "undecided":
        return low, high, "-"
    return low, high, seeds_needed(gap, of_targets, of_seeds * seeds, targets, seeds)


def _value(claim: Claim, sample: Sample, more: dict) -> float:
    """The statistic of a resample; NaN where a family has been drawn away."""
    empty = [mask for mask in sample.members.values() if not mask.any()]
    return np.nan if empty else claim.statistic(sample, **more)


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
