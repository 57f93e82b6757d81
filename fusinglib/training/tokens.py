"""Token ids of texts: flat arrays, computed once and memory-mapped by all processes."""

import contextlib
import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fusinglib.integrity import problems, seal, staged, write_json
from fusinglib.leases import Leases
from fusinglib.training.settings import Numbers

PARTS = ("input_ids", "token_type_ids")
"""What a model may get for each text."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of labelled texts, in flat arrays.

    `flat` has the `PARTS`, int32, text after text. For each text there are its start and its
    length, int64, its label id, int64, and whether it was truncated, bool.
    """

    flat: Mapping[str, np.ndarray]
    starts: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    cut: np.ndarray
    pad_id: int

    @classmethod
    def of(
        cls, encoded: Mapping[str, Sequence[Sequence[int]]], labels: Numbers, pad_id: int
    ) -> "Tokens":
        """From what a tokenizer returns, and the texts' labels."""
        ids = encoded["input_ids"]
        flat = {
            name: np.fromiter(itertools.chain.from_iterable(encoded[name]), dtype=np.int32)
            for name in PARTS
            if name in encoded
        }
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        cut = np.zeros(len(ids), dtype=bool)
        for row, one in enumerate(getattr(encoded, "encodings", None) or []):
            cut[row] = bool(one.overflowing)
        return cls(flat, np.cumsum(lengths) - lengths, lengths, np.asarray(labels), cut, pad_id)

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: Numbers) -> "Tokens":
        """The texts at `rows`, in that order; their token ids are shared, not copied."""
        starts, lengths, labels = self.starts[rows], self.lengths[rows], self.labels[rows]
        return Tokens(self.flat, starts, lengths, labels, self.cut[rows], self.pad_id)

    def same_as(self, other: "Tokens") -> bool:
        """Whether the texts have the same token ids, and are padded with the same."""
        arrays = {**self.flat, "lengths": self.lengths}
        others = {**other.flat, "lengths": other.lengths}
        return (
            self.pad_id == other.pad_id
            and arrays.keys() == others.keys()
            and all(np.array_equal(array, others[name]) for name, array in arrays.items())
        )

    def pad(self, rows: Numbers, left: bool = False) -> dict[str, torch.Tensor]:
        """A batch of some of the texts: `input_ids`, `attention_mask` and other inputs, int64
        (rows, longest text), padded on the right, or on the `left`."""
        starts, lengths = self.starts[rows], self.lengths[rows]
        there = np.arange(lengths.max()) < lengths[:, None]
        there = there[:, ::-1] if left else there
        batch = {"attention_mask": there.astype(np.int64)}
        for name, flat in self.flat.items():
            batch[name] = np.full(there.shape, self.pad_id if name == "input_ids" else 0)
            texts = [flat[s : s + n] for s, n in zip(starts, lengths, strict=True)]
            batch[name][there] = np.concatenate(texts)
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor in the processor's memory, copied to a device; a GPU is not waited for."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


@dataclass(frozen=True)
class Encoded:
    """A task's splits as one model reads them, with the notes about the data (see `TaskData`)."""

    splits: dict[str, Tokens]
    revision: str | None
    notes: tuple[str, ...]

    @property
    def truncated(self) -> float:
        """The fraction of all texts that were truncated, 0 to 1."""
        return float(np.concatenate([one.cut for one in self.splits.values()]).mean())


POLL = 0.1
"""Seconds between looks at what another process computes."""

FORMAT = 2
"""Of the files in the cache."""

ARRAYS = ("starts", "lengths", "labels", "cut")


def cached(what: dict, encode: Callable[[], Encoded], cache: Path) -> Encoded:
    """The tokens that `what` identifies, from the cache or computed by `encode` and cached.

    A cache folder is named by the hash of `what` and appears complete; processes wait for the one
    that computes it (see `leases`), and a corrupt one is recomputed. The arrays are memory-mapped:
    all processes share one copy.
    """
    what = {**what, "format": FORMAT}
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    cache.mkdir(exist_ok=True)
    folder, leases = cache / key, Leases(cache)
    while not folder.is_dir() or problems(folder):
        if not leases.take(key):
            time.sleep(POLL)
            continue
        with leases.renewing():
            if problems(folder):
                shutil.rmtree(folder)
            if not folder.is_dir():
                _write(folder, encode(), what)
    return _read(folder)


def _write(folder: Path, encoded: Encoded, what: dict) -> None:
    with contextlib.suppress(FileExistsError), staged(folder) as partial:
        partial.mkdir()
        for name, tokens in encoded.splits.items():
            arrays = {**tokens.flat, **{each: getattr(tokens, each) for each in ARRAYS}}
            for part, array in arrays.items():
                np.save(partial / f"{name}-{part}.npy", array)
        pad_ids = {name: tokens.pad_id for name, tokens in encoded.splits.items()}
        about = {"pad_ids": pad_ids, "revision": encoded.revision, "notes": encoded.notes, **what}
        write_json(partial / "tokens.json", about)
        seal(partial)


def _read(folder: Path) -> Encoded:
    about = json.loads((folder / "tokens.json").read_text())
    splits = {}
    for name, pad_id in about["pad_ids"].items():
        files = {part: folder / f"{name}-{part}.npy" for part in (*PARTS, *ARRAYS)}
        arrays = {
            part: np.asarray(np.load(file, mmap_mode="r"))
            for part, file in files.items()
            if file.is_file()
        }
        flat = {part: arrays.pop(part) for part in PARTS if part in arrays}
        splits[name] = Tokens(flat, **arrays, pad_id=pad_id)
    return Encoded(splits, about["revision"], tuple(about["notes"]))
