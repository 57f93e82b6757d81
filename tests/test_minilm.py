"""Real models: classifiers with different labels, finetuned from MiniLM on real tweets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from fusinglib import fuse, leave_one_out
from fusinglib.errors import InputError
from fusinglib.training import data, folders, models
from fusinglib.training.finetuning import finetune
from fusinglib.training.tasks import TASKS

SOURCES = ("irony", "emotion", "stance_climate", "emoji")
"""2, 4, 3 and 20 labels."""


@pytest.fixture(scope="module")
def minilm(hub):
    """The folder of the pretrained encoder."""
    try:
        return folders.locate("sentence-transformers/all-MiniLM-L6-v2", "")
    except InputError:
        pytest.skip("the cache that HF_HOME names has no sentence-transformers/all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def short(training):
    """A few steps that change the weights."""
    return replace(training, learning_rate=1e-4, max_steps=10, eval_every=5)


@pytest.fixture(scope="module")
def classifiers(minilm, short, how, tmp_path_factory):
    """Folders of the finetuned models, whole: with their heads and tokenizers."""
    folders = []
    for name in SOURCES:
        loaded = data.load(TASKS[name], how)
        model = models.load(minilm, loaded.task, short, how, seed=0, device="cpu")
        finetune(model, model.encode(loaded.train), model.encode(loaded.dev), short, 0)
        folders.append(tmp_path_factory.mktemp("classifiers") / name)
        model.save(folders[-1])
    return folders


@pytest.mark.slow
def test_they_fuse_load_and_finetune_on(classifiers, minilm, short, how, tmp_path):
    report = fuse(classifiers, tmp_path / "mean", pretrained=minilm, progress=False)
    assert report.architecture == "BertModel" and len(report.left_out) == 2 * len(SOURCES)
    assert [row["norm"] > 0 for row in report.updates] == [True] * len(SOURCES)
    assert not any("ancestor" in note for note in report.notes)

    network = transformers.AutoModel.from_pretrained(tmp_path / "mean")
    states = [load_file(folder / "model.safetensors") for folder in classifiers]
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            parts = [state[f"bert.{name}"].double().numpy() for state in states]
            error = np.abs(tensor.double().numpy() - np.mean(parts, axis=0))
            assert (error <= 4 * np.finfo(np.float32).eps * np.max(np.abs(parts), axis=0)).all()

    loaded = data.load(TASKS["hate"], how)
    model = models.load(tmp_path / "mean", loaded.task, short, how, seed=0, device="cpu")
    before = {name: tensor.clone() for name, tensor in model.body.state_dict().items()}
    outcome, history = finetune(
        model, model.encode(loaded.train), model.encode(loaded.dev), short, 0
    )
    assert outcome["steps"] == 10 and 0 <= outcome["dev"] <= 1 and len(history) == 2
    assert any(not torch.equal(before[n], t) for n, t in model.body.state_dict().items())


@pytest.mark.slow
def test_all_means_but_one_at_once(classifiers, tmp_path):
    leave_one_out(classifiers, tmp_path / "all", progress=False)
    for i in range(len(SOURCES)):
        rest = classifiers[:i] + classifiers[i + 1 :]
        fuse(rest, tmp_path / f"mean{i}", progress=False)
        files = [tmp_path / "all" / f"without-{i}", tmp_path / f"mean{i}"]
        contents = [(folder / "model.safetensors").read_bytes() for folder in files]
        assert contents[0] == contents[1]
