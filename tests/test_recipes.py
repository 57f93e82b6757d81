"""mergekit's recipes: the same fuse as by arguments, and what is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_engine import make_bert, same_bits, save_all

from fusinglib import fuse
from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.fusion import methods, recipes, varying


@pytest.fixture
def models(tmp_path):
    """Three models and their ancestor, the first."""
    return [str(folder) for folder in save_all(tmp_path, [make_bert(seed) for seed in range(4)])]


def written(tmp_path, **said):
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(said))
    return file


def rows(models, *weights, **parameters):
    return [
        {"model": model, "parameters": {"weight": weight, **parameters}}
        for model, weight in zip(models, weights, strict=True)
    ]


CASES = {
    "linear": ({}, {"method": "weighted"}),
    "task_arithmetic": ({"lambda": 0.7}, {"method": "task_arithmetic", "scale": 0.7}),
    "ties": ({"density": 0.4}, {"method": "ties", "density": 0.4}),
    "ties by default": ({}, {"method": "ties", "density": 1.0}),
    "dare_linear": ({"density": 0.5}, {"method": "dare", "density": 0.5}),
    "dare_ties": ({"density": 0.5, "normalize": False}, {"method": "dare_ties", "density": 0.5}),
    "breadcrumbs": ({"density": 0.8, "gamma": 0.1},
                    {"method": "breadcrumbs", "density": 0.8, "gamma": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_recipe_is_the_fuse_that_it_says(models, tmp_path, case, dtype, capsys):
    shared, arguments = CASES[case]
    method = case.split()[0]
    base = {} if method == "linear" else {"base_model": models[0]}
    file = written(
        tmp_path, merge_method=method, models=rows(models[1:], 1.0, 0.5, 2.0), parameters=shared,
        **base, **({"dtype": dtype} if dtype else {}),
    )  # fmt: skip
    assert main(["fuse", str(file), "--output", str(tmp_path / "out")]) == 0
    pretrained = {} if method == "linear" else {"pretrained": models[0]}
    fuse(models[1:], tmp_path / "same", weights=[1.0, 0.5, 2.0], dtype=dtype or "", progress=False,
         **pretrained, **arguments)  # fmt: skip
    made, wanted = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "same"))
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)


def test_slerp_goes_from_the_base_to_the_other(models, tmp_path):
    listed = [{"model": models[0]}, {"model": models[1]}]
    file = written(tmp_path, merge_method="slerp", base_model=models[1], models=listed,
                   parameters={"t": 0.3})  # fmt: skip
    assert recipes.read(file) == {
        "models": [models[1], models[0]], "method": "slerp", "dtype": "", "weights": [0.7, 0.3],
        "straight": 0.9995,
    }  # fmt: skip


def test_model_stock_needs_no_weights(models, tmp_path):
    listed = [{"model": model} for model in models[1:]]
    file = written(tmp_path, merge_method="model_stock", base_model=models[0], models=listed)
    assert recipes.read(file) == {
        "models": models[1:], "method": "model_stock", "dtype": "", "pretrained": models[0]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slices": []}, "slices is not supported"),
        ({"tokenizer_source": "union"}, "tokenizer_source is not supported"),
        ({"experts": []}, "experts is not supported"),
        ({"out_dtype": "float16"}, "out_dtype is not supported"),
        ({"merge_method": "passthrough"}, "merge_method is 'passthrough': expected linear"),
        ({"merge_method": "ties"}, "base_model is missing"),
        ({"models": []}, "models is .*: expected a list of `model: name`"),
        ({"models": ["a"]}, "expected a list of `model: name`"),
        ({"parameters": {"rescale": True}}, "rescale: True is not supported for linear"),
        ({"parameters": {"density": 0.5}}, "density is not supported for linear; expected weight"),
        ({"parameters": {"normalize": False}}, "normalize: False is not supported for linear"),
        ({"parameters": {"temperature": 1}}, "parameter temperature is not supported"),
        ({"dtype": "int8"}, "dtype is 'int8': expected float64"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(models, tmp_path, change, said):
    start = {"merge_method": "linear", "models": rows(models[1:], 1.0, 1.0, 1.0)}
    file = written(tmp_path, **{**start, **change})
    with pytest.raises(InputError, match=said):
        fuse(dry_run=True, **recipes.read(file))


def test_a_recipe_replaces_options(models, tmp_path, capsys):
    file = written(tmp_path, merge_method="linear", models=rows(models[1:], 1.0, 1.0, 1.0))
    for more in (["--method", "ties"], ["--weights", "1,2"], [models[0]], ["--dtype", "float16"]):
        assert main(["fuse", str(file), *more, "--dry-run"]) == 2
        assert "a recipe says which models are fused" in capsys.readouterr().err
    (tmp_path / "bad.yml").write_text("- [")
    assert main(["fuse", str(tmp_path / "bad.yml"), "--dry-run"]) == 2
    assert "expected a mergekit recipe" in capsys.readouterr().err


# Values that vary between tensors, layers and models.


def test_layers_are_counted_from_0_to_1_in_each_stack():
    stack = [f"encoder.block.{i}.layer.1.w" for i in range(3)]
    names = ["shared", *stack, "decoder.block.0.layer.1.w", "encoder.final.w"]
    found = varying.depths(names)
    assert [found[name] for name in names] == [0, 0, 0.5, 1, 1, 0]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (0.3, [0.3, 0.3, 0.3]),
        ([0, 1], [0, 0.5, 1]),
        ([0, 1, 0.5], [0, 1, 0.5]),
        ([{"filter": "attention", "value": 0.2}, {"value": [1, 3]}], [0.2, 2, 3]),
        ([{"filter": "attention", "value": [2, 4]}, {"filter": "*", "value": 0}], [2, 0, 0]),
        ([{"filter": "attention", "value": 1}], [1, None, None]),
    ],
)
def test_a_value_for_every_tensor(said, wanted):
    places = [("0.attention.w", 0.0), ("1.mlp.w", 0.5), ("2.mlp.w", 1.0)]
    assert [varying.at(said, name, depth) for name, depth in places] == wanted


@pytest.mark.parametrize(
    "said", ["x", [], [1, "x"], [{"value": "x"}], [{"filter": 3, "value": 1}], {"value": 1}, True,
             [{"filter": "a"}], [{"value": 1, "more": 2}], None],
)  # fmt: skip
def test_what_is_no_value_is_refused(models, said):
    with pytest.raises(InputError, match="expected a number; a list of numbers, from the first"):
        fuse(models, dry_run=True, method="weighted", weights=[said, 1, 1, 1])


VARIED = [[0, 0.5, 1], [{"filter": "attention", "value": 0.2}, {"value": 1.5}], 1.0]


def parts_of(models, tmp_path, method, weights_of, **how):
    """A fuse in which every tensor has its own weights, made of fuses with one weight for all."""
    made = {}
    for name in load_file(f"{models[0]}/model.safetensors"):
        out = tmp_path / f"part-{len(made)}"
        fuse(models[1:], out, method=method, weights=weights_of(name), progress=False, **how)
        made[name.removeprefix("bert.")] = load_file(out / "model.safetensors")
    return {name: found[name] for name, found in made.items() if name in found}


@pytest.mark.parametrize("method", ["weighted", "task_arithmetic", "ties", "dare_ties"])
def test_every_tensor_has_its_own_weights(tmp_path, method):
    models = save_all(tmp_path, [make_bert(seed, num_hidden_layers=2) for seed in range(4)])
    how = {} if method == "weighted" else {"pretrained": models[0]}
    fuse(models[1:], tmp_path / "out", method=method, weights=VARIED, progress=False, **how)

    def weights_of(name):
        first = 1.0 if "layer.1." in name else 0.0
        return [first, 0.2 if "attention" in name else 1.5, 1.0]

    made = load_file(tmp_path / "out" / "model.safetensors")
    wanted = parts_of(models, tmp_path, method, weights_of, **how)
    assert made.keys() == wanted.keys() and all(same_bits(made[n], wanted[n]) for n in made)


@pytest.mark.parametrize("method", ["ties", "dare", "dare_ties", "breadcrumbs"])
def test_densities_may_differ_between_models(models, tmp_path, method):
    """One model's own density is that of a fuse in which the others weigh nothing."""
    how = {"method": method, "pretrained": models[0], "progress": False}
    each = {"each": [0.3, [0.5, 1.0], [{"filter": "dense", "value": 0.9}, {"value": 0.2}]]}
    fuse(models[1:], tmp_path / "out", weights=[0, 0, 1], density=each, **how)
    same = [{"filter": "dense", "value": 0.9}, {"value": 0.2}]
    fuse(models[1:], tmp_path / "same", weights=[0, 0, 1], density=same, **how)
    made, wanted = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "same"))
    for name in made:
        np.testing.assert_allclose(made[name].numpy(), wanted[name].numpy(), rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"weights": [[{"filter": "dense", "value": 1}], 1, 1]},
         "weight of model 1 has no value for tensor .*: add one without a filter"),
        ({"weights": [[0, 1], 0, 0]}, "weights for tensor .*: their sum must not be zero"),
        ({"method": "ties", "density": {"each": [1, 1]}}, "expected a list of 3 values, one per"),
        ({"method": "ties", "density": [0.5, 1.5]}, "density is 1.5: expected a number above 0"),
        ({"method": "ties", "scale": {"each": [1, 1, 1]}}, "scale is .*: expected a number; a li"),
    ],
)  # fmt: skip
def test_values_that_fit_no_tensor_are_refused(models, how, said):
    pretrained = models[0] if how.get("method") else None
    with pytest.raises(InputError, match=said):
        fuse(models[1:], dry_run=True, pretrained=pretrained, **{"method": "weighted", **how})


def test_the_values_of_a_recipe_are_those_of_mergekit(models, tmp_path):
    """A model's filters come first, then what all share, then mergekit's default."""
    listed = rows(models[1:3], [{"filter": "mlp", "value": "1e-1"}], 0.3)
    listed[0]["parameters"]["density"] = [1, 0.7, 0.1]
    listed.append({"model": models[3]})
    file = written(tmp_path, merge_method="ties", base_model=models[0], models=listed,
                   parameters={"weight": [0, 1], "lambda": 0.7, "int8_mask": True})  # fmt: skip
    assert recipes.read(file) == {
        "models": models[1:], "method": "ties", "dtype": "", "pretrained": models[0], "scale": 0.7,
        "weights": [[{"filter": "mlp", "value": 0.1}, {"value": [0, 1]}], 0.3, [0, 1]],
        "density": {"each": [[1, 0.7, 0.1], 1.0, 1.0]},
    }  # fmt: skip


def test_slerp_goes_another_way_in_every_layer(models, tmp_path):
    listed = [{"model": models[0]}, {"model": models[1]}]
    position = [{"filter": "attention", "value": [0, 0.5, 1]}, {"value": 0.5}]
    file = written(tmp_path, merge_method="slerp", base_model=models[0], models=listed,
                   parameters={"t": position})  # fmt: skip
    said = recipes.read(file)
    assert said["weights"][0] == [
        {"filter": "attention", "value": [1, 0.5, 0]}, {"value": 0.5}
    ] and said["weights"][1] == position  # fmt: skip
    fuse(said.pop("models"), tmp_path / "out", progress=False, **said)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_our_own_options_are_read_for_every_method(models, tmp_path, method):
    said = {"merge_method": method, "models": rows(models[:2], 1, 1), "heads": True, "untie": True}
    said |= {"base_model": models[0], "parameters": {"t": 0.5}} if method == "slerp" else {}
    found = recipes.read(written(tmp_path, **said))
    assert found["heads"] and found["untie"]


def test_linear_takes_the_base_among_its_models_as_one_of_them(models, tmp_path):
    said = {"merge_method": "linear", "base_model": models[0]}
    file = written(tmp_path, models=rows(models, 1, 2, 3, 4), **said)
    assert recipes.read(file)["models"] == models
    with pytest.raises(InputError, match="linear takes no base_model besides its models"):
        recipes.read(written(tmp_path, models=rows(models[1:], 1, 2, 3), **said))


# Every fused folder holds its own recipe.

MADE = {
    "mean": {}, "weighted": {"weights": VARIED}, "weighted by numbers": {"weights": [3, 1, 2]},
    "task_arithmetic": {"scale": 0.3}, "ties": {"density": {"each": [0.2, [0.3, 1], 0.5]}},
    "dare": {"density": 0.4, "seed": 3}, "dare_ties": {"weights": [1, 2, 3], "seed": 1},
    "breadcrumbs": {"gamma": 0.1, "density": [0.5, 0.8]}, "model_stock": {}, "scaled": {"which": 2},
    "placebo": {"seed": 7}, "slerp": {"weights": [0.3, 0.4]}, "bfloat16": {"dtype": "bfloat16"},
    "varied slerp": {"weights": [[0.2, 0.4], [0.8, 0.6]], "straight": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
def test_a_fused_folder_is_made_again_from_its_recipe(models, tmp_path, case, monkeypatch, capsys):
    words = {"by", "numbers", "varied", "bfloat16"}
    method = " ".join(word for word in case.split() if word not in words) or "mean"
    with_base = methods.METHODS[method].with_base
    used = models[1:3] if method == "slerp" else models[1:]
    out = tmp_path / "made" / "one"
    fuse(used, out, method=method, pretrained=models[0] if with_base else None, progress=False,
         **MADE[case])  # fmt: skip
    monkeypatch.chdir("/")
    again = tmp_path / "made" / "again"
    assert main(["fuse", str(out / "recipe.yml"), "--output", str(again)]) == 0
    for file in out.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    text = (out / "recipe.yml").read_text()
    assert "../../" in text and str(tmp_path) not in text


def test_files_of_a_recipe_are_found_from_the_recipe(models, tmp_path, monkeypatch):
    shapes = {n: t.shape for n, t in load_file(f"{models[1]}/model.safetensors").items()}
    names = [name for name in shapes if "dense.weight" in name and name.startswith("bert.")]
    for number in range(2):
        gram = {n.removeprefix("bert."): torch.eye(shapes[n][1]) * (number + 1) for n in names}
        save_file(gram, tmp_path / f"g{number}")
    monkeypatch.chdir(tmp_path)
    how = {"method": "regmean", "gram": ["g0", "g1"], "alpha": 0.5, "progress": False}
    fuse(models[1:3], tmp_path / "out", **how)
    monkeypatch.chdir("/")
    said = recipes.read(tmp_path / "out/recipe.yml")
    assert [Path(file).resolve() for file in said["gram"]] == [tmp_path / "g0", tmp_path / "g1"]
    fuse(output=tmp_path / "again", progress=False, **said)
    made, again = (load_file(tmp_path / n / "model.safetensors") for n in ("out", "again"))
    assert all(same_bits(made[name], again[name]) for name in made)


def test_a_function_of_ones_own_leaves_no_recipe(models, tmp_path):
    fuse(models, tmp_path / "out", method=lambda tensors, weights, base: tensors[0], progress=False)
    assert not (tmp_path / "out" / "recipe.yml").exists()
