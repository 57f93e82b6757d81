"""From a task's row to labelled texts: loading, splits (paper Appendix B) and text formats."""

import functools
import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusinglib.errors import InputError, nearest
from fusinglib.training import groups, miniworld
from fusinglib.training.settings import Data, Numbers
from fusinglib.training.tasks import MINIWORLD, Task

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Split:
    """Texts (a tuple of columns per example) and their label ids, in a fixed order."""

    texts: list[tuple[str, ...]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Numbers) -> "Split":
        """The examples at `rows`, in that order."""
        return Split([self.texts[i] for i in rows], [self.labels[i] for i in rows])


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's three splits, the fingerprint of their content, and the Hub revision, if known.

    `notes` say where these data differ from the published ones: row counts, missing splits, test
    texts that also occur in the training split.
    """

    task: Task
    train: Split
    dev: Split
    test: Split
    fingerprint: str
    revision: str | None
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """Examples per split."""
        return {name: len(getattr(self, name)) for name in SPLITS}

    @functools.cached_property
    def tested_passages(self) -> tuple[np.ndarray, np.ndarray]:
        """The `groups.passages` of the test split."""
        return groups.passages(self.test.texts)

    @functools.cached_property
    def trained_passages(self) -> np.ndarray:
        """The hashes of all passages in the training split, sorted."""
        return np.unique(groups.passages(self.train.texts)[1])


def majority(labels: Numbers) -> float:
    """The accuracy of always choosing the most frequent of these labels (which may not be the most
    frequent one in the training split)."""
    return float(np.bincount(labels).max() / len(labels))


KIN = 0.10
"""A task with at least this overlap is left out together with the target (under the rule
"grouped")."""


@functools.cache
def overlap(target: TaskData, source: TaskData) -> float:
    """The fraction of the target's test examples that share a passage (see `groups`) with the
    training split of the source, which may be the target itself."""
    (rows, keys), known = target.tested_passages, source.trained_passages
    if not len(known):
        return 0.0
    shared = known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys
    return len(np.unique(rows[shared])) / len(target.test)


@functools.lru_cache(maxsize=64)
def load(task: Task, settings: Data) -> TaskData:
    """The splits of `task`, determined by its rows and `settings` alone.

    Raises `InputError` if the task cannot be loaded, if a column, a label or the order of labels
    does not match, or if a split is empty.
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
    notes = _unlabelled(raw)
    if settings.split_rule == "grouped":
        splits, left = _apart(splits)
        notes += left
    splits["dev"] = sample(splits["dev"], settings.max_dev, settings.split_seed, "dev")
    splits["test"] = sample(splits["test"], settings.max_test, settings.split_seed, "test")
    for name, split in splits.items():
        if not len(split):
            why = "".join(f" ({note})" for note in notes)
            grouped = ", or split_rule 'paper'" if settings.split_rule == "grouped" else ""
            raise InputError(
                f"task {task.name!r}: its {name} split is empty{why}; choose other data{grouped}"
            )
    notes = (*notes, *_other_counts(task, raw), *_twice(splits))
    return TaskData(
        task, **splits, fingerprint=_fingerprint(splits), revision=revision, notes=notes
    )


class Rows(Mapping):
    """All splits of a copy of the data, under the copy's own names; read on demand.

    `counts` has the number of rows of each, labelled or not; `read` returns one as lists by column;
    `unlabelled` counts the rows dropped from the splits read so far.
    """

    def __init__(self, task: Task, counts: dict[str, int], read: Callable[[str], dict]):
        self.task, self.counts, self.read = task, counts, read
        self.unlabelled: dict[str, int] = {}

    def __getitem__(self, name: str) -> Split:
        if name not in self.counts:
            raise KeyError(name)
        split = _split(self.task, name, self.read(name))
        self.unlabelled[name] = self.counts[name] - len(split)
        return split

    def __contains__(self, name: str) -> bool:
        return name in self.counts

    def __iter__(self):
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)


def _unlabelled(raw: Rows) -> list[str]:
    """Notes on how many rows of each split have no label, which is -1 on the Hub."""
    return [
        f"{count:,} of {raw.counts[name]:,} rows of {name} have no label (-1) and were dropped"
        for name, count in raw.unlabelled.items()
        if count
    ]


def _other_counts(task: Task, raw: Rows) -> list[str]:
    """Notes on row counts that differ from the published data."""
    return [
        f"{name} has {raw.counts.get(name, 0):,} rows; the published data have {count:,}"
        for name, count in task.rows
        if raw.counts.get(name, 0) != count
    ]


def _apart(splits: dict[str, Split]) -> tuple[dict[str, Split], list[str]]:
    """The splits without the train and dev examples that share a text with a test example, and how
    many those are."""
    kept, notes = dict(splits), []
    for name in ("train", "dev"):
        shares = groups.sharing(splits[name].texts, splits["test"].texts)
        kept[name] = splits[name].take(np.flatnonzero(~shares).tolist())
        if shares.any():
            notes.append(
                f"{shares.sum():,} of {len(shares):,} examples of {name} share a text with the "
                "test split and were dropped"
            )
    return kept, notes


def _twice(splits: dict[str, Split]) -> list[str]:
    """How many test texts the training split has as well."""
    train = set(splits["train"].texts)
    twice = sum(text in train for text in splits["test"].texts)
    return [f"{twice:,} of {len(splits['test']):,} test texts also occur in train"] if twice else []


def _raw(task: Task) -> tuple[Rows, str | None]:
    """The rows of a task as found, and the revision of the copy."""
    if task.hub_id == MINIWORLD:
        made = miniworld.examples(task.config, int(task.revision or 0))
        counts = {name: len(rows) for name, rows in made.items()}
        wanted = [*task.columns, task.label_column]

        def read(name: str) -> dict[str, list]:
            return {column: [row[column] for row in made[name]] for column in wanted}

        return Rows(task, counts, read), task.revision
    copies = _hub(task)
    wanted = [*task.columns, *MARKS[task.marks].columns, task.label_column]
    for rows in copies.values():
        _check_columns(task, wanted, rows)
    files = next(iter(copies.values())).cache_files
    folder = Path(files[0]["filename"]).parent.name if files else ""
    revision = folder if re.fullmatch("[0-9a-f]{40}", folder) else None
    counts = {name: rows.num_rows for name, rows in copies.items()}
    return Rows(task, counts, lambda name: copies[name].select_columns(wanted).to_dict()), revision


def _check_columns(task: Task, wanted: list[str], rows) -> None:
    """Refuse a copy that lacks a column, or has other label names or another order."""
    where = _where(task)
    for column in wanted:
        if column not in rows.column_names:
            raise InputError(
                f"task {task.name!r}: {where} has no column {column!r}; it has "
                f"{', '.join(rows.column_names)}"
            )
    expected = task.names or task.labels
    names = getattr(rows.features[task.label_column], "names", expected)
    if tuple(names) != expected:
        raise InputError(
            f"task {task.name!r}: the labels of {where} are {', '.join(names)}, in this order; "
            f"expected {', '.join(expected)}: name another revision, or correct the task's labels"
        )


def _where(task: Task) -> str:
    """Where the rows of a task are, for messages."""
    return " ".join(file for _, file in task.files) or f"{task.hub_id} ({task.config})"


def _hub(task: Task):
    import datasets
    from datasets.exceptions import DatasetGenerationError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are reported once, below
    source: dict[str, Any] = (
        _files(task) if task.files else {"path": task.hub_id, "name": task.config}
    )
    try:
        return datasets.load_dataset(**source, revision=task.revision)
    except DatasetGenerationError as error:
        raise InputError(
            f"task {task.name!r}: the files of {_where(task)} cannot be read, or do not match: "
            "save them again as UTF-8 with the same columns "
            f"({_first_line(error.__cause__ or error)})"
        ) from error
    except (OSError, ValueError, RuntimeError, StopIteration) as error:
        if task.files:
            raise InputError(
                f"task {task.name!r}: cannot read {_where(task)}, or it has no rows "
                f"({_first_line(error)})"
            ) from error
        raise InputError(
            f"task {task.name!r}: cannot load {_where(task)}: the Hub could not be reached or has "
            "no such data, and the cache that HF_HOME names has no copy. Go online once, or set "
            f"HF_HOME to a folder that has it. ({_first_line(error)})"
        ) from error


FORMATS = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
}
"""The formats that a task's files may have, by their suffix: a builder of `datasets` and its
settings. All but Parquet may be compressed (.csv.gz)."""


def _files(task: Task) -> dict:
    """How `datasets.load_dataset` reads a task's files, all of one format."""
    splits: dict[str, list[str]] = {}
    for split, file in task.files:
        if not Path(file).is_file():
            raise InputError(f"task {task.name!r}: there is no file {file}")
        splits.setdefault(split, []).append(file)
    suffixes = {Path(file.lower().removesuffix(".gz")).suffix for _, file in task.files}
    if len(suffixes) > 1 or not suffixes <= FORMATS.keys():
        known = " or ".join(FORMATS)
        raise InputError(f"task {task.name!r}: {_where(task)}: expected only {known}")
    builder, settings = FORMATS[suffixes.pop()]
    return {"path": builder, "data_files": splits, **settings}


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _split(task: Task, name: str, rows: Mapping[str, list]) -> Split:
    """Turn rows (lists by column) into texts and label ids, without those that have no label."""
    mark, columns = MARKS[task.marks]
    read = [rows[column] for column in (*task.columns, *columns)]
    ids = {word: number for number, word in enumerate(task.names or task.labels)}
    texts, labels = [], []
    for number, (label, *values) in enumerate(zip(rows[task.label_column], *read, strict=True)):
        label_id = _label_id(label, ids)
        if label_id == UNLABELLED:
            continue
        if label_id is None:
            raise InputError(
                f"task {task.name!r}: row {number} of {name} has the label {label!r}; expected "
                f"0 to {len(task.labels) - 1} ({', '.join(task.names or task.labels)})"
            )
        text = tuple(values[: len(task.columns)])
        for column, part in zip(task.columns, text, strict=True):
            if not isinstance(part, str):
                raise InputError(
                    f"task {task.name!r}: row {number} of {name} has no text in its column "
                    f"{column!r}, but {part!r}: {_remedy(part)}, or name another column"
                )
        texts.append(mark(text, *values[len(task.columns) :]) if columns else text)
        labels.append(label_id)
    return Split(texts, labels)


UNLABELLED = -1
"""What data sets on the Hub use for a label that is not public."""


def _label_id(label, ids: Mapping[str, int]) -> int | None:
    """The id of a label: by its name, or the number itself, including `UNLABELLED`; None if it is
    not a label."""
    if isinstance(label, float) and label.is_integer() and str(label) not in ids:
        label = int(label)
    if str(label) in ids:
        return ids[str(label)]
    known = isinstance(label, int) and (label == UNLABELLED or 0 <= label < len(ids))
    return int(label) if known else None


def _remedy(part) -> str:
    """What to do about a value that is not text."""
    if part is None:
        return "fill it in or remove the row"
    return "join its items into one text" if isinstance(part, list) else "convert it to text"


class Mark(NamedTuple):
    """How a task's texts mark what a row is about: a function of the texts and of `columns`."""

    mark: Callable[..., tuple[str, ...]]
    columns: tuple[str, ...] = ()


def _characters(texts, start1: int, end1: int, start2: int, end2: int) -> tuple[str, ...]:
    """WiC: the word is put between stars in both sentences, from `start` to `end`."""
    word, one, two = texts
    return word, _between(one, start1, end1, "*"), _between(two, start2, end2, "*")


def _words(texts, index1: int, words1: str, index2: int, words2: str) -> tuple[str, ...]:
    """WSC: the noun is put between stars, the pronoun between hashes, as T5 marks them (Raffel et
    al. 2020, appendix D); `index` counts the words of the text before it."""
    (text,) = texts
    spans = [(_place(text, index1, words1), "*"), (_place(text, index2, words2), "#")]
    for (start, end), sign in sorted(spans, reverse=True):
        text = _between(text, start, end, sign)
    return (text,)


def _place(text: str, index: int, words: str) -> tuple[int, int]:
    """The span of `words` from the word with that index on; some copies spell them differently,
    then the same number of words is taken."""
    found = list(re.finditer(r"\S+", text))[index : index + len(words.split())]
    start = found[0].start()
    at = text.casefold().find(words.casefold(), start)
    inside = at - start <= 1 and len(text.casefold()) == len(text)  # an opening quote before it
    return (at, at + len(words)) if at >= 0 and inside else (start, found[-1].end())


def _between(text: str, start: int, end: int, sign: str) -> str:
    return f"{text[:start]}{sign} {text[start:end]} {sign}{text[end:]}"


MARKS = {
    "": Mark(lambda texts: texts),
    "columns": Mark(lambda texts: texts),  # an encoder reads the names of columns, see pair_input
    "characters": Mark(_characters, ("start1", "end1", "start2", "end2")),
    "words": Mark(_words, ("span1_index", "span1_text", "span2_index", "span2_text")),
}


def _own(raw: Mapping[str, Split], settings: Data) -> dict[str, Split]:
    return {"train": raw["train"], "dev": raw["validation"], "test": raw["test"]}


def _mnli(raw: Mapping[str, Split], settings: Data) -> dict[str, Split]:
    matched, mismatched = raw["validation_matched"], raw["validation_mismatched"]
    if settings.split_rule == "later":
        return {**_later(raw["train"]), "test": matched}
    return {"train": raw["train"], "dev": matched, "test": mismatched}


def _rounds(raw: Mapping[str, Split], settings: Data) -> dict[str, Split]:
    """ANLI's rounds as one task, as far as the copy has them."""

    def together(prefix: str) -> Split:
        parts = [raw[f"{prefix}_r{n}"] for n in (1, 2, 3) if f"{prefix}_r{n}" in raw]
        return Split(
            [text for part in parts for text in part.texts],
            [label for part in parts for label in part.labels],
        )

    return {"train": together("train"), "dev": together("dev"), "test": together("test")}


def _carve(raw: Mapping[str, Split], settings: Data) -> dict[str, Split]:
    """Test = min(1,000, 10 %) of the training examples, drawn with the split seed."""
    train, dev = raw["train"], raw["validation"]
    if settings.split_rule == "later":
        return {**_later(train), "test": dev}
    return {**_drawn(train, ["test"], settings, beside=dev), "dev": dev}


def _later(train: Split) -> dict[str, Split]:
    """The authors' later public rule: train[5%:95%]; dev is the first 5 %, the last is unused."""
    low, high = len(train) * 5 // 100, len(train) * 95 // 100
    return {"train": train.take(range(low, high)), "dev": train.take(range(low))}


def _cut(raw: Mapping[str, Split], settings: Data) -> dict[str, Split]:
    """Dev and test of min(1,000, 10 %) of the training examples each, drawn with the split seed."""
    return _drawn(raw["train"], ["test", "dev"], settings)


def _drawn(
    train: Split, names: list[str], settings: Data, beside: Split | None = None
) -> dict[str, Split]:
    """Splits with these names, each at most min(1,000, 10 %) of the examples, and the rest as
    train.

    Under the rule "grouped" they consist of whole groups of examples that share texts, and no
    example of `beside` belongs to one of those (see `groups`).
    """
    whole = [[row] for row in range(len(train))]
    if settings.split_rule == "grouped":
        whole = _groups(train, beside or Split([], []))
    order = _order(len(whole), settings.split_seed, "carve")
    most = min(1000, len(train) // 10)
    drawn: dict[str, list[int]] = {name: [] for name in names}
    for rows in (whole[number] for number in order):
        for part in drawn.values():
            if len(part) + len(rows) <= most:
                part.extend(rows)
                break
    taken = {row for part in drawn.values() for row in part}
    drawn["train"] = [row for row in range(len(train)) if row not in taken]
    return {name: train.take(sorted(rows)) for name, rows in drawn.items()}


def _groups(train: Split, beside: Split) -> list[list[int]]:
    """The rows of every group of examples without a member in `beside`."""
    numbers = groups.groups([*train.texts, *beside.texts]).tolist()
    taken = {groups.UNPLACED, *numbers[len(train) :]}
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(numbers[: len(train)]):
        if number not in taken:
            rows.setdefault(number, []).append(row)
    return list(rows.values())


SPLIT_RULES = {"carve": _carve, "own": _own, "mnli": _mnli, "rounds": _rounds, "cut": _cut}


def _order(size: int, seed: int, purpose: str) -> list[int]:
    """A shuffle of range(size), fixed by the seed and its purpose."""
    order = list(range(size))
    random.Random(f"{seed}/{purpose}").shuffle(order)
    return order


def sample(split, most: int, seed: int, purpose: str):
    """At most `most` examples (0: all) of a split, as texts or as tokens, drawn with the split
    seed, in their original order. A larger draw for the same purpose contains the smaller one."""
    if not most or len(split) <= most:
        return split
    return split.take(sorted(_order(len(split), seed, purpose)[:most]))


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


def pair_input(task: Task, text: tuple[str, ...]) -> tuple[str, ...]:
    """The input of an encoder: the first text, and the others, if any, as one second text. If the
    task says that columns distinguish texts, their names are put before the others."""
    first, *others = text
    if task.marks:
        others = [f"{c}: {part}" for c, part in zip(task.columns[1:], others, strict=True)]
    return (first, " ".join(others)) if others else (first,)


def label_texts(task: Task, text_format: str) -> list[str]:
    """What a text-to-text model writes for each label: its word, or its number ("later")."""
    if text_format == "later":
        return [str(number) for number in range(len(task.labels))]
    return list(task.labels)
