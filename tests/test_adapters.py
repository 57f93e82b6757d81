"""LoRA adapters of peft, merged before they are fused, and pickles, opened only on request."""

import json
import os
import shutil

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_engine import make_bert, make_t5, same_bits, save

from fusinglib import fuse
from fusinglib.errors import InputError
from fusinglib.fusion.tensors import LowRank

# peft asks transformers for a name that transformers is about to change
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TARGETS = {"bert": ["query", "value", "dense"], "t5": ["q", "v", "wo"], "gpt2": ["c_attn", "c_fc"]}


def gpt2():
    config = transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=30, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


MAKE = {"bert": lambda: make_bert(0), "t5": lambda: make_t5(0), "gpt2": gpt2}


def adapters(tmp_path, kind, count=3, dtype=torch.float32, **settings):
    """Folders of adapters of one base model with random updates, and the models merged by peft."""
    torch.manual_seed(0)
    base = save(MAKE[kind]().to(dtype), tmp_path / "base")
    auto = {"bert": transformers.AutoModelForSequenceClassification,
            "t5": transformers.AutoModelForSeq2SeqLM,
            "gpt2": transformers.AutoModelForCausalLM}[kind]  # fmt: skip
    folders, merged = [], []
    for seed in range(count):
        config = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS[kind], **settings}
        model = peft.get_peft_model(
            auto.from_pretrained(base, dtype=dtype), peft.LoraConfig(**config)
        )
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        folders.append(tmp_path / f"adapter{seed}")
        model.save_pretrained(folders[-1])
        merged.append(model.merge_and_unload().state_dict())
    return folders, merged


def body(folder, prefix=""):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {}),
        ("bert", {"use_rslora": True}),
        ("bert", {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 1}}),
        ("t5", {}),
        ("gpt2", {"fan_in_fan_out": True}),
    ],
)
def test_the_mean_of_products(tmp_path, kind, settings, monkeypatch):
    folders, merged = adapters(tmp_path, kind, **settings)
    monkeypatch.setattr("fusinglib.fusion.streaming.CHUNK", 8)
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 40)  # pieces end in the middle of rows
    report = fuse(folders, tmp_path / "out", progress=False)
    found = body(tmp_path / "out")
    prefix = "bert." if kind == "bert" else ""
    base = load_file(tmp_path / "base" / "model.safetensors")
    changed = 0
    for name, tensor in found.items():
        expected = sum(state[prefix + name].double() for state in merged) / 3
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(tensor, base[prefix + name])
    assert changed >= 4
    assert all(" + " in name for name in report.parents)
    assert len({*report.hashes}) == 3


def test_it_is_not_the_product_of_means(tmp_path):
    folders, merged = adapters(tmp_path, "bert", target_modules=["query"])
    fuse(folders, tmp_path / "out", progress=False)
    parts = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    a, b = (sum(part[f"{layer}.lora_{side}.weight"] for part in parts) / 3 for side in "AB")
    name = "encoder.layer.0.attention.self.query.weight"
    base = load_file(tmp_path / "base" / "model.safetensors")[f"bert.{name}"]
    assert (body(tmp_path / "out")[name] - (base + 5 / 3 * b @ a)).abs().max() > 0.05


def test_adapters_with_heads_of_their_own_and_whole_models_mix(tmp_path):
    folders, merged = adapters(tmp_path, "bert", modules_to_save=["classifier"])
    whole = save(make_bert(5, labels=7), tmp_path / "whole")
    report = fuse([*folders, whole], tmp_path / "out", progress=False)
    assert {row["tensor"] for row in report.left_out} == {"classifier.weight", "classifier.bias"}
    name = "encoder.layer.1.output.dense.weight"
    parts = [state[f"bert.{name}"] for state in merged] + [body(whole)[f"bert.{name}"]]
    torch.testing.assert_close(body(tmp_path / "out")[name], sum(parts) / 4)


def test_an_adapter_with_a_head_on_a_bare_body(tmp_path):
    folders, merged = adapters(tmp_path, "bert", task_type="SEQ_CLS")
    bare = save(make_bert(0).bert, tmp_path / "bare")
    for folder in folders:
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text()) | {"base_model_name_or_path": str(bare)}
        file.write_text(json.dumps(config))
    report = fuse(folders, tmp_path / "out", progress=False)
    assert {row["tensor"] for row in report.left_out} == {"classifier.weight", "classifier.bias"}
    name = "encoder.layer.0.attention.self.query.weight"
    base = load_file(tmp_path / "bare" / "model.safetensors")[name]
    update = sum(state[f"bert.{name}"] for state in merged) / 3
    assert not torch.equal(body(tmp_path / "out")[name], base) and update.shape == base.shape


def test_bfloat16_products_are_not_rounded_on_the_way(tmp_path):
    folders, _ = adapters(tmp_path, "bert", dtype=torch.bfloat16)
    fuse(folders, tmp_path / "out", progress=False)
    parts = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    name = "encoder.layer.0.attention.self.query"
    base = load_file(tmp_path / "base" / "model.safetensors")[f"bert.{name}.weight"].double()
    layer = f"base_model.model.bert.{name}"
    products = [
        part[f"{layer}.lora_B.weight"].double() @ part[f"{layer}.lora_A.weight"].double()
        for part in parts
    ]
    expected = base + 5 / 3 * sum(products) / 3
    found = body(tmp_path / "out")[f"{name}.weight"]
    assert found.dtype == torch.bfloat16
    error = (found.double() - expected).abs()
    assert (error <= expected.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "no such/pla/ce"}, "neither a folder"),
        ({"r": 0, "rank_pattern": {}}, "rank 0"),
        ({"fan_in_fan_out": True}, "shapes"),
    ],
)
def test_other_adapters_are_refused(tmp_path, change, words):
    (folder,), _ = adapters(tmp_path, "bert", count=1)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=words):
        fuse([folder], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def adapter(base, folder, auto=transformers.AutoModelForSequenceClassification, **settings):
    """A folder of one adapter with a random update, and the model merged by peft."""
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "value"], **settings}
    network = auto.from_pretrained(base)
    model = peft.get_peft_model(network, peft.LoraConfig(**settings)).to(network.dtype)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model.merge_and_unload().state_dict()


def change(folder, tensors=None, **config):
    """Change an adapter's tensors, by a function, and its configuration."""
    file = folder / "adapter_model.safetensors"
    found = {name: tensor.clone() for name, tensor in load_file(file).items()}
    if tensors:
        tensors(found)
    save_file(found, file)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


A = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        (None, {"r": 7}, "gives bert.encoder.layer.0.attention.self.query rank 7"),
        (None, {"lora_alpha": None}, "alpha None"),
        (None, {"lora_alpha": "x"}, "alpha 'x'"),
        (None, {"base_model_name_or_path": 3}, "names no base"),
        (None, {"init_lora_weights": "pissa_niter_4"}, "initialised by pissa_niter_4"),
        (lambda found: found.update({A: found[A].flatten()}), {}, "incomplete update"),
        (lambda found: found.update({A: found[A].to(torch.int8)}), {}, "incomplete update"),
        (lambda found: found.pop(A), {}, "lora_B.weight"),
        (lambda found: found.clear(), {}, "updates nothing"),
        (lambda found: found[A].fill_(float("nan")), {}, "contains NaN"),
    ],
)
def test_adapters_that_are_no_update_of_their_base(tmp_path, tensors, config, words):
    adapter(save(make_bert(0), tmp_path / "base"), tmp_path / "adapter")
    change(tmp_path / "adapter", tensors, **config)
    with pytest.raises(InputError, match=words) as error:
        fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)
    assert str(tmp_path / "adapter") in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init_lora_weights": "pissa"}, "initialised by pissa"),
        ({"init_lora_weights": "olora"}, "initialised by olora"),
        ({"trainable_token_indices": {"word_embeddings": [1, 2]}}, "trainable_token_indices"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_modules": ["word_embeddings"]}, "lora_embedding_A"),
    ],
)
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 4 LoRA tensor")
def test_what_peft_does_beside_plain_lora_is_refused(tmp_path, settings, words):
    adapter(save(make_bert(0), tmp_path / "base"), tmp_path / "adapter", **settings)
    with pytest.raises(InputError, match=words):
        fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", False])
def test_ways_to_begin_that_leave_the_base_alone(tmp_path, start):
    base = save(make_bert(0), tmp_path / "base")
    merged = adapter(base, tmp_path / "adapter", init_lora_weights=start, r=2)
    fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)
    for name, tensor in body(tmp_path / "out").items():
        torch.testing.assert_close(tensor, merged[f"bert.{name}"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "pattern", ["uery", "output.dense", "0.attention.self.query", "^bert.*1.*", "(query|value)"]
)
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_patterns_are_read_as_peft_reads_them(tmp_path, pattern):
    base = save(make_bert(0), tmp_path / "base")
    settings = {"rank_pattern": {pattern: 5}, "alpha_pattern": {pattern: 7}}
    targets = ["query", "value", "dense"]
    merged = adapter(base, tmp_path / "adapter", target_modules=targets, **settings)
    fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)
    for name, tensor in body(tmp_path / "out").items():
        torch.testing.assert_close(tensor, merged[f"bert.{name}"], rtol=1e-6, atol=1e-5)


def test_float64_is_not_narrowed(tmp_path):
    base = save(make_bert(0).double(), tmp_path / "base")
    merged = adapter(base, tmp_path / "adapter")
    fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)
    found = body(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, merged[f"bert.{name}"], rtol=1e-14, atol=1e-14)


def test_an_adapter_of_the_body_on_a_base_with_a_head(tmp_path):
    base = save(make_bert(0), tmp_path / "base")
    merged = adapter(base, tmp_path / "adapter", transformers.AutoModel)
    fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)
    for name, tensor in body(tmp_path / "out").items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-6)


def test_an_adapter_is_no_base(tmp_path):
    base = save(make_bert(0), tmp_path / "base")
    for name in ("one", "two"):
        adapter(base, tmp_path / name)
    for other in ("one", "two"):  # another adapter, itself
        change(tmp_path / "two", base_model_name_or_path=str(tmp_path / other))
        with pytest.raises(InputError, match="is an adapter"):
            fuse([tmp_path / "two"], tmp_path / "out", progress=False)


def test_resized_embeddings_do_not_fit_the_base(tmp_path):
    adapter(save(make_bert(0), tmp_path / "base"), tmp_path / "adapter")
    more = {"base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(35, 8)}
    change(tmp_path / "adapter", lambda found: found.update(more))
    with pytest.raises(InputError, match=r"has shape \[35, 8\], but \[30, 8\] in its base"):
        fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)


def test_a_head_of_another_size_is_left_out_and_never_averaged(tmp_path):
    adapter(save(make_bert(0), tmp_path / "base"), tmp_path / "adapter", task_type="SEQ_CLS")
    head = "base_model.model.classifier"
    more = {f"{head}.weight": torch.ones(7, 8), f"{head}.bias": torch.ones(7)}
    change(tmp_path / "adapter", lambda found: found.update(more))
    report = fuse([tmp_path / "adapter"], tmp_path / "out", progress=False)
    assert {row["tensor"] for row in report.left_out} == {"classifier.weight", "classifier.bias"}
    with pytest.raises(InputError, match="leave heads out"):
        fuse([tmp_path / "adapter"], tmp_path / "more", heads=True, progress=False)


def test_products_do_not_depend_on_the_cut():
    """BLAS adds in another order where fewer rows are multiplied, so it is always as many."""
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(s, dtype=np.float32) for s in ((30, 64), (64, 100_000)))
    update = LowRank(left, right, 1.5)
    whole = update.chunk(0, 3_000_000)
    for length in (2**16, 3 * 2**16):
        starts = range(0, 3_000_000, length)
        parts = [update.chunk(start, min(start + length, 3_000_000)) for start in starts]
        assert np.array_equal(whole, np.concatenate(parts))


def test_the_update_of_an_adapter_is_what_task_arithmetic_adds(tmp_path):
    base = save(make_bert(0), tmp_path / "base")
    merged = adapter(base, tmp_path / "adapter")
    options = {"method": "task_arithmetic", "pretrained": base, "weights": [-0.5]}
    fuse([tmp_path / "adapter"], tmp_path / "out", progress=False, **options)
    old = load_file(base / "model.safetensors")
    for name, tensor in body(tmp_path / "out").items():
        expected = 1.5 * old[f"bert.{name}"] - 0.5 * merged[f"bert.{name}"]
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-6)


def test_an_adapter_without_weights_or_for_another_model(tmp_path):
    (folder,), _ = adapters(tmp_path, "bert", count=1)
    shutil.rmtree(tmp_path / "base")
    save(make_t5(0), tmp_path / "base")
    with pytest.raises(InputError, match="which its base does not have"):
        fuse([folder], tmp_path / "out")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="adapter_model.safetensors"):
        fuse([folder], tmp_path / "out")


# Pickles.


def pickled(model, folder):
    """The model as older transformers saved it: every name of its state, tied ones too."""
    save(model, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("untied", [False, True])
def test_pickles_are_opened_on_request_and_tied_tensors_once(tmp_path, untied):
    models = [make_t5(seed, untied) for seed in range(2)]
    safe = [save(model, tmp_path / f"safe{i}") for i, model in enumerate(models)]
    old = [pickled(model, tmp_path / f"old{i}") for i, model in enumerate(models)]
    with pytest.raises(InputError, match="allow_pickle"):
        fuse(old, tmp_path / "out")
    fuse(safe, tmp_path / "safe", progress=False)
    report = fuse(old, tmp_path / "old", allow_pickle=True, progress=False)
    assert sum("pickle opened" in note for note in report.notes) == 2
    one, two = body(tmp_path / "safe"), body(tmp_path / "old")
    assert one.keys() == two.keys() and all(same_bits(one[name], two[name]) for name in one)
    mixed = fuse([safe[0], old[1]], tmp_path / "mixed", allow_pickle=True, progress=False)
    assert mixed.averaged == report.averaged


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["FUSINGLIB_EVIL"],)


@pytest.mark.parametrize("content", ["evil", "other", "damaged", "wrapped"])
def test_bad_pickles(tmp_path, monkeypatch, content):
    monkeypatch.setenv("FUSINGLIB_EVIL", str(tmp_path / "evil"))
    folder = pickled(make_bert(0), tmp_path / "model")
    file = folder / "pytorch_model.bin"
    if content == "evil":
        torch.save({"weight": Evil()}, file)
    elif content == "other":
        torch.save([1, 2], file)
    elif content == "damaged":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        torch.save({"state_dict": make_bert(0).state_dict()}, file)
    with pytest.raises(InputError, match="pytorch_model.bin|no tensors"):
        fuse([folder], tmp_path / "out", allow_pickle=True, progress=False)
    assert not (tmp_path / "evil").exists() and not (tmp_path / "out").exists()


def test_pickles_of_several_files(tmp_path):
    model = make_bert(1)
    folder = pickled(model, tmp_path / "model")
    state = list(model.state_dict().items())
    (folder / "pytorch_model.bin").unlink()
    for i in range(2):
        part = dict(state[i::2])
        torch.save(part, folder / f"pytorch_model-0000{i + 1}-of-00002.bin")
    fuse([folder], tmp_path / "out", allow_pickle=True, progress=False)
    found = body(tmp_path / "out")
    assert found and all(same_bits(found[n], model.bert.state_dict()[n]) for n in found)
    assert np.isfinite(found["pooler.dense.bias"].numpy()).all()
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(InputError, match="download the other shards"):
        fuse([folder], tmp_path / "part", allow_pickle=True, progress=False)


def test_pickles_of_old_torch(tmp_path):
    model = make_bert(1)
    folder = pickled(model, tmp_path / "model")
    state = model.state_dict()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    fuse([folder], tmp_path / "out", allow_pickle=True, progress=False)
    found = body(tmp_path / "out")
    assert all(same_bits(found[name], model.bert.state_dict()[name]) for name in found)


@pytest.mark.parametrize(
    "content", [{0: torch.ones(3)}, {"a": torch.eye(3).to_sparse()}, {"epoch": 1}]
)
def test_pickles_that_hold_no_plain_weights(tmp_path, content):
    folder = pickled(make_bert(0), tmp_path / "model")
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin holds .*not a tensor of a known dtype"):
        fuse([folder], tmp_path / "out", allow_pickle=True, progress=False)


def test_no_advice_to_open_pickles_without_care(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSINGLIB_EVIL", str(tmp_path / "evil"))
    folder = pickled(make_bert(0), tmp_path / "model")
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be opened as weights only") as error:
        fuse([folder], tmp_path / "out", allow_pickle=True, progress=False)
    assert "weights_only" not in str(error.value) and not (tmp_path / "evil").exists()
