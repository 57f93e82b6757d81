"""What a user would write instead of fusinglib: a loop around the Transformers Trainer.

    python benchmarks/train_peer.py SPEC.json

SPEC names a model folder, the files of its tasks (`benchmarks/train.py` writes both), how to train,
and the runs. For every run the model is opened, finetuned with evaluations at the dev set, its best
weights brought back, and the test set predicted: `Seq2SeqTrainer` with generation for a T5,
`Trainer` for an encoder. Prints a line of JSON for each run.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import load_dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)


def finetune(spec: dict, task: str, seed: int) -> dict:
    """One run: its accuracies and how much was done."""
    started = time.perf_counter()
    how, folder = spec["training"], spec["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    files = {name: f"{spec['data']}/{task}-{name}.json" for name in ("train", "dev", "test")}
    rows = load_dataset("json", data_files=files)
    labels = json.loads(Path(spec["data"], f"{task}-labels.json").read_text())
    shared = {
        "learning_rate": how["learning_rate"],
        "lr_scheduler_type": how["schedule"],
        "weight_decay": how["weight_decay"],
        "max_grad_norm": 0.0,
        "max_steps": how["max_steps"],
        "per_device_train_batch_size": how["batch_size"],
        "per_device_eval_batch_size": 128,
        "train_sampling_strategy": "group_by_length",
        "eval_strategy": "steps",
        "eval_steps": how["eval_every"],
        "save_strategy": "steps",
        "save_steps": how["eval_every"],
        "save_total_limit": 1,
        "save_only_model": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": True,
        "seed": seed,
    }
    transformers.set_seed(seed)

    def encode(batch: dict) -> dict:
        given = [batch[name] for name in ("text", "pair") if name in batch]
        encoded = tokenizer(*given, truncation=True, max_length=how["max_length"])
        if spec["text_to_text"]:
            written = tokenizer([labels[label] for label in batch["label"]])
            return {**encoded, "labels": written["input_ids"]}
        return {**encoded, "labels": batch["label"]}

    rows = rows.map(encode, batched=True, remove_columns=rows["train"].column_names)
    with tempfile.TemporaryDirectory() as output:
        if spec["text_to_text"]:
            model = AutoModelForSeq2SeqLM.from_pretrained(
                folder, dropout_rate=how["dropout"], classifier_dropout=how["dropout"]
            )
            longest = max(len(tokenizer(label)["input_ids"]) for label in labels)
            arguments = Seq2SeqTrainingArguments(
                output, predict_with_generate=True, generation_max_length=longest + 1,
                generation_num_beams=1, **shared,
            )  # fmt: skip
            kind, collator = Seq2SeqTrainer, DataCollatorForSeq2Seq(tokenizer, model)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=len(labels), hidden_dropout_prob=how["dropout"],
                attention_probs_dropout_prob=how["dropout"],
            )  # fmt: skip
            arguments = TrainingArguments(output, **shared)
            kind, collator = Trainer, DataCollatorWithPadding(tokenizer)

        evaluations = []

        def accuracy(predicted) -> dict:
            evaluations.append(1)
            said, right = predicted.predictions, predicted.label_ids
            if not spec["text_to_text"]:
                return {"accuracy": float((said.argmax(-1) == right).mean())}
            pad = tokenizer.pad_token_id
            said, right = (
                tokenizer.batch_decode(np.where(ids == -100, pad, ids), skip_special_tokens=True)
                for ids in (said, right)
            )
            return {"accuracy": float(np.mean([a == b for a, b in zip(said, right, strict=True)]))}

        trainer = kind(
            model=model, args=arguments, data_collator=collator, compute_metrics=accuracy,
            train_dataset=rows["train"], eval_dataset=rows["dev"], processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        test = trainer.predict(rows["test"]).metrics["test_accuracy"]
    return {
        "task": task,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "accuracy": test,
        "steps": trainer.state.global_step,
        "evaluations": len(evaluations),
        "train": len(rows["train"]),
    }


def main() -> None:
    transformers.logging.set_verbosity_error()
    spec = json.loads(Path(sys.argv[1]).read_text())
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    for task, seed in spec["runs"]:
        with contextlib.redirect_stdout(sys.stderr):  # the Trainer prints its metrics
            made = finetune(spec, task, seed)
        print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
