"""Fusing methods: pure functions from the same chunk of every model to that chunk of the result.

Every method takes

    tensors: the same numbers of every model, a sequence of arrays of one shape, float32 (float64
        where the models are),
    weights: a number for every model, float64,
    base: these numbers of the pretrained model, or None where none is given,

and returns an array of that shape and dtype; it must not change its inputs. A function of your own
with this signature can be given instead of a name. Keyword arguments are a method's settings, or
what it needs to know of whole tensors, which `Method` says; one called `name` gets the tensor's.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

Tensors = Sequence[np.ndarray]


def mean(tensors: Tensors, weights=None, base=None) -> np.ndarray:
    """`(t_1 + ... + t_n) / n` ("Fusing finetuned models for better pretraining", section 2), summed
    in the given order; the weights must be equal and are not used."""
    total = tensors[0].copy()
    for tensor in tensors[1:]:
        total += tensor
    total /= len(tensors)
    return total


def means(tensors: Tensors, subsets: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
    """The `mean` of each subset of the tensors, bit for bit: the beginning that a subset shares
    with the next is summed once. All leave-one-out means, in order, take half the additions."""
    shared, begun = None, 0  # the sum of the first `begun` models of this subset
    for subset, following in zip(subsets, [*subsets[1:], ()], strict=True):
        alike = len(os.path.commonprefix([list(subset), list(following)]))
        total = (tensors[subset[0]] if shared is None else shared).copy()
        start, shared = max(begun, 1), total.copy() if alike == max(begun, 1) else None
        for position, number in enumerate(subset[start:], start + 1):
            total += tensors[number]
            if position == alike:
                shared = total.copy()
        begun = 0 if shared is None else alike
        total /= len(subset)
        yield total


def weighted(tensors: Tensors, weights: np.ndarray, base=None) -> np.ndarray:
    """`sum_i w_i t_i / sum_i w_i`. Weights may be zero or negative; their sum must not be zero."""
    return _weighted_sum(tensors, weights / weights.sum())


def fisher(tensors: Tensors, weights, base=None, *, fisher: Tensors = ()) -> np.ndarray:
    """`sum_i w_i F_i t_i / sum_i w_i F_i`, F_i being the diagonal of model i's Fisher information
    (Matena and Raffel 2021, "Merging models with Fisher-weighted averaging", section 3).

    If no model has any information, the result is the weighted mean.
    """
    parts = [weight * values for weight, values in zip(weights, fisher, strict=True)]
    total = sum(parts[1:], start=parts[0])
    top = sum(part * tensor for part, tensor in zip(parts, tensors, strict=True))
    plain = weighted(tensors, weights)
    return np.divide(top, total, out=plain, where=total > 0, casting="same_kind")


def task_arithmetic(tensors: Tensors, weights, base, *, scale: float = 1.0) -> np.ndarray:
    """`base + scale * sum_i w_i (t_i - base)` (Ilharco et al. 2022, "Editing models with task
    arithmetic", section 2). With weights 1 / n and scale 1 it is the mean."""
    return base + _weighted_sum([tensor - base for tensor in tensors], scale * weights)


def ties(
    tensors: Tensors, weights, base, *, scale: float = 1.0, density: float = 0.2, thresholds
) -> np.ndarray:
    """Trim, elect signs, and take the disjoint mean (Yadav et al. 2023, "TIES-Merging", section 3):

        u_i = t_i - base where that is among the largest `density` of its tensor, else 0
        s = sign(sum_i w_i u_i)
        base + scale * sum_{i: sign(w_i u_i) = s} w_i u_i / sum_{i: sign(w_i u_i) = s} w_i

    `thresholds`, (models,), are the smallest magnitudes kept in each model's tensor; ties are all
    kept. The paper trims over the whole model; here every tensor is trimmed separately, as in
    mergekit and peft. Weights must not be negative.
    """
    updates = [tensor - base for tensor in tensors]
    for update, threshold in zip(updates, thresholds, strict=True):
        update[np.abs(update) < threshold] = 0
    weights = weights.astype(base.dtype)
    elected = np.sign(_weighted_sum(updates, weights))
    total, divisor = np.zeros_like(base), np.zeros_like(base)
    for update, weight in zip(updates, weights, strict=True):
        agrees = np.sign(update) == elected
        agrees &= elected != 0
        total += weight * update * agrees
        divisor += weight * agrees
    divisor[divisor == 0] = 1
    return base + base.dtype.type(scale) * total / divisor


def dare(
    tensors: Tensors,
    weights,
    base,
    *,
    scale: float = 1.0,
    density: float = 0.5,
    seed: int = 0,
    random,
) -> np.ndarray:
    """Drop entries of each update at random and rescale the others (Yu et al. 2023, "Language
    models are super Mario", section 3.2):

        base + scale * sum_i w_i k_i (t_i - base) / density

    k_i is 1 where `random`, uniform in [0, 1) and one array for every model, is below `density`;
    `seed` fixes the draw.
    """
    updates = [
        (tensor - base) * (drawn < density) / base.dtype.type(density)
        for tensor, drawn in zip(tensors, random, strict=True)
    ]
    return base + _weighted_sum(updates, scale * weights)


def slerp(tensors: Tensors, weights, base=None, *, angle: float) -> np.ndarray:
    """A point on the arc between two models (Shoemake 1985, "Animating rotation with quaternion
    curves"), each tensor as one vector:

        sin((1 - p) a) / sin(a) * t_1 + sin(p a) / sin(a) * t_2

    with p = w_2 / (w_1 + w_2) and the `angle` a between the two, in radians; an angle of zero (or
    pi, where no arc is the shortest) gives the straight line.
    """
    position = weights[1] / weights.sum()
    sine = np.sin(angle)
    if sine < 1e-6:  # the cosine is known to about 1e-14, an angle near pi to its root
        return _weighted_sum(tensors, np.array([1 - position, position]))
    return _weighted_sum(tensors, np.sin(np.array([1 - position, position]) * angle) / sine)


def _weighted_sum(tensors: Tensors, weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights).astype(tensors[0].dtype)
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += tensor * weight
    return total


class Method(NamedTuple):
    """A method, and what it needs besides the models.

    `needs` names what the engine computes first: "thresholds" and "angle" of whole tensors, which
    takes passes over all inputs before the one that fuses, `random`, or files of `fisher`
    information. `weight` is the default weight of a model (None: 1 / n); `source` is the
    publication.
    """

    combine: Callable
    source: str = ""
    needs: str = ""
    with_base: bool = False
    weight: float | None = None
    cost: str = "one pass"


FUSING = "Choshen et al. 2022, Fusing finetuned models for better pretraining, section 2"

METHODS = {
    "mean": Method(mean, FUSING),
    "weighted": Method(weighted),
    "fisher": Method(
        fisher, "Matena and Raffel 2021, Merging models with Fisher-weighted averaging",
        "fisher", cost="one pass, over twice as many files",
    ),
    "task_arithmetic": Method(
        task_arithmetic, "Ilharco et al. 2022, Editing models with task arithmetic",
        with_base=True, weight=1.0,
    ),
    "ties": Method(
        ties, "Yadav et al. 2023, TIES-Merging", "thresholds",
        with_base=True, weight=1.0, cost="three passes",
    ),
    "dare": Method(
        dare, "Yu et al. 2023, Language models are super Mario", "random",
        with_base=True, weight=1.0,
    ),
    "slerp": Method(
        slerp, "Shoemake 1985, Animating rotation with quaternion curves", "angle",
        cost="two passes",
    ),
}  # fmt: skip
"""Methods by name. A user's own function is a `Method` that needs nothing."""
