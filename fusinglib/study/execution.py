"""Execute a plan, serially or in processes. Each run is complete or absent; if one fails, the
others go on."""

import concurrent.futures
import math
import os
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd

from fusinglib.errors import Damaged, InputError, StoreError, missing
from fusinglib.leases import Leases
from fusinglib.progress import Progress, duration
from fusinglib.study.costs import Pace
from fusinglib.study.plans import Plan, Run
from fusinglib.study.pools import stack, worker_pool, workers
from fusinglib.study.schedule import STACKED, Schedule
from fusinglib.study.settings import Settings
from fusinglib.study.store import PREDICTIONS, Store
from fusinglib.training import data
from fusinglib.training.settings import Data


class Stopped(BaseException):
    """A pass over a plan was stopped; finished runs are kept. Like `KeyboardInterrupt`, it is no
    failure of the run that it ends."""


POLL = 0.5
"""Seconds between polls of the running runs, and between progress updates."""

START_FAILED = (
    "the worker processes do not start; in a script of your own, call execute under "
    "`if __name__ == '__main__':`, or set executor to 'serial'"
)


def execute(plan: Plan, store: Store, settings: Settings, cluster=None) -> pd.DataFrame:
    """Execute what `store` lacks of `plan`, and return its results, one row per table row.

    A run that fails leaves its traceback in the store, what depends on it is skipped, and the
    others go on. `cluster` is a Dask cluster object, which the executor "dask" uses instead of the
    setting `scheduler`. Raises `StoreError` if the store can no longer be written.
    """
    store.sweep()
    progress, places = Progress(len(plan.runs)), {}
    if settings.executor == "dask":
        on = _cluster(cluster or settings.scheduler, store, settings, progress)
        places = {"pool": on, "places": on.places}
    failed = Execution(plan, store, settings, progress, **places).carry_out()
    for key, error in failed.items():
        print(f"failed: {error} (traceback: {store.failure_file(key)})")
    return results(plan, store)


def _cluster(cluster, store: Store, settings: Settings, progress: Progress):
    try:
        from fusinglib.study.cluster import Cluster
    except ModuleNotFoundError as error:
        raise missing(error) from error
    return Cluster(cluster, workers(settings), store, settings.device, progress.say)


def results(plan: Plan, store: Store) -> pd.DataFrame:
    """The rows of the plan as one tidy table; accuracies are fractions, 0 to 1.

    Unfinished runs have accuracy NaN. `metric` says what the run was stopped by and what tables
    show (see `tables.scored`): "accuracy", or "macro_f1".
    """
    rows = []
    for row in plan.rows:
        run = row["run"]
        facts = {name: value for name, value in row.items() if name != "run"}
        outcome = _outcome(run, store) if store.has(run) else {"accuracy": math.nan}
        outcome.pop("notes", None)  # about the data, the same for all runs on a task
        by_f1 = run.settings["training"]["metric"] == "macro_f1"
        metric = {"metric": "macro_f1" if by_f1 else "accuracy"}
        rows.append({**facts, "key": run.key, **metric, **outcome})
    return pd.DataFrame(rows)


def read_results(file: Path) -> pd.DataFrame:
    """The results that a notebook recorded as a CSV file, as `results` returned them."""
    text = ("key", "source_family", "base", "target", "sources", "reads", "norm", "metric")
    numbers = [name for name in pd.read_csv(file, nrows=0) if name not in text]
    rows = pd.read_csv(
        file, dtype=dict.fromkeys(text, "str"), keep_default_na=False,
        na_values=dict.fromkeys(numbers, [""]),
    )  # fmt: skip
    if "base" in rows:
        rows["sources"] = rows["sources"].map(lambda names: tuple(names.split()))
    return rows


def _outcome(run: Run, store: Store) -> dict:
    """The result of a finished run. Older runs did not record macro-F1 and the accuracy of the
    majority label; these are computed from their predictions."""
    outcome = store.result(run)
    predictions = store.path(run) / PREDICTIONS
    if run.kind == "target" and "macro_f1" not in outcome and predictions.is_file():
        from fusinglib.training.scoring import macro_f1  # torch: needed only here

        assert run.task
        loaded = data.load(run.task, Data(**run.settings["data"]))
        predicted, labels = store.predictions(run)["ranked"], np.array(loaded.test.labels)
        outcome["macro_f1"] = macro_f1(predicted, labels)
        outcome["majority"] = data.majority(loaded.test.labels)
    return outcome


class Execution:
    """One pass over a plan: hands runs to workers in the order of its `schedule`, and records the
    outcomes.

    `progress` is updated; `pool` returns worker processes as a context, and `places` how many runs
    they can take; once `stopped` is set, the pass and the running runs end with `Stopped`.
    """

    def __init__(self, plan: Plan, store: Store, settings: Settings, progress, pool=None,
                 places=None):  # fmt: skip
        self.plan, self.store, self.settings, self.progress = plan, store, settings, progress
        self.at_once = workers(settings)
        self.pool = pool or (lambda: worker_pool(self.at_once))
        self.places = places or (lambda: self.at_once)
        self.stopped = threading.Event()
        finished = self._finished()
        self.schedule = Schedule(plan.runs, {run.key for run in finished}, self._stack)
        self.leases = Leases(store.root)
        self.pace = Pace(finished, store)
        self.started, self.shown, self.computed = time.monotonic(), -math.inf, 0
        self.unfit: set[str] = set()

    def _finished(self) -> list[Run]:
        """The runs that need not be executed: complete ones, except pruned means that are needed
        again."""
        done = [run for run in self.plan.runs if self.store.has(run) and self._whole(run)]
        keys = {run.key for run in done}
        inner = {parent.key for run in self.plan.runs for parent in run.parents}
        needed = {run.key for run in self.plan.runs} - inner
        for run in reversed(self.plan.runs):  # those that start from others come first
            if run.key in keys and run.key in needed and self.store.pruned(run):
                self.store.forget(run)
                self.progress.say(f"pruned, fused again: {run.label} ({run.key})")
                keys.discard(run.key)
            if run.key not in keys:
                needed |= {parent.key for parent in run.parents}
        return [run for run in done if run.key in keys]

    def _whole(self, run: Run) -> bool:
        """Whether the result of a finished run can be read; if not, it is quarantined."""
        try:
            self.store.result(run)
        except Damaged:
            self._quarantine(run)
            return False
        return True

    def _quarantine(self, run: Run) -> None:
        self.store.quarantine(self.store.path(run))
        self.progress.say(f"corrupt; quarantined and recomputed: {run.label} ({run.key})")

    def _stack(self, run: Run) -> int:
        """How many finetunings like this one are trained as one."""
        finetunings = sum(run.kind in STACKED for run in self.plan.runs)
        return stack(self.settings, self.store.path(run.parents[0]) / "model", finetunings)

    def carry_out(self) -> dict[str, str]:
        """Execute until nothing is left that can run. Returns the reasons of failed runs by key."""
        todo = bool(self.schedule.waiting)
        try:
            with self.leases.renewing():
                if self.settings.executor == "serial":
                    self._serially()
                else:
                    self._in_pool()
        except BaseException:
            self.store.sweep()
            self._tell("stopped; finished runs are kept")
            raise
        took, failed = duration(time.monotonic() - self.started), self.schedule.failed
        text = f"{self.computed} computed in {took}" if todo else "all finished already"
        if failed or self.schedule.waiting:
            lost = len(self.schedule.waiting)
            text += f"; {len(failed)} failed, {lost} skipped because they depend on those"
        self._tell(text)
        return failed

    def _serially(self) -> None:
        """One run after the other, in this thread."""
        while self._unfinished():
            batch = self._next()
            self._show()
            if self.stopped.is_set():
                raise Stopped
            if not batch:
                time.sleep(POLL)
                continue
            try:
                unfit = _perform(batch, self.store, self.settings.device, self._watch)
            except Exception as error:
                self._book(batch, error)
            else:
                self._book(batch, None)
                self._one_by_one(unfit)

    def _watch(self) -> None:
        """Called by a run in this thread whenever it reports progress."""
        self._show()
        if self.stopped.is_set():
            raise Stopped

    def _in_pool(self) -> None:
        """Keep the workers busy; if one of them dies, restart what was running."""
        while self._unfinished():
            with self.pool() as pool:
                alive = pool.submit(os.getpid)
                try:
                    self._drain(pool)
                except BrokenProcessPool as error:
                    if alive.exception():
                        raise RuntimeError(START_FAILED) from error
                    self._recover()

    def _drain(self, pool) -> None:
        futures: dict = {}
        while True:
            if self.stopped.is_set():
                raise Stopped
            self.at_once = self.places()
            most = 1 if self.schedule.suspect else self.at_once
            while len(futures) < most and (batch := self._next()):
                futures[pool.submit(_work, batch, self.store.root, self.settings.device)] = batch
            if not futures and not self._unfinished():
                return
            self._show()
            if not futures:
                time.sleep(POLL)
                continue
            first = concurrent.futures.FIRST_COMPLETED
            for future in concurrent.futures.wait(futures, POLL, first).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                self._book(futures.pop(future), error)
                if not error:
                    self._one_by_one(future.result())

    def _unfinished(self) -> bool:
        """Whether a run is ready, here or elsewhere."""
        return self.schedule.any_ready or bool(self.schedule.elsewhere)

    def _next(self) -> list[Run]:
        """The next batch of runs that no other command computes; leases are taken for them."""
        for run in list(self.schedule.elsewhere.values()):
            done = self.store.has(run)
            if done or self.leases.is_free(run.key):
                self.schedule.resume(run, done)
        while batch := self.schedule.next():
            with self.store.writing():
                ours = [run for run in batch if self.leases.take(run.key)]
            done = [run for run in ours if self.store.has(run)]  # until just now elsewhere
            self._finish(done, here=False)
            self.schedule.leave(run for run in batch if run not in ours)
            if left := [run for run in ours if run not in done]:
                return left
        return []

    def _recover(self) -> None:
        """A worker died: record what it finished, and retry the rest of what was running."""
        batch = list(self.schedule.under_way.values())
        labels = ", ".join(run.label for run in batch)
        self.progress.say(f"a worker process died; retrying: {labels}")
        self._finish([run for run in batch if self.store.has(run)])
        for run in self.schedule.died(list(self.schedule.under_way.values())):
            self.store.record_failure(run, self.schedule.failed[run.key])

    def _book(self, batch: list[Run], error: BaseException | None) -> None:
        """Record the outcome of a batch; a store that cannot be written ends the pass."""
        if error is None:
            self._finish(batch)
        elif isinstance(error, Damaged):
            parents = {parent.key: parent for run in batch for parent in run.parents}
            broken = parents.get(error.key)
            known = error.key in self.schedule.done
            if not broken or not self.schedule.redo(broken, batch):
                raise error
            if known:
                self._quarantine(broken)
        elif isinstance(error, StoreError):
            raise error
        else:
            kept = [run for run in batch if self.store.has(run)]  # of a stack
            self._finish(kept)
            batch = [run for run in batch if run not in kept]
            for run in self.schedule.fail(batch, _reason(error)) if batch else []:
                self.leases.release([run.key])
                if not self.store.failure_file(run.key).is_file():  # its worker could not report it
                    with self.store.writing():
                        said = "".join(traceback.format_exception(error))
                        self.store.record_failure(run, said)

    def _one_by_one(self, unfit: str) -> None:
        """Say once why finetunings are not trained as one, if they are not."""
        if unfit and unfit not in self.unfit:
            self.unfit.add(unfit)
            self.progress.say(f"these models are trained one by one, not as a stack: {unfit}")

    def _finish(self, batch: list[Run], here: bool = True) -> None:
        self.schedule.finish(batch)
        self.leases.release(run.key for run in batch)
        self.computed += len(batch) * here
        for run in batch:
            self.pace.learn(run, self.store.result(run)["seconds"])

    def _show(self) -> None:
        """One line: how many are done, the rate, the time left, what is running."""
        if time.monotonic() - self.shown < POLL:
            return
        self.shown, parts = time.monotonic(), []
        if self.computed:
            parts.append(f"{60 * self.computed / (time.monotonic() - self.started):.0f} a minute")
        seconds = self.pace.seconds(self.schedule.left) / max(self.at_once, 1)
        if not math.isnan(seconds):
            parts.append(f"about {duration(seconds)} left")
        if self.schedule.failed:
            parts.append(f"{len(self.schedule.failed)} failed")
        if elsewhere := len(self.schedule.elsewhere):
            parts.append(f"{elsewhere} under way in another process")
        elif not self.schedule.under_way:
            parts.append("waiting for a worker")
        for run in list(self.schedule.under_way.values())[:1]:
            parts.append(f"{run.kind} {self.store.progress(run) or run.label}")
        self.progress.update(len(self.schedule.done), ", ".join(parts))

    def _tell(self, text: str) -> None:
        self.progress.update(len(self.schedule.done), text, last=True)


def _reason(error: BaseException) -> str:
    """Why a run failed, in one line; the errors of a user's input speak for themselves."""
    said = " ".join(str(error).split())
    return said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"


def _work(batch: list[Run], root, device: str) -> str:
    return _perform(batch, Store(root), device, lambda: None)


def _perform(batch: list[Run], store: Store, device: str, watch: Callable[[], None]) -> str:
    """Execute a batch; returns why its runs could not be stacked, if they could not."""
    from fusinglib.study import steps  # torch: needed only where runs are executed

    if len(batch) > 1 and batch[0].kind != "fuse":
        return steps.perform_stack(batch, store, device, watch)
    if len(batch) > 1:
        steps.perform_means(batch, store)
    else:
        steps.perform(batch[0], store, device, watch)
    return ""
