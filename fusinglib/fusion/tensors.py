"""Tensors in files: the safetensors format, read chunk by chunk and validated.

Numbers are numpy's; bfloat16, which numpy lacks, is the upper half of a float32.
"""

import json
import math
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusinglib.errors import InputError

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one number, by safetensors' name of its dtype."""

FLOATS = ("F64", "F32", "F16", "BF16")
STEP = 2**16
"""How many numbers of an adapter's update are computed together; chunks begin at multiples of
it."""

LONGEST_HEADER = 100_000_000
MOST_TENSORS, MOST_DIMENSIONS = 100_000, 64
"""In bytes; the safetensors library has the same limit."""


REMOTE = -1
"""Where a tensor starts that has not been downloaded."""


class TensorInfo(NamedTuple):
    """Where a tensor is stored, and what its file's header says about it.

    `start` is its first byte in the file; `data` holds its bytes if it comes from a pickle, and
    `update` what an adapter adds to it.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    data: np.ndarray | None = None
    update: "LowRank | None" = None

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * SIZES[self.dtype]


class LowRank(NamedTuple):
    """An adapter's update of a matrix, `scale * left @ right`, in the dtype of its two parts."""

    left: np.ndarray
    right: np.ndarray
    scale: float

    def chunk(self, start: int, stop: int) -> np.ndarray:
        """The numbers `start` to `stop` of the update, flattened row by row.

        Multiplied in fixed steps, because the bits of a product depend on how many rows are
        multiplied together.
        """
        width, values = self.right.shape[1], np.empty(stop - start, self.left.dtype)
        for begin in range(start, stop, STEP):
            end, first = min(begin + STEP, stop), begin // width
            rows = (self.left[first : -(-end // width)] @ self.right).reshape(-1)
            values[begin - start : end - start] = rows[begin - first * width : end - first * width]
        return self.scale * values


def headers_of_file(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, validated.

    The header's length (8 bytes, little endian), the header as JSON, then the bytes of the
    tensors, which must fill the rest without gaps and without overlaps.
    """
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            text = stream.read(length).decode()
        if text.count('"data_offsets"') > MOST_TENSORS:
            raise ValueError(f"more than {MOST_TENSORS:,} tensors")
        header = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        header.pop("__metadata__", None)
        tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
        _check_layout(tensors, 8 + length, size)
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise InputError(
            f"{file} is truncated or not a safetensors file ({error}): download or save it again."
        ) from error
    return tensors


def _unique(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _stored(file: Path, name: str, entry, data: int) -> TensorInfo:
    """The tensor that an entry of the header describes; `data` is where the header ends."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            if len(shape) > MOST_DIMENSIONS:
                raise ValueError(f"tensor {name}: {len(shape):,} dimensions")
            counts = [*shape, start, end]
            if all(type(count) is int and 0 <= count < 2**63 for count in counts):
                size = math.prod(shape) * SIZES.get(dtype, 1)
                if end < start or (dtype in SIZES and end - start != size):
                    raise ValueError(
                        f"tensor {name}: {end - start} bytes for {dtype} of shape {shape}"
                    )
                return TensorInfo(file, name, dtype, tuple(shape), data + start)
    raise ValueError(f"tensor {name}: dtype, shape or data_offsets are missing or out of range")


def _check_layout(tensors: dict[str, TensorInfo], start: int, size: int) -> None:
    if any(tensor.dtype not in SIZES for tensor in tensors.values()):
        return  # quantized: has its own error
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.bytes)):
        if tensor.start != start:
            raise ValueError(f"tensor {tensor.name} overlaps another one, or a gap is before it")
        start += tensor.bytes
    if start != size:
        raise ValueError(f"its tensors end at byte {start} of {size}")


# Numbers.


class Reader:
    """Reads chunks of stored tensors; files stay open until `close`."""

    def __init__(self):
        self._files: dict[Path, int] = {}

    def raw(self, tensor: TensorInfo, start: int, stop: int, into: np.ndarray) -> None:
        """The bytes of the numbers `start` to `stop`, into an array of as many uint8.

        Raises `InputError` if the file has shrunk since its header was read.
        """
        size = SIZES[tensor.dtype]
        if tensor.data is not None:
            into[:] = tensor.data[start * size : stop * size]
            return
        done, position = 0, tensor.start + start * size
        while done < len(into):
            count = read_at(self._open(tensor.file), into[done:], position + done)
            if not count:
                raise InputError(f"{tensor.file} shrank while it was being read: fuse again.")
            done += count

    def numbers(self, tensor: TensorInfo, start: int, stop: int, into: np.ndarray) -> None:
        """The numbers `start` to `stop` of a floating tensor, into an array of float32 (float64
        for F64, and for others if wanted), exactly; an adapter's update is added."""
        if into.itemsize == 8 and tensor.dtype != "F64":
            single = np.empty(stop - start, np.float32)
            self.numbers(tensor, start, stop, single)
            into[:] = single
            return
        if tensor.dtype in ("F32", "F64"):
            self.raw(tensor, start, stop, into.view(np.uint8))
        else:
            narrow = into.view(np.uint16)[: stop - start]
            self.raw(tensor, start, stop, narrow.view(np.uint8))
            widen(narrow.copy(), tensor.dtype, into)
        if tensor.update:
            into += tensor.update.chunk(start, stop)

    def _open(self, file: Path) -> int:
        if file not in self._files:
            opened = os.open(file, os.O_RDONLY | BINARY)
            if self._files.setdefault(file, opened) != opened:  # another thread was faster
                os.close(opened)
        return self._files[file]

    def __del__(self):
        self.close()

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])


BINARY = getattr(os, "O_BINARY", 0)
"""A flag without which Windows changes the ends of lines."""

_TURN = threading.Lock()


def read_at(file: int, into: np.ndarray, position: int) -> int:
    """Read bytes from a position of an open file; how many there were.

    Where a system knows no such call (Windows), threads take turns to move and read.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file, [into.data], position)
    with _TURN:
        os.lseek(file, position, os.SEEK_SET)
        content = os.read(file, len(into))
    into[: len(content)] = np.frombuffer(content, np.uint8)
    return len(content)


def write_at(file: int, content: np.ndarray, position: int) -> None:
    """Write bytes to a position of an open file, as `read_at` reads them."""
    view = content.data
    while view:
        if hasattr(os, "pwrite"):
            count = os.pwrite(file, view, position)
        else:
            with _TURN:
                os.lseek(file, position, os.SEEK_SET)
                count = os.write(file, view)
        view, position = view[count:], position + count


def write_file(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file of small float32 arrays, in the order of their names."""
    header: dict[str, dict] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(tensors):
        shape, start, end = list(tensors[name].shape), end, end + tensors[name].nbytes
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            opened.write(np.ascontiguousarray(tensors[name], np.float32).tobytes())


def widen(narrow: np.ndarray, dtype: str, into: np.ndarray) -> None:
    """F16 or BF16, as uint16, to float32, exactly."""
    if dtype == "F16":
        into[:] = narrow.view(np.float16)
    else:  # a bfloat16 is the upper half of a float32
        np.left_shift(narrow, 16, out=into.view(np.uint32), dtype=np.uint32)


ROUNDED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.float32}
"""numpy's types for dtypes; a bfloat16 is rounded from float32."""


def widest(dtypes: Iterable[str]) -> str:
    """The narrowest dtype that holds the numbers of all these exactly."""
    found = set(dtypes)
    if found == {"F16", "BF16"}:
        return "F32"
    return max(found, key=lambda dtype: (SIZES[dtype], dtype))


def narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 or float64 rounded to `dtype` (to nearest, ties to even), as bytes."""
    with np.errstate(over="ignore"):
        values = values.astype(ROUNDED[dtype], copy=False)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        odd = (bits >> 16) & 1
        values = ((bits + (0x7FFF + odd)) >> 16).astype(np.uint16)
    return values.view(np.uint8)


def finite(stored: np.ndarray, dtype: str) -> bool:
    """Whether numbers, given as bytes, contain neither NaN nor infinity."""
    if dtype == "BF16":  # all exponent bits are set
        return bool(((stored.view(np.uint16) & 0x7F80) != 0x7F80).all())
    floats = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    return bool(np.isfinite(stored.view(floats[dtype])).all())
