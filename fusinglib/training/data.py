"""From a task's row to labelled texts: loading, splits (paper Appendix B) and text formats."""

import dataclasses
import functools
import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fusinglib.errors import InputError, nearest
from fusinglib.training import miniworld
from fusinglib.training.settings import Data
from fusinglib.training.tasks import MINIWORLD, Task

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Split:
    """Texts (a tuple of columns per example) and their label ids, in a fixed order."""

    texts: list[tuple[str, ...]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int]) -> "Split":
        """The examples at `rows`, in that order."""
        return Split([self.texts[i] for i in rows], [self.labels[i] for i in rows])


@dataclass(frozen=True)
class TaskData:
    """A task's three splits, the fingerprint of their content, and the Hub's revision, if told."""

    task: Task
    train: Split
    dev: Split
    test: Split
    fingerprint: str
    revision: str | None

    @property
    def sizes(self) -> dict[str, int]:
        """Examples per split."""
        return {name: len(getattr(self, name)) for name in SPLITS}


@functools.lru_cache(maxsize=64)
def load(task: Task, settings: Data) -> TaskData:
    """The splits of `task`, decided by its rows and `settings` alone.

    Raises `InputError` where the task cannot be loaded, a column or label does not fit, or a
    split comes out empty.
    """
    if task.splits not in SPLIT_RULES:
        known = nearest(task.splits, SPLIT_RULES)
        raise InputError(f"task {task.name!r}: unknown split rule {task.splits!r}: {known}")
    raw, revision = _raw(task)
    try:
        splits = SPLIT_RULES[task.splits](raw, settings)
    except KeyError as error:
        raise InputError(
            f"task {task.name!r}: it has no split {error}; it has {', '.join(sorted(raw))}: "
            f"choose another split rule ({', '.join(SPLIT_RULES)})"
        ) from None
    splits["dev"] = _sample(splits["dev"], settings.max_dev, settings.split_seed, "dev")
    splits["test"] = _sample(splits["test"], settings.max_test, settings.split_seed, "test")
    for name, split in splits.items():
        if not len(split):
            raise InputError(f"task {task.name!r}: its {name} split is empty; choose other data")
    return TaskData(task, **splits, fingerprint=_fingerprint(splits), revision=revision)


def _raw(task: Task) -> tuple[dict[str, Split], str | None]:
    """Every split that the copy has, under the copy's own names."""
    if task.hub_id == MINIWORLD:
        made = miniworld.examples(task.config, int(task.revision))
        return {name: _split(task, name, rows) for name, rows in made.items()}, task.revision
    copies = _hub(task)
    raw = {}
    for name, rows in copies.items():
        wanted = [*task.columns, task.label_column]
        missing = [column for column in wanted if column not in rows.column_names]
        if missing:
            raise InputError(
                f"task {task.name!r}: {task.hub_id} ({task.config}) has no column "
                f"{missing[0]!r}; it has {', '.join(rows.column_names)}"
            )
        raw[name] = _split(task, name, rows.select_columns(wanted))
    files = next(iter(copies.values())).cache_files
    folder = Path(files[0]["filename"]).parent.name if files else ""
    return raw, folder if re.fullmatch("[0-9a-f]{40}", folder) else None


def _hub(task: Task):
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        return datasets.load_dataset(task.hub_id, task.config, revision=task.revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"task {task.name!r}: cannot load {task.hub_id} ({task.config}): the Hub could not be "
            f"reached or has no such data, and no copy is in the cache that HF_HOME names. "
            f"Go online once, or set HF_HOME to a folder that has it. ({_first_line(error)})"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise InputError(
            f"task {task.name!r}: the files of {task.hub_id} ({task.config}) cannot be read, or do "
            f"not fit together ({_first_line(error.__cause__ or error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _split(task: Task, name: str, rows) -> Split:
    """The rows as texts and labels; unlabelled splits (all labels -1) come out empty."""
    texts, labels = [], []
    for number, row in enumerate(rows):
        label = row[task.label_column]
        if label == -1:
            continue
        if type(label) is not int or not 0 <= label < len(task.labels):
            raise InputError(
                f"task {task.name!r}: row {number} of {name} has the label {label!r}; expected "
                f"0 to {len(task.labels) - 1} ({', '.join(task.labels)})"
            )
        text = tuple(row[column] for column in task.columns)
        if not all(isinstance(part, str) for part in text):
            raise InputError(
                f"task {task.name!r}: row {number} of {name} is no text in all of its columns "
                f"{', '.join(task.columns)}: {text!r}"
            )
        texts.append(text)
        labels.append(label)
    return Split(texts, labels)


def _own(raw: dict[str, Split], settings: Data) -> dict[str, Split]:
    return {"train": raw["train"], "dev": raw["validation"], "test": raw["test"]}


def _mnli(raw: dict[str, Split], settings: Data) -> dict[str, Split]:
    matched, mismatched = raw["validation_matched"], raw["validation_mismatched"]
    if settings.split_rule == "later":
        return {**_later(raw["train"]), "test": matched}
    return {"train": raw["train"], "dev": matched, "test": mismatched}


def _rounds(raw: dict[str, Split], settings: Data) -> dict[str, Split]:
    """ANLI's rounds as one task, whichever of them the copy has."""

    def together(prefix: str) -> Split:
        parts = [raw[f"{prefix}_r{n}"] for n in (1, 2, 3) if f"{prefix}_r{n}" in raw]
        return Split(
            [text for part in parts for text in part.texts],
            [label for part in parts for label in part.labels],
        )

    return {"train": together("train"), "dev": together("dev"), "test": together("test")}


def _carve(raw: dict[str, Split], settings: Data) -> dict[str, Split]:
    """Test = min(1,000, 10 %) of the training examples, cut by the split seed."""
    train = raw["train"]
    if settings.split_rule == "later":
        return {**_later(train), "test": raw["validation"]}
    order = _order(len(train), settings.split_seed, "carve")
    cut = min(1000, len(train) // 10)
    return {
        "train": train.take(sorted(order[cut:])),
        "dev": raw["validation"],
        "test": train.take(sorted(order[:cut])),
    }


def _later(train: Split) -> dict[str, Split]:
    """The authors' later public rule: train[5%:95%]; dev is the first 5 %, the last is unused."""
    low, high = len(train) * 5 // 100, len(train) * 95 // 100
    return {"train": train.take(range(low, high)), "dev": train.take(range(low))}


SPLIT_RULES = {"carve": _carve, "own": _own, "mnli": _mnli, "rounds": _rounds}


def _order(size: int, seed: int, purpose: str) -> list[int]:
    """A shuffle of range(size), fixed by the seed and what it is for."""
    order = list(range(size))
    random.Random(f"{seed}/{purpose}").shuffle(order)
    return order


def _sample(split: Split, most: int, seed: int, purpose: str) -> Split:
    """At most `most` examples (0: all), drawn by the split seed, in their first order."""
    if not most or len(split) <= most:
        return split
    return split.take(sorted(_order(len(split), seed, purpose)[:most]))


def smaller(loaded: TaskData, examples: int, split_seed: int) -> TaskData:
    """The same data with at most `examples` in the training split, drawn by the split seed.

    A larger draw holds the smaller one.
    """
    train = _sample(loaded.train, examples, split_seed, "train")
    fingerprint = f"{loaded.fingerprint}/{examples}"
    return dataclasses.replace(loaded, train=train, fingerprint=fingerprint)


def _fingerprint(splits: dict[str, Split]) -> str:
    """A hash of every text and label, split by split."""
    digest = hashlib.sha256()
    for name in SPLITS:
        rows = [splits[name].texts, splits[name].labels]
        digest.update(json.dumps(rows, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def text_input(task: Task, text: tuple[str, ...], text_format: str) -> str:
    """The input of a text-to-text model.

    "t5": `{task} {column}: {text} ...`, T5's own convention. "later": the authors' later public
    format, the texts joined by ` <SEP> `, then `<{task}`.
    """
    if text_format == "later":
        return " <SEP> ".join(text) + f" <{task.name}"
    parts = [f"{column}: {part}" for column, part in zip(task.columns, text, strict=True)]
    return " ".join([task.name, *parts])


def label_texts(task: Task, text_format: str) -> list[str]:
    """What a text-to-text model writes for each label: its word, or its number ("later")."""
    if text_format == "later":
        return [str(number) for number in range(len(task.labels))]
    return list(task.labels)
