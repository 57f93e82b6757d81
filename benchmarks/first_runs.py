"""The first runs of `params/paper`, executed where the Hub's T5 cannot be had: on a stand-in.

    HF_HOME=... HF_HUB_OFFLINE=1 python benchmarks/first_runs.py --work DIR

The stand-in is a T5 v1.1 small made from its config (32,128 entries, 77 million parameters, random
weights), with a unigram tokenizer trained on the texts of the same tasks. On it the family table
(source, fuse without a target, intertrained, pretrained, target), weight decay and source size are
executed as notebooks, on real GLUE and SuperGLUE data, a few batches each: this proves that they
run, and says nothing of accuracy.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import tokenizers
import torch
import transformers

from fusinglib.__main__ import main as fusinglib
from fusinglib.study.store import Store
from fusinglib.training import data
from fusinglib.training.folders import untie
from fusinglib.training.settings import Data
from fusinglib.training.tasks import TASKS

NAMES = ["rte", "cb", "copa"]
FEW = {
    "families": f"{{general: [{', '.join(NAMES)}]}}",
    "sources": "[general]", "targets": "[general]", "seeds": "[0]", "intertraining": "largest",
    "max_dev": 24, "max_test": 24, "max_length": 64, "eval_every": 2, "micro_batch": 4,
    "source_batch_size": 8, "source_max_steps": 2, "target_batch_size": 8, "target_max_steps": 2,
}  # fmt: skip
NOTEBOOKS = {
    "family_table": {},
    "weight_decay": {},
    "source_size": {"sizes": "[8, 64]"},
}
SIZE = 32_000
"""Entries of the tokenizer; T5 v1.1 pads its embeddings to 32,128."""


def stand_in(folder: Path) -> None:
    """A T5 v1.1 small that was never trained, and its tokenizer."""
    how = Data(
        split_rule="paper", split_seed=0, max_dev=0, max_test=0, text_format="t5", max_length=512
    )
    loaded = [data.load(TASKS[name], how) for name in ("mrpc", "rte", "cb", "copa", "cola", "wic")]
    texts = [data.text_input(d.task, text, "t5") for d in loaded for text in d.train.texts]
    texts += [label for one in loaded for label in one.task.labels] * 100
    model = tokenizers.Tokenizer(tokenizers.models.Unigram())
    model.normalizer = tokenizers.normalizers.NFKC()
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.decoder = tokenizers.decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    network = untrained(folder)
    tokenizer.save_pretrained(folder)
    print(
        f"stand-in: {network.num_parameters() / 1e6:.0f} million parameters, untrained; a unigram "
        f"tokenizer of {len(tokenizer):,} entries of {len(texts):,} texts, not T5's own"
    )


def untrained(folder: Path) -> transformers.PreTrainedModel:
    """Save a T5 v1.1 small with random weights, without a tokenizer."""
    config = transformers.T5Config(
        vocab_size=32_128, d_model=512, d_kv=64, d_ff=1024, num_layers=8, num_heads=6,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    network = transformers.T5ForConditionalGeneration(config)
    untie(network)
    network.save_pretrained(folder)
    return network


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="4 GB for model, store, notebooks")
    work = parser.parse_args().work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "stand-in" / "config.json").is_file():
        stand_in(work / "stand-in")
    given = {**FEW, "model": work / "stand-in", "store": work / "runs"}
    for name, own in NOTEBOOKS.items():
        arguments = ["run", name, "--params", f"params/paper/{name}.yaml", "--output", str(work)]
        for key, value in {**given, **own}.items():
            arguments += ["--set", f"{key}={value}"]
        if status := fusinglib(arguments):
            return status
    kinds = Counter(run["kind"] for run in Store(work / "runs").describe())
    print("finished:", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
