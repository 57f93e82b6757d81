"""Models of the Hub that are planned but not downloaded: the headers of their weight files."""

from pathlib import Path

from fusinglib.errors import InputError
from fusinglib.fusion.tensors import REMOTE, TensorInfo


def headers(model: str, revision: str) -> dict[str, TensorInfo]:
    """The tensors of a Hub id's safetensors files, read by range requests; raises `InputError`."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        found = huggingface_hub.get_safetensors_metadata(model, revision=revision)
    except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError) as error:
        raise InputError(
            f"Model {model} has no safetensors files that can be read ({error}): name another."
        ) from error
    except Exception as error:  # the client raises many kinds of errors
        raise InputError(
            f"The headers of model {model} cannot be read from the Hub ({type(error).__name__}): "
            "go online, or download it first."
        ) from error
    return {
        name: TensorInfo(Path(f"{model}/{file}"), name, tensor.dtype, tuple(tensor.shape), REMOTE)
        for file, said in found.files_metadata.items()
        for name, tensor in said.tensors.items()
    }
