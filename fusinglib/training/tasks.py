"""The tasks and families of the study: one table, a row per task."""

import dataclasses
import glob
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import yaml

from fusinglib.errors import InputError, nearest
from fusinglib.places import anchored
from fusinglib.training import miniworld
from fusinglib.training.files import Reading

MINIWORLD = "miniworld"
"""Stands in for the Hub id of the tasks of the embedded miniature world."""


@dataclass(frozen=True)
class Task:
    """A classification task: where its rows are and how they are read.

    `labels` are the words for the label ids 0, 1, ... in this order; `splits` names the rule that
    turns the copy's splits into train, dev and test (see `data.SPLIT_RULES`): "own" takes them as
    they are, "carve" draws test from train (GLUE, whose test labels are not public), "carve_dev"
    dev, "cut" both; "mnli" and "rounds" (ANLI) know special names; "" draws what is missing.
    `revision` pins a commit, or `refs/convert/parquet` for a repository that is still a script; for
    a task of the miniature world it is the world's seed.

    `names` are the copy's own label names, if they differ; `marks` how the texts mark what a row is
    about (see `fusinglib.training.rows`); `rows` the number of rows in the published data, by
    split; `files` the CSV, TSV, JSON or Parquet files of a task that is not on the Hub: pairs of a
    split and a file; `reading` says how an own task is read.
    """

    name: str
    hub_id: str
    config: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    label_column: str = "label"
    splits: str = "carve"
    revision: str | None = None
    names: tuple[str, ...] = ()
    marks: str = ""
    rows: tuple[tuple[str, int], ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    reading: Reading = Reading()
    is_own: bool = False

    @property
    def identity(self) -> tuple[str, str]:
        """What makes two names the same task for leave-target-out: (Hub id, config)."""
        return (self.hub_id, self.config)

    def as_json(self) -> dict:
        """What determines a run on this task besides the fingerprint of its data, as JSON data."""
        values = dataclasses.asdict(self)
        for name in ("names", "rows", "files", "reading", "is_own"):
            del values[name]
        return values if self.marks else {k: v for k, v in values.items() if k != "marks"}


def _read(name: str, fields: Mapping) -> Task:
    """A task from the table in `tasks.yaml`."""
    rows = tuple(fields["rows"].items())
    lists = {key: tuple(fields.get(key, ())) for key in ("columns", "labels", "names")}
    splits, marks = fields.get("splits", "carve"), fields.get("marks", "")
    config = fields.get("config", name)
    return Task(
        name, fields["hub_id"], config, lists["columns"], lists["labels"], splits=splits,
        names=lists["names"], marks=marks, rows=rows,
    )  # fmt: skip


TABLE = yaml.safe_load((Path(__file__).parent / "tasks.yaml").read_text(encoding="utf-8"))

TASKS = {name: _read(name, fields) for name, fields in TABLE.items()}
"""The 27 tasks of the paper."""

FAMILIES = {
    "general": "cola sst2 mrpc qqp mnli qnli rte wnli boolq cb copa multirc wic wsc".split(),
    "nli": "mnli qnli rte wnli esnli anli".split(),
    "twitter": [task.name for task in TASKS.values() if "tweet_eval" in task.hub_id],
}
"""The three families of the paper: 31 memberships."""

MINI_FAMILIES = {
    family: [name for name, task in miniworld.TASKS.items() if family in task.families]
    for family in FAMILIES
}
"""The three families in miniature."""


def table(
    tasks: str, world_seed: int, own: Mapping[str, Mapping] = MappingProxyType({})
) -> tuple[dict[str, Task], dict[str, list[str]]]:
    """The tasks and families of the "miniworld", or of the "paper", and `own` tasks by name."""
    known, families = (
        (mini_tasks(world_seed), MINI_FAMILIES) if tasks == MINIWORLD else (TASKS, FAMILIES)
    )
    made = {name: own_task(name, **_fields(name, fields)) for name, fields in own.items()}
    for name in (*ADDED, *made):
        if name in known or (name in made and ADDED.get(name, made[name]) != made[name]):
            raise InputError(
                f"task {name!r} is there already{' (built in)' * (name in known)}: give your task "
                "another name"
            )
    return {**known, **ADDED, **made}, families


def _fields(name: str, fields: Mapping) -> Mapping:
    """The fields of an own task, with names that make one (see `own_task`)."""
    known = list(inspect.signature(own_task).parameters)[1:]
    for field in fields:
        if field not in known:
            raise InputError(f"task {name!r} has no field {field!r}: {nearest(field, known)}")
    for field in ("columns", "labels"):
        if field not in fields:
            raise InputError(f"task {name!r} lacks the field {field!r}: give it a list of strings")
    return fields


ADDED: dict[str, Task] = {}
"""The tasks that `add_task` was called for."""


def add_task(name: str, **fields) -> Task:
    """Register your own task in this process, as a source, a target and in the playground.

    `fields` are those of `own_task`; a task that was added before under this name is replaced.
    """
    ADDED[name] = own_task(name, **fields)
    return ADDED[name]


def own_task(
    name: str,
    *,
    columns: Sequence[str],
    labels: Sequence[str],
    files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    hub_id: str = "",
    config: str = "default",
    label_column: str = "label",
    names: Sequence[str] = (),
    splits: str = "",
    revision: str | None = None,
    separator: str = "",
    encoding: str = "utf-8",
    quotes: bool = True,
    skip_bad_rows: bool = False,
) -> Task:
    """A task of the user's, from files or from the Hub.

    Arguments:
        columns: the columns with the texts; labels: a word for each label, in the order of their
            ids.
        files: a file of training rows, a pattern (`data/*.csv`), or a list of these; or the same
            for each split (train, validation, test). CSV, TSV, JSON or Parquet, as they are, .gz
            or .zip. Instead of files: hub_id, config and revision.
        label_column: its values are the `labels`, or the `names` that stand for them in the data,
            in the order of the labels; or ids (0, 1, ...).
        splits: the split rule (see `Task`), by default the one that keeps every split there is and
            draws only what is missing from train.
        separator, encoding, quotes: how text files are written (see `files.Reading`).
        skip_bad_rows: drop rows that cannot be used (no label, no text, too many cells), and say
            so, instead of refusing the first.

    Raises `InputError` if these do not define a task.
    """
    columns, labels, names = (
        _words(name, field, values)
        for field, values in {"columns": columns, "labels": labels, "names": names}.items()
    )
    if not columns or len(set(labels)) < max(2, len(labels)):
        raise InputError(
            f"task {name!r}: expected one column or more and two labels or more, each once, but "
            f"got {', '.join(columns) or 'no column'} and {', '.join(labels) or 'no label'}"
        )
    if names and len(set(names)) != len(labels):
        raise InputError(f"task {name!r}: expected {len(labels)} names, one for each label")
    if bool(files) == bool(hub_id):
        raise InputError(f"task {name!r}: set exactly one of files and hub_id")
    try:
        reading = Reading(separator, encoding, quotes, skip_bad_rows)
    except InputError as error:
        raise InputError(f"task {name!r}: {error}") from error
    places = tuple(
        (split, file)
        for split, listed in _file_lists(name, files).items()
        for pattern in listed
        for file in _matching(name, pattern)
    )
    identity = (hub_id, config) if hub_id else ("files", name)
    return Task(
        name, *identity, columns, labels, label_column, splits, revision, names, files=places,
        reading=reading, is_own=True,
    )  # fmt: skip


def _words(name: str, field: str, values) -> tuple[str, ...]:
    """A list of words of the own task `name`; numbers are words as well."""
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if listed and any(isinstance(value, bool) for value in values):
        raise InputError(
            f"task {name!r}: {field} is {values!r}: YAML reads yes, no, true and false as truth "
            'values; put them in quotes ("yes")'
        )
    if not listed or not all(isinstance(value, (str, int, float)) for value in values):
        raise InputError(f"task {name!r}: {field} is {values!r}: expected a list of words")
    return tuple(map(str, values))


def _file_lists(name: str, files) -> dict[str, list[str]]:
    """The `files` of the own task `name` (see `own_task`) as a list of files for each split."""
    by_split = files if isinstance(files, Mapping) else {"train": files} if files else {}
    lists = {
        split: [listed] if isinstance(listed, str) else listed for split, listed in by_split.items()
    }
    for split, listed in lists.items():
        fits = isinstance(listed, Sequence) and listed
        if not fits or not all(isinstance(file, str) for file in listed):
            raise InputError(
                f"task {name!r}: files of {split} are {listed!r}: expected a file or a list "
                f"of files"
            )
    return lists


def _matching(name: str, pattern: str) -> list[str]:
    """The absolute paths of the files that a pattern matches, in the order of their names; a plain
    path stands for itself."""
    path = anchored(pattern)
    if path.exists() or not glob.has_magic(pattern):
        return [str(path)]
    found = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
    if not found:
        raise InputError(f"task {name!r}: no file matches {path}: correct the pattern")
    return found


def mini_tasks(world_seed: int) -> dict[str, Task]:
    """The tasks of the miniature world of that seed."""
    seed = str(world_seed)
    return {
        name: Task(name, MINIWORLD, name, task.columns, task.labels, splits="own", revision=seed)
        for name, task in miniworld.TASKS.items()
    }


def find(name: str, tasks: Mapping[str, Task]) -> Task:
    """The task called `name`; an unknown name raises `InputError` with the nearest one."""
    if name not in tasks:
        raise InputError(f"unknown task {name!r}: {nearest(name, tasks)}")
    return tasks[name]


def among(target: Task, identities: Iterable[tuple[str, str]]) -> bool:
    """Whether `target` may be one of these (Hub id, config), with config "" if unknown; short data
    set names (glue) match any owner (nyu-mll/glue)."""
    hub_id, config = target.identity
    return any(
        name.split("/")[-1] == hub_id.split("/")[-1] and of in ("", config)
        for name, of in identities
    )


def leave_out(target: Task, sources: list[Task]) -> list[Task]:
    """`sources` without the target, by identity and across families."""
    return [source for source in sources if source.identity != target.identity]
