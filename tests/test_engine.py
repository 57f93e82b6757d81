"""The mean of models: exact where mathematics allows, one test per trap."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import weights_hash
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

from fusinglib.errors import InputError
from fusinglib.fusion.engine import fuse

ENCODER = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
    "max_position_embeddings": 12,
}
T5 = {"d_model": 8, "d_ff": 16, "d_kv": 4, "num_heads": 2, "num_layers": 1, "vocab_size": 30}


def make_bert(seed, labels=2, kind=BertForSequenceClassification, **settings):
    torch.manual_seed(seed)
    return kind(BertConfig(**ENCODER | settings, num_labels=labels))


def make_t5(seed, untied=False, **settings):
    torch.manual_seed(seed)
    if untied:  # like v1.1: the language-model head has its own weights
        settings |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    model = T5ForConditionalGeneration(T5Config(**T5 | settings, decoder_start_token_id=0))
    if untied:
        weight = torch.randn_like(model.lm_head.weight)
        model.lm_head.weight = torch.nn.Parameter(weight)
    return model


def save(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def save_all(tmp_path, models, **options):
    return [save(model, tmp_path / f"model{i}", **options) for i, model in enumerate(models)]


def edit(folder, change):
    """Rewrite the weights of `folder` after `change` has been applied to the dict of tensors."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def same_bits(a, b):
    """Equal dtype, shape and bits: tells -0.0 from 0.0."""
    bits = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)


def assert_same_model(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(same_bits(a[name], b[name]) for name in a)


def formula(states, name):
    """The paper's section 2 in numpy, in float32 and in the given order."""
    total = np.float32(0)
    for state in states:
        total = total + state[name].detach().numpy()
    return torch.from_numpy(total / np.float32(len(states)))


def refused(tmp_path, folders, *words):
    """Fusing fails with a message that holds all the words, and leaves nothing behind."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        fuse(folders, tmp_path / "out")
    for word in words:
        assert str(word) in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def berts(tmp_path):
    return save_all(tmp_path, [make_bert(seed) for seed in range(3)])


# Round trips, bit for bit.


@pytest.mark.parametrize("untied", [False, True])
def test_t5_mean_of_one_is_the_model(tmp_path, untied):
    model = make_t5(0, untied)
    folder = save(model, tmp_path / "model")
    report = fuse([folder], tmp_path / "out")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    assert type(loaded) is T5ForConditionalGeneration and report.left_out == []
    assert_same_model(loaded, model)
    tied = loaded.lm_head.weight.data_ptr() == loaded.shared.weight.data_ptr()
    assert tied != untied
    assert loaded.config.scale_decoder_outputs == model.config.scale_decoder_outputs != untied
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == load_file(folder / "model.safetensors").keys()
    assert ("lm_head.weight" in stored) == untied
    text = torch.tensor([[3, 4, 1]])
    logits = [m.eval()(input_ids=text, labels=text).logits for m in (model, loaded)]
    assert same_bits(*logits)


@pytest.mark.parametrize("untied", [False, True])
def test_t5_mean_of_three_is_the_formula(tmp_path, untied):
    models = [make_t5(seed, untied) for seed in range(3)]
    fuse(save_all(tmp_path, models), tmp_path / "out")
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    states = [model.state_dict() for model in models]
    assert loaded.keys() == states[0].keys()
    assert all(same_bits(loaded[name], formula(states, name)) for name in loaded)


@pytest.mark.parametrize(
    "make",
    [
        make_bert,
        lambda seed: RobertaForSequenceClassification(RobertaConfig(**ENCODER)),
        lambda seed: DebertaV2ForSequenceClassification(DebertaV2Config(**ENCODER)),
        lambda seed: DistilBertForSequenceClassification(
            DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=30)
        ),
    ],
    ids=["bert", "roberta", "deberta", "distilbert"],
)
def test_encoder_bodies(tmp_path, make):
    models = [make(seed) for seed in range(3)]
    folders = save_all(tmp_path, models)
    bodies = [model.base_model.state_dict() for model in models]
    report = fuse(folders, tmp_path / "out")
    single = fuse(folders[:1], tmp_path / "single")
    heads = models[0].state_dict().keys() - {
        f"{models[0].base_model_prefix}.{name}" for name in bodies[0]
    }
    assert {row["tensor"] for row in report.left_out} == heads
    assert report.averaged == single.averaged == sorted(bodies[0])
    mean_of_one, _ = load(AutoModel, tmp_path / "single")
    fused, info = load(AutoModel, tmp_path / "out")
    assert type(fused) is type(models[0].base_model)
    assert not info["unexpected_keys"]
    for name in bodies[0]:  # RobertaModel has a pooler of its own, which no file holds
        assert same_bits(mean_of_one.state_dict()[name], bodies[0][name])
        assert same_bits(fused.state_dict()[name], formula(bodies, name))
    classifier, info = load(AutoModelForSequenceClassification, tmp_path / "out", num_labels=5)
    assert set(info["missing_keys"]) == heads and not info["unexpected_keys"]
    assert classifier.num_labels == 5
    for name in bodies[0]:
        assert same_bits(classifier.base_model.state_dict()[name], formula(bodies, name))


def load(auto, folder, **options):
    return auto.from_pretrained(folder, output_loading_info=True, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept(tmp_path, dtype):
    models = [make_bert(seed).to(dtype) for seed in range(3)]
    fuse(save_all(tmp_path, models), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    for name, tensor in stored.items():
        a, b, c = (model.bert.state_dict()[name].to(wide) for model in models)
        assert same_bits(tensor, ((a + b + c) / 3).to(dtype))


def test_file_equals_the_one_of_safetensors(tmp_path, berts):
    def add_position_ids(tensors):
        tensors["bert.embeddings.position_ids"] = torch.arange(12)[None]
        tensors["bert.embeddings.mask"] = torch.tensor([True, False, True])
        tensors["bert.embeddings.scalar"] = torch.tensor(2.0, dtype=torch.float16)
        tensors["bert.embeddings.empty"] = torch.zeros(0, 3)

    for folder in berts:
        edit(folder, add_position_ids)
    report = fuse(berts, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), tmp_path / "theirs", metadata=metadata)
    ours, theirs = file.read_bytes(), (tmp_path / "theirs").read_bytes()
    end = [8 + int.from_bytes(content[:8], "little") for content in (ours, theirs)]
    parents = json.loads(metadata["parents"])
    assert [row["model"] for row in parents] == report.parents
    assert [row["xxh3_128"] for row in parents] == [weights_hash(folder) for folder in berts]
    headers = [json.loads(ours[8 : end[0]]), json.loads(theirs[8 : end[1]])]
    assert headers[0] == headers[1] and ours[end[0] :] == theirs[end[1] :]
    assert headers[0]["__metadata__"]["format"] == "pt" and end[0] % 8 == 0
    assert report.copied == ["embeddings.mask", "embeddings.position_ids"]


def test_result_can_be_fused_again(tmp_path, berts):
    fuse(berts, tmp_path / "once")
    fuse([tmp_path / "once"], tmp_path / "twice")
    once, twice = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(same_bits(once[name], twice[name]) for name in once)


def test_t5_with_three_embeddings(tmp_path):
    """tie_word_embeddings=False set after the config is made leaves every embedding on its own."""
    models = []
    for seed in range(2):
        config = T5Config(**T5, decoder_start_token_id=0)
        config.tie_word_embeddings = False
        torch.manual_seed(seed)
        models.append(T5ForConditionalGeneration(config))
    report = fuse(save_all(tmp_path, models), tmp_path / "out")
    states = [model.state_dict() for model in models]
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "out").state_dict()
    assert report.averaged == sorted(loaded)
    assert not torch.equal(loaded["shared.weight"], loaded["encoder.embed_tokens.weight"])
    assert all(same_bits(loaded[name], formula(states, name)) for name in loaded)


def test_t5_encoder_with_a_classification_head(tmp_path):
    torch.manual_seed(0)
    classifier = T5ForSequenceClassification(T5Config(**T5, num_labels=3))
    models = [make_t5(1), classifier]
    report = fuse(save_all(tmp_path, models), tmp_path / "out")
    assert report.architecture == "T5Model"
    states = [models[0].state_dict(), models[1].transformer.state_dict()]
    fused = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(same_bits(fused[name], formula(states, name)) for name in fused)


# Names, heads, layouts.


def test_averaged_by_name_not_by_position(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    fuse(folders, tmp_path / "out")
    names = list(load_file(folders[1] / "model.safetensors"))
    shards = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)}
    shard_by_hand(folders[1], shards)
    fuse(folders, tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(same_bits(one[name], two[name]) for name in one)


def shard_by_hand(folder, weight_map):
    tensors = load_file(folder / "model.safetensors")
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in weight_map if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_by_save_pretrained(tmp_path):
    models = [make_t5(seed, untied=True) for seed in range(2)]
    whole = save_all(tmp_path, models)
    parts = [save(models[0], tmp_path / "a", max_shard_size="2KB")]
    parts += [save(models[1], tmp_path / "b", max_shard_size="4KB")]
    counts = [len(list(folder.glob("*.safetensors"))) for folder in parts]
    assert counts[0] > counts[1] > 1
    fuse(whole, tmp_path / "out")
    fuse(parts, tmp_path / "out2")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "out2"))
    assert all(same_bits(one[name], two[name]) for name in one)


def test_different_heads_are_left_out(tmp_path):
    folders = save_all(tmp_path, [make_bert(0, labels=2), make_bert(1, labels=7)])
    edit_config(folders[0], problem_type="single_label_classification", finetuning_task="rte")
    report = fuse(folders, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertModel"] == [report.architecture]
    assert not config.keys() & {"id2label", "label2id", "num_labels", "problem_type"}
    assert {(row["model"], row["tensor"]) for row in report.left_out} == {
        (f"{tmp_path.name}/{folder.name}", f"classifier.{part}")
        for folder in folders
        for part in ("weight", "bias")
    }


def test_body_with_and_without_prefix(tmp_path):
    models = [make_bert(0), make_bert(1, kind=BertModel)]
    report = fuse(save_all(tmp_path, models), tmp_path / "out")
    assert report.architecture == "BertModel"
    states = [models[0].bert.state_dict(), models[1].state_dict()]
    fused = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert all(same_bits(fused[name], formula(states, name)) for name in fused)


def test_config_without_architecture(tmp_path, berts):
    edit_config(berts[0], architectures=None)
    assert fuse(berts[:1], tmp_path / "out").architecture == "BertModel"


def test_unknown_architecture(tmp_path, berts):
    edit_config(berts[0], architectures=["MyBert"])
    refused(tmp_path, berts[:1], berts[0], "MyBert")


# What is refused from headers and configs.


def test_missing_and_extra_tensors(tmp_path, berts):
    edit(berts[1], lambda tensors: tensors.pop("bert.pooler.dense.bias"))
    for order in (berts[:2], berts[1::-1]):
        refused(tmp_path, order, "pooler.dense.bias", f"missing in model {berts[1]}")


def test_tied_with_untied(tmp_path):
    settings = {"feed_forward_proj": "gated-gelu"}
    folders = save_all(tmp_path, [make_t5(0, **settings), make_t5(1, untied=True)])
    refused(tmp_path, folders, "lm_head.weight", *folders, "scale their outputs")


def test_vocabulary_sizes(tmp_path):
    folders = save_all(tmp_path, [make_t5(0), make_t5(1, vocab_size=32)])
    refused(tmp_path, folders, "shared.weight", "[30, 8]", "[32, 8]", *folders, "vocabularies")


def test_other_shapes(tmp_path):
    folders = save_all(tmp_path, [make_bert(0), make_bert(1, intermediate_size=20)])
    with pytest.raises(InputError, match=r"intermediate.dense.bias has shape \[16\]") as error:
        fuse(folders, tmp_path / "out")
    assert "vocabular" not in str(error.value)


def test_quantized_weights(tmp_path, berts):
    def quantize(tensors):
        name = "bert.pooler.dense.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit(berts[0], quantize)
    refused(tmp_path, berts[:1], "bert.pooler.dense.weight", berts[0], "F8_E4M3")


def test_kinds_of_models(tmp_path):
    roberta = RobertaForSequenceClassification(RobertaConfig(**ENCODER))
    folders = save_all(tmp_path, [make_bert(0), roberta])
    refused(tmp_path, folders, "bert and roberta", *folders)


def test_settings_that_change_what_weights_mean(tmp_path, berts):
    edit_config(berts[1], hidden_dropout_prob=0.3, transformers_version="4.40.0")
    fuse(berts, tmp_path / "fused")
    edit_config(berts[1], num_attention_heads=4)
    refused(tmp_path, berts, "num_attention_heads", *berts[:2])


def test_t5_config_of_older_and_newer_transformers(tmp_path):
    folders = save_all(tmp_path, [make_t5(seed, untied=True) for seed in range(2)])
    edit_config(folders[0], tie_word_embeddings=False)
    config = json.loads((folders[0] / "config.json").read_text())
    del config["scale_decoder_outputs"]  # as transformers 4 wrote it
    (folders[0] / "config.json").write_text(json.dumps(config))
    fuse(folders, tmp_path / "out")
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert loaded.config.scale_decoder_outputs is False


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"model_type": "nothing"}'])
def test_bad_config(tmp_path, berts, content):
    file = berts[0] / "config.json"
    file.unlink() if content is None else file.write_text(content)
    refused(tmp_path, berts, file)


def test_tokenizers(tmp_path, berts):
    for folder in berts:
        (folder / "vocab.txt").write_text("[UNK]\na\n")
        (folder / "tokenizer.json").write_text('{"model": 1, "truncation": null}')
        (folder / "tokenizer_config.json").write_text(json.dumps({"from": str(folder)}))
        (folder / "training_args.bin").write_text("never copied")
    (berts[1] / "tokenizer.json").write_text('{"model": 1, "truncation": {"max_length": 8}}')
    report = fuse(berts, tmp_path / "one")
    assert report.files == ["tokenizer.json", "vocab.txt", "tokenizer_config.json"]
    for name in report.files:
        assert (tmp_path / "one" / name).read_bytes() == (berts[0] / name).read_bytes()
    assert not (tmp_path / "one" / "training_args.bin").exists()
    (berts[2] / "vocab.txt").write_text("[UNK]\nb\n")
    refused(tmp_path, berts, berts[0] / "vocab.txt", berts[2] / "vocab.txt")
    (berts[2] / "tokenizer.json").write_text('{"model": 2}')
    refused(tmp_path, berts, berts[0] / "tokenizer.json", berts[2] / "tokenizer.json")


# Bad files.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(tmp_path, berts, value):
    def spoil(tensors):
        tensors["bert.pooler.dense.weight"][3, 4] = value

    edit(berts[1], spoil)
    refused(tmp_path, berts, "pooler.dense.weight", berts[1], "NaN")


def test_sum_that_overflows(tmp_path, berts):
    for folder in berts:
        edit(folder, lambda tensors: tensors["bert.pooler.dense.bias"].fill_(3e38))
    refused(tmp_path, berts, "pooler.dense.bias", "too large")


def test_integer_buffers_must_be_equal(tmp_path, berts):
    for i, folder in enumerate(berts):
        ids = torch.arange(12)[None] + i // 2
        edit(folder, lambda tensors, ids=ids: tensors.update({"bert.embeddings.position_ids": ids}))
    refused(tmp_path, berts, "embeddings.position_ids", berts[0], berts[2], "Integer")


def test_integers_that_not_all_hold_are_left_out(tmp_path, berts):
    ids = {"bert.embeddings.position_ids": torch.arange(12)[None]}
    edit(berts[1], lambda tensors: tensors.update(ids))
    report = fuse(berts, tmp_path / "out", pretrained=berts[1], progress=False)
    assert report.copied == []
    rows = [row for row in report.left_out if row["tensor"] == "embeddings.position_ids"]
    assert [row["reason"] for row in rows] == ["integers that some models lack"]


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_file(tmp_path, berts, size):
    file = berts[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(tmp_path, berts, file, "truncated")


def test_no_weights(tmp_path, berts):
    (berts[1] / "model.safetensors").unlink()
    refused(tmp_path, berts, berts[1], "model.safetensors", "no weights")
    (berts[1] / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, berts, berts[1], "pytorch_model.bin", "pickles are opened only")


def test_bad_index(tmp_path, berts):
    save(make_bert(0), tmp_path / "parts", max_shard_size="4KB")
    index = tmp_path / "parts" / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    name, file = next(iter(good["weight_map"].items()))
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {"more": file}}))
    refused(tmp_path, [tmp_path / "parts"], tmp_path / "parts", "disagree on more")
    index.write_text("{}")
    refused(tmp_path, [tmp_path / "parts"], index, "weight_map")
    index.write_text(json.dumps(good))
    (tmp_path / "parts" / file).unlink()
    refused(tmp_path, [tmp_path / "parts"], index, file, "missing")


# Whole or not at all.


def test_bad_arguments(tmp_path, berts):
    refused(tmp_path, [], "at least one")
    refused(tmp_path, str(berts[0]), "list")
    refused(tmp_path, [tmp_path / "nowhere"], tmp_path / "nowhere")
    refused(tmp_path, [berts[0], berts[1] / ".." / berts[0].name], "twice")


def test_existing_output_is_never_touched(tmp_path, berts):
    (tmp_path / "out").mkdir()
    refused(tmp_path, berts, tmp_path / "out", "exists")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_left_when_writing_fails(tmp_path, berts, monkeypatch):
    def fail(*args):
        assert (list(tmp_path.glob(".out.*.partial/model.safetensors"))) != []
        assert not (tmp_path / "out").exists()
        raise OSError("disk full")

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("fusinglib.fusion.output._card", fail)
    with pytest.raises(OSError, match="disk full"):
        fuse(berts, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_read_or_written_before_all_headers_agree(tmp_path, berts, monkeypatch):
    edit(berts[2], lambda tensors: tensors.pop("bert.pooler.dense.bias"))
    monkeypatch.setattr("fusinglib.fusion.tensors.Reader.raw", None)
    monkeypatch.setattr("fusinglib.fusion.engine.new_folder", None)
    refused(tmp_path, berts, "pooler.dense.bias")


def test_card_and_folder(tmp_path, berts):
    report = fuse([str(folder) for folder in berts], str(tmp_path / "new" / "out"))
    folder = tmp_path / "new" / "out"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "recipe.yml",
    }
    card = (folder / "README.md").read_text()
    for word in (*report.parents, *report.hashes, "mean", "numpy", np.__version__):
        assert word in card
    assert report.parents == [f"{parent.parent.name}/{parent.name}" for parent in berts]
    json.dumps(report.done())
    assert folder.stat().st_mode == berts[0].stat().st_mode


def test_the_order_of_parents_is_the_order_of_summation(tmp_path, berts):
    values = [2.0**24, 1.0, -(2.0**24)]
    for folder, value in zip(berts, values, strict=True):
        edit(folder, lambda tensors, v=value: tensors["bert.pooler.dense.bias"].fill_(v))
    fuse(berts, tmp_path / "a")
    fuse([berts[0], berts[2], berts[1]], tmp_path / "b")
    name = "pooler.dense.bias"
    a, b = (load_file(tmp_path / out / "model.safetensors")[name] for out in "ab")
    assert a[0] == 0 and b[0] == np.float32(1) / np.float32(3)


def test_inputs_are_unchanged(tmp_path, berts):
    def content():
        return {p: p.read_bytes() for folder in berts for p in folder.iterdir()}

    before = content()
    fuse(berts, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert content() == before


def test_systems_without_reads_and_writes_at_a_position(tmp_path, berts, monkeypatch):
    """Windows: threads take turns; folders cannot be synced, nor processes asked."""
    large = {"x": torch.randn(2**21), "y": torch.arange(5)}
    for number, folder in enumerate(berts):
        edit(folder, lambda tensors, n=number: tensors.update(x=n + large["x"], y=large["y"]))
    fuse(berts, tmp_path / "usual", progress=False)
    for name in ("preadv", "pwrite", "posix_fallocate", "sched_getaffinity"):
        monkeypatch.delattr(f"os.{name}")
    fuse(berts, tmp_path / "out", progress=False)
    for file in (tmp_path / "usual").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
