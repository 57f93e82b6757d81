"""Pretraining of a tiny T5 v1.1 on the corpus of a miniature world: corruption and continuation.

Most documents lose spans, which are the target (T5's "drop corrupted tokens": Raffel et al. 2020,
section 3.3.2); the others are split in two, and the target is the second part ("prefix language
modelling", section 3.2.3; both together as in UL2, Tay et al. 2023). T5's own objective marks spans
with sentinel words, and every target begins with the same one: within two minutes of pretraining
the decoder's first position, where finetuning puts the label, then never learns to read the input.
A continuation teaches just that.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration
from transformers import get_linear_schedule_with_warmup as linear_schedule

from fusinglib.errors import InputError
from fusinglib.training import miniworld
from fusinglib.training.folders import untie

BATCH_SIZE = 32
POOL = 16  # batches drawn together and sorted by length, to save padding
LEARNING_RATE = 2.5e-3
WARM_UP = 200
EMBEDDING_SCALE = 0.02
CONTINUED = 0.3  # fraction of the documents that are split in two


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """An untrained T5 v1.1 with about 300 thousand parameters and a separate head.

    The head starts at the scale d_model ** -0.5, the input embeddings at EMBEDDING_SCALE. (T5's own
    scale of 1 suits Adafactor, whose steps grow with the parameter; what AdamW learns in a few
    thousand steps is small compared with such a start, and words with similar uses stay far apart.)
    The global random state is not changed.
    """
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_ff=128,
        d_kv=16,
        num_heads=4,
        num_layers=2,
        num_decoder_layers=2,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,  # pyright: ignore[reportCallIssue]
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,  # pyright: ignore[reportCallIssue]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_SCALE)
        untie(model)
    return model


def corrupt(
    ids: list[int], rng: random.Random, eos: int, density=0.25, mean_span=2
) -> tuple[list[int], list[int]]:
    """Span corruption of a document of two or more tokens, without its end token.

    Some spans, not adjacent and in all a fraction `density` of the tokens, are left out of the
    input; the target is these tokens in their order. Both end with `eos`.
    """
    noise = max(1, round(len(ids) * density))
    spans = max(1, min(round(noise / mean_span), len(ids) - noise))
    lengths = _parts(noise, spans, rng)
    gaps = _parts(len(ids) - noise + 1, spans + 1, rng)
    gaps[rng.choice((0, -1))] -= 1  # a document may begin or end with a span
    inputs, targets, at = [], [], 0
    for gap, length in zip(gaps[:-1], lengths, strict=True):
        inputs += ids[at : at + gap]
        targets += ids[at + gap : at + gap + length]
        at += gap + length
    return [*inputs, *ids[at:], eos], [*targets, eos]


def cut(ids: list[int], rng: random.Random, eos: int) -> tuple[list[int], list[int]]:
    """A document of two or more tokens split somewhere in its second half; both parts get `eos`."""
    at = rng.randrange(len(ids) // 2, len(ids))
    return [*ids[:at], eos], [*ids[at:], eos]


def _parts(total: int, count: int, rng: random.Random) -> list[int]:
    """`total` as a random sum of `count` whole numbers from 1."""
    cuts = sorted(rng.sample(range(1, total), count - 1))
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


def _pad(rows: list[list[int]], value: int) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def _batches(tokenizer, world_seed: int, seed: int, steps: int):
    """Yield (input_ids, attention_mask, labels) per step; labels are -100 where padded."""
    if steps == 0:
        return
    texts = miniworld.corpus(world_seed, steps * BATCH_SIZE)
    documents = tokenizer(texts, add_special_tokens=False)["input_ids"]
    rng = random.Random(f"{seed}/corruption")
    rng.shuffle(documents)
    for start in range(0, len(documents), BATCH_SIZE * POOL):
        pool = [
            (cut if rng.random() < CONTINUED else corrupt)(ids, rng, tokenizer.eos_token_id)
            for ids in sorted(documents[start : start + BATCH_SIZE * POOL], key=len)
        ]
        batches = [pool[i : i + BATCH_SIZE] for i in range(0, len(pool), BATCH_SIZE)]
        rng.shuffle(batches)
        for batch in batches:
            inputs = _pad([inputs for inputs, _ in batch], tokenizer.pad_token_id)
            labels = _pad([targets for _, targets in batch], -100)
            yield inputs, (inputs != tokenizer.pad_token_id).long(), labels


def pretrain(
    folder: str | Path,
    *,
    world_seed: int,
    seed: int,
    steps: int,
    report: Callable[[int, int, float], None] | None = None,
) -> dict:
    """Train a new model on the world's corpus; save it and its tokenizer into `folder`.

    Runs on one thread, without dropout (as T5 v1.1 was pretrained), and gives the same weights, bit
    for bit, for the same arguments. `report(step, steps, loss)` is called every 50 steps with the
    mean loss since the last call. Returns loss as [[step, loss], ...], steps, seconds, parameters.
    Zero steps save the untrained model. Raises InputError for negative steps or seeds.
    """
    for name, value in (("world_seed", world_seed), ("seed", seed), ("steps", steps)):
        if not isinstance(value, int) or value < 0:
            raise InputError(f"{name} is {value!r}: expected a whole number of at least 0")
    started = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = miniworld.tokenizer()
        model = new_model(tokenizer, seed)
        losses = _train(model, _batches(tokenizer, world_seed, seed, steps), steps, report)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    seconds = round(time.perf_counter() - started, 1)
    parameters = model.num_parameters()
    return {"loss": losses, "steps": steps, "seconds": seconds, "parameters": parameters}


def _train(model, batches, steps: int, report) -> list[list[float]]:
    model.eval()  # no dropout
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    schedule = linear_schedule(optimizer, min(WARM_UP, steps // 2), steps)
    losses, recent = [], []
    for step, (inputs, mask, labels) in enumerate(batches, start=1):
        decoder = model._shift_right(labels)
        logits = model(
            input_ids=inputs, attention_mask=mask, decoder_input_ids=decoder, use_cache=False
        ).logits
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % 50 == 0 or step == steps:
            losses.append([step, sum(recent) / len(recent)])
            recent = []
            if report:
                report(step, steps, losses[-1][1])
    return losses
