"""Whether an encoder finetuned in bf16 is as accurate as in fp32, and how much faster that is.

    HF_HOME=... HF_HUB_OFFLINE=1 python benchmarks/precision.py --work DIR      # ten minutes

all-MiniLM-L6-v2 on five tasks of tweets, three seeds each, in both precisions, one run for every
core. Prints the mean difference in test accuracy and in macro-F1 with its 95 % interval over the
tasks, and the ratio of the seconds that runs took. Finished runs are kept in `--work`: start it
again to resume. Writes `results/benchmarks/precision.csv`.
"""

import argparse
import dataclasses
from pathlib import Path

import pandas as pd
import train

from fusinglib.evaluation import statistics
from fusinglib.places import PROJECT
from fusinglib.study.execution import execute
from fusinglib.study.store import Store

TASKS = ("emotion", "hate", "irony", "offensive", "sentiment")
SETTING = train.Setting("tweets", train.MINILM, TASKS, 3, 20, 1.0)
COLUMNS = ["target", "seed", "accuracy", "macro_f1", "seconds"]


def main() -> None:
    """Finetune in both precisions, compare, and write a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 100 MB")
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks")
    options = parser.parse_args()
    work = options.work.absolute()
    made = {precision: runs(precision, work) for precision in ("fp32", "bf16")}
    pd.concat(made, names=["precision"]).to_csv(options.output / "precision.csv")
    for score in ("accuracy", "macro_f1"):
        gaps = 100 * (made["bf16"][score] - made["fp32"][score]).groupby("target").mean()
        found = statistics.over_seeds(gaps.to_numpy())
        interval = f"{found.low:+.2f} to {found.high:+.2f}"
        print(f"{score}: bf16 - fp32 {found.estimate:+.2f} ({interval}) over {len(gaps)} tasks")
    taken = {
        precision: found["seconds"].groupby("target").sum() for precision, found in made.items()
    }
    print("seconds, fp32 / bf16:", train.spread(taken["fp32"] / taken["bf16"]))


def runs(precision: str, work: Path) -> pd.DataFrame:
    """Scores and seconds of all runs in a precision, by task and seed."""
    settings, known = train.settings_of(SETTING, work / "runs")
    settings = dataclasses.replace(settings, precision=precision)
    plan = train.plan_of(settings, known, train.base(settings, work))
    results = execute(plan, Store(work / "runs"), settings)
    return results[COLUMNS].set_index(["target", "seed"])


if __name__ == "__main__":
    main()
