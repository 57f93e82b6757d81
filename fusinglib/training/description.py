"""What the data of tasks are like: sizes, labels, lengths, and the texts that a model reads."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import get_args

import numpy as np
import pandas as pd

from fusinglib.errors import InputError
from fusinglib.progress import Progress
from fusinglib.training import data
from fusinglib.training.data import SPLITS, TaskData
from fusinglib.training.settings import Data, TextFormat
from fusinglib.training.tasks import Task

SAMPLE = 1000
"""How many training texts are looked at for their lengths."""


COLUMNS = [*SPLITS, "labels", "majority", "length", "95 %", "notes"]


def describe(tasks: Iterable[Task], how: Data, length: Callable[[str], int]) -> pd.DataFrame:
    """A row per task: examples of each split, the share of each label in train in percent, the
    accuracy of always saying train's most frequent label, in percent of test, and the lengths of
    its inputs, middle and 95 % quantile, as `length` counts them.

    What is noted about the data (other row counts than published...) comes last; of a task whose
    data are not at hand there is nothing but why.
    """
    rows, tasks = {}, list(tasks)
    progress = Progress(len(tasks), "{} of {} tasks read".format)
    for task in tasks:
        progress.update(len(rows), task.name)
        try:
            rows[task.name] = _row(data.load(task, how), how, length)
        except InputError as error:
            rows[task.name] = {"notes": str(error)}
    progress.update(len(rows), "", last=True)
    table = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=COLUMNS)
    return table.astype(dict.fromkeys([*SPLITS, "length", "95 %"], "Int64")).rename_axis("task")


def _row(loaded: TaskData, how: Data, length: Callable[[str], int]) -> dict:
    counts = Counter(loaded.train.labels)
    most = max(counts, key=counts.get)
    shares = [round(100 * counts[label] / len(loaded.train)) for label in sorted(counts)]
    lengths = [
        length(data.text_input(loaded.task, text, how.text_format))
        for text in loaded.train.texts[:SAMPLE]
    ]
    return {
        **loaded.sizes,
        "labels": "/".join(map(str, shares)),
        "majority": 100 * loaded.test.labels.count(most) / len(loaded.test),
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
