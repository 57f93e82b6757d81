"""An experiment as pure data: a graph of runs, each identified by what determines its result."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from random import Random
from types import MappingProxyType
from typing import Any

from fusinglib.errors import InputError, nearest
from fusinglib.fusion.methods import METHODS
from fusinglib.places import is_key
from fusinglib.study.arms import ESTIMATES, RANDOM, Arm, arm, settings_of
from fusinglib.study.settings import (
    Families,
    FamilyTable,
    FusePlayground,
    LossPath,
    PairwiseHeatmap,
    Shrinkage,
)
from fusinglib.training.data import KIN, TaskData, overlap
from fusinglib.training.settings import Training
from fusinglib.training.tasks import Task, among, find, leave_out

OF_TARGETS = 1_000_000
"""Added to the seeds of target runs of models with heads."""

PRETRAINED, MEAN = "pretrained", "mean"
"""The ends of a line that are not a single source model."""

ESTIMATED = 256
"""Training texts that an estimate of a source model is made on."""

VERSIONS = {
    "pretrain": 2,
    "import": 1,
    "random": 1,
    "source": 1,
    "estimate": 1,
    "fuse": 1,
    "target": 1,
    "line": 1,
}
"""The version of each kind of run, increased whenever a change alters its results."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run: its kind, its resolved settings, and the runs it starts from.

    The `key` is the hash of these and of the kind's version; `label` (for people), `place` (where
    an imported model is now) and `task` (how to find the rows of its task) are not part of it. The
    parents of a mean are in the order of their keys, which is the order of summation.
    """

    kind: str
    settings: dict
    parents: tuple["Run", ...] = ()
    label: str = ""
    place: str = ""
    task: Task | None = None

    @functools.cached_property
    def identity(self) -> dict:
        """What the key hashes, as JSON data."""
        return {
            "kind": self.kind,
            "version": VERSIONS[self.kind],
            "settings": self.settings,
            "parents": [parent.key for parent in self.parents],
        }

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits that identify the run."""
        text = json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Model:
    """An existing finetuned model used as a source, and what it was trained on.

    `trained_on` are identities (see `tasks.among`); `examples` is the number of training examples
    it saw, as far as known.
    """

    run: Run
    trained_on: tuple[tuple[str, str], ...] = ()
    examples: int = 0


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment, parents before children, and the table's rows.

    Each row says which target run stands for which (base, source family, target, seeds). `families`
    are the target families; `sizes` the examples per split of every task; `notes` what a reader has
    to know about the data and about models that were not made here.
    """

    runs: list[Run]
    rows: list[dict]
    families: dict[str, list[str]]
    sizes: dict[str, dict[str, int]]
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> list[Run]:
        """The runs whose models are fused, but for those that were fused themselves."""
        parents = unique(run.parents for run in self.runs if run.kind == "fuse")
        return [run for run in parents if run.kind not in ("estimate", "fuse")]


def together(worlds: Mapping[int, Plan]) -> Plan:
    """The plans of several worlds as one, whose rows have a column ``world``."""
    runs = {run.key: run for plan in worlds.values() for run in plan.runs}
    rows = [{"world": world, **row} for world, plan in worlds.items() for row in plan.rows]
    notes = tuple(unique(plan.notes for plan in worlds.values()))
    first = next(iter(worlds.values()))
    return Plan(list(runs.values()), rows, first.families, first.sizes, notes)


@dataclass
class Builder:
    """Collects the runs and rows of a plan; a run requested twice is one run.

    `facts` are columns of all its rows that change its runs: the `weight_decay` of all finetuning,
    the `source_size`, which is how many training examples a source model sees at most. Models
    `with_head` get a fresh head on every task, see `target_seed`.
    """

    settings: Any  # of the experiment
    data: Mapping[str, TaskData]
    models: Mapping[str, Model] = field(default_factory=dict)
    with_head: bool = False
    facts: dict = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)

    def varied(self, facts: dict) -> "Builder":
        """A builder with other `facts`; what it adds joins these."""
        return dataclasses.replace(self, facts=facts)

    def plan(self, families: Mapping[str, list[str]]) -> Plan:
        """The plan collected so far; `families` may contain more than the target families."""
        chosen = {family: families[family] for family in self.settings.targets}
        sizes = {name: loaded.sizes for name, loaded in self.data.items()}
        return Plan(list(self.runs.values()), self.rows, chosen, sizes)

    def add(self, kind: str, settings: dict, *parents: Run, label: str, task=None) -> Run:
        """The run of this kind with these settings and parents, added after them."""
        for parent in parents:
            self.runs.setdefault(parent.key, parent)
        run = Run(kind, settings, parents, label, task=task)
        return self.runs.setdefault(run.key, run)

    def on_task(self, name: str, training: Training, seed: int) -> dict:
        """The settings of a run that finetunes or scores a model on a task."""
        loaded = self.data[name]
        if "weight_decay" in self.facts:
            training = dataclasses.replace(training, weight_decay=self.facts["weight_decay"])
        return {
            "task": loaded.task.as_json(),
            "data": dataclasses.asdict(self.settings.data()),
            "fingerprint": loaded.fingerprint,
            "training": training.as_json(),
            "seed": seed,
        }

    def finetune(self, kind: str, base: Run, name: str, seed: int) -> Run:
        """Finetune `base` on a task: the model is kept for sources, only the numbers for
        targets."""
        settings = self.on_task(name, getattr(self.settings, f"{kind}_training")(), seed)
        loaded = self.data[name]
        label = f"{name} from {base.label}, seed {seed % OF_TARGETS}"
        size = self.facts.get("source_size", 0)
        if kind == "source" and 0 < size < len(loaded.train):
            settings["examples"] = size
            label += f", {size} examples"
        return self.add(kind, settings, base, label=label, task=loaded.task)

    def fuse(self, models: list[Run], label: str) -> Run:
        """The mean of `models`."""
        return self.add("fuse", {}, *sorted(models, key=lambda run: run.key), label=label)

    def fuse_by(
        self, method: str, given: Mapping[str, float], weights: list[float], pretrained: Run,
        models: list[Run],
    ) -> Run:  # fmt: skip
        """`models` fused by a method with its settings and their weights; the mean is that of
        `fuse`."""
        label = f"{method} of {len(models)} models" if len(models) > 1 else models[0].label
        if "scale" in given and len(models) == 1:
            label += f" times {given['scale']:g}"
        if method == "mean":
            return self.fuse(models, label)
        order = sorted(range(len(models)), key=lambda number: models[number].key)
        numbers = {name: int(v) if v == int(v) else v for name, v in given.items()}
        settings: dict[str, Any] = {**numbers, "method": method}
        if weights:
            settings["weights"] = [weights[number] for number in order]
        if method == "scaled":  # the number of a model, as the engine is given them
            settings["which"] = order.index(int(numbers.get("which", 0)))
        parents = [models[number] for number in order]
        if METHODS[method].with_base:
            settings["with_pretrained"] = True
            parents.append(pretrained)
        if method in ESTIMATES:
            settings["estimates"] = ESTIMATES[method]
            parents += [self.estimate(ESTIMATES[method], model) for model in parents]
        return self.add("fuse", settings, *parents, label=label)

    def estimate(self, what: str, model: Run) -> Run:
        """What a method has to know of a source model, estimated on training texts of its task."""
        if model.kind != "source":
            raise InputError(
                f"{model.label}: its {'Gram matrices' if what == 'gram' else 'Fisher information'}"
                " can be estimated only on training texts of its task, which are known for source "
                "models that are trained here; leave out this method or the model"
            )
        known = {name: model.settings[name] for name in ("task", "data", "fingerprint")}
        settings = {**known, "what": what, "examples": ESTIMATED, "seed": 0}
        return self.add("estimate", settings, model, label=f"{what} of {model.label}",
                        task=model.task)  # fmt: skip

    def rescaled(self, model: Run, reference: Run, pretrained: Run) -> Run:
        """`model` with its update rescaled to the norm of the reference's."""
        label = f"{model.label}, rescaled"
        return self.add("fuse", {"rescaled": True}, model, reference, pretrained, label=label)

    def target_seed(self, seed: int) -> int:
        """The seed of a target run. If models get a head it differs from the same seed of a source
        run; otherwise body and head would start as the source model's did."""
        return seed + OF_TARGETS if self.with_head else seed

    def targets(self, model: Run, name: str, **row) -> None:
        """Finetune `model` on the target with every seed, for the table's `row`."""
        for seed in self.seeds(row["source_seed"]):
            self.target(model, name, seed, **row)

    def seeds(self, source_seed: int) -> list[int]:
        """The seeds of target runs from source models of this seed: all, or if every seed has
        source models of its own that one."""
        return self.settings.seeds if self.settings.source_seeds else [source_seed]

    def target(self, model: Run, name: str, seed: int, **row) -> None:
        """Finetune `model` on the target with one seed, for the table's `row`."""
        run = self.finetune("target", model, name, self.target_seed(seed))
        self.rows.append({**self.facts, **row, "target": name, "seed": seed, "run": run})

    def without_sources(self, base: str, model: Run, targets: list[str], **row) -> None:
        """Finetune a base model that was made without source models on all targets."""
        for source_seed in [0] if self.settings.source_seeds else self.settings.seeds:
            common = {"base": base, "source_family": "", "source_seed": source_seed, "sources": ()}
            for name in targets:
                self.targets(model, name, **common, **row)

    def sources(self, target: str, members: Sequence[str]) -> list[str]:
        """The members of a family that may be sources for the target (leave-target-out)."""
        task = self.data[target].task
        tasks = [self.data[name].task for name in members if name not in self.models]
        left = {one.name for one in leave_out(task, tasks)}
        models = self.models.items()
        left |= {name for name, model in models if not among(task, model.trained_on)}
        return [name for name in members if name in left and not self.kin(target, name)]

    def kin(self, target: str, source: str) -> bool:
        """Whether the task of a source, or one that its model was trained on, has files in common
        with the target, or under the rule "grouped" texts."""
        of = [source]
        if source in self.models:
            known = self.models[source].trained_on
            of = [name for name, one in self.data.items() if among(one.task, known)]
        own = self.data[target]
        grouped = self.settings.split_rule == "grouped"
        return any(
            own.shares_files(self.data[name]) or (grouped and overlap(own, self.data[name]) >= KIN)
            for name in of
        )

    def source(self, name: str, pretrained: Run, seed: int) -> Run:
        """The source model of a task, or the existing model of that name."""
        if name in self.models:
            return self.models[name].run
        return self.finetune("source", pretrained, name, seed)

    def examples(self, name: str) -> int:
        """The number of training examples a source model saw, as far as known."""
        return self.models[name].examples if name in self.models else len(self.data[name].train)

    def family_table(
        self, pretrained: Run, families: Mapping[str, list[str]], random: Run | None
    ) -> None:
        """The rows of `family_table` under these settings."""
        targets = unique(families[family] for family in self.settings.targets)
        self.without_sources("pretrained", pretrained, targets)
        if random:
            self.without_sources("random", random, targets)
        for source_seed in self.settings.source_seeds or self.settings.seeds:
            for family in self.settings.sources:
                for target in targets:
                    self._bases(pretrained, family, families[family], target, source_seed)

    def made_of(
        self, pretrained: Run, family: str, members: list[str], target: str, source_seed: int
    ) -> tuple[dict[str, Run], Run, str]:
        """The models of a source family for a target by name, their mean, and the name of the
        intertrained one."""
        sources = self.sources(target, members)
        if not sources:
            raise InputError(
                f"source family {family!r} has no task left for the target {target!r}, and a "
                "target is never its own source; add tasks to the family or leave the target out"
            )
        models = {name: self.source(name, pretrained, source_seed) for name in sources}
        left_out = "" if len(sources) == len(members) else f" without {target}"
        fused = self.fuse(list(models.values()), label=f"mean of {family}{left_out}")
        picked = intertrained(self.settings.intertraining, family, sources, self.examples)
        return models, fused, picked

    def _bases(self, pretrained, family, members, target, source_seed) -> None:
        """The base models made of one source family's models for one target: fused, intertrained,
        and the further arms."""
        models, fused, picked = self.made_of(pretrained, family, members, target, source_seed)
        common = {"source_family": family, "source_seed": source_seed}
        self.targets(fused, target, base="fused", **common, sources=tuple(sorted(models)))
        self.targets(models[picked], target, base="intertrained", **common, sources=(picked,))
        common["sources"] = tuple(sorted(models))
        for one in [one for one in self.settings.further if one.name != RANDOM]:
            for seed in self.seeds(source_seed):
                model = self.arm(one, models, picked, pretrained, seed)
                model = self.rescaled(model, fused, pretrained) if one.rescaled else model
                self.target(model, target, seed, base=one.name, **common)
        for rate in self.settings.rates():
            settings = dataclasses.replace(self.settings, learning_rate=rate, tried_rates=[])
            other = dataclasses.replace(self, settings=settings)
            for base, model in (("pretrained", pretrained), ("fused", fused)):
                other.targets(model, target, base=f"{base} (rate {rate:g})", **common)

    def arm(
        self, one: Arm, models: Mapping[str, Run], picked: str, pretrained: Run, seed: int
    ) -> Run:
        """The base model of a further arm, made of a family's models by name; `picked` is the
        intertrained one."""
        names, examples = list(models), {name: self.examples(name) for name in models}
        if one.method == "slerp":
            names = sorted(names, key=lambda name: (examples[name], name))[-2:]
            if len(names) < 2:
                raise InputError(
                    f"arm {one.name!r} takes two models, but a target has only {names[0]} left: "
                    "leave out the arm, or add tasks to the source family"
                )
        if one.method == "weighted" and not all(examples.values()):
            unknown = next(name for name in names if not examples[name])
            raise InputError(
                f"arm {one.name!r}: the number of training examples of {unknown} is not known; "
                "leave out the arm or the model"
            )
        weights = [float(examples[name]) for name in names] if one.method == "weighted" else []
        given = settings_of(one, names.index(picked) if one.method == "scaled" else 0, seed)
        return self.fuse_by(
            one.method, given, weights, pretrained, [models[name] for name in names]
        )


def family_table(
    settings: FamilyTable,
    pretrained: Run,
    data: Mapping[str, TaskData],
    families: Mapping[str, list[str]],
    random: Run | None = None,
    models: Mapping[str, Model] = MappingProxyType({}),
    with_head: bool = False,
) -> Plan:
    """The plan of Tables 1 and 3, or of the experiments that vary it.

    For every source family S and target t: fuse(S minus t), the intertrained model of S for t,
    pretrained, and `random`, a model of the same architecture never pretrained; each finetuned on t
    with every seed. `data` gives every task's splits. What the settings vary (the weight decay of
    Table 2, for sources and targets; the source size of Figure 3) gives one table per value, and an
    extra column in the rows.
    """
    plan = Builder(settings, data, models, with_head)
    sources = unique(families[family] for family in settings.sources)
    most = max(plan.examples(name) for name in sources)
    for facts in settings.variations():
        if facts.get("source_size", 0) > most:
            raise InputError(
                f"parameter 'sizes' has {facts['source_size']}, but the largest source task has "
                f"{most} training examples: use at most that"
            )
        plan.varied(facts).family_table(pretrained, families, random)
    return plan.plan(families)


def pairwise_heatmap(
    settings: PairwiseHeatmap,
    pretrained: Run,
    data: Mapping[str, TaskData],
    families: Mapping[str, list[str]],
    random: Run,
    models: Mapping[str, Model] = MappingProxyType({}),
    with_head: bool = False,
) -> Plan:
    """The plan of Figure 2.

    Pretrained, every single source model and every mean of two of them are each finetuned, with
    every seed, on all targets that they were not trained on; and `random`, a model of the same
    architecture never pretrained, for the sanity check.
    """
    plan = Builder(settings, data, models, with_head)
    sources = unique(families[family] for family in settings.sources)
    targets = unique(families[family] for family in settings.targets)
    if len(sources) < 2:
        raise InputError(f"there is no pair of {' '.join(sources)}: name at least two source tasks")
    plan.without_sources("pretrained", pretrained, targets)
    plan.without_sources(RANDOM, random, targets)
    for source_seed in settings.source_seeds:
        made = {name: plan.source(name, pretrained, source_seed) for name in sources}
        pairs = {pair: [made[name] for name in pair] for pair in combinations(sources, 2)}
        bases: list[tuple[str, tuple[str, ...], Run]] = [
            ("intertrained", (name,), model) for name, model in made.items()
        ]
        bases += [
            ("fused", pair, plan.fuse(two, label=f"mean of {' and '.join(pair)}"))
            for pair, two in pairs.items()
        ]
        for base, names, model in bases:
            row = {"source_family": "", "source_seed": source_seed, "sources": names}
            unseen = _unseen(plan, targets, names, settings.clusters)
            if not unseen:
                raise InputError(
                    f"the model of {' and '.join(names)} has no target left, since a source is "
                    f"never its own target, nor is one of its cluster; name more tasks in the "
                    f"target families"
                )
            for target in unseen:
                plan.targets(model, target, base=base, **row)
    return plan.plan(families)


def _unseen(
    plan: Builder, targets: list[str], names: tuple[str, ...], clusters: Mapping[str, list[str]]
) -> list[str]:
    """The targets that none of the named sources was trained on, nor on another of the cluster."""
    known = [target for target in targets if len(plan.sources(target, names)) < len(names)]
    seen = {*names, *known}
    for members in clusters.values():
        if seen.intersection(members):
            seen.update(members)
    return [target for target in targets if target not in seen]


def shrinkage(
    settings: Shrinkage,
    pretrained: Run,
    data: Mapping[str, TaskData],
    families: Mapping[str, list[str]],
    random: Run,
    models: Mapping[str, Model] = MappingProxyType({}),
    with_head: bool = False,
) -> Plan:
    """The plan of the shrinkage experiment.

    For every source family S and target t the updates of fuse(S minus t) and of the intertrained
    model, times each scale; then means of fewer models, with their own norm and rescaled to that of
    fuse(S minus t). Columns of the rows: ``scale``, ``models`` (how many were averaged), ``draw``,
    and ``norm`` ("own" or "fixed"). The "scaled single" is the arm of the family table: the
    intertrained model's update with the norm of the mean's. `random`, a model of the same
    architecture never pretrained, is there for the sanity check.
    """
    plan = Builder(settings, data, models, with_head)
    targets = unique(families[family] for family in settings.targets)
    none = {"scale": 0.0, "models": 0, "draw": 0, "norm": "own"}
    plan.without_sources("pretrained", pretrained, targets, **none)
    plan.without_sources(RANDOM, random, targets, **none)
    source_seeds = settings.source_seeds or settings.seeds
    for source_seed, family, target in product(source_seeds, settings.sources, targets):
        made = plan.made_of(pretrained, family, families[family], target, source_seed)
        row = {"source_family": family, "source_seed": source_seed}
        _scaled(plan, settings.scales, pretrained, target, made, dict(row))
        _drawn(plan, settings, pretrained, target, made, dict(row))
    return plan.plan(families)


def _scaled(plan: Builder, scales, pretrained: Run, target: str, made, row: dict) -> None:
    """The mean and the intertrained model with their updates times each scale."""
    models, fused, picked = made
    for scale, (base, names, model) in product(
        sorted(scales),
        [("fused", tuple(sorted(models)), fused), ("intertrained", (picked,), models[picked])],
    ):
        how = "task_arithmetic", {"scale": scale}, [], pretrained, [model]
        row |= {"scale": scale, "models": len(names), "sources": names, "draw": 0, "norm": "own"}
        plan.targets(plan.fuse_by(*how) if scale != 1 else model, target, base=base, **row)
    shrunk = plan.arm(arm("scaled single"), models, picked, pretrained, 0)
    row |= {"scale": 1.0, "models": 1, "sources": (picked,), "norm": "fixed"}
    plan.targets(shrunk, target, base="scaled single", **row)


def _drawn(plan: Builder, settings: Shrinkage, pretrained, target: str, made, row: dict) -> None:
    """Means of fewer models, drawn at random, with their own norm and with that of the mean of
    all."""
    models, fused, _ = made
    if max(settings.counts) >= len(models):
        raise InputError(
            f"parameter 'counts' has {max(settings.counts)}, but for the target {target} source "
            f"family {row['source_family']!r} has {len(models)} models: use fewer than that"
        )
    for count, draw in product(settings.counts, range(settings.draws)):
        cell = (pretrained.key, row["source_family"], row["source_seed"], target, count, draw)
        names = tuple(sorted(Random(" ".join(map(str, cell))).sample(sorted(models), count)))
        few = [models[name] for name in names]
        mean = plan.fuse(few, f"mean of {' and '.join(names)}") if count > 1 else few[0]
        row |= {"scale": 1.0, "models": count, "sources": names, "draw": draw}
        plan.targets(mean, target, base="drawn", **row | {"norm": "own"})
        rescaled = plan.rescaled(mean, fused, pretrained)
        plan.targets(rescaled, target, base="drawn", **row | {"norm": "fixed"})


def fuse_playground(
    settings: FusePlayground,
    pretrained: Run,
    data: Mapping[str, TaskData],
    models: Mapping[str, Model],
    with_head: bool = False,
) -> Plan:
    """The plan of the playground: pretrained, the single model of the largest training set, and the
    fused model, each finetuned on the target with every seed.

    Of the settings' `models` those that are not in `models` are tasks, whose source models are
    planned here.
    """
    plan, seed = Builder(settings, data, models, with_head), settings.source_seeds[0]
    for name in settings.models:
        if plan.kin(settings.target, name):
            raise InputError(
                f"parameter 'models': the training data of {name} share texts with the target "
                f"{settings.target}; leave it out, choose another target, or split_rule 'paper'"
            )
    made = {name: plan.source(name, pretrained, seed) for name in settings.models}
    single = intertrained("largest", "", list(made), plan.examples)
    plan.without_sources("pretrained", pretrained, [settings.target])
    row = {"source_family": "chosen", "source_seed": seed}
    plan.targets(made[single], settings.target, base="intertrained", **row, sources=(single,))
    how = settings.method, settings.method_settings, settings.weights
    fused = plan.fuse_by(*how, pretrained, list(made.values()))
    plan.targets(fused, settings.target, base="fused", **row, sources=tuple(made))
    sizes = {name: loaded.sizes for name, loaded in data.items()}
    return Plan(list(plan.runs.values()), plan.rows, {"target": [settings.target]}, sizes)


def loss_path(
    settings: LossPath,
    pretrained: Run,
    data: Mapping[str, TaskData],
    families: Mapping[str, list[str]],
    with_head: bool,
    models: Mapping[str, Model] = MappingProxyType({}),
) -> Plan:
    """The plan of Appendix D: straight lines between pretrained, every
    source model and their mean.

    A line is scored on the dev sets of the tasks that its ends were trained on, and on the test
    sets of the targets that no model has seen. Only models `with_head` need the seeds.
    """
    plan = Builder(settings, data, models)
    sources = unique(families[family] for family in settings.sources)
    targets = unique(families[family] for family in settings.targets)
    unseen = [name for name in targets if len(plan.sources(name, sources)) == len(sources)]
    if len(sources) < 2 or not unseen:
        raise InputError(
            "a loss path needs at least two source tasks and a target that is not one of them, "
            f"but got the sources {' '.join(sources)} and the targets {' '.join(targets)}"
        )
    positions = [number / (settings.points - 1) for number in range(settings.points)]
    training = settings.target_training()
    if with_head:
        rate = settings.head_learning_rate
        training = dataclasses.replace(training, learning_rate=rate, dropout=0.0)
    seeds = settings.seeds if with_head else settings.seeds[:1]
    for source_seed in settings.source_seeds:
        made = [plan.source(name, pretrained, source_seed) for name in sources]
        fused = plan.fuse(made, label=f"mean of {' and '.join(settings.sources)}")
        ends = [(PRETRAINED, pretrained, [])]
        ends += [
            (name, model, [] if name in models else [name])
            for name, model in zip(sources, made, strict=True)
        ]
        ends += [(MEAN, fused, [name for name in sources if name not in models])]
        for (start, first, seen), (end, last, seen_too) in combinations(ends, 2):
            splits = dict.fromkeys([*seen, *seen_too], "dev") | dict.fromkeys(unseen, "test")
            for (name, split), seed in product(splits.items(), seeds):
                more = {"positions": positions, "split": split}
                what = {**plan.on_task(name, training, seed), **more}
                label = f"{name} between {start} and {end}"
                row = {"start": start, "end": end, "task": name, "split": split}
                row |= {"head": with_head, "source_seed": source_seed, "seed": seed}
                run = plan.add("line", what, first, last, label=label, task=data[name].task)
                plan.rows.append(row | {"run": run})
    return plan.plan(families)


PAPER_PICKS = {
    "general": ("mnli", "sst2"),
    "nli": ("esnli", "mnli"),
    "twitter": ("sentiment", "emoji"),
}
"""The paper's own intertraining tasks, the second for the first as target (section 3.3)."""


def intertrained(rule: str, family: str, names: list[str], examples: Callable[[str], int]) -> str:
    """The source whose model is intertrained: the one with the most training examples, or the
    paper's."""
    if rule == "largest":
        return max(names, key=lambda name: (examples(name), name))
    for name in PAPER_PICKS.get(family, ()):
        if name in names:
            return name
    raise InputError(
        f"the paper names no intertraining task for the sources {' '.join(names)} of {family!r}: "
        f"set intertraining to 'largest'"
    )


def choose_families(
    settings: Families, tasks: Mapping[str, Task], families: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """The families that the settings name; own families take precedence over built-in ones.

    Raises `InputError` for an unknown family or task, an empty family, a repeated name, or a model
    among targets.
    """
    known = {**families, **settings.families}
    chosen = {}
    for family in unique([settings.sources, settings.targets]):
        if family not in known:
            raise InputError(f"unknown family {family!r}: {nearest(family, known)}")
        names = known[family]
        for name in names:
            if name in tasks or not is_model(name):
                find(name, tasks)
            elif family in settings.targets:
                raise InputError(
                    f"target family {family!r} names the model {name}: name tasks only"
                )
            if names.count(name) > 1:
                raise InputError(f"family {family!r} names {name!r} twice; name it once")
        if not names:
            raise InputError(f"family {family!r} is empty: name at least one task")
        chosen[family] = names
    return chosen


def is_model(name: str) -> bool:
    """Whether the name of a source is not one of a task, but a folder, a Hub id or a run's key: a
    bare word is a task, `./word` a folder."""
    return "/" in name or is_key(name)


def unique(lists) -> list:
    """The members of all lists, each once, in order of first appearance."""
    return list(dict.fromkeys(name for names in lists for name in names))
