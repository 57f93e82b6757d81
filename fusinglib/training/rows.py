"""The rows of a task as found (on the Hub, in files, or generated) as labelled texts."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fusinglib.errors import InputError
from fusinglib.training import files, miniworld
from fusinglib.training.files import Table
from fusinglib.training.settings import Numbers
from fusinglib.training.tasks import MINIWORLD, Task


@dataclass(frozen=True)
class Split:
    """Texts (a tuple of columns per example) and their label ids, in a fixed order; `source` says
    where they come from."""

    texts: list[tuple[str, ...]]
    labels: list[int]
    source: str = field(default="", compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Numbers, source: str = "") -> "Split":
        """The examples at `rows`, in that order."""
        texts, labels = [self.texts[i] for i in rows], [self.labels[i] for i in rows]
        return Split(texts, labels, source or self.source)


SYNONYMS = {
    "training": "train",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "test",
    "evaluation": "test",
    "testing": "test",
}
"""Other names of splits."""


class Rows(Mapping):
    """All splits of a copy of the data, read on demand, under the copy's own names and under the
    usual ones that they are `SYNONYMS` of.

    `counts` has the number of rows of each, labelled or not; `read` returns one; `skipped` lists
    the bad rows dropped from the splits read so far.
    """

    def __init__(self, task: Task, counts: dict[str, int], read: Callable[[str], Table]):
        self.task, self.counts, self.read = task, counts, read
        self.names = {SYNONYMS.get(name, name): name for name in counts} | {n: n for n in counts}
        self.skipped: dict[str, list[str]] = {}

    def __getitem__(self, name: str) -> Split:
        own = self.names[name]
        split, self.skipped[own] = labelled(self.task, own, self.read(own))
        return split

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def has_labels(self, name: str) -> bool:
        """Whether there is a split with this name, and a label in it."""
        if name not in self:
            return False
        labels = self.read(self.names[name]).columns[self.task.label_column]
        ids = _ids(self.task)
        return any(_label_id(label, ids) != UNLABELLED for label in labels)


def find(task: Task) -> tuple[Rows, str | None]:
    """The rows of a task, and the revision of the copy on the Hub.

    Raises `InputError` if they cannot be read, or if a column is missing or has other label names.
    """
    if task.hub_id == MINIWORLD:
        made = miniworld.examples(task.config, int(task.revision or 0))
        tables = {name: _generated(task, name, rows) for name, rows in made.items()}
        return _rows(task, tables), task.revision
    if task.files:
        return _rows(task, _read(task)), None
    return _hub_rows(task)


def files_of(task: Task) -> list[str]:
    """The files on this machine that a task is read from: its own, or those of a data set's folder
    that stands for a Hub id."""
    folder = Path(task.hub_id)
    if task.files or not folder.is_dir():
        return [file for _, file in task.files]
    return sorted(str(file) for file in folder.rglob("*") if file.is_file())


def _rows(task: Task, tables: dict[str, Table]) -> Rows:
    counts = {name: len(table) + len(table.skipped) for name, table in tables.items()}
    return Rows(task, counts, tables.__getitem__)


def _wanted(task: Task) -> list[str]:
    return [*task.columns, *MARKS[task.marks].columns, task.label_column]


def _generated(task: Task, name: str, rows: list[dict]) -> Table:
    columns = {column: [row[column] for row in rows] for column in _wanted(task)}
    return Table(columns, lambda i: f"row {i} of {name}")


def _read(task: Task) -> dict[str, Table]:
    """The tables of a task's own files, by split."""
    splits: dict[str, list[str]] = {}
    for split, file in task.files:
        splits.setdefault(split, []).append(file)
    try:
        return {
            split: files.read(listed, _wanted(task), task.label_column, task.reading)
            for split, listed in splits.items()
        }
    except InputError as error:
        raise InputError(f"task {task.name!r}: {error}") from error


def _hub_rows(task: Task) -> tuple[Rows, str | None]:
    copies, wanted = _hub(task), _wanted(task)
    for rows in copies.values():
        for column in wanted:
            if column not in rows.column_names:
                raise InputError(
                    f"task {task.name!r}: {_where(task)} has no column {column!r}; it has "
                    f"{', '.join(rows.column_names)}"
                )
    cached = next(iter(copies.values())).cache_files
    folder = Path(cached[0]["filename"]).parent.name if cached else ""
    revision = folder if re.fullmatch("[0-9a-f]{40}", folder) else None

    def read(name: str) -> Table:
        rows = copies[name]
        named = getattr(rows.features[task.label_column], "names", ())
        columns = rows.select_columns(wanted).to_dict()
        return Table(columns, lambda i: f"row {i} of {name}", tuple(named))

    return Rows(task, {name: rows.num_rows for name, rows in copies.items()}, read), revision


def _where(task: Task) -> str:
    return f"{task.hub_id} ({task.config})"


def _hub(task: Task) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors are reported once, below
    # The cache of a local folder goes by the sizes and times of its files, which say too little.
    mode = "force_redownload" if Path(task.hub_id).is_dir() else None
    try:
        return datasets.load_dataset(
            task.hub_id, task.config, revision=task.revision, download_mode=mode
        )
    except Exception as error:  # its builders raise many kinds of errors
        cause = error.__cause__ or error
        said = " ".join(str(cause).split()) or type(cause).__name__
        raise InputError(
            f"task {task.name!r}: {_where(task)} cannot be loaded: {said}. Check hub_id and "
            "config; offline, the cache that HF_HOME names must have a copy"
        ) from error


# Labels.

UNLABELLED = -1
"""What data sets on the Hub use for a label that is not public."""


def labelled(task: Task, name: str, table: Table) -> tuple[Split, list[str]]:
    """The usable rows of a table as texts and label ids, and what is wrong with each of the others.

    Raises `InputError` at the first bad row unless the task says `skip_bad_rows`; rows of a
    built-in task whose label is not public (-1) are always dropped.
    """
    mark, marking = MARKS[task.marks]
    read = [table.columns[column] for column in (*task.columns, *marking)]
    to_names = _declared(task, table)
    ids = _ids(task)
    texts, labels, bad = [], [], list(table.skipped)
    known: dict[tuple[type, str], int | None] = {}
    for number, (label, *values) in enumerate(
        zip(table.columns[task.label_column], *read, strict=True)
    ):
        kind = type(label), str(label)
        if kind not in known:
            known[kind] = _label_id(to_names.get(label, label) if to_names else label, ids)
        label_id = known[kind]
        text = tuple(values[: len(task.columns)])
        if label_id == UNLABELLED or label_id is None:
            problem = _label_problem(task, label, label_id)
        else:
            problem = _text_problem(task, text)
        if problem:
            hidden = not task.is_own and label == UNLABELLED
            if not hidden and not task.reading.skip_bad_rows:
                more = ", or set skip_bad_rows: true" if task.is_own else ""
                raise InputError(f"task {task.name!r}: {table.place(number)} {problem}{more}")
            bad.append(f"{table.place(number)} {problem.split(':')[0]}")
            continue
        texts.append(mark(text, *values[len(task.columns) :]) if marking else text)
        labels.append(label_id)
    return Split(texts, labels, name), bad


def _declared(task: Task, table: Table) -> dict[int, str]:
    """The names that label ids stand for in the data themselves, which have to be the task's."""
    expected = task.names or task.labels
    if not table.label_names:
        return {}
    if set(table.label_names) != set(expected):
        listed = ", ".join(table.label_names)
        raise InputError(
            f"task {task.name!r}: the labels in the data are named {listed}; expected "
            f"{', '.join(expected)}: set names: [{listed}], in the order of labels"
        )
    return dict(enumerate(table.label_names))


def _ids(task: Task) -> dict[str, int]:
    return {name: number for number, name in enumerate(task.names or task.labels)}


def _label_id(label, ids: Mapping[str, int]) -> int | None:
    """The id of a label, `UNLABELLED` for a missing one, None for one that is unknown.

    A label is one of the names, as text or as the number or truth value that the name spells; or an
    id, unless the names are numbers themselves.
    """
    word = str(label)
    if isinstance(label, str) and word in ids:
        return ids[word]
    if label is None or label != label or not word.strip():  # NaN differs from itself
        return UNLABELLED
    truth = word.casefold() if word.casefold() in ("true", "false") else ""
    if truth:
        spelt = {name.casefold(): number for name, number in ids.items()}
        if truth in spelt:
            return spelt[truth]
    number = _whole(word)
    if str(number) in ids:
        return ids[str(number)]
    if word in ids:
        return ids[word]
    if number == UNLABELLED:
        return UNLABELLED
    if any(_whole(name) is not None for name in ids):
        return None
    if truth and len(ids) == 2:
        return int(truth == "true")
    return number if number is not None and 0 <= number < len(ids) else None


def _whole(word: str) -> int | None:
    """The whole number that a text spells ("3", "3.0"), if it does."""
    return int(word.split(".")[0]) if re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", word) else None


def _label_problem(task: Task, label, label_id: int | None) -> str:
    """What is wrong with a label, and what to do about it."""
    if label_id == UNLABELLED:
        said = "" if label is None or not str(label).strip() else f" ({label})"
        return f"has no label{said}: fill it in"
    names = task.names or task.labels
    shown = "names" if task.names else "labels"
    ids = "" if any(_whole(name) is not None for name in names) else f", or 0 to {len(names) - 1}"
    return (
        f"has the label {label!r}; expected one of the {shown} {', '.join(names)}{ids}: set names "
        "to the labels in the data, in the order of labels"
    )


def _text_problem(task: Task, text: tuple) -> str:
    """What is wrong with a row's texts, and what to do about it; "" if nothing is."""
    for column, part in zip(task.columns, text, strict=True):
        if not isinstance(part, str):
            remedy = "convert it to text"
            if part is None or isinstance(part, list):
                remedy = "fill it in" if part is None else "join its items into one text"
            return (
                f"has no text in its column {column!r}, but {part!r}: {remedy}, or name another "
                "column"
            )
    return ""


# Marks.


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
