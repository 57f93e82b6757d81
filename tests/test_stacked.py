"""Runs as one: each is what it would be alone."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from fusinglib.errors import InputError
from fusinglib.places import PROJECT
from fusinglib.study.settings import FamilyTable
from fusinglib.training import data, finetuning, models, stacked
from fusinglib.training.scoring import predict
from fusinglib.training.stacked import Stack
from fusinglib.training.tasks import TASKS

KINDS = ["bert", "roberta", "distilbert", "electra", "albert", "mpnet", "xlm-roberta", "modernbert"]


@pytest.fixture
def opened(mini_tasks, how):
    """Opens a folder for a task with several seeds; returns the models and the task's tokens."""

    def open_(folder, training, seeds=(0, 1, 2), task="topic"):
        made = [
            models.load(folder, mini_tasks[task], training, how, seed=seed, device="cpu")
            for seed in seeds
        ]
        loaded = data.load(mini_tasks[task], how)
        return made, [made[0].encode(getattr(loaded, split)) for split in data.SPLITS]

    return open_


@pytest.fixture
def exact(training):
    """Training without dropout, of which stacked runs differ from runs alone."""
    return replace(training, dropout=0.0, max_steps=6)


def alone(folder, opened, training, seeds):
    """Outcomes, histories and test predictions of runs one by one."""
    for model, seed in zip(opened(folder, training, seeds)[0], seeds, strict=True):
        train, dev, test = opened(folder, training, [seed])[1]
        outcome, history = finetuning.finetune(model, train, dev, training, seed)
        yield outcome, history, predict(model, test)


def as_one(folder, opened, training, seeds):
    """The same of runs as one."""
    made, (train, dev, test) = opened(folder, training, seeds)
    stack = Stack(made)
    found = stacked.finetune(stack, train, dev, training, seeds)
    predicted = predict(stack, test)
    for row, (outcome, history) in enumerate(found):
        yield outcome, history, {name: array[row] for name, array in predicted.items()}


def same(ones, others):
    """Losses agree to rounding, labels but for ties."""
    for (outcome, history, predicted), (own, theirs, wanted) in zip(ones, others, strict=True):
        assert [row["step"] for row in history] == [row["step"] for row in theirs]
        for row, right in zip(history, theirs, strict=True):
            assert row["loss"] == pytest.approx(right["loss"], rel=1e-5)
            assert row["ranked"] == pytest.approx(right["ranked"], abs=0.026)  # one of 40
        np.testing.assert_allclose(predicted["scores"], wanted["scores"], rtol=1e-3, atol=1e-3)
        untied = np.ptp(np.sort(wanted["scores"])[:, -2:], axis=1) > 1e-2
        assert (predicted["ranked"] == wanted["ranked"])[untied].all()
        assert outcome["steps"] == own["steps"] and outcome["stopped"] == own["stopped"]


def test_text_to_text(t5, opened, exact):
    seeds = [0, 1, 2]
    same(as_one(t5, opened, exact, seeds), alone(t5, opened, exact, seeds))


@pytest.mark.parametrize("kind", KINDS)
def test_encoders(kind, encoders, opened, exact):
    """Each with its own head, from its own seed."""
    seeds = [3, 5]
    made = opened(encoders[kind], exact, seeds)
    assert stacked.unfit(made[0][0], made[1][0]) == ""
    same(as_one(encoders[kind], opened, exact, seeds), alone(encoders[kind], opened, exact, seeds))


def test_tied_weights(tied_t5, opened, exact):
    seeds = [0, 1]
    same(as_one(tied_t5, opened, exact, seeds), alone(tied_t5, opened, exact, seeds))


@pytest.mark.parametrize("micro_batch", [0, 10])
def test_batches_of_unequal_size(micro_batch, t5, opened, exact):
    """Grouped by length, the short batch of an epoch comes at another time in each run."""
    exact = replace(exact, group_by_length=True, micro_batch=micro_batch, batch_size=50)
    exact = replace(exact, weight_decay=0.1, schedule="linear")
    seeds = [0, 1, 2]
    same(as_one(t5, opened, exact, seeds), alone(t5, opened, exact, seeds))


def test_each_run_ends_when_it_would_alone(t5, opened, exact):
    """Some runs end before others and leave the stack; every run ends with its best weights."""
    exact = replace(exact, max_steps=50, eval_every=2, patience=10, learning_rate=3e-3)
    seeds = list(range(6))
    ones = list(as_one(t5, opened, exact, seeds))
    others = list(alone(t5, opened, exact, seeds))
    ends = [outcome["steps"] for outcome, _, _ in others]
    assert len(set(ends)) > 2, "the runs end together: choose other seeds"
    assert [outcome for outcome, _, _ in ones] == [
        {**own, "dev": pytest.approx(own["dev"])} for own, _, _ in others
    ]
    for (_, _, predicted), (_, _, wanted) in zip(ones, others, strict=True):
        np.testing.assert_allclose(predicted["scores"], wanted["scores"], rtol=0.01, atol=0.01)


def test_a_run_that_diverges_fails_alone(t5, opened, exact):
    made, (train, dev, test) = opened(t5, exact, [0, 1, 2])
    with torch.no_grad():
        next(made[1].network.parameters()).fill_(torch.nan)
    reported = []
    found = stacked.finetune(
        Stack(made), train, dev, exact, [0, 1, 2], lambda run, history: reported.append(run)
    )
    assert isinstance(found[1][0], InputError) and "training loss is nan" in str(found[1][0])
    assert set(reported) == {0, 2}
    for row, (outcome, history, _) in zip((0, 2), alone(t5, opened, exact, [0, 2]), strict=True):
        assert found[row][0] == outcome
        assert found[row][1][-1]["loss"] == pytest.approx(history[-1]["loss"], rel=1e-5)


def test_the_same_stack_has_the_same_bits(t5, opened, training):
    """With dropout as well, which differs between the runs of a stack."""
    training = replace(training, dropout=0.3)
    ones, others = (list(as_one(t5, opened, training, [4, 4])) for _ in range(2))
    for (outcome, history, predicted), (own, theirs, wanted) in zip(ones, others, strict=True):
        assert outcome == own and history == theirs
        assert predicted["scores"].tobytes() == wanted["scores"].tobytes()
    assert ones[0][1][0]["loss"] != ones[1][1][0]["loss"]


class Read(TorchDispatchMode):
    """Counts the numbers that Python reads from tensors, each of which waits for a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["t5", *KINDS])
def test_steps_do_not_wait_for_a_gpu(kind, t5, encoders, opened, training, monkeypatch):
    made, (train, dev, _) = opened(t5 if kind == "t5" else encoders[kind], training, [0, 1])
    stack, read, by = Stack(made), Read(), []
    monkeypatch.setattr(stacked, "predict", lambda *given: by.append(read.count) or predict(*given))
    with read:
        stacked.finetune(stack, train, dev, replace(training, max_steps=3, eval_every=3), [0, 1])
    assert by == [0]


def test_what_vmap_does_not_take_is_unfit(encoders, opened, exact):
    """DeBERTa wants its attention masks in two dimensions."""
    made, (train, *_) = opened(encoders["deberta"], exact)
    assert "differ" in stacked.unfit(made[0], train)


def test_local_attention_is_unfit_where_texts_are_longer_than_its_window(
    tmp_path, encoder_tokenizer, opened, exact, finetuned, mini_tasks
):
    """Transformers then leaves a mask of four dimensions as it is: all tokens see each other."""
    config = transformers.ModernBertConfig(
        vocab_size=len(encoder_tokenizer), pad_token_id=0, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=48, local_attention=4, bos_token_id=2,
        eos_token_id=3, cls_token_id=2, sep_token_id=3,
    )  # fmt: skip
    start = tmp_path / "start"
    transformers.AutoModel.from_config(config).save_pretrained(start)
    encoder_tokenizer.save_pretrained(start)
    made, (train, *_) = opened(finetuned(start, mini_tasks["topic"]), exact)
    assert "differ" in stacked.unfit(made[0], train)


def test_trying_a_stack_leaves_the_attention_as_it_is(t5, opened, exact, monkeypatch):
    monkeypatch.setattr(stacked, "_CHECKED", {})
    (model, *_), (train, *_) = opened(t5, exact)
    before = model.network.config._attn_implementation
    assert stacked.unfit(model, train) == "" and before != "eager"
    assert model.network.config._attn_implementation == before


def test_a_kind_of_model_is_known_however_it_was_saved(encoders, opened, exact, finetuned,
                                                       mini_tasks, t5, tied_t5):  # fmt: skip
    (body, *_), _ = opened(encoders["bert"], exact)
    (whole, *_), _ = opened(finetuned(encoders["bert"], mini_tasks["topic"]), exact)
    assert body.config.architectures != whole.config.architectures
    assert stacked.kind(body) == stacked.kind(whole)
    (one, *_), _ = opened(t5, exact)
    (other, *_), _ = opened(tied_t5, exact)
    assert stacked.kind(one) != stacked.kind(other)


def test_the_benchmark_of_stacks_runs_on_a_processor(t5, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import stacks

    setting = stacks.Setting(4, 8, (1, 2), ("fp32",), 64)
    rows = pd.DataFrame(stacks.measure(t5, "cpu", setting, steps=1, rounds=2))
    assert list(rows.groupby("stack").size()) == [2, 2]
    assert (rows[["step, ms", "scored per s"]] > 0).all(axis=None)
    assert "gain" in stacks.report(rows)


def test_the_benchmark_of_table_1_runs_on_a_processor(t5, mini, mini_tasks, monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import table1

    settings = FamilyTable.from_parameters({**mini, "split_rule": "paper"})
    sizes = table1.published(TASKS["cola"], settings)
    assert sizes == {"train": 8551 - 855, "dev": 1043, "test": 855}
    task = mini_tasks["topic"]
    paces = [table1.paces(settings, t5, task, batch=4, stack=stack, steps=1) for stack in (1, 2)]
    assert all(one["step, ms"] > 0 and one["scored per s"] > 0 for one in paces)
    assert paces[0]["tokens"] == paces[1]["tokens"]
    rows = pd.DataFrame([{"device": "cpu", "source": 1, "target": 2, "hours from": 1.5, "to": 3.0}])
    assert table1.report(rows).endswith("3 finetunings in 1.5 to 3.0 hours: 1 to 2 per hour")


def test_bf16_is_stacked_as_well(t5, opened, exact):
    """Within what bf16 rounds to."""
    half = replace(exact, precision="bf16")
    for (outcome, history, _), (own, theirs, _) in zip(
        as_one(t5, opened, half, [0, 1]), alone(t5, opened, half, [0, 1]), strict=True
    ):
        assert outcome["steps"] == own["steps"]
        for row, right in zip(history, theirs, strict=True):
            assert row["loss"] == pytest.approx(right["loss"], rel=1e-3)
    single = next(alone(t5, opened, exact, [0]))
    assert single[1][0]["loss"] != next(alone(t5, opened, half, [0]))[1][0]["loss"]
    stacked_half = next(as_one(t5, opened, half, [0, 1]))
    assert stacked_half[1][0]["loss"] != next(as_one(t5, opened, exact, [0, 1]))[1][0]["loss"]
