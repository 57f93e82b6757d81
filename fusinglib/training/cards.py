"""Model cards: what a finetuned model was trained on, in the metadata of its README.md."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load

from fusinglib.errors import InputError
from fusinglib.training.tasks import Task


def write(folder: Path, task: Task, accuracy: float) -> None:
    """Write a card into the model's `folder`, as the Transformers Trainer would: the task that it
    was finetuned on, and its test accuracy there, a fraction."""
    result = EvalResult(
        task_type="text-classification", dataset_type=task.hub_id, dataset_name=task.name,
        dataset_config=task.config, dataset_split="test", metric_type="accuracy",
        metric_value=round(accuracy, 4),
    )  # fmt: skip
    about = ModelCardData(
        library_name="transformers", tags=["fusinglib"], model_name=task.name, eval_results=[result]
    )
    text = f"# Finetuned on {task.name}\n\n{task.hub_id} ({task.config}).\n"
    ModelCard(f"---\n{about.to_yaml()}\n---\n{text}").save(folder / "README.md")


def read(folder: Path) -> tuple[tuple[str, str], ...]:
    """The data sets that the card in `folder` names: (Hub id, config), "" for no config.

    They are in `model-index`, as the Trainer writes it, or in `datasets`. Raises `InputError` for
    metadata that cannot be read.
    """
    file = folder / "README.md"
    if not file.is_file():
        return ()
    try:
        said = metadata_load(file) or {}  # ModelCard.load drops results that lack a metric
        results = [one for index in said.get("model-index") or [] for one in index["results"] or []]
        named = [one["dataset"] for one in results if "type" in one.get("dataset", {})]
    except Exception as error:  # from the YAML parser, or from metadata of another shape
        raise InputError(
            f"the metadata of {file} cannot be read: correct or remove it ({type(error).__name__}: "
            f"{' '.join(str(error).split())})"
        ) from error
    found = [(str(one["type"]), _config(one)) for one in named]
    listed = said.get("datasets") or []
    known = {name for name, _ in found}
    for name in [listed] if isinstance(listed, str) else listed:
        if str(name) not in known:
            found.append((str(name), ""))
    return tuple(dict.fromkeys(found))


def _config(dataset: dict) -> str:
    """The configuration of a data set, which older Trainers wrote among its arguments."""
    arguments = dataset.get("args") or ""
    inside = arguments.get("config", "") if isinstance(arguments, dict) else arguments
    return str(dataset.get("config") or inside)
