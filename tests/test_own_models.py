"""Own models as their makers leave them: checkpoints, adapters, no tokenizer, another kind."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fusinglib import fuse
from fusinglib.errors import InputError
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable, FusePlayground
from fusinglib.study.store import Store
from fusinglib.study.study import Study
from fusinglib.training import folders
from fusinglib.widgets import choice

# peft asks transformers for a name that transformers is about to change
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied after merg"),
]


def moved(base, folder, seed: int, dtype=torch.float32):
    """A copy of the model in `base` with other weights, as if finetuned."""
    shutil.copytree(base, folder)
    torch.manual_seed(seed)
    weights = load_file(base / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            weights[name] = (tensor + 0.01 * torch.randn(tensor.shape)).to(dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def family(mini, base, tmp_path, *members, **changes):
    """The settings of a family table of these models on one target."""
    given = {
        "model": str(base), "seeds": [0], "store": str(tmp_path / "runs"), "sources": ["mine"],
        "families": {"mine": list(map(str, members)), "few": ["emoji"]}, "targets": ["few"],
    }  # fmt: skip
    return FamilyTable.from_parameters({**mini, **given, **changes})


def finished(settings):
    """The plan, its store, and the results, with nothing missing."""
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    results = execute(plan, store, settings)
    assert results["accuracy"].notna().all()
    return plan, store, results


def refusal(settings) -> str:
    """The line with which the plan refuses; nothing has been computed."""
    with pytest.raises(InputError) as caught:
        plan_experiment(settings)
    assert "\n" not in str(caught.value) and not Store(settings.store_folder()).folders()
    return str(caught.value)


def imports(plan, store) -> dict:
    """The weights of all models that a plan brought into the store."""
    runs = [run for run in plan.runs if run.kind == "import"]
    return {run.label: load_file(store.model(run) / "model.safetensors") for run in runs}


# Tokenizers.


@pytest.mark.parametrize("kind", ["encoder", "t5"])
@pytest.mark.parametrize("lost", ["*token*", "tokenizer.json"])
def test_a_model_without_a_tokenizer_gets_the_pretrained_models(
    mini, tmp_path, kind, lost, request, encoder_tokenizer
):
    """With the settings of a tokenizer alone, transformers would make up one of five tokens."""
    base = request.getfixturevalue(kind)
    one, two = (moved(base, tmp_path / name, seed) for seed, name in enumerate(["one", "two"]))
    for file in list(one.glob(lost)):
        file.unlink()
    if lost != "*token*":
        made = {"tokenizer_class": "BertTokenizer" if kind == "encoder" else "T5Tokenizer"}
        (one / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", **made}))
    assert not folders.has_tokenizer(one) and folders.has_tokenizer(two)
    plan, store, _ = finished(family(mini, base, tmp_path, one, two))
    assert plan.notes[0].startswith(
        f"{one}: it has no tokenizer, so it gets the pretrained model's; what it was"
    )
    for run in plan.runs:
        if run.kind in ("import", "fuse"):
            ours = folders.tokenizer(store.model(run)).get_vocab()
            assert ours == folders.tokenizer(base).get_vocab()


def test_a_base_model_without_a_tokenizer_is_refused(mini, encoder, tmp_path):
    base = moved(encoder, tmp_path / "base", 0)
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    one = moved(encoder, tmp_path / "one", 1)
    assert f"{base} has no vocabulary (tokenizer.json, vocab.txt, vocab.json...)" in refusal(
        family(mini, base, tmp_path, one)
    )


def test_without_a_tokenizer_the_vocabularies_must_agree_in_size(mini, encoder, tmp_path):
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.from_pretrained(encoder)
    larger = transformers.BertConfig(**{**config.to_dict(), **size, "vocab_size": 999})
    transformers.BertModel(larger).save_pretrained(tmp_path / "larger")
    message = refusal(family(mini, encoder, tmp_path, tmp_path / "larger"))
    assert "differ in vocab_size" in message


def test_another_vocabulary_is_refused(mini, encoder, tmp_path):
    other = moved(encoder, tmp_path / "other", 0)
    file = other / "tokenizer.json"
    said = json.loads(file.read_text())
    words = said["model"]["vocab"]
    first, second = list(words)[10:12]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(said))
    message = refusal(family(mini, encoder, tmp_path, other))
    assert f"{other} reads the token " in message and "fuse models that share" in message


# Models that do not fit.


def test_another_architecture_is_refused_by_the_plan(mini, encoders, t5, tmp_path):
    bert = encoders["bert"]
    for name, other in (("roberta", encoders["roberta"]), ("t5", t5)):
        message = refusal(family(mini, bert, tmp_path, other))
        assert f"{other} and {bert} are of different kinds ({name} and bert)" in message
    message = refusal(family(mini, "miniworld", tmp_path, bert))
    assert "are of different kinds (bert and t5)" in message
    playground = {
        "models": [str(encoders["roberta"]), "mood"], "target": "emoji", "method": "mean",
        "weights": [], "method_settings": {}, "model": str(bert), "trained_on": {},
        "store": str(tmp_path / "runs"),
    }  # fmt: skip
    assert "different kinds" in refusal(FusePlayground.from_parameters({**mini, **playground}))


def test_another_width_is_refused_by_the_plan(mini, encoder, tmp_path, encoder_tokenizer):
    config = transformers.AutoConfig.from_pretrained(encoder)
    config.intermediate_size += 8
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "wide")
    encoder_tokenizer.save_pretrained(tmp_path / "wide")
    message = refusal(family(mini, encoder, tmp_path, tmp_path / "wide"))
    assert "differ in intermediate_size" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["member", "base"])
def test_weights_that_are_not_finite_are_refused_by_the_plan(mini, encoder, tmp_path, value, where):
    good, bad = (moved(encoder, tmp_path / name, 0) for name in ("good", "bad"))
    weights = load_file(bad / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    weights[name][3, 4] = value
    save_file(weights, bad / "model.safetensors", {"format": "pt"})
    settings = family(
        mini, *((bad, tmp_path, encoder) if where == "base" else (encoder, tmp_path, good, bad))
    )
    assert refusal(settings) == (f"{bad}: its tensor {name} contains NaN or infinity: leave it out")
    with pytest.raises(InputError, match="contains NaN or infinity"):
        folders.import_model(bad, tmp_path / "brought")


def test_equal_models_are_noticed(mini, encoder, tmp_path):
    one = moved(encoder, tmp_path / "one", 0)
    shutil.copytree(one, tmp_path / "two")
    message = refusal(family(mini, encoder, tmp_path, one, tmp_path / "two"))
    assert (
        message
        == f"the models {one} and {tmp_path / 'two'} are equal, byte for byte: name one of them"
    )
    shutil.copytree(encoder, tmp_path / "same")
    plan = plan_experiment(family(mini, encoder, tmp_path, one, tmp_path / "same"))
    said = f"{tmp_path / 'same'}: it is the pretrained model itself, byte for byte; what"
    assert plan.notes[1].startswith(said)


# What the Trainer and peft leave.


@pytest.fixture
def checkpoints(encoder, tmp_path):
    """A folder with nothing but a Trainer's checkpoints 2, 10 and 30."""
    folder = tmp_path / "trained"
    for step in (2, 10, 30):
        moved(encoder, folder / f"checkpoint-{step}", step)
        state = {"best_model_checkpoint": None, "global_step": step}
        (folder / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps(state))
    (folder / "training_args.bin").write_bytes(b"not a model")
    return folder


def test_of_checkpoints_the_best_or_the_newest_is_a_member(mini, encoder, checkpoints, tmp_path):
    other = moved(encoder, tmp_path / "other", 1)
    settings = family(mini, encoder, tmp_path, checkpoints, other)
    plan, store, _ = finished(settings)
    assert set(Study(settings).texts().index) == {("few", "emoji")}  # models have no texts
    assert plan.notes[0].startswith(f"{checkpoints}: checkpoint-30 (the newest of 3 checkpoints)")
    name = "encoder.layer.1.output.dense.weight"
    newest = load_file(checkpoints / "checkpoint-30/model.safetensors")[name]
    assert torch.equal(imports(plan, store)[str(checkpoints)][name], newest)
    report = fuse([checkpoints, other], tmp_path / "fused", progress=False)
    assert report.parents[0] == "trained/checkpoint-30 (the newest of 3 checkpoints)"
    state = {"best_model_checkpoint": "/elsewhere/trained/checkpoint-2"}
    (checkpoints / "checkpoint-30/trainer_state.json").write_text(json.dumps(state))
    plan, store, _ = finished(settings)
    said = "checkpoint-2 (the best of 3 checkpoints by its Trainer)"
    assert plan.notes[0].startswith(f"{checkpoints}: {said}")
    best = load_file(checkpoints / "checkpoint-2/model.safetensors")[name]
    assert torch.equal(imports(plan, store)[str(checkpoints)][name], best)
    report = fuse([checkpoints, other], dry_run=True)
    assert report.parents[0] == f"trained/{said}"
    shutil.rmtree(checkpoints / "checkpoint-2")
    assert "checkpoint-30 (the newest of 2" in plan_experiment(settings).notes[0]
    shutil.copytree(encoder, checkpoints, dirs_exist_ok=True)  # a model saved at the end
    assert "checkpoint" not in plan_experiment(settings).notes[0].removeprefix(str(checkpoints))


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_adapters_are_members(mini, tmp_path, kind, request):
    base = request.getfixturevalue(kind)
    auto = transformers.AutoModel if kind == "encoder" else transformers.AutoModelForSeq2SeqLM
    targets = ["query"] if kind == "encoder" else ["q"]
    made, merged = [], []
    for seed in range(2):
        model = peft.get_peft_model(
            auto.from_pretrained(base), peft.LoraConfig(r=2, target_modules=targets)
        )
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        made.append(tmp_path / f"adapter{seed}/checkpoint-5")
        model.save_pretrained(made[-1])
        merged.append(model.merge_and_unload().state_dict())
    given = [made[0].parent, made[1]]
    plan, store, _ = finished(family(mini, base, tmp_path, *given))
    said = f"a LoRA adapter, merged into {base.name}"
    assert plan.notes[0].startswith(
        f"{given[0]}: checkpoint-5 (the newest of 1 checkpoints); {said}"
    )
    found = imports(plan, store)
    for folder, state in zip(given, merged, strict=True):
        for name, tensor in found[str(folder)].items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-6)
    fused = next(run for run in plan.runs if run.kind == "fuse")
    mean = load_file(store.model(fused) / "model.safetensors")
    for name, tensor in mean.items():
        expected = (merged[0][name].double() + merged[1][name].double()) / 2
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
    settings = family(mini, given[1], tmp_path, base, store=str(tmp_path / "new"))
    assert "a LoRA adapter: merge it first (fusinglib fuse ADAPTER" in refusal(settings)


def test_another_base_is_another_adapter(encoder, tmp_path):
    """An adapter's fingerprint covers what it is merged into."""
    bases = [moved(encoder, tmp_path / f"base{seed}", seed) for seed in range(2)]
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model = peft.get_peft_model(transformers.AutoModel.from_pretrained(bases[0]), config)
    model.save_pretrained(tmp_path / "adapter")
    before = folders.fingerprint(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "base_model_name_or_path": str(bases[1])}))
    assert folders.fingerprint(tmp_path / "adapter") != before
    file.write_text(json.dumps(said))
    assert folders.fingerprint(tmp_path / "adapter") == before


def test_the_playground_takes_them_too(mini, encoder, checkpoints, tmp_path):
    chosen = {
        "models": [str(checkpoints), "mood"], "target": "emoji", "method": "mean", "weights": [],
        "method_settings": {}, "model": str(encoder), "trained_on": {}, "seeds": [0],
        "store": str(tmp_path / "runs"),
    }  # fmt: skip
    settings = FusePlayground.from_parameters({**mini, **chosen})
    plan, _, _ = finished(settings)
    assert "checkpoint-30 (the newest of 3 checkpoints)" in plan.notes[0]
    assert str(checkpoints) in [one.name for one in choice.candidates(settings)]
