"""Fixtures: tiny settings, tiny models, and a scratch view of the Hub cache that HF_HOME names."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read by the Hugging Face libraries when they are imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import ipaddress
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
import yaml

from fusinglib import fuse
from fusinglib.places import PROJECT
from fusinglib.study.settings import FamilyTable
from fusinglib.training import miniworld, models, pretraining, tasks
from fusinglib.training.settings import Data, Training

# A shell's background job ignores Ctrl-C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = {
    "pretraining_steps": 2,
    "families": {"few": ["sentiment", "mood", "irony"]},
    "sources": ["few"],
    "targets": ["few"],
    "arms": [],
    "seeds": [0, 1],
    "max_dev": 20,
    "max_test": 20,
    "source_max_steps": 2,
    "target_max_steps": 2,
    "eval_every": 1,
    "executor": "serial",
    "device": "cpu",
}


def weights_hash(model) -> str:
    """The hash by which a fused model names this parent."""
    with tempfile.TemporaryDirectory() as folder:
        return fuse([model], Path(folder) / "copy", progress=False).hashes[0]


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = "127.0.0.1" if address[0] == "localhost" else address[0]
            if not ipaddress.ip_address(host).is_loopback:
                raise RuntimeError(f"a test tried to connect to {address}")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(autouse=True)
def no_added_tasks():
    """Forget the tasks that a test, or a page of the docs run by a test, has added."""
    yield
    tasks.ADDED.clear()


@pytest.fixture
def mini(tmp_path) -> dict:
    """All parameters of params/mini/family_table.yaml made tiny, with a store of the test's own."""
    files = [PROJECT / f"params/mini/{name}.yaml" for name in ("common", "family_table")]
    common, own = [yaml.safe_load(file.read_text()) for file in files]
    known = {field.name for field in dataclasses.fields(FamilyTable)}
    parameters = {name: value for name, value in (common | own).items() if name in known}
    return {**parameters, **TINY, "store": str(tmp_path / "runs")}


@pytest.fixture(scope="session")
def training() -> Training:
    """How tests finetune; change single fields with `dataclasses.replace`."""
    return Training(
        learning_rate=1e-3, schedule="constant", weight_decay=0.0, dropout=0.1, batch_size=16,
        max_steps=4, eval_every=2, patience=100, min_gain=0.001, metric="ranked",
        precision="fp32", threads=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def how() -> Data:
    """How tests read data; change single fields with `dataclasses.replace`."""
    return Data(
        split_rule="paper", split_seed=0, max_dev=40, max_test=40, text_format="t5", max_length=64
    )


@pytest.fixture(scope="session")
def mini_tasks() -> dict[str, tasks.Task]:
    """The tasks of the miniature world with seed 0."""
    return tasks.mini_tasks(0)


@pytest.fixture(scope="session")
def t5(tmp_path_factory) -> Path:
    """The folder of a T5 v1.1 (its head untied) pretrained on the miniature world for a moment."""
    folder = tmp_path_factory.mktemp("models") / "t5"
    pretraining.pretrain(folder, world_seed=0, seed=0, steps=20)
    return folder


@pytest.fixture(scope="session")
def tied_t5(tmp_path_factory) -> Path:
    """The folder of an untrained T5 1.0: one matrix is the embedding and the head."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    tokenizer = miniworld.tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_ff=32, d_kv=8, num_heads=2, num_layers=1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def finetuned(tmp_path, training, how):
    """Saves a model that differs from its start, as a finetuned one does: `(start, task, seed)`."""

    def make(start, task, seed=0):
        folder = tmp_path / f"{start.name}-{task.name}-{seed}"
        model = models.load(start, task, training, how, seed=seed, device="cpu")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            if hasattr(model.network, "classifier"):
                for parameter in model.network.classifier.parameters():
                    parameter *= 10  # far from uniform probabilities
        model.save(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def encoder_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer as BERT uses it, over the words of the miniature world."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = sorted(set(miniworld.tokenizer().get_vocab()) - set(special))
    vocabulary = {word: number for number, word in enumerate([*special, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


@pytest.fixture(scope="session")
def encoders(tmp_path_factory, encoder_tokenizer) -> dict[str, Path]:
    """Folders of tiny untrained encoders by architecture, saved as bodies with a pooler or none."""
    size = {"vocab_size": len(encoder_tokenizer), "pad_token_id": 0}
    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 80,
    }  # fmt: skip
    configs = {
        "bert": transformers.BertConfig(**size, **small),
        "roberta": transformers.RobertaConfig(**size, **small, type_vocab_size=1),
        "distilbert": transformers.DistilBertConfig(
            **size, dim=32, n_layers=2, n_heads=2, hidden_dim=48, max_position_embeddings=80
        ),
        "deberta": transformers.DebertaV2Config(
            **size, **small, relative_attention=True, position_biased_input=False,
            pos_att_type=["p2c", "c2p"], max_relative_positions=20, type_vocab_size=0,
        ),
        "electra": transformers.ElectraConfig(**size, **small, embedding_size=16),
        "albert": transformers.AlbertConfig(**size, **small, embedding_size=16),
        "mpnet": transformers.MPNetConfig(**size, **small),
        "xlm-roberta": transformers.XLMRobertaConfig(**size, **small, type_vocab_size=1),
        "modernbert": transformers.ModernBertConfig(
            **size, **small, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
        ),
    }  # fmt: skip
    folders = {}
    for number, (name, config) in enumerate(configs.items()):
        folders[name] = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(number)
        transformers.AutoModel.from_config(config).save_pretrained(folders[name])
        encoder_tokenizer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def encoder(encoders) -> Path:
    """The folder of a tiny untrained BERT."""
    return encoders["bert"]


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """Real data: the prepared data sets of the cache that HF_HOME names, linked into a scratch
    folder, since the libraries write beside them. Tests that ask for it are skipped without it."""
    import datasets

    cache = Path(os.environ.get("HF_HOME", "nowhere")) / "datasets"
    if not (cache / "cardiffnlp___tweet_eval").is_dir():
        pytest.skip("HF_HOME names no cache with the study's real data (cardiffnlp/tweet_eval)")
    scratch = tmp_path_factory.mktemp("hub") / "datasets"
    ignored = shutil.ignore_patterns("*.lock")
    shutil.copytree(cache, scratch, copy_function=os.symlink, ignore=ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(scratch))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", scratch)
        yield scratch
