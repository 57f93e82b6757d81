"""What the settings for speed do on a GPU: steps of a T5 v1.1 small.

    python benchmarks/gpu.py --work DIR        # some minutes on one GPU

Milliseconds of a finetuning step of a T5 v1.1 small with random weights (batches of 256 texts of
62 random tokens on average, dropout 0.1) and texts scored per second, for each combination of
precision, `micro_batch` and `group_by_length`, in two rounds. Writes `results/benchmarks/gpu.csv`.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from first_runs import untrained

from fusinglib.places import PROJECT
from fusinglib.training import miniworld, models, tasks
from fusinglib.training.finetuning import finetune
from fusinglib.training.scoring import predict
from fusinglib.training.settings import Data, Training
from fusinglib.training.tokens import Tokens

HOW = Data(
    split_rule="paper", split_seed=0, max_dev=0, max_test=0, text_format="t5", max_length=512
)
BATCH, ROUNDS = 256, 2


def main() -> None:
    """Measure, print and write a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 500 MB")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks/gpu.csv")
    options = parser.parse_args()
    rows = []
    for row in steps(stand_in(options.work / "t5"), options.steps):
        print(row, flush=True)
        rows.append(row)
        pd.DataFrame(rows).round(2).to_csv(options.output, index=False)


def stand_in(folder: Path) -> Path:
    """A T5 v1.1 small with random weights, and the tokenizer of the miniature world."""
    untrained(folder)
    miniworld.tokenizer().save_pretrained(folder)
    return folder


def texts(count: int, mean: int = 62, equal: bool = False) -> Tokens:
    """Random tokens, of random lengths with this mean, or all of this length."""
    rng = np.random.default_rng(0)
    shortest, longest = (mean, mean) if equal else (24 * mean // 62, 100 * mean // 62)
    lengths = rng.integers(shortest, longest, size=count, endpoint=True)
    ids = rng.integers(3, 600, size=lengths.sum()).astype(np.int32)
    starts, none = np.cumsum(lengths) - lengths, np.zeros(count, dtype=bool)
    return Tokens({"input_ids": ids}, starts, lengths, rng.integers(2, size=count), none, 0)


def steps(folder: Path, count: int) -> Iterator[dict]:
    """Rows with the milliseconds of a step and the texts scored per second."""
    task, device = tasks.mini_tasks(0)["sentiment"], "cuda" if torch.cuda.is_available() else "cpu"
    train, test = texts(64 * BATCH), texts(4 * BATCH)
    settings = itertools.product(("fp32", "bf16"), (32, 0), (False, True))
    for number, (precision, micro, grouped) in itertools.product(range(ROUNDS), list(settings)):
        how = Training(
            learning_rate=1e-4, schedule="constant", weight_decay=0.0, dropout=0.1,
            eval_every=10**6, min_gain=0.001, metric="ranked", precision=precision, threads=4,
            micro_batch=micro, group_by_length=grouped, batch_size=BATCH, max_steps=count,
            patience=10**7,
        )  # fmt: skip
        model = models.load(folder, task, how, HOW, seed=0, device=device)
        finetune(model, train, texts(8), how, 0)  # warms up
        taken = seconds(lambda: finetune(model, train, texts(8), how, 1))  # noqa: B023
        scored = seconds(lambda: predict(model, test, micro))  # noqa: B023
        yield {
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "precision": precision, "micro_batch": micro, "grouped": grouped, "round": number,
            "step, ms": 1000 * taken / count, "scored per s": len(test) / scored,
        }  # fmt: skip


def seconds(do) -> float:
    """How long something takes, the GPU included."""
    started = time.perf_counter()
    do()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
