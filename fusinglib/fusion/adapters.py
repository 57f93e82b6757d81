"""LoRA adapters, merged into their base model."""

import re
from pathlib import Path

import numpy as np

from fusinglib.errors import InputError
from fusinglib.fusion.checkpoints import Checkpoint, Located, locate, opened, read_json
from fusinglib.fusion.tensors import SIZES, LowRank, Reader, TensorInfo, headers_of_file

PLAIN = {"bias": "none", "use_dora": False, "lora_bias": False, "layer_replication": None,
         "megatron_config": None, "alora_invocation_tokens": None, "use_qalora": False,
         "trainable_token_indices": None, "target_parameters": None, "use_bdlora": None,
         "arrow_config": None, "kasa_config": None, "monteclora_config": None}  # fmt: skip
"""Settings that change what an adapter adds, and their values for an adapter that adds only B @
A."""

CHANGING = re.compile("(pissa|corda|olora|loftq|lora_ga)")
"""Initialisations that subtract B @ A from the base weights before training."""


def merged(located: Located, allow_pickle: bool, weights: bool = True) -> Checkpoint:
    """The base model of a LoRA adapter with its updates: `W + alpha / r * B @ A` (Hu et al. 2021,
    section 4.1), or `alpha / sqrt(r)` where the adapter says so (rsLoRA).

    Nothing is multiplied yet: what is averaged are the products, not their factors.
    """
    folder = located.path
    config = configuration(folder)
    base = _base(folder, config, allow_pickle, weights)
    tensors = dict(base.tensors)
    adapter = tensors_of(folder)
    for key in list(adapter):
        if key.endswith(".lora_A.weight"):
            module = key.removesuffix(".lora_A.weight")
            pair = [adapter.pop(f"{module}.lora_{side}.weight", None) for side in "AB"]
            target = _find(f"{module}.weight", base)
            if not target:
                raise InputError(
                    f"Adapter {folder} updates {module}, which its base does not have."
                )
            tensors[target] = _updated(folder, tensors[target], pair, config, module)
    heads = []  # modules saved in full, such as a new head
    for key, stored in adapter.items():
        if ".lora_" in key:
            raise InputError(
                f"Tensor {key} of adapter {folder} is not an update of a linear layer."
            )
        found = _find(key, base)
        if found and tensors[found].shape != stored.shape:
            if base.is_whole or found.startswith(base.prefix):
                raise InputError(
                    f"Tensor {key} of adapter {folder} has shape {list(stored.shape)}, but "
                    f"{list(tensors[found].shape)} in its base: resize the base and save it first."
                )
            del tensors[found]
            heads.append(key)
        elif found:
            tensors[found] = stored
        else:
            heads.append(key)
    if not any(stored.update for stored in tensors.values()):
        raise InputError(f"Adapter {folder} updates nothing: save it again with peft.")
    name = f"{base.name} + {located.name}"
    return base._replace(
        name=name, tensors=tensors, source=folder.resolve(), more_heads=tuple(heads),
        place=located.place,
    )  # fmt: skip


def configuration(folder: Path) -> dict:
    """The configuration of a plain LoRA adapter; raises `InputError` for any other."""
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise InputError(f"Adapter {folder} is of type {config.get('peft_type')}: expected LORA.")
    for key, plain in PLAIN.items():
        if config.get(key, plain) not in (plain, None):
            raise InputError(
                f"Adapter {folder} has {key} {config[key]!r}: only plain LoRA is merged here "
                f"({key} {plain!r}). Merge it with peft's merge_and_unload and use the result."
            )
    if CHANGING.match(str(config.get("init_lora_weights")).lower()):
        raise InputError(
            f"Adapter {folder} was initialised by {config['init_lora_weights']}, which changes its "
            "base: save it with peft's path_initial_model_for_weight_conversion."
        )
    return config


def _base(folder: Path, config: dict, allow_pickle: bool, weights: bool) -> Checkpoint:
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not base or not isinstance(base, str):
        raise InputError(f"Adapter {folder} names no base model (base_model_name_or_path).")
    if (Path(base) / "adapter_config.json").is_file():
        raise InputError(f"The base {base} of adapter {folder} is an adapter: merge it first.")
    pinned = f"{base}@{revision}" if revision and not Path(base).exists() else base
    return opened(locate(pinned, weights), allow_pickle)


def tensors_of(folder: Path) -> dict[str, TensorInfo]:
    """The adapter's tensors, under the names in the model that it was made for."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise InputError(f"Adapter {folder} has no {file.name}: save it again with peft.")
    tensors = headers_of_file(file)
    return {name.removeprefix("base_model.model."): tensors[name] for name in tensors}


def _find(name: str, base: Checkpoint) -> str | None:
    """The base's tensor with that name; either may have been saved without the body's prefix."""
    for one in (name, f"{base.prefix}{name}"):
        found = [key for key in base.tensors if key == one or one.endswith(f".{key}")]
        if found:
            return max(found, key=len)
    return None


def _updated(folder, stored: TensorInfo, pair: list, config: dict, module: str) -> TensorInfo:
    if None in pair or any(len(s.shape) != 2 or not s.is_float for s in (stored, *pair)):
        raise InputError(f"Adapter {folder} has an incomplete update for {module}.")
    a, b = (_matrix(part, stored) for part in pair)
    scale = scale_of(folder, config, module, len(a))
    if config.get("fan_in_fan_out"):
        a, b = b.T, a.T
    if a.shape[0] != b.shape[1] or (b.shape[0], a.shape[1]) != stored.shape:
        raise InputError(
            f"Adapter {folder}: the update of {module} has shapes {b.shape} and {a.shape}, which "
            f"do not give the shape {stored.shape} of its base."
        )
    return stored._replace(update=LowRank(np.ascontiguousarray(b), np.ascontiguousarray(a), scale))


def scale_of(folder: Path, config: dict, module: str, found: int) -> float:
    """What an update `B @ A` of the rank that was found is multiplied by."""
    rank = _pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, (int, float)) or rank != found or not rank:
        raise InputError(
            f"Adapter {folder}: the configuration gives {module} rank {rank!r} and alpha "
            f"{alpha!r}, but its update has rank {found}."
        )
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _pattern(patterns: dict | None, module: str, default):
    """The value of the first pattern that the module's name ends with, as peft reads them.

    Raises `InputError` for one that is no regular expression, or that repeats a group, since
    matching it may take forever.
    """
    for pattern, value in (patterns or {}).items():
        try:
            if re.search(r"\)[*+{]", pattern):
                raise re.error("it repeats a group")
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise InputError(
                f"The pattern {pattern!r} of an adapter for {module} cannot be used ({error}): "
                "merge the adapter with peft's merge_and_unload and use the result."
            ) from error
    return default


def _matrix(stored: TensorInfo, base: TensorInfo) -> np.ndarray:
    """A factor of an update, in the dtype that its base is computed in."""
    values, reader = np.empty(stored.size, f"f{max(4, SIZES[stored.dtype])}"), Reader()
    try:
        reader.numbers(stored, 0, stored.size, values)
    finally:
        reader.close()
    return values.reshape(stored.shape).astype("f8" if base.dtype == "F64" else "f4")
