"""Tables of the pairwise heatmap (Figure 2), from its tidy results."""

import numpy as np
import pandas as pd

from fusinglib.evaluation import statistics, tables, worlds
from fusinglib.evaluation.claims import TIE

CLASSES = {
    "better than both": "++",
    "better than their mean": "+",
    "better than the worse": "~",
    "worse than both": "-",
}
"""How a fused pair compares with its two models, best first, and the sign for it."""


def table(results):
    """Figure 2's cells: a row per pair of source tasks, over the targets that neither has seen.

    Returns: a DataFrame with the columns

    - ``one``, ``two``: the tasks;
    - ``targets``: how many;
    - ``gain``, ``gain_one``, ``gain_two``: of the fused pair and of each intertrained model over
      pretrained, in points;
    - ``rank``: how the pair compares with the two, see `CLASSES`;
    - ``certain``: whether it does not change within one standard error of the pair's distance from
      the better one, the mean of the two and the worse one;
    - ``p``: of the pair against the better one, chosen on other seeds than it is compared on
      (`above_better`), by sign flips of worlds, or in a single one of targets (`least_p` is the
      smallest possible), corrected for the number of pairs;
    - ``above_better``: that difference, in points; a mean over seeds;
    - with many worlds ``better_than_both``: in how many of them, in percent.
    """
    rows = []
    for names in dict.fromkeys(results[results["base"] == "fused"]["sources"]):
        fused, one, two, pretrained = arrays(results, names)
        worse, better = sorted((one, two), key=np.mean)
        against = {"both": better, "mean": (one + two) / 2, "worse": worse}
        gaps = {name: 100 * statistics.mean(fused - other) for name, other in against.items()}
        errors = {
            name: 100 * np.sqrt(worlds.known(fused, other).variance)
            for name, other in against.items()
        }
        rows.append(
            {
                **dict(zip(("one", "two"), names, strict=True)),
                "targets": fused.shape[-1],
                "gain": 100 * statistics.mean(fused - pretrained),
                "gain_one": 100 * statistics.mean(one - pretrained),
                "gain_two": 100 * statistics.mean(two - pretrained),
                "rank": class_of(gaps.values()),
                "certain": all(abs(gaps[name]) > errors[name] for name in gaps),
                "above_better": 100 * float(np.mean(above_better(fused, one, two))),
                "p": statistics.sign_flip(units(above_better(fused, one, two))),
                **_in_worlds(fused, one, two),
            }
        )
    return pd.DataFrame(rows).assign(p=lambda cells: statistics.false_discovery(cells["p"]))


def above_better(fused, one, two):
    """How far a pair is above the better of its models, run by run: each seed is compared with the
    model that was better on all other seeds (with one seed, on the other targets).

    Chosen on the same runs, the better of two equal models would look better than it is, and a pair
    that equals them worse. Arrays as of `arrays`.
    """
    axis = -2 if fused.shape[-2] > 1 else -1
    gap = (one - two).mean(axis=(0, 1), keepdims=True)
    others = gap.sum(axis=(-2, -1), keepdims=True) - gap.sum(axis=-3 - axis, keepdims=True)
    return fused - np.where(others > 0, one, np.where(others < 0, two, (one + two) / 2))


def units(differences):
    """The independent units whose signs may flip: the mean differences of worlds or, in a single
    world, of targets."""
    alone = len(differences) == 1
    return differences.mean(axis=(0, 1, 2) if alone else (1, 2, 3))


def least_p(results):
    """The smallest p-value that this design can give a pair, before correction."""
    count = tables.world_count(results)
    if count == 1:
        paired = results[results["base"] == "fused"]
        count = paired.groupby("sources")["target"].nunique().max()
    return 2.0 ** (1 - count)


def _in_worlds(fused, one, two):
    """With many worlds, the share of them in which the pair is better than both, in percent."""
    if len(fused) == 1:
        return {}
    fused, one, two = (array.mean(axis=(1, 2, 3)) for array in (fused, one, two))
    return {"better_than_both": 100 * float(np.mean(fused > np.maximum(one, two)))}


def arrays(results, names):
    """Accuracies of a fused pair, its two models and pretrained over the targets unseen by both.

    Returns: four arrays, (worlds, source seeds, seeds, targets), NaN where a run is missing.
    """
    bases = [names, *((name,) for name in names), ()]
    found = _by_sources(results, bases, unseen(results, names))
    return [found[sources,] for sources in bases]


def _by_sources(results, bases, targets):
    """The arrays of the base models made from these sources; from none is pretrained alone."""
    chosen = results["sources"].isin(bases) & (results["base"] != "random")
    return tables.arrays(results[chosen], ["sources"], targets)


def gain(results, names):
    """The gain of a pair over pretrained in points, with its interval (see `worlds.difference`)."""
    fused, _, _, pretrained = arrays(results, names)
    return statistics.Difference(*(100 * number for number in worlds.difference(fused, pretrained)))


def unseen(results, names):
    """The targets other than the two tasks, on which their mean was tried."""
    return list(dict.fromkeys(results[results["sources"].isin([names])]["target"]))


def detail(results, names):
    """The runs behind a cell: test accuracies in percent, one row per target that neither model has
    seen and per seed (with several source seeds or worlds their mean), and last their means.

    Arguments: ``names``, the two source tasks, as in the column ``sources``. Returns: a DataFrame
    indexed by target and seed, with the columns pretrained, fused, and the two tasks.
    """
    fused, one, two, pretrained = (
        100 * array.mean(axis=(0, 1)) for array in arrays(results, names)
    )
    targets = unseen(results, names)
    seeds = sorted(results["seed"].unique())
    index = pd.MultiIndex.from_product([targets, seeds], names=["target", "seed"])
    columns = dict(zip(("pretrained", *names, "fused"), (pretrained, one, two, fused),
                       strict=True))  # fmt: skip
    table = pd.DataFrame({name: array.T.ravel() for name, array in columns.items()}, index=index)
    table.loc[("mean", ""), :] = table.mean(skipna=False)
    return table


def class_of(gaps):
    """The class of a pair from its distances to the better one, the mean and the worse one."""
    if any(np.isnan(gap) for gap in gaps):
        return ""
    above = sum(gap > 100 * TIE for gap in gaps)
    return list(CLASSES)[len(CLASSES) - 1 - above]


def diagonal(results):
    """The diagonal of Figure 2: the gain of each intertrained model over pretrained, in points.

    Over all targets except the task itself, so not the same ones as in `table`. Returns: a
    DataFrame indexed by task with estimate, low, high.
    """
    rows = {}
    for names in dict.fromkeys(results[results["base"] == "intertrained"]["sources"]):
        found = _by_sources(results, [names, ()], unseen(results, names))
        rows[names[0]] = [100 * v for v in worlds.difference(found[names,], found[(),])]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "low", "high"])


def shares(cells):
    """The share of pairs better than both, than their mean and than the worse one, in percent, and
    how many classes are uncertain, with what the paper says."""
    known = cells[cells["rank"] != ""]
    order = known["rank"].map(list(CLASSES).index)
    rows = [
        ("better than both models", 100 * (order <= 0).mean(), "often"),
        ("better than their mean", 100 * (order <= 1).mean(), "most"),
        ("better than the worse one", 100 * (order <= 2).mean(), "all but one"),
        ("class changes within one standard error", 100 * (~known["certain"]).mean(), ""),
    ]
    return pd.DataFrame(rows, columns=["pairs", "share", "paper"]).set_index("pairs")
