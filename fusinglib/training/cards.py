"""Model cards: what a finetuned model was trained on, said in the metadata of its README.md."""

from pathlib import Path

import yaml

from fusinglib.errors import InputError
from fusinglib.training.tasks import Task


def write(folder: Path, task: Task, accuracy: float) -> None:
    """Put a card into the model's `folder`, as the Transformers Trainer would: the task that it was
    finetuned on, and its test accuracy there, a fraction."""
    data = {"name": task.name, "type": task.hub_id, "config": task.config, "split": "test"}
    result = {
        "task": {"type": "text-classification"},
        "dataset": data,
        "metrics": [{"type": "accuracy", "value": round(accuracy, 4)}],
    }
    about = {
        "library_name": "transformers",
        "tags": ["fusinglib"],
        "model-index": [{"name": task.name, "results": [result]}],
    }
    front = yaml.safe_dump(about, sort_keys=False)
    text = f"---\n{front}---\n# Finetuned on {task.name}\n\n{task.hub_id} ({task.config}).\n"
    (folder / "README.md").write_text(text, encoding="utf-8")


def read(folder: Path) -> tuple[tuple[str, str], ...]:
    """The data sets that the card in `folder` names: (Hub id, config), "" for no config.

    They stand in `model-index`, as the Trainer writes it, or in `datasets`. Raises `InputError` for
    metadata that are no YAML.
    """
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if not text.startswith("---\n"):
        return ()
    try:
        said = yaml.safe_load(text.split("---\n")[1]) or {}
    except yaml.YAMLError as error:
        raise InputError(f"the metadata of {card} are no YAML: mend it or remove it") from error
    results = [one for index in said.get("model-index") or [] for one in index.get("results") or []]
    named = [one["dataset"] for one in results if "type" in one.get("dataset", {})]
    found = [(one["type"], str(one.get("config") or one.get("args") or "")) for one in named]
    return tuple(dict.fromkeys(found or [(name, "") for name in said.get("datasets") or []]))
