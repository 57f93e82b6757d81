"""Tables of a sweep: the family experiment repeated over the values of one column, e.g. weight
decay. Results, families and units are those of `fusinglib.evaluation.tables`."""

import numpy as np
import pandas as pd

from fusinglib.evaluation import statistics, tables, worlds


def table(results, families, column):
    """Accuracy of each base model for each value of a column, e.g. ``weight_decay``, in percent.

    Returns: a DataFrame with the columns ``column``, base, source_family, ``accuracy`` (the mean
    over all targets), and ``difference`` from pretrained, paired by target and seed, with its 95 %
    interval from ``low`` to ``high``, in points (none for pretrained itself).
    """
    targets = tables.distinct_targets(families)
    rows = []
    for value, part in results.groupby(column):
        arrays = tables.run_arrays(part, targets)
        pretrained = arrays["pretrained", ""]
        for (base, source), runs in arrays.items():
            interval = worlds.difference(runs, pretrained)
            if base == "pretrained":
                interval = [np.nan] * 3
            accuracy = statistics.mean(runs)
            rows.append((value, base, source, accuracy, *interval))
    names = [column, "base", "source_family", "accuracy", "difference", "low", "high"]
    found = pd.DataFrame(rows, columns=names)
    found[names[3:]] *= 100
    return found


def differences(results, families, column):
    """The rows of `tables.differences` over all targets, for each value of a column."""
    parts = []
    for value, part in results.groupby(column):
        rows = tables.differences(part, families).query("target_family == 'all'")
        parts.append(rows.drop(columns="target_family").assign(**{column: value}))
    rows = pd.concat(parts, ignore_index=True)
    return rows[[column, *rows.columns.drop(column)]]


def changes(results, families, column):
    """How each base model changes from the smallest value of a column to every other, in points.

    After the base models comes "fused - intertrained": how much more the intertrained model loses
    than the fused one (the interaction; per source family).

    Returns: a DataFrame with the columns ``column``, change, source_family, estimate, low, high.
    """
    targets = tables.distinct_targets(families)
    arrays = {value: tables.run_arrays(part, targets) for value, part in results.groupby(column)}
    first, *others = sorted(arrays)
    rows = []
    for value in others:
        for base, source in arrays[first]:
            change = worlds.difference(arrays[value][base, source], arrays[first][base, source])
            rows.append((value, base, source, *change))
        for source in dict.fromkeys(source for _, source in arrays[first] if source):
            gaps = [
                arrays[at]["fused", source] - arrays[at]["intertrained", source]
                for at in (value, first)
            ]
            change = worlds.difference(*gaps)
            rows.append((value, "fused - intertrained", source, *change))
    names = [column, "change", "source_family", "estimate", "low", "high"]
    found = pd.DataFrame(rows, columns=names)
    found[names[3:]] *= 100
    return found


def turning_points(results, families, column):
    """From which value of a column a base model helps, and from which it no longer changes.

    Returns: a DataFrame indexed by base and source with the columns

    - ``helps from``: the smallest value from which on the 95 % interval of every difference from
      pretrained lies above zero;
    - ``flat from``: the smallest value (not the largest) from which no larger one differs with an
      interval that excludes zero. With few targets and seeds everything looks flat.

    "–" where there is none.
    """
    targets = tables.distinct_targets(families)
    arrays = {value: tables.run_arrays(part, targets) for value, part in results.groupby(column)}
    values, rows = sorted(arrays), {}
    for model in next(iter(arrays.values())):
        if model[0] not in tables.TRAINED:
            continue
        gains = [
            worlds.difference(arrays[value][model], arrays[value]["pretrained", ""])
            for value in values
        ]
        helps = [
            value
            for place, value in enumerate(values)
            if all(gain.low > 0 for gain in gains[place:])
        ]
        flat = [
            value
            for value in values[:-1]
            if not any(_differ(arrays[value][model], arrays[v][model]) for v in values if v > value)
        ]
        rows[model] = {"helps from": min(helps, default="–"), "flat from": min(flat, default="–")}
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.set_axis(pd.MultiIndex.from_tuples(rows, names=["base", "source"]))


def _differ(a, b):
    """Whether the interval of a difference excludes zero, or cannot be computed."""
    interval = worlds.difference(a, b)
    return not interval.low <= 0 <= interval.high


def reached(sizes, families, source_sizes):
    """How many source tasks have as many training examples as each source size."""
    sources = tables.distinct_targets(families)
    return pd.DataFrame(
        {
            "tasks that reach it": [
                sum(sizes[task]["train"] >= size for task in sources) for size in source_sizes
            ],
            "tasks": len(sources),
        },
        index=pd.Index(source_sizes, name="source_size"),
    )
