"""Pretraining: span corruption, the untied head through a round trip, determinism."""

import random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from fusinglib.errors import InputError
from fusinglib.training import miniworld, pretraining

EOS = 1


@pytest.mark.parametrize("length", [2, 3, 4, 8, 20, 35])
def test_corruption_keeps_the_document(length):
    document = list(range(10, 10 + length))
    for seed in range(200):
        inputs, targets = pretraining.corrupt(document, random.Random(seed), EOS)
        assert inputs.pop() == targets.pop() == EOS
        assert sorted(inputs + targets) == document
        assert inputs == sorted(inputs) and targets == sorted(targets)
        assert len(targets) == max(1, round(length * 0.25))


def test_corruption_of_a_small_case():
    seen = {
        tuple(map(tuple, pretraining.corrupt([11, 12, 13, 14], random.Random(i), EOS)))
        for i in range(50)
    }
    assert seen == {
        ((12, 13, 14, 1), (11, 1)),
        ((11, 13, 14, 1), (12, 1)),
        ((11, 12, 14, 1), (13, 1)),
        ((11, 12, 13, 1), (14, 1)),
    }


@pytest.mark.parametrize("length", [2, 3, 20])
def test_cut_documents_are_whole_and_begin_with_their_first_half(length):
    document = list(range(10, 10 + length))
    cuts = set()
    for seed in range(300):
        inputs, targets = pretraining.cut(document, random.Random(seed), EOS)
        assert inputs[-1] == targets[-1] == EOS
        assert inputs[:-1] + targets[:-1] == document
        cuts.add(len(inputs) - 1)
    assert cuts == set(range(length // 2, length))


def test_head_stays_untied_through_round_trips(tmp_path):
    model = pretraining.new_model(miniworld.tokenizer(), seed=0).eval()
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.decoder.embed_tokens.weight is model.shared.weight
    ids = torch.tensor([[30, 31, 32, 1]])
    expected = model(input_ids=ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
    for trip in ("one", "two"):
        model.save_pretrained(tmp_path / trip)
        again = T5ForConditionalGeneration.from_pretrained(tmp_path / trip).eval()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name
        logits = again(input_ids=ids, decoder_input_ids=torch.zeros(1, 1, dtype=torch.long)).logits
        assert torch.equal(logits, expected)
        model = again


def test_new_model_depends_on_its_seed_alone():
    tokenizer = miniworld.tokenizer()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, two, other = (pretraining.new_model(tokenizer, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.shared.weight, two.shared.weight)
    assert not torch.equal(one.shared.weight, other.shared.weight)


def test_pretraining_is_deterministic_and_learns(tmp_path):
    calls = []
    arguments = {"world_seed": 0, "seed": 1, "steps": 55}
    first = pretraining.pretrain(
        tmp_path / "a", report=lambda *values: calls.append(values), **arguments
    )
    second = pretraining.pretrain(tmp_path / "b", **arguments)
    assert first["loss"] == second["loss"]
    assert first["loss"][-1][1] < first["loss"][0][1]
    assert [call[:2] for call in calls] == [(50, 55), (55, 55)]
    one, two = (load_file(tmp_path / folder / "model.safetensors") for folder in "ab")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    text = "the baker sold the bread ."
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert loaded(text)["input_ids"] == miniworld.tokenizer()(text)["input_ids"]


def test_zero_steps_give_the_untrained_model(tmp_path):
    result = pretraining.pretrain(tmp_path, world_seed=0, seed=3, steps=0)
    assert result["loss"] == []
    model = pretraining.new_model(miniworld.tokenizer(), 3)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], model.lm_head.weight)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"steps": -1}, {"world_seed": -1}])
def test_bad_input(bad, tmp_path):
    with pytest.raises(InputError, match="expected a whole number"):
        pretraining.pretrain(tmp_path, **{"world_seed": 0, "seed": 0, "steps": 1, **bad})
