"""Weights and settings that vary from tensor to tensor, written as data, as mergekit does:

    0.5                                     a number, for all tensors
    [0, 0.5, 1]                             from the first layer to the last, interpolated linearly
    [{"filter": "attention", "value": 0.3}, {"value": [0, 1]}]
                                            the value of the first filter that is part of the
                                            tensor's name; one without a filter fits all
    {"each": [0.5, [0, 1]]}                 a setting that differs between the models: one for each

Tensors outside the layers, such as embeddings, take the value of the first layer, and the layer of
a model that has just one takes that of the last (as in mergekit).
"""

import re
from collections.abc import Iterable
from typing import Any

from fusinglib.errors import InputError

LAYER = re.compile(r"\.(\d+)\.")

EXPECTED = (
    "a number; a list of numbers, from the first layer to the last; or a list of "
    '{"filter": part of a name, "value": number or list}'
)


def is_number(said: Any) -> bool:
    return isinstance(said, (int, float)) and not isinstance(said, bool)


def numbers(what: str, said: Any) -> list[float]:
    """All numbers of a value. Raises `InputError` if it is none of those described above."""
    if is_number(said):
        return [said]
    if isinstance(said, list) and said and all(map(is_number, said)):
        return said
    if isinstance(said, list) and said and all(map(_is_row, said)):
        return [number for row in said for number in numbers(what, row["value"])]
    raise InputError(f"{what} is {said!r}: expected {EXPECTED}.")


def _is_row(said: Any) -> bool:
    return (
        isinstance(said, dict)
        and "value" in said
        and said.keys() <= {"filter", "value"}
        and isinstance(said.get("filter"), (str, type(None)))
    )


def each(said: Any, count: int, what: str) -> list:
    """A setting's values for each of `count` models."""
    if not (isinstance(said, dict) and said.keys() == {"each"}):
        return [said] * count
    if not isinstance(said["each"], list) or len(said["each"]) != count:
        raise InputError(f"{what} is {said!r}: expected a list of {count} values, one per model.")
    return said["each"]


def at(said: Any, tensor: str, depth: float) -> float | None:
    """A value for one tensor at this depth; None if no filter is part of the tensor's name."""
    if is_number(said):
        return said
    if is_number(said[0]):
        place = depth * (len(said) - 1)
        below = int(place)
        above, part = min(below + 1, len(said) - 1), place - below
        return (1 - part) * said[below] + part * said[above]
    for row in said:
        if row.get("filter") in (None, "*") or row["filter"] in tensor:
            return at(row["value"], tensor, depth)
    return None


def mapped(said: Any, change) -> Any:
    """The value with every number changed by a function."""
    if is_number(said):
        return change(said)
    return [
        {**row, "value": mapped(row["value"], change)} if isinstance(row, dict) else change(row)
        for row in said
    ]


def text(said: Any) -> str:
    """A weight for a reader."""
    return f"{said:.4g}" if is_number(said) else "varies"


def depths(tensors: Iterable[str]) -> dict[str, float]:
    """Where each tensor's layer is, from 0 for the first of its stack to 1 for the last."""
    places, last = {}, {}
    for name in tensors:
        found = LAYER.search(name)
        stack, number = (name[: found.start()], int(found[1])) if found else ("", 0)
        places[name] = stack, number, bool(found)
        last[stack] = max(last.get(stack, 0), number)
    return {
        name: float(number / last[stack] if last[stack] else in_layer)
        for name, (stack, number, in_layer) in places.items()
    }
