"""Training: early stopping by hand, weight decay, batches, determinism, the best weights kept."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

from fusinglib.errors import InputError
from fusinglib.training import data, models
from fusinglib.training.finetuning import (
    EarlyStopping,
    adamw,
    batches_of,
    finetune,
    learning_rate,
)
from fusinglib.training.scoring import metrics, predict


def follow(scores, min_gain=0.001, patience=50, every=50):
    """Where training on these dev metrics ends: (steps, best step, best)."""
    stopping = EarlyStopping(min_gain, patience)
    for number, metric in enumerate(scores, start=1):
        stopping.update(number * every, metric)
        if stopping.done(number * every):
            break
    return number * every, stopping.best_step, stopping.best


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 0.6, 0.6, 0.9], (150, 100, 0.6)),  # patience 50: the first without a gain
        ([0.5, 0.4, 0.9], (100, 50, 0.5)),
        ([0.5, 0.6, 0.7], (150, 150, 0.7)),
        ([0.5, 0.5005, 0.9], (100, 100, 0.5005)),  # no gain, yet the highest: kept
        ([0.0, 0.0, 0.9], (100, 50, 0.0)),  # the first look counts, even at 0
        ([500 / 1000, 501 / 1000, 502 / 1000], (150, 150, 0.502)),  # 0.001 exactly is a gain
        ([0.7, 0.701, 0.702, 0.703], (200, 200, 0.703)),
    ],
)
def test_patience_of_one_evaluation(scores, expected):
    assert follow(scores) == expected


@pytest.mark.parametrize("size", [1000, 2000, 3000, 7000])
def test_every_gain_of_exactly_a_thousandth_counts(size):
    for right in range(0, size - size // 1000):
        stopping = EarlyStopping(0.001, 50)
        stopping.update(50, right / size)
        stopping.update(100, (right + size // 1000) / size)
        assert stopping.gain_step == 100
        if size > 1000:
            stopping = EarlyStopping(0.001, 50)
            stopping.update(50, right / size)
            stopping.update(100, (right + size // 1000 - 1) / size)
            assert stopping.gain_step == 50


def test_longer_patience_counts_batches_since_the_last_gain():
    assert follow([0.5, 0.4, 0.4, 0.9], patience=100) == (150, 50, 0.5)
    assert follow([0.5, 0.4, 0.6, 0.4, 0.6, 0.9], patience=100) == (250, 150, 0.6)
    assert follow([0.5, 0.4, 0.4, 0.9], patience=101) == (200, 200, 0.9)


def test_small_steps_add_up_to_no_gain():
    """Each gain is measured from the highest so far, not from the last gain."""
    assert follow([0.5, 0.5006, 0.5012, 0.9], patience=100) == (150, 150, 0.5012)


def test_earliest_of_equals_is_kept():
    assert follow([0.5, 0.7, 0.7, 0.7], patience=1000) == (200, 100, 0.7)


def test_without_a_least_gain_a_tie_is_still_no_gain():
    assert follow([0.5, 0.5, 0.9], min_gain=0.0) == (100, 50, 0.5)
    assert follow([0.5, 0.5 + 1e-6, 0.5], min_gain=0.0) == (150, 100, 0.5 + 1e-6)


@pytest.mark.parametrize("kind", ["t5", "tied_t5", "bert", "roberta", "distilbert"])
def test_decay_spares_what_the_trainer_spares(kind, request, encoders, mini_tasks, training, how):
    folder = encoders[kind] if kind in encoders else request.getfixturevalue(kind)
    network = models.load(folder, mini_tasks["mood"], training, how, seed=0, device="cpu").network
    trainers = transformers.Trainer.get_decay_parameter_names(SimpleNamespace(), network)
    names = {name for name, _ in network.named_parameters()} & set(trainers)  # no second names
    decayed, spared = adamw(
        dict(network.named_parameters()), replace(training, weight_decay=0.01)
    ).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    found = {id(parameter) for parameter in decayed["params"]}
    assert {name for name, p in network.named_parameters() if id(p) in found} == names
    assert spared["params"]
    assert len(decayed["params"]) + len(spared["params"]) == len(list(network.parameters()))


def test_decay_shrinks_by_rate_times_decay(training):
    network = torch.nn.Linear(3, 2)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = adamw(
        dict(network.named_parameters()), replace(training, learning_rate=0.5, weight_decay=0.25)
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(network.weight, before[0] * (1 - 0.5 * 0.25))
    assert torch.equal(network.bias, before[1])


def test_learning_rates(training):
    linear = replace(training, learning_rate=1.0, schedule="linear", max_steps=4)
    assert [learning_rate(step, linear) for step in (1, 2, 3, 4)] == [1.0, 0.75, 0.5, 0.25]
    constant = replace(linear, schedule="constant")
    assert {learning_rate(step, constant) for step in (1, 2, 3, 4)} == {1.0}


def test_schedule_reaches_the_weights(t5, mini_tasks, training, how):
    """The last of two linear steps has half the rate."""
    one, two, linear = (
        run(
            t5, mini_tasks, replace(training, max_steps=steps, schedule=schedule, eval_every=1), how
        )
        for steps, schedule in ((1, "constant"), (2, "constant"), (2, "linear"))
    )
    start = weights(models.load(t5, mini_tasks["mood"], training, how, seed=0, device="cpu"))
    name = "decoder.final_layer_norm.weight"
    assert one[1]["steps"] == 1 and two[1]["steps"] == linear[1]["steps"] == 2
    first, full, half = (kept[2][name] - start[name] for kept in (one, two, linear))
    torch.testing.assert_close((full - first) / 2, half - first, rtol=1e-3, atol=1e-7)


LENGTHS = np.arange(50)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_epoch_covers_every_row_once(grouped, training):
    settings = replace(training, batch_size=16, group_by_length=grouped)
    batches = batches_of(LENGTHS, settings, seed=3)
    epochs = [[next(batches) for _ in range(4)] for _ in range(2)]
    sizes = [len(batch) for batch in epochs[0]]
    assert sorted(sizes) == [2, 16, 16, 16] and (grouped or sizes[-1] == 2)
    orders = [np.concatenate(epoch).tolist() for epoch in epochs]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1]
    again = batches_of(LENGTHS, settings, seed=3)
    assert all((next(again) == batch).all() for epoch in epochs for batch in epoch)
    assert next(batches_of(LENGTHS, settings, seed=4)).tolist() != epochs[0][0].tolist()


def test_batch_larger_than_the_data_is_all_of_them(training):
    settings = replace(training, batch_size=16)
    assert sorted(next(batches_of(LENGTHS[:5], settings, seed=0))) == [0, 1, 2, 3, 4]


def test_texts_of_like_length_share_a_batch(training):
    settings = replace(training, batch_size=10, group_by_length=True)
    batches = batches_of(np.random.default_rng(0).permutation(LENGTHS), settings, seed=0)
    lengths = np.random.default_rng(0).permutation(LENGTHS)
    spreads = [np.ptp(lengths[next(batches)]) for _ in range(5)]
    assert spreads == [9] * 5


@pytest.mark.parametrize(("kind", "task"), [("t5", "emoji"), ("encoder", "mood")])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(
    kind, task, request, mini_tasks, training, how
):
    """Labels of T5 differ in length, so parts weigh by their tokens."""
    folder = request.getfixturevalue(kind)
    still = replace(training, dropout=0.0, max_steps=3, eval_every=3)
    whole, parts, last = (
        run(folder, mini_tasks, replace(still, micro_batch=size), how, task=task)
        for size in (0, 5, 16)
    )
    assert equal(whole[2], last[2])  # 16 at a time is the whole batch: the same bits
    for name, tensor in whole[2].items():
        torch.testing.assert_close(parts[2][name], tensor, rtol=1e-3, atol=2e-4)
    losses = [one[0].history[0]["loss"] for one in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_want_of_memory_is_an_error_that_says_what_to_do(
    t5, mini_tasks, training, how, monkeypatch
):
    def no_room(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(models.TextToText, "loss", no_room)
    expected = r"a batch of 16 texts of \d+ tokens: set micro_batch to 8 or less"
    with pytest.raises(InputError, match=expected):
        run(t5, mini_tasks, training, how)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def run(folder, mini_tasks, training, how, seed=0, task="mood", change=None):
    """Finetune: the model, its outcome, and its weights when the last batch was done."""
    loaded = data.load(mini_tasks[task], how)
    model = models.load(folder, loaded.task, training, how, seed=seed, device="cpu")
    train, dev = model.encode(loaded.train), model.encode(loaded.dev)
    train, dev = change(train, dev) if change else (train, dev)
    last = {}
    outcome, history = finetune(
        model, train, dev, training, seed, report=lambda history: last.update(weights(model))
    )
    model.history = history
    return model, outcome, last


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["t5", "encoder"])
def test_same_run_has_the_same_bits_alone_and_after_others(
    kind, request, mini_tasks, training, how
):
    folder = request.getfixturevalue(kind)
    alone = run(folder, mini_tasks, training, how)
    other = run(folder, mini_tasks, training, how, seed=1)
    run(folder, mini_tasks, replace(training, batch_size=3), how, task="irony")
    torch.rand(7)
    np.random.rand(7)
    again = run(folder, mini_tasks, training, how)
    assert equal(alone[2], again[2]) and equal(weights(alone[0]), weights(again[0]))
    assert alone[1] == again[1] and alone[0].history == again[0].history
    assert not equal(alone[2], other[2])


def test_seed_sets_order_and_dropout(t5, mini_tasks, training, how):
    still = replace(training, dropout=0.0, max_steps=1, eval_every=1)
    whole = replace(still, batch_size=10**6)  # one batch of all rows: the order is no matter
    few = lambda train, dev: (train.take(range(24)), dev)  # noqa: E731
    first, second = (run(t5, mini_tasks, whole, how, seed=s, change=few)[2] for s in (0, 1))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=2.1e-3)
    loss = [
        run(t5, mini_tasks, whole, how, seed=s, change=few)[0].history[0]["loss"] for s in (0, 1)
    ]
    assert loss[0] == pytest.approx(loss[1], rel=1e-5)
    dropped = replace(whole, dropout=0.3)
    loss = [
        run(t5, mini_tasks, dropped, how, seed=s, change=few)[0].history[0]["loss"] for s in (0, 1)
    ]
    assert loss[0] != pytest.approx(loss[1], rel=1e-4)
    loss = [run(t5, mini_tasks, still, how, seed=s)[0].history[0]["loss"] for s in (0, 1)]
    assert loss[0] != pytest.approx(loss[1], rel=1e-4)


def test_best_weights_are_restored(t5, mini_tasks, training, how):
    """A rate so high that the last weights are not the best."""
    wild = replace(training, learning_rate=0.02, max_steps=16, eval_every=2)
    model, outcome, last = run(t5, mini_tasks, wild, how)
    steps = {row["step"]: row["ranked"] for row in model.history}
    assert outcome["dev"] == max(steps.values()) == steps[outcome["best_step"]]
    assert outcome["best_step"] == min(s for s, dev in steps.items() if dev == outcome["dev"])
    assert outcome["best_step"] < outcome["steps"] == 16 and outcome["stopped"] == "max_steps"
    loaded = data.load(mini_tasks["mood"], how)
    again = metrics(predict(model, model.encode(loaded.dev)), loaded.dev.labels)
    assert again["ranked"] == outcome["dev"]
    assert not equal(weights(model), last)
    until_best = run(t5, mini_tasks, replace(wild, max_steps=outcome["best_step"]), how)
    assert equal(weights(until_best[0]), weights(model))


def test_the_best_weights_go_by_the_chosen_metric(t5, mini_tasks, training, how):
    wild = replace(training, learning_rate=0.02, max_steps=16, eval_every=1, metric="macro_f1")
    model, outcome, _ = run(t5, mini_tasks, wild, how)
    f1 = {row["step"]: row["macro_f1"] for row in model.history}
    assert outcome["dev"] == max(f1.values()) == f1[outcome["best_step"]]
    assert len(set(f1.values())) > 1
    loaded = data.load(mini_tasks["mood"], how)
    again = metrics(predict(model, model.encode(loaded.dev)), loaded.dev.labels)
    assert again["macro_f1"] == outcome["dev"]


def test_training_stops_by_patience_and_looks_when_told(t5, mini_tasks, training, how):
    still = replace(training, learning_rate=1e-12, max_steps=50, eval_every=3, patience=6)
    model, outcome, _ = run(t5, mini_tasks, still, how)
    assert [row["step"] for row in model.history] == [3, 6, 9]
    assert outcome == {
        "best_step": 3, "dev": model.history[0]["ranked"], "steps": 9, "stopped": "patience"
    }  # fmt: skip


def test_last_step_is_looked_at(t5, mini_tasks, training, how):
    model, outcome, _ = run(t5, mini_tasks, replace(training, max_steps=5, eval_every=3), how)
    assert [row["step"] for row in model.history] == [3, 5] and outcome["steps"] == 5
    assert set(model.history[0]) == {"step", "loss", "ranked", "exact", "invalid", "macro_f1"}


def test_metric_decides_what_is_best(t5, mini_tasks, training, how):
    model, outcome, _ = run(t5, mini_tasks, replace(training, metric="exact"), how)
    assert outcome["dev"] == max(row["exact"] for row in model.history)


def test_training_learns(t5, mini_tasks, training, how):
    model, _, _ = run(t5, mini_tasks, replace(training, max_steps=20, eval_every=5), how)
    losses = [row["loss"] for row in model.history]
    assert losses[-1] < losses[0] / 2


def test_dev_rows_are_not_trained_on(t5, mini_tasks, training, how):
    def other_dev(train, dev):
        return train, replace(dev, labels=1 - dev.labels.clip(max=1))

    plain = run(t5, mini_tasks, training, how)
    dev = run(t5, mini_tasks, training, how, change=other_dev)
    assert equal(plain[2], dev[2]) and plain[1] != dev[1]
    assert plain[0].history[0]["loss"] == dev[0].history[0]["loss"]


def test_changed_training_rows_change_the_weights(t5, mini_tasks, training, how):
    def other_train(train, dev):
        return replace(train, labels=train.labels[::-1].copy()), dev

    plain = run(t5, mini_tasks, training, how)
    assert not equal(plain[2], run(t5, mini_tasks, training, how, change=other_train)[2])


@pytest.mark.parametrize("kind", ["t5", "encoder"])
def test_bf16_computes_otherwise_and_keeps_fp32_weights(kind, request, mini_tasks, training, how):
    folder = request.getfixturevalue(kind)
    full = run(folder, mini_tasks, training, how)
    half = run(folder, mini_tasks, replace(training, precision="bf16"), how)
    assert not equal(full[2], half[2])
    assert {tensor.dtype for tensor in half[2].values() if tensor.is_floating_point()} == {
        torch.float32
    }
    assert half[0].history[0]["loss"] == pytest.approx(full[0].history[0]["loss"], rel=0.05)


def test_weight_decay_changes_the_weights_it_may(t5, mini_tasks, training, how):
    one = replace(training, max_steps=1, eval_every=1, weight_decay=0.0)
    plain = run(t5, mini_tasks, one, how)[2]
    decayed = run(t5, mini_tasks, replace(one, weight_decay=0.1), how)[2]
    start = weights(models.load(t5, mini_tasks["mood"], training, how, seed=0, device="cpu"))
    for name, tensor in start.items():
        spared = tensor.ndim < 2 or "bias" in name
        rate = 0.0 if spared else one.learning_rate * 0.1
        torch.testing.assert_close(decayed[name], plain[name] - rate * tensor, rtol=1e-5, atol=1e-6)
        assert torch.equal(decayed[name], plain[name]) == spared
