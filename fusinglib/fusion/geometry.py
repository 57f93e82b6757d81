"""Where models are in weight space: their updates, and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusinglib.fusion import compatibility
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.fusion.streaming import Buffer, Chunk, chunks, stream
from fusinglib.fusion.tensors import TensorInfo

FAR = 3.0
"""A model is an outlier if its update is this many times longer or shorter than the median one, or
if its cosines with all others are negative."""


@dataclass(frozen=True)
class Updates:
    """The updates of models: their weights minus those of the model they were finetuned from.

    `products` are the inner products of all pairs of updates, float64 (models, models), and
    `origin` is the norm of the weights that they start from; both in units of the weights.
    """

    names: Sequence[str]
    products: np.ndarray
    origin: float

    @property
    def norms(self) -> np.ndarray:
        """Euclidean norms of the updates, (models,)."""
        with np.errstate(invalid="ignore"):  # non-finite weights are refused elsewhere
            return np.sqrt(np.diag(self.products))

    @property
    def cosines(self) -> np.ndarray:
        """Cosines between updates, (models, models); NaN for an update of zero."""
        with np.errstate(all="ignore"):
            return self.products / np.outer(self.norms, self.norms)

    @property
    def distances(self) -> np.ndarray:
        """Euclidean distances between models, (models, models)."""
        squares = np.diag(self.products)
        return np.sqrt(np.maximum(squares[:, None] + squares - 2 * self.products, 0))

    def mixed(self, weights: Sequence[float], name: str) -> "Updates":
        """The same with one more model, `name`, whose update is the weighted sum of these."""
        whole = np.vstack([np.eye(len(self.names)), weights])
        return Updates([*self.names, name], whole @ self.products @ whole.T, self.origin)

    def plane(self) -> tuple[np.ndarray, float]:
        """The models in the two dimensions that best preserve their distances: classical scaling,
        that is, principal components of their weights (Torgerson 1952).

        Returns: coordinates, (models, 2), in units of the weights, and the fraction of the summed
        squared distances between all pairs that these two dimensions preserve, 0 to 1.
        """
        count = len(self.names)
        centering = np.eye(count) - 1 / count
        values, vectors = np.linalg.eigh(centering @ self.products @ centering)
        largest = np.maximum(values[::-1][:2], 0)
        return vectors[:, ::-1][:, :2] * np.sqrt(largest), float(
            largest.sum() / values.clip(0).sum()
        )

    def rows(self) -> list[dict]:
        """A row per model: its name, the `norm` of its update, relative to that of the weights it
        starts from, and its `cosines` with the others (None for itself)."""
        cosines = self.cosines
        with np.errstate(all="ignore"):
            norms = self.norms / self.origin
        return [
            {
                "model": name,
                "norm": float(norms[i]),
                "cosines": [None if j == i else float(one) for j, one in enumerate(cosines[i])],
            }
            for i, name in enumerate(self.names)
        ]

    def out_of_line(self) -> dict[str, str]:
        """Models that do not look finetuned from the same ancestor, and why."""
        median, notes = float(np.median(self.norms)), {}
        if not np.isfinite(median):
            return notes
        for i, (name, norm) in enumerate(zip(self.names, self.norms, strict=True)):
            others = np.delete(self.cosines[i], i)
            if median and (norm > FAR * median or norm < median / FAR):
                notes[name] = (
                    f"its update is {norm / median:.2g} times as long as the median one: does it "
                    f"come from another ancestor?"
                )
            elif len(others) > 1 and others.max() < 0:
                notes[name] = "its update points away from all the others"
        return notes


def updates(origin: str | Path, models: Sequence[str | Path], names: Sequence[str] = ()) -> Updates:
    """The updates of `models`, finetuned from `origin`; folders are read chunk by chunk.

    Only bodies are compared; heads are left out. `models` may hold `origin` itself, whose update is
    zero. `names` are the names to use; by default those of the models. Raises `InputError` where
    `fusion.fuse` would.
    """
    opened = [open_checkpoint(model) for model in models]
    found = compatibility.compare(opened, open_checkpoint(origin), heads=False)
    compatibility.refuse(found.problems)
    names = names or [model.name for model in opened]
    return of_bodies(names, found.bodies[-1], found.bodies[:-1])


def of_bodies(
    names: Sequence[str], base: dict[str, TensorInfo], bodies: Sequence[dict[str, TensorInfo]]
) -> Updates:
    """The updates of bodies, over all floating-point tensors of `base`.

    Equivalent: `products = U @ U.T`, where a row of U holds all these weights of a model minus
    those of the base, in float64.
    """
    everyone = [*bodies, base]
    total, parts = np.zeros((len(everyone),) * 2), {}

    def add(chunk: Chunk, buffer: Buffer) -> int:
        rows = np.stack(buffer.numbers(chunk)).astype(np.float64)
        with np.errstate(all="ignore"):  # fusing reports non-finite values
            rows[:-1] -= rows[-1]
            parts[chunk.name, chunk.start] = rows @ rows.T
        return 0

    stream(chunks(sorted(n for n in base if base[n].is_float), everyone), add)
    for key in sorted(parts):  # one order, whichever thread was first
        total += parts[key]
    return Updates(list(names), total[:-1, :-1], float(np.sqrt(total[-1, -1])))
