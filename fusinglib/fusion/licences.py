"""The licences that models' cards name."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from fusinglib.fusion.checkpoints import Checkpoint

FRONT = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)
NAME = re.compile(r"[\w.-]{1,64}")


def licence(card: Path) -> str:
    """The licence in the front matter of a card, as the Hub calls it; "" if there is none."""
    try:
        found = FRONT.search(card.read_text(encoding="utf-8"))
        said = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return ""
    name = said.get("license") if isinstance(said, dict) else None
    return name if isinstance(name, str) and NAME.fullmatch(name) else ""


def common(models: Sequence[Checkpoint]) -> tuple[str, str]:
    """The licence that all models name, or ""; and what a reader should know if they do not."""
    folders = [m.source if m.source.is_dir() else m.source.parent for m in models]
    found = [licence(folder / "README.md") for folder in folders]
    if len(set(found)) == 1:
        return found[0], ""
    said = ", ".join(f"{m.name}: {one or 'none'}" for m, one in zip(models, found, strict=True))
    return "", f"licences differ ({said}): the card names none"
