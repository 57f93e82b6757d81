"""Many finetunings on one task as one: every weight has a leading dimension, a run for each of its
rows, which `torch.func.vmap` maps the unmodified network over."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.func import functional_call, vmap

from fusinglib.errors import InputError
from fusinglib.fusion.compatibility import ORIGINS
from fusinglib.training.finetuning import (
    EarlyStopping,
    adamw,
    batches_of,
    diverged,
    learning_rate,
)
from fusinglib.training.models import BaseModel
from fusinglib.training.scoring import OutOfMemory, additive, enough_memory, metrics, predict
from fusinglib.training.settings import Numbers, Training
from fusinglib.training.tokens import Tokens, to_device


class Stack:
    """Base models of one shape as one, with what `scoring.predict` needs of a single one.

    `weights` are the parameters by name, each with a leading dimension of `size`; gradients go
    there. `model` is the first one, whose network is called with each row of them.
    """

    def __init__(self, models: Sequence[BaseModel]):
        self.model, self.task, self.network = models[0], models[0].task, models[0].network
        named = [dict(model.network.named_parameters()) for model in models]
        self.weights = {
            name: torch.stack([one[name].detach() for one in named]).requires_grad_()
            for name in named[0]
        }
        self.network.set_attn_implementation("eager")  # vmap has no rules for fused attention
        self.eval_batch_size = max(1, self.model.eval_batch_size // min(len(models), 4))
        self._called = _Called(self.model)

    @property
    def size(self) -> int:
        """How many models there are."""
        return len(next(iter(self.weights.values())))

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading dimensions of what `predict` returns."""
        return (self.size,)

    def inputs(self, tokens: Tokens, rows: Numbers) -> dict[str, torch.Tensor]:
        """A batch that all models get, or one for each where `rows` is int (size, batch); its
        attention mask has the four dimensions of attention."""
        rows = np.asarray(rows)
        batch = self.model.inputs(tokens, rows.ravel())
        batch["attention_mask"] = additive(batch["attention_mask"] == 1)[:, None, None, :]
        return {name: each.reshape(*rows.shape, *each.shape[1:]) for name, each in batch.items()}

    def loss(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """The loss of every model on its batch, (size,); `labels` int64 (size, batch)."""
        called = vmap(self._one("loss"), randomness="different")
        return called(self.weights, inputs, labels)

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """What `BaseModel.predict` says of a batch, for every model."""
        return vmap(self._one("predict"), in_dims=(0, None))(self.weights, inputs)

    def share(self, micro_batch: int) -> int:
        """The texts of each model in a pass of `micro_batch` texts (0: whole batches)."""
        return max(1, micro_batch // self.size) if micro_batch else 0

    def one(self, row: int) -> BaseModel:
        """A single model: the first, with the weights of this one."""
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                parameter.copy_(self.weights[name][row])
        return self.model

    def _one(self, method: str) -> Callable:
        """A method of the model as a function of the weights of one."""

        def call(weights, *arguments):
            named = {f"network.{name}": weight for name, weight in weights.items()}
            return functional_call(self._called, named, (method, *arguments))

        return call


class _Called(torch.nn.Module):
    """The methods of a model as a module, so that `functional_call` reaches its network."""

    def __init__(self, model: BaseModel):
        super().__init__()
        self.network, self.model = model.network, model

    def forward(self, method: str, *arguments):
        return getattr(self.model, method)(*arguments)


@dataclass
class _Run:
    """One of the stacked runs: its place among the results, and how it goes."""

    place: int
    stopping: EarlyStopping
    history: list[dict] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    outcome: dict | InputError | None = None


def finetune(
    stack: Stack,
    train: Tokens,
    dev: Tokens,
    settings: Training,
    seeds: Sequence[int],
    report: Callable[[int, list[dict]], None] | None = None,
) -> list[tuple[dict | InputError, list[dict]]]:
    """Finetune a stack as `finetuning.finetune` does each of its models alone, with its own seed.

    Every run has its own order of the data, its own early stopping and its own best weights, with
    which the stack ends (NaN for a run that has none). Returns outcome and history of each; the
    outcome of a run whose loss is not finite is the error, and the others go on. Runs that have
    ended leave the stack once half of it has. `report` is called with a run's number and its
    history after every evaluation. With the same stack the CPU gives the same bits; dropout differs
    from that of a run alone.
    """
    torch.manual_seed(int(np.random.default_rng(seeds).integers(2**31)))
    runs = [
        _Run(place, EarlyStopping(settings.min_gain, settings.patience))
        for place in range(stack.size)
    ]
    inside = list(runs)
    batches = [batches_of(train.lengths, settings, seed) for seed in seeds]
    labels = torch.tensor(train.labels)
    optimizer, losses = adamw(stack.weights, settings, matrix=3), []

    stack.network.train()
    for step in range(1, settings.max_steps + 1):
        losses.append(_backward(stack, train, batches, labels, stack.share(settings.micro_batch)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        optimizer.zero_grad()
        if step % settings.eval_every and step < settings.max_steps:
            continue

        predicted = predict(stack, dev, stack.share(settings.micro_batch))
        stack.network.train()
        means, losses = torch.stack(losses).mean(0).tolist(), []
        for row, run in enumerate(inside):
            if run.outcome is None:
                own = {name: array[row] for name, array in predicted.items()}
                _look(run, step, means[row], own, dev, settings)
                if run.stopping.best_step == step:
                    run.best = {n: w[row].detach().clone() for n, w in stack.weights.items()}
                if report and run.history:
                    report(run.place, run.history)
        left = [row for row, run in enumerate(inside) if run.outcome is None]
        if not left:
            break
        if 2 * len(left) <= len(inside):
            inside, batches = [inside[row] for row in left], [batches[row] for row in left]
            _keep(stack, optimizer, left)

    for name, weight in stack.weights.items():
        nothing = torch.full_like(weight[0], torch.nan)  # of a run that failed at its first look
        best = torch.stack([run.best.get(name, nothing) for run in runs])
        stack.weights[name] = best.detach().requires_grad_()
    return [(run.outcome or run.stopping.outcome(step), run.history) for run in runs]


def _look(
    run: _Run, step: int, loss: float, predicted: dict, dev: Tokens, settings: Training
) -> None:
    """Record an evaluation of a run, which may end it."""
    if not np.isfinite(loss) or np.isnan(predicted["scores"]).any():
        run.outcome = diverged(loss, step, settings)
        return
    scores = metrics(predicted, dev.labels)
    run.history.append({"step": step, "loss": loss, **scores})
    run.stopping.update(step, scores[settings.metric])
    if run.stopping.done(step):
        run.outcome = run.stopping.outcome(step)


def _backward(
    stack: Stack,
    tokens: Tokens,
    batches: Sequence[Iterator[np.ndarray]],
    labels: torch.Tensor,
    micro_batch: int,
) -> torch.Tensor:
    """The mean loss of each run's next batch, detached, (size,); gradients are accumulated part by
    part, of `micro_batch` texts of each run (0: whole)."""
    drawn = [next(each) for each in batches]
    longest, nothing = max(map(len, drawn)), len(stack.task.labels)  # a label that does not count
    rows = np.stack([np.resize(each, longest) for each in drawn])
    own = np.array([np.arange(longest) < len(each) for each in drawn])
    given = to_device(labels[rows], stack.model.device)
    wanted = given.masked_fill(to_device(torch.from_numpy(~own), given.device), nothing)
    part = micro_batch or longest
    total = torch.zeros(stack.size, device=given.device)
    for first in range(0, longest, part):
        some, theirs = rows[:, first : first + part], wanted[:, first : first + part]
        with enough_memory(tokens, some.ravel()):
            terms = stack.model.terms(theirs)
            real = given[:, first : first + part]
            theirs = torch.where(terms[:, None] > 0, theirs, real)  # times 0, but no NaN
            loss = stack.loss(stack.inputs(tokens, some), theirs)
            if part < longest:
                loss = loss * (terms / stack.model.terms(wanted))
            loss.sum().backward()
        total = total + loss.detach()
    return total


def _keep(stack: Stack, optimizer: torch.optim.Optimizer, rows: list[int]) -> None:
    """Leave only these rows of the weights and of what the optimizer knows of them."""
    for weight in stack.weights.values():
        weight.data = weight.data[rows]
        state = optimizer.state[weight]
        for name, value in state.items():
            state[name] = value[rows] if value.ndim else value


_CHECKED: dict[tuple[str, int], str] = {}
"""What the first try said of each kind of model and longest text."""


def kind(model: BaseModel) -> str:
    """What models must have in common to be stacked, as JSON: the config but for its origin."""
    config = model.config.to_dict()
    return json.dumps({k: v for k, v in config.items() if k not in ORIGINS}, sort_keys=True)


def unfit(model: BaseModel, tokens: Tokens) -> str:
    """Why models of this kind cannot be stacked on these texts; empty if they can.

    Tried once for every kind: two of it as one have the loss and the scores of one alone, on the
    shortest and the longest text, and a gradient in training.
    """
    tried = kind(model), int(tokens.lengths.max())
    if tried not in _CHECKED:
        _CHECKED[tried] = _tried(model, tokens)
    return _CHECKED[tried]


def _tried(model: BaseModel, tokens: Tokens) -> str:
    rows = np.argsort(tokens.lengths, kind="stable")[[0, -1]]
    labels = torch.tensor(tokens.labels[rows], device=model.device)
    model = copy.deepcopy(model)  # the stack changes its attention
    model.bf16 = False
    model.network.eval()
    with torch.no_grad():
        alone = model.inputs(tokens, rows)
        expected = model.loss(alone, labels), model.predict(alone)[0]
    try:
        stack = Stack([model, model])
        own, both = stack.inputs(tokens, np.stack([rows, rows])), labels.expand(2, -1)
        stack.network.train()
        stack.loss(own, both).sum().backward()
        stack.network.eval()
        with torch.no_grad():
            made = stack.loss(own, both), stack.predict(stack.inputs(tokens, rows))[0]
    except (OutOfMemory, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a network does that vmap has no rule for
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for one, right in zip(made, expected, strict=True):
        if not torch.allclose(one, right.expand_as(one), rtol=1e-4, atol=1e-4):
            return "their scores differ from those of one alone"
    return ""
