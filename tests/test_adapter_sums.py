"""Adapters fused into an adapter: what peft makes of it, and what is refused."""

import json

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_adapters import MAKE, TARGETS, adapter, adapters, change
from test_engine import make_bert, save

from fusinglib import fuse, fuse_adapters
from fusinglib.__main__ import main
from fusinglib.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

AUTO = {
    "bert": transformers.AutoModelForSequenceClassification,
    "t5": transformers.AutoModelForSeq2SeqLM,
    "gpt2": transformers.AutoModelForCausalLM,
}


def updates(kind, tmp_path, folder):
    """The update of every matrix of the base, float64, as peft merges it."""
    base = AUTO[kind].from_pretrained(tmp_path / "base")
    before = {name: value.double().clone() for name, value in base.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    return {name: (merged[name].double() - before[name]).numpy() for name in before}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {}),
        ("t5", {"lora_alpha": 2}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("bert", {"use_rslora": True}),
        ("bert", {"rank_pattern": {"query": 5}, "alpha_pattern": {"query": 3}}),
    ],
)
@pytest.mark.parametrize("weights", [None, [1, -0.5, 2]])
def test_the_sum_of_updates_is_exact(tmp_path, kind, settings, weights):
    folders, _ = adapters(tmp_path, kind, **settings)
    report = fuse_adapters(folders, tmp_path / "out", weights=weights, progress=False)
    shares = weights or [1 / 3] * 3
    parts = [updates(kind, tmp_path, folder) for folder in folders]
    found = updates(kind, tmp_path, tmp_path / "out")
    for name in found:
        wanted = sum(share * part[name] for share, part in zip(shares, parts, strict=True))
        np.testing.assert_allclose(found[name], wanted, atol=2e-5)
    assert sum(np.abs(part).max() > 0.1 for part in found.values()) == len(report.modules)
    assert report.error == 0 and "exact" in str(report)
    assert report.rank == (15 if "rank_pattern" in settings else 9)


def test_the_adapter_is_the_mean_of_the_models(tmp_path):
    folders, _ = adapters(tmp_path, "bert")
    fuse_adapters(folders, tmp_path / "adapter", progress=False)
    fuse(folders, tmp_path / "models", progress=False)
    fuse([tmp_path / "adapter"], tmp_path / "merged", progress=False)
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("models", "merged"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_a_rank_is_the_nearest_and_says_what_is_lost(tmp_path, rank):
    folders, _ = adapters(tmp_path, "bert")
    whole = fuse_adapters(folders, tmp_path / "whole", progress=False)
    report = fuse_adapters(folders, tmp_path / "out", rank=rank, progress=False)
    exact, found = (updates("bert", tmp_path, tmp_path / name) for name in ("whole", "out"))
    lost = total = 0.0
    for name in exact:
        if np.abs(exact[name]).max() > 0:
            u, sizes, v = np.linalg.svd(exact[name])
            nearest = u[:, :rank] * sizes[:rank] @ v[:rank]
            np.testing.assert_allclose(found[name], nearest, atol=2e-5)
            lost, total = lost + (sizes[rank:] ** 2).sum(), total + (sizes**2).sum()
    assert report.error == pytest.approx((lost / total) ** 0.5, abs=1e-5)
    assert report.rank == rank and whole.rank == 9
    assert ("is lost" in (tmp_path / "out/README.md").read_text()) == (report.error > 0)
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == rank


def test_matrices_that_some_adapters_leave_alone(tmp_path):
    base = save(make_bert(0), tmp_path / "base")
    for name, targets in (("a", ["query"]), ("b", ["query", "value"])):
        adapter(base, tmp_path / name, target_modules=targets)
    fuse_adapters([tmp_path / "a", tmp_path / "b"], tmp_path / "out", progress=False)
    parts = [updates("bert", tmp_path, tmp_path / name) for name in ("a", "b", "out")]
    for name in parts[0]:
        np.testing.assert_allclose(parts[2][name], (parts[0][name] + parts[1][name]) / 2, atol=2e-5)


def test_heads_are_left_out_and_said(tmp_path):
    folders, _ = adapters(tmp_path, "bert", modules_to_save=["classifier"])
    report = fuse_adapters(folders, tmp_path / "out", progress=False)
    assert len(report.left_out) == 6 and "a head" in str(report)
    assert not [n for n in load_file(tmp_path / "out/adapter_model.safetensors") if "class" in n]


def test_the_command(tmp_path, capsys):
    folders, _ = adapters(tmp_path, "bert", count=2)
    words = ["fuse", *map(str, folders), "--adapter", "--output", str(tmp_path / "out")]
    assert main([*words, "--rank", "2", "--weights", "1,3"]) == 0
    said = capsys.readouterr().out
    assert "cut to rank 2" in said and "weight 3" in said and str(tmp_path / "out") in said
    assert main([*words, "--method", "ties", "--dtype", "float16"]) == 2
    assert "leave out --dtype, --method" in capsys.readouterr().err
    assert main(words) == 2 and "already exists" in capsys.readouterr().err
    assert main(["fuse", *map(str, folders), "--rank", "2", "--dry-run"]) == 2
    assert "add --adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "use_dora True: only plain LoRA"),
        ({"base_model_name_or_path": "another"}, "differ in base_model_name_or_path"),
        ({"task_type": "CAUSAL_LM"}, "differ in task_type"),
        ({"r": 4}, "rank 4 and alpha 5, but its update has rank 3"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, settings, words):
    folders, _ = adapters(tmp_path, "bert", count=2)
    change(folders[1], None, **settings)
    with pytest.raises(InputError, match=words) as error:
        fuse_adapters(folders, tmp_path / "out", progress=False)
    assert str(folders[1]) in str(error.value) and not (tmp_path / "out").exists()


def test_other_input_is_refused(tmp_path):
    folders, _ = adapters(tmp_path, "bert", count=2)
    out = tmp_path / "out"
    for models, how, words in (
        ([*folders, folders[0]], {}, "listed twice"),
        ([tmp_path / "base"], {}, "is no adapter"),
        ([], {}, "at least one adapter"),
        (folders, {"weights": [1]}, "expected 2 numbers"),
        (folders, {"weights": [1, float("nan")]}, "expected 2 numbers"),
        (folders, {"rank": -1}, "rank is -1"),
    ):
        with pytest.raises(InputError, match=words):
            fuse_adapters(models, out, progress=False, **how)
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    change(folders[0], lambda found: found.update({name: torch.ones(3, 3)}))
    with pytest.raises(InputError, match="in full, which an adapter cannot average"):
        fuse_adapters(folders, out, progress=False)
    change(folders[0], lambda found: found.pop(name))
    query = next(n for n in load_file(folders[0] / "adapter_model.safetensors") if "lora_B" in n)
    change(folders[0], lambda found: found[query].fill_(float("inf")))
    with pytest.raises(InputError, match="contains NaN or infinity"):
        fuse_adapters(folders, out, progress=False)
    assert not out.exists() and set(MAKE) == set(TARGETS)
