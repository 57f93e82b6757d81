"""How many targets and seeds decide half a point? A plan for `params/controls`, from a pilot study.

    python benchmarks/plan_controls.py [--effect 0.5] [--output results/controls]

The pilot (`results/controls/pilot.csv`) has 17 targets with two seeds, run on a GPU before this
file was written: all-MiniLM-L6-v2, 20 source models, of which the target's own is left out, 300
steps. `params/controls` has qnli and multirc in place of its targets hate and cb. Tasks from one
data set (five stances) count as one target, the mean of them. Thirteen targets hardly tell how much
true differences vary over targets (two of the four estimates are zero), so the largest of the four
estimates stands for all.
Writes `plan.csv`: for each difference what the pilot found, with its 95 % interval over targets,
and for each number of targets and seeds the half-width of the interval, in points, and the power,
in percent, to find the effect.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from fusinglib.evaluation.statistics import over_seeds

DIFFERENCES = [
    ("fused", "pretrained"), ("fused", "placebo"), ("fused", "scaled single"),
    ("scaled single", "pretrained"),
]  # fmt: skip
TARGETS, SEEDS = (13, 20, 40, 80), (2, 5, 10, 20)


def gaps(pilot: pd.DataFrame, better: str, worse: str) -> pd.DataFrame:
    """Differences in points: a row per data set, a column per seed."""
    scores = pilot.pivot_table(index=["target", "seed"], columns="base", values="accuracy")
    found = 100 * (scores[better] - scores[worse]).unstack("seed")
    return found.groupby(lambda target: target.split("_")[0]).mean()


def deviations(found: pd.DataFrame) -> tuple[float, float]:
    """The standard deviations of the true difference over targets, and of one pair of runs."""
    of_seeds = float(found.var(axis=1, ddof=1).mean())
    of_targets = float(found.mean(axis=1).var(ddof=1)) - of_seeds / found.shape[1]
    return np.sqrt(max(of_targets, 0)), np.sqrt(of_seeds)


def power(effect: float, error: float, freedom: int) -> float:
    """The probability that a two-sided t test at 5 % finds an effect, in its direction."""
    critical = stats.t.ppf(0.975, freedom)
    return float(stats.nct.sf(critical, freedom, effect / error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effect", type=float, default=0.5, help="in points")
    parser.add_argument("--output", type=Path, default=Path("results/controls"))
    options = parser.parse_args()
    pilot, rows = pd.read_csv(options.output / "pilot.csv"), []
    every = {pair: gaps(pilot, *pair) for pair in DIFFERENCES}
    of_targets = max(deviations(found)[0] for found in every.values())
    for (better, worse), found in every.items():
        known, of_seeds = over_seeds(found.mean(axis=1)), deviations(found)[1]
        for targets, seeds in product(TARGETS, SEEDS):
            error = np.sqrt((of_targets**2 + of_seeds**2 / seeds) / targets)
            width = stats.t.ppf(0.975, targets - 1) * error
            chance = 100 * power(options.effect, error, targets - 1)
            rows.append([f"{better} - {worse}", *known, of_targets, of_seeds, targets, seeds,
                         width, chance])  # fmt: skip
    names = ["difference", "pilot", "low", "high", "std of targets", "std of seeds", "targets",
             "seeds", "half-width", f"power at {options.effect:g}"]  # fmt: skip
    table = pd.DataFrame(rows, columns=names).round(2)
    table.to_csv(options.output / "plan.csv", index=False)
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
