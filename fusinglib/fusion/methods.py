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
    values = weights.astype(tensors[0].dtype)
    return _weighted_sum(tensors, values) / values.sum()


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


def regmean(
    tensors: Tensors, weights, base=None, *, alpha: float = 0.9, gram: Tensors = ()
) -> np.ndarray:
    """For the weights of linear layers, the matrix whose outputs are nearest to those of all models
    on their own inputs (Jin et al. 2022, "Dataless knowledge fusion by merging weights of language
    models", section 3.3), row by row:

        (sum_i w_i G_i)^-1 sum_i w_i G_i t_i

    G_i, (inputs, inputs), is model i's Gram matrix with everything but the diagonal multiplied by
    `alpha`, below 1, so that there is one solution. Inputs that no model uses, and tensors without
    matrices, get the weighted mean.
    """
    plain = weighted(tensors, weights)
    if not len(gram):
        return plain
    own = np.eye(len(gram[0]), dtype=bool)
    parts = [w * np.where(own, g, alpha * g) for w, g in zip(weights, gram, strict=True)]
    total, width = np.sum(parts, axis=0), len(own)
    used = np.diag(total) > 0
    top = np.sum([g @ t.reshape(-1, width).T for g, t in zip(parts, tensors, strict=True)], axis=0)
    found = plain.reshape(-1, width).copy()
    found[:, used] = np.linalg.solve(total[np.ix_(used, used)], top[used]).T
    return found.reshape(plain.shape)


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
        (tensor - base) * (drawn < part) / base.dtype.type(part)
        for tensor, drawn, part in zip(tensors, random, _each(density, tensors), strict=True)
    ]
    return base + _weighted_sum(updates, scale * weights)


def dare_ties(
    tensors: Tensors,
    weights,
    base,
    *,
    scale: float = 1.0,
    density: float = 0.5,
    seed: int = 0,
    random,
) -> np.ndarray:
    """Drop and rescale entries as `dare` does, then elect signs as `ties` does (as in mergekit):

        u_i = k_i (t_i - base) / density
        s = sign(sum_i w_i u_i)
        base + scale * sum_{i: sign(w_i u_i) = s} w_i u_i

    The updates that agree are summed, not averaged.
    """
    parts = _each(density, tensors)
    factors = (weights * (parts[0] / parts)).astype(base.dtype)
    updates = [
        (tensor - base) * (drawn < part) * factor
        for tensor, drawn, part, factor in zip(tensors, random, parts, factors, strict=True)
    ]
    elected = np.sign(sum(updates[1:], start=updates[0]))
    agreeing = [update * (np.sign(update) == elected) for update in updates]
    return base + base.dtype.type(scale / parts[0]) * sum(agreeing[1:], start=agreeing[0])


def breadcrumbs(
    tensors: Tensors,
    weights,
    base,
    *,
    scale: float = 1.0,
    density: float = 0.9,
    gamma: float = 0.01,
    band,
) -> np.ndarray:
    """Drop outliers and small entries of each update (Davari and Belilovsky 2023, "Model
    breadcrumbs", section 3):

        base + scale * sum_i w_i m_i (t_i - base)

    m_i is 0 for the fraction `gamma` (at most `1 - density`) of its tensor's entries with the
    largest magnitudes, 1 for the next `density`, and 0 for the rest. `band`, (models, 2), are the
    smallest magnitude kept and the smallest that is dropped for its size.
    """
    updates = []
    for tensor, (low, high) in zip(tensors, band, strict=True):
        update = tensor - base
        size = np.abs(update)
        update[(size < low) | (size >= high)] = 0
        updates.append(update)
    return base + _weighted_sum(updates, scale * weights)


def model_stock(tensors: Tensors, weights, base, *, cosine: float) -> np.ndarray:
    """The point between base and mean that is nearest to the centre of the models that further
    finetunings would give (Jang et al. 2024, "Model stock", equation 5), each tensor by itself:

        r = n c / (1 + (n - 1) c);  r * mean + (1 - r) * base

    `cosine` c is the mean cosine between the updates; one below 0 counts as 0, which gives the
    base.
    """
    count, cosine = len(tensors), max(cosine, 0.0)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return base + base.dtype.type(ratio) * (mean(tensors) - base)


def scaled(tensors: Tensors, weights, base, *, which: int = 0, norms) -> np.ndarray:
    """A control: one model's update, shrunk to the norm of the mean's update over the whole model.

        base + |mean - base| / |t_which - base| * (t_which - base)

    If a mean helps because it is shorter than its parents' updates, this helps as well. `norms`,
    (models + 1,), are those of all updates, the mean's last.
    """
    size = norms[which]
    ratio = norms[-1] / size if size else 0.0
    return base + base.dtype.type(ratio) * (tensors[which] - base)


def placebo(tensors: Tensors, weights, base, *, seed: int = 0, norm: float, random) -> np.ndarray:
    """A control: a random update that has, tensor by tensor, the norm of the mean's update.

        base + norm / sqrt(size) * s

    s are random signs, which `seed` fixes; `norm` is already divided by the root of the tensor's
    size.
    """
    signs = np.where(random[0] < 0.5, 1, -1).astype(base.dtype)
    return base + base.dtype.type(norm) * signs


def slerp(
    tensors: Tensors, weights, base=None, *, straight: float = 1.0, angle: float
) -> np.ndarray:
    """A point on the arc between two models (Shoemake 1985, "Animating rotation with quaternion
    curves"), each tensor as one vector:

        sin((1 - p) a) / sin(a) * t_1 + sin(p a) / sin(a) * t_2

    with p = w_2 / (w_1 + w_2) and the `angle` a between the two, in radians; an angle of zero (or
    pi, where no arc is the shortest) gives the straight line, as does a cosine of more than
    `straight` in magnitude (mergekit: 0.9995).
    """
    position = weights[1] / weights.sum()
    sine = np.sin(angle)
    near = abs(np.cos(angle)) > straight
    if near or sine < 1e-6:  # the cosine is known to about 1e-14, an angle near pi to its root
        return _weighted_sum(tensors, np.array([1 - position, position]))
    return _weighted_sum(tensors, np.sin(np.array([1 - position, position]) * angle) / sine)


def _each(setting: float | np.ndarray, tensors: Tensors) -> np.ndarray:
    """A setting that may differ between the models, one number for each."""
    return np.broadcast_to(np.asarray(setting, dtype=np.float64), len(tensors))


def _weighted_sum(tensors: Tensors, weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights).astype(tensors[0].dtype)
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += tensor * weight
    return total


class Method(NamedTuple):
    """A method, and what it needs besides the models.

    `needs` names what the engine computes first (see `measures.known`): "thresholds", "band",
    "angle" and "cosine" of whole tensors and "norms" of updates take passes over all inputs before
    the one that fuses; others are "random" numbers, or files of "fisher" information or "gram"
    matrices. `weight` is the default weight of a model (None: 1 / n); methods that are not
    `weighted` take none; `source` is the publication.
    """

    combine: Callable
    source: str = ""
    needs: str = ""
    with_base: bool = False
    weight: float | None = None
    weighted: bool = True
    cost: str = "one pass"


FUSING = "Choshen et al. 2022, Fusing finetuned models for better pretraining, section 2"

METHODS = {
    "mean": Method(mean, FUSING, weighted=False),
    "weighted": Method(weighted),
    "fisher": Method(
        fisher, "Matena and Raffel 2021, Merging models with Fisher-weighted averaging",
        "fisher", cost="one pass, over twice as many files",
    ),
    "regmean": Method(
        regmean, "Jin et al. 2022, Dataless knowledge fusion by merging weights of language models",
        "gram", cost="one pass, with a matrix to invert for each linear layer",
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
    "dare_ties": Method(
        dare_ties, "Yu et al. 2023, Language models are super Mario; Yadav et al. 2023", "random",
        with_base=True, weight=1.0,
    ),
    "breadcrumbs": Method(
        breadcrumbs, "Davari and Belilovsky 2023, Model breadcrumbs", "band",
        with_base=True, weight=1.0, cost="five passes",
    ),
    "model_stock": Method(
        model_stock, "Jang et al. 2024, Model stock", "cosine",
        with_base=True, weighted=False, cost="two passes",
    ),
    "scaled": Method(scaled, "", "norms", with_base=True, weighted=False, cost="two passes"),
    "placebo": Method(
        placebo, "", "norm random", with_base=True, weighted=False, cost="two passes"
    ),
    "slerp": Method(
        slerp, "Shoemake 1985, Animating rotation with quaternion curves", "angle",
        cost="two passes",
    ),
}  # fmt: skip
"""Methods by name. A user's own function is a `Method` that needs nothing."""
