"""Gram matrices of linear layers: against inputs worked out by hand, and through `fuse`."""

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_fisher import drawn, encoded, opened
from transformers import AutoModelForSeq2SeqLM

from fusinglib import fuse
from fusinglib.errors import InputError
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.training import gram
from fusinglib.training.data import text_input


def product(rows):
    rows = torch.cat(rows).double().numpy()
    return rows.T @ rows / len(rows)


def test_an_encoders_first_query_reads_its_embeddings(
    finetuned, encoder, mini_tasks, how, tmp_path
):
    task = mini_tasks["mood"]
    folder = finetuned(encoder, task)
    file = gram.estimate(folder, task, how, tmp_path / "g", examples=6, seed=3)
    found = load_file(file)
    network, tokenizer = opened(folder)
    with torch.no_grad():
        rows = []
        for text in drawn(task, how, 6, seed=3):
            inputs = encoded(tokenizer, text)
            rows.append(network.base_model.embeddings(
                inputs["input_ids"], inputs["token_type_ids"]
            ).flatten(0, 1))  # fmt: skip
    name = next(name for name in found if name.endswith("layer.0.attention.self.query.weight"))
    np.testing.assert_allclose(found[name], product(rows), rtol=1e-4, atol=1e-6)
    body = open_checkpoint(folder).body()
    linear = {n for n in body if n.endswith("weight") and len(body[n].shape) == 2} - {
        n for n in body if "embeddings" in n
    }
    assert found.keys() == linear
    assert all(found[n].shape == (body[n].shape[1],) * 2 for n in found)
    with safe_open(file, "pt") as read:
        assert read.metadata()["examples"] == "6" and read.metadata()["task"] == "mood"


def test_a_t5_reads_the_text_of_its_own_label(finetuned, t5, mini_tasks, how, tmp_path):
    task = mini_tasks["sentiment"]
    folder = finetuned(t5, task)
    found = load_file(gram.estimate(folder, task, how, tmp_path / "g", examples=5))
    network, tokenizer = opened(folder, AutoModelForSeq2SeqLM)
    block = network.encoder.block[0].layer[0]
    rows = []
    with torch.no_grad():
        for text in drawn(task, how, 5):
            ids = tokenizer(text_input(task, text, how.text_format), return_tensors="pt")
            rows.append(block.layer_norm(network.shared(ids["input_ids"])).flatten(0, 1))
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    np.testing.assert_allclose(found[name], product(rows), rtol=1e-4, atol=1e-6)
    assert "lm_head.weight" in found and "shared.weight" not in found


def test_regmean_of_finetuned_models(finetuned, encoder, mini_tasks, how, tmp_path):
    """The outputs of a layer on both models' inputs are nearer to theirs than those of the mean."""
    tasks = [mini_tasks["mood"], mini_tasks["irony"]]
    folders = [finetuned(encoder, task, seed) for seed, task in enumerate(tasks)]
    files = [gram.estimate(folder, task, how, tmp_path / f"g{i}", examples=8)
             for i, (folder, task) in enumerate(zip(folders, tasks, strict=True))]  # fmt: skip
    fuse(folders, tmp_path / "mean", progress=False)
    report = fuse(folders, tmp_path / "out", method="regmean", gram=files, progress=False)
    made, mean = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "mean"))
    matrices = [load_file(file) for file in files]
    bodies = [{n: t.name for n, t in open_checkpoint(f).body().items()} for f in folders]
    stored = [load_file(folder / "model.safetensors") for folder in folders]

    def loss(weights, name):
        total = 0.0
        for body, tensors, known in zip(bodies, stored, matrices, strict=True):
            away = weights[name].double() - tensors[body[name]].double()
            total += float((away @ known[name].double() * away).sum())
        return total

    assert all(loss(made, name) < loss(mean, name) for name in matrices[0])
    others = made.keys() - matrices[0].keys()
    assert all(torch.allclose(made[name], mean[name], rtol=0, atol=2e-7) for name in others)
    assert report.settings["alpha"] == 0.9


def test_what_is_refused(finetuned, encoder, mini_tasks, how, tmp_path):
    task = mini_tasks["mood"]
    with pytest.raises(InputError, match="examples is 0"):
        gram.estimate(finetuned(encoder, task), task, how, tmp_path / "g", examples=0)
    with pytest.raises(InputError, match="no trained head"):
        gram.estimate(encoder, task, how, tmp_path / "g")
