"""A fused model's folder, written to a temporary sibling and renamed: complete or not there at
all."""

import contextlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fusinglib.errors import InputError
from fusinglib.fusion import recipes, varying
from fusinglib.fusion.checkpoints import ARCHITECTURE, INDEX, Checkpoint
from fusinglib.fusion.compatibility import HEAD_SETTINGS, Report
from fusinglib.fusion.methods import METHODS
from fusinglib.fusion.streaming import Chunk
from fusinglib.fusion.tensors import BINARY, SIZES, TensorInfo, write_at
from fusinglib.integrity import staged, write_json

UNKNOWN = "0" * 32
"""Placeholder for a parent's hash until all of it has been read."""


def check_free(folder: Path) -> None:
    """Raise `InputError` if `folder` already exists."""
    if os.path.lexists(folder):
        raise InputError(
            f"Output {folder} already exists: choose a new folder, or remove it first."
        )


@contextlib.contextmanager
def new_folder(path: Path, report: Report, body: dict[str, TensorInfo], shard: int) -> Iterator:
    """A model `Folder` in progress: `write` the chunks, then `finish`; it gets its name when the
    block is left.

    It is not synced to disk, which would take longer than fusing: it may be lost if the system
    crashes within seconds.
    """
    check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged(path, durable=False) as partial:
        partial.mkdir()
        with contextlib.closing(Folder(partial, report, body, shard)) as folder:
            yield folder
        check_free(path)


class Folder:
    """The files of a fused model.

    Weights are split into files of at most `shard` bytes (or one tensor). Within a file wider
    dtypes come first, so that all tensors are aligned.
    """

    def __init__(self, path: Path, report: Report, body: dict[str, TensorInfo], shard: int):
        self.path, self.report, self.files = path, report, []
        self.places: dict[str, tuple[int, int, int]] = {}
        self.shards = _shards(body, shard)
        try:
            for i, names in enumerate(self.shards):
                self._begin(_file_name(i, len(self.shards)), names, body)
        except BaseException:
            self.close()
            raise

    def _begin(self, file: str, names: list[str], body: dict[str, TensorInfo]) -> None:
        header, end = {}, 0
        for name in names:
            start, end = end, end + body[name].bytes
            shape = list(body[name].shape)
            header[name] = {"dtype": body[name].dtype, "shape": shape, "data_offsets": [start, end]}
        opened = os.open(self.path / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o666)
        self.files.append((opened, header))
        first = len(self._header(header))
        if hasattr(os, "posix_fallocate"):  # faster writes, and a full disk is noticed now
            os.posix_fallocate(opened, 0, first + end)
        for name in names:
            start = first + header[name]["data_offsets"][0]
            self.places[name] = opened, start, SIZES[body[name].dtype]

    def _header(self, tensors: dict) -> bytes:
        """The beginning of a safetensors file: its length as 8 bytes, then JSON padded to a
        multiple of 8. Its length does not change when the parents' hashes become known."""
        text = json.dumps({"__metadata__": _metadata(self.report), **tensors}).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def write(self, chunk: Chunk, content: np.ndarray) -> None:
        """Put the bytes of a chunk where they belong; threads may write at the same time."""
        file, start, size = self.places[chunk.name]
        write_at(file, content, start + chunk.start * size)

    def finish(self, first: Checkpoint) -> None:
        """Write the other files; the configuration is the `first` model's."""
        for opened, header in self.files:
            write_at(opened, np.frombuffer(self._header(header), np.uint8), 0)
        if len(self.shards) > 1:
            write_json(self.path / f"model{INDEX}", _index(self.shards, self.report))
        if first.config is not None:
            dropped = HEAD_SETTINGS if self.report.architecture == first.base else ()
            dropped = {*dropped, "auto_map"}
            config = {key: first.config[key] for key in first.config if key not in dropped}
            config["architectures"] = [self.report.architecture]
            if self.report.untied:
                config["tie_word_embeddings"] = False
            _name_dtype(config, self.files)
            write_json(self.path / "config.json", config)
        if self.report.recipe:
            recipes.write(self.report.recipe, self.path)
        (self.path / "README.md").write_text(_card(self.report), encoding="utf-8")
        for name in self.report.files:
            (self.path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(first.folder / name, self.path / name)

    def close(self) -> None:
        """Close the files."""
        while self.files:
            os.close(self.files.pop()[0])


def _name_dtype(config: dict, files: list) -> None:
    """Make the configuration say which dtype the weights have, if they have one."""
    found = {entry["dtype"] for _, header in files for entry in header.values()} & NAMES.keys()
    if len(found) == 1:
        config.update(
            {name: NAMES[min(found)] for name in ("dtype", "torch_dtype") if name in config}
        )


NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""What configurations call dtypes."""


def _shards(body: dict[str, TensorInfo], largest: int) -> list[list[str]]:
    """The names of the tensors of each file."""
    shards, room = [[]], largest
    for name in sorted(body, key=lambda name: (-SIZES[body[name].dtype], name)):
        if shards[-1] and body[name].bytes > room:
            shards.append([])
            room = largest
        shards[-1].append(name)
        room -= body[name].bytes
    return shards


def _file_name(i: int, count: int) -> str:
    return f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _index(shards: list[list[str]], report: Report) -> dict:
    weight_map = {
        name: _file_name(i, len(shards)) for i, names in enumerate(shards) for name in names
    }
    return {"metadata": {"total_size": report.bytes_written}, "weight_map": weight_map}


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("fusinglib", "numpy")}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


def _parents(report: Report) -> list[dict]:
    hashes = report.hashes or [UNKNOWN] * len(report.parents)
    rows = zip(report.parents, hashes, report.weights, strict=True)
    return [{"model": model, "xxh3_128": hash_, "weight": weight} for model, hash_, weight in rows]


def _metadata(report: Report) -> dict[str, str]:
    """The metadata of the weight files; safetensors allows only strings."""
    settings = {name: str(value) for name, value in report.settings.items()}
    facts = {"parents": _parents(report), "settings": settings, "versions": _versions()}
    return {"format": "pt", "method": report.method} | {k: json.dumps(v) for k, v in facts.items()}


def one_line(name: str) -> str:
    """A name as one line of a Markdown table's code."""
    return " ".join(name.split()).replace("|", "\\|").replace("`", "'")


def _card(report: Report) -> str:
    """The model card."""
    lines = [
        f"| `{one_line(row['model'])}` | {varying.text(row['weight'])} | `{row['xxh3_128']}` |"
        for row in _parents(report)
    ]
    if report.ancestor:
        name, hash_ = report.ancestor.values()
        lines.append(f"| ancestor: `{one_line(name)}` | | `{hash_}` |")
    bases = [f"- {name}" for name in dict.fromkeys(report.hub)]
    front = [f"license: {report.licence}"] if report.licence else []
    front += ["library_name: transformers"]
    front += [f"pipeline_tag: {tag}"] if (tag := _pipeline(report)) else []
    front += ["tags:", "- merge", "- fusinglib"]
    if bases:
        front += ["base_model:", *bases, "base_model_relation: merge"]
    settings = "".join(f", {name} {value}" for name, value in report.settings.items())
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    source = METHODS[report.method].source if report.method in METHODS else ""
    return "\n".join([
        "---", *front, "---", "# Fused model", "",
        f"Made from {len(report.parents)} models with the method "
        f"{report.method}{settings}{f' ({source})' if source else ''}, tensor by tensor, in this "
        "order:",
        "", "| parent | weight | XXH3-128 of its weights |", "|---|---|---|", *lines, "",
        f"{report.architecture or 'A bare file'}: {len(report.averaged)} tensors averaged, "
        f"{len(report.copied)} copied, {len(report.left_out)} left out (heads).",
        f"Made with {versions}.", "", *_again(report),
    ])  # fmt: skip


def _again(report: Report) -> list[str]:
    """How the folder is made again."""
    if not report.recipe:
        return ["The method is a function of its author's own, so that there is no recipe.", ""]
    command = f"fusinglib fuse {recipes.NAME} --output again{report.options}"
    return ["`recipe.yml` makes it again, bit for bit:", "", "```bash", command, "```", ""]


PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "fill-mask", "ForPreTraining": "fill-mask",
    "ForCausalLM": "text-generation", "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation", "Model": "feature-extraction",
}  # fmt: skip
"""What the Hub calls the tasks of transformers' classes."""


def _pipeline(report: Report) -> str:
    """The Hub's task of the result; "" if it is not known."""
    if "modules.json" in report.files:
        return "sentence-similarity"
    kind = ARCHITECTURE.fullmatch(report.architecture)
    return PIPELINES.get(kind[2], "") if kind else ""
