"""Whether runs trained as one are as accurate as runs alone: 13 tasks of the miniature world, three
seeds each, without dropout and with it.

    python benchmarks/stacked_accuracy.py --work DIR        # ten minutes on one core

Without dropout only rounding differs, which grows from step to step; with it other random numbers
are drawn. Prints the mean difference in test accuracy with its 95 % interval over the tasks, and
the share of test texts with the same prediction. Writes `results/benchmarks/stacked_accuracy.csv`.
"""

import argparse
from dataclasses import replace
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
from fusinglib.training.scoring import predict

SEEDS, DROPOUT = (0, 1, 2), (0.0, 0.1)


def main() -> None:
    """Train everything twice, compare and write a row for each task and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 10 MB")
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {"store": str(options.work / "runs")}
    settings = parameters.settings("family_table", given)
    store, (start, _) = Store(settings.store_folder()), base_model(settings)
    perform(start, store, "cpu")
    known, families = settings.known_tasks()
    rows = []
    for dropout in DROPOUT:
        how = replace(settings, dropout=dropout)
        for name in sorted({task for family in families.values() for task in family}):
            rows += compare(known[name], store.model(start), how)
            print(rows[-len(SEEDS) :], flush=True)
    found = pd.DataFrame(rows)
    found.to_csv(options.output / "stacked_accuracy.csv", index=False)
    for dropout, some in found.groupby("dropout"):
        points = 100 * (some["stacked"] - some["alone"]).groupby(some["task"]).mean()
        half = stats.t.ppf(0.975, len(points) - 1) * points.sem()
        said = f"stacked - alone {points.mean():+.2f} +- {half:.2f} points over {len(points)} tasks"
        print(
            f"dropout {dropout:g}: {said}; {some['same'].mean():.1%} of the predictions are equal"
        )


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
        alone = predict(model, test)["ranked"]
        found = {"alone": alone == test.labels, "stacked": together[row] == test.labels}
        found |= {"same": alone == together[row]}
        own = {"dropout": training.dropout, "task": task.name, "seed": seed}
        rows.append(own | {name: float(np.mean(right)) for name, right in found.items()})
    return rows


if __name__ == "__main__":
    main()
