"""Whether `torch.compile` makes stacks of finetunings faster, and what compiling costs.

    python benchmarks/compiled.py --work DIR        # three minutes on a processor

Steps of a stack of eight miniature T5 (on a GPU: 16 of T5 v1.1 small's shape, batches of 256 texts)
as it is and with the loss compiled, in rounds. All texts are equally long, because each length has
to be compiled by itself: dropout under `vmap` cannot be compiled for lengths that vary. On a GPU a
third contestant compiles to CUDA graphs. Writes `results/benchmarks/compiled-DEVICE.csv`.
"""

import argparse
import os
from pathlib import Path

os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # so that compiling is timed in full

import pandas as pd
import torch
from gpu import HOW, seconds, texts
from stacks import SETTINGS, model

from fusinglib.places import PROJECT
from fusinglib.training import models, stacked, tasks
from fusinglib.training.settings import Training

SIZE = {"cpu": 8, "cuda": 16}
MODES = {
    "cpu": {"compiled": "default"},
    "cuda": {"compiled": "default", "graphs": "reduce-overhead"},
}


def main() -> None:
    """Measure, print and write a row for each contestant and round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 500 MB")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    rows = measure(model(options.work / device, device), device, options.steps, options.rounds)
    found = pd.DataFrame(rows)
    found.to_csv(options.output / f"compiled-{device}.csv", index=False)
    print(found.groupby("how").median(numeric_only=True).drop(columns="round").to_string())


def measure(folder: Path, device: str, steps: int, rounds: int) -> list[dict]:
    """A row for each contestant and round: milliseconds of a step of one run, and the seconds that
    its first finetuning took."""
    setting, task = SETTINGS[device], tasks.mini_tasks(0)["sentiment"]
    train = texts(64 * setting.batch, setting.tokens, equal=True)
    how = Training(
        learning_rate=1e-4, schedule="constant", weight_decay=0.0, dropout=0.1, eval_every=10**6,
        min_gain=0.001, metric="ranked", precision="fp32", threads=1, batch_size=setting.batch,
        max_steps=steps, patience=10**7,
    )  # fmt: skip
    stacks = {}
    for name, mode in {"as it is": None, **MODES[device]}.items():
        made = [models.load(folder, task, how, HOW, seed=0, device=device)] * SIZE[device]
        stacks[name] = stacked.Stack(made)
        if mode:
            stacks[name].loss = torch.compile(stacks[name].loss, dynamic=False, mode=mode)

    def finetune(stack: stacked.Stack, seed: int) -> float:
        seeds = range(seed, seed + stack.size)
        return seconds(lambda: stacked.finetune(stack, train, train.take(range(2)), how, seeds))

    first, rows = {name: finetune(stack, 0) for name, stack in stacks.items()}, []
    for number in range(rounds):
        for name, stack in stacks.items():
            taken = 1000 * finetune(stack, number) / steps / stack.size
            row = {"how": name, "stack": stack.size, "round": number, "step, ms": round(taken, 3)}
            rows.append(row | {"first finetuning, s": round(first[name], 1)})
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
