"""From settings to a plan: the data loaded, everything checked before anything is trained."""

import contextlib
import dataclasses
import glob
from collections.abc import Callable
from pathlib import Path

from fusinglib.errors import InputError, nearest
from fusinglib.study import plans
from fusinglib.study.plans import Model, Plan, Run
from fusinglib.study.settings import Families, FusePlayground, LossPath, PairwiseHeatmap, Study
from fusinglib.study.store import Store
from fusinglib.training import cards, data, miniworld, tasks
from fusinglib.training.tasks import MINIWORLD, Task


def plan_experiment(settings: Families) -> Plan:
    """The plan of the experiment that the settings are of.

    In the miniature world it is made in every one of `world_seeds`, and its rows say which.

    Loads the tasks, finds the model, and raises `InputError` for whatever would fail later:
    unknown names, data that are not at hand, labels that the model cannot write.
    """
    if settings.tasks != MINIWORLD:
        return _plan(settings, 0)
    return plans.together({seed: _plan(settings, seed) for seed in settings.world_seeds})


def _plan(settings: Families, world: int) -> Plan:
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
                f"parameter 'trained_on' names {name!r}, which is no model of a source family: "
                f"{nearest(name, given) if given else 'there are none'}"
            )
    models, notes = _models(given, settings, known)
    notes += _of_data(loaded)
    with_head = bool(folder) and not _writes_labels(folder, loaded, settings)
    common = (settings, pretrained, loaded, chosen)
    if isinstance(settings, PairwiseHeatmap):
        plan = plans.pairwise_heatmap(*common, models)
    elif isinstance(settings, LossPath):
        plan = plans.loss_path(*common, with_head, models)
    else:
        random = random_model(settings, pretrained) if settings.random_row else None
        plan = plans.family_table(*common, random, models)
        sizes = {name: len(one.train) for name, one in loaded.items()}
        sizes |= {name: model.examples for name, model in models.items()}
        notes += _largest(plan, sizes) if settings.intertraining == "largest" else []
    return dataclasses.replace(plan, notes=tuple(notes))


def _of_data(loaded: dict[str, data.TaskData]) -> list[str]:
    """What loading the tasks had to say, task by task."""
    return [f"{name}: {note}" for name, one in loaded.items() for note in one.notes]


def _largest(plan: Plan, sizes: dict[str, int]) -> list[str]:
    """Which source models the rule of the largest training set took, and from how many rows."""
    picks: dict[str, dict] = {}
    for row in plan.rows:
        if row["base"] == "intertrained":
            picks.setdefault(row["source_family"], {})[row["sources"]] = None
    rows = {
        name: f"{size:,} training rows" if size else "training rows unknown"
        for name, size in sizes.items()
    }
    return [
        f"{family}: intertrained is {', then '.join(f'{name} ({rows[name]})' for name in names)}"
        for family, names in picks.items()
    ]


def _models(
    names: list[str], settings: Families | FusePlayground, known: dict[str, Task]
) -> tuple[dict[str, Model], list[str]]:
    """The finetuned models among the sources, and what is known of their training, in words."""
    found, notes, store = {}, [], Store(settings.store_folder())
    for name in names:
        run = _finished_model(name, store, settings.allow_pickle)
        folder = Path(run.place) if run.place else None
        tasks_of, said = trained_on(name, settings, known, run, folder)
        found[name] = Model(run, tasks_of, _examples(run, tasks_of, settings, known, store))
        notes.append(f"{name}: {said}")
    return found, notes


def _examples(
    run: Run,
    tasks_of: tuple[tuple[str, str], ...],
    settings: Families | FusePlayground,
    known: dict[str, Task],
    store: Store,
) -> int:
    """How many training examples a model saw: as its run says, or all of its tasks at hand."""
    if run.kind == "source" and store.has(run):
        return store.result(run)["n_train"]
    examples = 0
    for task in known.values():
        if tasks.among(task, tasks_of):
            with contextlib.suppress(InputError):  # not at hand
                examples += len(data.load(task, settings.data()).train)
    return examples


def trained_on(
    name: str,
    settings: Families | FusePlayground,
    known: dict[str, Task],
    run: Run | None,
    folder: Path | None,
) -> tuple[tuple[tuple[str, str], ...], str]:
    """The identities of what the model `name` was trained on, and who says so: the settings, the
    run that made it, or the card in its folder."""
    if name in settings.trained_on:
        given = settings.trained_on[name]
        found = [tasks.find(task, known).identity for task in given]
        return tuple(found), f"trained on {' '.join(given)} (parameter 'trained_on')"
    if trained := _tasks_behind(run) if run else {}:
        return tuple(trained), f"trained on {' '.join(trained.values())} (its run)"
    found = cards.read(folder) if folder else ()
    if not found:
        return (), (
            "what it was trained on is unknown, so no target leaves it out: name its tasks in "
            "'trained_on'"
        )
    said = ", ".join(" ".join(filter(None, identity)) for identity in found)
    return found, f"trained on {said} (its model card)"


def _tasks_behind(run: Run) -> dict[tuple[str, str], str]:
    """The tasks that a run and all that it was made from were trained on: identities to names."""
    task = run.settings.get("task")
    found = {(task["hub_id"], task["config"]): task["name"]} if task else {}
    for parent in run.parents:
        found |= _tasks_behind(parent)
    return found


def _plan_playground(settings: FusePlayground, world: int, known: dict[str, Task]) -> Plan:
    """The plan of the playground; each of its models is a task, or a model that is there."""
    pretrained, folder = base_model(settings, world)
    target = tasks.find(settings.target, known)
    models, notes = _models([n for n in settings.models if n not in known], settings, known)
    for name in settings.models:
        of = models[name].trained_on if name in models else [known[name].identity]
        if tasks.among(target, of):
            raise InputError(
                f"parameter 'models': {name} was trained on the target {target.name}, which is "
                f"never its own source; leave it out or choose another target"
            )
    names = plans.unique([[settings.target], [n for n in settings.models if n in known]])
    loaded = {name: data.load(known[name], settings.data()) for name in names}
    if folder:
        _writes_labels(folder, loaded, settings)
    plan = plans.fuse_playground(settings, pretrained, loaded, models)
    return dataclasses.replace(plan, notes=(*notes, *_of_data(loaded)))


def _finished_model(name: str, store: Store, allow_pickle: bool) -> Run:
    """The run of a finetuned model that is there already: by its key in the store, or brought in
    from a folder or the Hub."""
    if plans.is_key(name):
        return store.find(name)
    from fusinglib.training import models

    place, _, revision = name.partition("@")
    folder = models.locate(place, revision, allow_pickle)
    identity = {"fingerprint": models.fingerprint(folder)}
    return Run("import", identity, label=name, place=str(folder))


def _writes_labels(folder: Path, loaded: dict, settings: Study) -> bool:
    """Whether the model writes its labels as text, if so having checked that it can write them."""
    from fusinglib.training import models  # torch: needed only for models that are at hand

    if not models.is_text_to_text(folder):
        return False
    models.check_labels(folder, [one.task for one in loaded.values()], settings.text_format)
    return True


def base_model(settings: Study, world: int | None = None) -> tuple[Run, Path | None]:
    """The run that brings the pretrained model into the store, and where it is found today.

    `model` is "miniworld" (that of a world, by default the first), a Hub id, a model folder, or the
    key of a run of the store.
    """
    if settings.model == MINIWORLD:
        world = {
            "world_version": miniworld.VERSION,
            "world_seed": settings.world_seeds[0] if world is None else world,
            "seed": settings.pretraining_seed,
            "steps": settings.pretraining_steps,
        }
        return Run("pretrain", world, label="miniature T5"), None
    from fusinglib.training import models

    made = list(settings.store_folder().glob(f"*/{glob.escape(settings.model)}/model"))
    folder = models.locate(
        str(made[0]) if made else settings.model, settings.model_revision, settings.allow_pickle
    )
    identity = {"fingerprint": models.fingerprint(folder)}
    return Run("import", identity, label=settings.model, place=str(folder)), folder


def text_length(settings: Study) -> tuple[Callable[[str], int], str]:
    """How long a text is for the model that the settings name, and in what: its tokens, or words
    where the model is not at hand."""
    try:
        folder = base_model(settings)[1]
    except InputError:
        return lambda text: len(text.split()), "words"
    from fusinglib.training import models

    tokenizer = models.tokenizer(folder) if folder else miniworld.tokenizer()
    return lambda text: len(tokenizer(text)["input_ids"]), "tokens"


def random_model(settings: Study, pretrained: Run) -> Run:
    """The run that makes a model of the same architecture that was never pretrained."""
    if settings.model == MINIWORLD:
        return Run("pretrain", {**pretrained.settings, "steps": 0}, label="untrained miniature T5")
    seed = {"seed": settings.pretraining_seed}
    return Run("random", seed, (pretrained,), label=f"random weights like {pretrained.label}")
