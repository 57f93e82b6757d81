"""Where models lie: straight lines between them, and the inner products of their updates."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fusinglib import fusion
from fusinglib.data import TaskData
from fusinglib.models import BaseModel
from fusinglib.settings import Training
from fusinglib.training import finetune

CHUNK = 2**20
"""How many numbers of each model are looked at together."""


def move(model: BaseModel, end: BaseModel, position: float) -> None:
    """Move the body of `model` in place along the straight line to that of `end`.

    Each tensor becomes `(1 - position) * model + position * end`, in fp32; position 0 leaves it
    as it is and 1 makes it equal to `end`, bit for bit. Integer tensors stay.
    """
    there = end.body.state_dict()
    between = {  # made before any is put in place: tied weights have several names
        name: torch.lerp(tensor, there[name], position) if tensor.is_floating_point() else tensor
        for name, tensor in model.body.state_dict().items()
    }
    model.body.load_state_dict(between)


def fit_head(model: BaseModel, data: TaskData, training: Training, seed: int) -> None:
    """Fit the fresh head of a classifier on its frozen body, for all of `max_steps` batches.

    Nothing is stopped early, so that every body gets the same steps. The model should have been
    opened without dropout, which would make the body's features noisy here and not where the head
    is scored.
    """
    steps = training.max_steps
    model.body.requires_grad_(False)
    finetune(model, data, dataclasses.replace(training, eval_every=steps, patience=steps), seed)


def inner_products(origin: str | Path, models: Sequence[str | Path]) -> np.ndarray:
    """Inner products of the models' updates, their differences from the model `origin`.

    Equivalent: `U @ U.T`, a row of U being all weights of a model's body less those of `origin`,
    one after the other. Float64 (models, models). The folders are read tensor by tensor; heads are
    left out. `models` may hold `origin` itself, whose update is zero. Raises `InputError` where
    `fusion.fuse` would.
    """
    total = np.zeros((len(models), len(models)))
    for tensors in fusion.bodies([origin, *models]):
        chunks = [tensor.flatten().split(CHUNK) for tensor in tensors]
        for start, *others in zip(*chunks, strict=True):
            updates = torch.stack(others).double() - start.double()
            total += (updates @ updates.T).numpy()
    return total


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
