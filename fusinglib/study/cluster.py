"""Execute a plan on the workers of a Dask cluster: on this machine, on others, on Slurm."""

import contextlib
import platform
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import distributed
from distributed.client import ClosedClientError

from fusinglib.errors import InputError
from fusinglib.study.store import PENDING, Store

SAME = ("fusinglib", "torch", "transformers", "tokenizers", "numpy")
"""Packages that affect a run's bits or its key."""


class Cluster:
    """Workers of a Dask cluster, each with one run at a time; calling it returns them as a context.

    `cluster` is a cluster object of Dask, the address of a scheduler, or "" for a local cluster of
    `workers` processes that ends with the context. Dask hands the runs of a lost worker to another
    one, up to three times; a run computed twice is harmless, since the store keeps the first.
    Workers may come and go. `say` is called with events. Raises `InputError` if a worker does not
    qualify (it must see the store, offer the device, and have our versions), or if the scheduler is
    lost.
    """

    def __init__(
        self, cluster, workers: int, store: Store, device: str, say: Callable[[str], None]
    ):
        self.cluster, self.workers, self.store = cluster, workers, store
        self.device, self.say = device, say
        self.client: distributed.Client
        self.known: set[str] = set()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Executor]:
        """The cluster as an executor; remaining work is cancelled if the block fails."""
        with contextlib.ExitStack() as stack:
            if not self.cluster:
                self.cluster = stack.enter_context(
                    distributed.LocalCluster(
                        n_workers=self.workers,
                        threads_per_worker=1,
                        host="127.0.0.1",
                        dashboard_address="127.0.0.1:0",
                    )
                )
            try:
                self.client = stack.enter_context(distributed.Client(self.cluster))
            except (OSError, ValueError, TypeError) as error:  # TypeError: without TLS
                raise InputError(
                    f"parameter 'scheduler': no scheduler at {self.cluster!r} ({error}): start one "
                    f"with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`; "
                    f"for tls:// Dask's configuration must name certificates"
                ) from error
            assert self.client.scheduler
            address, dashboard = self.client.scheduler.address, self.client.dashboard_link
            self.say(f"scheduler {address}; its dashboard: {dashboard}")
            executor = self.client.get_executor(pure=False)
            try:
                yield executor
            except (CancelledError, OSError) as error:  # from its tasks, or from the connection
                raise InputError(LOST.format(address)) from error
            finally:
                with contextlib.suppress(ClosedClientError):  # the scheduler is lost
                    executor.shutdown(wait=False)

    def places(self) -> int:
        """The number of workers; new ones are checked, and lost ones reported."""
        said = self.client.scheduler_info(n_workers=-1)
        if "workers" not in said:  # a client that has lost its scheduler says nothing
            raise ConnectionError("the scheduler does not answer")
        here = set(said["workers"])
        for address in sorted(self.known - here):
            self.say(f"worker {address} is lost; its runs are retried")
        if new := here - self.known:
            self._examine(sorted(new))
            self.say("joined: " + ", ".join(sorted(new)))
        self.known = here
        return len(here)

    def _examine(self, addresses: list[str]) -> None:
        """Raise `InputError` if a worker lacks the store, the device, or our versions."""
        token = self.store.root / PENDING / f"here-{uuid.uuid4().hex}"
        with self.store.writing():
            token.touch()
        try:
            offers: Any = self.client.run(_offer, token, self.device, workers=addresses)
        finally:
            token.unlink()
        ours = _versions()
        for address, (versions, problem) in offers.items():
            for name in (name for name, theirs in versions.items() if theirs != ours[name]):
                problem = (
                    f"has {name} {versions[name]}, expected {ours[name]}: install that version"
                )
            if problem:
                raise InputError(f"worker {address} {problem}")


LOST = (
    "the scheduler {} is lost: restart it and its workers, and execute again; finished runs are "
    "kept"
)


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: version(name) for name in SAME}}


def _offer(token: Path, device: str) -> tuple[dict[str, str], str]:
    """The versions on a worker and what it lacks, in words; runs on the worker, and removes what
    dead processes there left behind."""
    from fusinglib.study.steps import available

    if not token.exists():
        return {}, (
            f"cannot see the store {token.parent.parent}: use one on a file system that all "
            "machines share under the same path (parameter 'store' or FUSINGLIB_STORE)"
        )
    Store(token.parent.parent).sweep()
    if device != "auto" and available("auto") != device and device != "cpu":
        return _versions(), f"has no {device}: set device to auto or cpu, or start it on another"
    return _versions(), ""
