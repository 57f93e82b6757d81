"""What a plan costs on this machine, before it is paid for: a few batches of every task, timed."""

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from fusinglib.progress import Progress
from fusinglib.study.execution import worker_pool, workers
from fusinglib.study.plans import Plan, Run, unique
from fusinglib.study.settings import Study
from fusinglib.study.steps import available
from fusinglib.study.store import Store
from fusinglib.training import data, models
from fusinglib.training.finetuning import finetune
from fusinglib.training.scoring import predict
from fusinglib.training.tasks import Task

TEXTS = 8
"""Texts of a batch that is timed; the time of a step is taken to grow with its texts."""

MODELS = ("import", "random", "source", "fuse")
"""The kinds of runs that leave a model."""

MOVED = 1e9
"""Bytes a second that are moved in copying and fusing, about."""


class Cost(NamedTuple):
    """Seconds on one task: of opening the model, of training on a text, of scoring a text."""

    opening: float
    trained: float
    scored: float


def measure(folder: Path, task: Task, settings: Study) -> Cost:
    """Time a few texts of a task on the model in `folder`, in a process of its own."""
    how, device = settings.data(), available(settings.device)
    torch.set_num_threads(settings.threads)
    loaded = data.load(task, how)
    rows = range(min(TEXTS, len(loaded.train), len(loaded.test)))
    training = dataclasses.replace(settings.target_training(), batch_size=TEXTS, patience=9)
    opened = time.perf_counter()
    model = models.load(folder, task, training, how, seed=0, device=device)
    opening = time.perf_counter() - opened
    train, test = model.encode(loaded.train.take(rows)), model.encode(loaded.test.take(rows))
    dev = train.take(rows[:1])

    def took(steps: int) -> float:
        started = time.perf_counter()
        short = dataclasses.replace(training, max_steps=steps, eval_every=steps)
        finetune(model, train, dev, short, 0)
        return time.perf_counter() - started

    took(1)
    trained = max(took(4) - took(1), 0) / (3 * len(rows))
    started = time.perf_counter()
    predict(model, test)
    return Cost(opening, trained, (time.perf_counter() - started) / len(rows))


def estimate(plan: Plan, store: Store, settings: Study, folder: Path) -> pd.DataFrame:
    """What a plan on the pretrained model in `folder` asks for: a row per kind of runs, and all.

    Returns: a DataFrame with the columns ``runs``, ``finished``, ``GB`` left on the disk, and the
    hours of the runs that are not finished: ``hours from``, if every finetuning stops as early as
    it can, ``to``, if every one goes on to its last batch. They come of the time that some texts of
    every task take on this machine now, with all workers at work side by side.
    """
    finished = {run.key for run in plan.runs if store.has(run)}
    costs = _costs([run for run in plan.runs if run.key not in finished], folder, settings)
    size = sum(file.stat().st_size for file in models.weights(folder))
    rows = {}
    for kind in unique([[run.kind for run in plan.runs]]):
        runs = [run for run in plan.runs if run.kind == kind]
        left = [run for run in runs if run.key not in finished]
        hours = [
            sum(_seconds(run, plan, costs, size, last) for run in left) / workers(settings) / 3600
            for last in (False, True)
        ]
        gigabytes = sum(_bytes(run, plan, size) for run in runs) / 1e9
        rows[kind] = [len(runs), len(runs) - len(left), gigabytes, *hours]
    columns = ["runs", "finished", "GB", "hours from", "to"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("kind")
    table.loc["all"] = table.sum()
    return table.astype({"runs": int, "finished": int})


def _costs(runs: list[Run], folder: Path, settings: Study) -> dict[str, Cost]:
    """The costs of all tasks that runs are on, timed by as many processes as carry runs out, since
    one that has the machine to itself is faster."""
    tasks = {run.task.name: run.task for run in runs if run.task}
    progress = Progress(len(tasks), "{} of {} tasks timed".format)
    costs = {}
    with worker_pool(workers(settings)) as pool:
        timed = {name: pool.submit(measure, folder, task, settings) for name, task in tasks.items()}
        for name, future in timed.items():
            progress.update(len(costs), name)
            costs[name] = future.result()
        progress.update(len(costs), "", last=True)
    return costs


def _seconds(run: Run, plan: Plan, costs: Mapping[str, Cost], size: int, last: bool) -> float:
    """How long a run takes if it goes on to its last batch, or if it stops as early as it can."""
    if not run.task:
        return size * (1 + len(run.parents)) / MOVED
    cost, training = costs[run.task.name], run.settings["training"]
    sizes = plan.sizes[run.task.name]
    steps = training["max_steps"]
    if run.kind == "line":
        fitted = steps * training["batch_size"] * cost.trained if last else 0
        scored = sizes[run.settings["split"]] * cost.scored
        return len(run.settings["positions"]) * (cost.opening + fitted + scored)
    every = training["eval_every"]
    if not last:
        steps = min(steps, every + every * math.ceil(training["patience"] / every))
    evaluations = math.ceil(steps / every)
    scored = evaluations * sizes["dev"] + sizes["test"]
    trained = steps * min(training["batch_size"], sizes["train"])
    return cost.opening + trained * cost.trained + scored * cost.scored


def _bytes(run: Run, plan: Plan, size: int) -> int:
    """What a run leaves on the disk: a model, two predictions of two bytes for every test text."""
    predictions = 4 * plan.sizes[run.task.name]["test"] if run.task else 0
    return predictions + (size if run.kind in MODELS else 0)
