"""mergekit's recipes: the same fuse as by arguments, and what is refused by name."""

import pytest
import yaml
from safetensors.torch import load_file
from test_engine import make_bert, same_bits, save_all

from fusinglib import fuse
from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.fusion import recipes


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
        "models": [models[1], models[0]], "method": "slerp", "dtype": "", "weights": [0.7, 0.3]
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
        ({"models": rows(["a"], [0, 0.5, 1])}, "weight is .*: values that vary between layers"),
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
