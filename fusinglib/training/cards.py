"""Model cards: what a finetuned model was trained on, said in the metadata of its README.md."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fusinglib.errors import InputError
from fusinglib.training.tasks import Task

huggingface_hub.utils.logging.set_verbosity_error()


def write(folder: Path, task: Task, accuracy: float) -> None:
    """Put a card into the model's `folder`, as the Transformers Trainer would: the task that it was
    finetuned on, and its test accuracy there, a fraction."""
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

    They stand in `model-index`, as the Trainer writes it, or in `datasets`. Raises `InputError` for
    metadata that cannot be read.
    """
    file = folder / "README.md"
    if not file.is_file():
        return ()
    try:
        card = ModelCard.load(file, ignore_metadata_errors=True).data
    except Exception as error:  # of the YAML parser, or of what the metadata should be
        raise InputError(
            f"the metadata of {file} cannot be read: correct or remove them "
            f"({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    found = [
        (str(result.dataset_type), str(result.dataset_config or _config(result.dataset_args)))
        for result in card.eval_results or []
    ]
    listed = [card.datasets] if isinstance(card.datasets, str) else card.datasets or []
    known = {name for name, _ in found}
    return tuple(dict.fromkeys(found + [(str(n), "") for n in listed if str(n) not in known]))


def _config(arguments) -> str:
    """The configuration among the arguments of a data set, which older Trainers wrote instead."""
    return arguments.get("config", "") if isinstance(arguments, dict) else arguments or ""
