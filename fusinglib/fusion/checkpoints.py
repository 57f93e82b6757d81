"""Models as files: where they are, what they contain, and what is body and what is head.

Nothing here needs torch or transformers, whose import takes as long as a merge; they are used only
if a configuration or a format leaves no other way. Heads and bodies are told apart by the names of
the tensors: the body of a model with a head is the one part that holds numbered layers and the
embedding of the whole vocabulary.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fusinglib.errors import InputError, optional
from fusinglib.fusion import remote
from fusinglib.fusion.pickles import unpickled
from fusinglib.fusion.tensors import SIZES, TensorInfo, headers_of_file
from fusinglib.places import expanded

INDEX = ".safetensors.index.json"
ARCHITECTURE = re.compile(r"(\w+?)(LMHeadModel|Model|ForCausalLM|ForMaskedLM|ForPreTraining|"
                          r"ForConditionalGeneration|For[A-Z]\w*)")  # fmt: skip
"""The name of a transformers class: its family, and what it adds to the family's body."""


class Checkpoint(NamedTuple):
    """A model to fuse: where it is, its configuration (none for a bare file), and its tensors.

    `name` is the same on every machine: the last two parts of its path, or its Hub id and commit.
    `architecture` is the class that its configuration names, `base` the one of its body, and
    `prefix` begins the names of its body's tensors ("" if everything is body). `source` is the path
    that was given, resolved. `more_heads` are tensors of an adapter that its base model does not
    have; `hub` is the Hub id of the model or of an adapter's base, if it has one; `place` finds the
    model again.
    """

    folder: Path
    name: str
    config: dict | None
    architecture: str
    base: str
    prefix: str
    tensors: dict[str, TensorInfo]
    source: Path
    more_heads: tuple[str, ...] = ()
    hub: str = ""
    place: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether there is no task head: a bare body, or a language model."""
        kind = ARCHITECTURE.fullmatch(self.architecture)
        return not kind or not kind[2].startswith("For") or "LM" in kind[2] or (
            kind[2] in ("ForPreTraining", "ForConditionalGeneration")
        )  # fmt: skip

    def is_same(self, other: "Checkpoint") -> bool:
        """Whether the other one is the same model on disk: the same path, or the same files (a
        folder and the file in it)."""
        if self.source == other.source:
            return True
        ours, theirs = (
            {(t.file.resolve(), t.start) for t in model.tensors.values() if not t.update}
            for model in (self, other)
        )
        whole = len(ours) == len(self.tensors) and len(theirs) == len(other.tensors)
        return whole and bool(ours) and ours == theirs

    def body(self) -> dict[str, TensorInfo]:
        """The body's tensors, by their names without the prefix."""
        length = len(self.prefix)
        return {name[length:]: self.tensors[name] for name in self.tensors if self._inside(name)}

    def head(self) -> list[str]:
        """The names of all other tensors."""
        return sorted(
            [*(name for name in self.tensors if not self._inside(name)), *self.more_heads]
        )

    def labels(self) -> dict | None:
        """What a head's outputs mean, if the configuration says."""
        return (self.config or {}).get("id2label")

    def _inside(self, name: str) -> bool:
        return name.startswith(self.prefix)


class Located(NamedTuple):
    """The folder or file of a model, its name, which is the same on every machine, and its Hub id,
    if it has one."""

    path: Path
    name: str
    hub: str = ""

    @property
    def place(self) -> str:
        """The Hub id with its commit, or the path."""
        return f"{self.hub}@{self.path.name}" if self.hub else os.path.abspath(self.path)


def opened(found: Located, allow_pickle: bool = False) -> Checkpoint:
    """The model in a folder or safetensors file that is not an adapter, or on the Hub."""
    if found.hub and not is_here(found.path):
        tensors = remote.headers(found.hub, found.path.name)
        model = _checkpoint(found.path, found.name, tensors, found.path)
    else:
        model = _opened(found.path, found.name, allow_pickle)
    return model._replace(hub=found.hub, place=found.place)


def is_here(folder: Path) -> bool:
    """Whether a folder holds the weights of its model, or pickles that could be opened."""
    index = folder / f"model{INDEX}"
    if index.is_file():
        files = read_json(index).get("weight_map")
        names = set(files.values()) if isinstance(files, dict) else set()
        return all((folder / str(name)).is_file() for name in names)
    return (folder / "model.safetensors").is_file() or bool([*folder.glob("*.bin")])


def _opened(path: Path, name: str, allow_pickle: bool) -> Checkpoint:
    if not path.is_file():
        return _checkpoint(path, name, _headers(path, allow_pickle), path)
    tensors = headers_of_file(path)
    if (path.parent / "config.json").is_file():
        return _checkpoint(path.parent, name, tensors, path)
    tensors = spelt(_known(path, tensors))
    return Checkpoint(path.parent, name, None, "", "", "", tensors, path.resolve())


def locate(model: str, weights: bool = True) -> Located:
    """Where a model is. A Hub id is downloaded if need be, if wanted without its weights.

    Its name is its Hub id and commit, the label and key of the run that made it, or the last two
    parts of its path.
    """
    path = expanded(model)
    if model and path.exists():
        path, chosen = checkpoint(path)
        name = _run_name(path) or "/".join(Path(os.path.abspath(path)).parts[-2:])
        return Located(path, name + chosen)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", model):
        raise InputError(f"Model {model} is neither a folder nor a file: check the path.")
    identity, _, revision = model.partition("@")
    folder = snapshot(identity, revision, FILES if weights else TEXT_FILES)
    return Located(folder, f"{identity}@{folder.name[:12]}", identity)


def checkpoint(folder: Path) -> tuple[Path, str]:
    """The folder itself; of one that holds nothing but a Trainer's `checkpoint-N`, the best by the
    newest `trainer_state.json`, or the newest, and which of the two it is in words.
    """
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in folder.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and path.is_dir()
    }
    own = [*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not steps or any(file.name not in RECORDS for file in own):
        return folder, ""
    newest = steps[max(steps)]
    record = newest / "trainer_state.json"
    said = (read_json(record) if record.is_file() else {}).get("best_model_checkpoint") or ""
    best = folder / re.split(r"[/\\]", str(said))[-1]
    if said and best in steps.values():
        return best, f" (the best of {len(steps)} checkpoints by its Trainer)"
    return newest, f" (the newest of {len(steps)} checkpoints)"


RECORDS = ("trainer_state.json", "all_results.json", "train_results.json", "eval_results.json",
           "training_args.bin")  # fmt: skip
"""What a Trainer writes beside its checkpoints that is no model."""


def _run_name(folder: Path) -> str:
    """The store's label for the run that made this model; "" if no run did."""
    if not (folder.parent / "run.json").is_file():
        return ""
    run = read_json(folder.parent / "run.json")
    return f"{run.get('label')} [{run.get('key')}]"


TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
"""The files of a Hub model's tokenizer and configuration."""

FILES = ["*.safetensors", *TEXT_FILES, "README.md"]
"""The files used from a Hub model: no pickles, no code."""


def snapshot(model: str, revision: str, files: Sequence[str]) -> Path:
    """The folder of a Hub id's snapshot with these files, downloaded if necessary."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            model, revision=revision or None, allow_patterns=list(files)
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model {model!r}: no such folder, and no such model on the Hub or in the cache that "
            f"HF_HOME names ({type(error).__name__}); check the name, go online, or set HF_HOME."
        ) from error
    return Path(folder)


def _checkpoint(
    folder: Path, name: str, tensors: dict[str, TensorInfo], source: Path
) -> Checkpoint:
    config = read_json(folder / "config.json")
    _refuse_quantized(folder, config, tensors)
    tensors = spelt(_known(folder, tensors))
    architecture, base = _architecture(folder / "config.json", config)
    prefix = _prefix(tensors, config) if architecture != base else ""
    return Checkpoint(folder, name, config, architecture, base, prefix, tensors, source.resolve())


SPELLINGS = [
    (re.compile(r"((?:^|\.)[^.]*norm[^.]*)\.gamma$", re.IGNORECASE), r"\1.weight"),
    (re.compile(r"((?:^|\.)[^.]*norm[^.]*)\.beta$", re.IGNORECASE), r"\1.bias"),
    (re.compile(r"(^|\.)_orig_mod\."), r"\1"),
    (re.compile(r"\.weight_g$"), ".parametrizations.weight.original0"),
    (re.compile(r"\.weight_v$"), ".parametrizations.weight.original1"),
]
"""Other names of tensors, and those of today: of norms, as TensorFlow called them; of compiled
modules; of weight normalisation before PyTorch 2.1."""

WRAPPED = "module."
"""What begins every name where a model was saved within DataParallel."""


def spelt(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors under today's names."""
    names = list(tensors)
    for old, new in SPELLINGS:
        names = [old.sub(new, name) for name in names]
    if all(name.startswith(WRAPPED) for name in names):
        names = [name.removeprefix(WRAPPED) for name in names]
    found = dict(zip(names, tensors.values(), strict=True))
    return found if len(found) == len(tensors) else tensors


QUANTIZED = re.compile(r"\.(absmax|quant_map|quant_state\..*|qweight|qzeros|scales|SCB|g_idx)$")
"""Names of tensors that bitsandbytes, GPTQ and AWQ add."""


def _refuse_quantized(folder: Path, config: dict, tensors: dict[str, TensorInfo]) -> None:
    kind = config.get("quantization_config")
    kind = kind.get("quant_method", "quantized") if isinstance(kind, dict) else ""
    signs = [name for name in tensors if QUANTIZED.search(name)]
    if kind or signs:
        where = f"tensor {signs[0]}" if signs else "quantization_config in config.json"
        raise InputError(
            f"Model {folder} is quantized ({kind or where}): load it in full precision "
            "(model.dequantize() in transformers), save it, and fuse that."
        )


def _known(model: Path, tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors, checked to have dtypes that can be averaged or copied."""
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
    """The names of the model's class and of its body's class."""
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        kind = ARCHITECTURE.fullmatch(names[0])
        if kind and isinstance(config.get("model_type"), str):
            return names[0], f"{kind[1]}Model"
    elif not names:
        base = _base_of_type(file, config)
        return base, base
    raise InputError(
        f"{file} describes a model that transformers does not know (architectures {names!r}, "
        f"model_type {config.get('model_type')!r}): save it again with save_pretrained."
    )


def _base_of_type(file: Path, config: dict) -> str:
    return optional("transformers").MODEL_MAPPING[type(understood(file, config))].__name__


def understood(file: Path, config: dict):
    """The configuration as transformers understands it, with the defaults of its class."""
    transformers = optional("transformers")
    try:
        return transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    except Exception as error:  # the config classes raise many kinds of errors
        raise InputError(
            f"{file} describes no model that transformers {transformers.__version__} knows "
            f"({error!r}): save it again with save_pretrained."
        ) from error


def _prefix(tensors: dict[str, TensorInfo], config: dict) -> str:
    """The prefix of the body's tensor names if there is a head as well, otherwise "".

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
        raise InputError(f"{path} cannot be read ({error}): expected a JSON file.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold a JSON object: save the model again.")
    return content


# Weight files and their headers.


def _headers(folder: Path, allow_pickle: bool) -> dict[str, TensorInfo]:
    single, index = folder / "model.safetensors", folder / f"model{INDEX}"
    if single.is_file():
        return headers_of_file(single)
    if index.is_file():
        return _headers_of_shards(folder, index)
    if shards := sorted(folder.glob("model-*-of-*.safetensors")):
        return _headers_without_index(folder, shards)
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if allow_pickle and pickles:
        return unpickled(_complete(folder, pickles))
    found = "no weights"
    if pickles:
        names = ", ".join(file.name for file in pickles)
        found = f"only {names} (pickles are opened only with allow_pickle)"
    raise InputError(
        f"Model {folder} holds {found}: expected {single.name}, or {index.name} with its shards. "
        "Save the model with save_pretrained."
    )


def _complete(folder: Path, pickles: list[Path]) -> list[Path]:
    """A model's single pickle, or all its shards (their names say how many there are)."""
    single = folder / "pytorch_model.bin"
    if single.is_file():
        return [single]
    counts = {re.sub(r".*-of-0*(\d+)\.bin", r"\1", file.name) for file in pickles}
    if counts != {str(len(pickles))}:
        names = ", ".join(file.name for file in pickles)
        raise InputError(f"Model {folder} holds only {names}: download the other shards.")
    return pickles


def _headers_of_shards(folder: Path, index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not weight_map or not isinstance(weight_map, dict):
        raise InputError(f"{index} has no weight_map: download or save the model again.")
    tensors = {}
    for name in sorted({str(file) for file in weight_map.values()}):
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise InputError(
                f"{index} lists {name!r}: expected the name of a safetensors file beside it."
            )
        if not (folder / name).is_file():
            raise InputError(f"{index} lists {name}, which is missing: download it again.")
        for key, stored in headers_of_file(folder / name).items():
            if weight_map.get(key) != name:
                raise InputError(_disagreement(folder, key))
            tensors[key] = stored
    for key in weight_map.keys() - tensors.keys():
        raise InputError(_disagreement(folder, key))
    return tensors


def _headers_without_index(folder: Path, shards: list[Path]) -> dict[str, TensorInfo]:
    """The tensors of shards whose index is missing, if their names say that they are all."""
    counts = {re.sub(r".*-of-0*(\d+)\.safetensors", r"\1", file.name) for file in shards}
    if counts != {str(len(shards))}:
        names = ", ".join(file.name for file in shards)
        raise InputError(f"Model {folder} holds only {names}: download the other shards.")
    tensors = {}
    for shard in shards:
        for name, stored in headers_of_file(shard).items():
            if name in tensors:
                raise InputError(f"{shard} holds {name}, as another shard does: download it again.")
            tensors[name] = stored
    return tensors


def _disagreement(folder: Path, name: str) -> str:
    return f"Model {folder}: its index and its shards disagree on {name}: download the model again."
