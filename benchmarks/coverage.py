"""Do the intervals cover the truth? Made-up studies of known truth, as normal as assumed or as real
as the recorded ones.

    python benchmarks/coverage.py [--draws 1000] [--output results/benchmarks]

Every draw makes the runs of a study and asks whether each 95 % interval holds what it speaks of: in
one world and over many, over families, in the playground, and of the claims about pairs. Writes
`coverage.csv`, a row per kind of interval, size and case, with the share of draws, in percent, in
which it did ``before`` (the bootstrap over targets in one world, degrees of freedom without a bound
over many, seeds alone in the playground, rows one by one) and does ``after``, and how often the
truth lies ``below`` and ``above`` it. A quarter of an hour for 1,000 draws; the claims get half of
them, many rows at once a quarter.

"Real" tasks have effects drawn from those of `results/mini-worlds` (fused - pretrained, 13 tasks),
and residuals from those of its single runs, whose tails are long.
"""

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from fusinglib.evaluation import claims, playground, ranking, statistics, tables, worlds
from fusinglib.places import PROJECT
from fusinglib.progress import Progress
from fusinglib.training.tasks import MINI_FAMILIES

STUDY = PROJECT / "results/mini-worlds/family_table.csv"
EFFECT = 1.0  # of all made-up differences, in points


def real() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The recorded differences fused - pretrained: effects of tasks, of worlds on them, and what is
    left of single runs, each around 0, in points."""
    results = pd.read_csv(STUDY, keep_default_na=False, na_values={"accuracy": [""]})
    runs = 100 * tables.paired(results, MINI_FAMILIES)["fused - pretrained"]
    cells = runs.mean(axis=(1, 2))
    tasks = cells.mean(axis=0)
    rest = cells - cells.mean(axis=1, keepdims=True) - tasks + cells.mean()
    residuals = runs - runs.mean(axis=2, keepdims=True)
    freedom = residuals.shape[2] / (residuals.shape[2] - 1)
    return tasks - tasks.mean(), rest.ravel(), residuals.ravel() * np.sqrt(freedom)


def normal(world: float, task: float, rest: float, seed: float) -> Callable:
    """Differences whose parts are normal, of these standard deviations."""

    def make(rng, shape) -> tuple[np.ndarray, np.ndarray]:
        count, seeds, tasks = shape
        of_tasks = rng.normal(0, task, tasks)
        runs = EFFECT + rng.normal(0, world, (count, 1, 1, 1)) + of_tasks
        runs = runs + rng.normal(0, rest, (count, 1, 1, tasks))
        return runs + rng.normal(0, seed, (count, 1, seeds, tasks)), of_tasks

    return make


def as_recorded(rng, shape) -> tuple[np.ndarray, np.ndarray]:
    """Tasks, cells and residuals drawn from the recorded study."""
    count, seeds, tasks = shape
    of_tasks = rng.choice(RECORDED[0], tasks)
    cells = rng.choice(RECORDED[1], (count, 1, 1, tasks))
    return EFFECT + of_tasks + cells + rng.choice(RECORDED[2], (count, 1, seeds, tasks)), of_tasks


def unequal(rng, shape) -> tuple[np.ndarray, np.ndarray]:
    """Tasks whose seeds vary by very different amounts."""
    runs, of_tasks = normal(0.4 * (shape[0] > 1), 2, 1, 0)(rng, shape)
    return runs + rng.normal(
        0, rng.lognormal(1, 0.8, shape[2]), (shape[0], 1, *shape[1:])
    ), of_tasks


def collapsing(rng, shape) -> tuple[np.ndarray, np.ndarray]:
    """One run of eight from the fused model is 10 to 30 points lower."""
    runs, of_tasks = normal(0.4 * (shape[0] > 1), 2, 1, 2)(rng, shape)
    lower = (rng.random(runs.shape) < 0.12) * rng.uniform(10, 30, runs.shape)
    return runs - lower + 0.12 * 20, of_tasks


RECORDED = real()
CASES = {
    "normal, all alike": normal(1, 1, 1, 1),
    "normal, tasks vary most": normal(0.5, 2, 1, 2),
    "normal, worlds vary most": normal(2, 0.2, 1, 2),
    "normal, seeds vary alone": normal(0, 0, 0, 4),
    "real tasks and residuals": as_recorded,
    "unequal residuals": unequal,
    "12 % of runs collapse": collapsing,
}
STILL = {
    "normal, all alike": normal(0, 1, 1, 1),
    "normal, tasks vary most": normal(0, 2, 1, 2),
    "normal, seeds vary alone": normal(0, 0, 0, 4),
    "real tasks and residuals": as_recorded,
    "unequal residuals": unequal,
    "12 % of runs collapse": collapsing,
}
TWEETS = normal(0, 1.7, 0, 2.5)  # five targets, three seeds: as in results/tweets


def bootstrap(arrays: dict, statistic: Callable, rng, resamples=1000) -> tuple:
    """The previous interval in one world: the expanded percentile bootstrap over targets and, in
    each, seeds. Arrays (source seeds, seeds, targets)."""
    shape = np.max([array.shape for array in arrays.values()], axis=0)
    target = rng.integers(shape[2], size=(resamples, 1, 1, shape[2]))
    run = rng.integers(shape[1], size=(resamples, 1, shape[1], shape[2]))
    drawn = {
        key: array[
            tuple(i if n > 1 else 0 for i, n in zip((0, run, target), array.shape, strict=True))
        ]
        for key, array in arrays.items()
    }
    count = shape[2]
    tail = stats.norm.cdf(-np.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1))
    return tuple(np.nanquantile(statistic(drawn), [tail, 1 - tail]))


def satterthwaite(values: np.ndarray) -> tuple:
    """The previous interval over many worlds: degrees of freedom without a bound."""
    found, size = worlds.Squares.of(values), values.size
    freedom = np.array([found.worlds - 1, found.types - 1])
    squares, rest = np.array([found.of_worlds, found.of_types]) / size, found.of_rest / size
    variance = max(squares.sum() - rest, squares.max())
    both = variance**2 / ((squares**2 / freedom).sum() + rest**2 / freedom.prod())
    pairs = [*zip(squares, freedom, strict=True), (variance, both)]
    width = max(stats.t.ppf(0.975, df) * np.sqrt(of) for of, df in pairs)
    return values.mean() - width, values.mean() + width


class Counts:
    """How often intervals lie around, below and above the truth."""

    def __init__(self):
        self.draws = self.before = self.below = self.above = 0

    def add(self, truth: float, after, before=None) -> None:
        self.draws += 1
        self.before += np.nan if before is None else before[0] <= truth <= before[1]
        self.below += truth < after[0]
        self.above += truth > after[1]

    def row(self) -> list[float]:
        missed = self.below + self.above
        found = np.array([self.before, self.draws - missed, self.below, self.above])
        return list(np.round(100 * found / self.draws, 1))


def over_worlds(draws: int):
    """Both scopes of many worlds."""
    for count, tasks in [(10, 13), (10, 6), (10, 4), (5, 13), (3, 6), (2, 5)]:
        for case, make in CASES.items():
            rng, found = np.random.default_rng(0), [Counts(), Counts()]
            for _ in range(draws):
                runs, of_tasks = make(rng, (count, 3, tasks))
                same, other = (worlds.difference(runs, 0.0, scope) for scope in worlds.SCOPES)
                found[0].add(EFFECT + of_tasks.mean(), same[1:], same[1:])
                found[1].add(EFFECT, other[1:], satterthwaite(runs.mean(axis=(1, 2))))
            for scope, one in zip(worlds.SCOPES, found, strict=True):
                yield scope, f"{count} worlds, {tasks} tasks", case, *one.row()


def in_one_world(draws: int):
    """Other targets like these, in one world, which is what it is."""
    sizes = [(targets, case, make) for targets in (13, 6, 5, 4) for case, make in STILL.items()]
    for targets, case, make in [*sizes, (5, "as in results/tweets", TWEETS)]:
        rng, found = np.random.default_rng(0), Counts()
        for _ in range(draws):
            runs, _ = make(rng, (1, 3, targets))
            before = bootstrap({"a": runs[0]}, lambda some: some["a"].mean(axis=(1, 2, 3)), rng)
            found.add(EFFECT, worlds.difference(runs, 0.0)[1:], before)
        yield claims.HERE, f"{targets} targets, 3 seeds", case, *found.row()


def against_the_mean(draws: int):
    """Twenty base models that all are compared with one, in both scopes: do the intervals of all
    rows hold at once? The runs of the one are shared by all differences."""
    for count, tasks in [(10, 13), (1, 13), (1, 6)]:
        for case, make in (CASES if count > 1 else STILL).items():
            rng, found = np.random.default_rng(0), [Counts(), Counts()]
            for _ in range(draws // 4):
                drawn = [make(rng, (count, 1, tasks)) for _ in range(21)]
                (shared, of_shared), *others = drawn
                for scope, one in zip(worlds.SCOPES, found, strict=True):
                    fixed = [of_tasks.mean() - of_shared.mean() for _, of_tasks in others]
                    truths = fixed if scope == worlds.SCOPES[0] and count > 1 else [0.0] * 20
                    gaps = {
                        str(number): (runs - shared - truth) / 100
                        for number, ((runs, _), truth) in enumerate(
                            zip(others, truths, strict=True)
                        )
                    }
                    rows = ranking.compared(gaps, scope)
                    alone, every = (
                        (rows[f"low{name}"].max(), rows[f"high{name}"].min())
                        for name in ("", " all")
                    )
                    one.add(0.0, every, alone)
            for scope, one in zip(worlds.SCOPES, found, strict=True):
                if count > 1 or scope == worlds.SCOPES[1]:
                    where = f"{count} world{'s' * (count > 1)}, {tasks} tasks, 20 rows"
                    yield f"all rows at once, {scope}", where, case, *one.row()


def over_families(draws: int):
    """Tasks of three families that differ: this mix, and other families."""
    scopes = (worlds.SCOPES[1], worlds.OTHER_FAMILIES)
    families = {str(family): [f"{family} {task}" for task in range(4)] for family in range(3)}
    for spread in (1.0, 1.5, 1.8):
        rng, found = np.random.default_rng(0), [Counts(), Counts(), Counts()]
        for _ in range(draws):
            runs, _ = normal(0.4, 1, 1, 2)(rng, (10, 3, 12))
            of_families = np.repeat(rng.normal(0, spread, 3), 4)
            runs = runs + of_families
            mix, before = worlds.difference(runs, 0.0), satterthwaite(runs.mean(axis=(1, 2)))
            clustered = worlds.by_family({"made": runs}, families).iloc[-1]
            found[0].add(EFFECT + of_families.mean(), mix[1:], before)
            found[1].add(EFFECT, mix[1:], before)
            found[2].add(EFFECT, (clustered["low"] / 100, clustered["high"] / 100))
        where = f"10 worlds, 3 families of 4 tasks, of standard deviation {spread}"
        for scope, case, one in zip(
            (scopes[0], scopes[0], scopes[1]),
            ("truth: of this mix", "truth: of other families", "truth: of other families"),
            found, strict=True,
        ):  # fmt: skip
            yield scope, where, case, *one.row()


def in_the_playground(draws: int):
    """One target: seeds, and test texts that are a sample of all such texts."""
    for seeds in (3, 5):
        for case, collapse in (("no collapses", 0.0), ("12 % of runs collapse", 0.12)):
            rng, found = np.random.default_rng(0), {name: Counts() for name in playground.SCOPES}
            for _ in range(draws):
                right, truths = made_answers(rng, seeds, collapse)
                for scope, truth in zip(playground.SCOPES, truths, strict=True):
                    before = statistics.over_seeds(right.mean(axis=1))[1:]
                    found[scope].add(truth, playground.gap(right, scope).interval[1:], before)
            for scope, one in found.items():
                yield scope, f"{seeds} seeds, 500 test texts", case, *one.row()


def made_answers(rng, seeds: int, collapse: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Differences of right answers, (seeds, texts) of -1, 0 and 1, and the true difference on this
    test set and on all texts. Texts are easy or hard for both models, and some more so for one;
    most are answered alike with every seed."""
    count, texts, own, level = 20_000, 500, 0.5, 0.1  # own: of a seed on a text; level: of a seed
    ease = rng.normal(1.0, 1.5, count)
    ease = np.stack([ease + rng.normal(0.25, 0.7, count), ease])
    fallen = 3 * (rng.random((seeds, 2, 1)) < [[collapse], [0.0]])
    shown = ease[:, :texts] + rng.normal(0, level, (seeds, 2, 1)) - fallen
    right = (shown + rng.normal(0, own, shown.shape) > 0).astype(float)
    fall = np.array([[collapse], [0.0]])
    chance = [stats.norm.cdf(of / np.hypot(own, level)) for of in (ease, ease - 3)]
    chance = (1 - fall) * chance[0] + fall * chance[1]
    gaps = chance[0] - chance[1]
    return right[:, 0] - right[:, 1], (float(gaps[:texts].mean()), float(gaps.mean()))


def of_claims(draws: int):
    """The claims about pairs, in one world of nine targets and five seeds, and over ten worlds.
    What they speak of is what studies of this size give on average."""
    for count, targets, seeds in ((1, 9, 5), (10, 9, 3)):
        samples, rng = [], np.random.default_rng(0)
        for _ in range(draws // 2):
            samples.append(made_pairs(rng, count, targets, seeds))
        for claim in claims.CLAIMS["pairwise_heatmap"]:
            truth = np.mean([claim.statistic(sample).mean() for sample in samples])
            found = Counts()
            for sample in samples:
                known = claims._found(claim, sample)[-1][1]
                before = None
                if count == 1:
                    world = {key: array[0] for key, array in sample.items()}
                    before = np.clip(bootstrap(world, claim.statistic, rng), *claim.bounds)
                found.add(truth, np.clip(known.interval[1:], *claim.bounds), before)
            where = f"{count} world{'s' * (count > 1)}, {targets} targets, {seeds} seeds"
            yield f"claim {claim.number}", where, "normal", *found.row()


def made_pairs(rng, count: int, targets: int, seeds: int) -> claims.Sample:
    """Six models, the same in all draws, and their 15 pairs, a bit better than the mean of two."""

    def runs(effect: np.ndarray) -> np.ndarray:
        return effect + 0.01 * rng.normal(size=(count, 1, seeds, targets))

    own = np.linspace(-0.012, 0.012, 6)[:, None] + 0.015 * rng.normal(size=(6, targets))
    sample = {("pretrained", ()): runs(np.zeros(targets))}
    sample |= {("intertrained", (str(one),)): runs(own[one]) for one in range(6)}
    for one, two in combinations(range(6), 2):
        mean = (own[one] + own[two]) / 2 + 0.003 + 0.005 * rng.normal(size=targets)
        sample["fused", (str(one), str(two))] = runs(mean)
    return sample


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks"))
    options = parser.parse_args()
    kinds = [
        over_worlds, in_one_world, against_the_mean, over_families, in_the_playground, of_claims,
    ]  # fmt: skip
    rows, progress = [], Progress(len(kinds), "{} of {} kinds of intervals".format)
    for number, kind in enumerate(kinds):
        progress.update(number, kind.__name__)
        rows += kind(options.draws)
    progress.update(len(kinds), "", last=True)
    names = ["interval", "size", "case", "before", "after", "below", "above"]
    table = pd.DataFrame(rows, columns=names)
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.output / "coverage.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
