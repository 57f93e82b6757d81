"""Execution: every executor gives the same bits, nothing is made twice, failures stay local."""

import contextlib
import dataclasses
import hashlib
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pytest
import torch

from fusinglib.errors import InputError
from fusinglib.evaluation import tables
from fusinglib.integrity import HASHES, problems, write_json
from fusinglib.places import PROJECT
from fusinglib.study import pools, steps
from fusinglib.study.costs import Pace, estimate
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import Run
from fusinglib.study.settings import FamilyTable
from fusinglib.study.steps import perform
from fusinglib.study.store import DAMAGED, Store
from fusinglib.training import models, stacked
from fusinglib.training.tokens import Tokens

INTERRUPTED = """
import json, sys
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable
from fusinglib.study.store import Store

if __name__ == "__main__":
    settings = FamilyTable.from_parameters(json.load(open(sys.argv[1])))
    execute(plan_experiment(settings), Store(settings.store_folder()), settings)
"""


@pytest.fixture
def study(mini):
    """Makes settings, plan and store of the tiny grid, some parameters changed."""

    def make(**changed):
        settings = FamilyTable.from_parameters({**mini, **changed})
        return plan_experiment(settings), Store(settings.store_folder()), settings

    return make


def made(store):
    """Inode and time of every finished run."""
    stats = {path.parent.name: path.stat() for path in store.root.glob("[!.]*/*/result.json")}
    return {key: (stat.st_ino, stat.st_mtime_ns) for key, stat in stats.items()}


def workers(store, key=""):
    """The processes that have runs under way, or that of the run `key`."""
    return [int(path.name.split("-")[-2]) for path in store.root.glob(f".pending/{key}*-*")]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_executors_agree_bit_for_bit_and_make_nothing_twice(study, tmp_path):
    frames, files = [], []
    for executor in ("serial", "processes"):
        plan, store, settings = study(executor=executor, store=str(tmp_path / executor))
        frames.append(execute(plan, store, settings))
        before = made(store)
        again = execute(*study(executor=executor, store=str(tmp_path / executor)))
        assert again.equals(frames[-1]) and made(store) == before
        assert len(before) == len(plan.runs) and len(frames[-1]) == len(plan.rows) == 18
        kept = [run for run in plan.runs if run.kind in ("pretrain", "source")]
        weights = [store.model(run) / "model.safetensors" for run in kept]
        files.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in weights])
    serial, processes = (frame.drop(columns="seconds") for frame in frames)
    assert serial.equals(processes)
    assert files[0] == files[1] and len(set(files[0])) == 1 + 3
    assert serial.groupby("seed").accuracy.apply(tuple).nunique() == 2, "seeds must matter"


def test_runs_of_before_get_macro_f1_and_majority_of_their_predictions(study, monkeypatch):
    plan, store, settings = study()
    found = execute(plan, store, settings)
    assert found["macro_f1"].between(0, 1).all() and found["majority"].between(0, 1).all()
    whole = Store.result

    def before(self, run):
        return {k: v for k, v in whole(self, run).items() if k not in ("macro_f1", "majority")}

    monkeypatch.setattr(Store, "result", before)
    again = results(plan, store)
    pd.testing.assert_frame_equal(again[found.columns], found)


def test_the_store_is_found_from_any_folder(study, mini, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSINGLIB_STORE", str(tmp_path / "shared"))
    counts = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        plan, store, settings = study(store="", seeds=[0])
        counts.append(int(estimate(plan, store, settings).loc["all", "finished"]))
        execute(plan, store, settings)
    assert counts == [0, len(plan.runs)]
    monkeypatch.delenv("FUSINGLIB_STORE")
    assert study(store="", seeds=[0])[2].store_folder() == PROJECT / "runs"


def test_means_are_made_in_one_pass_and_are_those_made_alone(study, tmp_path, monkeypatch):
    plan, store, settings = study(executor="serial")
    passes = []
    one_pass = steps.perform_means
    monkeypatch.setattr(steps, "perform_means", lambda *a: (passes.append(a[0]), one_pass(*a)))
    execute(plan, store, settings)
    fuses = [run for run in plan.runs if run.kind == "fuse"]
    assert [{run.key for run in batch} for batch in passes] == [{run.key for run in fuses}]
    alone = Store(tmp_path / "alone")
    shutil.copytree(store.root / "source", alone.root / "source")
    for run in fuses:
        perform(run, alone, "cpu")
        files = [place.model(run) / "model.safetensors" for place in (store, alone)]
        assert files[0].read_bytes() == files[1].read_bytes()
        results = [place.result(run) for place in (store, alone)]
        assert all(result.pop("seconds") >= 0 for result in results) and results[0] == results[1]


def test_texts_are_read_once_for_all_runs_of_a_task(study, monkeypatch):
    plan, store, _ = study()
    one, two = [run for run in plan.runs if run.kind == "source"][:2]
    perform(one.parents[0], store, "cpu")
    perform(one, store, "cpu")
    shutil.rmtree(store.root / "source" / one.key)
    monkeypatch.setattr(steps.data, "load", None)
    perform(one, store, "cpu")
    few = dataclasses.replace(one, settings={**one.settings, "examples": 20})
    perform(few, store, "cpu")
    whole, smaller = store.result(one), store.result(few)
    assert smaller["n_train"] == 20 < whole["n_train"]
    assert all(smaller[name] == whole[name] for name in ("n_dev", "n_test", "revision", "notes"))
    with pytest.raises(TypeError, match="not callable"):  # the other task has not been read
        perform(two, store, "cpu")


def test_other_data_than_planned_are_refused(study):
    plan, store, _ = study()
    run = next(run for run in plan.runs if run.kind == "source")
    perform(run.parents[0], store, "cpu")
    other = dataclasses.replace(run, settings={**run.settings, "fingerprint": "another"})
    with pytest.raises(InputError, match=f"{run.task.name}.*changed since the run was planned"):
        perform(other, store, "cpu")
    assert not store.has(other)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_failure_stays_local(study, executor, capsys):
    plan, store, settings = study(executor=executor)
    perform(plan.runs[0], store, "cpu")
    sources = [run for run in plan.runs if run.kind == "source"]
    source = next(run for run in sources if run.label.startswith("mood"))
    perform(source, store, "cpu")
    weights = store.model(source) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (store.path(source) / HASHES).unlink()  # as in a store of before: the damage goes unseen

    frame = execute(plan, store, settings)
    fuses = [run for run in plan.runs if run.kind == "fuse" and source in run.parents]
    lost = {run.key for run in plan.runs if {source, *fuses} & {*run.parents}}
    expected = [row for row in plan.rows if row["run"].key not in lost]
    assert list(frame.key) == [row["run"].key for row in plan.rows]
    made = frame[frame.accuracy.notna()]
    assert list(made.key) == [row["run"].key for row in expected]
    assert 0 < len(made) < len(plan.rows)
    for run in fuses:
        assert "Traceback" in store.failure_file(run.key).read_text()
        assert source.key in store.failure_file(run.key).read_text()
    out = capsys.readouterr()
    assert out.out.count("failed: ") == len(list((store.root / "failed").iterdir()))
    assert "skipped because they depend on those" in out.err
    holes = {tuple(row[name] for name in tables.RUN) for row in plan.rows if row not in expected}
    assert set(tables.missing(frame, plan.families).itertuples(index=False, name=None)) == holes
    table = tables.accuracy_table(frame, plan.families)
    assert [base for base, _ in table[table["few"].isna()].index] == ["intertrained", "fused"]

    shutil.rmtree(store.path(source))
    assert execute(plan, store, settings).accuracy.notna().all()
    assert not list((store.root / "failed").iterdir())


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_corrupt_runs_are_quarantined_and_computed_again(study, executor, tmp_path, capsys):
    plan, store, settings = study(executor=executor, seeds=[0])
    undisturbed = execute(*study(seeds=[0], store=str(tmp_path / "undisturbed")))
    execute(plan, store, settings)
    source = next(run for run in plan.runs if run.kind == "source")
    mean = next(run for run in plan.runs if run.kind == "fuse" and source in run.parents)
    targets = [run for run in plan.runs if {source, mean} & {*run.parents} and run != mean]
    weights = store.model(source) / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit
    shutil.rmtree(store.model(mean))
    (store.path(targets[0]) / "result.json").write_text('{"accuracy": 0.123, "seconds": 1}')
    for run in targets[1:]:
        shutil.rmtree(store.path(run))

    frame = execute(plan, store, settings)
    how = ["seconds", "stack"]  # what is recomputed has other company
    assert frame.drop(columns=how).equals(undisturbed.drop(columns=how))
    assert (store.model(source) / "model.safetensors").read_bytes() == good
    said = capsys.readouterr().out
    assert said.count("corrupt; quarantined and recomputed: ") == 2
    assert said.count("pruned, fused again: ") == 1
    assert len(list((store.root / DAMAGED).iterdir())) == 2
    assert not (store.root / "failed").exists()


@pytest.mark.slow
def test_two_studies_share_a_store(study, tmp_path):
    plan, store, settings = study(executor="processes")
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    write_json(tmp_path / "parameters.json", vars(settings))
    command = [sys.executable, script, tmp_path / "parameters.json"]
    studies = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for one in studies:
        _, said = one.communicate(timeout=120)
        assert one.returncode == 0 and "25 of 25 runs" in said.splitlines()[-1]
    alone = execute(*study(store=str(tmp_path / "alone")))
    assert results(plan, store).drop(columns="seconds").equals(alone.drop(columns="seconds"))
    assert not list((store.root / ".pending").iterdir())
    assert not any(problems(folder) for folder in store.folders())


@pytest.mark.slow
def test_a_killed_worker_is_replaced(study):
    plan, store, settings = study(executor="processes")
    pids, before = [], {}

    def kill_one():
        wait_for(lambda: len(made(store)) >= 9)
        wait_for(lambda: pids.extend(workers(store)) or pids)
        os.kill(pids[0], signal.SIGKILL)
        before.update(made(store))

    killer = threading.Thread(target=kill_one)
    killer.start()
    frame = execute(plan, store, settings)
    killer.join()
    assert frame.accuracy.notna().all()
    assert len(before) < len(plan.runs)
    assert before == {key: made(store)[key] for key in before}


@pytest.mark.slow
def test_a_run_that_always_kills_its_worker_fails_alone(study):
    plan, store, settings = study(executor="processes", seeds=[0])
    source = next(run for run in plan.runs if run.kind == "source")
    done = threading.Event()

    def kill_whoever_works_on_it():
        while not done.is_set():
            for worker in workers(store, source.key):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            time.sleep(0.002)

    killer = threading.Thread(target=kill_whoever_works_on_it)
    killer.start()
    try:
        frame = execute(plan, store, settings)
    finally:
        done.set()
        killer.join()
    assert "died 3 times" in store.failure_file(source.key).read_text()
    assert len(list((store.root / "failed").iterdir())) == 1
    lost = frame[frame.accuracy.isna()]
    assert 0 < len(lost) < len(frame)
    assert set(lost.base) <= {"fused", "intertrained"}


@pytest.mark.slow
def test_workers_that_cannot_start_are_told(tmp_path, study):
    _, _, settings = study(executor="processes")
    script = tmp_path / "script.py"
    unguarded = INTERRUPTED.replace('if __name__ == "__main__":', "if True:")
    script.write_text(unguarded)
    write_json(tmp_path / "parameters.json", vars(settings))
    done = subprocess.run(
        [sys.executable, script, tmp_path / "parameters.json"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the worker processes do not start" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_an_interrupt_ends_soon_and_keeps_what_is_finished(study, executor, tmp_path):
    long = {"source_max_steps": 100_000, "source_patience": 100_000}
    plan, store, settings = study(executor=executor, **long)
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    write_json(tmp_path / "parameters.json", vars(settings))
    process = subprocess.Popen(
        [sys.executable, script, tmp_path / "parameters.json"],
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: list(store.root.glob(".pending/*/progress.txt")) and made(store))
    before, children = made(store), psutil.Process(process.pid).children(recursive=True)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert time.monotonic() - started < 5
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert "stopped; finished runs are kept" in errors
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert made(store) == before and not list(store.root.glob(".pending/*"))


def test_the_time_left_is_learnt_from_finished_runs(study):
    plan, store, settings = study()
    sources = [run for run in plan.runs if run.kind == "source"]
    targets = [run for run in plan.runs if run.kind == "target"]
    pretrain = Run("pretrain", {"steps": 9})
    pace = Pace([], store)
    assert not pace.seconds(sources) >= 0, "nothing is known yet"
    pace.learn(sources[0], 10.0)
    assert pace.seconds(sources[1:]) == pytest.approx(20.0)
    batch = settings.target_batch_size / settings.source_batch_size
    assert pace.seconds(targets[:1]) == pytest.approx(10.0 * batch)
    pace.learn(targets[0], 1.0)
    assert pace.seconds(targets[:4]) == pytest.approx(4.0)
    assert not pace.seconds([pretrain]) >= 0
    pace.learn(pretrain, 100.0)
    assert pace.seconds([pretrain, *targets[:1]]) == pytest.approx(101.0)


def test_a_plan_counts_its_runs_and_goes_by_what_is_finished(study):
    plan, store, settings = study(seeds=[0], workers=2, executor="processes")
    table = estimate(plan, store, settings)
    assert dict(table.runs) == {"pretrain": 1, "source": 3, "fuse": 3, "target": 9, "all": 16}
    assert table.finished.sum() == 0 and table["to"][["source", "target", "all"]].isna().all()
    for run in plan.runs:
        if run.kind in ("pretrain", "source"):
            with store.new(run) as folder:
                write_json(folder / "result.json", {"seconds": 60.0})
    table = estimate(plan, store, settings)
    assert dict(table.finished) == {"pretrain": 1, "source": 3, "fuse": 0, "target": 0, "all": 4}
    assert table.loc["source", "to"] == 0
    share = settings.target_batch_size / settings.source_batch_size
    assert table.loc["target", ["hours from", "to"]].tolist() == pytest.approx(
        [9 * share / 120] * 2
    )
    assert results(plan, store).accuracy.isna().all()


def test_a_stacked_study_has_the_results_of_runs_one_by_one(study, tmp_path):
    """Accuracies are equal but for ties; each row says how many runs its stack had."""
    frames = []
    for stack in (1, 3):
        changed = {"stack": stack, "store": str(tmp_path / str(stack)), "dropout": 0.0}
        frames.append(execute(*study(**changed, executor="processes", target_max_steps=4)))
    alone, stacked = frames
    assert set(alone["stack"]) == {1} and 3 in set(stacked["stack"])
    assert list(alone["key"]) == list(stacked["key"])
    assert (alone["accuracy"] - stacked["accuracy"]).abs().max() <= 0.051  # one of 20 texts
    assert (alone["accuracy"] == stacked["accuracy"]).mean() > 0.8
    assert (alone["steps"] == stacked["steps"]).all()


def test_of_a_stack_only_the_run_that_diverges_fails(study, monkeypatch, capsys):
    plan, store, settings = study(stack=3, executor="serial")
    look = stacked._look

    def second_diverges(run, step, loss, *others):
        return look(run, step, float("nan") if run.place == 1 else loss, *others)

    monkeypatch.setattr(stacked, "_look", second_diverges)
    found = execute(plan, store, settings)
    lost = found["accuracy"].isna()
    assert set(found["stack"].dropna()) == {3} and lost.sum() == len(found) / 3
    for key in found["key"][lost]:
        assert "training loss is nan" in store.failure_file(key).read_text()
    assert f"{len(plan.runs) - lost.sum()} computed" in capsys.readouterr().err


def test_models_that_read_otherwise_are_trained_one_by_one(study, monkeypatch, capsys):
    plan, store, settings = study(stack=3, executor="serial")
    monkeypatch.setattr(Tokens, "same_as", lambda one, other: False)
    hashes = itertools.count()
    monkeypatch.setattr(models, "tokenizer_hash", lambda folder: str(next(hashes)))
    found = execute(plan, store, settings)
    assert found["accuracy"].notna().all() and set(found["stack"]) == {1}
    assert "not as a stack: they have different tokenizers" in capsys.readouterr().out


def test_a_stack_that_memory_does_not_hold_is_halved(study, monkeypatch):
    plan, store, settings = study(stack=4, executor="serial")
    loss = stacked.Stack.loss

    tried = []

    def small(stack, *arguments):
        tried.append(stack.size)
        if stack.size > 2:
            raise torch.OutOfMemoryError
        return loss(stack, *arguments)

    monkeypatch.setattr(stacked.Stack, "loss", small)
    monkeypatch.setattr(steps, "FITTING", {})
    found = execute(plan, store, settings)
    assert tried.count(3) == len(settings.families["few"]), "once for the targets of each task"
    assert found["accuracy"].notna().all() and set(found["stack"]) == {1, 2}


def test_models_that_cannot_be_stacked_are_trained_one_by_one(study, monkeypatch, capsys):
    plan, store, settings = study(stack=3, executor="serial")
    monkeypatch.setattr(stacked, "unfit", lambda model, tokens: "an example")
    found = execute(plan, store, settings)
    assert found["accuracy"].notna().all() and set(found["stack"]) == {1}
    assert capsys.readouterr().out.count("one by one, not as a stack: an example") == 1


def test_what_is_stacked_by_default(study, tmp_path):
    """Small models on a processor, in stacks enough for all cores; everything on a GPU; nothing
    where it gains little."""
    for name, size in (("small", 10**6), ("large", 10**8)):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "model.safetensors", "wb") as file:
            file.truncate(size)
    small, large = tmp_path / "small", tmp_path / "large"

    def most(model, finetunings=1000, **changed):
        return pools.stack(study(**changed)[2], model, finetunings)

    assert most(small, device="cpu") == pools.ON_A_PROCESSOR and most(large, device="cpu") == 1
    assert most(small, 9, device="cpu") == 1 and most(small, 50, device="cpu") == 3
    assert most(small, device="cuda") == most(large, device="cuda") == pools.ON_A_GPU
    assert most(small, group_by_length=True) == most(small, micro_batch=8) == 1
    assert most(large, stack=5) == most(large, stack=5, group_by_length=True) == 5


FREED = """\
import sys
import psutil, torch
from fusinglib.study.plans import Run
from fusinglib.study.steps import perform
from fusinglib.study.store import Store

perform(Run("pretrain", {"world_seed": 0, "seed": 0, "steps": 0}), Store(sys.argv[1]), "cpu")
held, tensor = psutil.Process().memory_info, torch.ones(25_000_000)
before = held().rss
del tensor
print(before - held().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries are left alone")
def test_a_process_keeps_what_its_runs_free(tmp_path):
    """glibc returns large tensors to the system, which clears their pages again in every step."""
    command = [sys.executable, "-c", FREED, str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 10**7
