"""What a plan costs on this machine: estimated from finished runs, or else from timed batches."""

import contextlib
import dataclasses
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fusinglib.errors import Damaged, InputError
from fusinglib.places import shipped
from fusinglib.progress import Progress
from fusinglib.study import parameters
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import Plan, Run, unique
from fusinglib.study.pools import worker_pool, workers
from fusinglib.study.resolver import base_model
from fusinglib.study.settings import EXPERIMENTS, SeedPlanner, Settings
from fusinglib.study.store import Store
from fusinglib.training.tasks import Task

TEXTS = 8
"""Texts in the first timed batch."""

LONG = 2.0
"""Seconds after which a timed batch is no longer doubled."""

STEPS = 20
"""Timed steps of pretraining the miniature model."""

MODELS = ("pretrain", "import", "random", "source", "estimate", "fuse")
"""The kinds of runs that save a model, or as much."""

MOVED = 1e9
"""Approximate bytes per second in copying and fusing."""


class Pace:
    """How long runs take, estimated from finished ones of the same kind.

    Without any, finetuning is assumed to take as long per example of its `max_steps` as the other
    kind of finetuning, and copying and fusing no time.
    """

    def __init__(self, finished: list[Run], store: Store):
        self.taken: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))  # sum, count
        for run in finished:
            with contextlib.suppress(Damaged):  # recomputed by the execution
                self.learn(run, store.result(run)["seconds"])

    def learn(self, run: Run, seconds: float) -> None:
        """Record that `run` took `seconds`."""
        self._add(run.kind, seconds)
        if examples := _examples(run):
            self._add("per example", seconds / examples)

    def _add(self, name: str, seconds: float) -> None:
        total, count = self.taken[name]
        self.taken[name] = total + seconds, count + 1

    def seconds(self, runs: list[Run]) -> float:
        """Seconds for `runs`, one after the other; NaN if unknown."""
        return sum(self.expected(run) for run in runs)

    def expected(self, run: Run) -> float:
        """Seconds for a run; NaN if unknown."""
        (total, count), factor = self.taken[run.kind], 1
        if not count and _examples(run):
            (total, count), factor = self.taken["per example"], _examples(run)
        if count:
            return factor * total / count
        return 0 if run.kind in ("import", "random", "fuse") else math.nan


def _examples(run: Run) -> int:
    """The maximum number of examples that a finetuning sees; 0 for other runs."""
    training = run.settings.get("training")
    return training["max_steps"] * training["batch_size"] if training else 0


class Cost(NamedTuple):
    """Seconds on one task: to load the model, to train on a text, to score a text."""

    opening: float
    trained: float
    scored: float


class Calibration:
    """Timings on this machine: the `costs` of tasks by name, the seconds of a step of `pretraining`
    the miniature model, and the `bytes` of a model."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.costs: dict[str, Cost] = {}
        self.pretraining, self.bytes = math.nan, math.nan

    def time(self, runs: Iterable[Run]) -> None:
        """Time the tasks of these runs, unless that is done, with as many processes as execute
        runs, since a single process would be faster."""
        tasks = {run.task.name: run.task for run in runs if run.task}
        tasks = {name: task for name, task in tasks.items() if name not in self.costs}
        if not tasks:
            return
        progress, count = Progress(len(tasks), "{} of {} tasks timed".format), 0
        with tempfile.TemporaryDirectory() as scratch:
            folder = self._model(Path(scratch) / "model")
            with worker_pool(workers(self.settings)) as pool:
                timed = {
                    name: pool.submit(_measure, folder, task, self.settings)
                    for name, task in tasks.items()
                }
                for count, (name, future) in enumerate(timed.items()):
                    progress.update(count, name)
                    self.costs[name] = future.result()
        progress.update(count + 1, "", last=True)

    def _model(self, scratch: Path) -> Path:
        """The folder of the pretrained model; the miniature one is pretrained for a few steps."""
        from fusinglib.training import folders, pretraining

        run, folder = base_model(self.settings)
        if not folder:
            started, folder = time.perf_counter(), scratch
            seeds = {name: run.settings[name] for name in ("world_seed", "seed")}
            pretraining.pretrain(folder, **seeds, steps=STEPS)
            self.pretraining = (time.perf_counter() - started) / STEPS
        self.bytes = sum(file.stat().st_size for file in folders.weights(folder))
        return folder


def _measure(folder: Path, task: Task, settings: Settings) -> Cost:
    """Time batches of a task on the model in `folder`: twice as many texts each time, up to a whole
    batch, while that is quick. On a GPU, which takes as long for a few texts as for many, it is."""
    import torch

    from fusinglib.study.steps import available, keep_memory
    from fusinglib.training import data, models

    keep_memory()
    how, device = settings.data(), available(settings.device)
    torch.set_num_threads(settings.threads)
    loaded, training = data.load(task, how), settings.target_training()
    started = time.perf_counter()
    model = models.load(folder, task, training, how, seed=0, device=device)
    opening, texts = time.perf_counter() - started, TEXTS
    while True:
        started = time.perf_counter()
        cost = Cost(opening, *_paces(model, loaded, training, texts))
        if texts >= training.batch_size or time.perf_counter() - started > LONG:
            return cost
        texts = min(2 * texts, training.batch_size)


def _paces(model, loaded, training, texts: int) -> tuple[float, float]:
    """Seconds to train on a text and to score one, in batches of so many texts."""
    from fusinglib.training.finetuning import finetune
    from fusinglib.training.scoring import predict

    rows = range(min(texts, len(loaded.train), len(loaded.test)))
    train, test = model.encode(loaded.train.take(rows)), model.encode(loaded.test.take(rows))
    dev = train.take(rows[:1])

    def took(steps: int) -> float:
        started = time.perf_counter()
        short = {"max_steps": steps, "eval_every": steps, "patience": 9, "batch_size": texts}
        finetune(model, train, dev, dataclasses.replace(training, **short), 0)
        return time.perf_counter() - started

    took(1)
    trained = max(took(4) - took(1), 0) / (3 * len(rows))
    started = time.perf_counter()
    predict(model, test)
    return trained, (time.perf_counter() - started) / len(rows)


def estimate(
    plan: Plan, store: Store, settings: Settings, calibration: Calibration | None = None
) -> pd.DataFrame:
    """What a plan requires: a row per kind of run, and ``all``.

    Returns: a DataFrame with the columns ``runs``, ``finished``, ``GB`` on disk, and the hours of
    the unfinished runs with all workers in parallel. If runs of a kind are finished, the others are
    assumed to take as long. For other kinds `calibration` times batches of every task, each run
    alone: ``hours from`` if every finetuning stops as early as it can, ``to`` if each goes on to
    its last batch. Without calibration these hours are unknown (NaN).
    """
    finished = [run for run in plan.runs if store.has(run)]
    pace, done = Pace(finished, store), {run.key for run in finished}
    left = [run for run in plan.runs if run.key not in done]
    unknown = [run for run in left if math.isnan(pace.expected(run))]
    if calibration and unknown:
        calibration.time(unknown)
    size, rows = _model_size(finished, store, calibration), {}
    for kind in unique([[run.kind for run in plan.runs]]):
        runs = [run for run in plan.runs if run.kind == kind]
        ahead = [run for run in runs if run.key not in done]
        seconds = [
            sum(_seconds(run, plan, pace, calibration, size, last) for run in ahead)
            for last in (False, True)
        ]
        gigabytes = sum(_bytes(run, plan, size) for run in runs) / 1e9
        hours = [each / workers(settings) / 3600 for each in seconds]
        rows[kind] = [len(runs), len(runs) - len(ahead), gigabytes, *hours]
    columns = ["runs", "finished", "GB", "hours from", "to"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("kind")
    table.loc["all"] = table.sum(skipna=False)
    return table.astype({"runs": int, "finished": int})


def _model_size(finished: list[Run], store: Store, calibration: Calibration | None) -> float:
    """The bytes of a model's weights; NaN if unknown."""
    for run in finished:
        if run.kind in MODELS:
            files = (store.path(run) / "model").glob("*.safetensors")
            if size := sum(file.stat().st_size for file in files):
                return size
    return calibration.bytes if calibration else math.nan


def _seconds(
    run: Run, plan: Plan, pace: Pace, timed: Calibration | None, size: float, last: bool
) -> float:
    """Seconds for a run if it goes on to its last batch, or if it stops as early as it can."""
    if not math.isnan(known := pace.expected(run)):
        return known or size * (1 + len(run.parents)) / MOVED
    if not timed:
        return math.nan
    if run.kind == "pretrain":
        return timed.pretraining * run.settings["steps"]
    assert run.task
    cost, sizes = timed.costs[run.task.name], plan.sizes[run.task.name]
    if run.kind == "estimate":
        return cost.opening + min(run.settings["examples"], sizes["train"]) * cost.trained
    training = run.settings["training"]
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


def _bytes(run: Run, plan: Plan, size: float) -> float:
    """What a run takes on disk: a model, and two predictions of two bytes per test text."""
    predictions = 4 * plan.sizes[run.task.name]["test"] if run.task else 0
    return predictions + (size if run.kind in MODELS else 0)


def of_seeds(settings: SeedPlanner, store: Store) -> pd.DataFrame:
    """The family table with each number of seeds that the planner tries: one row each, with its
    runs, those left, and the hours that these take (see `estimate`)."""
    rows, calibration = {}, Calibration(settings)
    for count in settings.tried_seeds:
        seeds = dataclasses.replace(settings, seeds=list(range(count)))
        every = estimate(plan_experiment(seeds), store, seeds, calibration).loc["all"]
        left = every["runs"] - every["finished"]
        rows[count] = [every["runs"], left, every["hours from"], every["to"]]
    columns = ["runs", "left", "hours from", "to"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("seeds")
    return table.astype({"runs": int, "left": int})


def of_notebooks(folder: str) -> pd.DataFrame:
    """The state of every notebook that the folder has a parameter file for: a row per notebook,
    with its runs, how many are finished, and the hours that the rest takes (NaN if unknown)."""
    rows = {}
    for name in EXPERIMENTS:
        file = shipped(folder) / f"{name}.yaml"
        if file.is_file():
            settings = parameters.settings(name, parameters.choose(name, str(file), []))
            store = Store(settings.store_folder())
            rows[name] = estimate(plan_experiment(settings), store, settings).loc["all"]
    if not rows:
        raise InputError(f"{shipped(folder)} has no parameter files: name a folder of params/")
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("notebook")
    table = table.rename(columns={"to": "hours left"})
    table = table.filter(["runs", "finished", "hours left"])
    return table.astype({"runs": int, "finished": int})
