"""The normal form of a model: what of its names, copies, buffers, settings and tokenizer files is
bookkeeping, and changes nothing of what a weight means. Tables for a reader to extend."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fusinglib.fusion.checkpoints import Checkpoint, read_json
from fusinglib.fusion.streaming import CHUNK
from fusinglib.fusion.tensors import REMOTE, Reader, TensorInfo

COPIES = {
    "encoder.embed_tokens.weight": ["shared.weight"],
    "decoder.embed_tokens.weight": ["shared.weight"],
    "lm_head.weight": [
        "shared.weight", "model.embed_tokens.weight", "transformer.wte.weight", "wte.weight",
        "gpt_neox.embed_in.weight",
    ],
    "cls.predictions.decoder.weight": ["bert.embeddings.word_embeddings.weight"],
    "cls.predictions.decoder.bias": ["cls.predictions.bias"],
    "lm_head.decoder.weight": [
        "roberta.embeddings.word_embeddings.weight", "mpnet.embeddings.word_embeddings.weight",
    ],
    "lm_head.decoder.bias": ["lm_head.bias"],
}  # fmt: skip
"""Tensors that some versions of transformers store again, and what they are copies of."""

OUTPUTS = ("lm_head.weight", "cls.predictions.decoder.weight", "lm_head.decoder.weight")
"""Of these, the output embeddings."""

SCALED = {"t5", "mt5", "umt5", "longt5", "pop2piano", "switch_transformers"}
"""Kinds of models that scale their outputs where the embeddings are tied."""

BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|position_ids|token_type_ids|masked_bias|attn\.bias|"
    r"attention\.bias|relative_position_index)$"
)
"""Tensors that a model computes from its configuration."""

OPTIONAL = re.compile(r"(^|\.)pooler\.")
"""Parts that some classes of a kind of model do not have."""

BOOKKEEPING = {
    "pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id",
    "mask_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    "pretraining_tp", "gradient_checkpointing", "classifier_activation",
    "use_memory_efficient_attention", "keys_to_ignore_at_inference",
}  # fmt: skip
"""Settings of a configuration that are about generation, training or padding."""

PADDED_POSITIONS = {
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "esm",
    "data2vec-text", "ibert", "luke", "layoutlm", "markuplm", "roberta-prelayernorm", "xmod",
}  # fmt: skip
"""Kinds of models whose positions start after the padding token's id, which is no bookkeeping."""

SENTENCES = ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
             "config_sentence_transformers.json"]  # fmt: skip
"""Files of sentence-transformers, copied where all models have the same."""


def is_bookkeeping(setting: str, config: dict) -> bool:
    """Whether two models may differ in a setting of their configurations."""
    if setting == "pad_token_id":
        return config.get("model_type") not in PADDED_POSITIONS
    if setting == "max_position_embeddings":  # rotary positions have no table
        return any(name.startswith("rope") for name in config)
    return setting in BOOKKEEPING


def dispensable(models: Sequence[Checkpoint], bodies: Sequence[dict]) -> list[dict]:
    """Remove from the models' bodies what some of them (or, of numbers, the base, whose body may
    come last) lack and none needs; a row per model and tensor removed, with the reason. An optional
    part is left out as a whole or not at all."""
    own, names = bodies[: len(models)], {name for body in bodies for name in body}
    base = bodies[len(models) :]
    loose = [
        name
        for name in sorted(names)
        if any(name not in body for body in own)
        or any(name not in body and own[0][name].is_float for body in base)
    ]
    partial = all(any(OPTIONAL.search(name) for name in body) for body in bodies)
    rows = []
    for model, body in zip(models, own, strict=True):
        for name in loose:
            reason = name in body and _reason(name, body)
            if reason and not (partial and OPTIONAL.search(name)):
                del body[name]
                rows.append({"model": model.name, "tensor": name, "reason": reason})
    return rows


def tied(bodies: Sequence[dict[str, TensorInfo]]) -> dict[str, list[int]]:
    """The output embeddings that some bodies store separately, and the numbers of the bodies in
    which they are tied to the input embeddings."""
    names = {name for body in bodies for name in body if name in OUTPUTS}
    return {
        name: lacking
        for name in sorted(names)
        if (lacking := [i for i, body in enumerate(bodies) if name not in body])
        and all(_original(name, bodies[i]) for i in lacking)
    }


def untie(bodies: Sequence[dict[str, TensorInfo]]) -> list[str]:
    """Give the bodies with tied output embeddings a copy of them; the names of the copies."""
    found = tied(bodies)
    for name, lacking in found.items():
        for i in lacking:
            bodies[i][name] = bodies[i][_original(name, bodies[i])]
    return list(found)


def _original(name: str, body: dict[str, TensorInfo]) -> str:
    """The tensor of a body that the named one is a copy of; "" if there is none."""
    return next((one for one in COPIES[name] if one in body), "")


def _reason(name: str, body: dict[str, TensorInfo]) -> str:
    """Why a tensor that others lack can be left out; "" if it cannot."""
    if not body[name].is_float:
        return "integers that some models lack"
    if BUFFERS.search(name):
        return "a computed buffer that some models lack"
    if OPTIONAL.search(name):
        return "a pooler, which some models lack"
    for original in COPIES.get(name, []):
        if original in body and REMOTE in (body[name].start, body[original].start):
            return f"a copy of {original}, if they are equal, which only the weights tell"
        if original in body and _equal(body[name], body[original]):
            return f"a copy of {original}, which some models store once"
    return ""


def _equal(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors are equal, bit for bit."""
    if (one.dtype, one.shape, one.update) != (other.dtype, other.shape, other.update):
        return False
    reader = Reader()
    try:
        for start in range(0, one.size, 64 * CHUNK):
            stop = min(start + 64 * CHUNK, one.size)
            size = (stop - start) * one.bytes // one.size
            rows = np.empty((2, size), np.uint8)
            for tensor, row in zip((one, other), rows, strict=True):
                reader.raw(tensor, start, stop, row)
            if not np.array_equal(rows[0], rows[1]):
                return False
    finally:
        reader.close()
    return True


def equal_files(folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Which `SENTENCES` of the first folder are the same in all, and which are not."""
    there = [name for name in SENTENCES if (folders[0] / name).is_file()]
    unequal = [name for name in there if len({_bytes(folder / name) for folder in folders}) > 1]
    return [name for name in there if name not in unequal], unequal


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def same_tokenizer(a: Path, b: Path) -> bool:
    """Whether two files of tokenizers do the same: equal bytes, lines whatever ends them, JSON
    whatever its spelling, a tokenizer.json in its normal form."""
    if a.samefile(b) or a.read_bytes() == b.read_bytes():
        return True
    if a.suffix == ".json":
        return _tokenizer(read_json(a)) == _tokenizer(read_json(b))
    if a.suffix == ".txt":
        return a.read_bytes().split() == b.read_bytes().split() if a.name == "merges.txt" else (
            a.read_bytes().splitlines() == b.read_bytes().splitlines()
        )  # fmt: skip
    return False


DEFAULTS = {
    "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
    "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
    "type": None,
}  # fmt: skip
"""What the models of the tokenizers library assume if a file does not say."""


def _tokenizer(said: dict) -> dict:
    """A tokenizer.json in its normal form: merges as pairs, defaults filled in, without what the
    last call left behind (truncation and padding)."""
    said = {**said, "truncation": None, "padding": None, "version": None}
    if not isinstance(said.get("model"), dict):
        return said
    model = {**DEFAULTS, **said["model"]}
    model = {name: None if value in ("", None) else value for name, value in model.items()}
    merges = model.get("merges")
    if isinstance(merges, list):
        model["merges"] = [one.split(" ", 1) if isinstance(one, str) else one for one in merges]
    if {model["type"]} <= {None, "BPE"} and isinstance(merges, list):
        model["type"] = "BPE"
    return {**said, "model": model}
