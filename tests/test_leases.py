"""Nothing is computed twice: commands that share a store wait for each other's runs."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from fusinglib import leases
from fusinglib.leases import LASTING, LEASES, Leases, machine
from fusinglib.study.execution import Execution, execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable
from fusinglib.study.steps import perform
from fusinglib.study.store import Store

COMMAND = """
import json, sys, time
from fusinglib.study import steps
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable
from fusinglib.study.store import Store
settings = FamilyTable.from_parameters(json.loads(sys.argv[1]))
execute(plan_experiment(settings), Store(settings.store_folder()), settings)
"""


def started(parameters, slow: float = 0) -> subprocess.Popen:
    """A process that executes a family table, with a pause in every run."""
    pause = f"""
from fusinglib.study import steps
for kind, step in list(steps.STEPS.items()):
    steps.STEPS[kind] = lambda *a, step=step: (__import__("time").sleep({slow}), step(*a))[1]
"""
    code = (pause if slow else "") + COMMAND
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(parameters)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def computed(process: subprocess.Popen) -> int:
    """How many runs a process says that it has computed."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "failed" not in out
    found = re.findall(r"(\d+) computed in", err)
    return int(found[-1]) if found else 0


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_two_equal_commands_compute_every_run_once(mini, encoder, executor):
    parameters = {**mini, "model": str(encoder), "executor": executor, "workers": 2}
    slow = 0.5 if executor == "serial" else 0  # so that they meet
    processes = [started(parameters, slow) for _ in range(2)]
    counts = [computed(process) for process in processes]
    settings = FamilyTable.from_parameters(parameters)
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    assert all(store.has(run) for run in plan.runs)
    assert sum(counts) == len(plan.runs) and (min(counts) > 0 or not slow)
    assert list((store.root / LEASES).iterdir()) == []


@pytest.mark.slow
def test_the_other_goes_on_when_one_is_killed(mini, encoder):
    """What a killed command was computing is computed at once, not when its lease runs out."""
    parameters = {**mini, "model": str(encoder)}
    settings = FamilyTable.from_parameters(parameters)
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    first = started(parameters, slow=1)
    while not list((store.root / LEASES).glob("[!.]*")):
        time.sleep(0.05)
    second = started(parameters)
    time.sleep(1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    began = time.monotonic()
    assert computed(second) >= len(plan.runs) - 5
    assert time.monotonic() - began < LASTING / 2
    assert all(store.has(run) for run in plan.runs)


@pytest.fixture
def two(tmp_path):
    """Two owners in a store, as if in two processes."""
    return Leases(tmp_path), Leases(tmp_path)


def test_a_lease_has_one_owner(two):
    one, other = two
    assert one.take("a") and one.take("a") and not other.take("a") and other.take("b")
    assert not other.is_free("a") and other.is_free("c")
    other.release(["a"])
    assert not other.take("a")
    one.release(["a", "b"])
    assert other.is_free("a") and not one.is_free("b") and other.take("a")


def test_one_of_many_threads_takes_a_lease(tmp_path):
    """Also one that has expired."""
    for expired in (False, True):
        key = f"run{expired}"
        if expired:
            Leases(tmp_path).take(key)
            os.utime(tmp_path / LEASES / key, (0, 0))
        owners, taken = [Leases(tmp_path) for _ in range(8)], []
        barrier = threading.Barrier(8)

        def race(owner, key=key, taken=taken, barrier=barrier):
            barrier.wait()
            if owner.take(key):
                taken.append(owner)

        threads = [threading.Thread(target=race, args=[owner]) for owner in owners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        assert (tmp_path / LEASES / key).read_text() == taken[0].owner


def test_a_lease_of_another_machine_expires_if_it_is_not_renewed(two, monkeypatch):
    one, other = two
    one.owner = "elsewhere 1 x"
    assert one.take("a") and not other.take("a")
    path = other.folder / "a"
    for age, free in ((LASTING - 30, False), (LASTING + 30, True)):
        now = path.stat().st_mtime
        os.utime(path, (now - age, now - age))
        assert other.is_free("a") is free
        os.utime(path)
    monkeypatch.setattr(leases, "RENEWED", 0.05)
    os.utime(path, (0, 0))
    with one.renewing():
        time.sleep(0.5)
        assert not other.take("a")
    assert other.take("a")
    assert not one._cleared("a")  # it is alive
    assert [file.name for file in other.folder.iterdir()] == ["a"]


def test_a_lease_of_a_dead_process_is_free_and_swept(two, tmp_path):
    one, other = two
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for key in "ab":
        one.owner = f"{machine()} {ended.pid} x"
        one.take(key)
    assert other.is_free("a") and other.take("a")
    Store(tmp_path).sweep()
    assert [file.name for file in other.folder.iterdir()] == ["a"]


def test_what_another_command_gives_up_is_computed_here(mini, encoder):
    """A run that is under way elsewhere is waited for; others go on meanwhile."""
    settings = FamilyTable.from_parameters({**mini, "model": str(encoder)})
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    elsewhere = Leases(store.root)
    sources = [run for run in plan.runs if run.kind == "source"]
    perform(plan.runs[0], store, "cpu")
    assert elsewhere.take(sources[0].key) and elsewhere.take(sources[1].key)
    seen = threading.Event()

    class Told:
        def update(self, done, text, last=False):
            if "2 under way in another process" in text and store.has(sources[2]):
                seen.set()

        def say(self, event):
            raise AssertionError(event)

    def other():
        assert seen.wait(60)
        perform(sources[0], store, "cpu")
        elsewhere.release([sources[0].key, sources[1].key])

    thread = threading.Thread(target=other)
    thread.start()
    execution = Execution(plan, store, settings, Told())
    assert execution.carry_out() == {}
    thread.join()
    assert all(store.has(run) for run in plan.runs)
    assert execution.computed == len(plan.runs) - 2  # the model, and what was computed elsewhere


def test_finished_studies_need_no_lease(mini, encoder):
    settings = FamilyTable.from_parameters({**mini, "model": str(encoder)})
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    execute(plan, store, settings)
    os.rmdir(store.root / LEASES)
    execute(plan, store, settings)
    assert not (store.root / LEASES).exists()
