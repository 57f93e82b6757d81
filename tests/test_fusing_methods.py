"""Methods of fusing: each against its formula in float64, and against peft's own functions."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fusinglib import fuse
from fusinglib.errors import InputError
from fusinglib.fusion import measures, methods
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.fusion.streaming import Chunk

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHAPES = {"a.weight": (37, 11), "b": (5,), "c.0.weight": (3, 4, 5), "scalar": ()}


def write(folder, tensors):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


@pytest.fixture(params=list(DTYPES))
def models(request, tmp_path):
    """Files of three models and of their ancestor (the last), all of one dtype."""
    dtype, files = DTYPES[request.param], []
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    for i in range(4):
        size = 0.1 * (i < 3)
        tensors = {
            name: (t + size * torch.randn(t.shape, generator=generator, dtype=torch.float64))
            for name, t in base.items()
        }
        write(tmp_path / f"m{i}", {name: t.to(dtype) for name, t in tensors.items()})
        files.append(tmp_path / f"m{i}" / "model.safetensors")
    return files


def double(file):
    return {name: tensor.double().numpy() for name, tensor in load_file(file).items()}


def expect(models, output, formula, places=8):
    """Compare a fused file with `formula(tensors, base, name)` in float64: within the rounding of
    the dtype, and of `places` operations in the dtype that is computed in."""
    found = load_file(output / "model.safetensors")
    inputs = [double(file) for file in models]
    for name, tensor in found.items():
        tensors, base = [model[name] for model in inputs[:-1]], inputs[-1][name]
        largest = max(np.abs(part).max() for part in [*tensors, base])
        computed = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        allowed = 3 * places * torch.finfo(computed).eps * largest
        expected = formula(tensors, base, name)
        allowed = allowed + torch.finfo(tensor.dtype).eps * np.abs(expected) / 2 * 1.01
        assert (np.abs(tensor.double().numpy() - expected) <= allowed).all(), name


def trimmed(update, density):
    """The numbers of the largest magnitudes, equal ones all."""
    ranked = np.sort(np.abs(update).ravel())[::-1]
    return np.where(np.abs(update) >= ranked[max(int(density * update.size), 1) - 1], update, 0)


def single(values, like):
    """Rounded as the engine rounds differences: in float32 unless the models are float64."""
    return values if like == torch.float64 else values.astype(np.float32)


def test_mean(models, tmp_path):
    fuse(models[:3], tmp_path / "out", progress=False)
    expect(models, tmp_path / "out", lambda tensors, base, name: sum(tensors) / 3)


@pytest.mark.parametrize("weights", [[1, 2, 5], [0.5, 0, 0.25], [2, -0.5, 1]])
def test_weighted(models, tmp_path, weights):
    options = {"method": "weighted", "weights": weights, "progress": False}
    report = fuse(models[:3], tmp_path / "out", **options)
    assert sum(report.weights) == pytest.approx(1)
    total = sum(weights)

    def formula(tensors, base, name):
        return sum(w / total * t for w, t in zip(weights, tensors, strict=True))

    expect(models, tmp_path / "out", formula)


def test_task_arithmetic(models, tmp_path):
    options = {"method": "task_arithmetic", "pretrained": models[3], "progress": False}
    fuse(models[:3], tmp_path / "out", weights=[1, 0.5, -1], scale=0.7, **options)

    def formula(tensors, base, name):
        return base + 0.7 * sum(w * (t - base) for w, t in zip([1, 0.5, -1], tensors, strict=True))

    expect(models, tmp_path / "out", formula)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties(models, tmp_path, density):
    weights = np.array([1, 0.5, 2])
    options = {"pretrained": models[3], "density": density, "scale": 0.8, "progress": False}
    fuse(models[:3], tmp_path / "out", method="ties", weights=weights, **options)
    dtype = load_file(models[0])["b"].dtype

    def formula(tensors, base, name):
        updates = [trimmed(single(t - base, dtype), density).astype(float) for t in tensors]
        weighted = [w * u for w, u in zip(weights, updates, strict=True)]
        sign = np.sign(sum(weighted))
        agree = [(np.sign(u) == sign) & (sign != 0) for u in updates]
        total = sum(u * a for u, a in zip(weighted, agree, strict=True))
        count = sum(w * a for w, a in zip(weights, agree, strict=True))
        return base + 0.8 * total / np.where(count, count, 1)

    expect(models, tmp_path / "out", formula)


def test_dare(models, tmp_path):
    options = {"pretrained": models[3], "density": 0.4, "progress": False}
    for seed in (0, 0, 1):
        folder = tmp_path / f"out{seed}{len(list(tmp_path.iterdir()))}"
        fuse(models[:3], folder, method="dare", seed=seed, weights=[0.5] * 3, **options)

        def formula(tensors, base, name, seed=seed):
            piece = Chunk(name, 0, base.size, [])
            kept = [measures.random(seed, i, piece).reshape(base.shape) < 0.4 for i in range(3)]
            return base + sum(
                0.5 * k * (t - base) / 0.4 for k, t in zip(kept, tensors, strict=True)
            )

        expect(models, folder, formula, places=16)


def test_draws_are_fair_and_do_not_depend_on_the_cut():
    whole = measures.random(3, 1, Chunk("x", 0, 2**18, []))
    parts = [measures.random(3, 1, Chunk("x", i * 2**16, (i + 1) * 2**16, [])) for i in range(4)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert abs((whole < 0.3).mean() - 0.3) < 5 * np.sqrt(0.21 / whole.size)
    for other in [(4, 1, "x"), (3, 2, "x"), (3, 1, "y")]:
        drawn = measures.random(*other[:2], Chunk(other[2], 0, 2**18, []))
        assert abs(np.corrcoef(whole, drawn)[0, 1]) < 5 / np.sqrt(whole.size)


@pytest.mark.parametrize("position", [0.0, 0.3, 1.0])
def test_slerp(models, tmp_path, position):
    weights = [1 - position, position]
    fuse(models[:2], tmp_path / "out", method="slerp", weights=weights, progress=False)

    def formula(tensors, base, name):
        one, two = tensors[0], tensors[1]
        cosine = (one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum())
        angle = np.arccos(np.clip(cosine, -1, 1))
        if np.sin(angle) < 1e-9:
            return weights[0] * one + weights[1] * two
        parts = np.sin(np.array(weights) * angle) / np.sin(angle)
        return parts[0] * one + parts[1] * two

    expect([*models[:2], models[3]], tmp_path / "out", formula, places=16)


def test_fisher(models, tmp_path):
    random, files = np.random.default_rng(0), []
    for i in range(3):
        values = {
            name: random.random(shape).astype(np.float32) ** 4 for name, shape in SHAPES.items()
        }
        values["b"][:2] = 0
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}
        files.append(write(tmp_path / f"f{i}", tensors))
    options = {"method": "fisher", "fisher": files, "weights": [1, 2, 1], "progress": False}
    fuse(models[:3], tmp_path / "out", **options)
    known = [double(file) for file in files]

    def formula(tensors, base, name):
        parts = [w * f[name] for w, f in zip([1, 2, 1], known, strict=True)]
        total = sum(parts)
        top = sum(p * t for p, t in zip(parts, tensors, strict=True))
        plain = (tensors[0] + 2 * tensors[1] + tensors[2]) / 4
        return np.where(total > 0, top / np.where(total > 0, total, 1), plain)

    expect(models, tmp_path / "out", formula, places=16)
    with pytest.raises(InputError, match="fisher has 2 files"):
        fuse(models[:3], tmp_path / "no", method="fisher", fisher=files[:2])
    with pytest.raises(InputError, match="needs the setting fisher"):
        fuse(models[:3], tmp_path / "no", method="fisher")


def grams(tmp_path, count, shapes=SHAPES, seed=0):
    """Files of Gram matrices of random inputs, some of which are never used."""
    random, files = np.random.default_rng(seed), []
    tmp_path.mkdir(exist_ok=True)
    for i in range(count):
        found = {}
        for name, shape in shapes.items():
            if len(shape) == 2:
                inputs = random.standard_normal((50, shape[1]))
                inputs[:, :2] = 0
                found[name] = torch.from_numpy((inputs.T @ inputs / 50).astype(np.float32))
        files.append(write(tmp_path / f"g{i}", found))
    return files


def regmean(tensors, gram, weights, alpha):
    """Float64, one row after the other."""
    plain = sum(w * t for w, t in zip(weights, tensors, strict=True)) / sum(weights)
    if gram is None:
        return plain
    total = [w * (alpha * g + (1 - alpha) * np.diag(np.diag(g)))
             for w, g in zip(weights, gram, strict=True)]  # fmt: skip
    used, found = np.diag(sum(total)) > 0, plain.copy()
    inverse = np.linalg.inv(sum(total)[np.ix_(used, used)])
    for row in range(len(plain)):
        top = sum(g @ t[row] for g, t in zip(total, tensors, strict=True))
        found[row, used] = inverse @ top[used]
    return found


@pytest.mark.parametrize("alpha", [0.9, 0.0])
@pytest.mark.parametrize("weights", [None, [1, 2, 4]])
def test_regmean(models, tmp_path, weights, alpha):
    files = grams(tmp_path, 3)
    fuse(models[:3], tmp_path / "out", method="regmean", gram=files, weights=weights, alpha=alpha,
         progress=False)  # fmt: skip
    known = [double(file) for file in files]

    def formula(tensors, base, name):
        gram = [matrices[name] for matrices in known] if name in known[0] else None
        return regmean(tensors, gram, weights or [1, 1, 1], alpha)

    expect([*models[:3], models[3]], tmp_path / "out", formula, places=18)


@pytest.mark.parametrize("width", [3, 17, 64, 96])
def test_regmean_takes_whole_rows(tmp_path, width, monkeypatch):
    """Whatever the length of a row and of a chunk."""
    random = np.random.default_rng(1)
    arrays = random.standard_normal((2, 150, width)).astype(np.float32)
    files, gram = make(tmp_path, *arrays), grams(tmp_path, 2, {"x": (150, width)})
    whole = fuse(files, tmp_path / "whole", method="regmean", gram=gram, progress=False)
    monkeypatch.setattr("fusinglib.fusion.streaming.CHUNK", 64)
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 64)
    fuse(files, tmp_path / "parts", method="regmean", gram=gram, progress=False)
    one, other = (load_file(tmp_path / n / "model.safetensors")["x"] for n in ("whole", "parts"))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    wanted = regmean(arrays.astype(float), [double(file)["x"] for file in gram], [1, 1], 0.9)
    np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
    assert whole.cost.startswith("one pass")


def test_regmean_refuses_what_does_not_fit(models, tmp_path):
    how = {"method": "regmean", "progress": False}
    files = grams(tmp_path, 3)
    (extra,) = grams(tmp_path / "extra", 1, {**SHAPES, "y": (2, 3)})
    (tmp_path / "other").mkdir()
    (other,) = grams(tmp_path / "other", 1, {"a.weight": (9, 4)})
    for options, said in (
        ({}, "regmean needs the setting gram"),
        ({"gram": files[:2]}, "gram has 2 files: expected 3"),
        (
            {"gram": [*files[:2], grams(tmp_path / "o", 1, {"a.weight": (9, 4)})[0]]},
            "no Gram matri",
        ),
        ({"gram": [*files[:2], extra]}, "differ in having a Gram matrix for tensor y"),
        ({"gram": files, "alpha": 1}, "alpha is 1: expected a number from 0, below 1"),
        ({"gram": files, "weights": [1, -1, 1]}, "no negative weights"),
    ):
        with pytest.raises(InputError, match=said):
            fuse(models[:3], tmp_path / "out", **how, **options)


@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_are_exact(tmp_path, monkeypatch, density, dtype):
    random = np.random.default_rng(1)
    normal = random.standard_normal(1003)
    values = [normal, random.integers(-3, 4, 1003), np.zeros(1003), 1e-40 * normal, np.zeros(1003)]
    values = [value.astype(dtype) for value in values]
    files = [write(tmp_path / f"m{i}", {"x": torch.from_numpy(v)}) for i, v in enumerate(values)]
    monkeypatch.setattr("fusinglib.fusion.streaming.CHUNK", 64)
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 64)
    found = measures.thresholds(
        [open_checkpoint(f).tensors for f in files],
        {"x": [int(density * 1003)] * 4},
    )["x"]
    ranked = [np.sort(np.abs(v))[::-1][max(int(density * 1003), 1) - 1] for v in values[:-1]]
    assert np.array_equal(found, np.array(ranked, dtype))


METHODS = {
    "mean": {}, "weighted": {"weights": [1, 2, 3]}, "task_arithmetic": {"scale": 0.5},
    "ties": {"density": 0.3}, "dare": {"seed": 4},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_the_cut_into_pieces_leaves_the_bits_alone(models, tmp_path, monkeypatch, method):
    options = {"method": method, "pretrained": models[3], "progress": False, **METHODS[method]}
    fuse(models[:3], tmp_path / "usual", **options)
    monkeypatch.setattr("fusinglib.fusion.streaming.CHUNK", 16)
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 100)
    fuse(models[:3], tmp_path / "small", **options)
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("usual", "small"))
    assert all(torch.equal(one[name], two[name]) for name in SHAPES)


def test_a_function_of_ones_own(models, tmp_path):
    def median(tensors, weights, base, *, shift=0.0):
        return np.median(tensors, axis=0) + tensors[0].dtype.type(shift)

    report = fuse(models[:3], tmp_path / "out", method=median, shift=0.5, progress=False)
    assert report.method == "median" and report.settings == {"shift": 0.5}
    expect(models, tmp_path / "out", lambda t, base, name: np.median(t, axis=0) + 0.5)
    bad = {
        "wrong": lambda tensors, weights, base: tensors[0][:-1],
        "nothing": lambda tensors, weights, base: None,
        "wide": lambda tensors, weights, base: tensors[0].astype(np.complex128),
    }
    before = sorted(tmp_path.iterdir())
    for function in bad.values():
        with pytest.raises(InputError, match="must return an array"):
            fuse(models[:3], tmp_path / "bad", method=function, progress=False)
    with pytest.raises(ZeroDivisionError):
        fuse(models[:3], tmp_path / "bad", method=lambda *a: 1 / 0, progress=False)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "average"}, "Unknown method 'average'"),
        ({"density": 0.5}, "no setting 'density'"),
        ({"method": "ties"}, "needs the pretrained model"),
        ({"method": "ties", "density": 0}, "density"),
        ({"method": "ties", "density": 1.5}, "density"),
        ({"method": "ties", "density": "much"}, "density"),
        ({"method": "dare", "seed": 0.5}, "seed"),
        ({"method": "task_arithmetic", "scale": float("nan")}, "scale"),
        ({"method": "slerp"}, "two models, not 3"),
        ({"weights": [1, 1, 1]}, "takes no weights"),
        ({"method": "weighted", "weights": [1, 1]}, "3 numbers"),
        ({"method": "weighted", "weights": [1, 1, "x"]}, "weight is 'x': expected a number"),
        ({"method": "weighted", "weights": 5}, "3 numbers"),
        ({"method": "weighted", "weights": [1, -1, 0]}, "must not be zero"),
        ({"method": "ties", "weights": [1, -1, 1]}, "no negative weights"),
        ({"method": "fisher", "weights": [1, -1, 1]}, "no negative weights"),
        ({"method": "weighted", "weights": [1, 1, float("inf")]}, "3 numbers"),
    ],
)
def test_what_is_refused(tmp_path, options, words):
    files = [write(tmp_path / f"m{i}", {"x": torch.ones(3) * i}) for i in range(3)]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words):
        fuse(files, tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", [0, 2, 3])
@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_refused_by_every_method(models, tmp_path, method, place):
    tensors = load_file(models[place])
    tensors["a.weight"][36, 10] = float("nan")
    save_file(tensors, models[place])
    options = {"method": method, "pretrained": models[3], **METHODS[method]}
    if method == "mean" and place == 3:
        options.pop("pretrained")
        fuse(models[:3], tmp_path / "out", progress=False, **options)
        return
    with pytest.raises(InputError, match=rf"a.weight of model .*m{place}/.* contains NaN"):
        fuse(models[:3], tmp_path / "out", progress=False, **options)


# Plain properties.


def test_properties_of_one_and_of_equal_models(tmp_path):
    random = torch.Generator().manual_seed(2)
    one = write(tmp_path / "one", {"x": torch.randn(99, generator=random)})
    base = write(tmp_path / "base", {"x": torch.randn(99, generator=random)})
    x = load_file(one)["x"]

    def fused(models, name, **options):
        fuse(models, tmp_path / name, progress=False, **options)
        return load_file(tmp_path / name / "model.safetensors")["x"]

    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "model.safetensors"
    copy.write_bytes(one.read_bytes())
    assert torch.equal(fused([one, copy], "mean"), x)
    assert torch.allclose(fused([one, copy], "slerp", method="slerp"), x, rtol=1e-6)
    ties = fused([one], "ties", method="ties", pretrained=base, density=1.0)
    assert torch.allclose(ties, x, atol=1e-6)
    same = fused([base], "zero", method="ties", pretrained=copy_of(base, tmp_path / "ancestor"))
    assert torch.equal(same, load_file(base)["x"])
    mean = fused([one, base], "m2")
    arithmetic = {"method": "task_arithmetic", "weights": [0.5, 0.5]}
    other = fused([one, base], "ta", pretrained=copy_of(base, tmp_path / "ancestor2"), **arithmetic)
    assert torch.allclose(mean, other, atol=1e-6)


def copy_of(file, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(file.read_bytes())
    return folder / "model.safetensors"


def make(tmp_path, *arrays):
    """Files that hold one tensor, `x`, each."""
    folders = [tmp_path / f"x{len(list(tmp_path.iterdir())) + i}" for i in range(len(arrays))]
    made = [{"x": torch.from_numpy(np.array(array))} for array in arrays]
    return [write(folder, tensors) for folder, tensors in zip(folders, made, strict=True)]


def result(tmp_path, files, name="out", **options):
    fuse(files, tmp_path / name, progress=False, **options)
    return load_file(tmp_path / name / "model.safetensors")["x"].numpy()


NORMAL = np.random.default_rng(0).standard_normal((5, 4, 30)).astype(np.float32)
"""Four models and their ancestor."""


def test_weights_are_normalised(tmp_path):
    files = make(tmp_path, *NORMAL[:2])
    for method in ("weighted", "slerp"):
        one, two = (
            result(tmp_path, files, f"{method}{w}", method=method, weights=w)
            for w in ([1, 3], [2, 6])
        )
        assert np.array_equal(one, two)
    assert np.array_equal(
        result(tmp_path, files, "a", method="weighted", weights=[1, 0]), NORMAL[0]
    )
    extrapolated = result(tmp_path, files, "b", method="weighted", weights=[2, -1])
    assert np.array_equal(extrapolated, 2 * NORMAL[0] - NORMAL[1])


@pytest.mark.parametrize(("weights", "end"), [([1, 0], 0), ([0, 1], 1)])
def test_the_ends_of_an_arc_are_the_models(tmp_path, weights, end):
    found = result(tmp_path, make(tmp_path, *NORMAL[:2]), method="slerp", weights=weights)
    assert np.array_equal(found, NORMAL[end])


@pytest.mark.parametrize("factor", [2.3, 1.0, -1.0, -2.3])
def test_between_parallel_models_the_arc_is_a_straight_line(tmp_path, factor):
    """Many sizes, since an angle near two right ones is known to the root of the rounding only."""
    random = np.random.default_rng(1)
    for i in range(60):
        one = random.standard_normal(random.integers(1, 5000), dtype=np.float32)
        files = make(tmp_path, one, np.float32(factor) * one)
        found = result(tmp_path, files, f"o{i}", method="slerp", weights=[0.75, 0.25])
        np.testing.assert_allclose(found, (0.75 + 0.25 * factor) * one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
def test_models_that_are_their_ancestor(tmp_path, method):
    """Updates of zero; also beside one that is not, which is out of line with nothing."""
    files = make(tmp_path, *[NORMAL[4]] * 3, NORMAL[0])
    options = {"method": method, "pretrained": files[2]}
    assert np.array_equal(result(tmp_path, files[:2], "same", **options), NORMAL[4])
    report = fuse([files[0], files[1], files[3]], tmp_path / "one", progress=False, **options)
    assert [row["norm"] == 0 for row in report.updates] == [True, True, False]


def test_an_ancestor_of_zeros(tmp_path):
    files = make(tmp_path, *NORMAL[:2], 0 * NORMAL[4])
    options = {"method": "task_arithmetic", "pretrained": files[2]}
    found = result(tmp_path, files[:2], **options)
    assert np.array_equal(found, NORMAL[0] + NORMAL[1])


@pytest.mark.parametrize("shape", [(), (1,), (3,), (7, 5), (2 * 2**16 + 5,)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thresholds_of_every_shape(tmp_path, shape, dtype):
    """Exact to the bit: wide ranges, many equal numbers, subnormal ones, several pieces."""
    random = np.random.default_rng(2)
    spread = random.standard_normal(shape) * 10.0 ** random.integers(-44, 38, shape)
    few = random.choice([0, 1, -1, 1e-42], shape)
    values = [np.asarray(v, dtype) for v in (spread, few, np.zeros(shape))]
    bodies = [open_checkpoint(file).tensors for file in make(tmp_path, *values)]
    for density in (1e-9, 0.2, 0.5, 0.999, 1.0):
        found = measures.thresholds(bodies, {"x": [int(density * values[0].size)] * 2})["x"]
        place = max(int(density * values[0].size), 1) - 1
        ranked = [np.sort(np.abs(v).ravel())[::-1][place] for v in values[:2]]
        assert found.tobytes() == np.array(ranked, dtype).tobytes()


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinity_is_refused_by_every_method_by_name(tmp_path, method, place, value):
    """Without a warning of numpy's."""
    arrays = NORMAL[[0, 1, 4]].copy()
    arrays[place, 2, 3] = value
    files = make(tmp_path, *arrays)
    options = {}
    if method == "fisher":
        options = {"fisher": make(tmp_path, *np.abs(NORMAL[:2]))}
    if method == "regmean":
        options = {"gram": make(tmp_path, *[np.eye(NORMAL.shape[2])] * 2)}
    if method == "mean" and place == 2:
        fuse(files[:2], tmp_path / "out", pretrained=files[2], progress=False)
        return  # which takes no part in the result
    with pytest.raises(InputError, match="NaN or infinity") as error:
        fuse(files[:2], tmp_path / "out", method=method, pretrained=files[2], **options)
    assert str(files[place]) in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_information_that_is_none(tmp_path, value):
    known = np.abs(NORMAL[:2])
    known[1, 2, 3] = value
    files, information = make(tmp_path, *NORMAL[:2]), make(tmp_path, *known)
    with pytest.raises(InputError, match="negative or non-finite values in x") as error:
        fuse(files, tmp_path / "out", method="fisher", fisher=information, progress=False)
    assert str(information[1]) in str(error.value) and not (tmp_path / "out").exists()


def test_fisher_is_told_as_json_and_its_files_are_closed(tmp_path):
    files, information = make(tmp_path, *NORMAL[:2]), make(tmp_path, *np.abs(NORMAL[:2]))
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for i in range(3):
        report = fuse(files, tmp_path / f"{i}", method="fisher", fisher=information)
    json.dumps(report.done())
    if opened:
        assert len(os.listdir("/proc/self/fd")) <= opened


@pytest.mark.parametrize("name", ["mean", "slerp", "ties", "fisher"])
def test_a_function_of_ones_own_may_have_any_name(tmp_path, name):
    def first(tensors, weights, base):
        return tensors[0] * np.float32(weights[0])

    first.__name__ = name
    files = make(tmp_path, *NORMAL[:3])
    found = result(tmp_path, files, method=first, weights=[-2, 0, 0])
    assert np.array_equal(found, -2 * NORMAL[0])
    spoilt = make(tmp_path, *NORMAL[:2], np.full((4, 30), np.nan, np.float32))
    with pytest.raises(InputError, match="contains NaN"):
        fuse(spoilt, tmp_path / "bad", method=first, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": None}, "method is None"),
        ({"method": 3}, "method is 3"),
        ({"method": lambda tensors, weights, base, *, power: tensors[0]}, "the setting power"),
        ({"method": "dare", "seed": True}, "seed"),
        ({"method": "ties", "density": True}, "density"),
        ({"method": "dare", "density": float("nan")}, "density"),
        ({"method": "task_arithmetic", "scale": True}, "scale"),
    ],
)
def test_what_is_no_method_and_no_setting(tmp_path, options, words):
    files = make(tmp_path, *NORMAL[:3])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words):
        fuse(files[:2], tmp_path / "out", pretrained=files[2], progress=False, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_files_of_one_folder_are_told_apart(tmp_path):
    for i in range(2):
        save_file({"x": torch.ones(3 + i)}, tmp_path / f"{i}.safetensors")
    files = [tmp_path / f"{i}.safetensors" for i in range(2)]
    with pytest.raises(InputError, match=r"0.safetensors and .*1.safetensors"):
        fuse(files, tmp_path / "out", progress=False)


# The same as peft, where the conventions are the same.


def test_peft_agrees(monkeypatch):
    """peft's ties divides by the number of models that agree, ours by the sum of their weights, so
    they are compared with equal ones; its trimming keeps exactly so many, ours equal ones too."""
    from peft.utils import merge_utils

    random = np.random.default_rng(0)
    base = random.standard_normal((40, 30)).astype(np.float32)
    updates = [0.1 * random.standard_normal((40, 30)).astype(np.float32) for _ in range(3)]
    tensors = [base + update for update in updates]
    updates = [torch.from_numpy(tensor - base) for tensor in tensors]
    weights = np.array([0.5, 1.0, 2.0])

    theirs = merge_utils.task_arithmetic(updates, torch.from_numpy(weights.astype(np.float32)))
    ours = methods.task_arithmetic(tensors, weights, base) - base
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)

    thresholds = np.array([np.sort(np.abs(u.numpy()).ravel())[::-1][599] for u in updates])
    for update, threshold in zip(updates, thresholds, strict=True):
        pruned = merge_utils.prune(update, 0.5, "magnitude")
        assert np.array_equal(pruned != 0, np.abs(update.numpy()) >= threshold)
    random = np.random.default_rng(1).random((3, 40, 30), dtype=np.float32)
    draws = iter(torch.from_numpy((random < 0.3).astype(np.float32)))
    monkeypatch.setattr(torch, "bernoulli", lambda chances: next(draws))
    theirs = merge_utils.dare_linear(updates, torch.from_numpy(weights.astype(np.float32)), 0.3)
    ours = methods.dare(tensors, weights, base, density=0.3, random=random) - base
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-6)

    theirs = merge_utils.ties(updates, torch.ones(3), 0.5)
    ours = methods.ties(tensors, np.ones(3), base, thresholds=thresholds) - base
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)


def test_settings_are_recorded(models, tmp_path):
    from safetensors import safe_open

    fuse(models[:3], tmp_path / "out", method="ties", pretrained=models[3], progress=False)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        metadata = opened.metadata()
    assert metadata["method"] == "ties"
    assert json.loads(metadata["settings"]) == {"density": "0.2", "scale": "1.0"}


# Newer methods, and controls.


def drawn(name, shape, model, seed=0):
    """The uniform numbers of a model's tensor."""
    size = int(np.prod(shape, dtype=int))
    return measures.random(seed, model, Chunk(name, 0, size, [])).reshape(shape)


def updates_of(tensors, base, like):
    """The updates as the engine computes them, in float64."""
    return [single(tensor - base, like).astype(np.float64) for tensor in tensors]


@pytest.mark.parametrize("weights", [None, [1, 0.5, 2]])
def test_dare_ties(models, tmp_path, weights):
    how = {"density": 0.6, "seed": 4, "scale": 0.7}
    fuse(models[:3], tmp_path / "out", method="dare_ties", pretrained=models[3], weights=weights,
         progress=False, **how)  # fmt: skip

    def formula(tensors, base, name):
        kept = [
            (weights or [1, 1, 1])[i] * (tensor - base) * (drawn(name, tensor.shape, i, 4) < 0.6)
            for i, tensor in enumerate(tensors)
        ]
        elected = np.sign(sum(kept))
        return base + 0.7 / 0.6 * sum(u * (np.sign(u) == elected) for u in kept)

    expect(models, tmp_path / "out", formula, places=24)


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.01), (0.3, 0.0), (0.9, 0.3)])
def test_breadcrumbs(models, tmp_path, density, gamma):
    fuse(models[:3], tmp_path / "out", method="breadcrumbs", pretrained=models[3], progress=False,
         density=density, gamma=gamma)  # fmt: skip
    like = load_file(models[0])["b"].dtype

    def formula(tensors, base, name):
        total = np.zeros_like(base)
        for update in updates_of(tensors, base, like):
            ranked = np.sort(np.abs(update).ravel())[::-1]
            kept = int(density * update.size)
            some = min(int(gamma * update.size), update.size - kept)
            low = ranked[max(kept + some, 1) - 1]
            high = ranked[some - 1] if some else np.inf
            total = total + np.where((np.abs(update) >= low) & (np.abs(update) < high), update, 0)
        return base + total

    expect(models, tmp_path / "out", formula, places=24)


def test_model_stock(models, tmp_path):
    fuse(models[:3], tmp_path / "out", method="model_stock", pretrained=models[3], progress=False)

    def formula(tensors, base, name):
        updates = [(tensor - base).ravel() for tensor in tensors]
        cosines = [
            updates[i] @ updates[j] / np.linalg.norm(updates[i]) / np.linalg.norm(updates[j])
            for i, j in ((0, 1), (0, 2), (1, 2))
            if np.linalg.norm(updates[i]) * np.linalg.norm(updates[j]) > 0
        ]
        cosine = max(sum(cosines) / 3, 0)
        ratio = 3 * cosine / (1 + 2 * cosine)
        return ratio * sum(tensors) / 3 + (1 - ratio) * base

    expect(models, tmp_path / "out", formula, places=40)


@pytest.mark.parametrize("which", [0, 2])
def test_scaled_has_the_norm_of_the_mean_and_the_direction_of_one(models, tmp_path, which):
    fuse(models[:3], tmp_path / "out", method="scaled", pretrained=models[3], progress=False,
         which=which)  # fmt: skip
    *parents, base = [double(file) for file in models]
    means = {name: sum(parent[name] for parent in parents) / 3 - base[name] for name in base}
    single_one = {name: parents[which][name] - base[name] for name in base}
    ratio = _norm(means) / _norm(single_one)
    expect(models, tmp_path / "out", lambda t, b, name: b + ratio * single_one[name], places=40)


def test_a_placebo_has_the_mean_updates_norm_in_every_tensor(models, tmp_path):
    for seed in (0, 1):
        fuse(models[:3], tmp_path / f"out{seed}", method="placebo", pretrained=models[3], seed=seed,
             progress=False)  # fmt: skip

    def formula(tensors, base, name):
        norm = np.linalg.norm((sum(tensors) / 3 - base).ravel()) / np.sqrt(base.size)
        return base + norm * np.where(drawn(name, base.shape, 0, 1) < 0.5, 1, -1)

    expect(models, tmp_path / "out1", formula, places=40)
    one, other = (load_file(tmp_path / f"out{seed}/model.safetensors") for seed in (0, 1))
    assert not torch.equal(one["a.weight"], other["a.weight"])


def _norm(tensors) -> float:
    return float(np.sqrt(sum((tensor**2).sum() for tensor in tensors.values())))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "model_stock", "weights": [1, 2, 3]}, "model_stock takes no weights"),
        ({"method": "scaled", "which": 3}, "which is 3: there are 3 models"),
        ({"method": "scaled", "which": 1.5}, "which is 1.5: expected the number of a model"),
        ({"method": "breadcrumbs", "gamma": 1.0}, "gamma is 1.0: expected a number from 0"),
        ({"method": "placebo", "seed": 0.5}, "seed is 0.5: expected a whole number"),
    ],
)
def test_bad_settings_of_newer_methods_are_refused(models, tmp_path, how, said):
    with pytest.raises(InputError, match=said):
        fuse(models[:3], tmp_path / "out", pretrained=models[3], progress=False, **how)


@pytest.mark.parametrize("method", ["dare_ties", "breadcrumbs", "model_stock", "scaled", "placebo"])
def test_newer_methods_do_not_depend_on_how_tensors_are_split(
    models, tmp_path, method, monkeypatch
):
    how = {"method": method, "pretrained": models[3], "progress": False}
    fuse(models[:3], tmp_path / "whole", **how)
    monkeypatch.setattr("fusinglib.fusion.streaming.CHUNK", 8)
    monkeypatch.setattr("fusinglib.fusion.streaming.BUFFER", 64)
    fuse(models[:3], tmp_path / "parts", **how)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)
