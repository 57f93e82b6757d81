"""A task's splits (paper Appendix B), and its texts as models read them."""

import functools
import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fusinglib.errors import InputError, nearest
from fusinglib.training import files, groups
from fusinglib.training.rows import Rows, Split, files_of, find
from fusinglib.training.settings import Data, Numbers
from fusinglib.training.tasks import Task

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's three splits, the fingerprint of their content, and the Hub revision, if known.

    `notes` say what was dropped, what is missing, and where these data differ from the published
    ones: bad rows, labels without an example, row counts, test texts that also occur in the
    training split.
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

    @property
    def sources(self) -> dict[str, str]:
        """Where the examples of each split come from, in words."""
        return {name: getattr(self, name).source for name in SPLITS}

    def shares_files(self, other: "TaskData") -> bool:
        """Whether the tasks read the same file, or have the same examples."""
        ours, theirs = ({file for _, file in one.task.files} for one in (self, other))
        return bool(ours & theirs) or self.fingerprint == other.fingerprint

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


def load(task: Task, settings: Data) -> TaskData:
    """The splits of `task`, determined by its rows and `settings` alone.

    Raises `InputError` if the task cannot be loaded, if a column, a label or the order of labels
    does not match, or if a split is empty.
    """
    return _loaded(task, settings, files.contents(files_of(task)))


@functools.lru_cache(maxsize=64)
def _loaded(task: Task, settings: Data, contents: tuple[str, ...]) -> TaskData:
    """The splits of a task whose files have these contents."""
    raw, revision = find(task)
    notes = _unlabelled(task, raw)
    task = replace(task, splits=task.splits or _missing_splits(raw))
    if task.splits not in SPLIT_RULES:
        known = nearest(task.splits, SPLIT_RULES)
        raise InputError(f"task {task.name!r}: unknown split rule {task.splits!r}: {known}")
    try:
        splits = SPLIT_RULES[task.splits](raw, settings)
    except KeyError as error:
        raise InputError(
            f"task {task.name!r}: it has no split {error}; it has {', '.join(sorted(raw))}: "
            f"choose another split rule ({', '.join(SPLIT_RULES)})"
        ) from None
    notes += _skipped(raw)
    if settings.split_rule == "grouped":
        splits, left = _apart(splits)
        notes += left
    notes += _absent(task, splits)
    splits["dev"] = sample(splits["dev"], settings.max_dev, settings.split_seed, "dev")
    splits["test"] = sample(splits["test"], settings.max_test, settings.split_seed, "test")
    for name, split in splits.items():
        if not len(split):
            why = "".join(f" ({note})" for note in notes)
            grouped = ", or split_rule 'paper'" if settings.split_rule == "grouped" else ""
            raise InputError(
                f"task {task.name!r}: its {name} split is empty{why}; choose other data{grouped}"
            )
    notes += [*_other_counts(task, raw), *_twice(splits)]
    return TaskData(
        task, **splits, fingerprint=_fingerprint(splits), revision=revision, notes=tuple(notes)
    )


def _unlabelled(task: Task, raw: Rows) -> list[str]:
    """Notes on splits of an own task that have no label at all, as on the Hub if labels are not
    public; they are not used."""
    return [
        f"none of the {raw.counts[name]:,} rows of {name} has a label: it is not used"
        for name in raw
        if task.is_own and not task.splits and not raw.has_labels(name)
    ]


def _missing_splits(raw: Rows) -> str:
    """The split rule that keeps every split there is and draws only what is missing."""
    known = tuple(name for name in ("validation", "test") if raw.has_labels(name))
    return {
        ("validation", "test"): "own",
        ("validation",): "carve",
        ("test",): "carve_dev",
        (): "cut",
    }[known]


LISTED = 5
"""How many of the skipped rows a note lists."""


def _skipped(raw: Rows) -> list[str]:
    """Notes on the rows that were dropped, with the first of them."""
    notes = []
    for name, bad in raw.skipped.items():
        if bad:
            more = f" and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
            listed = ", ".join(bad[:LISTED])
            notes.append(
                f"{len(bad):,} of {raw.counts[name]:,} rows of {name} were dropped: {listed}{more}"
            )
    return notes


def _absent(task: Task, splits: dict[str, Split]) -> list[str]:
    """Notes on labels without an example in a split."""
    known = {name: set(split.labels) for name, split in splits.items() if len(split)}
    lacking: dict[str, list[str]] = {}
    for number, label in enumerate(task.labels):
        where = ", ".join(name for name in SPLITS if name in known and number not in known[name])
        lacking.setdefault(where, []).append(label)
    return [f"no example of {', '.join(lacking[where])} in {where}" for where in lacking if where]


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
            f"{prefix}_r1 to {prefix}_r3",
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
    middle, first = f"5 to 95 % of {train.source}", f"first 5 % of {train.source}"
    return {"train": train.take(range(low, high), middle), "dev": train.take(range(low), first)}


def _carve_dev(raw: Mapping[str, Split], settings: Data) -> dict[str, Split]:
    """Dev = min(1,000, 10 %) of the training examples, drawn with the split seed."""
    train, test = raw["train"], raw["test"]
    if settings.split_rule == "later":
        return {**_later(train), "test": test}
    return {**_drawn(train, ["dev"], settings, beside=test), "test": test}


def _cut(raw: Mapping[str, Split], settings: Data) -> dict[str, Split]:
    """Dev and test of min(1,000, 10 %) of the training examples each, drawn with the split seed."""
    return _drawn(raw["train"], ["test", "dev"], settings)


def _drawn(
    train: Split, names: list[str], settings: Data, beside: Split | None = None
) -> dict[str, Split]:
    """Splits with these names, each at most min(1,000, 10 %) of the examples, and the rest as
    train.

    Under the rule "grouped" they consist of whole groups of examples that share texts, and no
    example of `beside` belongs to one of those (see `groups`). The last example of a label stays in
    train.
    """
    whole = [[row] for row in range(len(train))]
    if settings.split_rule == "grouped":
        whole = _groups(train, beside or Split([], []))
    order = _order(len(whole), settings.split_seed, "carve")
    most = min(1000, len(train) // 10)
    drawn: dict[str, list[int]] = {name: [] for name in names}
    left = Counter(train.labels)
    for rows in (whole[number] for number in order):
        open_to = [part for part in drawn.values() if len(part) + len(rows) <= most]
        taken = Counter(train.labels[row] for row in rows) if open_to else Counter()
        if open_to and all(left[label] > count for label, count in taken.items()):
            open_to[0].extend(rows)
            left -= taken
    taken = {row for part in drawn.values() for row in part}
    kept = [row for row in range(len(train)) if row not in taken]
    source = f"drawn from {train.source}"
    splits = {name: train.take(sorted(rows), source) for name, rows in drawn.items()}
    return {**splits, "train": train.take(kept, f"rest of {train.source}")}


def _groups(train: Split, beside: Split) -> list[list[int]]:
    """The rows of every group of examples without a member in `beside`."""
    numbers = groups.groups([*train.texts, *beside.texts]).tolist()
    taken = {groups.UNPLACED, *numbers[len(train) :]}
    rows: dict[int, list[int]] = {}
    for row, number in enumerate(numbers[: len(train)]):
        if number not in taken:
            rows.setdefault(number, []).append(row)
    return list(rows.values())


SPLIT_RULES = {
    "own": _own,
    "carve": _carve,
    "carve_dev": _carve_dev,
    "cut": _cut,
    "mnli": _mnli,
    "rounds": _rounds,
}
"""How the splits of the data become train, dev and test, by the name of the rule."""


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
