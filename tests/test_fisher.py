"""Fisher information: the definition, example by example and label by label."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fusinglib import data, fisher, fuse, models
from fusinglib.checkpoints import open_checkpoint
from fusinglib.errors import InputError
from fusinglib.training import finetune


@pytest.fixture
def mood(mini_tasks, how):
    return data.load(mini_tasks["mood"], how)


@pytest.fixture(params=["t5", "tied_t5", "encoder"])
def finetuned(request, mood, training, how, tmp_path):
    """Folders of two models finetuned for a moment, with their heads."""
    folders = []
    for seed in range(2):
        start = request.getfixturevalue(request.param)
        model = models.load(start, mood.task, training, how, seed=seed, device="cpu")
        finetune(model, mood, training, seed)
        folders.append(tmp_path / f"model{seed}")
        model.save(folders[-1])
    return folders


def log_probabilities(folder, row, mood, training, how):
    """The plain way: the saved network, and for T5 one label text after the other."""
    model = models.load(folder, mood.task, training, how, seed=0, device="cpu")
    inputs = model.inputs(model.tokens(mood)["train"], [row])
    if isinstance(model, models.Classifier):
        network = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        return network, network(**inputs).logits[0].log_softmax(-1)
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    scores = []
    for ids in model.labels:
        logs = network(**inputs, labels=torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(logs[i, token] for i, token in enumerate(ids)))
    return network, torch.stack(scores).log_softmax(-1)


def test_the_definition(finetuned, mood, training, how, tmp_path, capsys):
    file = fisher.estimate(finetuned[0], mood, training, how, tmp_path / "f", examples=1, seed=3)
    found = load_file(file)
    body = open_checkpoint(finetuned[0]).body()
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        name: stored.shape for name, stored in body.items() if stored.is_float
    }
    row = np.random.default_rng(3).permutation(len(mood.train))[0]
    network, logs = log_probabilities(finetuned[0], row, mood, training, how)
    prefix = open_checkpoint(finetuned[0]).prefix
    weights = dict(network.named_parameters())
    for name, information in found.items():
        expected = sum(
            log.exp().detach()
            * torch.autograd.grad(log, weights[prefix + name], retain_graph=True)[0] ** 2
            for log in logs
        )
        torch.testing.assert_close(information, expected, rtol=2e-3, atol=1e-9)
    assert max(t.max() for t in found.values()) > 0
    assert "1 of 1 examples" in capsys.readouterr().err


def test_it_is_a_mean_over_examples_and_repeats(finetuned, mood, training, how, tmp_path):
    def estimate(name, **options):
        path = fisher.estimate(finetuned[0], mood, training, how, tmp_path / name, **options)
        return load_file(path)

    one, same = (estimate(name, examples=4, seed=1) for name in ("a", "b"))
    assert all(torch.equal(one[name], same[name]) for name in one)
    other = estimate("c", examples=4, seed=2)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    without_dropout = replace(training, dropout=0.0)
    path = fisher.estimate(
        finetuned[0], mood, without_dropout, how, tmp_path / "d", examples=4, seed=1
    )
    assert all(torch.equal(one[name], t) for name, t in load_file(path).items())


def test_the_weighted_mean(finetuned, mood, training, how, tmp_path):
    files = [
        fisher.estimate(folder, mood, training, how, tmp_path / f"f{i}", examples=2)
        for i, folder in enumerate(finetuned)
    ]
    options = {"method": "fisher", "information": files, "progress": False}
    report = fuse(finetuned, tmp_path / "out", **options)
    assert report.method == "fisher"
    fused = load_file(tmp_path / "out" / "model.safetensors")
    information = [load_file(file) for file in files]
    states = [load_file(folder / "model.safetensors") for folder in finetuned]
    prefix = open_checkpoint(finetuned[0]).prefix
    for name, tensor in fused.items():
        if not tensor.is_floating_point():
            continue
        f = [part[name].double() for part in information]
        t = [state[prefix + name].double() for state in states]
        total = f[0] + f[1]
        expected = torch.where(total > 0, (f[0] * t[0] + f[1] * t[1]) / total, (t[0] + t[1]) / 2)
        sure = total > 1e-30  # products below float32's range lose their digits
        torch.testing.assert_close(tensor.double()[sure], expected[sure], rtol=1e-5, atol=1e-6)
    json.dumps(report.done()["parents"])


def test_what_is_refused(encoder, mood, training, how, tmp_path):
    with pytest.raises(InputError, match="has no head with"):
        fisher.estimate(encoder, mood, training, how, tmp_path / "f")
    (tmp_path / "there").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        fisher.estimate(encoder, mood, training, how, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
