"""Carry a plan out: serially or in processes, each run whole or absent, the rest going on."""

import concurrent.futures
import multiprocessing
import os
import threading
import time
from collections import defaultdict
from concurrent.futures.process import BrokenProcessPool

import pandas as pd

from fusinglib.errors import InputError
from fusinglib.plans import VERSIONS, Plan, Run, unique
from fusinglib.progress import Progress, duration
from fusinglib.settings import Study
from fusinglib.store import Store

POLL = 0.5
"""Seconds between two looks at the runs under way."""

TRIES = 3
"""How often a run is started whose worker process dies."""

RANK = {kind: rank for rank, kind in enumerate(VERSIONS)}
"""Of the runs that are ready, those that others wait for come first."""


def execute(plan: Plan, store: Store, settings: Study) -> pd.DataFrame:
    """Carry out what `store` lacks of `plan`, and return its results, a row per table row.

    A run that fails leaves its traceback in the store, what depends on it is left out, and the
    others go on. Raises `InputError` where the store can no longer be written.
    """
    store.sweep()
    Execution(plan, store, settings).carry_out()
    return results(plan, store)


def results(plan: Plan, store: Store) -> pd.DataFrame:
    """The finished rows of the plan as one tidy table; accuracies are fractions, 0 to 1."""
    rows = []
    for row in plan.rows:
        run = row["run"]
        if store.has(run):
            facts = {name: value for name, value in row.items() if name != "run"}
            rows.append({**facts, "key": run.key, **store.result(run)})
    return pd.DataFrame(rows)


def overview(plan: Plan, store: Store, settings: Study) -> pd.DataFrame:
    """What the plan asks for: runs by kind, how many are finished, and the minutes that the rest
    takes, from the mean of the finished runs of that kind (none: unknown)."""
    rows = []
    for kind in unique([[run.kind for run in plan.runs]]):
        runs = [run for run in plan.runs if run.kind == kind]
        taken = [store.result(run)["seconds"] for run in runs if store.has(run)]
        left = len(runs) - len(taken)
        seconds = left * sum(taken) / len(taken) if taken else None if left else 0
        minutes = None if seconds is None else seconds / workers(settings) / 60
        rows.append({"kind": kind, "runs": len(runs), "finished": len(taken), "minutes": minutes})
    return pd.DataFrame(rows).set_index("kind").astype({"minutes": float})


def workers(settings: Study) -> int:
    """How many runs go on at a time."""
    return 1 if settings.executor == "serial" else settings.workers


class Execution:
    """One pass over a plan: which runs are ready, under way, done, failed."""

    def __init__(self, plan: Plan, store: Store, settings: Study):
        self.plan, self.store, self.settings = plan, store, settings
        self.done = {run.key for run in plan.runs if store.has(run)}
        self.failed: dict[str, str] = {}
        self.waiting = [run for run in plan.runs if run.key not in self.done]
        self.todo = len(self.waiting)
        self.waiting.sort(key=lambda run: RANK[run.kind])
        self.under_way: dict[str, Run] = {}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.workers = workers(settings)
        self.progress = Progress(len(plan.runs))

    def carry_out(self) -> None:
        """Run until nothing is left that can run."""
        started = time.monotonic()
        if self.waiting:
            self._until_drained()
        took = duration(time.monotonic() - started)
        computed = self.todo - len(self.failed) - len(self.waiting)
        text = f"{computed} computed in {took}" if self.todo else "all there already"
        if self.failed or self.waiting:
            text += f"; {len(self.failed)} failed, {len(self.waiting)} left out for want of them"
        self.progress.update(len(self.done), text, last=True)
        for key, error in self.failed.items():
            print(f"failed: {key}: {error} (traceback in {self.store.root}/failed/{key}.txt)")

    def _next(self) -> Run | None:
        """A run whose parents are done, taken off the waiting list."""
        for run in self.waiting:
            if all(parent.key in self.done for parent in run.parents):
                self.waiting.remove(run)
                self.under_way[run.key] = run
                return run
        return None

    def _finish(self, run: Run, error: BaseException | None) -> None:
        """Book the outcome of a run; a store that cannot be written ends everything."""
        del self.under_way[run.key]
        if error is None:
            self.done.add(run.key)
            self.seconds[run.kind].append(self.store.result(run)["seconds"])
        elif isinstance(error, InputError) and "the store" in str(error):
            raise error
        else:
            self.failed[run.key] = f"{run.label}: {type(error).__name__}: {error}"

    def _until_drained(self) -> None:
        """Keep the workers busy; if one of their processes dies, start anew what it left."""
        starts: dict[str, int] = defaultdict(int)
        while self.waiting or self.under_way:
            try:
                with _pool(self.settings) as pool:
                    self._drain(pool, starts)
                return
            except BrokenProcessPool:
                for run in list(self.under_way.values()):
                    if self.store.has(run):
                        self._finish(run, None)
                    elif starts[run.key] >= TRIES:
                        self._finish(run, RuntimeError(f"its process died {TRIES} times"))
                    else:
                        del self.under_way[run.key]
                        self.waiting.insert(0, run)

    def _drain(self, pool, starts: dict[str, int]) -> None:
        futures: dict = {}
        while True:
            while len(futures) < self.workers and (run := self._next()):
                starts[run.key] += 1
                futures[pool.submit(_work, run, self.store.root, self.settings.device)] = run
            if not futures:
                return
            self._show()
            first = concurrent.futures.FIRST_COMPLETED
            for future in concurrent.futures.wait(futures, POLL, first).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                self._finish(futures.pop(future), error)

    def _show(self) -> None:
        """One line: how many are done, the rate, the time left, what is under way."""
        parts = []
        computed = sum(map(len, self.seconds.values()))
        if computed:
            mean = sum(map(sum, self.seconds.values())) / computed
            rest = [*self.waiting, *list(self.under_way.values())]
            left = sum(self._expected(run.kind, mean) for run in rest) / self.workers
            parts = [f"{60 * self.workers / mean:.0f} a minute", f"about {duration(left)} left"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        for run in list(self.under_way.values())[:1]:
            try:
                parts.append(f"{run.kind} " + self.store.progress_file(run).read_text())
            except OSError:
                parts.append(f"{run.kind} {run.label}")
        self.progress.update(len(self.done), ", ".join(parts))

    def _expected(self, kind: str, otherwise: float) -> float:
        taken = self.seconds[kind]
        return sum(taken) / len(taken) if taken else otherwise


def _pool(settings: Study) -> concurrent.futures.Executor:
    """The workers: one thread of this process, or processes of their own."""
    if settings.executor == "serial":
        return concurrent.futures.ThreadPoolExecutor(1)
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(
        settings.workers, mp_context=context, initializer=_start_worker
    )


def _start_worker() -> None:
    """A worker ends with the process that started it, even when that one is killed."""

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(run: Run, root, device: str) -> None:
    from fusinglib.steps import perform

    perform(run, Store(root), device)
