"""The wheel, installed into an empty environment, far from the repository."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from conftest import TINY

from fusinglib.places import PROJECT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = ["pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(PROJECT)]
    subprocess.run([sys.executable, "-m", *words], check=True)
    (file,) = folder.glob("*.whl")
    return file


def installed(folder: Path, requirement: str) -> Path:
    """The `bin` of a new environment that has `requirement` in the versions of the project."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    words = ["-m", "pip", "install", "--quiet", "-c", str(PROJECT / "constraints.txt"), requirement]
    subprocess.run([folder / "bin/python", *words], check=True)
    return folder / "bin"


def run(command: list, folder: Path, status: int = 0) -> str:
    """What a command says in an environment that knows neither the repository nor a store."""
    known = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(command, cwd=folder, env=known, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_wheel_holds_all_notebooks_and_parameter_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for file in [*PROJECT.glob("notebooks/*.ipynb"), *PROJECT.glob("params/*/*.yaml")]:
        assert f"fusinglib/{file.relative_to(PROJECT)}" in names
    assert "fusinglib/py.typed" in names and "fusinglib/training/tasks.yaml" in names
    index = nbformat.read(PROJECT / "notebooks/index.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in index.cells)
    pictures = re.findall(r"\(\.\./(.+\.png)\)", text)
    assert "docs/images/playground.png" in pictures
    assert pictures and all(f"fusinglib/{picture}" in names for picture in pictures)


def test_the_core_fuses_and_names_what_a_study_needs(wheel, t5, tmp_path):
    tools = installed(tmp_path / "env", str(wheel))
    work = tmp_path / "work"
    work.mkdir()
    models = [str(t5), str(shutil.copytree(t5, tmp_path / "copy"))]
    assert "averaged" in run([tools / "fusinglib", "fuse", *models, "--output", "mean"], work)
    assert (work / "mean/model.safetensors").is_file()
    said = run([tools / "fusinglib", "run", "family_table"], work, status=2)
    assert 'pip install "fusinglib[study]"' in said and "Traceback" not in said
    assert [path.name for path in work.iterdir()] == ["mean"]


def test_a_study_and_a_fuse(wheel, tmp_path):
    tools = installed(tmp_path / "env", f"{wheel}[study]")
    run([tools / "fusinglib", "new", "my study"], tmp_path)
    work = tmp_path / "my study"
    (work / "small.yaml").write_text(yaml.safe_dump(TINY))
    words = ["run", "family_table", "--params", "small.yaml"]
    run([tools / "fusinglib", *words], work)
    assert pd.read_csv(work / "executed/family_table.csv")["accuracy"].notna().all()
    sources = sorted(path.name for path in (work / "runs/source").iterdir())
    run([tools / "fusinglib", "fuse", *sources, "--output", "mean"], work)
    assert (work / "mean/model.safetensors").is_file()
    run([tools / "python", "-m", "fusinglib", "store"], work)
    (package,) = (tmp_path / "env").glob("lib/*/site-packages/fusinglib")
    assert not (package / "runs").exists() and not (package.parent / "runs").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    told = run([tools / "fusinglib", "run", "--all", "--params", "params/mini", "--plan"], empty)
    assert "family_table" in told and {path.name for path in empty.iterdir()} <= {"runs"}
