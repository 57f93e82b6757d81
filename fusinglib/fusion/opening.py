"""Open any model that a user can name."""

from pathlib import Path

from fusinglib.fusion.adapters import merged
from fusinglib.fusion.checkpoints import Checkpoint, locate, opened


def open_checkpoint(
    model: str | Path, allow_pickle: bool = False, weights: bool = True
) -> Checkpoint:
    """What `model` contains, from its headers and configuration; no weights are read.

    Arguments:
        model: a folder, a safetensors file, or a Hub id, with its revision after an `@` if it is to
            be pinned. A folder with a LoRA adapter stands for its base model with the adapter
            merged in.
        allow_pickle: whether `.bin` files may be loaded (weights_only) if there is nothing else.
        weights: whether the weights of a Hub id are downloaded; otherwise their headers are read.

    Raises `InputError` if nothing is found, or if files are damaged or of another kind.
    """
    found = locate(str(model), weights)
    if (found.path / "adapter_config.json").is_file():
        return merged(locate(str(model)), allow_pickle, weights)
    return opened(found, allow_pickle)
