"""Scoring: all labels from one encoder pass, and the resulting metrics."""

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from fusinglib.errors import InputError
from fusinglib.training.settings import Numbers


def label_scores(
    network, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: Sequence[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every label text of a text-to-text model from one encoder and one decoder pass.

    `labels` are K lists of token ids, end token included. Returns `scores`, float32 (batch, K):
    the sum of the log-probabilities of a label's tokens, not divided by length; and `greedy`,
    bool (batch, K): whether every token is the argmax over the vocabulary, that is, whether
    greedy decoding would write exactly this label.

    The labels are concatenated in one decoder sequence, and a block-diagonal causal mask keeps each
    to itself; relative positions within a block are those of the label alone.
    """
    device = input_ids.device
    owner = torch.tensor([k for k, ids in enumerate(labels) for _ in ids], device=device)
    targets = torch.tensor([token for ids in labels for token in ids], device=device)
    start = network.config.decoder_start_token_id
    shifted = [token for ids in labels for token in [start, *ids[:-1]]]
    mask = (owner[:, None] == owner) & torch.ones_like(owner[:, None] == owner).tril()
    blocked = additive(mask)
    decoder_ids = torch.tensor([shifted], device=device)

    batch = len(input_ids)
    hidden = network.get_encoder()(input_ids=input_ids, attention_mask=attention_mask)
    logits = network(
        encoder_outputs=BaseModelOutput(hidden.last_hidden_state),
        attention_mask=attention_mask,
        decoder_input_ids=decoder_ids.expand(batch, -1),
        decoder_attention_mask=blocked.expand(batch, 1, -1, -1),
        use_cache=False,
    ).logits.float()

    chosen = logits.gather(-1, targets.expand(batch, -1)[..., None])[..., 0]
    of_label = torch.nn.functional.one_hot(owner, len(labels)).float()
    with torch.autocast(device.type, enabled=False):  # sums in fp32, whatever the caller's context
        scores = (chosen - logits.logsumexp(-1)) @ of_label
        wrong = (logits.argmax(-1) != targets).float() @ of_label
    return scores, wrong == 0


def additive(mask: torch.Tensor) -> torch.Tensor:
    """An attention mask, bool, as what is added to the attention's logits, float32."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo().min)


class OutOfMemory(InputError):
    """Memory does not hold a batch."""


@contextlib.contextmanager
def enough_memory(tokens, rows: Numbers):
    """Say what to do if memory does not hold a batch of these texts."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"out of memory with a batch of {len(rows)} texts of {tokens.lengths[rows].max()} "
            f"tokens: set micro_batch to {max(1, len(rows) // 2)} or less (the batch size stays "
            "the same), or lower max_length or workers"
        ) from error


def predict(model, tokens, micro_batch: int = 0) -> dict[str, np.ndarray]:
    """The model's `ranked` and `exact` label ids for every example, int16 (examples,), -1: none,
    and the `scores` of all K labels, float32 (examples, K); of a stack, with a row for each model.

    Batches hold texts of similar length, at most `micro_batch` of them (0: as many as are fast);
    their order depends on the lengths alone.
    """
    order, found = np.argsort(tokens.lengths, kind="stable"), []
    model.network.eval()
    with torch.inference_mode():
        size = min(model.eval_batch_size, micro_batch or model.eval_batch_size)
        for first in range(0, len(order), size):
            rows = order[first : first + size]
            with enough_memory(tokens, rows):
                found.append(model.predict(model.inputs(tokens, rows)))
    scores, exact = (
        torch.cat(each, dim=len(model.lead)).cpu() for each in zip(*found, strict=True)
    )
    back = np.argsort(order)
    scores, exact = scores.numpy().take(back, -2), exact.numpy().astype(np.int16).take(back, -1)
    return {"ranked": scores.argmax(-1).astype(np.int16), "exact": exact, "scores": scores}


def cross_entropy(predicted: dict[str, np.ndarray], labels: Numbers) -> float:
    """Mean negative log-probability of the correct label, in nats: for a text-to-text model, of the
    whole label text, end token included; for a classifier, of the class."""
    scores = predicted["scores"].astype(np.float64)
    return float(-scores[np.arange(len(labels)), labels].mean())


def metrics(predicted: dict[str, np.ndarray], labels: Numbers) -> dict[str, float]:
    """`ranked` and `exact` accuracy, the share of `invalid` outputs and `macro_f1`, fractions.

    `exact` counts a text that is not a label as wrong (the paper's protocol); `ranked` takes the
    best-scored label, and so does `macro_f1`.
    """
    right = np.asarray(labels)
    return {
        "ranked": float((predicted["ranked"] == right).mean()),
        "exact": float((predicted["exact"] == right).mean()),
        "invalid": float((predicted["exact"] == -1).mean()),
        "macro_f1": macro_f1(predicted["ranked"], right),
    }


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """The mean F1 over all labels that are predicted or correct at least once, 0 to 1.

    F1 is 2 TP / (2 TP + FP + FN); a label that is never correct or never predicted has 0.
    """
    count = 1 + max(predicted.max(), labels.max())
    right = np.bincount(labels[predicted == labels], minlength=count)
    either = np.bincount(labels, minlength=count) + np.bincount(predicted, minlength=count)
    return float((2 * right[either > 0] / either[either > 0]).mean())
