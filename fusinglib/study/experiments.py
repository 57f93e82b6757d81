"""From settings to a plan: the data loaded, everything checked before anything is trained."""

import dataclasses
import glob
import re
from pathlib import Path

from fusinglib.errors import InputError
from fusinglib.study import plans
from fusinglib.study.plans import Plan, Run
from fusinglib.study.settings import Families, FusePlayground, LossPath, PairwiseHeatmap, Study
from fusinglib.study.store import Store
from fusinglib.training import data, miniworld, tasks
from fusinglib.training.tasks import MINIWORLD, Task


def plan_experiment(settings: Families) -> Plan:
    """The plan of the experiment that the settings are of.

    Loads the tasks, finds the model, and raises `InputError` for whatever would fail later:
    unknown names, data that are not at hand, labels that the model cannot write.
    """
    known, families = tasks.table(settings.tasks, settings.world_seed)
    if isinstance(settings, FusePlayground):
        return _plan_playground(settings, known)
    chosen = plans.choose_families(settings, known, families)
    pretrained, folder = base_model(settings)
    loaded = {
        name: data.load(known[name], settings.data()) for name in plans.unique(chosen.values())
    }
    with_head = bool(folder) and not _writes_labels(folder, loaded, settings)
    if isinstance(settings, PairwiseHeatmap):
        return plans.pairwise_heatmap(settings, pretrained, loaded, chosen)
    if isinstance(settings, LossPath):
        return plans.loss_path(settings, pretrained, loaded, chosen, with_head)
    random = random_model(settings, pretrained) if settings.random_row else None
    return plans.family_table(settings, pretrained, loaded, chosen, random)


def _plan_playground(settings: FusePlayground, known: dict[str, Task]) -> Plan:
    """The plan of the playground; each of its models is a task, or a model that is there."""
    pretrained, folder = base_model(settings)
    target, store = tasks.find(settings.target, known), Store(settings.store_folder())
    models = {
        name: None if name in known else _finished_model(name, store) for name in settings.models
    }
    sizes = {name: store.result(run).get("n_train", 0) for name, run in models.items()
             if run and store.has(run)}  # fmt: skip
    for name, run in models.items():
        trained_on = run.settings.get("task") if run else dataclasses.asdict(known[name])
        if trained_on and (trained_on["hub_id"], trained_on["config"]) == target.identity:
            raise InputError(
                f"parameter 'models': {name} was trained on the target {target.name}, which is "
                f"never its own source; leave it out or choose another target"
            )
    names = plans.unique([[settings.target], [name for name in models if name in known]])
    loaded = {name: data.load(known[name], settings.data()) for name in names}
    sizes |= {name: len(loaded[name].train) for name in models if name in known}
    if folder:
        _writes_labels(folder, loaded, settings)
    return plans.fuse_playground(settings, pretrained, loaded, models, sizes)


def _finished_model(name: str, store: Store) -> Run:
    """The run of a finetuned model that is there already: by its key in the store, or brought in
    from a folder or the Hub."""
    if re.fullmatch("[0-9a-f]{16}", name):
        return store.find(name)
    from fusinglib.training import models

    folder = models.locate(*(name.split("@") if "@" in name else (name, "")))
    identity = {"fingerprint": models.fingerprint(folder)}
    return Run("import", identity, label=name, place=str(folder))


def _writes_labels(folder: Path, loaded: dict, settings: Study) -> bool:
    """Whether the model writes its labels as text, if so having checked that it can write them."""
    from fusinglib.training import models  # torch: needed only for models that are at hand

    if not models.is_text_to_text(folder):
        return False
    models.check_labels(folder, [one.task for one in loaded.values()], settings.text_format)
    return True


def base_model(settings: Study) -> tuple[Run, Path | None]:
    """The run that brings the pretrained model into the store, and where it is found today.

    `model` is "miniworld", a Hub id, a model folder, or the key of a run of the store.
    """
    if settings.model == MINIWORLD:
        world = {
            "world_version": miniworld.VERSION,
            "world_seed": settings.world_seed,
            "seed": settings.pretraining_seed,
            "steps": settings.pretraining_steps,
        }
        return Run("pretrain", world, label="miniature T5"), None
    from fusinglib.training import models

    made = list(settings.store_folder().glob(f"*/{glob.escape(settings.model)}/model"))
    folder = models.locate(str(made[0]) if made else settings.model, settings.model_revision)
    identity = {"fingerprint": models.fingerprint(folder)}
    return Run("import", identity, label=settings.model, place=str(folder)), folder


def random_model(settings: Study, pretrained: Run) -> Run:
    """The run that makes a model of the same architecture that was never pretrained."""
    if settings.model == MINIWORLD:
        return Run("pretrain", {**pretrained.settings, "steps": 0}, label="untrained miniature T5")
    seed = {"seed": settings.pretraining_seed}
    return Run("random", seed, (pretrained,), label=f"random weights like {pretrained.label}")
