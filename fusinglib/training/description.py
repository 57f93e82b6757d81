"""Statistics of tasks: sizes, labels, lengths, and the texts that a model reads."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import get_args

import numpy as np
import pandas as pd

from fusinglib.errors import InputError
from fusinglib.progress import Progress
from fusinglib.training import data, groups
from fusinglib.training.data import SPLITS, TaskData
from fusinglib.training.settings import Data, TextFormat
from fusinglib.training.tasks import Task

SAMPLE = 1000
"""How many training texts are measured for their lengths."""


COUNTS = [*SPLITS, "groups", "length", "95 %"]
MEASURES = ["groups", "error", "labels", "majority", "overlap", "length", "95 %", "overlaps"]
COLUMNS = [*SPLITS, *MEASURES, "notes"]


Length = Callable[[Task, tuple[str, ...]], int]
"""How long a text of a task is as a model reads it."""


def describe(tasks: Iterable[Task], how: Data, length: Length) -> pd.DataFrame:
    """One row per task, with the columns

    - train, dev, test: examples of each split; - groups: how many groups of examples that share
      texts the test split has (see `groups`); - error: the binomial standard error of an accuracy
      of 50 % on the test split (its maximum), in points; groups of examples make it larger; -
      labels: the share of each label in train, in percent; - majority: the accuracy of always
      choosing the most frequent label of test, in percent; - overlap: the test examples that share
      a text with the training split, in percent; - length, 95 %: of its inputs, median and 95 %
      quantile, as `length` counts them; - overlaps: other tasks whose training split shares a
      passage with test examples, with the percentage of these, from 1 % on; - notes: notes about
      the data (such as row counts that differ from the published ones). A task whose data are not
      available has only a note that says why.
    """
    rows, loaded, tasks = {}, {}, list(tasks)
    progress = Progress(len(tasks), "{} of {} tasks read".format)
    for task in tasks:
        progress.update(len(rows), task.name)
        try:
            loaded[task.name] = data.load(task, how)
            rows[task.name] = _row(loaded[task.name], length)
        except InputError as error:
            rows[task.name] = {"notes": str(error)}
    progress.update(len(rows), "", last=True)
    for name, own in loaded.items():
        shares = {of: 100 * data.overlap(own, one) for of, one in loaded.items() if of != name}
        most = sorted(
            (of for of in shares if shares[of] >= 1), key=shares.__getitem__, reverse=True
        )
        rows[name]["overlaps"] = ", ".join(f"{of} {shares[of]:.0f} %" for of in most)
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=COLUMNS)
    return table.astype(dict.fromkeys(COUNTS, "Int64")).rename_axis("task")


def _row(loaded: TaskData, length: Length) -> dict:
    counts = Counter(loaded.train.labels)
    labels = range(len(loaded.task.labels))
    shares = [round(100 * counts[label] / len(loaded.train)) for label in labels]
    lengths = [length(loaded.task, text) for text in loaded.train.texts[:SAMPLE]]
    return {
        **loaded.sizes,
        "groups": len(set(groups.groups(loaded.test.texts).tolist())),
        "error": 50 / np.sqrt(len(loaded.test)),
        "overlap": 100 * groups.sharing(loaded.test.texts, loaded.train.texts).mean(),
        "labels": "/".join(map(str, shares)),
        "majority": 100 * data.majority(loaded.test.labels),
        "length": int(np.median(lengths)),
        "95 %": int(np.quantile(lengths, 0.95)),
        "notes": "; ".join(loaded.notes),
    }


def examples(families: Mapping[str, list[str]], tasks: Mapping[str, Task], how: Data, count: int):
    """The first training text of `count` tasks of each family as a text-to-text model reads it, and
    the label that it should write: a DataFrame indexed by family and task."""
    rows = {}
    for family, names in families.items():
        for name in [name for name in names if name in tasks][:count]:
            train, text_format = data.load(tasks[name], how).train, how.text_format
            text = data.text_input(tasks[name], train.texts[0], text_format)
            label = data.label_texts(tasks[name], text_format)[train.labels[0]]
            rows[family, name] = {"text": text, "label": label}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["family", "task"])


def show(task: Task, how: Data, count: int) -> str:
    """The first `count` examples of each split as every kind of model reads them."""
    loaded = data.load(task, how)
    lines = []
    for name in SPLITS:
        split: data.Split = getattr(loaded, name)
        for text, label in zip(split.texts[:count], split.labels[:count], strict=True):
            lines.append(f"{name}:")
            for text_format in get_args(TextFormat):
                read = data.text_input(task, text, text_format)
                lines.append(f"  {text_format}: {read}")
                lines.append(f"    -> {data.label_texts(task, text_format)[label]}")
            pair = " | ".join(data.pair_input(task, text))
            lines += [f"  encoder: {pair}", f"    -> {task.labels[label]}"]
    return "\n".join(lines)
