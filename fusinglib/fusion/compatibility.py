"""Can these models be fused? What their headers, configurations and tokenizers say, before any
weight is read."""

import html
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fusinglib.errors import InputError, optional
from fusinglib.fusion import normal, varying
from fusinglib.fusion.checkpoints import Checkpoint, read_json, understood
from fusinglib.fusion.streaming import BUFFER, CHUNK, DIGEST, threads
from fusinglib.fusion.tensors import TensorInfo
from fusinglib.progress import amount

HEAD_SETTINGS = {"id2label", "label2id", "num_labels", "problem_type", "finetuning_task"}
FREE_SETTINGS = ("drop", "initializer", "use_cache")  # name parts of settings that may differ
ORIGINS = {"architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype"}
VOCABULARIES = (
    "tokenizer.json vocab.txt vocab.json merges.txt spiece.model spm.model tokenizer.model "
    "sentencepiece.bpe.model bpe.codes added_tokens.json"
).split()
SETTINGS_FILES = "tokenizer_config.json special_tokens_map.json chat_template.jinja".split()
COPIED_FILES = [*VOCABULARIES, *SETTINGS_FILES, "generation_config.json"]

INTERPRETER = 45e6
"""Approximate memory of Python with numpy, in bytes."""

READING, WRITING = 4e9, 0.8e9
"""Approximate bytes per second that two cores read from and write to the page cache; a disk may be
slower."""


@dataclass(repr=False)
class Report:
    """What would be fused, and what prevents it.

    `averaged` and `copied` are names of tensors of the body, `left_out` rows of model, tensor and
    reason, `files` what is copied from the first model; `problems` are reasons to refuse, `notes`
    things to know; `hashes` are those of the parents, over everything that was read from each.
    `updates`, if the pretrained model is given: a row per model with the norm of its update,
    relative to that of the pretrained weights, and its cosines with the others'. `hub` are the Hub
    ids of models that come from there, `ancestor` the name and hash of the pretrained model,
    `recipe` what `recipes.write` writes (empty for a function of one's own), `untied` whether
    output embeddings are stored separately although some models tie them, `options` those of the
    command line that the recipe does not hold, `licence` the one that all models' cards name.
    """

    method: str
    settings: dict
    parents: list[str]
    weights: list
    architecture: str
    averaged: list[str]
    copied: list[str]
    left_out: list[dict]
    files: list[str]
    problems: list[str]
    notes: list[str]
    bytes_read: int
    bytes_written: int
    memory: int
    seconds: float
    cost: str
    updates: list[dict] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    hub: list[str] = field(default_factory=list)
    ancestor: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    options: str = ""
    licence: str = ""
    untied: bool = False

    def done(self) -> dict:
        """What was fused, as JSON data: the same on every machine."""
        names = "method settings parents weights hashes architecture averaged copied left_out files"
        found = {name: getattr(self, name) for name in names.split()}
        return {**found, "ancestor": self.ancestor} if self.ancestor else found

    def rows(self) -> list[dict]:
        """What a reader wants to know first, as table rows."""
        left = {(row["tensor"], row["reason"]) for row in self.left_out}
        rows = [
            ("method", f"{self.method} of {len(self.parents)} models, {self.cost}"),
            *((f"model {i + 1}", self._model(i)) for i in range(len(self.parents))),
            ("result", self.architecture or "a bare safetensors file"),
            ("averaged", f"{len(self.averaged)} tensors"),
            ("copied", f"{len(self.copied)} tensors, {len(self.files)} files"),
            *(("left out", f"{name}: {reason}") for name, reason in sorted(left)),
            ("reads, writes", f"{amount(self.bytes_read)}, {amount(self.bytes_written)}"),
            ("memory, time", f"about {amount(self.memory)}, {self.seconds:.1f} s"),
            *(("note", note) for note in self.notes),
            *(("refused", problem) for problem in self.problems),
        ]
        return [{"what": what, "value": value} for what, value in rows]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(row["what"]) for row in rows)
        return "\n".join(f"{row['what']:{width}}  {row['value']}" for row in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        left = 'style="text-align: left"'
        lines = [
            f"<tr><th {left}>{row['what']}</th><td {left}>{html.escape(row['value'])}</td></tr>"
            for row in self.rows()
        ]
        return f"<table>{''.join(lines)}</table>"

    def _model(self, i: int) -> str:
        text = f"{self.parents[i]}: weight {varying.text(self.weights[i])}"
        if self.updates:
            others = [value for value in self.updates[i]["cosines"] if value is not None]
            text += f", update {100 * self.updates[i]['norm']:.3g} % of the pretrained norm"
            if others:
                text += f", cosines with the others' {min(others):.2f} to {max(others):.2f}"
        return text


class Found(NamedTuple):
    """The bodies to fuse (the base's last), the architecture of the result, and more for the
    `Report`."""

    bodies: list[dict[str, TensorInfo]]
    architecture: str
    left_out: list[dict]
    problems: list[str]
    notes: list[str]
    untied: bool


def refuse(problems: list[str]) -> None:
    """Raise `InputError` with the first problem, if any, and the number of others."""
    if problems:
        more = f" (And {len(problems) - 1} more: dry_run lists them all.)"
        raise InputError(problems[0] + more * (len(problems) > 1))


def compare(
    models: Sequence[Checkpoint], base: Checkpoint | None, heads: bool, untie: bool = False
) -> Found:
    """What the models' headers, configurations and tokenizers say.

    With `heads`, or if all are language models of one class, nothing is left out. With `untie`,
    output embeddings that some models store separately are copied from the input embeddings of
    those that tie them.
    """
    everyone = [*models, *([base] if base else [])]
    first = models[0]
    same = all(model.architecture == first.architecture for model in everyone)
    whole = same and (heads or first.is_whole)
    bodies = [dict(model.tensors) if whole else model.body() for model in everyone]
    for model in models if heads else ():
        if model.more_heads:
            raise InputError(
                f"Model {model.name} has heads that its base does not have "
                f"({', '.join(model.more_heads)}): leave heads out."
            )
    if base and heads and not same:
        raise InputError(
            f"heads are fused only if all models have the same class, but {first.source} is a "
            f"{first.architecture} and {base.source} a {base.architecture}: leave heads out."
        )
    left_out = [
        {"model": model.name, "tensor": name, "reason": "head, not part of the body"}
        for model in models
        for name in (model.more_heads if whole else model.head())
    ]
    left_out += normal.dispensable(models, bodies)
    problems, notes, untied = [], [], normal.tied(bodies)
    for name, lacking in untied.items():
        ties = everyone[lacking[0]]
        if not untie or (first.config or {}).get("model_type") in normal.SCALED:
            problems.append(_tied(name, everyone, bodies, ties))
        else:
            notes.append(f"{name} is stored separately; {ties.name} and others with tied embeddings"
                         " give a copy of them")  # fmt: skip
    if untied and not problems:
        normal.untie(bodies)
    if base:  # only what a method can use
        bodies[-1] = {n: t for n, t in bodies[-1].items() if t.is_float and n in bodies[0]}
    for other, body in zip(everyone[1:], bodies[1:], strict=True):
        ours = _floats(bodies[0]) if other is base else bodies[0]
        problems += _kinds(first, other) or [
            *_tensors(first, other, _without(ours, untied), _without(body, untied)),
            *_settings(first, other, {"tie_word_embeddings"} if untied else set()),
        ]
        if heads and first.labels() != other.labels():
            problems.append(
                f"Models {first.source} and {other.source} have different labels ({first.labels()} "
                f"and {other.labels()}): heads are averaged only if their outputs mean the same."
            )
    problems += [problem for model in everyone for problem in _own_code(model)]
    problems += _vocabularies([model.folder for model in everyone])
    architecture = first.architecture if whole else first.base
    notes += _notes(everyone, models, whole)
    return Found(bodies, architecture, left_out, problems, notes, bool(untied))


def _without(body: dict[str, TensorInfo], names: Collection[str]) -> dict[str, TensorInfo]:
    return {name: tensor for name, tensor in body.items() if name not in names}


def _tied(name: str, everyone: Sequence[Checkpoint], bodies: list[dict], ties: Checkpoint) -> str:
    """Why models with tied and with separate output embeddings are not fused as they are."""
    stores = next(m for m, body in zip(everyone, bodies, strict=True) if name in body)
    if (ties.config or {}).get("model_type") in normal.SCALED:
        advice = "models of this kind scale their outputs where they are tied. Fuse only one sort."
    else:
        advice = "pass untie (--untie) to store them separately in the result."
    return (
        f"Model {ties.source} ties its output embeddings to the input embeddings, and model "
        f"{stores.source} stores them separately, as {name}: {advice}"
    )


def _own_code(model: Checkpoint) -> list[str]:
    """Why a model that brings its own code cannot be fused: transformers does not know its kind."""
    config = model.config or {}
    if (
        "auto_map" not in config
        or config.get("model_type") in optional("transformers").CONFIG_MAPPING
    ):
        return []
    return [
        f"{model.folder / 'config.json'} has auto_map: {config.get('model_type')!r} models need "
        "code of its own, which is neither run nor copied here. Save the model as a class that "
        "transformers knows."
    ]


def of_configs(folders: Sequence[Path]) -> list[str]:
    """Why the models in these folders cannot be fused, as far as their configurations say: other
    kinds, or settings that change what weights mean."""
    first, *others = [
        Checkpoint(folder, folder.name, read_json(folder / "config.json"), "", "", "", {}, folder)
        for folder in folders
    ]
    return [
        problem for other in others for problem in _kinds(first, other) or _settings(first, other)
    ]


def _floats(body: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name: tensor for name, tensor in body.items() if tensor.is_float}


def _notes(everyone: Sequence[Checkpoint], models: Sequence[Checkpoint], whole: bool) -> list[str]:
    first, notes = models[0], _differences(everyone)
    labels = [model.labels() for model in models]
    if not whole and any(labels):
        alike = "are the same" if all(one == labels[0] for one in labels) else "differ"
        notes.append(f"the labels of the heads {alike}; heads are left out")
    if first.config is None:
        notes.append("no config.json: all tensors of the file are averaged by name")
    elif whole and first.architecture != first.base and not _own_output(first):
        notes.append("output embeddings are tied to the input embeddings, which are stored once")
    elif "lm_head.weight" in first.tensors:
        notes.append("lm_head.weight is stored separately and averaged separately")
    pickled = sorted(
        {str(t.file) for m in models for t in m.tensors.values() if t.data is not None}
    )
    notes += [f"pickle opened, weights only: {file}" for file in pickled]
    found = [name for name in VOCABULARIES if (first.folder / name).is_file()]
    notes.append(f"tokenizers: {', '.join(found)} compared" if found else "tokenizers: none found")
    return notes


def _differences(models: Sequence[Checkpoint]) -> list[str]:
    """The settings that are bookkeeping and that models differ in; the first one's are kept."""
    first, notes = models[0].config or {}, []
    for name in sorted({name for model in models for name in model.config or {}}):
        if normal.is_bookkeeping(name, first):
            values = [(model.config or {}).get(name) for model in models]
            if any(value != values[0] for value in values):
                said = list(dict.fromkeys(map(repr, values)))
                notes.append(f"{name} differs ({' and '.join(said)}): {said[0]} is kept")
    return notes


def _own_output(model: Checkpoint) -> bool:
    """Whether a language model stores its output embeddings separately."""
    return any("lm_head" in name or "decoder.weight" in name for name in model.tensors)


def _kinds(first: Checkpoint, other: Checkpoint) -> list[str]:
    kinds = [(model.config or {}).get("model_type") for model in (first, other)]
    if kinds[0] == kinds[1]:
        return []
    return [
        f"Models {first.source} and {other.source} are of different kinds "
        f"({kinds[0]} and {kinds[1]}): fuse models of one kind."
    ]


def _tensors(first: Checkpoint, other: Checkpoint, ours: dict, theirs: dict) -> list[str]:
    problems = []
    for here, there, a, b in ((first, other, ours, theirs), (other, first, theirs, ours)):
        for name in sorted(a.keys() - b.keys()):
            problems.append(
                f"Tensor {name} of model {here.source} is missing in model {there.source}: bodies "
                "must hold the same tensors. If they only differ in how they were saved (older "
                "names), load and save both with one version of transformers."
            )
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            size = (first.config or {}).get("vocab_size")
            vocabulary = a.shape[1:] == b.shape[1:] and size in (*a.shape[:1], *b.shape[:1])
            problems.append(
                f"Tensor {name} has shape {list(a.shape)} in model {first.source} and "
                f"{list(b.shape)} in model {other.source}: shapes must be equal."
                + " The vocabularies differ in size (added tokens or padding rows): resize them to "
                "the same size first; rows are never cropped here." * vocabulary
            )
        if a.is_float != b.is_float or (not a.is_float and a.dtype != b.dtype):
            problems.append(
                f"Tensor {name} has dtype {a.dtype} in model {first.source} and {b.dtype} in model "
                f"{other.source}: save the models with numbers of one kind first."
            )
    return problems


def _settings(first: Checkpoint, other: Checkpoint, free: Collection[str] = ()) -> list[str]:
    """The settings of the config class determine what weights mean; dropout and the like may
    differ.

    The defaults of the class are loaded from transformers, which takes seconds, only if the two
    files differ in what may matter.
    """
    ours, theirs = first.config or {}, other.config or {}
    differing = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    matter = {
        key
        for key in set(differing) - HEAD_SETTINGS - ORIGINS
        if key not in free and not any(part in key for part in FREE_SETTINGS)
    }
    if not matter:
        return []
    configs = [
        understood(model.folder / "config.json", model.config or {}) for model in (first, other)
    ]
    own = _own_settings(type(configs[0]))
    ours, theirs = (config.to_dict() for config in configs)
    return [
        f"Models {first.source} and {other.source} differ in {key} (config.json: {ours.get(key)!r} "
        f"and {theirs.get(key)!r}): their weights do not mean the same thing."
        for key in sorted(own)
        if not any(part in key for part in FREE_SETTINGS)
        and key not in free
        and not normal.is_bookkeeping(key, ours)
        and ours.get(key) != theirs.get(key)
    ]


def _own_settings(kind: type) -> set[str]:
    return kind().to_dict().keys() - optional("transformers").PreTrainedConfig().to_dict().keys()


def _vocabularies(folders: list[Path]) -> list[str]:
    """Every vocabulary file must be the same in all models that have it."""
    problems = []
    for name in VOCABULARIES:
        files = [folder / name for folder in folders if (folder / name).is_file()]
        for other in files[1:]:
            if not normal.same_tokenizer(files[0], other):
                problems.append(
                    f"Tokenizer files {files[0]} and {other} differ: models must read text in the "
                    "same way. Fuse models that share a tokenizer."
                )
    return problems


def memory(bodies: Sequence[dict[str, TensorInfo]]) -> int:
    """Approximate private memory for fusing, in bytes: pieces of all models for every thread, and a
    hash of each chunk."""
    pieces = threads() * 2 * max(BUFFER, len(bodies) * CHUNK * 4)
    hashed = sum(tensor.size for body in bodies for tensor in body.values()) // CHUNK
    return int(INTERPRETER + pieces + DIGEST * hashed)
