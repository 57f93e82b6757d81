"""Tables of the loss path: what happens on the straight lines between models."""

# pandas annotates what groupby, unstack and map return too widely to be checked.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportReturnType=false

import numpy as np
import pandas as pd

from fusinglib.errors import InputError
from fusinglib.evaluation import statistics
from fusinglib.study.plans import MEAN, PRETRAINED, Plan
from fusinglib.study.store import Store

KINDS = [
    "pretrained to finetuned",
    "pretrained to mean",
    "finetuned to finetuned",
    "finetuned to mean",
]
"""The kinds of lines."""

TASKS = {"dev": "trained on", "test": "unseen"}
"""What a split means for a task: dev sets are scored for tasks that an end of the line was trained
on, test sets for unseen targets."""


def points(results: pd.DataFrame) -> pd.DataFrame:
    """The results of a loss path, one row per position on a line and task.

    Returns: a DataFrame with the columns start, end, ``kind`` (of `KINDS`), task, ``tasks`` (of
    `TASKS`), head, source_seed, seed, position, loss (nats), and the accuracies (fractions). A
    missing run has one row of NaN.
    """
    lacking = {"position": np.nan, "loss": np.nan, "accuracy": np.nan}
    rows = [
        {**{name: row[name] for name in LINE}, **point}
        for row in results.to_dict("records")
        for point in (row["points"] if isinstance(row.get("points"), list) else [lacking])
    ]
    table = pd.DataFrame(rows)
    kinds = [kind_of(*ends) for ends in zip(table["start"], table["end"], strict=True)]
    return table.assign(kind=kinds, tasks=table["split"].map(TASKS))


LINE = ["start", "end", "task", "split", "head", "source_seed", "seed"]
"""What names a run of a loss path; ``head``: whether one was fitted at every position."""


def kind_of(start: str, end: str) -> str:
    """The kind of a line, from the names of its ends."""
    names = {PRETRAINED: PRETRAINED, MEAN: MEAN}
    return f"{names.get(start, 'finetuned')} to {names.get(end, 'finetuned')}"


def curves(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """The curve of every line: the mean of ``value`` over its tasks, separately for those that its
    ends were trained on and for unseen ones (and over the seeds of fitted heads).

    Arguments: ``table`` of `points`. Returns: a row per kind, start, end, source_seed and tasks, a
    column per position; NaN if a run is missing.
    """
    names = ["kind", "start", "end", "source_seed", "tasks"]
    found = table.groupby([*names, "position"], sort=False)[value].mean().unstack("position")
    holes = table[table[value].isna()].set_index(names).index
    found = found.reindex(table.set_index(names).index.unique())
    if not len(found.columns):  # nothing is finished
        found[0.0] = np.nan
    found[found.index.isin(holes)] = np.nan
    return found.sort_index(axis="columns")


def lines(table: pd.DataFrame) -> pd.DataFrame:
    """Every line as numbers: loss (nats) and accuracy (percent) at its ends and in its middle; how
    far the loss is above the straight line between its ends (``barrier``), how far the accuracy is
    below it (``drop``), and the ``rise`` of the loss (see `fusinglib.evaluation.statistics`)."""
    losses, accuracies = curves(table, "loss"), 100 * curves(table, "accuracy")
    middle = len(losses.columns) // 2
    numbers = {
        **{f"loss at {at}": losses.iloc[:, place] for at, place in _places(middle)},
        "barrier": losses.apply(statistics.barrier, axis="columns"),
        "rise": losses.apply(statistics.rise, axis="columns"),
        **{f"accuracy at {at}": accuracies.iloc[:, place] for at, place in _places(middle)},
        "drop": (-accuracies).apply(statistics.barrier, axis="columns"),
    }
    return pd.DataFrame(numbers)


def _places(middle: int) -> list[tuple[str, int]]:
    return [("start", 0), ("middle", middle), ("end", -1)]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """The kinds of lines: means of `lines`, the highest barrier, and on how many the loss never
    rises. Lines with missing runs are counted as ``missing`` and make the means NaN."""
    every = lines(table)
    rows = {}
    for (kind, tasks), part in every.groupby(level=["kind", "tasks"], sort=False):
        means = part.drop(columns="rise").mean(skipna=False)
        rows[kind, tasks] = {
            "lines": len(part),
            **means,
            "highest barrier": part["barrier"].max(skipna=False),
            "never rising": int((part["rise"] == 0).sum()),
            "missing": int(part["barrier"].isna().sum()),
        }
    order = [(kind, tasks) for kind in KINDS for tasks in TASKS.values() if (kind, tasks) in rows]
    found = pd.DataFrame.from_dict(rows, orient="index").loc[order]
    found.index = pd.MultiIndex.from_tuples(found.index, names=["line", "tasks"])
    return found.astype({name: int for name in ("lines", "never rising", "missing")})


def models(plan: Plan, store: Store) -> dict[str, str]:
    """The folders of the models that a loss path runs between, by name, pretrained first and the
    mean last; with several source seeds those of the first. A model whose run failed is left out.
    """
    first = plan.rows[0]["source_seed"]
    found = {}
    for row in plan.rows:
        if row["source_seed"] == first:
            ends = zip((row["start"], row["end"]), row["run"].parents, strict=True)
            found |= {name: store.model(run) for name, run in ends if store.has(run)}
    if PRETRAINED not in found:
        raise InputError(f"the pretrained model is missing: see {store.root / 'failed'}")
    return dict(sorted(found.items(), key=lambda item: item[0] == MEAN))


def between(table: pd.DataFrame, number: str) -> pd.DataFrame:
    """A number of `lines` (``barrier`` or ``drop``) between every two models, on the tasks that
    they were trained on, or on unseen ones if nothing was trained here; the mean over source seeds.
    NaN on the diagonal."""
    found = lines(table)[number]
    trained, unseen = TASKS.values()
    known = trained in found.index.unique("tasks")
    every = found.xs(trained if known else unseen, level="tasks")
    pairs = every.groupby(level=["start", "end"], sort=False)
    heights = pairs.agg(lambda part: part.mean(skipna=False))
    names = list(dict.fromkeys([*heights.index.unique("start"), *heights.index.unique("end")]))
    half = heights.unstack().reindex(index=names, columns=names)
    return half.combine_first(half.T).loc[names, names]
