"""Validated settings of a study, taken from a notebook's parameters."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fusinglib.errors import InputError, nearest, one_of
from fusinglib.fusion.methods import METHODS
from fusinglib.places import PROJECT, store_folder
from fusinglib.training.data import TEXT_FORMATS
from fusinglib.training.settings import Data, Finetuning, Training
from fusinglib.training.tasks import Task, file_lists, own_task, table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Finetuning, Data):
    """What every experiment sets: models, data, finetuning, and where and how runs are made.

    The values come from a notebook's parameters cell or a parameter file, never from here, so
    that each number has one home. Wrong names, types and values raise `InputError`.
    """

    model: str
    model_revision: str
    allow_pickle: bool
    tasks: str
    own_tasks: dict[str, dict]
    world_seeds: list[int]
    pretraining_seed: int
    pretraining_steps: int
    source_batch_size: int
    source_max_steps: int
    source_patience: int
    target_batch_size: int
    target_max_steps: int
    target_patience: int
    source_seeds: list[int]
    seeds: list[int]
    store: str
    executor: str
    scheduler: str
    workers: int
    device: str

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = _typed(field.name, getattr(self, field.name), field.type)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Refuse values outside their range, naming the parameter and what is allowed."""
        for name, allowed in CHOICES.items():
            _require_one_of(self, name, allowed)
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            expected = f"a number from {least:g}" + ("" if most is None else f" to {most:g}")
            inside = least <= value and (most is None or value <= most)
            _require(inside, name, value, expected)
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "more than 0")
        for name in ("seeds", "source_seeds", "world_seeds"):
            values = getattr(self, name)
            _require(bool(values), name, values, "at least one seed")
            _require(min(values) >= 0, name, values, "whole numbers from 0")
            _require(len(set(values)) == len(values), name, values, "each seed once")
        fits = not self.scheduler or self.executor == "dask"
        _require(fits, "scheduler", self.scheduler, 'none, or the executor "dask"')
        self.known_tasks()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> "Study":
        """The settings among `parameters`, e.g. a notebook's `globals()`; other names are left.

        What is not among them is taken from the file that the parameter `common` names. Raises
        `InputError` where a setting is missing or does not fit.
        """
        common = _typed("common", parameters.get("common", ""), str)
        parameters = {**(read_common(common) if common else {}), **parameters}
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in parameters]
        if missing:
            where = f", and {common} does not set it" if common else ""
            raise InputError(f"parameter {missing[0]!r} is missing: {cls.__name__} needs it{where}")
        return cls(**{name: parameters[name] for name in names})

    def known_tasks(self, world: int | None = None) -> tuple[dict[str, Task], dict[str, list[str]]]:
        """All tasks and families by name, own ones among them; of a world (default: the first)."""
        seed = self.world_seeds[0] if world is None else world
        return table(self.tasks, seed, self.own_tasks)

    def data(self) -> Data:
        """The settings that decide a task's splits and texts."""
        return Data(**self._values(Data))

    def source_training(self) -> Training:
        """How source models are finetuned."""
        return self._training("source")

    def target_training(self) -> Training:
        """How base models are finetuned on targets."""
        return self._training("target")

    def _training(self, role: str) -> Training:
        own = {name: getattr(self, f"{role}_{name}") for name in Training.__annotations__}
        return Training(**own, **self._values(Finetuning))

    def _values(self, kind: type) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(kind)}

    def store_folder(self) -> Path:
        """Where runs are kept."""
        return store_folder(self.store)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Families(Study):
    """Which models are fused, and what they are tried on.

    `families` adds or replaces families by name; `sources` and `targets` name families. A source
    family may name finetuned models (folders, Hub ids, keys of the store) beside tasks, and
    `trained_on` the tasks of each, which their model cards are asked for otherwise.
    """

    families: dict[str, list[str]]
    trained_on: dict[str, list[str]]
    sources: list[str]
    targets: list[str]

    def check(self) -> None:
        super().check()
        for name in ("sources", "targets"):
            values = getattr(self, name)
            _require(bool(values), name, values, "at least one family")
            _require(len(set(values)) == len(values), name, values, "each family once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FamilyTable(Families):
    """Settings of the family table (paper Tables 1 and 3)."""

    intertraining: str
    random_row: bool

    def check(self) -> None:
        super().check()
        _require_one_of(self, "intertraining", ("largest", "paper"))

    def variations(self) -> list[dict]:
        """What is varied, a dict for each family table: here a single one, nothing varied."""
        return [{}]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ManyWorlds(FamilyTable):
    """Settings of the family table over many miniature worlds; `first_worlds` of them forecast what
    all of them show."""

    first_worlds: int

    def check(self) -> None:
        super().check()
        count = len(self.world_seeds)
        _require(self.tasks == "miniworld", "tasks", self.tasks, "miniworld: no other has worlds")
        _require(count >= 3, "world_seeds", self.world_seeds, "three worlds or more")
        fits = 2 <= self.first_worlds < count
        _require(fits, "first_worlds", self.first_worlds, f"a number from 2 to {count - 1}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairwiseHeatmap(Families):
    """Settings of the pairwise heatmap (paper Figure 2): all pairs of the source tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightDecay(FamilyTable):
    """Settings of the weight decay experiment (paper Table 2).

    `weight_decay`, the one that the verdict is about, is compared with none; `explored_decays` are
    shown beside them.
    """

    explored_decays: list[float]

    def check(self) -> None:
        super().check()
        _require(self.weight_decay > 0, "weight_decay", self.weight_decay, "more than 0")
        values = self.explored_decays
        _require(all(value > 0 for value in values), "explored_decays", values, "more than 0")
        _require(len(set(self.decays)) == len(self.decays), "explored_decays", values, "new ones")

    def variations(self) -> list[dict]:
        return [{"weight_decay": decay} for decay in self.decays]

    @property
    def decays(self) -> list[float]:
        """All the decays, none first."""
        return [0.0, self.weight_decay, *self.explored_decays]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceSize(FamilyTable):
    """Settings of the source size experiment (paper Figure 3).

    `sizes` are the numbers of training examples of every source model; a task with fewer gives all
    that it has.
    """

    sizes: list[int]

    def check(self) -> None:
        super().check()
        _require(bool(self.sizes), "sizes", self.sizes, "at least one size")
        _require(min(self.sizes) > 0, "sizes", self.sizes, "whole numbers from 1")
        _require(len(set(self.sizes)) == len(self.sizes), "sizes", self.sizes, "each size once")

    def variations(self) -> list[dict]:
        return [{"source_size": size} for size in sorted(self.sizes)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossPath(Families):
    """Settings of the loss path (paper Appendix D).

    Every line is looked at in `points` places, its ends among them. An encoder gets a head at each
    place, fitted with `head_learning_rate` as a target model is otherwise; T5 needs none.
    """

    points: int
    head_learning_rate: float

    def check(self) -> None:
        super().check()
        odd = self.points >= 3 and self.points % 2 == 1
        _require(odd, "points", self.points, "an odd number from 3")
        rate = self.head_learning_rate
        _require(rate > 0, "head_learning_rate", rate, "more than 0")
        _require(len(self.world_seeds) == 1, "world_seeds", self.world_seeds, "one world")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedPlanner(FamilyTable):
    """Settings of the seed planner: a family table before anything is paid for.

    `spread_from` says where the spread of runs is taken from: "published" (20 runs of
    `published_model`), "store" (this study's own runs), or "guess". Spreads are standard deviations
    in points: `guess_spread` of one run on a target, `guess_effect` of the true difference over
    targets. A run takes `guess_seconds` as long as the store knows none.
    """

    spread_from: str
    published_model: str
    guess_spread: float
    guess_effect: float
    guess_seconds: float
    tried_seeds: list[int]
    tried_targets: list[int]

    def check(self) -> None:
        super().check()
        _require_one_of(self, "spread_from", ("published", "store", "guess"))
        for name in ("guess_spread", "guess_effect", "guess_seconds"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number from 0")
        for name in ("tried_seeds", "tried_targets"):
            values = getattr(self, name)
            holds = bool(values) and min(values) > 0 and len(set(values)) == len(values)
            _require(holds, name, values, "at least one whole number, from 1, each once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FusePlayground(Study):
    """Settings of the playground: finetuned models of your choice, fused, tried on one target.

    `models` are finetuned models: names of tasks (their source models, made if need be), keys of
    the store, folders, Hub ids; `trained_on` as in `Families`. `weights` has a number for each of
    them (none: equal), and `method_settings` the settings of the method (see
    `fusinglib.fusion.methods`).
    """

    models: list[str]
    trained_on: dict[str, list[str]]
    target: str
    method: str
    weights: list[float]
    method_settings: dict[str, float]

    def check(self) -> None:
        super().check()
        _require_one_of(self, "method", [name for name in METHODS if name != "fisher"])
        _require(len(self.world_seeds) == 1, "world_seeds", self.world_seeds, "one world")
        _require(len(self.models) >= 2, "models", self.models, "at least two models")
        _require(len(set(self.models)) == len(self.models), "models", self.models, "each once")
        fits = not self.weights or (len(self.weights) == len(self.models) and self.method != "mean")
        _require(fits, "weights", self.weights, "none for the mean, else none or as many as models")


CHOICES = {
    "tasks": ("miniworld", "paper"),
    "split_rule": ("paper", "later"),
    "text_format": TEXT_FORMATS,
    "schedule": ("constant", "linear"),
    "metric": ("ranked", "exact"),
    "precision": ("fp32", "bf16"),
    "executor": ("serial", "processes", "dask"),
    "device": ("auto", "cpu", "cuda", "mps"),
}
"""The values that a setting of text may take."""

RANGES = {
    "pretraining_seed": (0, None),
    "pretraining_steps": (0, None),
    "split_seed": (0, None),
    "max_dev": (0, None),
    "max_test": (0, None),
    "max_length": (8, None),
    "weight_decay": (0, None),
    "dropout": (0, 0.9),
    "source_batch_size": (1, None),
    "source_max_steps": (1, None),
    "source_patience": (1, None),
    "target_batch_size": (1, None),
    "target_max_steps": (1, None),
    "target_patience": (1, None),
    "eval_every": (1, None),
    "min_gain": (0, 1),
    "threads": (1, None),
    "micro_batch": (0, None),
    "workers": (0, None),
}
"""The least and the most (None: no bound) that a setting of a number may be."""


EXPERIMENTS = {
    "family_table": FamilyTable,
    "pairwise_heatmap": PairwiseHeatmap,
    "weight_decay": WeightDecay,
    "source_size": SourceSize,
    "loss_path": LossPath,
    "seed_planner": SeedPlanner,
    "many_worlds": ManyWorlds,
    "when_fusing_helps": ManyWorlds,
    "fuse_playground": FusePlayground,
}
"""Notebook name to its settings."""


def read_parameters(file: str | Path) -> dict[str, Any]:
    """The parameters that a YAML file sets; raises `InputError` for a file that is no mapping."""
    try:
        values = parse_yaml(Path(file).read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise InputError(f"parameter file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"parameter file {file}: expected a text file ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"parameter file {file}: expected lines `name: value`")
    return values


def read_common(file: str) -> dict[str, Any]:
    """What a `common` file sets, its path taken from the project's root; it may hold the
    parameters of any experiment, but no others."""
    values = read_parameters(PROJECT / file)
    known = {field.name for kind in EXPERIMENTS.values() for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            raise InputError(
                f"{file}: no notebook has a parameter {name!r}: {nearest(name, known)}"
            )
    return values


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; `where` it stands is what an error says."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is no YAML: {' '.join(str(error).split())}") from error


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise InputError(f"parameter {name!r} is {value!r}: expected {expected}")


def _require_one_of(settings: Study, name: str, allowed) -> None:
    value = getattr(settings, name)
    _require(value in allowed, name, value, one_of(allowed))


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, whole numbers serving as floats; anything else raises `InputError`."""
    if kind in (list[int], list[float], list[str]):
        hint = " (papermill: give it with -y or in a file, since -p makes text of it)"
        expected = "a list" + (hint if isinstance(value, str) and "[" in value else "")
        _require(isinstance(value, list | tuple), name, value, expected)
        return [_typed(name, item, kind.__args__[0]) for item in value]
    if kind in DICTS:
        _require(isinstance(value, dict), name, value, DICTS[kind])
        of = kind.__args__[1]
        if of is dict:
            return _fields(name, value)
        return {_typed(name, k, str): _typed(name, v, of) for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind in (float, int) and isinstance(value, str):
        hint = " (YAML reads 1e-4 as text: write 1.0e-4)" if "e" in value.lower() else ""
        raise InputError(f"parameter {name!r} is the text {value!r}: expected a number{hint}")
    _require(type(value) is kind, name, value, WORDS[kind])
    if kind is float:
        _require(value == value and abs(value) != float("inf"), name, value, "a finite number")
    return value


def _fields(name: str, tasks: dict) -> dict:
    """Tasks with the fields that make one (see `fusinglib.training.tasks.own_task`)."""
    known = list(inspect.signature(own_task).parameters)[1:]
    required = ("columns", "labels")
    for task, fields in tasks.items():
        _require(isinstance(fields, dict), name, fields, f"fields of the task {task!r}")
        for field in fields:
            if field not in known:
                raise InputError(
                    f"parameter {name!r}: task {task!r} has no {field!r}: {nearest(field, known)}"
                )
        for field in required:
            _require(field in fields, name, fields, f"{field} of the task {task!r}")
    return {task: _from_project(task, fields) for task, fields in tasks.items()}


def _from_project(task: str, fields: dict) -> dict:
    """Relative files of a task as files below the project's root."""
    if "files" not in fields:
        return fields
    lists = file_lists(task, fields["files"])
    files = {split: [str(PROJECT / file) for file in listed] for split, listed in lists.items()}
    return {**fields, "files": files}


DICTS = {
    dict[str, list[str]]: "names with lists of tasks",
    dict[str, float]: "names with numbers",
    dict[str, dict]: "names of tasks, each with its fields",
}
"""The mappings that a setting may be, for messages."""

WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
