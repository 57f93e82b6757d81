"""How sure a finetuned model is of each of its weights: the diagonal of its Fisher information."""

import os
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from fusinglib import models
from fusinglib.data import TaskData
from fusinglib.errors import InputError
from fusinglib.output import beside, check_free
from fusinglib.progress import Progress
from fusinglib.settings import Data, Training


def estimate(
    folder: str | Path,
    data: TaskData,
    training: Training,
    how: Data,
    output: str | Path,
    *,
    examples: int = 256,
    seed: int = 0,
    device: str = "cpu",
) -> Path:
    """Estimate the Fisher information of the finetuned model in `folder` on its task, and write it
    to the safetensors file `output`, for `fuse(..., method="fisher", information=[...])`.

    `F = mean_x sum_y p(y|x) (d log p(y|x) / d weight)^2`, the diagonal (Matena and Raffel 2021,
    "Merging models with Fisher-weighted averaging", section 3), over `examples` training examples
    drawn with the seed; the sum over labels is exact. p is that of the model's own head, or for T5
    that of the label texts among themselves. Without dropout. Costs one forward pass for every
    example and a backward pass for every label.

    The file holds float32 tensors under the names of the model's body, as `fuse` writes them.
    Raises `InputError` where the folder holds no head for the task, or the output exists.
    """
    output = Path(output)
    check_free(output)
    model = models.load(folder, data.task, training, how, seed=seed, device=device)
    if isinstance(model, models.Classifier):
        _put_own_head(model, Path(folder))
    model.network.eval()
    weights = dict(model.body.named_parameters())
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    tokens = model.tokens(data)["train"]
    rows = np.random.default_rng(seed).permutation(len(tokens))[:examples]
    progress = Progress(len(rows), "{} of {} examples".format)
    for done, row in enumerate(rows, 1):
        _add(totals, model, weights, model.inputs(tokens, [row]))
        progress.update(done, "", last=done == len(rows))
    partial = beside(output)
    facts = {"format": "pt", "task": data.task.name, "examples": str(len(rows))}
    try:
        found = {name: (total / len(rows)).cpu() for name, total in totals.items()}
        save_file(found, partial, metadata=facts)
        os.replace(partial, output)
    finally:
        partial.unlink(missing_ok=True)
    return output


def _add(totals: dict, model: models.BaseModel, weights: dict, inputs: dict) -> None:
    """Add the information of one example."""
    scores, _ = model.predict(inputs)
    logs = scores[0].log_softmax(-1)
    for log in logs:
        gradients = torch.autograd.grad(log, weights.values(), retain_graph=True, allow_unused=True)
        for name, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                totals[name] += log.detach().exp() * gradient**2


def _put_own_head(model: models.Classifier, folder: Path) -> None:
    """Give a classifier the head that was finetuned with its body, in place of a fresh one."""
    network, report = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    wanted = len(model.task.labels)
    if report["missing_keys"] or network.config.num_labels != wanted:
        raise InputError(
            f"Model {folder} has no head with {wanted} labels for task {model.task.name!r}: give "
            f"the finetuned classifier as it was saved, and the task that it was finetuned on."
        )
    model.network = network.to(model.device)
    model.body = model.network.base_model
