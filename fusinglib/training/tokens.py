"""Token ids of texts: flat arrays, made once and mapped into the memory of all who need them."""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import filelock
import numpy as np
import torch

PARTS = ("input_ids", "token_type_ids")
"""What a model may be given of each text."""


class Tokens:
    """Token ids of many texts, and their segments if given, in flat arrays.

    `flat` has the `PARTS`, int32, text after text; `lengths` how many tokens each text has, and
    `truncated` how many texts were cut. `pad(rows)` makes a batch of some of the texts.
    """

    def __init__(self, flat: Mapping[str, np.ndarray], lengths: np.ndarray, truncated: int, pad_id):
        self.flat, self.lengths, self.truncated, self.pad_id = flat, lengths, truncated, pad_id
        self.starts = np.concatenate([[0], np.cumsum(lengths)])

    @classmethod
    def of(cls, encoded: Mapping[str, Sequence[Sequence[int]]], pad_id: int) -> "Tokens":
        """Those that a tokenizer returns."""
        ids = encoded["input_ids"]
        flat = {
            name: np.fromiter(itertools.chain.from_iterable(encoded[name]), dtype=np.int32)
            for name in PARTS
            if name in encoded
        }
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        cut = sum(bool(one.overflowing) for one in getattr(encoded, "encodings", None) or [])
        return cls(flat, lengths, cut, pad_id)

    def __len__(self) -> int:
        return len(self.lengths)

    def pad(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` and what else there is, int64 (rows, longest of them)."""
        shape = (len(rows), self.lengths[rows].max())
        batch = {name: np.zeros(shape, dtype=np.int64) for name in (*self.flat, "attention_mask")}
        batch["input_ids"] += self.pad_id
        for line, row in enumerate(rows):
            start, length = self.starts[row], self.lengths[row]
            for name, flat in self.flat.items():
                batch[name][line, :length] = flat[start : start + length]
            batch["attention_mask"][line, :length] = 1
        return {name: torch.from_numpy(array) for name, array in batch.items()}


def truncated(splits: Mapping[str, Tokens]) -> float:
    """The share of all texts that were cut to the greatest length, 0 to 1."""
    return sum(one.truncated for one in splits.values()) / sum(map(len, splits.values()))


def made(
    what: dict, encode: Callable[[], dict[str, Mapping]], pad_id: int, cache: Path | None
) -> dict[str, Tokens]:
    """The tokens that `what` names, split by split: of this process, of the cache, or made now.

    `encode` gives what the tokenizer returns for every split. In the cache a folder appears whole,
    named by the hash of `what`; processes wait for one that is making it.
    """
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    if key in _MADE:
        return _MADE[key]
    if cache is None:
        _MADE[key] = {name: Tokens.of(one, pad_id) for name, one in encode().items()}
        return _MADE[key]
    cache.mkdir(exist_ok=True)
    folder = cache / key
    with filelock.FileLock(cache / f"{key}.lock"):
        if not folder.is_dir():
            _write(folder, {name: Tokens.of(one, pad_id) for name, one in encode().items()}, what)
    _MADE[key] = _read(folder, pad_id)
    return _MADE[key]


_MADE: dict[str, dict[str, Tokens]] = {}


def _write(folder: Path, splits: dict[str, Tokens], what: dict) -> None:
    partial = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        for name, tokens in splits.items():
            arrays = {**tokens.flat, "lengths": tokens.lengths}
            for part, array in arrays.items():
                np.save(partial / f"{name}-{part}.npy", array)
        about = {**what, "truncated": {name: one.truncated for name, one in splits.items()}}
        (partial / "tokens.json").write_text(json.dumps(about, indent=1, ensure_ascii=False))
        os.rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(folder: Path, pad_id: int) -> dict[str, Tokens]:
    """The arrays are mapped, not read: all processes share one copy in memory."""
    truncated = json.loads((folder / "tokens.json").read_text())["truncated"]
    return {
        name: Tokens(
            {
                part: np.asarray(np.load(file, mmap_mode="r"))
                for part in PARTS
                if (file := folder / f"{name}-{part}.npy").is_file()
            },
            np.load(folder / f"{name}-lengths.npy"),
            cut,
            pad_id,
        )
        for name, cut in truncated.items()
    }
