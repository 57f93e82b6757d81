"""Base models with one small interface: text-to-text (T5) and encoder classifiers."""

import abc
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers.activations import NewGELUActivation

from fusinglib.errors import InputError
from fusinglib.training.data import Split, label_texts, pair_input, text_input
from fusinglib.training.folders import config_of, is_text_to_text, opened, tokenizer, tokenizer_hash
from fusinglib.training.scoring import additive, label_scores
from fusinglib.training.settings import Data, Numbers, Training
from fusinglib.training.tasks import Task
from fusinglib.training.tokens import Tokens, to_device

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


IGNORED = -100
"""Stands for a token that does not count in the loss."""


class BaseModel(abc.ABC):
    """A base model ready for one task, with what training and evaluation need.

    Subclasses define which texts the tokenizer reads (`_texts`), `loss`, `predict` and `body`, the
    part of the network that fusing averages. `folder` holds a config, a tokenizer and safetensors
    weights. A model is on `device`, in fp32; precision "bf16" computes under autocast. `segments`:
    whether the model gets segment ids, as BERT does. `eval_batch_size`: how many texts are scored
    together.
    """

    network: Any
    """The complete Transformers model."""
    body: torch.nn.Module
    lead: tuple[int, ...] = ()
    """What `predict` has before the batch: nothing; in a stack, a row for each model."""

    def __init__(self, folder: Path, task: Task, training: Training, data: Data, device: str):
        self.task, self.data, self.device = task, data, torch.device(device)
        self.bf16 = training.precision == "bf16"
        self.config = _config(folder, training.dropout)
        self.tokenizer, self.tokenizer_hash = tokenizer(folder), tokenizer_hash(folder)
        self.segments = getattr(self.config, "type_vocab_size", 0) > 1
        self.eval_batch_size = eval_batch_size(self.config.hidden_size, self.device)

    @property
    def max_length(self) -> int:
        """The longest input in tokens: the setting, or what the model has positions for."""
        table = getattr(getattr(self.body, "embeddings", None), "position_embeddings", None)
        if table is None:
            return self.data.max_length
        # RoBERTa numbers positions from its padding index on.
        before = 0 if table.padding_idx is None else table.padding_idx + 1
        return min(self.data.max_length, table.num_embeddings - before)

    def encoding(self, fingerprint: str) -> dict:
        """What determines the token ids of data with this fingerprint."""
        return {
            "task": self.task.as_json(),
            "fingerprint": fingerprint,
            "text_format": self.data.text_format,
            "max_length": self.max_length,
            "tokenizer": self.tokenizer_hash,
            "kind": type(self).__name__,
            "segments": self.segments,
        }

    def encode(self, split: Split) -> Tokens:
        """The token ids of a split's texts, cut to `max_length`, with their labels."""
        pad: Any = self.tokenizer.pad_token_id
        return Tokens.of(self._tokenized(*self._texts(split)), split.labels, pad)

    @abc.abstractmethod
    def _texts(self, split: Split) -> list[list[str]]:
        """The texts that the tokenizer reads, as one list per argument."""

    @abc.abstractmethod
    def loss(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a batch; `labels` int64 (batch,). A text does not count whose label
        is the number of labels."""

    @abc.abstractmethod
    def terms(self, labels: torch.Tensor) -> torch.Tensor:
        """How many terms the loss of these labels, int64 (..., batch), is the mean over, (...)."""

    @abc.abstractmethod
    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probability of every label, float32 (batch, K), and the id of the label that
        the model writes, int64 (batch,), -1: none."""

    def _tokenized(self, *texts: list[str]) -> Mapping[str, list[list[int]]]:
        read: Any = self.tokenizer
        return read(
            *texts, truncation=True, max_length=self.max_length,
            return_token_type_ids=self.segments, return_attention_mask=False,
        )  # fmt: skip

    def inputs(self, tokens: Tokens, rows: Numbers) -> dict[str, torch.Tensor]:
        """A batch on the model's device, padded on the side that the tokenizer says."""
        batch = tokens.pad(rows, self.tokenizer.padding_side == "left")
        return {name: to_device(tensor, self.device) for name, tensor in batch.items()}

    def autocast(self):
        """The context in which the network runs: autocast to bf16 if the precision says so."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def save(self, folder: Path) -> None:
        """Write weights, config and tokenizer so that `from_pretrained` opens them."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class TextToText(BaseModel):
    """A T5-style model: a label is a text, and the best-scored one is the
    prediction."""

    def __init__(self, folder, task, training, data, device, seed):
        super().__init__(folder, task, training, data, device)
        self.network = opened(transformers.AutoModelForSeq2SeqLM, folder, config=self.config)
        self.body = self.network.to(self.device)
        self.labels = label_tokens(self.tokenizer, task, data.text_format)
        longest = max(map(len, self.labels))
        padded = [ids + [IGNORED] * (longest - len(ids)) for ids in [*self.labels, []]]
        self.label_ids = torch.tensor(padded, device=self.device)
        start = torch.full_like(self.label_ids[:, :1], self.config.decoder_start_token_id)
        shifted = torch.cat([start, self.label_ids[:, :-1]], dim=1)
        self.decoder_ids = shifted.masked_fill(shifted == IGNORED, self.config.pad_token_id)
        self.causal = additive(torch.ones(longest, longest, device=self.device).tril() == 1)
        positions = sum(map(len, self.labels))
        fitting = 2**26 // (positions * self.config.vocab_size)  # of the logits
        self.eval_batch_size = max(1, min(self.eval_batch_size, fitting))

    def _texts(self, split: Split) -> list[list[str]]:
        return [[text_input(self.task, text, self.data.text_format) for text in split.texts]]

    def loss(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy per label token of a batch; `labels` int64 (batch,)."""
        with self.autocast():
            logits = self.network(
                **inputs,
                decoder_input_ids=self.decoder_ids[labels],
                decoder_attention_mask=self.causal.expand(len(labels), 1, -1, -1),
                use_cache=False,
            ).logits.float()
            wanted = self.label_ids[labels]
            return cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)

    def terms(self, labels: torch.Tensor) -> torch.Tensor:
        """How many label tokens the loss is the mean over."""
        return (self.label_ids[labels] != IGNORED).sum(dim=(-2, -1))

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probability of every label's text, float32 (batch, K), and the label that
        greedy decoding writes, int64 (batch,), -1: none."""
        with self.autocast():
            scores, greedy = label_scores(self.network, **inputs, labels=self.labels)
        return scores, torch.where(greedy.any(1), greedy.int().argmax(1), -1)


class Classifier(BaseModel):
    """An encoder with a fresh classification head, initialised by the run's seed."""

    def __init__(self, folder, task, training, data, device, seed):
        super().__init__(folder, task, training, data, device)
        if self.config.pad_token_id is None:  # decoders such as GPT-2 look for it in a batch
            self.config.pad_token_id = self.tokenizer.pad_token_id
        self.config.num_labels = len(task.labels)
        self.config.id2label = dict(enumerate(task.labels))
        self.config.label2id = {label: number for number, label in enumerate(task.labels)}
        torch.manual_seed(seed)
        self.network = transformers.AutoModelForSequenceClassification.from_config(self.config)
        body = opened(transformers.AutoModel, folder)
        missing = self.network.base_model.load_state_dict(body.state_dict(), strict=False)
        if missing.missing_keys:
            raise InputError(f"{folder}: the model's body lacks {missing.missing_keys[0]}")
        self.body = self.network.to(self.device).base_model

    def _texts(self, split: Split) -> list[list[str]]:
        inputs = [pair_input(self.task, text) for text in split.texts]
        return [list(texts) for texts in zip(*inputs, strict=True)]

    def loss(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of a batch; `labels` int64 (batch,)."""
        with self.autocast():
            logits = self.network(**inputs).logits.float()
            return cross_entropy(logits, labels, ignore_index=len(self.task.labels))

    def terms(self, labels: torch.Tensor) -> torch.Tensor:
        """How many texts the loss is the mean over."""
        return (labels != len(self.task.labels)).sum(dim=-1)

    def predict(self, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The log-probability of every label, float32 (batch, K), and the best label, int64
        (batch,): a classifier writes no invalid output."""
        with self.autocast():
            scores = self.network(**inputs).logits.float().log_softmax(1)
        return scores, scores.argmax(1)


def eval_batch_size(width: int, device: torch.device) -> int:
    """How many texts are scored in a batch. On a CPU, wide models are as fast with small batches,
    which need less padding; narrow models and GPUs need large ones."""
    return 128 if device.type != "cpu" else min(128, max(16, 2**13 // width))


def load(
    folder: Path, task: Task, training: Training, data: Data, *, seed: int, device: str
) -> BaseModel:
    """The base model in `folder`, ready to be finetuned on `task`.

    Raises `InputError` if it scores a text in a batch otherwise than alone.
    """
    kind = TextToText if is_text_to_text(folder) else Classifier
    model = kind(Path(folder), task, training, data, device, seed)
    _join_gelu(model.network)
    _check_padding(model, str(folder))
    return model


def _join_gelu(network: torch.nn.Module) -> None:
    """Compute the GELU of T5 v1.1 in one operation instead of eight: the same function."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, torch.nn.GELU("tanh"))


_CHECKED: set[tuple[str, str, int]] = set()
"""The configurations, tokenizers and numbers of columns that pad well."""


def _check_padding(model: BaseModel, name: str) -> None:
    """Raise `InputError` if a text's scores depend on what it is padded to, which is tried once for
    every kind of model."""
    columns = len(model.task.columns)
    kind = (model.config.to_json_string(), model.tokenizer_hash, columns)
    if kind in _CHECKED:
        return
    texts = [("a",) * columns, ("a b c d e f g h",) * columns]
    tokens = model.encode(Split(texts, [0, 0]))
    model.network.eval()
    bf16, model.bf16 = model.bf16, False
    with torch.inference_mode():
        together, alone = (
            model.predict(model.inputs(tokens, rows))[0][0] for rows in ([0, 1], [0])
        )
    model.bf16 = bf16
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"{name} scores a text in a batch otherwise than alone: its tokenizer pads on the "
            f"{model.tokenizer.padding_side}; save it with the other padding_side"
        )
    _CHECKED.add(kind)


def label_tokens(tokenizer, task: Task, text_format: str) -> list[list[int]]:
    """The token ids of each label's text, end token included.

    Raises `InputError` if a label contains an unknown token, or two labels have the same tokens.
    """
    texts = label_texts(task, text_format)
    tokens = tokenizer(texts)["input_ids"]
    for text, ids in zip(texts, tokens, strict=True):
        if tokenizer.unk_token_id in ids:
            raise InputError(
                f"task {task.name!r}: the label {text!r} has a token unknown to the tokenizer; "
                f"use words that it knows"
            )
    for one, two in itertools.combinations(range(len(texts)), 2):
        if tokens[one] == tokens[two]:
            raise InputError(
                f"task {task.name!r}: the labels {texts[one]!r} and {texts[two]!r} are the same "
                f"after tokenization; use words that differ"
            )
    return tokens


def check_labels(folder: Path, tasks: Sequence[Task], text_format: str) -> None:
    """Raise `InputError` for a task whose labels the T5 model in `folder` cannot write."""
    for task in tasks:
        label_tokens(tokenizer(folder), task, text_format)


def interpolate(model: BaseModel, end: BaseModel, position: float) -> None:
    """Move the body of `model` in place along the straight line to that of `end`.

    Each tensor becomes `(1 - position) * model + position * end`, in fp32; position 0 leaves it as
    it is and 1 makes it equal to `end`, bit for bit. Integer tensors are unchanged.
    """
    there = end.body.state_dict()
    between = {  # computed before any is loaded: tied weights have several names
        name: torch.lerp(tensor, there[name], position) if tensor.is_floating_point() else tensor
        for name, tensor in model.body.state_dict().items()
    }
    model.body.load_state_dict(between)


def _config(folder: Path, dropout: float):
    """The config in `folder` with every dropout probability set to `dropout`."""
    config = config_of(folder)
    for name, value in config.to_dict().items():
        if "dropout" in name and type(value) in (int, float):
            setattr(config, name, dropout)
    return config
