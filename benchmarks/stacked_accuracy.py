"""Whether runs trained as one are as accurate as runs alone: 13 tasks of the miniature world, three
seeds each, with dropout.

    python benchmarks/stacked_accuracy.py --work DIR        # five minutes on one core

Without dropout both have the same predictions but for ties (`tests/test_stacked.py`); with it they
draw other random numbers, and so end elsewhere. Prints the mean difference in test accuracy, and
its 95 % interval over the tasks. Writes `results/benchmarks/stacked_accuracy.csv`.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from fusinglib.places import PROJECT
from fusinglib.study import parameters
from fusinglib.study.resolver import base_model
from fusinglib.study.steps import perform
from fusinglib.study.store import Store
from fusinglib.training import data, finetuning, models, stacked
from fusinglib.training.scoring import metrics, predict

SEEDS = (0, 1, 2)


def main() -> None:
    """Train everything twice, compare and write a row for each task and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 10 MB")
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {"store": str(options.work / "runs"), "dropout": 0.1}
    settings = parameters.settings("family_table", given)
    store, (start, _) = Store(settings.store_folder()), base_model(settings)
    perform(start, store, "cpu")
    known, families = settings.known_tasks()
    rows = []
    for name in sorted({task for family in families.values() for task in family}):
        rows += compare(known[name], store.model(start), settings)
        print(rows[-len(SEEDS) :], flush=True)
    found = pd.DataFrame(rows)
    found.to_csv(options.output / "stacked_accuracy.csv", index=False)
    by_task = 100 * (found["stacked"] - found["alone"]).groupby(found["task"]).mean()
    half = stats.t.ppf(0.975, len(by_task) - 1) * by_task.sem()
    print(f"stacked - alone, points: {by_task.mean():+.2f} +- {half:.2f} over {len(by_task)} tasks")


def compare(task, folder: Path, settings) -> list[dict]:
    """Test accuracies on a task of runs alone, and of the same as one."""
    how, training = settings.data(), settings.target_training()
    loaded = data.load(task, how)
    made = [models.load(folder, task, training, how, seed=s, device="cpu") for s in SEEDS]
    train, dev, test = (made[0].encode(getattr(loaded, split)) for split in data.SPLITS)
    stack = stacked.Stack(made)
    stacked.finetune(stack, train, dev, training, SEEDS)
    together = predict(stack, test)["ranked"]
    rows = []
    for row, seed in enumerate(SEEDS):
        model = models.load(folder, task, training, how, seed=seed, device="cpu")
        finetuning.finetune(model, train, dev, training, seed)
        alone = metrics(predict(model, test), test.labels)["ranked"]
        accuracy = float(np.mean(together[row] == test.labels))
        rows.append({"task": task.name, "seed": seed, "alone": alone, "stacked": accuracy})
    return rows


if __name__ == "__main__":
    main()
