"""Where models are found, what of them is body, and what their headers say."""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import weights_hash
from safetensors.numpy import load_file, save_file
from transformers.models.auto import modeling_auto

from fusinglib import fuse
from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.fusion import checkpoints
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.fusion.tensors import TensorInfo, narrowed, widen
from fusinglib.training import folders

LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers"
).split()
NOT_BUILT = {
    "cohere_compass_text", "esm", "hunyuan_v1_dense", "hunyuan_v1_moe", "layoutlmv2", "ministral",
    "nemotron",
}  # fmt: skip
"""Families whose default configuration builds no model, or not without another package."""


def on_meta(kind: str, name: str):
    """A small classifier of a family without any weights, and its configuration."""
    made = getattr(transformers, name)
    config = made.config_class()
    for setting in LAYERS:
        with contextlib.suppress(NotImplementedError):
            if isinstance(getattr(config, setting, None), int):
                setattr(config, setting, 2)
    with torch.device("meta"):
        return made(config), config.to_dict() | {"architectures": [name], "model_type": kind}


@pytest.mark.slow
def test_body_and_head_of_every_classifier_that_transformers_knows():
    names = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    assert len(names) - len(NOT_BUILT) > 100
    for kind, name in names.items():
        if kind in NOT_BUILT:
            continue
        model, config = on_meta(kind, name)
        stored = {
            key: TensorInfo(Path(), key, "F32", tuple(tensor.shape))
            for key, tensor in model.state_dict().items()
        }
        assert checkpoints._prefix(stored, config) == f"{model.base_model_prefix}.", kind
        base = transformers.MODEL_MAPPING[type(model.config)]
        base = base[0] if isinstance(base, tuple) else base
        assert checkpoints._architecture(Path(), config)[1] == base.__name__, kind


def write(folder: Path, tensors: dict[str, np.ndarray], **config) -> Path:
    """A model folder made by hand."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


BERT = {"model_type": "bert", "vocab_size": 9}


@pytest.mark.parametrize(
    ("architecture", "names", "prefix"),
    [
        ("BertForTokenClassification", ["bert.embeddings", "bert.layer.0.a", "score"], "bert."),
        ("BertForTokenClassification", ["embeddings", "encoder.layer.0.a", "pooler"], ""),
        ("BertModel", ["embeddings", "encoder.layer.0.a", "pooler"], ""),
        ("BertForMaskedLM", ["bert.embeddings", "bert.layer.0.a", "cls.predictions"], "bert."),
    ],
)  # fmt: skip
def test_prefix_of_a_body(tmp_path, architecture, names, prefix):
    rows = {name: 9 if name.endswith("embeddings") else 2 for name in names}
    tensors = {name: np.ones((rows[name], 2), np.float32) for name in names}
    opened = open_checkpoint(write(tmp_path / "m", tensors, architectures=[architecture], **BERT))
    assert opened.prefix == prefix
    assert opened.is_whole == (architecture in ("BertModel", "BertForMaskedLM"))
    assert len(opened.body()) + len(opened.head()) == len(names)


def test_language_model_heads_are_averaged_where_all_have_one(tmp_path):
    names = ["bert.embeddings", "bert.layer.0.a", "cls.predictions"]
    folders = []
    for i, kind in enumerate(["MaskedLM", "MaskedLM", "SequenceClassification"]):
        tensors = {name: np.full((9, 2), i, np.float32) for name in names[: 3 if i < 2 else 2]}
        config = {"architectures": [f"BertFor{kind}"], **BERT}
        folders.append(write(tmp_path / f"m{i}", tensors, **config))
    both = fuse(folders[:2], tmp_path / "both", progress=False)
    assert both.architecture == "BertForMaskedLM" and not both.left_out
    assert (load_file(tmp_path / "both" / "model.safetensors")["cls.predictions"] == 0.5).all()
    mixed = fuse(folders, tmp_path / "mixed", progress=False)
    assert mixed.architecture == "BertModel"
    assert {row["tensor"] for row in mixed.left_out} == {"cls.predictions"}


def test_a_bare_file_is_all_body(tmp_path):
    files = []
    for i in range(2):
        files.append(tmp_path / f"{i}.safetensors")
        save_file({"a": np.full(3, i, np.float32), "b.weight": np.ones(2, np.float16)}, files[-1])
    report = fuse(files, tmp_path / "out", progress=False)
    assert report.architecture == "" and not (tmp_path / "out" / "config.json").exists()
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert (found["a"] == 0.5).all() and found["b.weight"].dtype == np.float16


def test_a_file_beside_its_config_is_its_folder(tmp_path, encoder):
    fuse([encoder], tmp_path / "folder", progress=False)
    fuse([encoder / "model.safetensors"], tmp_path / "file", progress=False)
    hashes = {weights_hash(tmp_path / name) for name in ("folder", "file")}
    assert hashes == {weights_hash(encoder)}
    assert (tmp_path / "file" / "tokenizer.json").is_file()


def test_the_key_of_a_run_is_a_model_on_the_command_line(tmp_path, encoder, monkeypatch, capsys):
    monkeypatch.setenv("FUSINGLIB_STORE", str(tmp_path / "store"))
    made = tmp_path / "store" / "source" / "unnamed" / "model"
    made.parent.mkdir(parents=True)
    made.symlink_to(encoder)
    run = {"kind": "source", "version": 1, "settings": {}, "parents": []}
    key = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]
    (made.parent / "run.json").write_text(json.dumps({**run, "key": key, "label": "mine"}))
    made.parent.rename(made.parent.with_name(key))
    assert main(["fuse", key, "--output", str(tmp_path / "out")]) == 0
    assert weights_hash(tmp_path / "out") == weights_hash(encoder)
    assert f"mine [{key}]" in (tmp_path / "out/README.md").read_text()
    assert main(["fuse", "f" * 16, "--output", str(tmp_path / "no")]) == 2
    assert "has no finished run" in capsys.readouterr().err


def test_a_hub_id_and_its_revision(hub, tmp_path):
    import huggingface_hub

    name = "sentence-transformers/all-MiniLM-L6-v2"
    folder = Path(huggingface_hub.snapshot_download(name))
    report = fuse([f"{name}@{folder.name}"], tmp_path / "out", progress=False)
    assert report.parents == [f"{name}@{folder.name[:12]}"]
    assert "base_model:\n- sentence-transformers/" in (tmp_path / "out" / "README.md").read_text()
    assert weights_hash(tmp_path / "out") == report.hashes[0] == weights_hash(name)


@pytest.mark.parametrize("model", ["nobody/nothing", "nobody/nothing@main", "no such/fol/der", ""])
def test_a_model_that_is_nowhere(tmp_path, model):
    with pytest.raises(InputError, match=r"model ['\"]?nobody|Model"):
        fuse([model], tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_hash_does_not_depend_on_the_files(tmp_path, t5, monkeypatch):
    whole = weights_hash(t5)
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5)
    network.save_pretrained(tmp_path / "parts", max_shard_size="200KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    assert weights_hash(tmp_path / "parts") == whole
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 2**18)
    assert weights_hash(t5) == whole
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1
    network.save_pretrained(tmp_path / "other")
    assert weights_hash(tmp_path / "other") != whole


def test_every_bfloat16_is_widened_and_narrowed_as_torch_does():
    everything = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = everything.view(torch.bfloat16)
    wide = np.empty(2**16, np.float32)
    widen(everything.numpy().view(np.uint16), "BF16", wide)
    number = ~torch.isnan(values)
    assert np.array_equal(wide[number], values.float().numpy()[number])
    random = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 2**20, np.uint32))
    floats = random.view(torch.float32)
    floats = floats[floats.isfinite()]
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16")):
        expected = floats.to(dtype).view(torch.uint8).numpy()
        assert np.array_equal(narrowed(floats.numpy(), name), expected)


def test_models_locate_and_fuse_agree(encoder):
    assert folders.locate(str(encoder), "") == open_checkpoint(encoder).folder
