"""Evaluation: label scores against one decoder pass per label, `exact` against generation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusinglib.training import data, models
from fusinglib.training.finetuning import finetune
from fusinglib.training.models import label_tokens
from fusinglib.training.scoring import (
    cross_entropy,
    label_scores,
    macro_f1,
    metrics,
    predict,
)
from fusinglib.training.tokens import Tokens


@pytest.fixture(scope="module")
def half_trained(t5, mini_tasks, training, how):
    """A T5 finetuned so little that some of its outputs are labels and some are not."""
    loaded = data.load(mini_tasks["mood"], replace(how, max_test=120))
    few = replace(training, max_steps=1, learning_rate=5e-4)
    model = models.load(t5, loaded.task, few, how, seed=0, device="cpu")
    train, dev, test = map(model.encode, (loaded.train, loaded.dev, loaded.test))
    for seed in range(100):
        finetune(model, train, dev, few, seed)
        invalid = (predict(model, test)["exact"] == -1).mean()
        if invalid < 0.9:
            break
    return model, loaded


def naive_scores(network, ids: list[int], label: list[int]) -> float:
    """The log-probability of `label` after the unpadded input `ids`, by teacher forcing."""
    start = network.config.decoder_start_token_id
    decoder = torch.tensor([[start, *label[:-1]]])
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([ids]), decoder_input_ids=decoder).logits[0]
    log_probabilities = logits.double().log_softmax(-1)
    return sum(float(log_probabilities[i, token]) for i, token in enumerate(label))


LABELS = [[30, 1], [30, 31, 32, 33, 1], [40, 41, 1], [50, 30, 31, 1], [30, 31, 1]]
"""Of different lengths, some the beginning of others (1: the end token)."""


@pytest.mark.parametrize("folder", ["t5", "tied_t5"])
def test_label_scores_are_those_of_each_label_alone(folder, request, mini_tasks, training, how):
    path = request.getfixturevalue(folder)
    network = models.load(path, mini_tasks["mood"], training, how, seed=0, device="cpu").network
    network.eval()
    inputs = [[20, 21, 22, 1], [25, 1], list(range(20, 60)), [70, 71, 72, 73, 74, 1]]
    batch = Tokens.of({"input_ids": inputs}, [0] * 4, network.config.pad_token_id).pad([0, 1, 2, 3])
    with torch.inference_mode():
        scores, _ = label_scores(network, **batch, labels=LABELS)
    expected = [[naive_scores(network, ids, label) for label in LABELS] for ids in inputs]
    assert scores.shape == (4, 5) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-5, atol=1e-4)
    reverse, _ = label_scores(network, **batch, labels=LABELS[::-1])
    torch.testing.assert_close(reverse.flip(1), scores, rtol=1e-5, atol=1e-4)


def test_exact_is_what_greedy_generation_writes(half_trained):
    model, loaded = half_trained
    tokens = model.encode(loaded.test)
    predicted = predict(model, tokens)
    longest = max(map(len, model.labels))
    written = []
    for row in range(len(tokens)):
        batch = tokens.pad([row])
        output = model.network.generate(**batch, max_new_tokens=longest + 2, do_sample=False)
        ids = output[0, 1:].tolist()
        if 1 in ids:
            ids = ids[: ids.index(1) + 1]
        written.append(model.labels.index(ids) if ids in model.labels else -1)
    assert predicted["exact"].tolist() == written
    assert 5 < written.count(-1) < len(written) - 5  # both cases occurred
    assert metrics(predicted, loaded.test.labels)["invalid"] == written.count(-1) / len(written)
    some = predicted["exact"] != -1
    assert (predicted["ranked"] >= 0).all()
    assert (predicted["ranked"][some] == predicted["exact"][some]).mean() > 0.5


def test_ranked_is_the_best_score(half_trained):
    model, loaded = half_trained
    tokens = model.encode(loaded.test)
    predicted = predict(model, tokens)
    for row in range(10):
        ids = tokens.pad([row])["input_ids"][0].tolist()
        scores = [naive_scores(model.network, ids, label) for label in model.labels]
        assert predicted["ranked"][row] == np.argmax(scores)


def test_cross_entropy_is_that_of_the_right_labels_text(half_trained):
    model, loaded = half_trained
    tokens, labels = model.encode(loaded.test), loaded.test.labels
    found = cross_entropy(predict(model, tokens), labels)
    expected = [
        -naive_scores(model.network, tokens.pad([row])["input_ids"][0].tolist(), model.labels[k])
        for row, k in enumerate(labels)
    ]
    assert found == pytest.approx(np.mean(expected), rel=1e-5)


def test_predictions_do_not_depend_on_the_batches(half_trained, monkeypatch):
    model, loaded = half_trained
    tokens = model.encode(loaded.test)
    whole = predict(model, tokens)
    monkeypatch.setattr(model, "eval_batch_size", 7)
    parts = predict(model, tokens)
    assert all((whole[name] == parts[name]).all() for name in ("ranked", "exact"))
    np.testing.assert_allclose(whole["scores"], parts["scores"], rtol=1e-4)
    assert whole["exact"].dtype == np.int16


def test_prediction_uses_no_dropout_and_leaves_no_trace(half_trained):
    model, loaded = half_trained
    tokens = model.encode(loaded.dev)
    model.network.train()
    state = torch.random.get_rng_state()
    first, second = predict(model, tokens), predict(model, tokens)
    assert all((first[name] == second[name]).all() for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_bf16_scores_are_near_fp32(half_trained):
    model, loaded = half_trained
    batch = model.encode(loaded.test).pad(range(8))
    with torch.inference_mode():
        full, _ = label_scores(model.network, **batch, labels=model.labels)
        with torch.autocast("cpu", torch.bfloat16):
            half, _ = label_scores(model.network, **batch, labels=model.labels)
    assert half.isfinite().all() and not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.2)


def test_emoji_labels_of_many_lengths_are_scored(t5, training, how):
    """20 labels in one decoder sequence, longer than the relative positions reach."""
    network = models.transformers.AutoModelForSeq2SeqLM.from_pretrained(t5)
    labels = [[*range(20 + k, 20 + k + 1 + k % 6), 1] for k in range(20)]
    batch = Tokens.of({"input_ids": [[20, 21, 1]]}, [0], 0).pad([0])
    with torch.inference_mode():
        scores, _ = label_scores(network.eval(), **batch, labels=labels)
    expected = [naive_scores(network, [20, 21, 1], label) for label in labels]
    torch.testing.assert_close(scores[0], torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_metrics_by_hand():
    predicted = {"ranked": np.array([0, 1, 1, 2]), "exact": np.array([0, -1, -1, 1])}
    found = metrics(predicted, [0, 1, 2, 2])
    f1 = (1 + 2 / 3 + 2 / 3) / 3
    assert found == {"ranked": 0.75, "exact": 0.25, "invalid": 0.5, "macro_f1": pytest.approx(f1)}


@pytest.mark.parametrize(
    ("predicted", "labels", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 1], (6 / 7 + 0) / 2),  # the majority label alone
        ([3, 3], [3, 3], 1.0),  # labels that nobody has do not count
        ([0, 2], [1, 2], (0 + 0 + 1) / 3),  # one that is predicted, and never right, does
    ],
)
def test_macro_f1_by_hand(predicted, labels, expected):
    assert macro_f1(np.array(predicted), np.array(labels)) == pytest.approx(expected)


def test_the_majority_is_that_of_the_test_labels():
    assert data.majority([0, 2, 2, 1]) == 0.5
    assert data.majority([1, 1, 1, 0]) == 0.75


def test_encoder_has_one_prediction_and_no_invalid_output(encoder, mini_tasks, training, how):
    loaded = data.load(mini_tasks["mood"], how)
    model = models.load(encoder, loaded.task, training, how, seed=0, device="cpu")
    tokens = model.encode(loaded.test)
    predicted = predict(model, tokens)
    assert (predicted["ranked"] == predicted["exact"]).all()
    logits = [model.network(**model.inputs(tokens, [row])).logits[0] for row in range(len(tokens))]
    assert predicted["ranked"].tolist() == [int(row.argmax()) for row in logits]
    assert metrics(predicted, loaded.test.labels)["invalid"] == 0


def test_labels_of_the_miniature_world_differ_as_tokens(t5, mini_tasks):
    tokenizer = models.transformers.AutoTokenizer.from_pretrained(t5)
    for task in mini_tasks.values():
        tokens = label_tokens(tokenizer, task, "t5")
        assert all(ids[-1] == tokenizer.eos_token_id for ids in tokens)
