"""Straight lines between models, fitted heads, and the geometry of updates."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fusinglib.errors import InputError
from fusinglib.fusion import engine, geometry
from fusinglib.fusion.geometry import Updates
from fusinglib.training import data, models
from fusinglib.training.finetuning import finetune, linear_probe


@pytest.fixture(params=["t5", "tied_t5", "encoder"])
def pair(request, tmp_path, mini_tasks, training, how):
    """A folder, one of the same model finetuned for a moment, and how to open either."""
    folder = request.getfixturevalue(request.param)
    loaded = data.load(mini_tasks["mood"], how)

    def opened(path):
        return models.load(path, loaded.task, training, how, seed=0, device="cpu")

    model = opened(folder)
    finetune(model, model.encode(loaded.train), model.encode(loaded.dev), training, seed=0)
    model.save(tmp_path / "finetuned")
    return folder, tmp_path / "finetuned", opened


def state(model):
    return {name: tensor.clone() for name, tensor in model.body.state_dict().items()}


def test_a_line_begins_and_ends_in_its_ends_bit_for_bit(pair):
    start, end, opened = pair
    last = state(opened(end))
    for position, expected in [(0, state(opened(start))), (1, last)]:
        model = opened(start)
        models.interpolate(model, opened(end), position)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in state(model).items())
    assert any(not torch.equal(tensor, last[name]) for name, tensor in state(opened(start)).items())


def test_a_quarter_of_the_way_is_three_quarters_and_one(pair):
    start, end, opened = pair
    model, first, last = opened(start), state(opened(start)), state(opened(end))
    models.interpolate(model, opened(end), 0.25)
    for name, tensor in state(model).items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * last[name])


def test_halfway_is_the_mean(pair, tmp_path):
    start, end, opened = pair
    engine.fuse([start, end], tmp_path / "mean")
    model, expected = opened(start), state(opened(tmp_path / "mean"))
    models.interpolate(model, opened(end), 0.5)
    for name, tensor in state(model).items():
        torch.testing.assert_close(tensor, expected[name])


def test_a_head_is_fitted_for_all_steps_and_the_body_stays(encoder, mini_tasks, training, how):
    loaded = data.load(mini_tasks["mood"], how)
    usual = replace(
        training, dropout=0.0, max_steps=7, eval_every=2, patience=2, learning_rate=0.01
    )

    def fitted(seed):
        model = models.load(encoder, loaded.task, usual, how, seed=seed, device="cpu")
        before = state(model), {n: p.clone() for n, p in model.network.named_parameters()}
        linear_probe(model, model.encode(loaded.train), model.encode(loaded.dev), usual, seed)
        after = state(model)
        assert all(torch.equal(after[name], tensor) for name, tensor in before[0].items())
        moved = {n for n, p in model.network.named_parameters() if not torch.equal(p, before[1][n])}
        assert moved == {"classifier.weight", "classifier.bias"}
        return model.network.classifier.weight.detach()

    one = fitted(0)
    assert torch.equal(one, fitted(0)) and not torch.equal(one, fitted(1))


def test_inner_products_are_those_of_all_weights(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("fusinglib.fusion.streaming.CHUNK", 1000)
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 12000)
    start, end, opened = pair
    engine.fuse([start, end], tmp_path / "mean")
    folders = [start, end, tmp_path / "mean"]
    weights = [
        np.concatenate([p.detach().double().numpy().ravel() for p in opened(f).body.parameters()])
        for f in folders
    ]
    differences = np.stack(weights) - weights[0]
    found = geometry.updates(start, folders, ["start", "end", "mean"])
    np.testing.assert_allclose(found.products, differences @ differences.T, rtol=1e-9, atol=1e-12)
    assert found.origin == pytest.approx(np.linalg.norm(weights[0]))
    assert found.products[1, 1] > 0 and found.products[0, 0] == 0
    assert found.cosines[1, 2] == pytest.approx(1)  # the mean lies on the line
    assert np.isnan(found.cosines[0]).all()
    mixed = found.mixed([0.5, 0.5, 0.0], "half")
    expected = [*found.products[2], found.products[2, 2]]
    np.testing.assert_allclose(mixed.products[3], expected, rtol=1e-5)


def test_updates_of_models_that_do_not_fit_are_refused(t5, tied_t5):
    with pytest.raises(InputError, match="differ|missing|shape|ties its output embeddings"):
        geometry.updates(t5, [tied_t5])


def updates_of(weights) -> Updates:
    return Updates([f"m{i}" for i in range(len(weights))], weights @ weights.T, 2.0)


def test_distances_and_cosines_by_hand():
    found = updates_of(np.array([[0.0, 0, 0], [3, 0, 0], [0, 4, 0]]))
    np.testing.assert_allclose(found.distances, [[0, 3, 4], [3, 0, 5], [4, 5, 0]])
    assert found.cosines[1, 2] == 0 and found.cosines[1, 1] == 1
    assert found.norms.tolist() == [0, 3, 4] and found.rows()[1]["norm"] == 1.5


def test_two_dimensions_keep_all_that_is_flat_and_two_thirds_of_a_tetrahedron():
    flat = updates_of(np.array([[0.0, 0, 0], [3, 1, 0], [1, 4, 0], [2, 2, 0]]))
    places, share = flat.plane()
    assert share == pytest.approx(1)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    np.testing.assert_allclose(apart, flat.distances, atol=1e-7)
    assert updates_of(np.eye(4)).plane()[1] == pytest.approx(2 / 3)


def test_models_out_of_line_are_told():
    far = updates_of(np.array([[1.0, 0, 0], [1, 0.1, 0], [1, 0, 0.2], [9, 0, 0]]))
    assert list(far.out_of_line()) == ["m3"] and "another ancestor" in far.out_of_line()["m3"]
    away = updates_of(np.array([[1.0, 0], [1, 0.1], [-1, 0]]))
    assert away.out_of_line() == {"m2": "its update points away from all the others"}
