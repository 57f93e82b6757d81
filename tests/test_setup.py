"""The set-up (Makefile, setup.sh, constraints.txt, environment.yml), without a network.

The interpreters on PATH are stubs: shell scripts that ask the real Python what `setup.sh` asks,
and only pretend to make an environment and to run pip in it.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = "bash cat cksum cp dirname env grep make mkdir rm tail tee touch".split()

STUB = """#!/bin/bash
case "$1 $2" in
"-c "*)
    exec "{real}" -c 'import sys; sys._base_executable = sys.argv[2]; {prelude}
exec(sys.argv[1])' "$2" "$0" ;;
"-m venv")
    echo made >> "{made}"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
"-m pip")
    {pip} ;;
esac
"""

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="needs make")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the set-up files beside a `bin` that is all there is on PATH."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ["Makefile", "setup.sh", "pyproject.toml", "constraints.txt"]:
        shutil.copy(ROOT / name, folder)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return folder


def stub(checkout, name, prelude="", pip="exit 0"):
    """Put an interpreter on PATH; `prelude` is Python that alters what it says of itself."""
    path = checkout.parent / "bin" / name
    made = checkout.parent / "made"
    path.write_text(STUB.format(real=sys.executable, prelude=prelude, pip=pip, made=made))
    path.chmod(0o755)
    return path


def set_up(checkout, **variables):
    environment = {"PATH": str(checkout.parent / "bin"), "HOME": str(checkout.parent)}
    return subprocess.run(
        ["make", "venv"],
        cwd=checkout,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


def times_made(checkout):
    made = checkout.parent / "made"
    return len(made.read_text().splitlines()) if made.exists() else 0


def complaint(result):
    """The one line that says what is wrong (make adds its own `***` line)."""
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_no_python(checkout):
    assert "no working python3.11, python3.12 or python3.13" in complaint(set_up(checkout))
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("version", ["(3, 10, 14)", "(3, 14, 0)"])
def test_unsupported_version(checkout, version):
    python = stub(checkout, "python3.11", prelude=f"sys.version_info = {version}")
    assert "no working python3.11" in complaint(set_up(checkout))
    assert f"PYTHON={python} does not run" in complaint(set_up(checkout, PYTHON=str(python)))


def test_broken_shim_is_passed_over(checkout):
    shim = stub(checkout, "python3.11")
    shim.write_text("#!/bin/bash\necho 'pyenv: python3.11: command not found' >&2\nexit 127\n")
    stub(checkout, "python3.12")
    result = set_up(checkout)
    assert result.returncode == 0, result.stderr
    assert "bin/python3.12" in result.stdout
    assert result.stderr == ""


def test_no_ensurepip(checkout):
    stub(checkout, "python3.12", prelude='sys.modules["ensurepip"] = None')
    assert "python3.12 lacks the modules venv and ensurepip" in complaint(set_up(checkout))
    stub(checkout, "python3.13")
    assert set_up(checkout).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("WARNING: Retrying after connection broken by NewConnectionError", "cannot reach the"),
        ("ERROR: No space left on device", "pip failed: ERROR: No space left on device"),
    ],
)
def test_pip_fails(checkout, words, expected):
    stub(checkout, "python3.11", pip=f"echo '{words}'; exit 1")
    assert expected in complaint(set_up(checkout))
    stub(checkout, "python3.11")
    result = set_up(checkout)  # what the failure left is made anew
    assert result.returncode == 0
    assert "incomplete" in result.stdout
    assert times_made(checkout) == 2


def test_made_once(checkout):
    stub(checkout, "python3.11")
    assert "is ready" in set_up(checkout).stdout
    again = set_up(checkout)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert times_made(checkout) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_made_anew_when_requirements_change(checkout, name):
    stub(checkout, "python3.11")
    set_up(checkout)
    os.utime(checkout / name)  # a new date alone, as after a checkout, does not count
    set_up(checkout)
    assert times_made(checkout) == 1
    with open(checkout / name, "a") as file:
        file.write("# changed\n")
    assert "recreating it" in set_up(checkout).stdout
    assert times_made(checkout) == 2


def test_made_anew_after_an_interruption(checkout):
    stub(checkout, "python3.11", pip="touch .venv/leftover; kill -9 $PPID; exit 1")
    assert set_up(checkout).returncode != 0
    assert (checkout / ".venv" / "leftover").exists()
    stub(checkout, "python3.11")
    assert "recreating it" in set_up(checkout).stdout
    assert not (checkout / ".venv" / "leftover").exists()


def test_made_anew_when_its_python_is_gone(checkout):
    stub(checkout, "python3.11")
    set_up(checkout)
    (checkout / ".venv" / "bin" / "python").unlink()
    set_up(checkout)
    assert times_made(checkout) == 2


def test_made_anew_with_another_python_only_when_asked(checkout):
    stub(checkout, "python3.11")
    other = stub(checkout, "python3.12", prelude='sys.version = "another"')
    set_up(checkout)
    assert "bin/python3.12" in set_up(checkout, PYTHON=str(other)).stdout
    set_up(checkout, PYTHON=str(other))
    set_up(checkout)
    assert times_made(checkout) == 2


def test_clean_keeps_results(checkout):
    stub(checkout, "python3.11")
    set_up(checkout)
    (checkout / "runs").mkdir()
    (checkout / "runs" / "result.json").write_text("{}")
    (checkout / "fusinglib" / "__pycache__").mkdir(parents=True)
    result = subprocess.run(["make", "clean"], cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "runs/" in result.stdout
    assert (checkout / "runs" / "result.json").exists()
    assert not (checkout / ".venv").exists()
    assert not (checkout / "fusinglib" / "__pycache__").exists()


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements():
    """Names and lower bounds of everything that pyproject.toml asks for."""
    everything = PROJECT["dependencies"] + sum(PROJECT["optional-dependencies"].values(), [])
    for requirement in everything:
        if not requirement.startswith("fusinglib["):
            name, bound = requirement.split(">=")
            yield name.split("[")[0], bound


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split(";")[0].strip().split("==") for line in lines if line[0] != "#")
    return {normal(name): version for name, version in pairs}


def test_constraints_pin_every_requirement():
    pinned = pins()
    assert pinned["torch"] == "2.13.0"
    for name, bound in requirements():
        version = pinned[normal(name)]
        numbers = [[int(n) for n in re.findall(r"\d+", text)] for text in (version, bound)]
        assert numbers[0] >= numbers[1], f"{name} {version} is below {bound}"


def test_constraints_name_no_place():
    text = (ROOT / "constraints.txt").read_text()
    assert "uv pip compile" in text.splitlines()[1]
    assert "://" not in text
    assert "index-url" not in text


def test_conda_environment():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    python, tool = conda
    assert tool == "pip"
    assert python.split("=")[1] in ("3.11", "3.12", "3.13")
    assert pip["pip"] == ["-c constraints.txt", "-e .[dev]"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    log = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {PROJECT['version']}" in log and "## Unreleased" in log
