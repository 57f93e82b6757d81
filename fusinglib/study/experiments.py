"""From settings to a plan: the data loaded, everything checked before anything is trained."""

import glob
from pathlib import Path

from fusinglib.study import plans
from fusinglib.study.plans import Plan, Run
from fusinglib.study.settings import (
    Families,
    LossPath,
    PairwiseHeatmap,
    Study,
)
from fusinglib.training import data, miniworld, tasks
from fusinglib.training.tasks import MINIWORLD


def plan_experiment(settings: Families) -> Plan:
    """The plan of the experiment that the settings are of.

    Loads the tasks, finds the model, and raises `InputError` for whatever would fail later:
    unknown names, data that are not at hand, labels that the model cannot write.
    """
    known, families = tasks.table(settings.tasks, settings.world_seed)
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
