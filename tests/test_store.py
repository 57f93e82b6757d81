"""The store: runs whole or absent, whatever happens to the process or the disk."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from fusinglib.__main__ import main
from fusinglib.errors import Damaged, InputError, StoreError
from fusinglib.integrity import HASHES, problems, write_json
from fusinglib.leases import machine
from fusinglib.places import PROJECT
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import Run
from fusinglib.study.settings import FamilyTable
from fusinglib.study.steps import perform
from fusinglib.study.store import DAMAGED, PENDING, Store

RUN = Run("source", {"seed": 1}, label="mood from miniature T5")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def disk(tmp_path):
    """A disk of its own, of 20 MB, and what mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder]
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a disk for the test needs root")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    def remount(option):
        subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)

    yield folder, remount
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Leave no room on the disk of `folder`."""
    with pytest.raises(OSError), open(folder / "ballast", "wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def make(store, run, accuracy):
    with store.new(run) as folder:
        write_json(folder / "result.json", {"accuracy": accuracy, "seconds": 1.0})


def pending(store):
    return list((store.root / PENDING).iterdir())


def test_a_run_is_kept_as_json(store):
    make(store, RUN, 0.5)
    assert store.has(RUN) and store.result(RUN) == {"accuracy": 0.5, "seconds": 1.0}
    description = json.loads((store.path(RUN) / "run.json").read_text())
    assert description == {**RUN.identity, "key": RUN.key, "label": RUN.label}
    assert "\n" in (store.path(RUN) / "result.json").read_text().strip()
    assert not pending(store)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(store, error):
    with pytest.raises(error), store.new(RUN) as folder:
        write_json(folder / "result.json", {})
        raise error
    assert not store.has(RUN) and not pending(store) and not store.describe()


def test_of_two_writers_the_first_stays(store):
    with store.new(RUN) as folder:
        write_json(folder / "result.json", {"accuracy": 0.1})
        make(Store(store.root), RUN, 0.9)
        inode = store.path(RUN).stat().st_ino
    assert store.result(RUN)["accuracy"] == 0.9
    assert store.path(RUN).stat().st_ino == inode
    assert not pending(store)


def test_progress_is_read_while_the_run_is_under_way(store):
    assert store.progress(RUN) == ""
    with store.new(RUN) as folder:
        (folder / "progress.txt").write_text("step 50")
        assert store.progress(RUN) == "step 50"
    assert store.progress(RUN) == ""
    assert not (store.path(RUN) / "progress.txt").exists()


def test_sweep_takes_only_what_dead_processes_of_this_machine_left(store):
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    here = machine()
    names = {
        f"{RUN.key}-{here}-{process.pid}-abc": False,
        f"{RUN.key}-{here}-{os.getpid()}-abc": True,
        f"{RUN.key}-{here}-1-abc": True,
        f"{RUN.key}-other-host.{process.pid}-{process.pid}-abc": True,
        f"{RUN.key}-{here}9-{process.pid}-abc": True,
        "notes-of-mine-x": True,
    }
    for name in names:
        (store.root / PENDING / name / "model").mkdir(parents=True)
    with store.new(RUN) as folder:
        store.sweep()
        assert folder.is_dir()
    assert {path.name for path in pending(store)} == {name for name in names if names[name]}


def test_describe_lists_finished_runs_alone(store):
    make(store, RUN, 0.5)
    other = Run("target", {"seed": 2}, (RUN,), label="irony")
    make(store, other, 0.5)
    with store.new(Run("target", {"seed": 3})) as folder:
        write_json(folder / "run.json", {"key": "half"})
        listed = store.describe()
    assert [(run["kind"], run["key"]) for run in listed] == [
        ("source", RUN.key),
        ("target", other.key),
    ]
    assert listed[1]["parents"] == [RUN.key] and listed[1]["bytes"] > 0


def test_a_failure_is_kept_until_the_run_succeeds(store, tied_t5):
    run = Run("import", {"fingerprint": "x"}, label="mine", place=str(tied_t5 / "nowhere"))
    with pytest.raises(InputError, match="nowhere/config.json describes no model"):
        perform(run, store, "cpu")
    text = store.failure_file(run.key).read_text()
    assert text.startswith(f"import {run.key}: mine\nTraceback") and "nowhere" in text
    assert not store.has(run) and not pending(store)
    found = Run(run.kind, run.settings, label="mine", place=str(tied_t5))
    perform(found, store, "cpu")
    assert store.has(run) and not store.failure_file(run.key).exists()


def test_a_damaged_run_is_named(store):
    make(store, RUN, 0.5)
    (store.path(RUN) / "result.json").write_text("{")
    with pytest.raises(StoreError, match=f"{RUN.key} is damaged.*store check` quarantines it"):
        store.result(RUN)


def test_damage_is_found_and_quarantined(store):
    with store.new(RUN) as folder:
        write_json(folder / "result.json", {"accuracy": 0.5})
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(b"12345")
    assert problems(store.path(RUN)) == [] and store.model(RUN).is_dir()
    (store.path(RUN) / "result.json").write_text('{"accuracy": 0.6}')
    with pytest.raises(
        Damaged, match=f"{RUN.key} is damaged .result.json has changed since"
    ) as one:
        store.result(RUN)
    assert pickle.loads(pickle.dumps(one.value)).key == RUN.key
    (store.path(RUN) / "model" / "model.safetensors").unlink()
    assert len(problems(store.path(RUN))) == 2
    store.quarantine(store.path(RUN))
    (place,) = (store.root / DAMAGED).iterdir()
    assert place.name.startswith(f"source-{RUN.key}-") and (place / "run.json").is_file()
    assert not store.has(RUN) and not store.describe()
    store.quarantine(store.path(RUN))  # another process was faster


def test_a_model_is_verified_before_it_is_used(store):
    for content in (b"12345", b"54321"):
        with store.new(RUN) as folder:
            write_json(folder / "result.json", {"accuracy": 0.5})
            (folder / "model").mkdir()
            (folder / "model" / "model.safetensors").write_bytes(content)
        assert store.model(RUN).is_dir()
        store.quarantine(store.path(RUN))
    with pytest.raises(Damaged, match="it has no folder model/"):
        store.model(RUN)


def test_the_version_of_a_store(store):
    assert json.loads((store.root / "store.json").read_text()) == {"version": 1}
    (store.root / "store.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match=f"the store {store.root} has version 99, and this pack"):
        Store(store.root)
    (store.root / "store.json").unlink()  # one of before
    make(Store(store.root), RUN, 0.5)
    (store.path(RUN) / HASHES).unlink()
    assert Store(store.root).result(RUN)["accuracy"] == 0.5


def test_a_root_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(StoreError, match=f"the store {root} cannot be written"):
            Store(root)
    assert issubclass(StoreError, InputError)


def test_a_root_that_vanishes_is_named(store):
    shutil.rmtree(store.root)
    with pytest.raises(StoreError, match="cannot be written"), store.new(RUN):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, where nobody can make a folder")
def test_an_unwritable_root_is_named():
    with pytest.raises(StoreError, match="the store /proc/runs cannot be written"):
        Store("/proc/runs")


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_a_full_disk(disk, mini, executor):
    folder, _ = disk
    settings = FamilyTable.from_parameters({**mini, "executor": executor, "seeds": [0]})
    plan, store = plan_experiment(settings), Store(folder)
    perform(plan.runs[0], store, "cpu")
    before = store.describe()
    fill(folder)
    with pytest.raises(StoreError, match=r"the store \S+ cannot be written \([^(]*No space") as one:
        execute(plan, store, settings)
    assert str(one.value).count("cannot be written") == 1
    assert store.describe() == before and not pending(store)
    (folder / "ballast").unlink()
    make(store, RUN, 0.5)
    assert len(store.describe()) == 2


def test_a_disk_that_fills_in_the_middle(disk, mini):
    folder, remount = disk
    settings = FamilyTable.from_parameters({**mini, "seeds": [0]})
    plan, store = plan_experiment(settings), Store(folder)
    remount("size=3800k")
    with pytest.raises(StoreError, match="No space left"):
        execute(plan, store, settings)
    done = {run["key"] for run in store.describe()}
    assert done and not pending(store)
    inodes = {run.key: store.path(run).stat().st_ino for run in plan.runs if store.has(run)}
    assert set(inodes) == done, "what is listed is what is finished"
    remount("size=20m")
    assert execute(plan, store, settings).accuracy.notna().all()
    again = {run.key: store.path(run).stat().st_ino for run in plan.runs}
    assert inodes == {key: again[key] for key in inodes}


def test_a_read_only_disk(disk, mini):
    folder, remount = disk
    settings = FamilyTable.from_parameters({**mini, "seeds": [0]})
    plan, store = plan_experiment(settings), Store(folder)
    perform(plan.runs[0], store, "cpu")
    remount("ro")
    with pytest.raises(StoreError, match="cannot be written.*Read-only file system") as one:
        execute(plan, store, settings)
    assert str(one.value).count("cannot be written") == 1
    assert len(Store(folder).describe()) == 1, "it can still be read"
    assert results(plan, store).accuracy.isna().all()
    with pytest.raises(StoreError, match="Read-only file system"):
        Store(folder / "new")
    remount("rw")
    assert not pending(store)


def test_a_reader_that_has_seen_enough_is_no_error(store):
    with store.new(RUN):
        pass
    words = [sys.executable, "-m", "fusinglib", "store", "--store", store.root]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_store_of_earlier_code_is_still_read(mini, tmp_path):
    """What the code wrote before it was put into wings (commit 7a0884a), without the models."""
    with zipfile.ZipFile(PROJECT / "tests/store_before_the_wings.zip") as file:
        file.extractall(tmp_path / "runs")
        written = {name: json.loads(file.read(name)) for name in file.namelist()}
    store, plan = Store(mini["store"]), plan_experiment(FamilyTable.from_parameters(mini))
    assert all(store.has(run) for run in plan.runs)
    keys = {Path(name).parent.name for name in written}
    assert {run.key for run in plan.runs} == keys
    found = results(plan, store).set_index("key")["accuracy"]
    for key, accuracy in found.items():
        assert accuracy == written[f"target/{key}/result.json"]["accuracy"]


def finished_study(mini):
    """Settings, plan, store and results of a tiny study that is finished."""
    settings = FamilyTable.from_parameters({**mini, "seeds": [0]})
    plan, store = plan_experiment(settings), Store(mini["store"])
    return settings, plan, store, execute(plan, store, settings)


def test_store_check_finds_and_quarantines(mini, capsys):
    _, plan, store, _ = finished_study(mini)
    words = ["store", "check", "--store", str(store.root)]
    assert main(words) == 0
    assert "16 runs checked, 0 quarantined" in capsys.readouterr().err
    target, source = (next(r for r in plan.runs if r.kind == kind) for kind in ("target", "source"))
    (store.path(target) / "predictions.safetensors").write_bytes(b"")
    (store.model(source) / "config.json").unlink()
    assert main(words) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and len(store.folders()) == 14
    changed = "predictions.safetensors has changed since it was written"
    assert (
        said[1] == f"target {target.key}: {changed}: quarantined"
        and "model/config.json: No such file" in said[0]
    )
    assert main(words) == 0


def test_store_prune_takes_means_alone_and_they_are_made_again(mini, capsys):
    settings, plan, store, first = finished_study(mini)
    words = ["store", "prune", "--store", str(store.root)]
    assert main(words) == 0
    assert "3 fused models" in capsys.readouterr().out and len(store.prunable()) == 3
    assert main([*words, "--yes"]) == 0
    models = {path.parent.parent.name for path in store.root.glob("*/*/model")}
    assert models == {"pretrain", "source"} and not store.prunable()
    assert main(["store", "check", "--store", str(store.root)]) == 0
    assert execute(plan, store, settings).equals(first) and not store.prunable()

    more = FamilyTable.from_parameters({**mini, "seeds": [0, 1]})
    capsys.readouterr()
    assert execute(plan_experiment(more), store, more).accuracy.notna().all()
    assert capsys.readouterr().out.count("pruned, fused again") == 3 and len(store.prunable()) == 3


def test_store_export(mini, tmp_path, capsys):
    _, plan, store, frame = finished_study(mini)
    words = ["store", "export", "--store", str(store.root)]
    assert main(words) == 2
    assert "name the CSV file" in capsys.readouterr().err
    assert main([*words, "--output", str(tmp_path / "all.csv")]) == 0
    table = pd.read_csv(tmp_path / "all.csv").set_index("key")
    assert set(table.index) == {run.key for run in plan.runs}
    assert table.loc[frame["key"], "accuracy"].tolist() == frame["accuracy"].tolist()
    assert table.loc[frame["key"][0], "settings.seed"] == 0


def test_a_store_is_listed_with_its_size_by_kind(mini, capsys):
    _, _, store, _ = finished_study(mini)
    assert main(["store", "--store", str(store.root)]) == 0
    said = capsys.readouterr().out
    assert "16 finished runs" in said and re.search(r"\nsource +3 +[0-9.]+", said)


@pytest.mark.parametrize("content", ["", "[", "[]", "null"])
@pytest.mark.parametrize("name", ["run.json", "result.json", "hashes.json"])
def test_every_command_names_a_damaged_file_in_one_line(store, capsys, name, content):
    make(store, RUN, 0.5)
    (store.path(RUN) / name).write_text(content)
    words = ["--store", str(store.root)]
    assert main(["store", "export", "--output", str(store.root / "all.csv"), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: the finished run {store.path(RUN)} is damaged ({name} ")
    assert said.count("\n") == 1 and not (store.root / "all.csv").exists()
    with pytest.raises(Damaged):
        store.results()
    assert main(["store", "check", *words]) == 1
    assert main(["store", "export", "--output", str(store.root / "all.csv"), *words]) == 0


@pytest.mark.parametrize(
    "content", ["", "[", "null", "[1]", "{}", '{"version": "x"}', '{"version": null}']
)
def test_a_damaged_store_json_is_named(store, capsys, content):
    make(store, RUN, 0.5)
    (store.root / "store.json").write_text(content)
    assert main(["store", "--store", str(store.root)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {store.root}/store.json ") and said.count("\n") == 1
    (store.root / "store.json").unlink()  # as it says
    assert Store(store.root).result(RUN)["accuracy"] == 0.5
