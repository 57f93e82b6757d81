"""The chosen method with its weights and settings, checked, for every tensor."""

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusinglib.errors import InputError
from fusinglib.fusion import measures, varying
from fusinglib.fusion.methods import METHODS, Method
from fusinglib.fusion.streaming import Chunk

VARYING = ("density", "gamma", "scale")
"""Settings that may vary between tensors, and the first two between models."""

NOT_NEGATIVE = ("fisher", "regmean", "ties", "slerp")
DIVIDED = ("weighted", "fisher", "regmean", "slerp")
"""Methods that take no negative weights, and those that divide by their sum."""


@dataclass
class Chosen:
    """How models are fused: the method, its name, the weights and settings as they were given, and
    what the method must know."""

    method: Method
    name: str
    weights: list
    settings: dict
    depths: dict[str, float] = field(default_factory=dict)
    known: Callable[[Chunk], dict] = field(default=lambda chunk: {})

    @functools.cached_property
    def wants_name(self) -> bool:
        """Whether the method takes the name of the tensor."""
        return "name" in inspect.signature(self.method.combine).parameters

    @functools.cached_property
    def varies(self) -> bool:
        """Whether any weight or setting depends on the tensor."""
        settings = [self.settings[name] for name in VARYING if name in self.settings]
        return not all(map(varying.is_number, [*self.weights, *settings]))

    def of(self, count: int) -> "Chosen":
        """The same for another number of models, equally weighted."""
        return Chosen(self.method, self.name, [1 / count] * count, self.settings)

    def for_tensors(self, names: Iterable[str]) -> None:
        """Learn the names of the tensors, and check the weights and settings of each."""
        self.depths = varying.depths(names)
        for name in self.depths if self.varies else ():
            self.weights_at(name)
            self.settings_at(name)

    def weights_at(self, tensor: str) -> np.ndarray:
        """A weight for each model, float64."""
        if not self.varies:
            return np.array(self.weights, dtype=np.float64)
        found = [self._at(f"The weight of model {i + 1}", w, tensor)
                 for i, w in enumerate(self.weights)]  # fmt: skip
        _check_sum(self.name, np.array(found), f"The weights for tensor {tensor}")
        return np.array(found, dtype=np.float64)

    def settings_at(self, tensor: str) -> dict:
        """The settings; one that differs between the models is an array."""
        if not self.varies:
            return self.settings
        count, found = len(self.weights), dict(self.settings)
        for name in VARYING:
            if name in found:
                what = f"Setting {name}"
                values = [
                    self._at(what, one, tensor) for one in varying.each(found[name], count, what)
                ]
                found[name] = values[0] if len(set(values)) == 1 else np.array(values)
        return found

    def _at(self, what: str, said: Any, tensor: str) -> float:
        value = varying.at(said, tensor, self.depths[tensor])
        if value is None:
            raise InputError(f"{what} has no value for tensor {tensor}: add one without a filter.")
        return value


def choose(method, weights, count: int, settings: dict) -> Chosen:
    """The method for `count` models, with weights and settings; raises `InputError`."""
    if isinstance(method, str) and method not in METHODS:
        raise InputError(
            f"Unknown method {method!r}: expected {', '.join(METHODS)}, or a function."
        )
    if not (isinstance(method, str) or callable(method)):
        raise InputError(f"method is {method!r}: expected {', '.join(METHODS)}, or a function.")
    own = not isinstance(method, str)
    chosen = Method(method) if own else METHODS[method]
    name = getattr(method, "__name__", "a function") if own else method
    possible = measures.settings_of(chosen)
    for setting, value in settings.items():
        if setting not in possible and not measures.takes_any(chosen):
            raise InputError(
                f"The method {name} has no setting {setting!r}: expected "
                f"{', '.join(possible) or 'none'}."
            )
        _check_setting(setting, value, count)
    possible |= settings
    if possible.get("which", 0) >= count and name == "scaled":
        raise InputError(f"Setting which is {possible['which']}: there are {count} models, from 0.")
    lacking = [setting for setting in possible if possible[setting] is inspect.Parameter.empty]
    if lacking:
        raise InputError(f"The method {name} needs the setting {lacking[0]}: pass it.")
    return Chosen(chosen, name, _weights("" if own else name, chosen, weights, count), possible)


def _check_setting(name: str, value, count: int) -> None:
    if name in VARYING:
        what = f"Setting {name}"
        values = varying.each(value, count, what) if name != "scale" else [value]
        for number in (number for one in values for number in varying.numbers(what, one)):
            _check_number(name, number)
    if name == "which" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise InputError(f"Setting which is {value!r}: expected the number of a model, from 0.")
    if name == "straight" and not (varying.is_number(value) and 0 <= value <= 1):
        raise InputError(f"Setting straight is {value!r}: expected a number from 0 to 1.")
    if name == "alpha" and not (varying.is_number(value) and 0 <= value < 1):
        raise InputError(f"Setting alpha is {value!r}: expected a number from 0, below 1.")
    if name == "seed" and (not isinstance(value, int) or isinstance(value, bool)):
        raise InputError(f"Setting seed is {value!r}: expected a whole number.")


def _check_number(name: str, value: float) -> None:
    if name == "density" and not 0 < value <= 1:
        raise InputError(f"Setting density is {value!r}: expected a number above 0, at most 1.")
    if name == "gamma" and not 0 <= value < 1:
        raise InputError(f"Setting gamma is {value!r}: expected a number from 0, below 1.")
    if name == "scale" and not np.isfinite(value):
        raise InputError(f"Setting scale is {value!r}: expected a number.")


def _weights(name: str, method: Method, weights, count: int) -> list:
    """One weight per model."""
    if name == "slerp" and count != 2:
        raise InputError(f"slerp takes two models, not {count}.")
    if weights is None:
        return [method.weight or 1 / count] * count
    if name == "mean":
        raise InputError("The mean takes no weights: choose the method weighted.")
    if not method.weighted:
        raise InputError(f"The method {name} takes no weights: leave them out.")
    if isinstance(weights, str) or not hasattr(weights, "__len__") or len(weights) != count:
        raise InputError(f"weights are {weights!r}: expected {count} numbers, one for each model.")
    values = [_native(weight) for weight in weights]
    found = [number for one in values for number in varying.numbers("A weight", one)]
    if not np.isfinite(found).all():
        raise InputError(f"weights are {weights!r}: expected {count} numbers, one for each model.")
    if name in NOT_NEGATIVE and min(found) < 0:
        raise InputError(f"weights are {weights!r}: {name} takes no negative weights.")
    if all(map(varying.is_number, values)):
        _check_sum(name, np.array(values), f"weights are {weights!r}")
    return values


def _native(weight):
    """A weight as Python's own number, if it is numpy's."""
    return weight.item() if isinstance(weight, np.generic) else weight


def _check_sum(name: str, values: np.ndarray, what: str) -> None:
    if name in DIVIDED and abs(values.sum()) < 1e-9 * max(np.abs(values).max(), 1e-300):
        raise InputError(f"{what}: their sum must not be zero.")


def normalised(chosen: Chosen) -> list:
    """The weights as shares of their sum, where the method divides by it and all are numbers."""
    if chosen.name in DIVIDED and all(map(varying.is_number, chosen.weights)):
        return [float(weight / sum(chosen.weights)) for weight in chosen.weights]
    return [float(w) if varying.is_number(w) else w for w in chosen.weights]


def plain(value):
    """A setting as JSON data."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
