"""How much each weight of a finetuned model matters to its output: the diagonal of its Fisher
information (Matena and Raffel 2021, "Merging models with Fisher-weighted averaging", section 3),

    F = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta)^2],

estimated from training texts, written to a file that `fuse(method="fisher")` reads.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from fusinglib.training.estimation import prepare, shown, write
from fusinglib.training.models import BaseModel
from fusinglib.training.settings import Data
from fusinglib.training.tasks import Task
from fusinglib.training.tokens import Tokens


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
    found = prepare(model, task, how, Path(output), examples, device, seed)
    values = diagonal(found.model, found.tokens, list(found.tensors.values()), progress)
    tensors = dict(zip(found.tensors, values, strict=True))
    return write(Path(output), "Fisher information", tensors, found)


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
    for row in shown(len(tokens), progress):
        scores = model.predict(model.inputs(tokens, [row]))[0][0].log_softmax(0)
        for label, probability in enumerate(scores.exp().tolist()):
            more = label + 1 < len(scores)
            gradients = torch.autograd.grad(
                scores[label], tensors, retain_graph=more, materialize_grads=True
            )
            for total, gradient in zip(totals, gradients, strict=True):
                total.addcmul_(gradient, gradient, value=probability)
    return [(total / len(tokens)).cpu() for total in totals]
