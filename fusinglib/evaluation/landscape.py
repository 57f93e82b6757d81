"""Where models lie: the inner products of their updates, and what follows from them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusinglib.fusion import compatibility
from fusinglib.fusion.opening import open_checkpoint


def inner_products(origin: str | Path, models: Sequence[str | Path]) -> np.ndarray:
    """Inner products of the models' updates, their differences from the model `origin`.

    Equivalent: `U @ U.T`, a row of U being all weights of a model's body less those of `origin`,
    one after the other. Float64 (models, models). The folders are read piece by piece; heads are
    left out. `models` may hold `origin` itself, whose update is zero. Raises `InputError` where
    `fusion.fuse` would.
    """
    found = compatibility.compare([open_checkpoint(model) for model in models],
                                  open_checkpoint(origin), heads=False)  # fmt: skip
    compatibility.refuse(found.problems)
    return compatibility.inner_products(found.bodies[-1], found.bodies[:-1])[:-1, :-1]


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosines between updates from their inner products; NaN for an update of zero."""
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.outer(norms, norms)


def distances(products: np.ndarray) -> np.ndarray:
    """Euclidean distances between models from the inner products of their updates."""
    squares = np.diag(products)
    return np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))


def plane(products: np.ndarray) -> tuple[np.ndarray, float]:
    """The models in the two dimensions that keep their distances best: classical scaling, which is
    the principal components of their weights (Torgerson 1952).

    Returns: coordinates, (models, 2), in the unit of the weights, and the share of the summed
    squared distances between all pairs that these two dimensions keep, 0 to 1.
    """
    count = len(products)
    centering = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(centering @ products @ centering)
    largest = np.maximum(values[::-1][:2], 0)
    return vectors[:, ::-1][:, :2] * np.sqrt(largest), float(largest.sum() / values.clip(0).sum())
