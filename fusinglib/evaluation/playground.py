"""What came out in the playground: one target, a few base models, some seeds."""

import math

import numpy as np
import pandas as pd
import yaml

from fusinglib.evaluation import statistics
from fusinglib.evaluation.tables import metric_of, scored
from fusinglib.study.plans import Plan
from fusinglib.study.settings import FusePlayground
from fusinglib.study.store import Store

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


def accuracies(results: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy from each base model, in percent: mean over seeds with its 95 % t interval,
    standard deviation, and how many seeds are finished; NaN for what they do not give."""
    rows = {}
    for base in BASES:
        runs = scored(results.query("base == @base").set_index("seed")).dropna()
        mean, low, high = statistics.over_seeds(100 * runs)
        spread = 100 * runs.std(ddof=1) if len(runs) > 1 else math.nan
        rows[base] = [mean, low, high, spread, len(runs)]
    names = ["accuracy", "low", "high", "std", "seeds"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("base")
    return table.astype({"seeds": int})


def differences(results: pd.DataFrame) -> pd.DataFrame:
    """Differences between base models in points, paired by seed, with 95 % t intervals over the
    seeds that both have finished. They speak of this target and these models alone."""
    runs = results.pivot(index="seed", columns="base", values=metric_of(results))
    rows = {}
    for better, worse in DIFFERENCES:
        gap = 100 * (runs[better] - runs[worse]).dropna()
        rows[f"{better} - {worse}"] = [*statistics.over_seeds(gap), len(gap)]
    names = ["estimate", "low", "high", "seeds"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=names).rename_axis("comparison")
    return table.astype({"seeds": int})


def verdict(results: pd.DataFrame, target: str) -> str:
    """The comparison of fused with pretrained in a sentence."""
    found = differences(results).loc["fused - pretrained"]
    if np.isnan(found["estimate"]):
        return "Nothing is finished yet."
    gain = f"On {target}, the fused model ends {abs(found['estimate']):.1f} points "
    gain += "above pretrained" if found["estimate"] >= 0 else "below pretrained"
    seeds = int(found["seeds"])
    if np.isnan(found["low"]):
        return f"{gain}, with one seed: that decides nothing."
    interval = f" ({found['low']:+.1f} to {found['high']:+.1f}, 95 % over {seeds} seeds)"
    if found["low"] <= 0 <= found["high"]:
        return f"{gain}{interval}: undecided."
    word = "better" if found["estimate"] > 0 else "worse"
    return f"{gain}{interval}: a {word} start, for this target and these models."


def call(settings: FusePlayground) -> str:
    """The call of Python that makes the fused model again."""
    words = [f"models={settings.models}", f"target={settings.target!r}"]
    words += [f"trained_on={settings.trained_on}"] if settings.trained_on else []
    words += [f"method={settings.method!r}"] if settings.method != "mean" else []
    words += [f"weights={settings.weights}"] if settings.weights else []
    words += [f"method_settings={settings.method_settings}"] if settings.method_settings else []
    words += [f"seeds={settings.seeds}", f"target_max_steps={settings.target_max_steps}"]
    return f"fusinglib.widgets.playground({', '.join(words)})"


def parameter_file(settings: FusePlayground) -> str:
    """The parameter file that repeats the comparison, whatever `common` says: for
    `python -m fusinglib run fuse_playground --params FILE`."""
    values = {name: value for name, value in vars(settings).items() if name != "store"}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)
