"""Arms of a study: further base models, made of a family's source models for a target.

Beside the paper's (pretrained, random, intertrained, and fused, the mean) these are two controls
and every other method of fusing:

- ``scaled single``: the intertrained model, its update shrunk to the norm of the mean's. What a
  mean gains because it is nearer to pretrained than its models, this gains as well.
- ``placebo``: pretrained and a random update that has the norm of the mean's, tensor by tensor, in
  another draw for every seed. What any change of that size gains, this gains as well.
- any method of `fusinglib.fusion.methods`: its name, or ``{"ties": {"density": 0.2}}``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fusinglib.errors import InputError, nearest
from fusinglib.fusion import measures
from fusinglib.fusion.methods import METHODS

CONTROLS = {"scaled single": "scaled", "placebo": "placebo"}
"""The controls, and the methods that make them."""

OTHERS = ("mean", "scaled", "placebo", "slerp", "fisher", "regmean")
KNOWN = [*CONTROLS, *(name for name in METHODS if name not in OTHERS)]
"""What can be an arm: all but what the table has already, takes two models only, or needs data."""


class Arm(NamedTuple):
    """A base model: what tables call it, and the method and settings that make it."""

    name: str
    method: str
    settings: dict[str, float]


def arm(said: str | Mapping[str, Mapping[str, float]]) -> Arm:
    """The arm that an entry of the parameter `arms` names.

    Raises `InputError` for what cannot be one.
    """
    given = {said: {}} if isinstance(said, str) else dict(said)
    if len(given) != 1:
        raise InputError(
            f"parameter 'arms': {said} has {len(given)} names: expected one, with its settings"
        )
    ((name, settings),) = given.items()
    if name not in KNOWN:
        raise InputError(f"parameter 'arms': there is no arm {name!r}: {nearest(name, KNOWN)}")
    method = CONTROLS.get(name, name)
    for setting in settings:
        if setting not in (takes := measures.settings_of(METHODS[method])):
            raise InputError(
                f"parameter 'arms': {name} has no setting {setting!r}: {nearest(setting, takes)}"
            )
    words = ", ".join(f"{key} {value:g}" for key, value in settings.items())
    return Arm(f"{name} ({words})" if words else name, method, dict(settings))


def settings_of(one: Arm, picked: int, seed: int) -> dict[str, Any]:
    """The settings of the method that makes an arm, where the intertrained model is number `picked`
    and runs have this seed."""
    if one.method == "scaled":
        return {**one.settings, "which": picked}
    if "random" in METHODS[one.method].needs:
        return {"seed": seed, **one.settings}
    return one.settings
