"""Models of means that were pruned are fused again wherever they are needed."""

import os
import subprocess
import sys

import pytest

from fusinglib.__main__ import main
from fusinglib.integrity import HASHES, problems
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.resolver import folder_of, model_of
from fusinglib.study.settings import FamilyTable, FusePlayground
from fusinglib.study.store import DAMAGED, PENDING, Store
from fusinglib.widgets import choice
from fusinglib.widgets.session import Session

CHOSEN = {"models": ["mood", "irony"], "target": "sentiment", "method": "mean", "weights": [],
          "method_settings": {}}  # fmt: skip


@pytest.fixture
def pruned(mini):
    """A finished comparison whose mean was pruned: settings, plan, store, and the mean."""
    settings = FusePlayground.from_parameters({**mini, **CHOSEN})
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    execute(plan, store, settings)
    (mean,) = (run for run in plan.runs if run.kind == "fuse")
    before = (store.model(mean) / "model.safetensors").read_bytes()
    assert main(["store", "prune", "--yes", "--store", str(store.root)]) == 0
    assert store.pruned(mean)
    yield settings, plan, store, mean
    assert (store.model(mean) / "model.safetensors").read_bytes() == before
    assert not problems(store.path(mean)) and not (store.root / DAMAGED).exists()
    assert not list((store.root / PENDING).iterdir())


def test_the_session_saves_it(pruned, tmp_path):
    settings, *_ = pruned
    session = Session(settings)
    assert session.save(settings, str(tmp_path / "mine")).is_dir()


def test_fuse_makes_it_without_finetuning_again(pruned):
    settings, *_ = pruned
    session = Session(settings)
    assert session.start(settings, finetune=False)
    session.thread.join()
    assert session.state.phase == "done", session.state.text


def test_its_key_is_still_a_model(pruned, tmp_path, monkeypatch):
    _, _, store, mean = pruned
    monkeypatch.setenv("FUSINGLIB_STORE", str(store.root))
    assert main(["fuse", mean.key, "--output", str(tmp_path / "copy")]) == 0
    assert folder_of(mean.key, store) == store.model(mean)


def test_a_map_of_a_mean_of_means(pruned, mini):
    """The mean is a source of the next comparison, by its key."""
    settings, _, store, mean = pruned
    further = FusePlayground.from_parameters(
        {**mini, **CHOSEN, "models": [mean.key, "topic"], "target": "sentiment"}
    )
    execute(plan_experiment(further), store, further)
    main(["store", "prune", "--yes", "--store", str(store.root)])
    session, keys = Session(further), {one.name: one.key for one in choice.candidates(further)}
    assert session.updates(further, keys).names == [mean.key, "topic"]
    assert "averaged" in str(session.report(further, keys))
    model_of(mean, store)


@pytest.mark.parametrize("calls", range(4))
def test_a_prune_that_is_killed_leaves_the_model_whole_or_gone(mini, calls, tmp_path):
    """Killed before each of its changes to the disk: nothing is half there, nothing is lost."""
    settings = FamilyTable.from_parameters({**mini, "seeds": [0]})
    plan, store = plan_experiment(settings), Store(mini["store"])
    first = execute(plan, store, settings)
    (folder, *_) = store.prunable()
    code = f"""
import os, signal
from pathlib import Path
from fusinglib.study import store
from fusinglib.integrity import staged
left = [{calls}]
def counting(act):
    def before(*args, **named):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return act(*args, **named)
    return before
Path.replace, Path.rename = counting(Path.replace), counting(Path.rename)
store.shutil.rmtree = counting(store.shutil.rmtree)
store.Store({str(store.root)!r}).prune(Path({str(folder)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert (folder / HASHES).is_file() and not problems(folder)
    assert not (folder / "model").exists() or len(os.listdir(folder / "model")) >= 3
    assert execute(plan, store, settings).equals(first)
    assert not list((store.root / PENDING).iterdir())
    more = FamilyTable.from_parameters({**mini, "seeds": [0, 1]})
    assert execute(plan_experiment(more), store, more).accuracy.notna().all()
