"""What people really have: names, copies, settings and dtypes that differ without a difference.

Each test names the public report after which its folders are made.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_engine import edit, edit_config, make_bert, make_t5, refused, same_bits, save, save_all
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.fusion.engine import fuse
from fusinglib.fusion.tensors import widest

SMALL = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 30,
}  # fmt: skip


def make_llama(seed, tied=False, **settings):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SMALL | settings, tie_word_embeddings=tied))


def weights(folder):
    return load_file(folder / "model.safetensors")


def mean_of(tmp_path, folders, **how):
    """The report and the tensors of a mean that is not refused."""
    report = fuse(folders, tmp_path / "out", progress=False, **how)
    return report, weights(tmp_path / "out")


def renamed(tensors, pairs):
    """Give tensors other names."""
    for name in list(tensors):
        new = name
        for old, other in pairs:
            new = new.replace(old, other)
        tensors[new] = tensors.pop(name)


# Names (candle#1887, transformers#11809).


def test_norms_called_gamma_and_beta_are_those_called_weight_and_bias(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(3)])
    how = {"method": "ties", "pretrained": folders[0], "density": 0.5, "progress": False}
    expected = fuse(folders[1:], tmp_path / "e", **how)
    old = [("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")]
    edit(folders[0], lambda tensors: renamed(tensors, old))
    edit(folders[2], lambda tensors: renamed(tensors, old))
    report = fuse(folders[1:], tmp_path / "out", **how)
    assert report.averaged == expected.averaged
    made, wanted = weights(tmp_path / "out"), weights(tmp_path / "e")
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)


def test_a_gamma_outside_norms_keeps_its_name(tmp_path):
    """ConvNeXt's layer scale is called gamma."""
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    for folder in folders:
        edit(folder, lambda t: t.update({"bert.encoder.layer.0.scale.gamma": torch.ones(8)}))
    _, made = mean_of(tmp_path, folders)
    assert "encoder.layer.0.scale.gamma" in made


@pytest.mark.parametrize(
    ("one", "wrapped"),
    [
        ("bert.encoder.", "bert.encoder._orig_mod."),  # pytorch#101107, transformers#28041
        ("bert.", "_orig_mod.bert."),
        ("bert.", "_orig_mod.module.bert."),
    ],
)
def test_names_of_compiled_modules_are_those_of_others(tmp_path, one, wrapped):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    _, wanted = mean_of(tmp_path, folders)
    if "module" in wrapped:
        edit(folders[1], lambda t: renamed(t, [("classifier.", "_orig_mod.module.classifier.")]))
    edit(folders[1], lambda tensors: renamed(tensors, [(one, wrapped)]))
    fuse(folders, tmp_path / "again", progress=False)
    made = weights(tmp_path / "again")
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)


def test_names_of_models_saved_within_data_parallel(tmp_path):
    """ColossalAI#768: every name begins with `module.`; a part of that name is no such thing."""
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    _, wanted = mean_of(tmp_path, folders)
    edit(folders[0], lambda t: renamed(t, [("bert.", "module.bert."), ("class", "module.class")]))
    fuse(folders, tmp_path / "again", progress=False)
    made = weights(tmp_path / "again")
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)


def test_weight_normalisation_has_two_spellings(tmp_path):
    """transformers#31633, pytorch#102999."""
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 8,
             "num_attention_heads": 2, "conv_dim": [4], "conv_kernel": [3], "conv_stride": [2],
             "num_feat_extract_layers": 1, "num_conv_pos_embeddings": 4,
             "num_conv_pos_embedding_groups": 2}  # fmt: skip
    folders = save_all(tmp_path, [Wav2Vec2Model(Wav2Vec2Config(**small)) for _ in range(2)])
    _, wanted = mean_of(tmp_path, folders)
    old = [("parametrizations.weight.original0", "weight_g"),
           ("parametrizations.weight.original1", "weight_v")]  # fmt: skip
    edit(folders[1], lambda tensors: renamed(tensors, old))
    assert any(name.endswith("weight_g") for name in weights(folders[1]))
    fuse(folders, tmp_path / "again", progress=False)
    made = weights(tmp_path / "again")
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)


# Files.


def sharded(tmp_path, name, seed) -> Path:
    folder = tmp_path / name
    make_bert(seed).save_pretrained(folder, max_shard_size="2kB")
    assert len([*folder.glob("model-*")]) > 2
    return folder


def test_shards_without_their_index_are_read_if_they_are_all(tmp_path):
    """unsloth#2355: a tool uploaded the shards and forgot the index."""
    folders = [sharded(tmp_path, f"{seed}", seed) for seed in range(2)]
    _, wanted = mean_of(tmp_path, folders)
    (folders[1] / "model.safetensors.index.json").unlink()
    fuse(folders, tmp_path / "again", progress=False)
    made = weights(tmp_path / "again")
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)
    next(folders[1].glob("model-00002*")).unlink()
    with pytest.raises(InputError, match="holds only model-00001.*: download the other shards"):
        fuse(folders, tmp_path / "out2", progress=False)


def test_an_index_that_lists_a_missing_shard_or_a_wrong_size(tmp_path):
    """sglang#32279: weights were left uninitialised; axolotl#3758: a count instead of a size."""
    folders = [sharded(tmp_path, f"{seed}", seed) for seed in range(2)]
    index = folders[0] / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_size": 7}}))
    mean_of(tmp_path, folders)
    lost = next(folders[1].glob("model-00002*"))
    lost.unlink()
    with pytest.raises(InputError, match=f"lists {lost.name}, which is missing: download it again"):
        fuse(folders, tmp_path / "out2", progress=False)


def test_of_two_sets_of_weights_the_one_that_transformers_loads_is_fused(tmp_path):
    """mlx-vlm#1464: another model.safetensors lies beside shards and their index."""
    folder = sharded(tmp_path, "both", 0)
    (single,) = save_all(tmp_path, [make_bert(1)])
    (single / "model.safetensors").rename(folder / "model.safetensors")
    _, made = mean_of(tmp_path, [folder])
    loaded = AutoModel.from_pretrained(folder).state_dict()
    assert all(same_bits(made[name], loaded[name]) for name in made)


def test_a_file_cut_short_is_named(tmp_path):
    """mergekit#192: "Error while deserializing header: MetadataIncompleteBuffer"."""
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    file = folders[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(tmp_path, folders, file, "truncated", "download or save it again")


@pytest.mark.parametrize("rows", [32, 64])
def test_padded_vocabularies_are_refused_with_advice(tmp_path, rows):
    """mergekit#425, #47, fusion_bench#215: 151,665 tokens in 152,064 rows."""
    folders = save_all(tmp_path, [make_llama(0), make_llama(1, vocab_size=rows)])
    refused(tmp_path, folders, "[30, 8]", f"[{rows}, 8]", *folders, "resize them to the same size")


# Tokenizers (swift-transformers#131, transformers#34744, mergekit#469).

BPE = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
    "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}  # fmt: skip


def changed(**model) -> dict:
    return {**BPE, "model": {**BPE["model"], **model}}


SAME = [
    changed(merges=[["a", "b"]]),
    changed(ignore_merges=False, byte_fallback=False, dropout=None, unk_token=None),
    changed(continuing_subword_prefix="", end_of_word_suffix=""),
    {**BPE, "truncation": {"max_length": 8}, "padding": {"length": 3}, "version": "2.0"},
]
OTHER = [
    changed(merges=["b a"]),
    changed(vocab={"b": 0, "a": 1, "ab": 2}),
    changed(byte_fallback=True),
    {**BPE, "normalizer": {"type": "NFKC"}},
    {**BPE, "pre_tokenizer": {"type": "Whitespace"}},
    {**BPE, "added_tokens": [{"id": 3, "content": "<x>"}]},
]


@pytest.mark.parametrize("number", range(len(SAME) + len(OTHER)))
def test_what_tokenizers_do_is_compared(tmp_path, number):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    (folders[0] / "tokenizer.json").write_text(json.dumps(BPE))
    (folders[1] / "tokenizer.json").write_text(json.dumps([*SAME, *OTHER][number], indent=2))
    if number < len(SAME):
        mean_of(tmp_path, folders)
    else:
        refused(tmp_path, folders, folders[0] / "tokenizer.json", folders[1] / "tokenizer.json")


def test_line_ends_and_spelling_of_json_are_no_difference(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    for name, one, other in (
        ("vocab.txt", b"[UNK]\na\nb\n", b"[UNK]\r\na\r\nb\r\n"),
        ("merges.txt", b"#version: 0.2\na b\n", b"#version: 0.2\r\na b\r\n"),
        ("vocab.json", b'{"a": 0, "b": 1}', b'{\n "b": 1, "a": 0}'),
    ):
        (folders[0] / name).write_bytes(one)
        (folders[1] / name).write_bytes(other)
    mean_of(tmp_path, folders)
    (folders[1] / "vocab.txt").write_bytes(b"[UNK]\nb\na\n")
    refused(tmp_path / "out", folders, "vocab.txt")


# Settings (mergekit#667).


def test_rotary_settings_of_older_and_newer_transformers(tmp_path):
    """sglang#14745, vllm#28542: `rope_theta` moved into `rope_parameters`, and `torch_dtype` is
    called `dtype`."""
    folders = save_all(tmp_path, [make_llama(seed) for seed in range(2)])
    file = folders[0] / "config.json"
    older = json.loads(file.read_text())
    older |= {"rope_theta": 10000.0, "rope_scaling": None, "torch_dtype": older.pop("dtype")}
    del older["rope_parameters"]
    file.write_text(json.dumps(older))
    assert not fuse(folders, dry_run=True).problems
    edit_config(folders[0], rope_theta=500000.0)
    refused(tmp_path, folders, "rope_parameters", "500000.0", "10000.0")


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("pad_token_id", 0, None),
        ("eos_token_id", 2, [2, 5]),
        ("pretraining_tp", 1, 2),
        ("max_position_embeddings", 2048, 4096),
        ("bos_token_id", 1, 3),
    ],
)
def test_bookkeeping_of_configurations_is_noted(tmp_path, setting, one, other):
    folders = save_all(tmp_path, [make_llama(seed) for seed in range(2)])
    for folder, value in zip(folders, (one, other), strict=True):
        edit_config(folder, **{setting: value})
    report, _ = mean_of(tmp_path, folders)
    assert f"{setting} differs ({one!r} and {other!r}): {one!r} is kept" in report.notes
    assert json.loads((tmp_path / "out/config.json").read_text())[setting] == one


@pytest.mark.parametrize(
    ("setting", "value"),
    [("rms_norm_eps", 1e-3), ("hidden_act", "gelu"), ("num_attention_heads", 4)],
)
def test_what_changes_a_weights_meaning_is_refused(tmp_path, setting, value):
    folders = save_all(tmp_path, [make_llama(seed) for seed in range(2)])
    edit_config(folders[1], **{setting: value})
    refused(tmp_path, folders, f"differ in {setting}", "do not mean the same thing")


def test_a_padding_token_that_shifts_positions_is_refused(tmp_path):
    """RoBERTa counts positions from the padding token's id on."""
    config = {**SMALL, "max_position_embeddings": 12, "type_vocab_size": 1}
    del config["num_key_value_heads"]
    folders = save_all(tmp_path, [RobertaModel(RobertaConfig(**config)) for _ in range(2)])
    edit_config(folders[1], pad_token_id=3)
    refused(tmp_path, folders, "differ in pad_token_id")


def test_positions_with_a_table_are_compared(tmp_path):
    folders = save_all(tmp_path, [make_bert(0), make_bert(1, max_position_embeddings=16)])
    refused(tmp_path, folders, "position_embeddings")


# Copies (mergekit#424, mergekit#556) and buffers (Megatron-Bridge#1838).


def test_a_head_that_is_the_embedding_is_stored_once(tmp_path):
    folders = save_all(tmp_path, [make_llama(seed, tied=True) for seed in range(2)])
    expected, wanted = mean_of(tmp_path, folders)
    edit(folders[1], lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    report = fuse(folders, tmp_path / "again", progress=False)
    made = weights(tmp_path / "again")
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)
    (row,) = report.left_out
    assert row["reason"] == "a copy of model.embed_tokens.weight, which some models store once"
    edit(folders[1], lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(InputError, match="stores them separately, as lm_head.weight: pass untie"):
        fuse(folders, tmp_path / "untied", progress=False)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_tied_and_untied_models_are_fused_on_request(tmp_path, order):
    """mergekit#424: the tied model's output embeddings are its input embeddings."""
    made = [make_llama(0, tied=True), make_llama(1, tied=True), make_llama(2)]
    folders = [save_all(tmp_path, made)[i] for i in order]
    with pytest.raises(InputError, match=r"ties its output .* as lm_head.weight: pass untie"):
        fuse(folders, tmp_path / "out", progress=False)
    report, found = mean_of(tmp_path, folders, untie=True)
    heads = [made[i].lm_head.weight.detach() for i in order]
    assert same_bits(found["lm_head.weight"], (heads[0] + heads[1] + heads[2]) / 3)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert same_bits(opened.lm_head.weight.detach(), found["lm_head.weight"])
    assert not same_bits(opened.model.embed_tokens.weight.detach(), found["lm_head.weight"])
    assert any("stored separately" in note for note in report.notes)
    words = ["fuse", str(tmp_path / "out/recipe.yml"), "--output", str(tmp_path / "again")]
    assert main(words) == 0
    assert_equal_folders(tmp_path / "out", tmp_path / "again")


def assert_equal_folders(one, other):
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in other.iterdir()
    }


def test_untying_changes_nothing_where_all_agree(tmp_path):
    folders = save_all(tmp_path, [make_llama(seed, tied=True) for seed in range(2)])
    mean_of(tmp_path, folders)
    fuse(folders, tmp_path / "same", untie=True, progress=False)
    (tmp_path / "same/recipe.yml").unlink()
    (tmp_path / "out/recipe.yml").unlink()
    assert_equal_folders(tmp_path / "out", tmp_path / "same")


def test_a_t5_that_scales_its_outputs_is_not_untied(tmp_path):
    tied = make_t5(0, feed_forward_proj="gated-gelu")
    folders = save_all(tmp_path, [tied, make_t5(1, untied=True)])
    with pytest.raises(InputError, match="scale their outputs where they are tied"):
        fuse(folders, tmp_path / "out", untie=True, progress=False)


def test_embeddings_that_t5_stores_again_are_dropped(tmp_path):
    folders = save_all(tmp_path, [make_t5(seed) for seed in range(2)])
    _, wanted = mean_of(tmp_path, folders)
    again = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    edit(folders[0], lambda t: t.update({name: t["shared.weight"].clone() for name in again}))
    report = fuse(folders, tmp_path / "again", progress=False)
    made = weights(tmp_path / "again")
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)
    assert [row["tensor"] for row in report.left_out] == sorted(again)


def test_computed_buffers_are_left_out(tmp_path):
    folders = save_all(tmp_path, [make_llama(seed) for seed in range(2)])
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folders[0], lambda t: t.update({name: torch.ones(2)}))
    report, made = mean_of(tmp_path, folders)
    assert name not in made
    assert report.left_out[0]["reason"] == "a computed buffer that some models lack"


# Classes of one body (mergekit#284, mergekit#239).


@pytest.mark.parametrize("other", [BertForTokenClassification, BertForMaskedLM])
def test_a_pooler_that_some_lack_is_left_out(tmp_path, other):
    folders = save_all(
        tmp_path, [make_bert(0, kind=BertForSequenceClassification), make_bert(1, kind=other)]
    )
    for order in (folders, folders[::-1]):
        out = tmp_path / order[0].name / "out"
        report = fuse(order, out, progress=False)
        left = {row["tensor"]: row["reason"] for row in report.left_out}
        assert left["pooler.dense.weight"] == "a pooler, which some models lack"
        assert not any("pooler" in name for name in weights(out))
        AutoModel.from_pretrained(out)


def test_half_a_pooler_is_refused(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    edit(folders[1], lambda tensors: tensors.pop("bert.pooler.dense.bias"))
    refused(tmp_path, folders, "pooler.dense.bias", "missing in model")


# Dtypes (mergekit#316, mergekit#204, mergekit#604).

WIDTHS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@pytest.mark.parametrize(
    ("dtypes", "result"),
    [
        (("F32", "F16"), "F32"), (("F16", "BF16"), "F32"), (("BF16", "F32"), "F32"),
        (("F64", "BF16"), "F64"), (("F16", "F16"), "F16"), (("F16", "F32", "F64"), "F64"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wanted", ["", "float16", "bfloat16", "float32", "float64"])
def test_dtypes_mix(tmp_path, dtypes, result, wanted):
    """The result is the mean of what the files hold, rounded once."""
    folders = []
    for seed, dtype in enumerate(dtypes):
        folders.append(save(make_bert(seed).to(WIDTHS[dtype]), tmp_path / f"m{seed}"))
    report, made = mean_of(tmp_path, folders, dtype=wanted)
    width = getattr(torch, wanted) if wanted else WIDTHS[result]
    computed = torch.float64 if "F64" in dtypes else torch.float32
    states = [weights(folder) for folder in folders]
    for name, tensor in made.items():
        total = sum(state[f"bert.{name}"].to(computed) for state in states[1:])
        exact = (states[0][f"bert.{name}"].to(computed) + total) / len(states)
        if len(states) == 3:
            first = states[0][f"bert.{name}"].to(computed) + states[1][f"bert.{name}"].to(computed)
            exact = (first + states[2][f"bert.{name}"].to(computed)) / 3
        if wanted == "bfloat16" and computed == torch.float64:
            exact = exact.to(torch.float32)
        rounded = exact.to(width)
        if width == torch.float16:  # torch rounds float64 twice
            rounded = torch.from_numpy(exact.numpy().astype(np.float16))
        assert same_bits(tensor, rounded), name
    assert widest(dtypes) == result
    said = any(note.startswith("dtypes ") for note in report.notes)
    assert said == (len(set(dtypes)) > 1)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == str(width).removeprefix("torch.")
    assert report.bytes_written == sum(t.numel() * t.element_size() for t in made.values())


@pytest.mark.parametrize("method", ["ties", "dare", "task_arithmetic", "slerp", "weighted"])
def test_other_methods_take_mixed_dtypes(tmp_path, method):
    folders = [save(make_bert(0), tmp_path / "base")]
    folders += [
        save(make_bert(s).to(WIDTHS[d]), tmp_path / d) for s, d in ((1, "F16"), (2, "BF16"))
    ]
    wide = [save(AutoModel.from_pretrained(f, dtype=torch.float32), tmp_path / f"{f.name}-wide")
            for f in folders]  # fmt: skip
    base = {} if method in ("slerp", "weighted") else {"pretrained": folders[0]}
    wide_base = {} if not base else {"pretrained": wide[0]}
    fuse(folders[1:], tmp_path / "out", method=method, progress=False, **base)
    fuse(wide[1:], tmp_path / "wide", method=method, progress=False, **wide_base)
    made, expected = weights(tmp_path / "out"), weights(tmp_path / "wide")
    assert all(same_bits(made[name], expected[name]) for name in expected)


def test_an_unknown_dtype_is_refused(tmp_path):
    folders = save_all(tmp_path, [make_bert(0), make_bert(1)])
    with pytest.raises(InputError, match="dtype is 'half': expected float64, float32"):
        fuse(folders, tmp_path / "out", dtype="half")


def test_a_parents_hash_does_not_depend_on_the_others_dtypes(tmp_path):
    one, other = (save(make_bert(seed), tmp_path / f"m{seed}") for seed in range(2))
    double = save(make_bert(1).double(), tmp_path / "double")
    alone = fuse([one, other], tmp_path / "a", progress=False).hashes[0]
    assert fuse([one, double], tmp_path / "b", progress=False).hashes[0] == alone


def test_the_configuration_says_what_the_file_holds(tmp_path):
    folders = save_all(tmp_path, [make_bert(0), make_bert(1)])
    for folder in folders:
        edit_config(folder, dtype="float16", torch_dtype="float16")
    mean_of(tmp_path, folders)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32"


# Files (mergekit#286, mergekit#545, sentence-transformers#3776, mergekit#105).


def test_files_of_sentence_transformers_are_copied_where_equal(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    for folder in folders:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "mean"}')
        (folder / "modules.json").write_text(json.dumps([folder.name]))
    report, _ = mean_of(tmp_path, folders)
    copied = (tmp_path / "out/1_Pooling/config.json").read_text()
    assert copied == '{"pooling_mode": "mean"}' and "1_Pooling/config.json" in report.files
    assert not (tmp_path / "out/modules.json").exists()
    assert "modules.json differs between the models: it is left out" in report.notes


def test_own_code_is_refused_unless_transformers_knows_the_kind(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    for folder in folders:
        edit_config(folder, auto_map={"AutoModel": "modeling_x.XModel"})
        (folder / "modeling_x.py").write_text("raise SystemExit")
    mean_of(tmp_path, folders)
    assert "auto_map" not in json.loads((tmp_path / "out/config.json").read_text())
    for folder in folders:
        edit_config(folder, model_type="x", architectures=["XModel"])
    refused(tmp_path / "out", folders, "config.json has auto_map", "neither run nor copied")


# Quantized weights (mergekit#457, mergekit#75).


@pytest.mark.parametrize("sign", ["absmax", "qweight", "SCB", "config"])
def test_quantized_models_are_called_so(tmp_path, sign):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    if sign == "config":
        edit_config(folders[1], quantization_config={"quant_method": "awq"})
    else:
        name = f"bert.encoder.layer.0.output.dense.weight.{sign}"
        edit(folders[1], lambda t: t.update({name: torch.ones(4, dtype=torch.uint8)}))
    refused(tmp_path, folders, folders[1], "is quantized", "dequantize()")


# Arguments before downloads (mergekit#527).


@pytest.mark.parametrize(
    "how", [{"method": "tie"}, {"method": "ties"}, {"weights": [1, 2]}, {"dtype": "half"},
            {"method": "dare", "pretrained": "x/y", "density": 2}, {"max_shard_size": "big"}]
)  # fmt: skip
def test_arguments_are_checked_before_anything_is_downloaded(tmp_path, how, monkeypatch):
    import huggingface_hub

    def download(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError):
        fuse(["someone/one", "someone/two"], tmp_path / "out", **how)
    with pytest.raises(AssertionError, match="a download"):
        fuse(["someone/one", "someone/two"], tmp_path / "out")


# Functions of one's own (mergekit#680), and ancestors.


def test_own_functions_get_the_tensors_name_and_any_setting(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(2)])
    seen = []

    def first_layers(tensors, weights, base=None, *, name):
        seen.append(name)
        return tensors[0].copy()

    def anything(tensors, weights, base=None, **kwargs):
        assert kwargs == {"strength": 3}
        return tensors[1].copy()

    report = fuse(folders, tmp_path / "named", method=first_layers, progress=False)
    assert set(seen) == set(report.averaged)
    fuse(folders, tmp_path / "any", method=anything, strength=3, progress=False)
    made, second = weights(tmp_path / "any"), weights(folders[1])
    assert all(same_bits(made[name], second[f"bert.{name}"]) for name in made)


def test_the_ancestor_is_in_report_and_card(tmp_path):
    folders = save_all(tmp_path, [make_bert(seed) for seed in range(3)])
    report = fuse(
        folders[1:], tmp_path / "out", method="ties", pretrained=folders[0], progress=False,
        density=0.5,
    )  # fmt: skip
    alone = fuse([folders[0]], tmp_path / "copy", progress=False).hashes[0]
    name = f"{tmp_path.name}/model0"
    assert report.ancestor == {"model": name, "xxh3_128": alone}
    card = (tmp_path / "out/README.md").read_text()
    assert f"| ancestor: `{name}` | | `{alone}` |" in card
    assert report.done()["ancestor"] == report.ancestor
    assert np.isfinite(report.weights).all()
