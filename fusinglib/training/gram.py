"""How the inputs of a finetuned model's linear layers go together: their Gram matrices (Jin et al.
2022, "Dataless knowledge fusion by merging weights of language models", section 3.3),

    G = X^T X / rows,

X being all inputs of a layer, a row for every token, on texts of the model's own task; written to a
file that `fuse(method="regmean")` reads.
"""

from pathlib import Path

import torch

from fusinglib.training.estimation import Estimation, prepare, shown, write
from fusinglib.training.models import BaseModel, TextToText
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
    """Write the Gram matrices of a finetuned model's linear layers on its own task.

    The new file `output` (safetensors) holds a float32 matrix (inputs, inputs) for the weight of
    every `torch.nn.Linear` of the model's body that is no embedding as well, under the weight's
    name: what `fuse` takes as `gram`. The decoder of a text-to-text model reads the label's text.
    Returns the path of the file, which appears complete or not at all.

    Arguments and errors are those of `fisher.estimate`.
    """
    found = prepare(model, task, how, Path(output), examples, device, seed)
    tensors = products(found.model, found.tokens, linear(found), progress)
    return write(Path(output), "Gram matrix", tensors, found)


def linear(found: Estimation) -> dict[str, torch.nn.Linear]:
    """The linear layers of the body, by the names of their weights."""
    modules = list(found.model.network.modules())
    embeddings = {id(m.weight) for m in modules if isinstance(m, torch.nn.Embedding)}
    layers = {id(m.weight): m for m in modules if isinstance(m, torch.nn.Linear)}
    return {
        name: layers[id(tensor)]
        for name, tensor in found.tensors.items()
        if id(tensor) in layers and id(tensor) not in embeddings
    }


def products(
    model: BaseModel, tokens: Tokens, layers: dict[str, torch.nn.Linear], progress: bool = False
) -> dict[str, torch.Tensor]:
    """`X^T X / rows` for each layer, float32 on the CPU, summed in float64; without dropout. Zeros
    for a layer that is never used."""
    totals, rows = {}, dict.fromkeys(layers, 0)
    hooks = []
    for name, layer in layers.items():
        size = layer.in_features
        totals[name] = torch.zeros(size, size, dtype=torch.float64, device=model.device)

        def add(_, inputs, name=name):
            read = inputs[0].detach().flatten(0, -2).double()
            totals[name].addmm_(read.T, read)
            rows[name] += len(read)

        hooks.append(layer.register_forward_pre_hook(add))
    model.network.eval()
    try:
        with torch.no_grad():
            for row in shown(len(tokens), progress):
                _read(model, tokens, row)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (totals[name] / max(rows[name], 1)).float().cpu() for name in layers}


def _read(model: BaseModel, tokens: Tokens, row: int) -> None:
    """Send one text through the network, and its label through the decoder if there is one."""
    inputs = model.inputs(tokens, [row])
    if isinstance(model, TextToText):
        label = torch.tensor([model.labels[tokens.labels[row]]], device=model.device)
        model.network(**inputs, labels=label, use_cache=False)
    else:
        model.network(**inputs)
