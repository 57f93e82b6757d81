"""Results of the playground: one target, a few base models, some seeds."""

import math
from typing import Any

import numpy as np
import pandas as pd
import yaml

from fusinglib.evaluation import statistics, worlds
from fusinglib.evaluation.tables import metric_of, scored
from fusinglib.study.plans import Plan, Run
from fusinglib.study.settings import FusePlayground
from fusinglib.study.store import Store
from fusinglib.training import data
from fusinglib.training.settings import Data
from fusinglib.training.tasks import Task

BASES = ["pretrained", "intertrained", "fused"]
DIFFERENCES = [("fused", "pretrained"), ("fused", "intertrained"), ("intertrained", "pretrained")]


def histories(plan: Plan, store: Store) -> pd.DataFrame:
    """The evaluations of the target runs so far: a row each, with base, seed, step, ``loss`` (of
    training, nats) and ``accuracy`` (dev, percent)."""
    rows = [
        (row["base"], row["seed"], at["step"], at["loss"], 100 * at[metric])
        for row in plan.rows
        for metric in [row["run"].settings["training"]["metric"]]
        for at in store.history(row["run"])
    ]
    return pd.DataFrame(rows, columns=["base", "seed", "step", "loss", "accuracy"])


SCOPES = ("this test set", "texts like these")
"""What an interval covers: other seeds, and other test texts as well."""


def answers(plan: Plan, store: Store) -> dict[str, pd.DataFrame]:
    """Which test texts the finished runs from each base model got right: 1 or 0, one row per seed
    and one column per text. Empty if runs are selected by macro-F1, which is not a mean over
    texts."""
    right: dict[str, dict[int, np.ndarray]] = {base: {} for base in BASES}
    for row in plan.rows:
        if _by_accuracy(row["run"]) and store.has(row["run"]):
            right[row["base"]][row["seed"]] = answered(row["run"], row["run"].task, store)
    return {base: pd.DataFrame.from_dict(runs, orient="index") for base, runs in right.items()}


def _by_accuracy(run: Run) -> bool:
    return run.settings["training"]["metric"] != "macro_f1"


def answered(run: Run, task: Task | None, store: Store) -> np.ndarray:
    """Which test texts of its task a finished run got right: 1 or 0 each; none (an empty array) if
    it was selected by macro-F1, which is not a mean over texts."""
    if not task or not _by_accuracy(run):
        return np.empty(0)
    test = data.load(task, Data(**run.settings["data"])).test
    return (store.predictions(run)[run.settings["training"]["metric"]] == test.labels).astype(float)


def gap(right: np.ndarray, scope: str) -> statistics.Estimate:
    """The mean of right answers, or of their differences, (seeds, texts), in one of the `SCOPES`:
    seeds are drawn in both, texts in the second (a two-way table, see `worlds.Squares`).

    If all seeds agree by chance, the value is known only up to the rounding of a count of correct
    answers. One seed has no interval.
    """
    seeds, texts = right.shape
    if seeds < 2 or texts < 2:
        return statistics.Estimate(float(right.mean()) if right.size else math.nan)
    known = worlds.estimate(right, worlds.SCOPES[SCOPES.index(scope)])
    return known._replace(variance=max(known.variance, 1 / (12 * texts**2 * seeds)))


def accuracies(results: pd.DataFrame, right: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Test accuracy from each base model, in percent: mean over seeds with its 95 % interval over
    seeds and texts like these (cut off at 0 and 100), standard deviation over seeds, and how many
    seeds are finished; NaN for what cannot be computed. `right` are the `answers`; without them the
    interval is over seeds.
    """
    rows = {}
    for base in BASES:
        runs = scored(results.query("base == @base").set_index("seed")).dropna()
        _, low, high = gaps(right.get(base), 100 * runs)[SCOPES[1]]
        spread = 100 * runs.std(ddof=1) if len(runs) > 1 else math.nan
        low, high = np.clip([low, high], 0, 100)
        rows[base] = [100 * runs.mean(), low, high, spread, len(runs)]
    names = ["accuracy", "low", "high", "std", "seeds"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("base")
    return table.astype({"seeds": int})


def gaps(right: pd.DataFrame | None, values: Any) -> dict[str, statistics.Difference]:
    """The mean of `values` of seeds, in percent or points, in both `SCOPES`; over seeds alone if
    nothing is known about texts."""
    if right is None or right.empty or len(values) != len(right):
        return dict.fromkeys(SCOPES, statistics.over_seeds(values))
    parts = right.to_numpy()
    return {scope: _percent(gap(parts, scope).interval) for scope in SCOPES}


def _percent(found: statistics.Difference) -> statistics.Difference:
    return statistics.Difference(*(100 * number for number in found))


def differences(results: pd.DataFrame, right: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Differences between base models in points, paired by seed and text, with 95 % intervals.

    `low` and `high` cover other seeds and other texts like these, `low_same` and `high_same` other
    seeds on this test set; all are for this target and these models only. `seeds` counts those that
    both have finished. `right` as in `accuracies`.
    """
    runs = results.pivot(index="seed", columns="base", values=metric_of(results))
    rows = {}
    for better, worse in DIFFERENCES:
        gains = 100 * (runs[better] - runs[worse]).dropna()
        paired = right[better] - right[worse] if right else pd.DataFrame()
        found = gaps(paired.dropna(), gains)
        same, (estimate, low, high) = (found[scope] for scope in SCOPES)
        rows[f"{better} - {worse}"] = [estimate, low, high, same.low, same.high, len(gains)]
    names = ["estimate", "low", "high", "low_same", "high_same", "seeds"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("comparison")
    return table.astype({"seeds": int})


def collapses(results: pd.DataFrame) -> list[str]:
    """One sentence per base model whose runs collapsed: their intervals hold less often than stated
    (see `benchmarks/coverage.py`)."""
    sentences = []
    for base in BASES:
        runs = scored(results.query("base == @base")).dropna().to_numpy()
        count = round(len(runs) * np.nan_to_num(statistics.collapse_rate(runs[:, None])))
        if count:
            sentences.append(
                f"{count} of {len(runs)} runs from {base} ended more than 10 points below the "
                "median of its seeds: if runs collapse, intervals from few seeds hold in only "
                "half of all cases (benchmarks/coverage.py); add seeds."
            )
    return sentences


def verdict(results: pd.DataFrame, target: str, right: dict[str, pd.DataFrame]) -> str:
    """The comparison of fused with pretrained in one sentence. `right` as in `accuracies`."""
    found = differences(results, right).loc["fused - pretrained"]
    if np.isnan(found["estimate"]):
        counts = results[scored(results).notna()].groupby("base", sort=False).size()
        said = ", ".join(f"{base} {count}" for base, count in counts.items()) or "nothing"
        return f"Fused and pretrained cannot be compared yet; finished so far: {said}."
    gain = f"On {target}, the fused model ends {abs(found['estimate']):.1f} points "
    gain += "above pretrained" if found["estimate"] >= 0 else "below pretrained"
    seeds = int(found["seeds"])
    if np.isnan(found["low"]):
        return f"{gain}, with one seed: that decides nothing."
    texts = any(not one.empty for one in right.values())
    of = f"{seeds} seeds and texts like these" if texts else f"{seeds} seeds"
    interval = f" ({found['low']:+.1f} to {found['high']:+.1f}, 95 % over {of})"
    if found["low"] <= 0 <= found["high"]:
        return f"{gain}{interval}: undecided."
    word = "better" if found["estimate"] > 0 else "worse"
    return f"{gain}{interval}: a {word} start, for this target and these models."


def call(settings: FusePlayground) -> str:
    """The Python code that repeats the choice, in the notebook or anywhere else."""
    shared = ("model", "tasks", "world_seeds", "pretraining_seed", "source_seeds")
    words = [f"{name}={getattr(settings, name)!r}" for name in shared]
    words += [f"models={settings.models}", f"target={settings.target!r}"]
    words += [f"trained_on={settings.trained_on}"] if settings.trained_on else []
    words += [f"method={settings.method!r}"] if settings.method != "mean" else []
    words += [f"weights={settings.weights}"] if settings.weights else []
    words += [f"method_settings={settings.method_settings}"] if settings.method_settings else []
    words += [f"seeds={settings.seeds}", f"target_max_steps={settings.target_max_steps}"]
    inside = "".join(f"    {word},\n" for word in words)
    return f"from fusinglib import widgets\n\nwidgets.playground(\n{inside})"


def parameter_file(settings: FusePlayground) -> str:
    """The parameter file that repeats the comparison, whatever `common` says: for
    `fusinglib run fuse_playground --params FILE`."""
    values = {name: value for name, value in vars(settings).items() if name != "store"}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
