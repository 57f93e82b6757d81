"""Finetuning: one loop, with early stopping as the study defines it; the best weights are kept."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from fusinglib.errors import InputError
from fusinglib.training.models import BaseModel
from fusinglib.training.scoring import enough_memory, metrics, predict
from fusinglib.training.settings import Training
from fusinglib.training.tokens import Tokens, to_device

SLACK = 1e-9
"""Tolerance for rounding when two accuracies are compared with the smallest gain."""


@dataclass
class EarlyStopping:
    """Follows the dev metric (paper section 3.4).

    A gain counts when it beats the highest metric so far by at least `min_gain`; `patience` is
    how many batches may pass without one. The best step is that of the highest metric, the
    earliest on ties.
    """

    min_gain: float
    patience: int
    best: float = field(default=-np.inf, init=False)
    best_step: int = field(default=0, init=False)
    gain_step: int = field(default=0, init=False)

    def update(self, step: int, metric: float) -> bool:
        """Record the metric at `step`; returns whether it is the highest so far."""
        improved = metric > self.best
        if improved and metric - self.best >= self.min_gain - SLACK:
            self.gain_step = step
        if improved:
            self.best, self.best_step = metric, step
        return improved

    def done(self, step: int) -> bool:
        """Whether `patience` batches have passed without a gain."""
        return step - self.gain_step >= self.patience

    def outcome(self, steps: int) -> dict:
        """What a run that ended after `steps` batches has to say for itself."""
        return {
            "best_step": self.best_step,
            "dev": self.best,
            "steps": steps,
            "stopped": "patience" if self.done(steps) else "max_steps",
        }


def finetune(
    model: BaseModel,
    train: Tokens,
    dev: Tokens,
    settings: Training,
    seed: int,
    report: Callable[[list[dict]], None] | None = None,
) -> tuple[dict, list[dict]]:
    """Finetune `model` in place on `train`; it ends with the weights that did best on `dev`.

    The seed sets the order of the data and the dropout; with the same arguments the CPU gives the
    same bits. Returns the outcome (`best_step`, `dev`, `steps`, `stopped`) and the history, a row
    per evaluation: step, mean training loss since the last one, dev `metrics`. `report` is called
    with the history after every evaluation. Raises `InputError` if the loss is not finite.
    """
    torch.manual_seed(seed)
    labels = torch.tensor(train.labels)
    optimizer = adamw(dict(model.network.named_parameters()), settings)
    batches = batches_of(train.lengths, settings, seed)
    stopping = EarlyStopping(settings.min_gain, settings.patience)
    history, losses, best = [], [], None

    model.network.train()
    for step in range(1, settings.max_steps + 1):
        rows = next(batches)
        own = to_device(labels[rows], model.device)
        loss = _backward(model, train, rows, own, settings.micro_batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)

        if step % settings.eval_every == 0 or step == settings.max_steps:
            predicted = predict(model, dev, settings.micro_batch)
            loss = float(torch.stack(losses).mean())
            if not np.isfinite(loss) or np.isnan(predicted["scores"]).any():
                raise diverged(loss, step, settings)
            scores = metrics(predicted, dev.labels)
            model.network.train()
            history.append({"step": step, "loss": loss, **scores})
            losses = []
            if stopping.update(step, scores[settings.metric]):
                best = {k: v.detach().clone() for k, v in model.network.state_dict().items()}
            if report:
                report(history)
            if stopping.done(step):
                break

    assert best  # the last batch is always evaluated
    model.network.load_state_dict(best)
    return stopping.outcome(step), history


def diverged(loss: float, step: int, settings: Training) -> InputError:
    """What to say of a run whose `loss` by batch `step` is not finite, or whose scores are not."""
    return InputError(
        f"the training loss is {loss:g} by batch {step}, or scores are NaN: lower "
        f"learning_rate ({settings.learning_rate:g})"
    )


def _backward(
    model: BaseModel, tokens: Tokens, rows: np.ndarray, labels: torch.Tensor, micro_batch: int
) -> torch.Tensor:
    """The mean loss of a batch, detached; its gradients are accumulated part by part."""
    part, total = micro_batch or len(rows), torch.zeros((), device=model.device)
    for first in range(0, len(rows), part):
        some, theirs = rows[first : first + part], labels[first : first + part]
        with enough_memory(tokens, some):
            loss = model.loss(model.inputs(tokens, some), theirs)
            if part < len(rows):
                loss = loss * (model.terms(theirs) / model.terms(labels))
            loss.backward()
        total = total + loss.detach()
    return total


POOL = 50
"""How many batches of texts are sorted by length together, as in the Transformers Trainer."""


def batches_of(lengths: np.ndarray, settings: Training, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of row numbers: a new shuffle every epoch, whose last batch may be short."""
    order, size = np.random.default_rng(seed), settings.batch_size
    while True:
        shuffled = order.permutation(len(lengths))
        if not settings.group_by_length:
            yield from (shuffled[i : i + size] for i in range(0, len(shuffled), size))
            continue
        for first in range(0, len(shuffled), POOL * size):
            pool = shuffled[first : first + POOL * size]
            pool = pool[np.argsort(-lengths[pool], kind="stable")]
            batches = [pool[i : i + size] for i in range(0, len(pool), size)]
            yield from (batches[i] for i in order.permutation(len(batches)))


def adamw(
    named: Mapping[str, torch.Tensor], settings: Training, matrix: int = 2
) -> torch.optim.AdamW:
    """AdamW without decay on biases and norms, as in the Transformers Trainer: what has fewer than
    `matrix` dimensions is a norm."""
    decays = {n: p.ndim >= matrix and "bias" not in n for n, p in named.items() if p.requires_grad}
    decayed = [named[n] for n, decay in decays.items() if decay]
    spared = [named[n] for n, decay in decays.items() if not decay]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate(step: int, settings: Training) -> float:
    """The rate of the `step`-th update (from 1): constant, or linear to zero after `max_steps`."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 - (step - 1) / settings.max_steps)


def linear_probe(
    model: BaseModel, train: Tokens, dev: Tokens, training: Training, seed: int
) -> None:
    """Fit the fresh head of a classifier on its frozen body, for all of `max_steps` batches.

    There is no early stopping, so that every body gets the same steps. The model should be loaded
    without dropout, which would make the body's features noisy here but not when the head is
    scored.
    """
    steps = training.max_steps
    model.body.requires_grad_(False)
    finetune(model, train, dev, replace(training, eval_every=steps, patience=steps), seed)
