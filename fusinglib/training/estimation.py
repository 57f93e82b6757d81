"""What estimates for fusing share: a finetuned model as it was trained, texts of its own task, and
a file with a tensor for each of its weights."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from fusinglib.errors import InputError
from fusinglib.fusion.checkpoints import Checkpoint
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.fusion.output import check_free
from fusinglib.integrity import staged
from fusinglib.progress import Progress
from fusinglib.training import data
from fusinglib.training.models import BaseModel, Classifier, TextToText, is_text_to_text
from fusinglib.training.settings import Data, Training
from fusinglib.training.tasks import Task
from fusinglib.training.tokens import Tokens

AS_IT_IS = Training(
    learning_rate=0.0, schedule="constant", weight_decay=0.0, dropout=0.0, batch_size=1,
    max_steps=0, eval_every=1, patience=0, min_gain=0.0, metric="ranked", precision="fp32",
    threads=1,
)  # fmt: skip
"""How models are loaded here: without dropout, in fp32, and without training."""

QUIET = 3
"""Seconds before progress is shown."""


class Trained(Classifier):
    """An encoder with the classification head from its folder; its body is in `body`."""

    def __init__(self, folder: Path, task: Task, how: Data, device: str):
        BaseModel.__init__(self, folder, task, AS_IT_IS, how, device)
        network, report = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, config=self.config, dtype=torch.float32, output_loading_info=True
        )
        lacking = ", ".join(sorted(report["missing_keys"]))
        if lacking:
            raise InputError(
                f"Model {folder} has no trained head (its weights lack {lacking}): use the "
                "finetuned model as it was saved, with its classification head."
            )
        if network.num_labels != len(task.labels):
            raise InputError(
                f"Model {folder} has a head of {network.num_labels} labels, but task {task.name!r} "
                f"has {len(task.labels)}: use the task that it was finetuned on."
            )
        self.network = network.to(self.device)
        self.body = self.network.base_model


class Estimation(NamedTuple):
    """A finetuned model, texts of its task with their labels, and the network's tensors by the
    names of the stored body."""

    model: BaseModel
    tokens: Tokens
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def prepare(
    model: str | Path, task: Task, how: Data, output: Path, examples: int, device: str, seed: int
) -> Estimation:
    """Open a finetuned model and the first `examples` of its task's training split, shuffled with
    `seed`; raises `InputError` as `fisher.estimate` says."""
    check_free(output)
    if examples < 1:
        raise InputError(f"examples is {examples}: expected a whole number of at least 1.")
    stored = _whole(model)
    train = data.load(task, how).train
    drawn = train.take(np.random.default_rng(seed).permutation(len(train))[:examples])
    opened = _opened(stored.folder, task, how, device)
    about = {"examples": len(drawn), "seed": seed, "task": task.name, "model": stored.name}
    metadata = {"format": "pt", **{key: str(value) for key, value in about.items()}}
    return Estimation(opened, opened.encode(drawn), _tensors(stored, opened), metadata)


def _whole(model: str | Path) -> Checkpoint:
    """The model's headers; adapters and single files are refused."""
    stored = open_checkpoint(model)
    if stored.source != stored.folder.resolve():
        raise InputError(
            f"Model {model} is an adapter or a single file: use the folder of a complete model (an "
            "adapter merged with peft's merge_and_unload)."
        )
    return stored


def _opened(folder: Path, task: Task, how: Data, device: str) -> BaseModel:
    if is_text_to_text(folder):
        return TextToText(folder, task, AS_IT_IS, how, device, seed=0)
    return Trained(folder, task, how, device)


def _tensors(stored: Checkpoint, model: BaseModel) -> dict[str, torch.Tensor]:
    """The network's tensors that correspond to the floating-point ones of the stored body, by the
    body's names.

    Tied ones appear as often as they are stored.
    """
    inside = model.network.state_dict(keep_vars=True)
    found = {}
    for name, tensor in stored.body().items():
        if tensor.is_float and tensor.name not in inside:
            raise InputError(
                f"Tensor {tensor.name} of model {stored.folder} is not one that transformers "
                "loads: save the model again with save_pretrained."
            )
        if tensor.is_float:
            found[name] = inside[tensor.name].requires_grad_()
    return found


def shown(count: int, progress: bool) -> Iterator[int]:
    """The numbers below `count`; progress is shown after a few seconds."""
    bar, started = Progress(count, "{} of {} examples".format), time.monotonic()
    try:
        for done in range(count):
            yield done
            if progress and time.monotonic() - started > QUIET:
                bar.update(done + 1, "", last=done + 1 == count)
    finally:
        bar.close()


def write(output: Path, what: str, tensors: dict[str, torch.Tensor], found: Estimation) -> Path:
    """Write estimates into a new file, complete or not at all; `what` they are is for errors."""
    for name, values in tensors.items():
        if not values.isfinite().all():
            raise InputError(
                f"Model {found.metadata['model']}: its {what} on tensor {name} is not finite."
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    with staged(output) as partial:
        save_file(tensors, partial, found.metadata)
        check_free(output)
    return output
