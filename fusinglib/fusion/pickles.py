"""Weights in `.bin` files, loaded only if the user asks for it."""

import zipfile
from pathlib import Path

from fusinglib.errors import InputError, optional
from fusinglib.fusion.tensors import TensorInfo


def unpickled(files: list[Path]) -> dict[str, TensorInfo]:
    """The tensors of `.bin` files, memory-mapped and loaded with weights_only; the first of tied
    ones."""
    torch = optional("torch")

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16",
             torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16",
             torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}  # fmt: skip
    tensors, seen = {}, set()
    for file in files:
        try:
            mmap = zipfile.is_zipfile(file)  # files from torch before 1.6 are not zip files
            content = torch.load(file, map_location="cpu", mmap=mmap, weights_only=True)
        except Exception as error:  # torch raises many kinds of errors, with advice not to follow
            reason = type(error).__name__
            raise InputError(
                f"{file} cannot be opened as weights only ({reason}): it is damaged, or holds more "
                "than weights."
            ) from error
        for name, tensor in content.items() if isinstance(content, dict) else ():
            known = isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided
            if not (known and tensor.dtype in names and isinstance(name, str)):
                raise InputError(f"{file} holds {name!r}, which is not a tensor of a known dtype.")
            place = file, tensor.data_ptr(), tensor.shape, tensor.stride()
            if tensor.numel() and place in seen:
                continue
            seen.add(place)
            data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy()
            tensors[name] = TensorInfo(
                file, name, names[tensor.dtype], tuple(tensor.shape), data=data
            )
    return tensors
