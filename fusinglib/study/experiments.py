"""From settings to a plan: data are loaded and everything is checked before anything is trained."""

import dataclasses
from pathlib import Path
from typing import Any

from fusinglib.errors import InputError, nearest
from fusinglib.study import plans
from fusinglib.study.arms import RANDOM
from fusinglib.study.plans import Model, Plan
from fusinglib.study.resolver import base_model, finetuned_model, random_model
from fusinglib.study.settings import (
    Families,
    FamilyTable,
    FusePlayground,
    LossPath,
    PairwiseHeatmap,
    Settings,
    Shrinkage,
)
from fusinglib.study.store import Store
from fusinglib.training import data, tasks
from fusinglib.training.tasks import MINIWORLD, Task


def plan_experiment(settings: Settings) -> Plan:
    """The plan of the experiment of these settings.

    In the miniature world it covers every one of `world_seeds`, and its rows say which.

    Loads the tasks, finds the model, and raises `InputError` for whatever would fail later: unknown
    names, unavailable data, labels that the model cannot write.
    """
    if settings.tasks != MINIWORLD:
        return _plan(settings, 0)
    return plans.together({seed: _plan(settings, seed) for seed in settings.world_seeds})


def _plan(settings: Any, world: int) -> Plan:
    known, families = settings.known_tasks(world)
    if isinstance(settings, FusePlayground):
        return _plan_playground(settings, world, known)
    chosen = plans.choose_families(settings, known, families)
    pretrained, folder = base_model(settings, world)
    names = plans.unique(chosen.values())
    loaded = {name: data.load(known[name], settings.data()) for name in names if name in known}
    given = [name for name in names if name not in known]
    for name in settings.trained_on:
        if name not in given:
            raise InputError(
                f"parameter 'trained_on' names {name!r}, which is not a model of any source "
                f"family: {nearest(name, given) if given else 'there are none'}"
            )
    models, notes = _models(given, settings, known, pretrained)
    notes += [*_of_data(loaded), *_kin(loaded, chosen, settings)]
    notes += _clusters(chosen, settings, known)
    with_head = bool(folder) and not _writes_labels(folder, loaded, settings)
    common = (settings, pretrained, loaded, chosen)
    random = random_model(settings, pretrained)
    if isinstance(settings, PairwiseHeatmap):
        plan = plans.pairwise_heatmap(*common, random, models, with_head)
    elif isinstance(settings, Shrinkage):
        plan = plans.shrinkage(*common, random, models, with_head)
    elif isinstance(settings, LossPath):
        plan = plans.loss_path(*common, with_head, models)
    else:
        has_random = RANDOM in [one.name for one in settings.further]
        plan = plans.family_table(*common, random if has_random else None, models, with_head)
        sizes = {name: len(one.train) for name, one in loaded.items()}
        sizes |= {name: model.examples for name, model in models.items()}
        notes += _largest(plan, sizes) if settings.intertraining == "largest" else []
    return dataclasses.replace(plan, notes=tuple(notes))


def _of_data(loaded: dict[str, data.TaskData]) -> list[str]:
    """Where the splits come from and their sizes, and the notes from loading the tasks."""
    alike: dict[str, list[str]] = {}
    for name, one in loaded.items():
        sources = ", ".join(f"{split} = {one.sources[split]}" for split in data.SPLITS)
        sizes = " + ".join(f"{size:,}" for size in one.sizes.values())
        alike.setdefault(sources, []).append(f"{name} {sizes}")
    splits = [f"splits ({sources}): {', '.join(tasks)}" for sources, tasks in alike.items()]
    return splits + [f"{name}: {note}" for name, one in loaded.items() for note in one.notes]


def _kin(
    loaded: dict[str, data.TaskData], families: dict[str, list[str]], settings: Families
) -> list[str]:
    """Which source tasks are left out for which targets because they share texts."""
    sources, targets = (
        plans.unique(families[family] for family in named)
        for named in (settings.sources, settings.targets)
    )
    builder = plans.Builder(settings, loaded)
    return [
        f"{target}: {source} is left out as well, since {_shared(loaded[target], loaded[source])}"
        for target in targets
        for source in sources
        if source != target and source in loaded and builder.kin(target, source)
    ]


def _shared(target: data.TaskData, source: data.TaskData) -> str:
    """What a source has in common with a target, in words."""
    if target.shares_files(source):
        return "it reads the same files"
    share = 100 * data.overlap(target, source)
    return f"its training split shares texts with {share:.0f} % of the test examples"


def _clusters(
    families: dict[str, list[str]], settings: Families, known: dict[str, Task]
) -> list[str]:
    """Which targets count as one."""
    if not isinstance(settings, FamilyTable | PairwiseHeatmap | Shrinkage):
        return []
    targets = plans.unique(families[family] for family in settings.targets)
    said = []
    for name, members in settings.clusters.items():
        there = [member for member in members if tasks.find(member, known).name in targets]
        if there and name in targets and name not in members:
            raise InputError(
                f"parameter 'clusters' has a cluster {name!r}, and a target is called so as well: "
                "give the cluster another name"
            )
        if len(there) > 1:
            said.append(
                f"{name}: in differences and claims these targets count as one, their mean: "
                f"{', '.join(there)}"
            )
    return said


def _largest(plan: Plan, sizes: dict[str, int]) -> list[str]:
    """Which source models the rule of the largest training set chose, and from how many rows."""
    picks: dict[str, dict] = {}
    for row in plan.rows:
        if row["base"] == "intertrained":
            picks.setdefault(row["source_family"], {})[row["sources"][0]] = None
    return [
        f"{family}: intertrained is {', then '.join(_picked(name, sizes) for name in names)}"
        for family, names in picks.items()
    ]


def _picked(name: str, sizes: dict[str, int]) -> str:
    """A model that was picked for the size of its training set, and how far that is known."""
    if sizes[name]:
        return f"{name} ({sizes[name]:,} training rows)"
    return (
        f"{name} (the last by name, since no number of training rows is known: name the models' "
        "tasks in 'trained_on')"
    )


def _models(
    names: list[str],
    settings: Families | FusePlayground,
    known: dict[str, Task],
    pretrained: plans.Run,
) -> tuple[dict[str, Model], list[str]]:
    """The finetuned models among the sources, and what is known about them, in words.

    Raises `InputError` if one does not fit the pretrained model, or if two are the same.
    """
    found, notes, store = {}, [], Store(settings.store_folder())
    for name in names:
        found[name], said = finetuned_model(name, settings, known, store, pretrained)
        notes.append(f"{name}: {said}")
        for other in found:
            if other != name and found[other].run.key == found[name].run.key:
                raise InputError(
                    f"the models {other} and {name} are equal, byte for byte: name one of them"
                )
    return found, notes


def _plan_playground(settings: FusePlayground, world: int, known: dict[str, Task]) -> Plan:
    """The plan of the playground; each of its models is a task or an existing model."""
    pretrained, folder = base_model(settings, world)
    target = tasks.find(settings.target, known)
    given = [name for name in settings.models if name not in known]
    models, notes = _models(given, settings, known, pretrained)
    for name in settings.models:
        of = models[name].trained_on if name in models else [known[name].identity]
        if tasks.among(target, of):
            raise InputError(
                f"parameter 'models': {name} was trained on the target {target.name}, and a target "
                "is never its own source; leave it out or choose another target"
            )
    names = plans.unique([[settings.target], [n for n in settings.models if n in known]])
    loaded = {name: data.load(known[name], settings.data()) for name in names}
    with_head = bool(folder) and not _writes_labels(folder, loaded, settings)
    plan = plans.fuse_playground(settings, pretrained, loaded, models, with_head)
    sizes = {name: len(one.train) for name, one in loaded.items()}
    sizes |= {name: model.examples for name, model in models.items()}
    notes += _largest(plan, sizes)
    return dataclasses.replace(plan, notes=(*notes, *_of_data(loaded)))


def _writes_labels(folder: Path, loaded: dict, settings: Settings) -> bool:
    """Whether the model writes its labels as text; if so, checks that it can write them."""
    from fusinglib.training import folders, models  # import torch

    folders.tokenizer(folder)
    if not folders.is_text_to_text(folder):
        return False
    models.check_labels(folder, [one.task for one in loaded.values()], settings.text_format)
    return True
