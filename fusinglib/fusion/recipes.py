"""Recipes: mergekit's YAML files as arguments of `fuse`, and what `fuse` did as such a file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fusinglib.errors import InputError
from fusinglib.fusion import varying

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

OURS = {"fisher": "fisher", "regmean": "regmean", "scaled": "scaled", "placebo": "placebo"}
"""Methods that mergekit does not have."""

SETTINGS = {
    "density": "density", "gamma": "gamma", "lambda": "scale", "seed": "seed",
    "straight": "straight", "which": "which", "fisher": "fisher",
    "gram": "gram", "alpha": "alpha",
}  # fmt: skip
"""mergekit's names of parameters, and ours; those after `lambda` are only ours."""

TAKEN = {
    "linear": "weight",
    "task_arithmetic": "weight lambda",
    "ties": "weight lambda density",
    "dare_linear": "weight lambda density seed",
    "dare_ties": "weight lambda density seed",
    "breadcrumbs": "weight lambda density gamma",
    "model_stock": "",
    "slerp": "weight t straight",
    "fisher": "weight fisher",
    "regmean": "weight gram alpha",
    "scaled": "which",
    "placebo": "seed",
}
"""The parameters of each method; `weight`, `density` and `gamma` may differ between models."""

FILES = ("fisher", "gram")
"""Parameters that are files."""

PER_MODEL = ("weight", "density", "gamma")

DEFAULTS = {"density": 1.0, "gamma": 0.01, "straight": 0.9995}
"""mergekit's defaults, which are not ours."""

IMPLIED = {
    "normalize": {"linear": True, "ties": True},
    "rescale": {"dare_linear": True, "dare_ties": True},
    "filter_wise": {},
}
"""Switches whose values are part of a method here: false, except for these."""

KNOWN = {"merge_method", "models", "base_model", "dtype", "parameters", "name"}
OPTIONS = ("heads", "untie")
"""Options of `fuse` that only our recipes have."""


def read(file: str | Path) -> dict[str, Any]:
    """The arguments of `fuse` that a recipe stands for: models, method, weights, pretrained, dtype
    and settings. Paths that begin with a dot are relative to the recipe.

    Raises `InputError` for a file that is no recipe, and by name for what is not supported: slices,
    tokenizers made of several, experts.
    """
    said = _mapping(file)
    for name in said.keys() - KNOWN - set(OPTIONS):
        raise InputError(f"{file}: {name} is not supported; expected {', '.join(sorted(KNOWN))}")
    method = said.get("merge_method")
    if method not in TAKEN:
        raise InputError(f"{file}: merge_method is {method!r}: expected {', '.join(TAKEN)}")
    shared: dict[str, Any] = said.get("parameters") or {}
    rows, base = _rows(file, said), said.get("base_model")
    for parameters in (shared, *(row.get("parameters") or {} for row in rows)):
        _check(file, method, parameters)
    options = {name: bool(said[name]) for name in OPTIONS if name in said}
    if method == "slerp":
        return {**_slerp(file, said, rows, shared), **options}
    if method == "linear":
        if base and base not in [row["model"] for row in rows]:
            raise InputError(f"{file}: linear takes no base_model besides its models: leave it out")
    else:
        rows = [row for row in rows if row["model"] != base]
    arguments = {
        "models": [_place(file, row["model"]) for row in rows],
        "method": {**METHODS, **OURS}[method],
        "dtype": said.get("dtype") or "",
        **options,
        **_parameters(file, method, rows, shared),
    }
    if method == "linear" and all(weight == 1 for weight in arguments["weights"]):
        arguments = {**arguments, "method": "mean"}
        del arguments["weights"]
    if method not in ("linear", "fisher", "regmean"):
        arguments["pretrained"] = _place(file, _needed(file, "base_model", base))
    return arguments


def _parameters(file, method: str, rows: list[dict], shared: Mapping) -> dict[str, Any]:
    """Weights and settings from the rows of models and from what they share."""
    found = {}
    for name in set(TAKEN[method].split()) - {"t"}:
        default = DEFAULTS.get(name, 1.0 if name == "weight" else None)
        if name in PER_MODEL:
            values = [
                _first((row.get("parameters") or {}).get(name), shared.get(name), default)
                for row in rows
            ]
            if name == "weight":
                found["weights"] = values
            else:
                same = all(value == values[0] for value in values)
                found[SETTINGS[name]] = values[0] if same else {"each": values}
        elif any(name in (row.get("parameters") or {}) for row in rows):
            raise InputError(f"{file}: {name} is one for all models: set it below parameters")
        elif name in FILES and name in shared:
            found[name] = [_place(file, one) for one in shared[name]]
        elif (value := _first(shared.get(name), default)) is not None:
            found[SETTINGS[name]] = value
    return found


def _first(*values) -> Any:
    """The first of these that is given; where no filter fits a tensor, the next one counts."""
    rows = []
    for value in map(_number, values):
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows += value
            if any(isinstance(row, dict) and row.get("filter") in (None, "*") for row in rows):
                return rows
        elif value is not None:
            return [*rows, {"value": value}] if rows else value
    return rows or None


def _number(said: Any) -> Any:
    """A value with numbers for texts such as 1e-3, which YAML does not take for one."""
    if isinstance(said, list):
        return [_number(one) for one in said]
    if isinstance(said, dict):
        return {key: _number(one) if key == "value" else one for key, one in said.items()}
    try:
        return float(said) if isinstance(said, str) else said
    except ValueError:
        return said


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


def _check(file: str | Path, method: str, parameters: Mapping) -> None:
    """Refuse the parameters that would give another result here."""
    taken = TAKEN[method].split()
    for name, value in parameters.items():
        if name in IMPLIED:
            if value != IMPLIED[name].get(method, False):
                raise InputError(f"{file}: {name}: {value} is not supported for {method}")
        elif name not in (*taken, "int8_mask"):  # the mask changes how, not what
            raise InputError(
                f"{file}: parameter {name} is not supported for {method}; expected "
                f"{', '.join(taken) or 'none'}"
            )


def _slerp(file: str | Path, said: Mapping, rows: list[dict], shared: Mapping) -> dict:
    """Two models, from the base on: `t` of the way to the other, or the shares in `weight`."""
    base = _needed(file, "base_model", said.get("base_model"))
    others = [row for row in rows if row["model"] != base]
    if len(others) != 1:
        raise InputError(f"{file}: slerp takes the base_model and one other, not {len(others)}")
    found = _parameters(file, "slerp", rows, shared)
    position = _first(shared.get("t"))
    if len(rows) < 2 or "weight" not in (rows[0].get("parameters") or {}):
        if position is None:
            raise InputError(f"{file}: t is missing: expected a number from 0 to 1")
        varying.numbers(f"{file}: t", position)
        found["weights"] = [varying.mapped(position, lambda t: 1 - t), position]
    models = [_place(file, model) for model in (base, others[0]["model"])]
    return {"models": models, "method": "slerp", "dtype": said.get("dtype") or "", **found}


def _needed(file: str | Path, name: str, value):
    if not value:
        raise InputError(f"{file}: {name} is missing: name it")
    return value


def _place(file: str | Path, model: str) -> str:
    """A model's place; a path that begins with a dot is relative to the recipe."""
    return str(Path(file).parent / model) if str(model).startswith(".") else str(model)


# Writing.


def recipe(
    method: str, models: Sequence[str], base: str, weights: Sequence, settings: Mapping, dtype: str
) -> dict[str, Any]:
    """What was fused, as a recipe; models are their places."""
    names = {ours: theirs for theirs, ours in {**METHODS, **OURS}.items()}
    said = "linear" if method == "mean" else names[method]
    rows = [{"model": model, "parameters": {}} for model in models]
    shared = {}
    if "weight" in TAKEN[said]:
        for row, weight in zip(rows, weights, strict=True):
            row["parameters"]["weight"] = 1.0 if method == "mean" else weight
    for name in TAKEN[said].split():
        value = settings.get(SETTINGS.get(name, ""))
        if isinstance(value, dict):
            for row, one in zip(rows, value["each"], strict=True):
                row["parameters"][name] = one
        elif value is not None:
            shared[name] = value
    if said == "slerp":
        base = models[0]
        if all(map(varying.is_number, weights)):
            shared["t"] = weights[1] / sum(weights)
    found = {"merge_method": said, "models": [{k: v for k, v in row.items() if v} for row in rows]}
    found |= {"base_model": base} if base else {}
    found |= {"parameters": shared} if shared else {}
    return found | ({"dtype": dtype} if dtype else {})


def write(recipe: Mapping, folder: Path) -> None:
    """Write a recipe into a fused model's folder; paths become relative to that folder."""
    found: dict[str, Any] = {**recipe}
    found["models"] = [{**row, "model": _relative(row["model"], folder)} for row in found["models"]]
    if "base_model" in found:
        found["base_model"] = _relative(found["base_model"], folder)
    for name in FILES:
        if name in (shared := found.get("parameters", {})):
            places = [_relative(os.path.abspath(file), folder) for file in shared[name]]
            found["parameters"] = {**shared, name: places}
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, default_flow_style=None)
    (folder / NAME).write_text(text, encoding="utf-8")


def is_portable(recipe: Mapping) -> bool:
    """Whether a recipe names nothing but models on the Hub."""
    named = [row["model"] for row in recipe.get("models", [])] + [recipe.get("base_model") or ""]
    local = any(name in recipe.get("parameters", {}) for name in FILES)
    return bool(recipe) and not local and not any(os.path.isabs(place) for place in named)


NAME = "recipe.yml"


def _relative(place: str, folder: Path) -> str:
    if not os.path.isabs(place):
        return place  # a Hub id
    try:
        return Path(os.path.relpath(place, folder)).as_posix()
    except ValueError:  # on another drive
        return place
