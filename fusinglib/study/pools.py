"""Worker processes on this machine: how many, and how they end together with their parent."""

import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from fusinglib.study.settings import Settings

GPU_SHARE = 8 * 2**30
"""GPU memory per run, in bytes, if `workers` is 0."""


SMALL, ON_A_PROCESSOR, ON_A_GPU = 2**24, 8, 32
"""Finetunings trained as one if `stack` is 0: on a processor those of models of up to so many
bytes, whose steps are mostly overhead; on a GPU all, or fewer where memory is too small."""

LEAST_STACKS = 16
"""A study has at least so many stacks on a processor, so that all cores have something to do. It is
not the number of cores: the same study is to have the same stacks everywhere."""


def stack(settings: Settings, model: Path, finetunings: int) -> int:
    """How many finetunings of models like that in this folder are trained as one, in a study of so
    many.

    With `stack` 0 none where that hardly gains: batches of texts of similar length would be padded
    to the longest of all runs, and parts of `micro_batch` texts would hold few of each run.
    """
    if settings.stack:
        return settings.stack
    if settings.group_by_length or settings.micro_batch:
        return 1
    if settings.device == "cuda" or _gpu_memory(settings):
        return ON_A_GPU
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    return max(1, min(ON_A_PROCESSOR, finetunings // LEAST_STACKS)) if size <= SMALL else 1


def workers(settings: Settings) -> int:
    """The number of parallel runs. With `workers` 0: as many as the cores of this process allow
    with `threads` each; on a GPU one, or if finetunings are trained alone (`stack` 1), at most one
    per `GPU_SHARE` of its free memory."""
    if settings.executor == "serial":
        return 1
    if settings.workers:
        return settings.workers
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    most = cores // settings.threads
    if memory := _gpu_memory(settings):
        most = min(most, memory // GPU_SHARE) if settings.stack == 1 else 1
    return max(1, most)


def _gpu_memory(settings: Settings) -> int:
    """The free memory of the GPU that runs use, in bytes; 0 if they use none."""
    if settings.device in ("auto", "cuda") and shutil.which("nvidia-smi"):
        import torch

        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0]
    return 0


@contextlib.contextmanager
def worker_pool(count: int) -> Iterator[concurrent.futures.Executor]:
    """Worker processes that end at once when the block fails or this process dies.

    They live as long as the other end of their pipe, which only this process holds, stays open.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(theirs,)
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
    """Worker processes that persist between passes; calling it returns them as a context.

    They are started immediately, in the background, and restarted after a pass that failed or was
    stopped, or when one of them has died. The creator closes it (see `kept_workers`).
    """

    def __init__(self, count: int):
        self.count = count
        self.context: contextlib.ExitStack | None = None
        self.pool: concurrent.futures.Executor | None = None
        self.start()

    def start(self) -> None:
        """Start the workers if necessary, and have them import what runs need."""
        if self.pool and self._broken():
            self.close()
        if self.pool is None:
            self.context = contextlib.ExitStack()
            self.pool = self.context.enter_context(worker_pool(self.count))
            for _ in range(self.count):
                self.pool.submit(_warm_up)

    def close(self) -> None:
        """End the workers at once."""
        context, self.context, self.pool = self.context, None, None
        with contextlib.suppress(_Closed):
            if context:
                with context:
                    raise _Closed

    def _broken(self) -> bool:
        assert self.pool
        try:
            self.pool.submit(os.getpid)
        except BrokenProcessPool:
            return True
        return False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[concurrent.futures.Executor]:
        self.start()
        assert self.pool
        try:
            yield self.pool
        except BaseException:
            self.close()
            raise


_KEPT: list[KeptPool] = []
_IN_USE = threading.Lock()


def keep(count: int) -> None:
    """Start the worker processes that this process keeps, at most one set, unless they are busy:
    playgrounds share them, and re-executing a cell starts no others."""
    if _IN_USE.acquire(blocking=False):
        with _released():
            _kept(count)


@contextlib.contextmanager
def kept_workers(count: int) -> Iterator[concurrent.futures.Executor]:
    """The workers that this process keeps; while another pass uses them, separate workers that end
    with the block. So stopping one pass never ends the runs of another."""
    if not _IN_USE.acquire(blocking=False):
        with worker_pool(count) as pool:
            yield pool
        return
    with _released(), _kept(count)() as pool:
        yield pool


def end_kept() -> None:
    """End the workers that this process keeps, once they are idle."""
    with _IN_USE:
        while _KEPT:
            _KEPT.pop().close()


@contextlib.contextmanager
def _released() -> Iterator[None]:
    try:
        yield
    finally:
        _IN_USE.release()


def _kept(count: int) -> KeptPool:
    if _KEPT and _KEPT[0].count != count:
        _KEPT.pop().close()
    if not _KEPT:
        _KEPT.append(KeptPool(count))
    _KEPT[0].start()
    return _KEPT[0]


class _Closed(Exception):
    """Raised to end a pool at once, as a failure would."""


def _warm_up() -> None:
    import fusinglib.study.steps  # noqa: F401


def _start_worker(parent: multiprocessing.connection.Connection) -> None:
    """Leave Ctrl-C to the parent; end when the parent closes its end of the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        parent.poll(None)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
