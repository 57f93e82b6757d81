"""How much each weight of a finetuned model matters to its output: the diagonal of its Fisher
information (Matena and Raffel 2021, "Merging models with Fisher-weighted averaging", section 3),

    F = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta)^2],

estimated from training texts, written to a file that `fuse(method="fisher")` reads.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def estimate(
    model: str | Path,
    task: Task,
    how: Data,
    output: str | Path,
    *,
    examples: int = 256,
    device: str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Write the diagonal Fisher information of a finetuned model on its own task.

    The new file `output` (safetensors) holds a float32 tensor for every floating-point tensor of
    the model's body, with its name and shape: what `fuse` takes as `fisher`. The expectation over
    labels is exact; the labels of the data are not used. Returns the path of the file, which
    appears complete or not at all.

    Arguments:
        model: the folder of the finetuned model, or its Hub id.
        task: what it was finetuned on. The texts are the first `examples` of its training split,
            shuffled with `seed`, or all if there are fewer.
        how: how the task's rows become splits and texts.

    Raises `InputError` for an output that exists, a classifier without a head or with another
    number of labels, an adapter, and data or labels that do not match.
    """
    output = Path(output)
    check_free(output)
    if examples < 1:
        raise InputError(f"examples is {examples}: expected a whole number of at least 1.")
    stored = _whole(model)
    train = data.load(task, how).train
    drawn = train.take(np.random.default_rng(seed).permutation(len(train))[:examples])
    opened = _opened(stored.folder, task, how, device)
    tensors = _tensors(stored, opened)
    values = diagonal(opened, opened.encode(drawn), list(tensors.values()), progress)
    found = dict(zip(tensors, values, strict=True))
    for name in found:
        if not found[name].isfinite().all():
            raise InputError(
                f"Model {model}: its Fisher information on tensor {name} is not finite."
            )
    about = {"examples": len(drawn), "seed": seed, "task": task.name, "model": stored.name}
    _write(output, found, {"format": "pt", **{key: str(value) for key, value in about.items()}})
    return output


def diagonal(
    model: BaseModel, tokens: Tokens, tensors: Sequence[torch.Tensor], progress: bool = False
) -> list[torch.Tensor]:
    """The diagonal Fisher information on `tensors` of the model's network, averaged over all texts.

    `sum_y p(y|x) (d log p(y|x) / d theta)^2`, text by text and label by label, without dropout.
    p(y|x) is a classifier's probability of a label; of a text-to-text model it is that of the
    label's text, divided by the sum over all labels' texts. Returns tensors of the same shapes and
    dtypes, on the CPU; zeros for a tensor that the output does not depend on.
    """
    model.network.eval()
    totals = [torch.zeros_like(tensor) for tensor in tensors]
    for row in _shown(len(tokens), progress):
        scores = model.predict(model.inputs(tokens, [row]))[0][0].log_softmax(0)
        for label, probability in enumerate(scores.exp().tolist()):
            more = label + 1 < len(scores)
            gradients = torch.autograd.grad(
                scores[label], tensors, retain_graph=more, materialize_grads=True
            )
            for total, gradient in zip(totals, gradients, strict=True):
                total.addcmul_(gradient, gradient, value=probability)
    return [(total / len(tokens)).cpu() for total in totals]


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


def _shown(count: int, progress: bool) -> Iterator[int]:
    """The numbers below `count`; progress is shown after a few seconds."""
    bar, started = Progress(count, "{} of {} examples".format), time.monotonic()
    try:
        for done in range(count):
            yield done
            if progress and time.monotonic() - started > QUIET:
                bar.update(done + 1, "", last=done + 1 == count)
    finally:
        bar.close()


def _write(output: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    with staged(output) as partial:
        save_file(tensors, partial, metadata)
        check_free(output)
