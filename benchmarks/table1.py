"""How many hours the paper's Table 1 takes on this machine, task by task.

    HF_HOME=... HF_HUB_OFFLINE=1 python benchmarks/table1.py --work DIR   # five minutes on a GPU

The runs are those of `params/paper/family_table.yaml` (27 source models, 940 target runs), on the
stand-in for T5 v1.1 small of `first_runs.py`. Real texts of each task are trained on and scored. On
a GPU: in batches of 256, 16 runs as one (or as many as memory holds). On a processor: in batches of
16 by one thread, and a batch of 256 is taken to last 16 times as long. Dev and test sets count with
their published sizes under the paper's split rule, whatever the local copy has. Hours go from those
of runs that stop as early as they can (100 steps, two looks at the dev set) to those of runs that
never do. Writes `results/benchmarks/table1-DEVICE.csv`.
"""

import argparse
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from first_runs import stand_in
from gpu import seconds

from fusinglib.places import PROJECT
from fusinglib.study import parameters
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import Settings
from fusinglib.training import data, finetuning, models, stacked
from fusinglib.training.data import Split
from fusinglib.training.models import BaseModel
from fusinglib.training.scoring import OutOfMemory, predict
from fusinglib.training.settings import Training
from fusinglib.training.tasks import Task
from fusinglib.training.tokens import Tokens

EARLIEST = 2
"""Looks at the dev set of a run that stops as early as it can."""


def main() -> None:
    """Measure, print and write a row for each task, and print the total."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 500 MB")
    parser.add_argument("--batch", type=int, default=256 if gpu else 16, help="texts timed")
    parser.add_argument("--stack", type=int, default=16 if gpu else 1, help="runs that are one")
    parser.add_argument("--steps", type=int, default=5 if gpu else 1)
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = options.work / "stand-in"
    if not (folder / "config.json").is_file():
        stand_in(folder)
    file = "params/paper/family_table.yaml"
    chosen = parameters.choose("family_table", file, [f"model={folder}", "micro_batch=0"])
    settings = parameters.settings("family_table", chosen)
    rows = []
    for row in measure(settings, folder, options.batch, options.stack, options.steps):
        print(row, flush=True)
        rows.append(row)
        name = f"table1-{'cuda' if gpu else 'cpu'}.csv"
        pd.DataFrame(rows).to_csv(options.output / name, index=False)
    print(report(pd.DataFrame(rows)))


def measure(settings: Settings, folder: Path, batch: int, stack: int, steps: int) -> Iterator[dict]:
    """A row for each task: its runs and sizes, its pace, and the hours that all its runs take."""
    plan, training = plan_experiment(settings), settings.target_training()
    most = training.max_steps // training.eval_every
    counts = Counter((run.task, run.kind) for run in plan.runs if run.task)
    for task in dict.fromkeys(task for task, _ in counts):
        pace, sizes = paces(settings, folder, task, batch, stack, steps), published(task, settings)
        runs = {kind: counts[task, kind] for kind in ("source", "target")}
        look = training.eval_every * pace["step, ms"] / 1000 + sizes["dev"] / pace["scored per s"]
        test = sizes["test"] / pace["scored per s"]
        hours = [sum(runs.values()) * (looks * look + test) / 3600 for looks in (EARLIEST, most)]
        names = {"task": task.name, **runs, **sizes, "labels": len(task.labels)}
        yield names | pace | {"hours from": round(hours[0], 3), "to": round(hours[1], 2)}


def paces(settings: Settings, folder: Path, task: Task, batch: int, stack: int, steps: int) -> dict:
    """The mean tokens of a task's texts, and the pace of one run in a stack of this size, or half
    as many until memory holds them: milliseconds of a step with a whole batch, texts scored per
    second."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    how, training = settings.data(), settings.target_training()
    loaded = data.load(task, how)
    model = models.load(folder, task, training, how, seed=0, device=device)
    train, test = (
        model.encode(data.sample(split, 4 * batch, 0, "timed"))
        for split in (loaded.train, loaded.test)
    )
    brief = dataclasses.replace(training, batch_size=batch)
    while True:
        try:
            step, scoring = timed(model, train, test, brief, stack, steps)
            break
        except OutOfMemory:
            if stack == 1:
                raise
        stack //= 2  # not in the handler, whose traceback holds the memory
    whole = 1000 * step / stack * training.batch_size / batch
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "tokens": round(float(np.mean(train.lengths)), 1), "stack": stack,
        "step, ms": round(whole, 2), "scored per s": round(stack * len(test) / scoring, 1),
    }  # fmt: skip


def timed(
    model: BaseModel, train: Tokens, test: Tokens, training: Training, stack: int, steps: int
) -> tuple[float, float]:
    """The seconds that a stack of this size takes for a step, and to score the test texts."""
    several = stacked.Stack([model] * stack) if stack > 1 else model

    def took(steps: int) -> float:
        short = {"max_steps": steps, "eval_every": steps, "patience": steps}
        given = train, train.take([0]), dataclasses.replace(training, **short)
        if isinstance(several, stacked.Stack):
            return seconds(lambda: stacked.finetune(several, *given, range(stack)))
        return seconds(lambda: finetuning.finetune(several, *given, 0))

    took(1)
    return (took(1 + steps) - took(1)) / steps, seconds(lambda: predict(several, test))


def published(task: Task, settings: Settings) -> dict[str, int]:
    """The sizes of a task's splits in the published data."""
    raw = {name: Split([("",)] * count, [0] * count) for name, count in task.rows}
    splits = data.SPLIT_RULES[task.splits or "carve"](raw, settings.data())
    return {name: len(splits[name]) for name in ("train", "dev", "test")}


def report(rows: pd.DataFrame) -> str:
    """The rows, the total, and the runs per hour."""
    total = rows[["source", "target", "hours from", "to"]].sum()
    runs = total["source"] + total["target"]
    rates = " to ".join(f"{runs / total[name]:.3g}" for name in ("to", "hours from"))
    table = rows.drop(columns="device").to_string(index=False)
    hours = f"{total['hours from']:,.1f} to {total['to']:,.1f} hours"
    return f"{table}\n{runs:.0f} finetunings in {hours}: {rates} per hour"


if __name__ == "__main__":
    main()
