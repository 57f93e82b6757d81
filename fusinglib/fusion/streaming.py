"""Read several models in parallel, chunk by chunk, with a few threads: memory is bounded by a
chunk.

A tensor's chunks begin at multiples of `CHUNK` numbers whatever the number of models, so that
neither hashes nor random draws depend on how many are read together.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np
import xxhash

from fusinglib.fusion.tensors import SIZES, Reader, TensorInfo

CHUNK = 2**16
"""How many numbers are hashed together; reads are multiples of it."""

DIGEST = 16
"""Bytes of a chunk's hash."""

BUFFER = 2**23
"""Bytes that a thread reads from all models together, unless one chunk of each is more."""

POLL = 0.1
"""Seconds between progress updates."""


class Chunk(NamedTuple):
    """The numbers `start` to `stop` of the tensor `name` of every model."""

    name: str
    start: int
    stop: int
    tensors: list[TensorInfo]


class Buffer:
    """A thread's buffer: the same numbers of every model, one row each.

    `hashes`, if given, collects the hashes of all chunks that are read, in their order, for every
    model and tensor.
    """

    def __init__(self, reader: Reader, hashes: dict | None = None):
        self.reader, self.hashes = reader, hashes
        self.memory = np.empty(0, np.uint8)

    def raw(self, chunk: Chunk) -> list[np.ndarray]:
        """The bytes of every model's numbers as stored."""
        rows = self._rows(chunk, SIZES[chunk.tensors[0].dtype])
        for model, (tensor, row) in enumerate(zip(chunk.tensors, rows, strict=True)):
            self.reader.raw(tensor, chunk.start, chunk.stop, row)
            self._hash(model, chunk, row)
        return rows

    def numbers(self, chunk: Chunk) -> list[np.ndarray]:
        """Every model's numbers as float32 (float64 if one of them is F64)."""
        dtype = computed(*(tensor.dtype for tensor in chunk.tensors))
        rows = [row.view(dtype) for row in self._rows(chunk, dtype.itemsize)]
        for model, (tensor, row) in enumerate(zip(chunk.tensors, rows, strict=True)):
            self.reader.numbers(tensor, chunk.start, chunk.stop, row)
            self._hash(model, chunk, row)
        return rows

    def _rows(self, chunk: Chunk, itemsize: int) -> list[np.ndarray]:
        length = (chunk.stop - chunk.start) * itemsize
        if len(self.memory) < length * len(chunk.tensors):
            self.memory = np.empty(length * len(chunk.tensors), np.uint8)
        count = len(chunk.tensors)
        return list(self.memory[: length * count].reshape(count, length))

    def _hash(self, model: int, chunk: Chunk, row: np.ndarray) -> None:
        if self.hashes is None:
            return
        own = computed(chunk.tensors[model].dtype)
        if row.dtype != np.uint8 and row.dtype != own:  # a model's hash is that of its own numbers
            row = row.astype(own)
        digests = self.hashes.get((model, chunk.name))
        if digests is None:  # another thread may be faster
            room = bytearray(DIGEST * -(-chunk.tensors[model].size // CHUNK))
            digests = self.hashes.setdefault((model, chunk.name), room)
        step = CHUNK * row.nbytes // (chunk.stop - chunk.start)
        view = row.view(np.uint8)
        for number, start in enumerate(range(0, len(view), step), chunk.start // CHUNK):
            digest = xxhash.xxh3_128_digest(view[start : start + step].data)
            digests[DIGEST * number : DIGEST * (number + 1)] = digest


def not_finite(tensors: dict[str, TensorInfo]) -> list[str]:
    """The names of the tensors that contain NaN or infinity, sorted."""
    floats, found = [name for name in tensors if tensors[name].is_float], set()

    def look(chunk: Chunk, buffer: Buffer) -> int:
        if not np.isfinite(buffer.numbers(chunk)[0]).all():
            found.add(chunk.name)
        return 0

    stream(chunks(floats, [tensors]), look)
    return sorted(found)


def computed(*dtypes: str) -> np.dtype:
    """The dtype in which numbers stored as these are computed."""
    return np.dtype(np.float64 if "F64" in dtypes else np.float32)


def chunks(
    names: Sequence[str],
    bodies: Sequence[dict[str, TensorInfo]],
    widths: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Chunk]:
    """The named tensors of several models, chunk by chunk; of those with `widths`, in whole
    rows."""
    for name in names:
        tensors = [body[name] for body in bodies if name in body]  # the base has only floats
        first = tensors[0]
        sizes = [SIZES[tensor.dtype] for tensor in tensors]
        itemsize = max(*sizes, 4 if first.is_float else 1)
        unit = math.lcm(CHUNK, widths.get(name, 1))
        length = max(BUFFER // len(bodies) // itemsize // unit, 1) * unit
        for start in range(0, first.size, length):
            yield Chunk(name, start, min(start + length, first.size), tensors)


def threads() -> int:
    """How many threads read: one for every core of this process, at most eight."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)


Item = TypeVar("Item")


def stream(
    work: Iterator[Item],
    do: Callable[[Item, Buffer], int],
    hashes: dict | None = None,
    show: Callable[[int], None] | None = None,
) -> None:
    """Have threads work through `work`.

    `do(item, buffer)` returns a count of bytes; `show` gets their running sum; `hashes` collects
    those of all chunks. The first error stops all threads and is raised.
    """
    lock, stopped, reader, done = threading.Lock(), threading.Event(), Reader(), [0]

    def follow() -> None:
        buffer = Buffer(reader, hashes)
        while not stopped.is_set():
            with lock:
                item = next(work, None)
            if item is None:
                return
            try:
                count = do(item, buffer)
            except BaseException:
                stopped.set()
                raise
            with lock:
                done[0] += count

    try:
        with ThreadPoolExecutor(threads()) as pool:
            try:
                futures = [pool.submit(follow) for _ in range(threads())]
                left = futures
                while left:
                    left = wait(left, POLL, FIRST_EXCEPTION).not_done
                    if show:
                        show(done[0])
            except BaseException:
                stopped.set()
                raise
        for future in futures:
            future.result()
    finally:
        reader.close()
