"""Fusing finetuned models: the mean of their weights, from safetensors files to a safetensors file.

Models are compared by their headers first; then tensors are read one at a time, so that a model
never has to fit into memory. Heads are left out, the body is averaged by name.
"""

import json
import math
import os
import shutil
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig

from fusinglib.errors import InputError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
HEAD_SETTINGS = {"id2label", "label2id", "num_labels", "problem_type", "finetuning_task"}
FREE_SETTINGS = ("drop", "initializer", "use_cache")  # parts of names of settings that may differ
VOCABULARIES = (
    "tokenizer.json vocab.txt vocab.json merges.txt spiece.model spm.model tokenizer.model "
    "sentencepiece.bpe.model bpe.codes added_tokens.json"
).split()
SETTINGS_FILES = "tokenizer_config.json special_tokens_map.json chat_template.jinja".split()
COPIED_FILES = [*VOCABULARIES, *SETTINGS_FILES, "generation_config.json"]


class Stored(NamedTuple):
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        return DTYPES[self.dtype].is_floating_point

    def read(self) -> torch.Tensor:
        with safe_open(self.file, "pt") as weights:
            return weights.get_tensor(self.name)


class Parent(NamedTuple):
    """A model to be fused: its configuration as stored and as understood, its body and head.

    `architecture` names the class of the body: the model's own if all is body, else `base`, the
    class that AutoModel opens. `body` maps names without prefix to stored tensors.
    """

    folder: Path
    raw_config: dict
    config: PreTrainedConfig
    base: str
    architecture: str
    body: dict[str, Stored]
    head: list[str]


def mean(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The mean of tensors of one dtype: `(t_1 + ... + t_n) / n` (the paper, section 2).

    The sum runs in the given order, in float32 (float64 for float64), and is rounded to the
    inputs' dtype once, after the division.
    """
    tensors = iter(tensors)
    tensor, count = next(tensors), 1
    total = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
    for tensor in tensors:
        total += tensor
        count += 1
    return (total / count).to(tensor.dtype)


def fuse(models: Sequence[str | Path], output: str | Path) -> dict:
    """Write the mean of `models` to the new folder `output` and say what was done.

    Equivalent, for each tensor of the body: `sum(model[name] for model in models) / len(models)`
    ("Fusing finetuned models for better pretraining", section 2). Integer tensors must be equal and
    are copied. Encoders are written as their body alone, as AutoModel saves it; T5 with its
    language-model head is all body and written as it was.

    Arguments:
        models: local folders with `config.json` and safetensors files, in the order of summation;
            each may be given only once.
        output: a folder that does not exist yet. It appears whole or not at all.

    Returns a dict: `method`, `parents` (the last two names of each path, so that the file does not
    depend on where it was made), `output`, `architecture`, `averaged` and `copied` (names of
    tensors), `left_out` (rows of model, tensor, reason), `files` (copied from the first model).
    """
    folders, output = _folders(models), Path(output)
    if os.path.lexists(output):
        raise InputError(f"Output {output} exists already: give a new folder, or remove it first.")
    parents = _alike(folders)
    first = parents[0]
    same = all(parent.architecture == first.architecture for parent in parents)
    report = {
        "method": "mean",
        "parents": ["/".join(folder.absolute().parts[-2:]) for folder in folders],
        "output": str(output),
        "architecture": first.architecture if same else first.base,
        "averaged": sorted(name for name, stored in first.body.items() if stored.is_float),
        "copied": sorted(name for name, stored in first.body.items() if not stored.is_float),
        "left_out": [
            {"model": str(parent.folder), "tensor": name, "reason": "head, not part of the body"}
            for parent in parents
            for name in parent.head
        ],
        "files": [name for name in COPIED_FILES if (first.folder / name).is_file()],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir()
        _write(partial, parents, report)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def bodies(models: Sequence[str | Path]) -> Iterator[list[torch.Tensor]]:
    """The floating tensors of the models' bodies: one name at a time, of all models in their order.

    Checked as `fuse` checks them; a model may be given more than once.
    """
    parents = _alike([Path(model) for model in models])
    for name, stored in parents[0].body.items():
        if stored.is_float:
            yield [_read_finite(parent, name) for parent in parents]


# What the folders hold, from headers and configurations only.


def _alike(folders: list[Path]) -> list[Parent]:
    """The models in `folders`, which must have bodies of one kind."""
    parents = [_open(folder) for folder in folders]
    for other in parents[1:]:
        _check_tensors(parents[0], other)
        _check_settings(parents[0], other)
    _check_vocabularies(folders)
    return parents


def _folders(models: Sequence[str | Path]) -> list[Path]:
    if isinstance(models, (str, Path)) or not models:
        raise InputError(f"models is {models!r}: give a list of at least one model folder.")
    folders = [Path(model) for model in models]
    for i, folder in enumerate(folders):
        if not folder.is_dir():
            raise InputError(f"Model {folder} is not a folder: give local model folders.")
        if any(folder.samefile(earlier) for earlier in folders[:i]):
            raise InputError(f"Model {folder} is given twice: a mean takes each model once.")
    return folders


def _open(folder: Path) -> Parent:
    raw_config = _read_json(folder / "config.json")
    try:
        config = CONFIG_MAPPING[raw_config["model_type"]].from_dict(raw_config)
        base = MODEL_MAPPING[type(config)].__name__
        name = (config.architectures or [base])[0]
        prefix = f"{getattr(transformers, name).base_model_prefix}."
    except Exception as error:  # the config classes raise errors of many kinds
        raise InputError(
            f"{folder / 'config.json'} describes no model that transformers "
            f"{transformers.__version__} knows ({error!r}): save it again with save_pretrained."
        ) from error
    tensors = _headers(folder)
    prefixed = any(key.startswith(prefix) for key in tensors)
    head = sorted(key for key in tensors if prefixed and not key.startswith(prefix))
    body = {key.removeprefix(prefix): tensors[key] for key in tensors if key not in head}
    return Parent(folder, raw_config, config, base, base if prefixed else name, body, head)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): a JSON file was expected.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object: save the model again.")
    return content


def _headers(folder: Path) -> dict[str, Stored]:
    tensors = {}
    files, weight_map = _weight_files(folder)
    for file in files:
        try:
            with safe_open(file, "pt") as weights:
                for name in weights.keys():
                    part = weights.get_slice(name)
                    shape = tuple(part.get_shape())
                    tensors[name] = Stored(file, name, part.get_dtype(), shape)
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{file} is truncated or no safetensors file ({error}): fetch or save it again."
            ) from error
    found = {(name, stored.file.name) for name, stored in tensors.items()}
    for name, _ in sorted(found ^ weight_map.items() if weight_map else ()):
        raise InputError(
            f"The index of model {folder} and its shards disagree on {name}: fetch the model again."
        )
    for name, stored in tensors.items():
        if stored.dtype not in DTYPES:
            raise InputError(
                f"Tensor {name} of model {folder} has dtype {stored.dtype}: expected one of "
                f"{', '.join(DTYPES)}. Save the model unquantized."
            )
    return tensors


def _weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files, and for shards the index's map from tensor to file."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single], {}
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not weight_map:
            raise InputError(f"{index} has no weight_map: fetch or save the model again.")
        files = [folder / name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{index} lists {file.name}, which is missing: fetch it again.")
        return files, weight_map
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in (".bin", ".pt"))
    found = f"only {', '.join(pickles)} (pickles are not opened)" if pickles else "no weights"
    raise InputError(
        f"Model {folder} holds {found}: expected {single.name}, or {index.name} with its shards. "
        "Save the model with save_pretrained."
    )


# What must agree before anything is read or written.


def _check_tensors(first: Parent, other: Parent) -> None:
    if type(first.config) is not type(other.config):
        raise InputError(
            f"Models {first.folder} and {other.folder} are of different kinds "
            f"({first.config.model_type} and {other.config.model_type}): fuse models of one kind."
        )
    for here, there in ((first, other), (other, first)):
        for name in sorted(here.body.keys() - there.body.keys()):
            raise InputError(
                f"Tensor {name} of model {here.folder} is missing in model {there.folder}: bodies "
                "must hold the same tensors. If they were only saved differently (tied weights "
                "stored once and twice, older names), open and save both with one transformers; "
                "a model with tied weights and one with untied weights are not fused."
            )
    for name, a in first.body.items():
        b = other.body[name]
        if a.shape != b.shape:
            size = getattr(first.config, "vocab_size", None)
            vocabulary = a.shape[1:] == b.shape[1:] and size in (*a.shape[:1], *b.shape[:1])
            raise InputError(
                f"Tensor {name} has shape {list(a.shape)} in model {first.folder} and "
                f"{list(b.shape)} in model {other.folder}: shapes must be equal."
                + " The vocabularies differ in size (added tokens or padding rows): resize them to "
                "the same one first, rows are never cropped here." * vocabulary
            )
        if a.dtype != b.dtype:
            raise InputError(
                f"Tensor {name} has dtype {a.dtype} in model {first.folder} and {b.dtype} in model "
                f"{other.folder}: dtypes must be equal. Save the models in one dtype first."
            )


def _check_settings(first: Parent, other: Parent) -> None:
    """The config class's own settings say what weights mean; dropout and such may differ."""
    own = type(first.config)().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    ours, theirs = first.config.to_dict(), other.config.to_dict()
    for key in sorted(own):
        free = any(part in key for part in FREE_SETTINGS)
        if not free and ours.get(key) != theirs.get(key):
            raise InputError(
                f"Models {first.folder} and {other.folder} differ in {key} (config.json: "
                f"{ours.get(key)!r} and {theirs.get(key)!r}): their weights do not mean the same."
            )


def _check_vocabularies(folders: list[Path]) -> None:
    """Every vocabulary file must be the same in all the models that have it."""
    for name in VOCABULARIES:
        files = [folder / name for folder in folders if (folder / name).is_file()]
        for other in files[1:]:
            if not _same_vocabulary(files[0], other):
                raise InputError(
                    f"Tokenizer files {files[0]} and {other} differ: models to be fused must read "
                    "text in the same way. Fuse models with one tokenizer."
                )


def _same_vocabulary(a: Path, b: Path) -> bool:
    """Equal bytes; a tokenizer.json may differ in the last call's truncation and padding."""
    if a.read_bytes() == b.read_bytes() or a.name != "tokenizer.json":
        return a.read_bytes() == b.read_bytes()
    passing = {"truncation": None, "padding": None}
    return _read_json(a) | passing == _read_json(b) | passing


# What is written.


def _write(folder: Path, parents: list[Parent], report: dict) -> None:
    first = parents[0]
    metadata = {"format": "pt", "method": "mean", "parents": json.dumps(report["parents"])}
    file = folder / "model.safetensors"
    _write_safetensors(file, first.body, lambda name: _combine(parents, name), metadata)
    dropped = HEAD_SETTINGS if report["architecture"] == first.base else ()
    config = {key: value for key, value in first.raw_config.items() if key not in dropped}
    config["architectures"] = [report["architecture"]]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(report), encoding="utf-8")
    for name in report["files"]:
        shutil.copyfile(first.folder / name, folder / name)


def _combine(parents: list[Parent], name: str) -> torch.Tensor:
    if not parents[0].body[name].is_float:
        return _equal(parents, name)
    result = mean(_read_finite(parent, name) for parent in parents)
    if not result.isfinite().all():
        raise InputError(f"The sum of tensor {name} is too large for its dtype: check the models.")
    return result


def _equal(parents: list[Parent], name: str) -> torch.Tensor:
    tensor = parents[0].body[name].read()
    for parent in parents[1:]:
        if not torch.equal(tensor, parent.body[name].read()):
            raise InputError(
                f"Integer tensor {name} differs between models {parents[0].folder} and "
                f"{parent.folder}: integers are not averaged, they must be equal."
            )
    return tensor


def _read_finite(parent: Parent, name: str) -> torch.Tensor:
    tensor = parent.body[name].read()
    if not tensor.isfinite().all():
        raise InputError(
            f"Tensor {name} of model {parent.folder} holds NaN or infinity: leave this model out."
        )
    return tensor


def _write_safetensors(
    path: Path,
    like: dict[str, Stored],
    tensor: Callable[[str], torch.Tensor],
    metadata: dict[str, str],
) -> None:
    """Write a safetensors file one tensor at a time (its save_file needs all of them at once).

    The format: the header's length (8 bytes, little endian), the header as JSON padded with spaces
    to a multiple of 8, the tensors' bytes. Wider dtypes come first, so that all are aligned.
    """
    names = sorted(like, key=lambda name: (-DTYPES[like[name].dtype].itemsize, name))
    header, end = {"__metadata__": metadata}, 0
    for name in names:
        dtype, shape = like[name].dtype, like[name].shape
        start, end = end, end + DTYPES[dtype].itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy())


def _card(report: dict) -> str:
    parents = "\n".join(f"{i}. `{name}`" for i, name in enumerate(report["parents"], 1))
    return f"""---
library_name: transformers
---
# Fused model

The {report["method"]} of {len(report["parents"])} models, tensor by tensor, summed in this order
("Fusing finetuned models for better pretraining", section 2):

{parents}

Architecture {report["architecture"]}: {len(report["averaged"])} tensors averaged,
{len(report["copied"])} copied, {len(report["left_out"])} of heads left out. Made with torch
{torch.__version__}, transformers {transformers.__version__}, safetensors {safetensors.__version__}.
"""
