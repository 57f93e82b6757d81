"""Arms of a study: base models beside the paper's pretrained, intertrained and fused (the mean).

All but the first are made of a family's source models for a target:

- ``random``: the same architecture, never pretrained. Pretrained must be clearly above it.
- ``scaled single``: the intertrained model, its update shrunk to the norm of the mean's. What a
  mean gains because it is nearer to pretrained than its models, this gains as well.
- ``placebo``: pretrained and a random update that has the norm of the mean's, tensor by tensor, in
  another draw for every seed. What any change of that size gains, this gains as well.
- any method of `fusinglib.fusion.methods`: its name, or ``{"ties": {"density": 0.2}}``.
  ``weighted`` weights by training examples, ``slerp`` takes the two models with the most, and
  ``fisher`` and ``regmean`` make their estimates on training texts of the source tasks.

Every arm takes one more setting: ``rescaled: true`` gives its update the norm of the mean's, so
that it differs from the mean in direction only.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fusinglib.errors import InputError, nearest
from fusinglib.fusion import measures
from fusinglib.fusion.methods import METHODS

RANDOM = "random"

CONTROLS = {"scaled single": "scaled", "placebo": "placebo"}
"""The controls, and the methods that make them."""

KNOWN = [
    RANDOM,
    *CONTROLS,
    *(name for name in METHODS if name not in ("mean", "scaled", "placebo")),
]
"""What can be an arm. The mean cannot: every table has it."""

ESTIMATES = {"fisher": "fisher", "regmean": "gram"}
"""Methods that need an estimate of every model, and the setting that they take it by."""


class Arm(NamedTuple):
    """A base model: what tables call it, the method and settings that make it, and whether its
    update is rescaled to the norm of the mean's."""

    name: str
    method: str
    settings: dict[str, float]
    rescaled: bool = False


def arm(said: str | Mapping[str, Mapping[str, float | bool]]) -> Arm:
    """The arm that an entry of the parameter `arms` names.

    Raises `InputError` for what cannot be one.
    """
    given = {said: {}} if isinstance(said, str) else dict(said)
    if len(given) != 1:
        raise InputError(
            f"parameter 'arms': {said} has {len(given)} names: expected one, with its settings"
        )
    name, settings = next((name, dict(settings)) for name, settings in given.items())
    rescaled = bool(settings.pop("rescaled", False))
    if name not in KNOWN:
        raise InputError(f"parameter 'arms': there is no arm {name!r}: {nearest(name, KNOWN)}")
    method = CONTROLS.get(name, name)
    takes = [] if name == RANDOM else [*_settings(method), "rescaled"]
    for setting in given[name]:
        if setting not in takes:
            there = nearest(setting, takes) if takes else "it takes none"
            raise InputError(f"parameter 'arms': {name} has no setting {setting!r}: {there}")
    words = [f"{key} {value:g}" for key, value in settings.items()] + ["rescaled"] * rescaled
    said = f"{name.replace('_', ' ')} ({', '.join(words)})" if words else name.replace("_", " ")
    return Arm(said, method, settings, rescaled)


def _settings(method: str) -> list[str]:
    """The settings of a method that a parameter file can give."""
    return [
        name for name in measures.settings_of(METHODS[method]) if name not in ESTIMATES.values()
    ]


def settings_of(one: Arm, picked: int, seed: int) -> dict[str, Any]:
    """The settings of the method that makes an arm, where the intertrained model is number `picked`
    and runs have this seed."""
    if one.method == "scaled":
        return {**one.settings, "which": picked}
    if "random" in METHODS[one.method].needs:
        return {"seed": seed, **one.settings}
    return one.settings
