"""mergekit's YAML recipes as arguments of `fuse`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fusinglib.errors import InputError

METHODS = {
    "linear": "weighted",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare_linear": "dare",
    "dare_ties": "dare_ties",
    "breadcrumbs": "breadcrumbs",
    "model_stock": "model_stock",
    "slerp": "slerp",
}
"""mergekit's names of methods, and ours."""

NORMALIZED = {"linear": True, "ties": True}
"""Whether a method divides by the sum of the weights; others do not."""

SETTINGS = {"density": "density", "gamma": "gamma", "lambda": "scale"}
"""mergekit's names of parameters, and ours."""

DEFAULTS = {
    "ties": {"density": 1.0},
    "dare_linear": {"density": 1.0},
    "dare_ties": {"density": 1.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.01},
}
"""mergekit's defaults, which are not ours."""

IGNORED = {"int8_mask", "rescale"}
"""Parameters that change how mergekit computes, not what."""

KNOWN = {"merge_method", "models", "base_model", "dtype", "parameters", "name"}


def read(file: str | Path) -> dict[str, Any]:
    """The arguments of `fuse` that a recipe stands for: models, method, weights, pretrained, dtype
    and settings.

    Raises `InputError` for a file that is no recipe, and by name for what is not supported: slices,
    tokenizers made of several, experts, and values that vary from tensor to tensor.
    """
    said = _mapping(file)
    for name in said.keys() - KNOWN:
        raise InputError(f"{file}: {name} is not supported; expected {', '.join(sorted(KNOWN))}")
    method = said.get("merge_method")
    if method not in METHODS:
        raise InputError(f"{file}: merge_method is {method!r}: expected {', '.join(METHODS)}")
    shared: dict[str, Any] = said.get("parameters") or {}
    base = said.get("base_model")
    rows = [row for row in _rows(file, said) if row["model"] != base]
    arguments = {
        "models": [row["model"] for row in rows],
        "method": METHODS[method],
        "dtype": said.get("dtype") or "",
    }
    if method == "slerp":
        return {**arguments, **_slerp(file, base, rows, shared)}
    shared = {**DEFAULTS.get(method, {}), **shared}
    settings = [{**shared, **(row.get("parameters") or {})} for row in rows]
    for one in settings:
        _check(file, method, one)
    if method != "model_stock":
        arguments["weights"] = [one.get("weight", 1.0) for one in settings]
    for name, ours in SETTINGS.items():
        values = {one[name] for one in settings if name in one}
        if len(values) > 1:
            raise InputError(f"{file}: {name} differs between the models: set one for all")
        if values:
            arguments[ours] = values.pop()
    if method != "linear":
        arguments["pretrained"] = _needed(file, "base_model", base)
    return arguments


def _mapping(file: str | Path) -> dict:
    try:
        said = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{file} cannot be read ({said}): expected a mergekit recipe") from error
    if not isinstance(said, dict):
        raise InputError(f"{file} is no recipe: expected merge_method, models and more")
    return said


def _rows(file: str | Path, said: Mapping) -> list[dict]:
    rows: Any = said.get("models")
    fits = isinstance(rows, list) and rows
    if not fits or not all(isinstance(row, dict) and "model" in row for row in rows):
        raise InputError(f"{file}: models is {rows!r}: expected a list of `model: name`")
    for row in rows:
        for name in row.keys() - {"model", "parameters"}:
            raise InputError(f"{file}: {name} of model {row['model']} is not supported")
    return rows


def _check(file: str | Path, method: str, settings: Mapping) -> None:
    """Refuse the parameters that would give another result here."""
    for name, value in settings.items():
        if name == "normalize":
            if value != NORMALIZED.get(method, False):
                raise InputError(f"{file}: normalize: {value} is not supported for {method}")
        elif name not in {"weight", *SETTINGS, *IGNORED}:
            raise InputError(f"{file}: parameter {name} is not supported for {method}")
        elif name not in IGNORED and not _is_number(value):
            raise InputError(
                f"{file}: {name} is {value!r}: values that vary between layers or tensors are not "
                "supported; give one number"
            )


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _slerp(file: str | Path, base, rows: list[dict], shared: Mapping) -> dict:
    """Two models, from the base on: `t` of the way to the other."""
    _needed(file, "base_model", base)
    if len(rows) != 1:
        raise InputError(f"{file}: slerp takes the base_model and one other, not {len(rows)}")
    position: Any = shared.get("t")
    if not _is_number(position):
        raise InputError(f"{file}: t is {position!r}: expected a number from 0 to 1 for all layers")
    return {"models": [base, rows[0]["model"]], "weights": [1 - position, position]}


def _needed(file: str | Path, name: str, value):
    if not value:
        raise InputError(f"{file}: {name} is missing: name it")
    return value
