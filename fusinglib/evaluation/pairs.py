"""Tables of the pairwise heatmap (Figure 2), from its tidy results."""

import numpy as np
import pandas as pd

from fusinglib.evaluation import statistics, tables, worlds

CLASSES = {
    "better than both": "++",
    "better than their mean": "+",
    "better than the worse": "~",
    "worse than both": "-",
}
"""How a fused pair does beside its two models, best first, and the sign for it."""


def table(results):
    """Figure 2's cells: a row per pair of source tasks, over the targets that neither has seen.

    Returns: a DataFrame with the columns

    - ``one``, ``two``: the tasks; ``targets``: how many;
    - ``gain``, ``gain_one``, ``gain_two``: of the fused pair and of each intertrained model over
      pretrained, in points;
    - ``rank``: how the pair does beside the two, see `CLASSES`;
    - ``certain``: whether it stays the same within one standard error of the pair's distance
      from the better one, the mean of the two and the worse one;
    - ``p``: of the pair against the better one, by sign flips, corrected for the number of pairs;
    - with many worlds ``better_than_both``: in how many of them, in percent.
    """
    rows = []
    for names in dict.fromkeys(results[results["base"] == "fused"]["sources"]):
        fused, one, two, pretrained = arrays(results, names)
        worse, better = sorted((one, two), key=np.mean)
        against = {"both": better, "mean": (one + two) / 2, "worse": worse}
        gaps = {name: 100 * statistics.mean(fused - other) for name, other in against.items()}
        errors = {
            name: 100 * statistics.standard_error(fused, other) for name, other in against.items()
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
                "p": statistics.sign_flip(fused, better),
                **_in_worlds(fused, one, two),
            }
        )
    return pd.DataFrame(rows).assign(p=lambda cells: statistics.false_discovery(cells["p"]))


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
    found = tables.arrays(
        results[results["sources"].isin(bases)], ["sources"], unseen(results, names)
    )
    return [found[sources,] for sources in bases]


def unseen(results, names):
    """The targets that neither of two tasks is, on which their mean was tried."""
    return list(dict.fromkeys(results[results["sources"].isin([names])]["target"]))


def detail(results, names):
    """What stands behind a cell: test accuracies in percent, a row for every target that neither
    model has seen and every seed (with several source seeds or worlds their mean), and last their
    means.

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
    above = sum(gap > 0 for gap in gaps)
    return list(CLASSES)[len(CLASSES) - 1 - above]


def diagonal(results):
    """The diagonal of Figure 2: the gain of each intertrained model over pretrained, in points.

    Over all targets but the task itself, so other ones than in `table`. Returns: a DataFrame
    indexed by task with estimate, low, high.
    """
    rows = {}
    for names in dict.fromkeys(results[results["base"] == "intertrained"]["sources"]):
        both = results[results["sources"].isin([names, ()])]
        found = tables.arrays(both, ["sources"], unseen(results, names))
        rows[names[0]] = [100 * v for v in worlds.difference(found[names,], found[(),])]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "low", "high"])


def shares(cells):
    """The share of pairs better than both, than their mean and than the worse one, in percent,
    and how many classes are uncertain; beside what the paper says."""
    known = cells[cells["rank"] != ""]
    order = known["rank"].map(list(CLASSES).index)
    rows = [
        ("better than both models", 100 * (order <= 0).mean(), "often"),
        ("better than their mean", 100 * (order <= 1).mean(), "most"),
        ("better than the worse one", 100 * (order <= 2).mean(), "all but one"),
        ("class changes within one standard error", 100 * (~known["certain"]).mean(), ""),
    ]
    return pd.DataFrame(rows, columns=["pairs", "share", "paper"]).set_index("pairs")
