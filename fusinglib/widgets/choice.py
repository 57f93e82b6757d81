"""What can be chosen in the playground: finetuned models, whether trained already or not, and
targets."""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fusinglib.errors import InputError
from fusinglib.places import is_key
from fusinglib.study.plans import Builder, Run
from fusinglib.study.resolver import base_model, finetuned_model
from fusinglib.study.settings import FusePlayground
from fusinglib.study.store import Store
from fusinglib.training import data, tasks


@dataclass(frozen=True)
class Candidate:
    """A finetuned model that may be chosen.

    `name` is what the settings' `models` call it: a task (whose source model is trained if
    necessary), a run key, a folder or a Hub id. `trained_on` are the identities of its tasks, as
    far as known; `dev` its accuracy there in percent; `key` that of its run, if it has one; `group`
    where it comes from: "tasks", "in the store" or "named by you".
    """

    name: str
    label: str
    trained_on: tuple[tuple[str, str], ...] = ()
    train: int = 0
    dev: float = math.nan
    megabytes: float = math.nan
    date: str = ""
    key: str = ""
    group: str = "tasks"

    def knows(self, target: tasks.Task) -> bool:
        """Whether it may have been trained on the target."""
        return tasks.among(target, self.trained_on)

    @property
    def facts(self) -> str:
        """Size, dev accuracy and date in words."""
        if self.key and not self.date:
            return f"{self.train:,} examples, not trained yet"
        words = [f"{self.train:,} examples"] if self.train else []
        words += [] if math.isnan(self.dev) else [f"dev {self.dev:.1f} %"]
        words += [] if math.isnan(self.megabytes) else [f"{self.megabytes:.1f} MB"]
        return ", ".join([*words, self.date] if self.date else words)


def candidates(settings: FusePlayground) -> list[Candidate]:
    """The available models: the source models of tasks, then all others in the store with the same
    pretrained model, then those that only the settings name.

    Tasks are all of the miniature world or, for real data, those that the settings name, since all
    27 take minutes to load; and own ones.
    """
    known, _ = settings.known_tasks()
    if settings.tasks != tasks.MINIWORLD:
        known = [name for name in known if name in settings.models or name not in tasks.TASKS]
    store, (pretrained, _) = Store(settings.store_folder()), base_model(settings)
    found = [of_task(name, settings, store, pretrained) for name in known]
    found = [one for one in found if one]
    taken = {one.key for one in found}
    for path in sorted(store.root.glob("source/*/run.json")):
        if path.parent.name not in taken and (path.parent / "model").is_dir():
            said = json.loads(path.read_text())
            if said["parents"] == [pretrained.key]:
                one = of_run(said["key"], said, store)
                label = _told_apart(said, pretrained, settings)
                found.append(replace(one, label=label, group="in the store"))
    names = {one.name for one in found}
    return found + [named(name, settings) for name in settings.models if name not in names]


def _told_apart(said: dict, pretrained: Run, settings: FusePlayground) -> str:
    """The label of a run in the store without what all have in common, and with what distinguishes
    its training from that of the tasks' source models."""
    usual = asdict(settings.source_training())
    words = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in said["settings"]["training"].items()
        if name in usual and value != usual[name]
    ]
    return ", ".join([said["label"].replace(f" from {pretrained.label}", ""), *words])


def of_task(name: str, settings: FusePlayground, store: Store, pretrained: Run) -> Candidate | None:
    """The source model of a task, finished or not; none if its data are not available."""
    task = settings.known_tasks()[0][name]
    try:
        loaded = data.load(task, settings.data())
    except InputError:
        return None
    seed = settings.source_seeds[0]
    run = Builder(settings, {name: loaded}).finetune("source", pretrained, name, seed)
    if store.has(run) and store.model(run).is_dir():
        return of_run(name, {"key": run.key, "label": name, "settings": run.settings}, store)
    return Candidate(name, name, (task.identity,), len(loaded.train), key=run.key)


def of_run(name: str, said: dict, store: Store) -> Candidate:
    """The model of a finished source run, as its `run.json` and `result.json` describe it."""
    folder = store.root / "source" / said["key"]
    result = json.loads((folder / "result.json").read_text())
    size = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    day = time.strftime("%Y-%m-%d", time.localtime(folder.stat().st_mtime))
    task = said["settings"]["task"]
    train = said["settings"].get("examples", result["n_train"])
    trained_on = ((task["hub_id"], task["config"]),)
    label = said["label"] if name == said["key"] else name
    return Candidate(
        name, label, trained_on, train, 100 * result["dev"], size / 1e6, day, said["key"]
    )


def named(name: str, settings: FusePlayground) -> Candidate:
    """A model named by its key in the store, as a folder, or by its Hub id.

    Raises `InputError` if there is no such model.
    """
    store, known = Store(settings.store_folder()), settings.known_tasks()[0]
    model, _ = finetuned_model(name, settings, known, store, base_model(settings)[0])
    run, folder = model.run, Path(model.run.place or store.path(model.run) / "model")
    if run.kind == "source":
        made = of_run(name, {**run.identity, "key": run.key, "label": run.label}, store)
        return replace(made, trained_on=model.trained_on, group="named by you")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    label = run.label if is_key(name) else "/".join(folder.parts[-2:])
    return Candidate(
        name, label, model.trained_on, model.examples, megabytes=size / 1e6, group="named by you"
    )


def objections(chosen: list[Candidate], target: tasks.Task, least: int = 2) -> list[str]:
    """Why these models cannot be fused for this target: too few, or trained on it."""
    found = [
        f"{one.label} was trained on {target.name}, the target: untick it, or choose another target"
        for one in chosen
        if one.knows(target)
    ]
    few = {1: "tick a model", 2: "tick at least two models, or scale the update of one"}[least]
    return found + [few] * (len(chosen) < least)
