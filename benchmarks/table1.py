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
from fusinglib.training.scoring import OutOfMemory, predict
from fusinglib.training.tasks import Task

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
    made = models.load(folder, task, training, how, seed=0, device=device)
    train, test = (
        made.encode(data.sample(split, 4 * batch, 0, "timed"))
        for split in (loaded.train, loaded.test)
    )
    several = stacked.Stack([made] * stack) if stack > 1 else made

    def took(steps: int) -> float:
        short = {"max_steps": steps, "eval_every": steps, "patience": steps, "batch_size": batch}
        given = train, train.take([0]), dataclasses.replace(training, **short)
        if isinstance(several, stacked.Stack):
            return seconds(lambda: stacked.finetune(several, *given, range(stack)))
        return seconds(lambda: finetuning.finetune(several, *given, 0))

    try:
        took(1)
        step = (took(1 + steps) - took(1)) / steps / stack * training.batch_size / batch
        scored = stack * len(test) / seconds(lambda: predict(several, test))
    except OutOfMemory:
        if stack == 1:
            raise
        return paces(settings, folder, task, batch, stack // 2, steps)
    tokens = round(float(np.mean(train.lengths)), 1)
    pace = {"step, ms": round(1000 * step, 2), "scored per s": round(scored, 1)}
    own = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    return own | {"tokens": tokens, "stack": stack} | pace


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
