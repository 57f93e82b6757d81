"""Many runs as one: how fast stacks of several sizes are.

    python benchmarks/stacks.py --work DIR        # two minutes on a processor, ten on a GPU
    python benchmarks/stacks.py --work DIR --model FOLDER --sizes 1 2 4 8      # another model

On a processor: the miniature T5, batches of 16 texts of 18 tokens on average, one thread, in fp32
and bf16. On a GPU: a T5 v1.1 small with random weights, batches of 256 texts of 62 tokens on
average, in TF32 as well. For each size of stack: milliseconds of a finetuning step and texts scored
per second, for one run; the arithmetic of a step in Tflop/s, counted by PyTorch, beside what one
large matrix product reaches; the most memory. A size of 1 is the loop for single runs. Sizes that
memory does not hold are left out. Sizes come in random order, in rounds. Writes
`results/benchmarks/stacks-DEVICE.csv`; of another model, with its type in the name.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from gpu import HOW, seconds, stand_in, texts
from torch.utils.flop_counter import FlopCounterMode

from fusinglib.places import PROJECT
from fusinglib.study.steps import keep_memory
from fusinglib.training import finetuning, models, pretraining, stacked, tasks
from fusinglib.training.folders import config_of
from fusinglib.training.scoring import OutOfMemory, predict
from fusinglib.training.settings import Training
from fusinglib.training.tokens import Tokens


class Setting(NamedTuple):
    """What is measured on a kind of device."""

    batch: int
    tokens: int
    sizes: tuple[int, ...]
    precisions: tuple[str, ...]
    product: int


SETTINGS = {
    "cpu": Setting(16, 18, (1, 2, 4, 8, 16, 32), ("fp32", "bf16"), 2048),
    "cuda": Setting(256, 62, (1, 4, 16, 32, 64), ("fp32", "tf32", "bf16"), 8192),
}


def main() -> None:
    """Measure, print and write a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 500 MB")
    parser.add_argument("--model", type=Path, help="the folder of another model")
    parser.add_argument("--sizes", type=int, nargs="+", help="other sizes of stacks")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    keep_memory()
    folder, setting = options.model or model(options.work / device, device), SETTINGS[device]
    setting = setting._replace(sizes=options.sizes or setting.sizes)
    name = "-".join(["stacks", device, *([config_of(folder).model_type] if options.model else [])])
    rows = []
    for row in measure(folder, device, setting, options.steps, options.rounds):
        print(row, flush=True)
        rows.append(row)
        pd.DataFrame(rows).to_csv(options.output / f"{name}.csv", index=False)
    print(report(pd.DataFrame(rows)))


def model(folder: Path, device: str) -> Path:
    """The folder of what is finetuned: the weights do not matter."""
    if device == "cuda":
        return stand_in(folder)
    if not folder.is_dir():
        pretraining.pretrain(folder, world_seed=0, seed=0, steps=1)
    return folder


def measure(folder: Path, device: str, setting: Setting, steps: int, rounds: int) -> Iterator[dict]:
    """A row for every precision, size of stack and round."""
    task = tasks.mini_tasks(0)["sentiment"]
    train, test = texts(64 * setting.batch, setting.tokens), texts(512, setting.tokens)
    everything = list(itertools.product(setting.precisions, setting.sizes))
    for number in range(rounds):
        for place in np.random.default_rng(number).permutation(len(everything)):
            precision, size = everything[place]
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            how = Training(
                learning_rate=1e-4, schedule="constant", weight_decay=0.0, dropout=0.1,
                eval_every=10**6, min_gain=0.001, metric="ranked", threads=1,
                precision="bf16" if precision == "bf16" else "fp32",
                batch_size=setting.batch, max_steps=steps, patience=10**7,
            )  # fmt: skip
            try:
                row = one(folder, device, task, how, size, train, test)
            except OutOfMemory:
                continue
            rate = product(device, setting.product, precision)
            own = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
            yield (
                own
                | {"precision": precision, "stack": size, "round": number}
                | row
                | {"large product, Tflop/s": round(rate, 3)}
            )


def one(folder: Path, device: str, task, how: Training, size: int, train: Tokens, test: Tokens):
    """Milliseconds of a step, texts scored per second, arithmetic and memory, of one run of a
    stack of this size."""
    made = [models.load(folder, task, how, HOW, seed=0, device=device) for _ in range(size)]
    few = train.take(range(2))
    if size == 1:
        scored = made[0]

        def finetune(seed: int) -> None:
            finetuning.finetune(made[0], train, few, how, seed)
    else:
        scored = stacked.Stack(made)

        def finetune(seed: int) -> None:
            stacked.finetune(scored, train, few, how, range(seed, seed + size))

    with FlopCounterMode(display=False) as counted:  # warms up as well
        finetune(0)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = seconds(lambda: finetune(1)) / how.max_steps
    work = counted.get_total_flops() / how.max_steps
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else np.nan
    scoring = seconds(lambda: predict(scored, test))
    return {
        "step, ms": round(1000 * taken / size, 3),
        "scored per s": round(size * len(test) / scoring, 1),
        "Tflop/s": round(work / taken / 1e12, 4),
        "GiB": round(memory, 2),
    }


def product(device: str, size: int, precision: str) -> float:
    """The Tflop/s of one large matrix product."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    left @ right
    return 2 * size**3 / seconds(lambda: left @ right) / 1e12


def report(rows: pd.DataFrame) -> str:
    """Medians over the rounds, and how many times as fast as alone a step and scoring are."""
    found = rows.groupby(["precision", "stack"]).median(numeric_only=True).drop(columns="round")
    alone = found.xs(1, level="stack")
    found["step, gain"] = alone["step, ms"] / found["step, ms"]
    found["scoring, gain"] = found["scored per s"] / alone["scored per s"]
    return found.round(3).to_string()


if __name__ == "__main__":
    main()
