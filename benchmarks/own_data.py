"""Five data sets as users bring them, through a family table and the playground, on a real encoder.

    HF_HOME=... HF_HUB_OFFLINE=1 python benchmarks/own_data.py --work DIR

Real tweets are written into files in awkward shapes: train and test only (TSV); string labels, one
of which is "None" and blank ones are missing (Latin-1, semicolons); a label without a row; truth
values (Parquet); several files (compressed CSV and JSON lines), found by a pattern. The parameter
file lies beside them. What the commands print goes to `results/own-data/`.
"""

import argparse
import contextlib
import csv
import gzip
import io
import json
import os
from pathlib import Path

import pandas as pd
import yaml

from fusinglib.__main__ import main as fusinglib
from fusinglib.training import data
from fusinglib.training.settings import Data
from fusinglib.training.tasks import TASKS

HOW = Data(split_rule="paper", split_seed=0, max_dev=0, max_test=0, text_format="t5", max_length=64)
COMMON = {
    "seeds": [0, 1, 2],
    "arms": [],
    "max_test": 300,
    "target_max_steps": 60,
    "source_max_steps": 120,
    "common": "params/tweets/common.yaml",
}


def texts(task: str, split: str, most: int) -> list[tuple[str, str]]:
    """Texts of a task of TweetEval with the words for their labels."""
    loaded = data.load(TASKS[task], HOW)
    part = data.sample(getattr(loaded, split), most, 0, split)
    labels = [loaded.task.labels[label] for label in part.labels]
    return [(text.replace("\n", " "), label) for (text,), label in
            zip(part.texts, labels, strict=True)]  # fmt: skip


def write(folder: Path) -> dict:
    """Write the five data sets, and return the `own_tasks` that read them."""
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        rows = [f"{text}\t{label}" for text, label in texts("irony", split, 900)]
        (folder / f"{split}.tsv").write_text("\n".join(["tweet\tlabel", *rows]))

    with open(folder / "stance.csv", "w", encoding="latin-1", errors="ignore", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["text", "stance"])
        for number, (text, label) in enumerate(texts("stance_abortion", "train", 600)):
            word = {"none": "None", "against": "Against", "favor": "Favor"}[label]
            table.writerow([text, "" if number % 40 == 7 else word])

    rows = [{"text": text, "label": label} for text, label in texts("offensive", "train", 900)]
    (folder / "offensive.json").write_text(json.dumps(rows))

    frame = pd.DataFrame(texts("hate", "train", 900), columns=["text", "label"])
    frame.assign(label=frame["label"] == TASKS["hate"].labels[1]).to_parquet(
        folder / "hateful.parquet"
    )

    rows = texts("stance_climate", "train", 999) + texts("stance_hillary", "train", 999)
    with gzip.open(folder / "part1.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows[:300]])
    lines = [json.dumps({"text": text, "label": label}) for text, label in rows[300:]]
    (folder / "part2.jsonl").write_text("\n".join(lines))

    one = {"columns": ["text"]}
    return {
        "ironic": {
            "files": {"train": "train.tsv", "test": "test.tsv"}, "columns": ["tweet"],
            "labels": list(TASKS["irony"].labels), "quotes": False,
        },
        "abortion": {
            **one, "files": "stance.csv", "separator": ";", "encoding": "latin-1",
            "label_column": "stance", "labels": ["none", "against", "favor"],
            "names": ["None", "Against", "Favor"], "skip_bad_rows": True,
        },
        "rude": {
            **one, "files": "offensive.json",
            "labels": [*TASKS["offensive"].labels, "threatening"],
        },
        "hateful": {**one, "files": "hateful.parquet", "labels": ["no", "yes"]},
        "other_stance": {
            **one, "files": "part*", "labels": list(TASKS["stance_climate"].labels)
        },
    }  # fmt: skip


def said(*words: str) -> str:
    """What a command prints; raises if it fails."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        if fusinglib(list(words)):
            raise SystemExit(f"failed: fusinglib {' '.join(words)}")
    work = Path(os.environ["FUSINGLIB_STORE"]).parent
    return stream.getvalue().replace(f"{work}/", "")


def main() -> None:
    """Write the data, run the commands, and record what they print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="a folder for data, runs and outputs")
    parser.add_argument("--results", default="results/own-data")
    options = parser.parse_args()
    work, results = Path(options.work).resolve(), Path(options.results)
    work.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    os.environ["FUSINGLIB_STORE"] = str(work / "runs")
    own = write(work / "data")
    shared = {
        **COMMON, "model": "sentence-transformers/all-MiniLM-L6-v2", "tasks": "paper",
        "own_tasks": own,
    }  # fmt: skip
    family = {"families": {"mine": list(own)}, "sources": ["mine"], "targets": ["mine"]}
    chosen = {
        "models": [name for name in own if name != "hateful"], "target": "hateful",
        "method": "mean", "weights": [], "method_settings": {},
    }  # fmt: skip
    for name, more in (("family_table", family), ("fuse_playground", chosen)):
        file = work / "data" / f"{name}.yaml"
        values = {**shared, **more}
        if name == "fuse_playground":
            del values["arms"]
        file.write_text(yaml.safe_dump(values, sort_keys=False))
    table = ["--params", str(work / "data/family_table.yaml")]
    playground = ["--params", str(work / "data/fuse_playground.yaml")]
    output = ["--output", str(work / "executed")]
    commands = {
        "tasks": ["tasks", *own, *table],
        "plan": ["run", "family_table", *table, "--plan"],
        "family_table": ["run", "family_table", *table, *output],
        "fuse_playground": ["run", "fuse_playground", *playground, *output],
    }
    for name, words in commands.items():
        (results / f"{name}.txt").write_text(said(*words))
    (results / "params.yaml").write_text((work / "data/family_table.yaml").read_text())


if __name__ == "__main__":
    main()
