"""An experiment as pure data: a graph of runs, each named by what it is."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from fusinglib.data import TaskData
from fusinglib.errors import InputError
from fusinglib.settings import FamilyTable, nearest
from fusinglib.tasks import Task, find, leave_out

VERSIONS = {"pretrain": 2, "import": 1, "random": 1, "source": 1, "fuse": 1, "target": 1}
"""The version of each kind of run, raised whenever a change alters its results."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run: its kind, its resolved settings, and the runs it starts from.

    The `key` is the hash of these and of the kind's version; `label` (for people) and `place`
    (where an imported model is found today) are not part of it. The parents of a mean are in
    the order of their keys, which is the order of summation.
    """

    kind: str
    settings: dict
    parents: tuple["Run", ...] = ()
    label: str = ""
    place: str = ""

    @functools.cached_property
    def identity(self) -> dict:
        """What the key is the hash of, as JSON data."""
        return {
            "kind": self.kind,
            "version": VERSIONS[self.kind],
            "settings": self.settings,
            "parents": [parent.key for parent in self.parents],
        }

    @functools.cached_property
    def key(self) -> str:
        """16 hexadecimal digits that name the run."""
        text = json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """The runs of an experiment, parents before children, and the table's rows.

    Each row says which target run stands for which (base, source family, target, seeds).
    `families` are the target families; `sizes` the examples per split of every task.
    """

    runs: list[Run]
    rows: list[dict]
    families: dict[str, list[str]]
    sizes: dict[str, dict[str, int]]


@dataclass
class Builder:
    """Collects the runs and rows of a plan; a run asked for twice is one run."""

    settings: FamilyTable
    data: Mapping[str, TaskData]
    runs: dict[str, Run] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)

    def add(self, kind: str, settings: dict, *parents: Run, label: str) -> Run:
        """The run of this kind, settings and parents."""
        run = Run(kind, settings, parents, label)
        return self.runs.setdefault(run.key, run)

    def finetune(self, kind: str, base: Run, task: Task, seed: int) -> Run:
        """Finetuning `base` on `task`: a source model is kept, of a target only the numbers."""
        training = getattr(self.settings, f"{kind}_training")()
        settings = {
            "task": dataclasses.asdict(task),
            "data": dataclasses.asdict(self.settings.data()),
            "fingerprint": self.data[task.name].fingerprint,
            "training": dataclasses.asdict(training),
            "seed": seed,
        }
        return self.add(kind, settings, base, label=f"{task.name} from {base.label}, seed {seed}")

    def fuse(self, models: list[Run], label: str) -> Run:
        """The mean of `models`."""
        return self.add("fuse", {}, *sorted(models, key=lambda run: run.key), label=label)

    def targets(self, model: Run, task: Task, **row) -> None:
        """Finetune `model` on the target with every seed, for the table's `row`."""
        for seed in self.settings.seeds:
            run = self.finetune("target", model, task, seed)
            self.rows.append({**row, "target": task.name, "seed": seed, "run": run})


def family_table(
    settings: FamilyTable,
    pretrained: Run,
    data: Mapping[str, TaskData],
    families: Mapping[str, list[str]],
    random: Run | None = None,
) -> Plan:
    """The plan of Tables 1 and 3 (study: Experiments 1).

    For every source family S and target t: fuse(S minus t), the intertrained model of S for t,
    pretrained, and `random`, a model of the same architecture never pretrained; each finetuned on
    t with every seed. `data` gives every task's splits.
    """
    plan = Builder(settings, data)
    tasks = {name: loaded.task for name, loaded in data.items()}
    chosen = {family: families[family] for family in settings.targets}
    targets = unique(chosen.values())

    for base, model in {"pretrained": pretrained, "random": random}.items():
        if model:
            plan.runs[model.key] = model
            for name in targets:
                row = {"base": base, "source_family": "", "source_seed": 0, "sources": ""}
                plan.targets(model, tasks[name], **row)
    for source_seed in settings.source_seeds:
        for family in settings.sources:
            for name in targets:
                _bases(plan, pretrained, tasks, family, families[family], name, source_seed)
    sizes = {name: loaded.sizes for name, loaded in data.items()}
    return Plan(list(plan.runs.values()), plan.rows, chosen, sizes)


def _bases(plan, pretrained, tasks, family, members, target, source_seed) -> None:
    """The fused and the intertrained model of one source family, for one target."""
    sources = leave_out(tasks[target], [tasks[name] for name in members])
    if not sources:
        raise InputError(
            f"source family {family!r} has no task left for the target {target!r}, which is never "
            f"its own source; add tasks to the family or leave the target out"
        )
    models = {task.name: plan.finetune("source", pretrained, task, source_seed) for task in sources}
    left_out = "" if len(sources) == len(members) else f" without {target}"
    fused = plan.fuse(list(models.values()), label=f"mean of {family}{left_out}")
    picked = intertrained(plan.settings.intertraining, family, sources, plan.data)
    common = {"source_family": family, "source_seed": source_seed}
    plan.targets(fused, tasks[target], base="fused", **common, sources=" ".join(sorted(models)))
    plan.targets(models[picked], tasks[target], base="intertrained", **common, sources=picked)


PAPER_PICKS = {
    "general": ("mnli", "sst2"),
    "nli": ("esnli", "mnli"),
    "twitter": ("sentiment", "emoji"),
}
"""The paper's own intertraining tasks, the second for the first as target (section 3.3)."""


def intertrained(rule: str, family: str, sources: list[Task], data: Mapping[str, TaskData]) -> str:
    """The source task whose model is intertrained: of the largest training set, or the paper's."""
    names = [task.name for task in sources]
    if rule == "largest":
        return max(names, key=lambda name: (len(data[name].train), name))
    for name in PAPER_PICKS.get(family, ()):
        if name in names:
            return name
    raise InputError(
        f"the paper names no intertraining task for the sources {' '.join(names)} of {family!r}: "
        f"set intertraining to 'largest'"
    )


def choose_families(
    settings: FamilyTable, tasks: Mapping[str, Task], families: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """The families that the settings name, their own ones before the built-in ones.

    Raises `InputError` for an unknown family or task, an empty family, or a task twice in one.
    """
    known = {**families, **settings.families}
    chosen = {}
    for family in unique([settings.sources, settings.targets]):
        if family not in known:
            raise InputError(f"unknown family {family!r}: {nearest(family, known)}")
        names = known[family]
        for name in names:
            find(name, tasks)
            if names.count(name) > 1:
                raise InputError(f"family {family!r} names the task {name!r} twice; name it once")
        if not names:
            raise InputError(f"family {family!r} is empty: name at least one task")
        chosen[family] = names
    return chosen


def unique(lists) -> list:
    """The members of all lists, each once, in order of first appearance."""
    return list(dict.fromkeys(name for names in lists for name in names))
