"""A Dask cluster carries a plan out: the same bits, whoever is lost on the way."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import dask
import distributed
import pytest

from fusinglib.errors import InputError
from fusinglib.progress import Progress
from fusinglib.study import cluster
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable
from fusinglib.study.store import Store


@pytest.fixture
def study(mini):
    """Makes plan, store and settings of the tiny grid on a cluster, some parameters changed."""

    def make(**changed):
        settings = FamilyTable.from_parameters({**mini, "executor": "dask", **changed})
        return plan_experiment(settings), Store(settings.store_folder()), settings

    return make


@pytest.fixture
def start():
    """Starts a scheduler, or a worker; all are ended with the test."""
    processes = []

    def begin(*words):
        """The process, and the address that it says it has."""
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        for line in process.stderr:
            if found := re.search(r"(?:Scheduler|Start worker) at: *(tcp://\S+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                return process, found[1]
        raise AssertionError(f"{words} did not start")

    yield begin
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


SCHEDULER = ("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")


def worker(address):
    return ("worker", address, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1")


def undisturbed(study, tmp_path, **changed):
    changed |= {"executor": "serial", "scheduler": "", "store": str(tmp_path / "serial")}
    plan, store, settings = study(**changed)
    return execute(plan, store, settings).drop(columns="seconds")


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)


def when(condition, act):
    """Do `act` in the background as soon as `condition` holds."""

    def follow():
        while not condition():
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_local_cluster_gives_the_same_bits(study, tmp_path, capfd):
    plan, store, settings = study(workers=2)
    frame = execute(plan, store, settings)
    assert frame.drop(columns="seconds").equals(undisturbed(study, tmp_path))
    assert re.search(r"scheduler tcp://\S+; its dashboard: http://\S+", capfd.readouterr().out)


@pytest.mark.slow
def test_a_cluster_object_is_used_and_left_open(study):
    plan, store, settings = study(seeds=[0])
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0"
    ) as ours:
        assert execute(plan, store, settings, ours).accuracy.notna().all()
        with distributed.Client(ours) as client:
            assert len(client.scheduler_info(n_workers=-1)["workers"]) == 1


@pytest.mark.slow
def test_workers_that_come_late_are_waited_for(study, start, capfd, monkeypatch):
    shown = []
    monkeypatch.setattr(Progress, "update", lambda self, done, text, last=False: shown.append(text))
    _, address = start(*SCHEDULER)
    latest = time.monotonic() + 60
    late = when(
        lambda: "waiting for a worker" in shown or time.monotonic() > latest,
        lambda: start(*worker(address)),
    )
    plan, store, settings = study(scheduler=address, seeds=[0])
    assert execute(plan, store, settings).accuracy.notna().all()
    late.join()
    assert "waiting for a worker" in shown
    assert capfd.readouterr().out.count("its dashboard") == 1


@pytest.mark.slow
def test_two_workers_lost_one_after_the_other(study, start, tmp_path, capfd):
    _, address = start(*SCHEDULER)
    workers = [start(*worker(address))[0] for _ in range(3)]
    plan, store, settings = study(scheduler=address, store=str(tmp_path / "shared"), stack=1)
    killers = [
        when(lambda: len(store.folders()) >= 4, lambda: kill(workers[0])),
        when(lambda: len(store.folders()) >= 10, lambda: kill(workers[1])),
    ]
    frame = execute(plan, store, settings)
    for killer in killers:
        killer.join()
    said = capfd.readouterr().out
    assert said.count("is lost; its runs are retried") == 2
    assert frame.drop(columns="seconds").equals(undisturbed(study, tmp_path, stack=1))


@pytest.mark.slow
def test_the_scheduler_lost_at_random_moments(study, start, tmp_path):
    plan, store, _ = study(store=str(tmp_path / "shared"), stack=1)
    rng, kills = random.Random(0), 5
    for number in range(kills):
        scheduler, address = start(*SCHEDULER)
        start(*worker(address))
        wanted = int(len(plan.runs) * (number + rng.random()) / kills)
        killer = when(lambda: len(store.folders()) >= wanted, lambda: kill(scheduler))  # noqa: B023
        with pytest.raises(InputError, match="is lost: restart it and its workers"):
            execute(*study(scheduler=address, store=str(store.root), stack=1))
        killer.join()
    frame = execute(*study(executor="processes", store=str(store.root), stack=1))
    assert frame.drop(columns="seconds").equals(undisturbed(study, tmp_path, stack=1))


@pytest.mark.slow
def test_a_worker_that_does_not_fit_is_refused(study, start, tmp_path, monkeypatch):
    _, address = start(*SCHEDULER)
    start(*worker(address))
    with pytest.raises(InputError, match="worker tcp://.* has no cuda: set device to auto"):
        execute(*study(scheduler=address, device="cuda"))
    monkeypatch.setattr(cluster, "version", lambda name: "0.0")
    with pytest.raises(InputError, match="worker tcp.* has .* [0-9.]+, expected 0.0: install"):
        execute(*study(scheduler=address))


def test_a_worker_without_the_store_is_refused(tmp_path):
    versions, problem = cluster._offer(tmp_path / "runs" / ".pending" / "token", "auto")
    assert not versions and problem.startswith(f"cannot see the store {tmp_path / 'runs'}")


def test_a_client_that_just_lost_its_scheduler(tmp_path):
    """It says nothing of workers for a moment, before its tasks are cancelled."""
    lost = cluster.Cluster("tcp://x:1", 1, Store(tmp_path), "cpu", print)
    lost.client = SimpleNamespace(scheduler_info=lambda n_workers: {})
    with pytest.raises(OSError, match="does not answer"):
        lost.places()


def test_no_scheduler_is_named(study, monkeypatch):
    monkeypatch.setitem(dask.config.config["distributed"]["comm"]["timeouts"], "connect", "1s")
    plan, store, settings = study(scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="no scheduler at 'tcp://127.0.0.1:9'.*dask worker"):
        execute(plan, store, settings)


def test_a_scheduler_is_for_dask_alone(study):
    with pytest.raises(InputError, match="'scheduler' is 'tcp://x:1'"):
        study(executor="processes", scheduler="tcp://x:1")
