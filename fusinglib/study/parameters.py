"""The parameters of notebooks: from their cells, parameter files and the command line."""

import ast
import json
from pathlib import Path

from fusinglib.errors import InputError, nearest
from fusinglib.places import shipped
from fusinglib.study.settings import (
    EXPERIMENTS,
    Settings,
    beside,
    parameter_names,
    parse_yaml,
    read_parameters,
)


def notebook(name: str) -> Path:
    """The file of the notebook `name`: the project's own copy if there is one."""
    return shipped(f"notebooks/{name}.ipynb")


def cell(name: str) -> str:
    """The source of the parameters cell of the notebook `name`."""
    file = notebook(name)
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    tagged = [c["source"] for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if not tagged:
        raise InputError(f"{file} has no cell tagged `parameters`: tag the one that sets them")
    return "".join(tagged[0])


def defaults(name: str) -> dict:
    """The values in the parameters cell of the notebook `name`."""
    return {
        ast.unparse(line.target): ast.literal_eval(line.value)
        for line in ast.parse(cell(name)).body
        if isinstance(line, ast.AnnAssign) and line.value
    }


def names(name: str) -> set[str]:
    """The parameters that the notebook `name` takes, in its cell or its `common` file."""
    return {"common", *parameter_names(EXPERIMENTS[name])}


def choose(name: str, file: str | None, overrides: list[str]) -> dict:
    """The parameters from a parameter file, overridden by `name=value` texts (YAML values).

    Raises `InputError` for a file that is not a mapping, and for unknown names, with the nearest
    one.
    """
    if name not in EXPERIMENTS:
        raise InputError(f"unknown notebook {name!r}: {nearest(name, EXPERIMENTS)}")
    chosen = {}
    if file:
        path = Path(file) if Path(file).exists() else shipped(file)
        chosen = beside(path.parent, read_parameters(path))
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text!r}: expected name=value")
        chosen[key] = parse_yaml(value, f"--set {text!r}")
    check(name, chosen)
    return chosen


def check(name: str, chosen: dict) -> None:
    """Raise `InputError` for a parameter that the notebook `name` does not have."""
    known = names(name)
    for key in chosen:
        if key not in known:
            raise InputError(f"notebook {name} has no parameter {key!r}: {nearest(key, known)}")


def settings(name: str, chosen: dict) -> Settings:
    """The validated settings of the notebook `name` under the chosen parameters."""
    return EXPERIMENTS[name].from_parameters({**defaults(name), **chosen})
