"""Find a model by name, and what it was trained on: the only place that does."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from fusinglib.errors import InputError
from fusinglib.fusion.checkpoints import checkpoint
from fusinglib.places import anchored, is_key
from fusinglib.study.plans import Model, Run
from fusinglib.study.settings import Families, FusePlayground, Settings
from fusinglib.study.store import Store
from fusinglib.training import cards, data, miniworld, tasks
from fusinglib.training.tasks import MINIWORLD, Task

Chosen: TypeAlias = Families | FusePlayground
Identities = tuple[tuple[str, str], ...]


def folder_of(name: str, store: Store, revision: str = "", allow_pickle: bool = False) -> Path:
    """The folder of the model `name`: the key of a finished run, a folder (a relative path is one
    from the project), or a Hub id, with a revision or as `id@revision`.

    Raises `InputError` if there is none, or if it is incomplete.
    """
    if is_key(name):
        return model_of(store.find(name), store)
    from fusinglib.training import folders

    path = anchored(name) if name else Path()
    if path.is_dir():
        return folders.locate(str(path), "", allow_pickle)
    place, _, pinned = name.partition("@")
    return folders.locate(place, pinned or revision, allow_pickle)


def model_of(run: Run, store: Store) -> Path:
    """The folder of a finished run's model; a mean that was pruned is fused again."""
    if store.pruned(run):
        from fusinglib.study import steps

        for parent in run.parents:
            model_of(parent, store)
        store.forget(run)
        steps.perform(run, store, "cpu")
    return store.model(run)


def imported(name: str, folder: Path, *tokenizer: Run) -> Run:
    """The run that brings the model `name` from a folder into the store, with the tokenizer of
    another run's model if its own is missing."""
    from fusinglib.training import folders

    identity = {"fingerprint": folders.fingerprint(folder)}
    return Run("import", identity, tokenizer, label=name, place=str(folder))


def base_model(settings: Settings, world: int | None = None) -> tuple[Run, Path | None]:
    """The run that brings the pretrained model into the store, and its folder now (None for the
    miniature world's; `world` is by default the first)."""
    if settings.model == MINIWORLD:
        identity = {
            "world_version": miniworld.VERSION,
            "world_seed": settings.world_seeds[0] if world is None else world,
            "seed": settings.pretraining_seed,
            "steps": settings.pretraining_steps,
        }
        return Run("pretrain", identity, label="miniature T5"), None
    store = Store(settings.store_folder())
    folder = folder_of(settings.model, store, settings.model_revision, settings.allow_pickle)
    from fusinglib.training import folders

    if folders.is_adapter(folder):
        raise InputError(
            f"parameter 'model' is {settings.model!r}, a LoRA adapter: merge it first (fusinglib "
            "fuse ADAPTER --output FOLDER), and name that folder"
        )
    run = imported(settings.model, folder)
    if not store.has(run):
        folders.refuse_infinite(folder)
    return run, folder


def random_model(settings: Settings, pretrained: Run) -> Run:
    """The run that creates a model of the same architecture that was never pretrained."""
    if settings.model == MINIWORLD:
        return Run("pretrain", {**pretrained.settings, "steps": 0}, label="untrained miniature T5")
    seed = {"seed": settings.pretraining_seed}
    return Run("random", seed, (pretrained,), label=f"random weights like {pretrained.label}")


def finetuned_model(
    name: str, settings: Chosen, known: dict[str, Task], store: Store, ancestor: Run
) -> tuple[Model, str]:
    """An existing finetuned model of the pretrained `ancestor`, and what is known about it and
    assumed, in words.

    Raises `InputError` if it does not fit the ancestor (see `folders.refuse_foreign`).
    """
    if is_key(name):
        run = store.find(name)
        folder, notes = model_of(run, store), []
    else:
        folder = folder_of(name, store, allow_pickle=settings.allow_pickle)
        run, notes = _fitting(name, folder, store, ancestor)
    tasks_of, said = trained_on(name, settings, known, run)
    model = Model(run, tasks_of, examples_of(run, tasks_of, settings, known, store))
    return model, "; ".join([*notes, said])


def _fitting(name: str, folder: Path, store: Store, ancestor: Run) -> tuple[Run, list[str]]:
    """The run that imports a finetuned model, checked, and what was chosen in doing so."""
    from fusinglib.training import folders

    notes, tokenizer = [], ()
    if folder.name.startswith("checkpoint-"):
        notes.append(f"{folder.name}{checkpoint(folder.parent)[1]}")
    if folders.is_adapter(folder):
        notes.append(f"a LoRA adapter, merged into {folders.whole(folder).name}")
    if not folders.has_tokenizer(folders.whole(folder)):
        tokenizer = (ancestor,)
        notes.append("it has no tokenizer, so it gets the pretrained model's")
    run = imported(name, folder, *tokenizer)
    if run.settings == ancestor.settings:
        notes.append("it is the pretrained model itself, byte for byte")
    if not store.has(run):
        folders.refuse_infinite(folder)
    with _described(ancestor, store) as pretrained:
        folders.refuse_foreign(folders.whole(folder), pretrained, bool(tokenizer))
    return run, notes


@contextlib.contextmanager
def _described(pretrained: Run, store: Store) -> Iterator[Path]:
    """A folder with the configuration and tokenizer of the pretrained model, finished or not."""
    if pretrained.place or store.has(pretrained):
        yield Path(pretrained.place) if pretrained.place else store.model(pretrained)
        return
    from fusinglib.training import pretraining

    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = miniworld.tokenizer()
        tokenizer.save_pretrained(scratch)
        pretraining.new_model(tokenizer, 0).config.save_pretrained(scratch)
        yield Path(scratch)


def trained_on(
    name: str, settings: Chosen, known: dict[str, Task], run: Run
) -> tuple[Identities, str]:
    """The identities of what the model `name` was trained on, and the source of that: the settings,
    the run that made it, or the card in its folder."""
    if name in settings.trained_on:
        given = settings.trained_on[name]
        found = [tasks.find(task, known).identity for task in given]
        return tuple(found), f"trained on {' '.join(given)} (parameter 'trained_on')"
    if trained := _tasks_behind(run):
        return tuple(trained), f"trained on {' '.join(trained.values())} (its run)"
    found = cards.read(Path(run.place)) if run.place else ()
    if not found:
        return (), (
            "what it was trained on is unknown, so no target leaves it out: name its tasks in "
            "'trained_on'"
        )
    said = ", ".join(" ".join(filter(None, identity)) for identity in found)
    return found, f"trained on {said} (its model card)"


def _tasks_behind(run: Run) -> dict[tuple[str, str], str]:
    """The tasks that a run and all its ancestors were trained on: identities to names."""
    task = run.settings.get("task")
    found = {(task["hub_id"], task["config"]): task["name"]} if task else {}
    for parent in run.parents:
        found |= _tasks_behind(parent)
    return found


def examples_of(
    run: Run, tasks_of: Identities, settings: Chosen, known: dict[str, Task], store: Store
) -> int:
    """The number of training examples a model saw: from its run, or all examples of its available
    tasks."""
    if run.kind == "source" and store.has(run):
        return store.result(run)["n_train"]
    examples = 0
    for task in known.values():
        if tasks.among(task, tasks_of):
            with contextlib.suppress(InputError):  # not at hand
                examples += len(data.load(task, settings.data()).train)
    return examples


def length_of(settings: Settings) -> Callable[[Task, tuple[str, ...]], int]:
    """Counts the tokens of a task's text as the pretrained model reads it; downloads no weights.

    Raises `InputError` if the model is not available.
    """
    if settings.model == MINIWORLD:
        tokenizer, writes = miniworld.tokenizer(), True
    else:
        from fusinglib.fusion import checkpoints
        from fusinglib.training import folders

        folder = anchored(settings.model)
        if is_key(settings.model) or folder.is_dir():
            folder = base_model(settings)[1]
        else:
            wanted = settings.model, settings.model_revision, checkpoints.TEXT_FILES
            folder = checkpoints.snapshot(*wanted)
        assert folder
        tokenizer, writes = folders.tokenizer(folder), folders.is_text_to_text(folder)

    def length(task: Task, text: tuple[str, ...]) -> int:
        read: Any = tokenizer
        if writes:
            return len(read(data.text_input(task, text, settings.text_format))["input_ids"])
        return len(read(*data.pair_input(task, text))["input_ids"])

    return length
