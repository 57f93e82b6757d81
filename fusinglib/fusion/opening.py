"""Any model that a person can name, opened."""

from pathlib import Path

from fusinglib.fusion.adapters import merged
from fusinglib.fusion.checkpoints import Checkpoint, locate, opened


def open_checkpoint(model: str | Path, allow_pickle: bool = False) -> Checkpoint:
    """What `model` holds, by its headers and configuration; no weights are read.

    Arguments:
        model: a folder, a safetensors file, or a Hub id, with its revision after an `@` if it is to
            be pinned. A folder with a LoRA adapter stands for its base model with the adapter
            merged in.
        allow_pickle: whether `.bin` files may be opened (weights only) where there is nothing else.

    Raises `InputError` where nothing is found, and for files that are damaged or of other kinds.
    """
    path, name = locate(str(model))
    if (path / "adapter_config.json").is_file():
        return merged(path, name, allow_pickle)
    return opened(path, name, allow_pickle)
