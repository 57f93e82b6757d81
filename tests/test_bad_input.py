"""Bad input through the command line: one clear line, status 2, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml

from fusinglib import places
from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.fusion import engine
from fusinglib.places import PROJECT
from fusinglib.study import parameters
from fusinglib.study.store import Store

REAL = {"tasks": "paper", "families": {}, "sources": ["nli"], "targets": ["nli"]}
"""Tasks of the paper."""


@pytest.fixture
def refused(mini, tmp_path, capsys):
    """Runs the command with parameters changed and gives the one line that it says."""

    def run(*words, notebook="family_table", **changed):
        known = parameters.names(notebook)
        given = {name: value for name, value in mini.items() if name in known} | changed
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(given))
        output = tmp_path / "out"
        arguments = ["run", notebook, "--params", str(file), "--output", str(output), *words]
        status = main(arguments)
        out, err = capsys.readouterr()
        assert status == 2 and not out, out
        line = one_line(err)
        assert not output.exists() or not list(output.glob("*.csv"))
        if (tmp_path / "runs").exists():
            assert not Store(tmp_path / "runs").describe()
            assert not list((tmp_path / "runs/.pending").iterdir())
        return line

    return run


def one_line(err):
    lines = [line for line in err.splitlines() if " of " not in line[:8]]  # without progress
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in err, err
    return lines[0]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"sead": [1]}, "no parameter 'sead': did you mean 'seeds'?"),
        ({"learning_rate": "1e-4"}, "write 1.0e-4"),
        ({"seeds": "0, 1"}, "'seeds' is '0, 1': expected a list"),
        ({"seeds": [0, 1.5]}, "'seeds' is 1.5: expected a whole number"),
        ({"seeds": []}, "at least 1"),
        ({"world_seeds": []}, "'world_seeds' is []: expected at least 1"),
        ({"seeds": [0, -1]}, "'seeds' is -1: expected a number of at least 0"),
        ({"weight_decay": -0.1}, "'weight_decay' is -0.1: expected a number of at least 0"),
        ({"learning_rate": float("nan")}, "'learning_rate' is nan"),
        ({"executor": "slurm"}, "'executor' is 'slurm': expected 'serial', 'processes' or 'dask'"),
        ({"workers": -1}, "'workers' is -1: expected a number of at least 0"),
    ],
)
def test_settings(refused, changed, expected):
    """Found before anything else is looked at: here by --plan, below by a run."""
    assert expected in refused("--plan", **changed)
    assert expected in refused(**changed)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"families": {"few": ["sentiment", "moood"]}}, "unknown task 'moood': did you mean"),
        ({"families": {"few": ["mood", "mood"]}}, "names 'mood' twice"),
        ({"families": {"few": []}}, "is empty"),
        ({"families": {"few": ["mood"]}}, "has no task left for the target 'mood'"),
        ({"sources": ["fwe"]}, "unknown family 'fwe': did you mean 'few'?"),
        ({"tasks": "paper", "families": {}}, "unknown family 'few'"),
        ({"families": {"few": ["mood", "models/mine"]}}, "names the model models/mine: name tasks"),
        ({"trained_on": {"models/mine": ["mood"]}}, "'trained_on' names 'models/mine', which is"),
        (
            {"own_tasks": {"mine": {"columns": ["text"], "label": ["a", "b"]}}},
            "task 'mine' has no field 'label': did you mean 'labels'?",
        ),
        ({"own_tasks": {"mine": {"columns": ["text"]}}}, "task 'mine' lacks the field 'labels'"),
        (
            {"own_tasks": {"mine": "reviews.csv"}},
            "parameter 'own_tasks' is 'reviews.csv': expected a mapping",
        ),
        ({"model": "no such name", **REAL}, "model 'no such name': no such folder"),
    ],
)
def test_names(refused, changed, expected):
    assert expected in refused("--plan", **changed)


TWO = {"families": {"few": ["mood", "irony"]}}


@pytest.mark.parametrize(
    ("notebook", "changed", "expected"),
    [
        ("weight_decay", {"weight_decay": -0.1}, "'weight_decay' is -0.1: expected a number above"),
        ("weight_decay", {"weight_decay": 0.0}, "'weight_decay' is 0.0: expected a number above 0"),
        (
            "weight_decay",
            {"weight_decay": 0.1, "explored_decays": [-1.0]},
            "'explored_decays' is -1.0: expected a number above 0",
        ),
        ("weight_decay", {"weight_decay": 1.0}, "'explored_decays' is [1.0]: expected new ones"),
        (
            "family_table",
            {"clusters": {"one": ["mood", "irony"], "two": ["mood"]}},
            "'clusters' is {'one': ['mood', 'irony'], 'two': ['mood']}: expected each once",
        ),
        (
            "family_table",
            {"clusters": {"two": ["mood", "irnoy"]}},
            "'irnoy': did you mean 'irony'?",
        ),
        (
            "family_table",
            {"clusters": {"mood": ["irony", "sentiment"]}},
            "'clusters' has a cluster 'mood', and a target is called so as well",
        ),
        ("source_size", {"sizes": [50, 90000]}, "'sizes' has 90000, but the largest source task"),
        ("source_size", {"sizes": []}, "'sizes' is []: expected at least 1"),
        ("source_size", {"sizes": [0, 50]}, "'sizes' is 0: expected a number of at least 1"),
        ("source_size", {"sizes": [50, 50]}, "'sizes' is [50, 50]: expected each once"),
        ("source_size", {"families": {"few": ["mood"]}}, "no task left for the target 'mood'"),
        ("pairwise_heatmap", {"families": {"few": ["mood"]}}, "there is no pair of mood"),
        ("pairwise_heatmap", {"families": {"few": ["mood", "mood"]}}, "names 'mood' twice"),
        ("pairwise_heatmap", {"source_seeds": []}, "'source_seeds' is []: expected at least 1"),
        ("pairwise_heatmap", TWO, "mood and irony has no target left"),
        (
            "loss_path",
            {},
            "a target that is not one of them, but got the sources sentiment mood irony",
        ),
        ("loss_path", {"world_seeds": [0, 1]}, "'world_seeds' is [0, 1]: expected one world"),
        (
            "many_worlds",
            {"first_worlds": 2, "recorded": ""},
            "'world_seeds' is [0]: expected at least three worlds",
        ),
        (
            "many_worlds",
            {"world_seeds": [0, 1, 2], "first_worlds": 3, "recorded": ""},
            "'first_worlds' is 3: expected a number from 2 to 2",
        ),
        ("loss_path", {"points": 4}, "'points' is 4: expected an odd number"),
        (
            "loss_path",
            {"head_learning_rate": 0.0},
            "'head_learning_rate' is 0.0: expected a number above",
        ),
    ],
)
def test_the_impossible(refused, notebook, changed, expected):
    """Refused before anything is trained, by the plan and by a run."""
    assert expected in refused("--plan", notebook=notebook, **changed)
    assert expected in refused(notebook=notebook, **changed)


def test_a_hub_that_is_not_reached(refused):
    """Offline (as all tests are), with a model that is in no cache."""
    line = refused("--plan", model="google/t5-v1_1-small-that-is-not-here", **REAL)
    assert "go online, or set HF_HOME" in line


def test_a_data_set_that_is_not_at_hand(refused, t5, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "empty")
    monkeypatch.chdir(tmp_path)
    line = refused("--plan", model=str(t5), **REAL)
    assert "'mnli'" in line and "HF_HOME" in line


def test_labels_that_the_tokenizer_does_not_know(refused, t5, hub):
    few = {"tasks": "paper", "families": {"few": ["emoji", "irony"]}}
    line = refused("--plan", model=str(t5), **few)
    assert "has a token unknown to the tokenizer" in line


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_a_model_folder_that_lacks_files(refused, t5, tmp_path, lost):
    shutil.copytree(t5, tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    line = refused("--plan", model=str(tmp_path / "model"), **REAL)
    assert lost.removeprefix("model.") in line and str(tmp_path / "model") in line


def test_a_store_that_is_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refused("--plan", store=str(tmp_path / "file"))
    assert f"the store {tmp_path / 'file'} cannot be written" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_models_of_different_shapes(t5, tied_t5, tmp_path):
    with pytest.raises(InputError) as refusal:
        engine.fuse([t5, tied_t5], tmp_path / "mean")
    assert "\n" not in str(refusal.value) and str(tied_t5) in str(refusal.value)
    assert not (tmp_path / "mean").exists()


def subprocess_refuses(mini, tmp_path, **changed):
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps({**mini, **changed}))
    words = [sys.executable, "-m", "fusinglib", "run", "family_table", "--params", str(file)]
    done = subprocess.run(
        [*words, "--output", str(tmp_path / "out")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and not done.stdout, done
    assert str(PROJECT / "fusinglib") not in done.stderr  # no traceback of ours
    return one_line(done.stderr.splitlines()[-1] + "\n")  # a kernel that ends may grumble before


def test_the_real_command_line(mini, tmp_path):
    assert "write 1.0e-4" in subprocess_refuses(mini, tmp_path, learning_rate="1e-4")
    line = subprocess_refuses(mini, tmp_path, families={"few": ["mood", "smileys"]})
    assert "unknown task 'smileys'" in line
    assert not Store(mini["store"]).describe()


@pytest.mark.slow
@pytest.mark.parametrize("option", ["size=2m", "ro"])
def test_a_disk_that_fails(mini, tmp_path, option):
    """The store on a disk that is full after the first run, or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a disk for the test needs root")
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        line = subprocess_refuses(mini, tmp_path, store=str(folder), seeds=[0])
        assert f"error: the store {folder} cannot be written" in line
        if option != "ro":
            assert "No space left" in line
            assert [run["kind"] for run in Store(folder).describe()] == ["pretrain"]
            assert not list((folder / ".pending").iterdir())
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_a_lab_may_be_opened_as_root(tmp_path, monkeypatch, user, allowed):
    """As in containers, where JupyterLab would refuse to start."""
    main(["new", str(tmp_path / "mine")])
    monkeypatch.chdir(tmp_path / "mine")
    started = []
    monkeypatch.setattr(os, "execv", lambda program, words: started.append(words))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    main(["lab", "--", "--port=9"])
    (words,) = started
    assert ("--allow-root" in words) == allowed and words[-1] == "--port=9"


def test_a_project_needs_a_new_folder_and_a_lab_needs_notebooks(tmp_path, monkeypatch, capsys):
    assert main(["new", str(tmp_path)]) == 2
    assert f"{tmp_path} already exists: name a new folder" in capsys.readouterr().err
    monkeypatch.setattr(places, "project", lambda: tmp_path)
    assert main(["lab"]) == 2
    assert "fusinglib new my-study" in capsys.readouterr().err
