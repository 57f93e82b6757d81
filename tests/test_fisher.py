"""Fisher information: against loops in float64, against a closed form, and through `fuse`."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from fusinglib import fuse
from fusinglib.errors import InputError
from fusinglib.fusion.opening import open_checkpoint
from fusinglib.training import data, estimation, fisher
from fusinglib.training.tokens import Tokens


def drawn(task, how, examples, seed=0):
    """The training texts that an estimate takes."""
    texts = data.load(task, how).train.texts
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))[:examples]]


def opened(folder, auto=transformers.AutoModelForSequenceClassification):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return auto.from_pretrained(folder).double().eval(), tokenizer


def encoded(tokenizer, text, segments=True):
    return tokenizer(*text, return_tensors="pt", return_token_type_ids=segments)


def squares(network, scores, count):
    """`sum_y p_y (d log p_y)^2` by the network's names; a new graph for every label."""
    total = {}
    for label in range(count):
        network.zero_grad()
        score = scores().log_softmax(0)[label]
        score.backward()
        for name, parameter in network.named_parameters():
            gradient = 0 * parameter if parameter.grad is None else parameter.grad
            total[name] = total.get(name, 0) + score.exp().item() * gradient.detach() ** 2
    return total


def mean(parts):
    return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def check(file, expected, prefix=""):
    """The file holds just what is expected of the body, within the rounding of float32."""
    found = load_file(file)
    assert set(found) == {n.removeprefix(prefix) for n in expected if n.startswith(prefix)}
    for name, values in found.items():
        wanted = expected[prefix + name]
        assert values.dtype == torch.float32 and values.shape == wanted.shape
        slack = max(1e-6 * float(wanted.max()), 1e-16)  # a key's bias has none, but for rounding
        torch.testing.assert_close(values.double(), wanted.double(), rtol=1e-3, atol=slack)


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "inference"), ("roberta", "mood"), ("distilbert", "emoji")]
)
def test_classifier_by_loops(kind, task, encoders, finetuned, mini_tasks, how, tmp_path):
    task = mini_tasks[task]
    folder = finetuned(encoders[kind], task)
    state = torch.random.get_rng_state()
    file = fisher.estimate(folder, task, how, tmp_path / "new" / "f.safetensors", examples=5)
    assert file == tmp_path / "new" / "f.safetensors" and len(list(file.parent.iterdir())) == 1
    assert torch.equal(torch.random.get_rng_state(), state)

    network, tokenizer = opened(folder)
    parts = []
    for text in drawn(task, how, 5):
        inputs = encoded(tokenizer, text, kind == "bert")

        def scores(inputs=inputs):
            return network(**inputs).logits[0]

        parts.append(squares(network, scores, len(task.labels)))
    check(file, mean(parts), f"{kind}.")
    body = open_checkpoint(folder).body()
    assert {n: t.shape for n, t in body.items()} == {n: t.shape for n, t in load_file(file).items()}
    with safe_open(file, "pt") as content:
        assert content.metadata() == {
            "format": "pt", "examples": "5", "seed": "0", "task": task.name,
            "model": open_checkpoint(folder).name,
        }  # fmt: skip


def test_pooler_by_its_closed_form(encoder, finetuned, mini_tasks, how, tmp_path):
    """Logits are `W tanh(P h + b) + c`: the information on `b_j` is `(1 - t_j^2)^2 Var_y(W_yj)`,
    y drawn from the model; on `P_ji` that times `h_i^2`."""
    task = mini_tasks["mood"]
    folder = finetuned(encoder, task)
    file = fisher.estimate(folder, task, how, tmp_path / "f", examples=6, seed=3)
    network, tokenizer = opened(folder)
    head, parts = network.classifier.weight.detach(), []
    for text in drawn(task, how, 6, seed=3):
        with torch.no_grad():
            inside = network.bert(**encoded(tokenizer, text))
            p = network.classifier(inside.pooler_output)[0].softmax(0)
        assert 0.4 < p.max() < 0.999
        variance = p @ head**2 - (p @ head) ** 2
        bias = (1 - inside.pooler_output[0] ** 2) ** 2 * variance
        weight = torch.outer(bias, inside.last_hidden_state[0, 0] ** 2)
        parts.append({"pooler.dense.bias": bias, "pooler.dense.weight": weight})
    found = load_file(file)
    for name, wanted in mean(parts).items():
        torch.testing.assert_close(found[name].double(), wanted, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("kind", "task"), [("t5", "emoji"), ("tied_t5", "inference")])
def test_t5_by_loops(kind, task, request, finetuned, mini_tasks, how, tmp_path):
    task = mini_tasks[task]
    folder = finetuned(request.getfixturevalue(kind), task)
    file = fisher.estimate(folder, task, how, tmp_path / "f", examples=3)
    network, tokenizer = opened(folder, transformers.AutoModelForSeq2SeqLM)
    labels = [tokenizer(label, return_tensors="pt")["input_ids"] for label in task.labels]
    assert kind == "tied_t5" or len({ids.shape for ids in labels}) > 1
    parts = []
    for text in drawn(task, how, 3):
        ids = tokenizer(data.text_input(task, text, "t5"), return_tensors="pt")["input_ids"]

        def scores(ids=ids):
            logits = [network(input_ids=ids, labels=label).logits[0] for label in labels]
            pairs = zip(logits, labels, strict=True)
            return -torch.stack([cross_entropy(a, b[0], reduction="sum") for a, b in pairs])

        parts.append(squares(network, scores, len(labels)))
    check(file, mean(parts))
    names = set(load_file(folder / "model.safetensors"))
    assert set(load_file(file)) == names and ("lm_head.weight" in names) == (kind == "t5")


def test_repeated_examples_change_nothing(encoder, finetuned, mini_tasks, how):
    task = mini_tasks["mood"]
    model = estimation.Trained(finetuned(encoder, task), task, how, "cpu")
    texts = [text[0] for text in drawn(task, how, 4)]
    tensors = list(model.body.parameters())
    one, twice = (
        fisher.diagonal(model, Tokens.of(model.tokenizer(some), [0] * len(some), 0), tensors)
        for some in (texts, [*texts, *texts])
    )
    for first, second in zip(one, twice, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=0)
        assert first.min() >= 0


def test_examples_and_seed(encoder, finetuned, mini_tasks, how, tmp_path):
    task = mini_tasks["mood"]
    folder = finetuned(encoder, task)

    def estimated(name, **options):
        return load_file(fisher.estimate(folder, task, how, tmp_path / name, **options))

    one, again = (estimated(name, examples=4, seed=1) for name in ("one", "again"))
    other = estimated("other", examples=4, seed=2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["pooler.dense.bias"], other["pooler.dense.bias"])


def test_few_examples_are_all_taken(encoder, finetuned, mini_tasks, how, tmp_path, monkeypatch):
    task = mini_tasks["mood"]
    loaded = data.load(task, how)
    few = replace(loaded, train=loaded.train.take([0, 1, 2]))
    monkeypatch.setattr(data, "load", lambda *_: few)
    file = fisher.estimate(finetuned(encoder, task), task, how, tmp_path / "f")
    with safe_open(file, "pt") as content:
        assert content.metadata()["examples"] == "3"


@pytest.mark.parametrize("kind", ["bert", "t5", "tied_t5"])
def test_fused(kind, request, encoders, finetuned, mini_tasks, how, tmp_path):
    start = encoders[kind] if kind in encoders else request.getfixturevalue(kind)
    tasks = [mini_tasks[name] for name in ("mood", "irony")]
    folders = [finetuned(start, task, seed) for seed, task in enumerate(tasks)]
    files = [
        fisher.estimate(folder, task, how, tmp_path / f"{task.name}.safetensors", examples=3)
        for folder, task in zip(folders, tasks, strict=True)
    ]
    out = tmp_path / "out"
    report = fuse(folders, out, method="fisher", fisher=files, progress=False)
    fused, known = load_file(out / "model.safetensors"), [load_file(file) for file in files]
    assert report.averaged == sorted(fused) == sorted(known[0])
    stored = [load_file(folder / "model.safetensors") for folder in folders]
    prefix = open_checkpoint(folders[0]).prefix
    differs = 0
    for name, found in fused.items():
        (a, b), (f, g) = (
            [part[key].double().numpy() for part in parts]
            for parts, key in ((stored, prefix + name), (known, name))
        )
        total, plain = f + g, (a + b) / 2
        wanted = np.where(total > 0, (f * a + g * b) / np.where(total > 0, total, 1), plain)
        allowed = 2 * np.finfo(np.float32).eps * np.maximum(np.abs(a), np.abs(b))
        assert (np.abs(found.double().numpy() - wanted) <= allowed).all(), name
        differs += (np.abs(wanted - plain) > 0.01).sum()
    assert differs > 1000
    auto = transformers.AutoModel if kind == "bert" else transformers.AutoModelForSeq2SeqLM
    auto.from_pretrained(out)


def test_progress_is_shown_of_what_takes_long(
    encoder, finetuned, mini_tasks, how, tmp_path, monkeypatch, capsys
):
    task = mini_tasks["mood"]
    folder = finetuned(encoder, task)
    fisher.estimate(folder, task, how, tmp_path / "a", examples=3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(estimation, "QUIET", -1)
    fisher.estimate(folder, task, how, tmp_path / "b", examples=3)
    assert capsys.readouterr().err.splitlines()[-1] == "3 of 3 examples"
    fisher.estimate(folder, task, how, tmp_path / "c", examples=3, progress=False)
    assert capsys.readouterr().err == ""


def refusal(*arguments, **options) -> str:
    with pytest.raises(InputError) as caught:
        fisher.estimate(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refused(encoder, finetuned, mini_tasks, how, tmp_path):
    task, output = mini_tasks["mood"], tmp_path / "f"
    folder = finetuned(encoder, task)
    assert "has no trained head (its weights lack classifier.bias, classifier.weight)" in refusal(
        encoder, task, how, output
    )
    message = refusal(folder, mini_tasks["irony"], how, output)
    assert f"Model {folder} has a head of 3 labels, but task 'irony' has 2" in message
    assert "examples is 0" in refusal(folder, task, how, output, examples=0)
    assert "neither a folder" in refusal(tmp_path / "nowhere", task, how, output)
    file = folder / "model.safetensors"
    assert "an adapter or a single file" in refusal(file, task, how, output)
    assert "unknown split rule" in refusal(folder, replace(task, splits="x"), how, output)
    assert not output.exists()
    output.write_text("mine")
    assert f"Output {output} already exists" in refusal(folder, task, how, output)
    assert output.read_text() == "mine"


def test_labels_that_a_t5_cannot_write_are_refused(t5, mini_tasks, how, tmp_path):
    task = replace(mini_tasks["mood"], labels=("positive", "zzyzx", "neutral"))
    assert "the label 'zzyzx' has a token unknown" in refusal(t5, task, how, tmp_path / "f")


def test_adapter_is_refused(encoder, finetuned, mini_tasks, how, tmp_path):
    folder = finetuned(encoder, mini_tasks["mood"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(folder)}
    settings |= {"r": 1, "lora_alpha": 1}
    (adapter / "adapter_config.json").write_text(str(settings).replace("'", '"'))
    weight = load_file(folder / "model.safetensors")["bert.pooler.dense.weight"]
    pair = {"A": torch.ones(1, weight.shape[1]), "B": torch.zeros(len(weight), 1)}
    name = "base_model.model.bert.pooler.dense.lora_{}.weight"
    save_file({name.format(key): part for key, part in pair.items()},
              adapter / "adapter_model.safetensors")  # fmt: skip
    message = refusal(adapter, mini_tasks["mood"], how, tmp_path / "f")
    assert "is an adapter or a single file" in message


def test_odd_weights_are_refused(encoder, finetuned, mini_tasks, how, tmp_path):
    task, output = mini_tasks["mood"], tmp_path / "f"
    folder = finetuned(encoder, task)
    tensors = load_file(folder / "model.safetensors")
    odd = shutil.copytree(folder, tmp_path / "odd") / "model.safetensors"
    save_file({**tensors, "bert.more.weight": torch.ones(2)}, odd, {"format": "pt"})
    assert "Tensor bert.more.weight of model" in refusal(odd.parent, task, how, output)
    tensors["bert.pooler.dense.bias"][0] = torch.nan
    save_file(tensors, odd, {"format": "pt"})
    assert "is not finite" in refusal(odd.parent, task, how, output)
    assert not output.exists()


def test_failed_write_leaves_nothing(encoder, finetuned, mini_tasks, how, tmp_path, monkeypatch):
    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(estimation, "save_file", half)
    task = mini_tasks["mood"]
    with pytest.raises(OSError, match="disk full"):
        fisher.estimate(finetuned(encoder, task), task, how, tmp_path / "n" / "f", examples=1)
    assert not list((tmp_path / "n").iterdir())
