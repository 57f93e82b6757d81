"""Carry a plan out: serially or in processes, each run whole or absent, the rest going on."""

import concurrent.futures
import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool

import pandas as pd

from fusinglib.errors import Damaged, InputError, StoreError
from fusinglib.progress import Progress, duration
from fusinglib.study.plans import VERSIONS, Plan, Run, unique
from fusinglib.study.settings import Study
from fusinglib.study.store import Store


class Stopped(Exception):
    """A pass over a plan was stopped; finished runs are kept."""


POLL = 0.5
"""Seconds between two looks at the runs under way, and between two lines of progress."""

GPU_SHARE = 8 * 2**30
"""Bytes of a GPU's memory that a run is given where `workers` is 0."""

TRIES = 3
"""How often a run is started whose worker process dies."""

START_FAILED = (
    "the worker processes do not start; in a script of your own, call execute under "
    "`if __name__ == '__main__':`, or set executor to 'serial'"
)

RANK = {kind: rank for rank, kind in enumerate(VERSIONS)}
"""Of the runs that are ready, those that others wait for come first."""


def execute(plan: Plan, store: Store, settings: Study, cluster=None) -> pd.DataFrame:
    """Carry out what `store` lacks of `plan`, and return its results, a row per table row.

    A run that fails leaves its traceback in the store, what depends on it is left out, and the
    others go on. `cluster` is one of Dask's cluster objects, which the executor "dask" then uses
    instead of the setting `scheduler`. Raises `StoreError` where the store can no longer be
    written.
    """
    store.sweep()
    progress, places = Progress(len(plan.runs)), {}
    if settings.executor == "dask":
        on = _cluster(cluster or settings.scheduler, store, settings, progress)
        places = {"pool": on, "places": on.places}
    execution = Execution(plan, store, settings, progress, **places)
    execution.carry_out()
    for key, error in execution.failed.items():
        print(f"failed: {key}: {error} (traceback in {store.failure_file(key)})")
    return results(plan, store)


def _cluster(cluster, store: Store, settings: Study, progress: Progress):
    try:
        from fusinglib.study.cluster import Cluster
    except ModuleNotFoundError as error:
        raise InputError(
            f"executor 'dask' needs the package {error.name}: pip install 'fusinglib[cluster]'"
        ) from error
    return Cluster(cluster, workers(settings), store, settings.device, progress.say)


def results(plan: Plan, store: Store) -> pd.DataFrame:
    """The rows of the plan as one tidy table; accuracies are fractions, 0 to 1.

    The accuracy of a run that is not finished is not a number.
    """
    rows = []
    for row in plan.rows:
        run = row["run"]
        facts = {name: value for name, value in row.items() if name != "run"}
        outcome = store.result(run) if store.has(run) else {"accuracy": math.nan}
        outcome.pop("notes", None)  # of the data, for all runs on a task alike
        rows.append({**facts, "key": run.key, **outcome})
    return pd.DataFrame(rows)


def overview(plan: Plan, store: Store, settings: Study) -> pd.DataFrame:
    """What the plan asks for: runs by kind, how many are finished, and the minutes that the rest
    takes, going by the runs that are finished (unknown without any)."""
    finished = [run for run in plan.runs if store.has(run)]
    pace, done = Pace(finished, store), {run.key for run in finished}
    rows = []
    for kind in unique([[run.kind for run in plan.runs]]):
        runs = [run for run in plan.runs if run.kind == kind]
        left = [run for run in runs if run.key not in done]
        minutes = pace.seconds(left) / workers(settings) / 60
        count = {"runs": len(runs), "finished": len(runs) - len(left)}
        rows.append({"kind": kind, **count, "minutes": minutes})
    return pd.DataFrame(rows).set_index("kind")


def workers(settings: Study) -> int:
    """How many runs go on at a time. With `workers` 0: one for each core that this process may
    use, counted with `threads`; on a GPU one for every `GPU_SHARE` of its free memory at most."""
    if settings.executor == "serial":
        return 1
    if settings.workers:
        return settings.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = cores // settings.threads
    if settings.device in ("auto", "cuda") and shutil.which("nvidia-smi"):
        import torch

        if torch.cuda.is_available():
            most = min(most, torch.cuda.mem_get_info()[0] // GPU_SHARE)
    return max(1, most)


class Pace:
    """How long runs take, learnt from finished ones of the same kind.

    As long as there are none, finetuning takes as long per example of its `max_steps` as
    finetuning of the other kind, and copying and fusing take no time.
    """

    def __init__(self, finished: list[Run], store: Store):
        self.taken: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))  # sum, count
        for run in finished:
            self.learn(run, store.result(run)["seconds"])

    def learn(self, run: Run, seconds: float) -> None:
        """Take note that `run` took `seconds`."""
        self._add(run.kind, seconds)
        if examples := _examples(run):
            self._add("per example", seconds / examples)

    def _add(self, name: str, seconds: float) -> None:
        total, count = self.taken[name]
        self.taken[name] = total + seconds, count + 1

    def seconds(self, runs: list[Run]) -> float:
        """How long `runs` take one after the other; not a number where that is unknown."""
        return sum(self._expected(run) for run in runs)

    def _expected(self, run: Run) -> float:
        (total, count), factor = self.taken[run.kind], 1
        if not count and _examples(run):
            (total, count), factor = self.taken["per example"], _examples(run)
        if count:
            return factor * total / count
        return 0 if run.kind in ("import", "random", "fuse") else math.nan


def _examples(run: Run) -> int:
    """How many examples a finetuning sees at most; 0 for other runs."""
    training = run.settings.get("training")
    return training["max_steps"] * training["batch_size"] if training else 0


def _is_mean(run: Run) -> bool:
    """Whether a run is a plain mean, which can be made in one pass with others."""
    return run.kind == "fuse" and not run.settings


class Execution:
    """One pass over a plan: which runs are ready, under way, done, failed.

    `progress` is told how far it is; `pool` gives worker processes, as a context, and `places` how
    many runs they can have under way; once `stopped` is set, the pass ends with `Stopped`, and so
    do the runs under way.
    """

    def __init__(self, plan: Plan, store: Store, settings: Study, progress, pool=None, places=None):
        self.plan, self.store, self.settings = plan, store, settings
        self.progress = progress
        self.stopped = threading.Event()
        self.pool = pool or (lambda: worker_pool(self.workers))
        self.again: set[str] = set()
        self.done: set[str] = set()
        finished = [run for run in plan.runs if store.has(run) and self._sound(run)]
        self.done |= {run.key for run in finished}
        self.failed: dict[str, str] = {}
        self.alone: set[str] = set()
        self.waiting = [run for run in plan.runs if run.key not in self.done]
        self.waiting.sort(key=lambda run: RANK[run.kind])
        self.under_way: dict[str, Run] = {}
        self.deaths: dict[str, int] = defaultdict(int)
        self.computed = 0
        self.started, self.shown = time.monotonic(), -math.inf
        self.pace = Pace(finished, store)
        self.workers = workers(settings)
        self.places = places or (lambda: self.workers)

    def _sound(self, run: Run) -> bool:
        """Whether the result of a finished run can be read; if not, it is set aside."""
        try:
            self.store.result(run)
        except Damaged:
            self._set_aside(run)
            return False
        return True

    def carry_out(self) -> None:
        """Run until nothing is left that can run."""
        todo = bool(self.waiting)
        try:
            if self.settings.executor == "serial":
                self._serially()
            else:
                self._in_pool()
        except BaseException:
            self.store.sweep()
            self.progress.update(len(self.done), "stopped; finished runs are kept", last=True)
            raise
        took = duration(time.monotonic() - self.started)
        text = f"{self.computed} computed in {took}" if todo else "all there already"
        if self.failed or self.waiting:
            text += f"; {len(self.failed)} failed, {len(self.waiting)} left out for want of them"
        self.progress.update(len(self.done), text, last=True)

    def _ready(self, run: Run) -> bool:
        return all(parent.key in self.done for parent in run.parents)

    def _any_ready(self) -> bool:
        return any(self._ready(run) for run in self.waiting)

    def _next(self) -> list[Run]:
        """A run whose parents are done, taken off the waiting list; of means all that share a model
        with it, to be made in one pass."""
        first = next((run for run in self.waiting if self._ready(run)), None)
        if not first:
            return []
        batch = [first]
        if _is_mean(first) and first.key not in self.alone:
            batch += [run for run in self.waiting if run is not first and self._joins(run, first)]
        for run in batch:
            self.waiting.remove(run)
            self.under_way[run.key] = run
        return batch

    def _joins(self, run: Run, first: Run) -> bool:
        """Whether a mean can be made in the same pass as the first one."""
        if not _is_mean(run) or run.key in self.alone or not self._ready(run):
            return False
        return not {parent.key for parent in run.parents}.isdisjoint(p.key for p in first.parents)

    def _finish_all(self, batch: list[Run], error: BaseException | None) -> None:
        """Book the outcome of a batch; the runs of one that failed go again, each for itself."""
        if isinstance(error, Damaged):
            self._make_again(error, batch)
            return
        if error is None or len(batch) == 1 or isinstance(error, StoreError):
            for run in batch:
                self._finish(run, error)
            return
        for run in batch:
            del self.under_way[run.key]
            self.alone.add(run.key)
            self.waiting.insert(0, run)

    def _make_again(self, error: Damaged, batch: list[Run]) -> None:
        """Set a damaged run aside; it goes again, and then what needed it. Once in a pass: a disk
        that damages it again ends everything."""
        parents = {parent.key: parent for run in batch for parent in run.parents}
        for run in batch:
            del self.under_way[run.key]
        if error.key in self.done:
            if error.key in self.again:
                raise error
            self._set_aside(parents[error.key])
            batch = [parents[error.key], *batch]
        self.waiting[:0] = batch

    def _set_aside(self, run: Run) -> None:
        self.store.set_aside(self.store.path(run))
        self.progress.say(f"damaged, set aside and made again: {run.label} ({run.key})")
        self.again.add(run.key)
        self.done.discard(run.key)

    def _finish(self, run: Run, error: BaseException | None) -> None:
        """Book the outcome of a run; a store that cannot be written ends everything."""
        del self.under_way[run.key]
        if error is None:
            self.done.add(run.key)
            self.computed += 1
            self.pace.learn(run, self.store.result(run)["seconds"])
        elif isinstance(error, StoreError):
            raise error
        else:
            self.failed[run.key] = f"{run.label}: {type(error).__name__}: {error}"

    def _serially(self) -> None:
        """One run after the other, in this very thread."""
        while batch := self._next():
            self._show()
            if self.stopped.is_set():
                raise Stopped
            try:
                _perform(batch, self.store, self.settings.device, self._show)
            except Exception as error:
                self._finish_all(batch, error)
            else:
                self._finish_all(batch, None)

    def _in_pool(self) -> None:
        """Keep the workers busy; if one of them dies, start anew what was under way."""
        while self._any_ready():
            with self.pool() as pool:
                alive = pool.submit(os.getpid)
                try:
                    self._drain(pool)
                except BrokenProcessPool as error:
                    if alive.exception():
                        raise RuntimeError(START_FAILED) from error
                    self._recover()

    def _recover(self) -> None:
        """A worker died: what was under way goes again, alone, until it has died too often."""
        labels = ", ".join(run.label for run in self.under_way.values())
        self.progress.say(f"a worker process died; what was under way is tried again: {labels}")
        for run in list(self.under_way.values()):
            self.deaths[run.key] += 1
            if self.store.has(run):
                self._finish(run, None)
            elif self.deaths[run.key] >= TRIES:
                death = RuntimeError(f"its process died {TRIES} times (for want of memory?)")
                self.store.record_failure(run, str(death))
                self._finish(run, death)
            else:
                del self.under_way[run.key]
                self.waiting.insert(0, run)

    def _places(self) -> int:
        """How many runs may go on at a time: one while one of them has seen a worker die."""
        pending = (run for runs in (self.waiting, self.under_way.values()) for run in runs)
        suspect = self.deaths and any(run.key in self.deaths for run in pending)
        return 1 if suspect else self.places()

    def _drain(self, pool) -> None:
        futures: dict = {}
        while True:
            if self.stopped.is_set():
                raise Stopped
            while len(futures) < self._places() and (batch := self._next()):
                futures[pool.submit(_work, batch, self.store.root, self.settings.device)] = batch
            if not futures and not self._any_ready():
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
                self._finish_all(futures.pop(future), error)

    def _show(self) -> None:
        """One line: how many are done, the rate, the time left, what is under way."""
        if time.monotonic() - self.shown < POLL:
            return
        self.shown, parts = time.monotonic(), []
        if self.computed:
            parts.append(f"{60 * self.computed / (time.monotonic() - self.started):.0f} a minute")
        left = self.pace.seconds([*self.waiting, *self.under_way.values()]) / self.workers
        if not math.isnan(left):
            parts.append(f"about {duration(left)} left")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if not self.under_way:
            parts.append("waiting for a worker")
        for run in list(self.under_way.values())[:1]:
            parts.append(f"{run.kind} {self.store.progress(run) or run.label}")
        self.progress.update(len(self.done), ", ".join(parts))


@contextlib.contextmanager
def worker_pool(workers: int) -> Iterator[concurrent.futures.Executor]:
    """Worker processes; when the block fails or this process dies, they end at once.

    They live as long as the other end of their pipe, which is held here alone, stays open.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(theirs,)
    )
    try:
        yield pool
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown()
        ours.close()
        theirs.close()


class KeptPool:
    """Worker processes that stay between two passes; called, it gives them as a context.

    They are started at once, in the background, and anew after a pass that failed or was stopped.
    """

    def __init__(self, workers: int):
        self.workers, self.context, self.pool = workers, None, None
        self.start()

    def start(self) -> None:
        """Start the workers, unless they are there, and have them import what runs need."""
        if self.pool is None:
            self.context = contextlib.ExitStack()
            self.pool = self.context.enter_context(worker_pool(self.workers))
            for _ in range(self.workers):
                self.pool.submit(_warm_up)

    def stop(self) -> None:
        """End the workers at once."""
        context, self.context, self.pool = self.context, None, None
        with contextlib.suppress(Stopped):
            if context:
                with context:
                    raise Stopped

    @contextlib.contextmanager
    def __call__(self) -> Iterator[concurrent.futures.Executor]:
        self.start()
        try:
            yield self.pool
        except BaseException:
            self.stop()
            raise


def _warm_up() -> None:
    import fusinglib.study.steps  # noqa: F401


def _start_worker(parent: multiprocessing.connection.Connection) -> None:
    """Leave Ctrl-C to the parent, and end when the parent closes its end of the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(batch: list[Run], root, device: str) -> None:
    _perform(batch, Store(root), device, lambda: None)


def _perform(batch: list[Run], store: Store, device: str, watch: Callable[[], None]) -> None:
    from fusinglib.study import steps  # torch: needed only where runs are carried out

    if len(batch) > 1:
        steps.perform_means(batch, store)
    else:
        steps.perform(batch[0], store, device, watch)
