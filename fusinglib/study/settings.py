"""Validated settings of a study, taken from a notebook's parameters."""

import dataclasses
import functools
import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, dataclass_transform

import pydantic
import yaml
from pydantic import AfterValidator, ConfigDict, Field

from fusinglib.errors import InputError, nearest, one_of, refused_parameter
from fusinglib.fusion.methods import METHODS
from fusinglib.places import shipped, store_folder
from fusinglib.study.arms import Arm, arm
from fusinglib.training.settings import Count, Data, Finetuning, Positive, Training
from fusinglib.training.tasks import Task, table

Kind = TypeVar("Kind", bound=type)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def validated(kind: Kind) -> Kind:
    """A dataclass whose values are checked against its annotations; what does not fit raises
    `InputError` with the parameter's name."""
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    made = pydantic.dataclasses.dataclass(kind, frozen=True, kw_only=True, config=config)
    init = made.__init__

    @functools.wraps(init)
    def checked(self, **values) -> None:
        try:
            init(self, **values)
        except pydantic.ValidationError as error:
            raise refused_parameter(error) from None

    made.__init__ = checked
    return cast(Kind, made)


def _once(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError("each once")
    return values


def _apart(groups: dict[str, list[str]]) -> dict[str, list[str]]:
    _once([name for names in groups.values() for name in names])
    return groups


def _methods(name: str) -> str:
    if name not in METHODS:
        raise ValueError(one_of(list(METHODS)))
    return name


Some = Field(min_length=1)
Names = Annotated[list[str], Some, AfterValidator(_once)]
Seeds = Annotated[list[Count], Some, AfterValidator(_once)]
OwnSeeds = Annotated[list[Count], AfterValidator(_once)]
Counts = Annotated[list[Positive], Some, AfterValidator(_once)]
Clusters = Annotated[dict[str, list[str]], AfterValidator(_apart)]
Above = Annotated[float, Field(gt=0)]
Least = Annotated[float, Field(ge=0)]


@validated
class Settings(Finetuning, Data):
    """What every experiment sets: models, data, finetuning, and where and how runs are computed.

    The values come from a notebook's parameters cell or a parameter file, never from here, so
    that each number has one home. Wrong names, types and values raise `InputError`.
    """

    model: str
    model_revision: str
    allow_pickle: bool
    tasks: Literal["miniworld", "paper"]
    own_tasks: dict[str, dict]
    world_seeds: Seeds
    pretraining_seed: Count
    pretraining_steps: Count
    source_batch_size: Positive
    source_max_steps: Positive
    source_patience: Positive
    target_batch_size: Positive
    target_max_steps: Positive
    target_patience: Positive
    source_seeds: Seeds
    seeds: Seeds
    store: str
    executor: Literal["serial", "processes", "dask"]
    scheduler: str
    workers: Count
    stack: Count
    device: Literal["auto", "cpu", "cuda", "mps"]

    def __post_init__(self) -> None:
        """Refuse inconsistent values, naming the parameter and what is allowed."""
        fits = not self.scheduler or self.executor == "dask"
        require(fits, "scheduler", self.scheduler, 'none, or the executor "dask"')
        self.known_tasks()

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """The settings among `parameters`, e.g. a notebook's `globals()`; other names are ignored.

        Missing ones are taken from the file that the parameter `common` names. Raises `InputError`
        if a setting is missing or invalid.
        """
        common = parameters.get("common", "")
        require(isinstance(common, str), "common", common, "text")
        parameters = {**(read_common(common) if common else {}), **parameters}
        names = parameter_names(cls)
        missing = [name for name in names if name not in parameters]
        if missing:
            where = f", and {common} does not set it" if common else ""
            raise InputError(f"parameter {missing[0]!r} is missing: {cls.__name__} needs it{where}")
        return cls(**{name: parameters[name] for name in names})

    def known_tasks(self, world: int | None = None) -> tuple[dict[str, Task], dict[str, list[str]]]:
        """All tasks and families by name, including own ones, for a world (default: the first)."""
        seed = self.world_seeds[0] if world is None else world
        return table(self.tasks, seed, self.own_tasks)

    def data(self) -> Data:
        """The settings that determine a task's splits and texts."""
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
        return {name: getattr(self, name) for name in parameter_names(kind)}

    def store_folder(self) -> Path:
        """Where runs are kept."""
        return store_folder(self.store)


@validated
class Families(Settings):
    """Which models are fused, and the targets they are tried on.

    `families` adds or replaces families by name; `sources` and `targets` name families. A source
    family may name finetuned models (folders, Hub ids, run keys) besides tasks. `trained_on` gives
    the tasks of each; otherwise their model cards are used.
    """

    families: dict[str, list[str]]
    trained_on: dict[str, list[str]]
    sources: Names
    targets: Names


@validated
class FamilyTable(Families):
    """Settings of the family table (paper Tables 1 and 3).

    `arms` are further base models (see `fusinglib.study.arms`).
    With no `source_seeds` every seed has source models of its own, of that seed: a replicate of the
    whole study, so that intervals cover the randomness of source models.
    Targets that are variants of one task count as one, their mean, if `clusters` names them (see
    `fusinglib.evaluation.tables.clustered`).
    """

    source_seeds: OwnSeeds
    intertraining: Literal["largest", "paper"]
    arms: list[str | dict[str, dict[str, bool | float]]]
    clusters: Clusters

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [one.name for one in self.further]
        require(len(set(names)) == len(names), "arms", self.arms, "every arm once")

    @property
    def further(self) -> list[Arm]:
        """The further base models that `arms` names."""
        return [arm(one) for one in self.arms]

    def variations(self) -> list[dict]:
        """What varies: a dict per family table; here a single one, with nothing varied."""
        return [{}]

    def rates(self) -> list[float]:
        """Further learning rates that pretrained and fused are finetuned with on targets."""
        return []


@validated
class FusingMethods(FamilyTable):
    """Settings of the comparison of methods: a family table whose `arms` are methods of fusing. A
    method with several settings among them is also shown tuned, and the learning rate of pretrained
    and fused on targets if there are further `tried_rates` (see `fusinglib.evaluation.ranking`)."""

    tried_rates: list[Above]

    def __post_init__(self) -> None:
        super().__post_init__()
        rates = [self.learning_rate, *self.tried_rates]
        require(len(set(rates)) == len(rates), "tried_rates", self.tried_rates, "new ones, once")

    def rates(self) -> list[float]:
        return self.tried_rates


@validated
class Shrinkage(Families):
    """Settings of the shrinkage experiment: is fusing more than a shorter update?

    The updates of the mean and of the intertrained model are multiplied by `scales`. Means of fewer
    models have the numbers of models `counts`, each drawn at random `draws` times.
    """

    source_seeds: OwnSeeds
    intertraining: Literal["largest", "paper"]
    scales: Annotated[list[Above], Some, AfterValidator(_once)]
    counts: Counts
    draws: Positive
    clusters: Clusters

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1.0 in self.scales, "scales", self.scales, "1.0 among them: the models as they are")


@validated
class ManyWorlds(FamilyTable):
    """Settings of the family table over many miniature worlds.

    The first `first_worlds` of them are used for a forecast. Where the store lacks runs, the same
    ones are shown as the folder `recorded` has them, unless it is empty.
    """

    first_worlds: int
    recorded: str

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.world_seeds)
        require(self.tasks == "miniworld", "tasks", self.tasks, "miniworld (only it has worlds)")
        require(count >= 3, "world_seeds", self.world_seeds, "at least three worlds")
        fits = 2 <= self.first_worlds < count
        require(fits, "first_worlds", self.first_worlds, f"a number from 2 to {count - 1}")


@validated
class PairwiseHeatmap(Families):
    """Settings of the pairwise heatmap (paper Figure 2): all pairs of the source tasks.

    `clusters` as in `FamilyTable`. A pair that has seen one target of a cluster is tried on none.
    """

    clusters: Clusters


@validated
class WeightDecay(FamilyTable):
    """Settings of the weight decay experiment (paper Table 2).

    `weight_decay`, which the verdict is about, is compared with none; `explored_decays` are shown
    as well.
    """

    weight_decay: Above
    explored_decays: list[Above]

    def __post_init__(self) -> None:
        super().__post_init__()
        values = self.explored_decays
        require(len(set(self.decays)) == len(self.decays), "explored_decays", values, "new ones")

    def variations(self) -> list[dict]:
        return [{"weight_decay": decay} for decay in self.decays]

    @property
    def decays(self) -> list[float]:
        """All the decays, none first."""
        return [0.0, self.weight_decay, *self.explored_decays]


@validated
class SourceSize(FamilyTable):
    """Settings of the source size experiment (paper Figure 3).

    `sizes` are numbers of training examples per source model; a task with fewer uses all it has.
    """

    sizes: Counts

    def variations(self) -> list[dict]:
        return [{"source_size": size} for size in sorted(self.sizes)]


@validated
class LossPath(Families):
    """Settings of the loss path (paper Appendix D).

    Every line is evaluated at `points` positions, including its ends. An encoder gets a head at
    each position, fitted with `head_learning_rate` and otherwise like a target model; T5 needs
    none.
    """

    points: Annotated[int, Field(ge=3)]
    head_learning_rate: Above

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.points % 2 == 1, "points", self.points, "an odd number")
        require(len(self.world_seeds) == 1, "world_seeds", self.world_seeds, "one world")


@validated
class SeedPlanner(FamilyTable):
    """Settings of the seed planner: a family table before any compute is spent.

    `spread_from` says where the spread of runs comes from: "published" (20 runs of
    `published_model`), "store" (this study's own runs), or "guess". Spreads are standard deviations
    in points: `guess_spread` of one run on a target, `guess_effect` of the true difference across
    targets.
    """

    spread_from: Literal["published", "store", "guess"]
    published_model: str
    guess_spread: Least
    guess_effect: Least
    tried_seeds: Counts
    tried_targets: Counts


@validated
class FusePlayground(Settings):
    """Settings of the playground: finetuned models of your choice, fused, tried on one target.

    `models` are finetuned models: names of tasks (their source models, trained if necessary), run
    keys, folders, Hub ids; one alone for "task_arithmetic", which scales its update. `trained_on`
    is as in `Families`. `weights` has one number per model (empty: equal), and `method_settings`
    the settings of the method (see `fusinglib.fusion.methods`).
    """

    models: Annotated[list[str], Field(min_length=1), AfterValidator(_once)]
    trained_on: dict[str, list[str]]
    target: str
    method: Annotated[str, AfterValidator(_methods)]
    weights: list[float]
    method_settings: dict[str, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.world_seeds) == 1, "world_seeds", self.world_seeds, "one world")
        several = len(self.models) > 1 or self.method == "task_arithmetic"
        require(several, "models", self.models, "at least 2, or one for task_arithmetic")
        weighted = METHODS[self.method].weighted
        fits = not self.weights or (weighted and len(self.weights) == len(self.models))
        wanted = "none, or one per model" if weighted else f"none for the method {self.method}"
        require(fits, "weights", self.weights, wanted)


EXPERIMENTS = {
    "family_table": FamilyTable,
    "pairwise_heatmap": PairwiseHeatmap,
    "weight_decay": WeightDecay,
    "source_size": SourceSize,
    "fusing_methods": FusingMethods,
    "shrinkage": Shrinkage,
    "loss_path": LossPath,
    "seed_planner": SeedPlanner,
    "many_worlds": ManyWorlds,
    "when_fusing_helps": ManyWorlds,
    "fuse_playground": FusePlayground,
}
"""Notebook name to its settings."""


def parameter_names(kind: type) -> list[str]:
    """The parameters that a kind of settings needs."""
    return [field.name for field in dataclasses.fields(kind)]


def read_parameters(file: str | Path) -> dict[str, Any]:
    """The parameters that a YAML file sets; raises `InputError` for a file that is not a
    mapping."""
    try:
        values = parse_yaml(Path(file).read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise InputError(f"parameter file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"parameter file {file}: expected a text file ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"parameter file {file}: expected lines `name: value`")
    return values


def beside(folder: Path, values: dict) -> dict:
    """Parameters of a file in `folder`, with relative paths that exist there made absolute.

    These are `common`, `model`, the files of own tasks, and models that are named by a path (a bare
    word is a task).
    """

    def located(value, bare: bool = False):
        if isinstance(value, dict):
            return {located(key, bare): located(one, bare) for key, one in value.items()}
        if isinstance(value, list):
            return [located(one, bare) for one in value]
        is_path = isinstance(value, str) and value and (bare or "/" in value)
        found = is_path and ((folder / value).exists() or glob.glob(str(folder / value)))
        return str((folder / value).resolve()) if found else value

    found = {name: located(values[name], True) for name in ("common", "model") if name in values}
    for name in ("families", "models", "trained_on"):
        if name in values:
            found[name] = located(values[name])
    own = values.get("own_tasks")
    if isinstance(own, dict):
        found["own_tasks"] = {
            task: {**fields, "files": located(fields["files"], True)}
            if isinstance(fields, dict) and "files" in fields
            else fields
            for task, fields in own.items()
        }
    return {**values, **found}


def read_common(file: str) -> dict[str, Any]:
    """The values of a `common` file, which may contain the parameters of any experiment but no
    others."""
    path = shipped(file)
    values = beside(path.parent, read_parameters(path))
    known = {name for kind in EXPERIMENTS.values() for name in parameter_names(kind)}
    for name in values:
        if name not in known:
            raise InputError(
                f"{file}: no notebook has a parameter {name!r}: {nearest(name, known)}"
            )
    return values


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML readers keep the last; dates
    are text."""

    yaml_implicit_resolvers = {
        first: [one for one in known if one[0] != "tag:yaml.org,2002:timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = []
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = self.construct_object(key, deep=True)
            if name in seen:
                said = f"{name!r} is set twice; remove one"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen.append(name)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; errors name `where` it is."""
    try:
        value = yaml.load(text, _Loader)
        if _size(value, {}) > LARGEST:
            raise ValueError(f"its aliases unfold to more than {LARGEST:,} values")
    except RecursionError as error:
        raise InputError(f"{where} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    return value


LARGEST = 1_000_000
"""The most values that a parameter file may have."""


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are in a value, aliases unfolded; `known` has those of lists and
    mappings by their ids."""
    if not isinstance(value, (list, dict)):
        return 1
    if id(value) not in known:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def require(holds: bool, name: str, value: Any, expected: str) -> None:
    """Raise `InputError` about the parameter `name` unless `holds`."""
    if not holds:
        raise InputError(f"parameter {name!r} is {value!r}: expected {expected}")
