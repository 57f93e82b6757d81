"""The house: wings one above the other, whose imports run one way."""

import ast
import subprocess
import sys

import pytest

from fusinglib.places import PROJECT

HOUSE = PROJECT / "fusinglib"

WINGS = ["fusion", "training", "study", "evaluation", "widgets"]
"""From the lowest to the highest."""

FLOORS = {
    "errors": 0,
    "progress": 0,
    "places": 0,
    "integrity": 0,
    "leases": 0,
    "__init__": 9,
    "__main__": 9,
}
FLOORS |= {wing: floor for floor, wing in enumerate(WINGS, 1)}


def modules() -> dict:
    """Every module's dotted name (without `fusinglib.`) and what it imports of the package, also
    within functions."""
    files = {file: ".".join(file.relative_to(HOUSE).with_suffix("").parts) for file in
             HOUSE.rglob("*.py")}  # fmt: skip
    known = set(files.values())
    found = {}
    for file, name in files.items():
        imported = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fusinglib"):
                module = node.module.removeprefix("fusinglib").strip(".")
                parts = [f"{module}.{alias.name}".strip(".") for alias in node.names]
                imported |= {part if part in known else module for part in parts}
        found[name] = imported
    return found


MODULES = modules()


def test_every_import_leads_down():
    floor = {name: FLOORS[name.split(".")[0]] for name in MODULES}
    wrong = [
        f"{name} imports {other}"
        for name, imported in MODULES.items()
        for other in imported
        if other and floor[other] > floor[name]
    ]
    assert not wrong


def test_no_circle():
    left = dict(MODULES)
    while leaves := [name for name in left if not left[name] & left.keys() - {name}]:
        for name in leaves:
            del left[name]
    assert not left


def test_the_wings_are_all_there_is():
    folders = {path.name for path in HOUSE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(WINGS)
    for wing in WINGS:
        text = (HOUSE / wing / "__init__.py").read_text()
        tree = ast.parse(text)
        handed_on = tree.body[1:]  # by the widgets alone: what notebooks call
        assert all(isinstance(node, ast.ImportFrom) for node in handed_on), wing
        assert not handed_on or wing == "widgets"
        assert 5 <= len(text.splitlines()) <= 10, wing
        named = {path.stem for path in (HOUSE / wing).glob("*.py")} - {"__init__"}
        assert all(f"`{name}`" in text for name in named), wing


@pytest.mark.parametrize("what", ["fusinglib", "fusinglib.fusion.engine", "fusinglib.__main__"])
def test_fusing_needs_numpy_alone(what):
    code = f"import {what}, sys; print(*({{'torch', 'transformers', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_plan_of_the_miniature_world_needs_no_torch(tmp_path):
    code = f"""
import sys
from fusinglib.study import costs, experiments, parameters
from fusinglib.study.store import Store
chosen = parameters.choose("family_table", None, ["store={tmp_path}"])
settings = parameters.settings("family_table", chosen)
plan = experiments.plan_experiment(settings)
print(costs.estimate(plan, Store(settings.store_folder()), settings))
print(*({{"torch", "transformers", "datasets", "papermill"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pretrain" in done.stdout and done.stdout.splitlines()[-1] == ""
