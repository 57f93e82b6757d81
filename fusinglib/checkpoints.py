"""Models as files: where they are, what their headers say, and their numbers, piece by piece.

Nothing here needs torch or transformers, whose import takes as long as a merge; they are asked
only where a configuration or a format leaves no other way. Heads and bodies are told apart by the
names of the tensors: the body of a model with a head is the one part that holds numbered layers
and the embedding of the whole vocabulary.
"""

import json
import math
import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fusinglib.errors import InputError

SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of one number, by safetensors' name of its dtype."""

FLOATS = ("F64", "F32", "F16", "BF16")
LONGEST_HEADER = 100_000_000
"""Bytes; the safetensors library has the same limit."""

INDEX = ".safetensors.index.json"
ARCHITECTURE = re.compile(r"(\w+?)(LMHeadModel|Model|ForCausalLM|ForMaskedLM|ForPreTraining|"
                          r"ForConditionalGeneration|For[A-Z]\w*)")  # fmt: skip
"""The name of a transformers class: its family, and what it adds to the family's body."""


class Stored(NamedTuple):
    """Where a tensor lies, and what its file's header says of it.

    `start` is its first byte in the file; `data` holds its bytes if it comes out of a pickle, and
    `update` what an adapter adds to it.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    data: np.ndarray | None = None
    update: "LowRank | None" = None

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * SIZES[self.dtype]


class LowRank(NamedTuple):
    """An adapter's update of a matrix, `scale * left @ right`, in float32."""

    left: np.ndarray
    right: np.ndarray
    scale: float

    def piece(self, start: int, stop: int) -> np.ndarray:
        """The numbers `start` to `stop` of the update, flattened row by row."""
        width = self.right.shape[1]
        first = start // width
        rows = self.left[first : -(-stop // width)] @ self.right
        return self.scale * rows.reshape(-1)[start - first * width : stop - first * width]


class Checkpoint(NamedTuple):
    """A model to be fused: where it is, its configuration (none for a bare file), its tensors.

    `name` says the same wherever the model lies: the last two parts of its path, or its Hub id and
    commit. `architecture` is the class that its configuration names, `base` the one of its body,
    and `prefix` begins the names of its body's tensors ("" where all is body). `source` is the path
    that was given, resolved. `more_heads` are
    tensors of an adapter that its base model has no place for.
    """

    folder: Path
    name: str
    config: dict | None
    architecture: str
    base: str
    prefix: str
    tensors: dict[str, Stored]
    source: Path
    more_heads: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether there is no head: a bare body, or a language model, whose head knows no task."""
        kind = ARCHITECTURE.fullmatch(self.architecture)
        return not kind or not kind[2].startswith("For") or "LM" in kind[2] or (
            kind[2] in ("ForPreTraining", "ForConditionalGeneration")
        )  # fmt: skip

    def body(self) -> dict[str, Stored]:
        """The body's tensors, by their names without the prefix."""
        length = len(self.prefix)
        return {name[length:]: self.tensors[name] for name in self.tensors if self._inside(name)}

    def head(self) -> list[str]:
        """The names of all other tensors."""
        return sorted(
            [*(name for name in self.tensors if not self._inside(name)), *self.more_heads]
        )

    def labels(self) -> dict | None:
        """What the outputs of a head stand for, if the configuration says so."""
        return (self.config or {}).get("id2label")

    def _inside(self, name: str) -> bool:
        return name.startswith(self.prefix)


def open_checkpoint(model: str | Path, allow_pickle: bool = False) -> Checkpoint:
    """What `model` holds, by its headers and configuration; no weights are read.

    Arguments:
        model: a folder, a safetensors file, the key of a run of the store, or a Hub id, with its
            revision after an `@` if it is to be pinned. A folder with a LoRA adapter stands for
            its base model with the adapter merged in.
        allow_pickle: whether `.bin` files may be opened (weights only) where there is nothing else.

    Raises `InputError` where nothing is found, and for files that are damaged or of other kinds.
    """
    path, name = locate(str(model))
    if path.is_file():
        tensors = headers_of_file(path)
        if not (path.parent / "config.json").is_file():
            tensors = _known(path, tensors)
            return Checkpoint(path.parent, name, None, "", "", "", tensors, path.resolve())
        return _checkpoint(path.parent, name, tensors, path)
    if (path / "adapter_config.json").is_file():
        from fusinglib.adapters import merged

        return merged(path, name, allow_pickle)
    return _checkpoint(path, name, _headers(path, allow_pickle), path)


def locate(model: str) -> tuple[Path, str]:
    """The folder or file of a model, and its name, which is the same on every machine: its Hub id
    and commit, the label and key of its run, or the last two parts of its path."""
    path = Path(model).expanduser()
    if model and path.exists():
        return path, _run_name(path) or "/".join(path.absolute().parts[-2:])
    if re.fullmatch("[0-9a-f]{16}", model):
        from fusinglib.settings import store_folder

        for folder in store_folder("").glob(f"*/{model}/model"):
            return folder, _run_name(folder) or model
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", model):
        raise InputError(f"Model {model} is not a folder and not a file: check the path.")
    identity, _, revision = model.partition("@")
    folder = snapshot(identity, revision)
    return folder, f"{identity}@{folder.name[:12]}"


def _run_name(folder: Path) -> str:
    """What the store calls the run whose model this is; "" if it is no run's."""
    if not (folder.parent / "run.json").is_file():
        return ""
    run = read_json(folder.parent / "run.json")
    return f"{run.get('label')} [{run.get('key')}]"


FILES = ["*.safetensors", f"*{INDEX}", "*.json", "*.txt", "*.model", "*.jinja"]
"""What is taken of a Hub model: no pickles, no code."""


def snapshot(model: str, revision: str = "") -> Path:
    """The folder of a Hub id's snapshot, downloaded if need be."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            model, revision=revision or None, allow_patterns=FILES
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model {model!r}: no such folder, and no such model on the Hub or in the cache that "
            f"HF_HOME names ({type(error).__name__}); check the name, go online, or set HF_HOME."
        ) from error
    return Path(folder)


def _checkpoint(folder: Path, name: str, tensors: dict[str, Stored], source: Path) -> Checkpoint:
    _known(folder, tensors)
    config = read_json(folder / "config.json")
    architecture, base = _architecture(folder / "config.json", config)
    prefix = _prefix(tensors, config) if architecture != base else ""
    return Checkpoint(folder, name, config, architecture, base, prefix, tensors, source.resolve())


def _known(model: Path, tensors: dict[str, Stored]) -> dict[str, Stored]:
    """The tensors, if they are of dtypes that can be averaged or copied."""
    if not tensors:
        raise InputError(f"Model {model} holds no tensors: save it again.")
    for tensor in tensors.values():
        if tensor.dtype not in SIZES:
            raise InputError(
                f"Tensor {tensor.name} of model {model} has dtype {tensor.dtype}: expected one of "
                f"{', '.join(SIZES)}. Save the model unquantized."
            )
    return tensors


def _architecture(file: Path, config: dict) -> tuple[str, str]:
    """The names of the model's class and of its body's."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        kind = ARCHITECTURE.fullmatch(names[0])
        if kind and isinstance(config.get("model_type"), str):
            return names[0], f"{kind[1]}Model"
    elif not names:
        base = _base_of_type(file, config)
        return base, base
    raise InputError(
        f"{file} describes no model that transformers knows (architectures {names!r}, model_type "
        f"{config.get('model_type')!r}): save it again with save_pretrained."
    )


def _base_of_type(file: Path, config: dict) -> str:
    from transformers import MODEL_MAPPING

    return MODEL_MAPPING[type(understood(file, config))].__name__


def understood(file: Path, config: dict):
    """The configuration as transformers understands it, with the defaults of its class."""
    import transformers

    try:
        return transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    except Exception as error:  # the config classes raise errors of many kinds
        raise InputError(
            f"{file} describes no model that transformers {transformers.__version__} knows "
            f"({error!r}): save it again with save_pretrained."
        ) from error


def _prefix(tensors: dict[str, Stored], config: dict) -> str:
    """How the names of the body's tensors begin, where a head stands beside it, else "".

    The body is the only part with numbered layers, and holds the embedding of the vocabulary.
    """
    parts = {name.split(".")[0] for name in tensors if re.search(r"\.\d+\.", name)}
    if len(parts) != 1:
        return ""
    prefix = f"{parts.pop()}."
    words = config.get("vocab_size")
    inside = [tensor.shape for name, tensor in tensors.items() if name.startswith(prefix)]
    return prefix if words is None or any(words in shape for shape in inside) else ""


def read_json(path: Path) -> dict:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}): a JSON file was expected.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object: save the model again.")
    return content


# Weight files and their headers.


def _headers(folder: Path, allow_pickle: bool) -> dict[str, Stored]:
    single, index = folder / "model.safetensors", folder / f"model{INDEX}"
    if single.is_file():
        return headers_of_file(single)
    if index.is_file():
        return _headers_of_shards(folder, index)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if allow_pickle and pickles:
        from fusinglib.adapters import unpickled

        return unpickled(pickles)
    found = "no weights"
    if pickles:
        names = ", ".join(file.name for file in pickles)
        found = f"only {names} (pickles are not opened unless allow_pickle asks for it)"
    raise InputError(
        f"Model {folder} holds {found}: expected {single.name}, or {index.name} with its shards. "
        "Save the model with save_pretrained."
    )


def _headers_of_shards(folder: Path, index: Path) -> dict[str, Stored]:
    weight_map = read_json(index).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map: fetch or save the model again.")
    tensors = {}
    for name in sorted({str(file) for file in weight_map.values()}):
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise InputError(
                f"{index} lists {name!r}: expected the name of a safetensors file beside it."
            )
        if not (folder / name).is_file():
            raise InputError(f"{index} lists {name}, which is missing: fetch it again.")
        for key, stored in headers_of_file(folder / name).items():
            if weight_map.get(key) != name:
                raise InputError(_disagreement(folder, key))
            tensors[key] = stored
    for key in weight_map.keys() - tensors.keys():
        raise InputError(_disagreement(folder, key))
    return tensors


def _disagreement(folder: Path, name: str) -> str:
    return f"The index of model {folder} and its shards disagree on {name}: fetch the model again."


def headers_of_file(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, checked as its format wants them.

    The header's length (8 bytes, little endian), the header as JSON, then the bytes of the
    tensors, which must fill the rest without gaps and without overlaps.
    """
    try:
        with open(file, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= min(size - 8, LONGEST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            text = stream.read(length).decode()
        header = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        header.pop("__metadata__", None)
        tensors = {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}
        _check_layout(tensors, 8 + length, size)
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise InputError(
            f"{file} is truncated or no safetensors file ({error}): fetch or save it again."
        ) from error
    return tensors


def _unique(pairs: list[tuple]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _stored(file: Path, name: str, entry, data: int) -> Stored:
    """The tensor that an entry of the header describes; `data` is where the header ends."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            counts = [*shape, start, end]
            if all(type(count) is int and 0 <= count < 2**63 for count in counts):
                size = math.prod(shape) * SIZES.get(dtype, 1)
                if end < start or (dtype in SIZES and end - start != size):
                    raise ValueError(
                        f"tensor {name}: {end - start} bytes for {dtype} of shape {shape}"
                    )
                return Stored(file, name, dtype, tuple(shape), data + start)
    raise ValueError(f"tensor {name}: dtype, shape or data_offsets are missing or out of range")


def _check_layout(tensors: dict[str, Stored], start: int, size: int) -> None:
    if any(tensor.dtype not in SIZES for tensor in tensors.values()):
        return  # quantized: refused with its own words
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.bytes)):
        if tensor.start != start:
            raise ValueError(f"tensor {tensor.name} overlaps another one, or a gap is before it")
        start += tensor.bytes
    if start != size:
        raise ValueError(f"its tensors end at byte {start} of {size}")


# Numbers.


class Reader:
    """Reads pieces of stored tensors; files stay open until `close`."""

    def __init__(self):
        self._files: dict[Path, int] = {}

    def raw(self, tensor: Stored, start: int, stop: int, into: np.ndarray) -> None:
        """The bytes of the numbers `start` to `stop`, into an array of as many uint8.

        Raises `InputError` where the file has become shorter since its header was read.
        """
        size = SIZES[tensor.dtype]
        if tensor.data is not None:
            into[:] = tensor.data[start * size : stop * size]
            return
        done, position = 0, tensor.start + start * size
        while done < len(into):
            count = os.preadv(self._open(tensor.file), [into[done:]], position + done)
            if not count:
                raise InputError(f"{tensor.file} became shorter while it was read: fuse again.")
            done += count

    def numbers(self, tensor: Stored, start: int, stop: int, into: np.ndarray) -> None:
        """The numbers `start` to `stop` of a floating tensor, into an array of float32 (float64
        for F64), exactly; an adapter's update is added."""
        if tensor.dtype in ("F32", "F64"):
            self.raw(tensor, start, stop, into.view(np.uint8))
        else:
            narrow = into.view(np.uint16)[: stop - start]
            self.raw(tensor, start, stop, narrow.view(np.uint8))
            widen(narrow.copy(), tensor.dtype, into)
        if tensor.update:
            into += tensor.update.piece(start, stop)

    def _open(self, file: Path) -> int:
        if file not in self._files:
            opened = os.open(file, os.O_RDONLY)
            if self._files.setdefault(file, opened) != opened:  # another thread was faster
                os.close(opened)
        return self._files[file]

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])


def widen(narrow: np.ndarray, dtype: str, into: np.ndarray) -> None:
    """F16 or BF16, as uint16, to float32, exactly."""
    if dtype == "F16":
        into[:] = narrow.view(np.float16)
    else:  # a bfloat16 is the upper half of a float32
        np.left_shift(narrow, 16, out=into.view(np.uint32), dtype=np.uint32)


def narrowed(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 (float64 for F64) rounded to `dtype`, to nearest and even, as its bytes."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            values = values.astype(np.float16)
    elif dtype == "BF16":
        bits = values.view(np.uint32)
        odd = (bits >> 16) & 1
        values = ((bits + (0x7FFF + odd)) >> 16).astype(np.uint16)
    return values.view(np.uint8)


def finite(stored: np.ndarray, dtype: str) -> bool:
    """Whether numbers, given as their bytes, hold neither NaN nor infinity."""
    if dtype == "BF16":  # all bits of the exponent are set
        return bool(((stored.view(np.uint16) & 0x7F80) != 0x7F80).all())
    floats = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
    return bool(np.isfinite(stored.view(floats[dtype])).all())
