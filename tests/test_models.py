"""Models: T5 heads tied and untied through every round trip, encoders' bodies and heads, and
what is refused."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.activations import NewGELUActivation

from fusinglib.errors import InputError
from fusinglib.training import data, folders, models
from fusinglib.training.data import Split
from fusinglib.training.models import Classifier, TextToText, Tokens
from fusinglib.training.tasks import TASKS

IDS = torch.tensor([[20, 21, 22, 23, 1]])


def t5_logits(folder) -> torch.Tensor:
    """The logits of the model in `folder`, opened as anyone would, on a fixed input."""
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return network(input_ids=IDS, decoder_input_ids=torch.tensor([[0, 30, 31]])).logits


def load(folder, task, training, how, seed=0, **changes):
    return models.load(folder, task, replace(training, **changes), how, seed=seed, device="cpu")


def same(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", ["t5", "tied_t5"])
def test_t5_is_brought_and_saved_bit_for_bit(kind, request, tmp_path, mini_tasks, training, how):
    folder = request.getfixturevalue(kind)
    folders.import_model(folder, tmp_path / "brought")
    load(tmp_path / "brought", mini_tasks["mood"], training, how).save(tmp_path / "saved")
    folders.import_model(tmp_path / "saved", tmp_path / "again")
    start = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in start) == (kind == "t5")
    for name in ("brought", "saved", "again"):
        assert same(load_file(tmp_path / name / "model.safetensors"), start)
        assert torch.equal(t5_logits(tmp_path / name), t5_logits(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        expected = transformers.AutoTokenizer.from_pretrained(folder)
        text = "the baker sold unheardof bread ."
        assert tokenizer(text)["input_ids"] == expected(text)["input_ids"]


def test_head_and_scale_of_both_kinds_of_t5(t5, tied_t5, mini_tasks, training, how):
    for folder, tied in ((t5, False), (tied_t5, True)):
        network = load(folder, mini_tasks["mood"], training, how).network
        assert torch.equal(network.lm_head.weight, network.shared.weight) == tied
        assert (network.lm_head.weight is network.shared.weight) == tied
        assert network.config.scale_decoder_outputs == tied
        assert network.encoder.embed_tokens.weight is network.shared.weight


def test_gelu_in_one_operation_is_the_same_function(t5, mini_tasks, training, how):
    network = load(t5, mini_tasks["mood"], training, how).network.eval()
    kinds = Counter(type(module) for module in network.modules())
    assert kinds[torch.nn.GELU] == 4 and not kinds[NewGELUActivation]
    with torch.inference_mode():
        logits = network(input_ids=IDS, decoder_input_ids=torch.tensor([[0, 30, 31]])).logits
    torch.testing.assert_close(logits, t5_logits(t5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "tied_t5"])
def test_randomised_t5_keeps_its_kind_and_takes_its_seed(kind, request, tmp_path):
    folder = request.getfixturevalue(kind)
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        folders.randomise(folder, tmp_path / name, seed)
    start, one, again, other = (
        load_file(path / "model.safetensors")
        for path in (folder, *(tmp_path / name for name in ("one", "again", "other")))
    )
    assert {name: t.shape for name, t in one.items()} == {
        name: t.shape for name, t in start.items()
    }
    assert same(one, again)
    for name, tensor in one.items():
        if tensor.ndim == 2:
            assert not torch.equal(tensor, start[name]) and not torch.equal(tensor, other[name])
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "one")
    assert network.config.scale_decoder_outputs == (kind == "tied_t5")
    if kind == "t5":
        assert not torch.equal(one["lm_head.weight"], one["shared.weight"])
        deviation = float(one["lm_head.weight"].std())
        assert deviation == pytest.approx(network.config.d_model**-0.5, rel=0.02)
    folders.import_model(tmp_path / "one", tmp_path / "brought")
    assert same(load_file(tmp_path / "brought" / "model.safetensors"), one)
    assert torch.equal(t5_logits(tmp_path / "brought"), t5_logits(tmp_path / "one"))


def test_randomised_t5_starts_near_a_uniform_guess(t5, tmp_path):
    folders.randomise(t5, tmp_path / "random", 0)
    logits = t5_logits(tmp_path / "random")
    surprise = -logits.log_softmax(-1).mean()
    uniform = torch.tensor(float(logits.shape[-1])).log()
    assert float(surprise) == pytest.approx(float(uniform), abs=1.0)


def test_randomised_encoder_has_the_same_names_and_takes_its_seed(encoder, tmp_path):
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        folders.randomise(encoder, tmp_path / name, seed)
    start = load_file(encoder / "model.safetensors")
    one, again, other = (
        load_file(tmp_path / name / "model.safetensors") for name in ("one", "again", "other")
    )
    assert one.keys() == start.keys() and same(one, again)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(one[name], start[name]) and not torch.equal(one[name], other[name])


def body(model: Classifier) -> dict[str, torch.Tensor]:
    return model.network.base_model.state_dict()


def head(model: Classifier) -> dict[str, torch.Tensor]:
    inside = {id(parameter) for parameter in model.network.base_model.parameters()}
    return {n: p for n, p in model.network.named_parameters() if id(p) not in inside}


ENCODERS = [
    "bert", "roberta", "distilbert", "deberta", "electra", "albert", "mpnet", "xlm-roberta",
    "modernbert",
]  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder_gets_a_fresh_head_by_the_seed(kind, encoders, mini_tasks, training, how):
    folder, task = encoders[kind], mini_tasks["mood"]
    one, again, other = (load(folder, task, training, how, seed=seed) for seed in (1, 1, 2))
    saved = load_file(folder / "model.safetensors")
    for name, tensor in body(one).items():
        assert torch.equal(tensor, saved[name])
    assert same(body(one), body(other)) and set(body(one)) <= set(saved)
    assert same(head(one), head(again))
    matrices = [name for name, tensor in head(one).items() if tensor.ndim == 2]
    assert matrices and not any(torch.equal(head(one)[n], head(other)[n]) for n in matrices)
    loaded = data.load(task, how)
    inputs = one.inputs(one.encode(loaded.train), [0, 1, 2])
    assert one.network(**inputs).logits.shape == (3, len(task.labels))
    assert one.loss(inputs, torch.tensor([0, 1, 2])).isfinite()


def test_source_classifier_is_a_base_with_a_fresh_head(
    encoder, tmp_path, mini_tasks, training, how
):
    three, two = mini_tasks["mood"], mini_tasks["irony"]
    assert (len(three.labels), len(two.labels)) == (3, 2)
    source = load(encoder, three, training, how, seed=5)
    with torch.no_grad():
        for parameter in source.network.parameters():
            parameter.add_(0.25)
    source.save(tmp_path / "source")
    for task in (two, three, replace(three, labels=("c", "b", "a"))):
        target = load(tmp_path / "source", task, training, how, seed=5)
        assert same(body(target), body(source))
        fresh = load(encoder, task, training, how, seed=5)
        assert same(head(target), head(fresh))  # of the seed alone, not of the source's head
        assert target.network.config.id2label == dict(enumerate(task.labels))
        assert target.network.config.num_labels == len(task.labels)
    folders.import_model(tmp_path / "source", tmp_path / "body")
    assert same(load_file(tmp_path / "body" / "model.safetensors"), dict(body(source)))


def test_masked_language_model_without_a_pooler_is_brought_the_same_every_time(
    encoder, encoder_tokenizer, tmp_path, mini_tasks, training, how
):
    config = transformers.AutoConfig.from_pretrained(encoder)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    encoder_tokenizer.save_pretrained(tmp_path / "mlm")
    assert not any("pooler" in name for name in load_file(tmp_path / "mlm" / "model.safetensors"))
    for name in ("one", "two"):
        folders.import_model(tmp_path / "mlm", tmp_path / name)
        torch.rand(3)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert "pooler.dense.weight" in one and same(one, two)
    load(tmp_path / "one", mini_tasks["mood"], training, how)


def dropouts(network) -> set[float]:
    """Every dropout probability in force: of modules, and those that attention takes itself."""
    modules = list(network.modules())
    found = {module.p for module in modules if isinstance(module, torch.nn.Dropout)}
    for name in ("dropout", "dropout_prob", "attention_dropout"):
        values = [getattr(module, name, None) for module in modules]
        found |= {value for value in values if isinstance(value, float)}
    return found


@pytest.mark.parametrize("kind", ["t5", *ENCODERS])
def test_dropout_reaches_every_module(kind, t5, encoders, mini_tasks, training, how):
    folder = t5 if kind == "t5" else encoders[kind]
    task = mini_tasks["mood"]
    for probability in (0.0, 0.35):
        network = load(folder, task, training, how, dropout=probability).network
        assert dropouts(network) == {probability}


@pytest.mark.parametrize("kind", ["t5", *ENCODERS])
def test_dropout_changes_what_the_network_says(kind, t5, encoders, mini_tasks, training, how):
    folder = t5 if kind == "t5" else encoders[kind]
    loaded = data.load(mini_tasks["mood"], how)
    for probability, alike in ((0.0, True), (0.35, False)):
        model = load(folder, loaded.task, training, how, dropout=probability)
        model.network.train()
        inputs = model.inputs(model.encode(loaded.train), range(4))
        one, two = (model.loss(inputs, torch.tensor([0, 1, 2, 0])).item() for _ in range(2))
        assert (one == two) == alike


def refusal(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_label_with_an_unknown_token_is_refused(t5, mini_tasks, training, how):
    task = replace(mini_tasks["mood"], labels=("positive", "zzyzx", "neutral"))
    message = refusal(models.check_labels, t5, [mini_tasks["irony"], task], "t5")
    assert message.startswith("task 'mood': the label 'zzyzx' has a token unknown")
    assert refusal(load, t5, task, training, how) == message


def test_labels_that_read_the_same_are_refused(t5, mini_tasks):
    task = replace(mini_tasks["mood"], labels=("positive", "negative", " positive "))
    message = refusal(models.check_labels, t5, [task], "t5")
    assert message.startswith("task 'mood': the labels 'positive' and ' positive ' are the same")


def test_good_labels_are_accepted(t5, mini_tasks):
    models.check_labels(t5, list(mini_tasks.values()), "t5")


def test_locate_takes_a_model_folder(t5, encoder):
    assert folders.locate(str(t5), "") == t5
    assert folders.is_text_to_text(t5) and not folders.is_text_to_text(encoder)


def copy(folder, to, *without):
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns(*without))


def test_folder_without_config_or_weights_is_refused(encoder, tmp_path):
    folder = copy(encoder, tmp_path / "a", "config.json")
    assert "it has no config.json" in refusal(folders.locate, str(folder), "")
    folder = copy(encoder, tmp_path / "b", "*.safetensors")
    assert "it has no safetensors weights" in refusal(folders.locate, str(folder), "")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert "opened only with allow_pickle" in refusal(folders.locate, str(folder), "")


@pytest.mark.parametrize("name", ["nobody/nothing", "/no/such/folder", "not a name"])
def test_unknown_model_offline_is_refused(name, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = refusal(folders.locate, name, "")
    assert message.startswith(f"model {name!r}: no such folder, and no such model on the Hub")


def test_real_minilm_is_found_offline_and_read(hub, training, how):
    try:
        folder = folders.locate("sentence-transformers/all-MiniLM-L6-v2", "")
    except InputError:
        pytest.skip("the cache that HF_HOME names has no sentence-transformers/all-MiniLM-L6-v2")
    loaded = data.load(TASKS["stance_climate"], how)
    model = load(folder, loaded.task, training, how)
    assert (model.network.num_parameters(only_trainable=True) // 10**5, model.segments) == (
        227,
        True,
    )
    inputs = model.inputs(model.encode(loaded.train), range(4))
    assert model.network(**inputs).logits.shape == (4, 3)
    assert not inputs["token_type_ids"].any()


def test_weights_that_lack_a_tensor_are_refused(t5, encoder, tmp_path, mini_tasks, training, how):
    cases = {
        t5: "decoder.final_layer_norm.weight",
        encoder: "encoder.layer.1.output.dense.bias",
    }
    for number, (folder, name) in enumerate(cases.items()):
        cut = copy(folder, tmp_path / str(number))
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, cut / "model.safetensors", metadata={"format": "pt"})
        assert f"its weights lack {name}" in refusal(folders.import_model, cut, tmp_path / "out")
        assert f"its weights lack {name}" in refusal(load, cut, mini_tasks["mood"], training, how)


def test_encoder_decoder_of_absolute_positions_is_refused(tmp_path):
    transformers.BartConfig().save_pretrained(tmp_path)
    message = refusal(folders.is_text_to_text, tmp_path)
    assert "text-to-text models of the type 'bart' are not supported" in message


def test_fingerprint_is_of_the_content_and_not_of_the_path(encoder, tmp_path):
    start = folders.fingerprint(encoder)
    assert len(start) == 16
    assert folders.fingerprint(copy(encoder, tmp_path / "a")) == start
    (tmp_path / "a" / "README.md").write_text("about")
    assert folders.fingerprint(tmp_path / "a") == start
    for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.json"):
        folder = copy(encoder, tmp_path / name)
        with open(folder / name, "ab") as stream:
            stream.write(b" ")
        assert folders.fingerprint(folder) != start


def test_texts_are_truncated(t5, encoder, mini_tasks, training, how):
    for folder, end in ((t5, 1), (encoder, 3)):
        for task in (mini_tasks["mood"], mini_tasks["inference"]):
            loaded = data.load(task, how)
            full = load(folder, task, training, how).encode(loaded.train)
            short = load(folder, task, training, replace(how, max_length=8)).encode(loaded.train)
            assert full.lengths.max() > 8 == short.lengths.max()
            assert (short.lengths == full.lengths.clip(max=8)).all()
            ids = short.pad([int(short.lengths.argmax())])["input_ids"]
            assert ids[0, -1] == end
            again = load(folder, task, training, how).encode(loaded.train)
            assert (again.lengths == full.lengths).all()


def test_t5_reads_the_texts_of_its_format(t5, mini_tasks, training, how):
    task = mini_tasks["inference"]
    loaded = data.load(task, how)
    model = load(t5, task, training, how)
    ids = model.encode(loaded.dev).pad([3])["input_ids"][0]
    text = data.text_input(task, loaded.dev.texts[3], "t5")
    assert ids.tolist() == model.tokenizer(text)["input_ids"]
    assert isinstance(model, TextToText)


@pytest.mark.parametrize(
    ("kind", "told"), [("bert", True), ("roberta", False), ("distilbert", False)]
)
def test_encoder_reads_a_pair(kind, told, encoders, mini_tasks, training, how):
    task = mini_tasks["inference"]
    loaded = data.load(task, how)
    model = load(encoders[kind], task, training, how)
    inputs = model.inputs(model.encode(loaded.dev), [0])
    one, two = (model.tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in loaded.dev.texts[0])  # fmt: skip
    assert inputs["input_ids"][0].tolist() == [2, *one, 3, *two, 3]
    assert ("token_type_ids" in inputs) == told
    if told:
        segments = [0] * (len(one) + 2) + [1] * (len(two) + 1)
        assert inputs["token_type_ids"][0].tolist() == segments


def test_padding_is_masked():
    encoded = {"input_ids": [[5, 6, 7], [8]], "token_type_ids": [[0, 1, 1], [1]]}
    tokens = Tokens.of(encoded, [0, 1], 9)
    batch = tokens.pad([1, 0])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[8, 9, 9], [5, 6, 7]],
        "token_type_ids": [[1, 0, 0], [0, 1, 1]],
        "attention_mask": [[1, 0, 0], [1, 1, 1]],
    }
    assert tokens.pad([1])["input_ids"].tolist() == [[8]]
    assert len(tokens) == 2


def test_padding_does_not_change_what_an_encoder_says(encoders, mini_tasks, training, how):
    loaded = data.load(mini_tasks["inference"], how)
    for folder in encoders.values():
        model = load(folder, loaded.task, training, how)
        model.network.eval()
        tokens = model.encode(loaded.dev)
        rows = [int(tokens.lengths.argmin()), int(tokens.lengths.argmax())]
        together = model.network(**model.inputs(tokens, rows)).logits
        for row, logits in zip(rows, together, strict=True):
            alone = model.network(**model.inputs(tokens, [row])).logits[0]
            torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "most"), [("bert", 80), ("roberta", 79), ("distilbert", 80), ("deberta", 500)]
)
def test_inputs_are_cut_to_what_the_model_has_positions_for(
    kind, most, encoders, mini_tasks, training, how
):
    task = mini_tasks["mood"]
    model = load(encoders[kind], task, training, replace(how, max_length=500))
    assert model.max_length == most
    long = Split([("word " * 300,), ("word",)], [0, 1])
    tokens = model.encode(long)
    assert tokens.lengths.tolist() == [min(most, 302), 3]
    assert tokens.cut.tolist() == [most < 302, False]
    model.network(**model.inputs(tokens, [0]))  # the longest one has its positions


def test_pickled_weights_are_opened_only_on_request(t5, tmp_path):
    folder = tmp_path / "pickled"
    network = transformers.AutoModelForSeq2SeqLM.from_pretrained(t5)
    shutil.copytree(t5, folder)
    (folder / "model.safetensors").unlink()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="only with allow_pickle: true"):
        folders.locate(str(folder), "")
    assert folders.locate(str(folder), "", allow_pickle=True) == folder
    folders.import_model(folder, tmp_path / "brought")
    assert torch.equal(t5_logits(tmp_path / "brought"), t5_logits(t5))
    assert len(folders.fingerprint(folder)) == 16


def test_a_tokenizer_is_known_by_all_that_decides_its_token_ids(tmp_path):
    """Two folders with one vocabulary, of which one tells cases apart."""
    saved = {}
    for name, lower in (("lower", True), ("cased", False)):
        saved[name] = folder = tmp_path / name
        folder.mkdir()
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", "Word"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        (folder / "config.json").write_text('{"model_type": "bert"}')
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ids = {name: folders.tokenizer(folder)("Word")["input_ids"] for name, folder in saved.items()}
    assert ids == {"lower": [2, 5, 3], "cased": [2, 6, 3]}
    hashes = {folders.tokenizer_hash(folder) for folder in saved.values()}
    assert len(hashes) == 2


def test_a_folder_without_a_tokenizer_or_a_padding_token_is_refused(encoder, tmp_path):
    bare = copy(encoder, tmp_path / "bare", "*token*")
    assert "bare has no tokenizer" in refusal(folders.tokenizer, bare)
    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    tokenizer.pad_token = None
    unpadded = copy(encoder, tmp_path / "unpadded", "*token*")
    tokenizer.save_pretrained(unpadded)
    assert "has no padding token: set one" in refusal(folders.tokenizer, unpadded)


def test_a_config_that_transformers_does_not_know_is_named(encoder, tmp_path):
    for number, content in enumerate(("{", "[]", '{"model_type": "nothing"}')):
        folder = copy(encoder, tmp_path / str(number))
        (folder / "config.json").write_text(content)
        message = refusal(folders.is_text_to_text, folder)
        assert (
            message.startswith(f"{folder}/config.json describes no model") and "\n" not in message
        )


def test_a_decoder_is_finetuned_with_a_head_as_well(encoder_tokenizer, tmp_path, mini_tasks,
                                                    training, how):  # fmt: skip
    config = transformers.GPT2Config(
        vocab_size=len(encoder_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=80,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    transformers.GPT2Model(config).save_pretrained(tmp_path)
    encoder_tokenizer.save_pretrained(tmp_path)
    loaded = data.load(mini_tasks["mood"], how)
    model = models.load(tmp_path, loaded.task, training, how, seed=0, device="cpu")
    tokens = model.encode(loaded.dev)
    scores, best = model.predict(model.inputs(tokens, range(3)))
    assert scores.shape == (3, len(loaded.task.labels)) and len(best) == 3
