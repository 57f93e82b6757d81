"""What was tried on the playground's target before: every base model in the store, compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fusinglib.evaluation import playground, statistics
from fusinglib.study.plans import OF_TARGETS, Plan, Run
from fusinglib.study.store import Store

COLUMNS = [
    "key", "models", "method", "weights", "settings", "accuracy", "dev",
    "gain", "low", "high", "seeds", "seconds", "runs",
]  # fmt: skip


def tried(plan: Plan, store: Store) -> pd.DataFrame:
    """All base models in the store that were finetuned on the plan's target in the plan's way, the
    best first: a row each.

    ``key`` is that of the base model's run, ``models`` are the keys of the models it is made of
    (itself, if it is not fused), ``method``, ``weights`` and ``settings`` say how; ``accuracy`` on
    test and ``dev``, in percent, are means over ``seeds`` seeds; ``gain`` over pretrained in
    points, paired by seed, with its 95 % interval over seeds (``low``, ``high``: this test set);
    ``seconds`` is what its finetuning took, ``runs`` are the keys of its runs by seed.
    """
    start = next(row["run"] for row in plan.rows if row["base"] == "pretrained")
    pretrained, found = start.parents[0].key, _runs(start, store)
    base = _column(found.get(pretrained, {}), "accuracy")
    rows = [
        _row(file, runs, base, pretrained)
        for key, runs in found.items()
        for file in store.root.glob(f"[!.]*/{key}/run.json")  # none if it was quarantined
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("gain", ascending=False, ignore_index=True)


def _runs(start: Run, store: Store) -> dict[str, dict[int, dict]]:
    """The results of all runs that differ from `start` in base model and seed alone: by the base
    model's key, then by seed."""
    found: dict[str, dict[int, dict]] = {}
    wanted = _but_seed(json.loads(json.dumps(start.settings)))  # lists for tuples
    metric = "macro_f1" if start.settings["training"]["metric"] == "macro_f1" else "accuracy"
    for path in store.root.glob("target/*/run.json"):
        said = json.loads(path.read_text())
        if _but_seed(said["settings"]) == wanted:
            result = json.loads((path.parent / "result.json").read_text())
            numbers = {"accuracy": 100 * result[metric], "dev": 100 * result["dev"]}
            numbers |= {"seconds": result["seconds"], "run": path.parent.name}
            seed = said["settings"]["seed"] % OF_TARGETS
            found.setdefault(said["parents"][0], {})[seed] = numbers
    return found


def _but_seed(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name != "seed"}


def _column(runs: dict[int, dict], name: str) -> pd.Series:
    return pd.Series({seed: run[name] for seed, run in runs.items()}, dtype=float)


def _row(file: Path, runs: dict[int, dict], base: pd.Series, pretrained: str) -> dict:
    said, key = json.loads(file.read_text()), file.parent.name
    if said["kind"] == "fuse":
        settings = dict(said["settings"])
        method, models = settings.pop("method", "mean"), said["parents"]
        settings.pop("with_pretrained", None)
    else:
        settings, models = {}, [key]
        method = "random weights" if said["kind"] == "random" else "one model"
        method = "pretrained" if key == pretrained else method
    accuracy = _column(runs, "accuracy")
    gain = statistics.over_seeds((accuracy - base).dropna().to_numpy())
    return {
        "key": key,
        "models": [one for one in models if one != pretrained or key == pretrained],
        "method": method,
        "weights": settings.pop("weights", []),
        "settings": settings,
        "accuracy": accuracy.mean(), "dev": _column(runs, "dev").mean(),
        "gain": gain.estimate, "low": gain.low, "high": gain.high, "seeds": len(runs),
        "seconds": _column(runs, "seconds").sum(),
        "runs": {seed: run["run"] for seed, run in runs.items()},
    }  # fmt: skip


def paired(found: pd.DataFrame, one: str, two: str, plan: Plan, store: Store) -> dict[str, Any]:
    """Two base models of `tried`, by their keys, run by run.

    Returns: ``scores``, the test accuracies in percent, a row per common seed; ``difference``, the
    mean of the first minus the second, in points with its 95 % interval; and the interval's
    ``scope`` in words: texts vary too, unless runs were selected by macro-F1 (see
    `playground.gap`).
    """
    runs: dict[str, dict[int, str]] = dict(zip(found["key"], found["runs"], strict=True))
    seeds = sorted(set(runs[one]) & set(runs[two]))
    task = plan.rows[0]["run"].task
    scores, right = {}, []
    for name, key in (("first", one), ("second", two)):
        known = [store.find(runs[key][seed]) for seed in seeds]
        scores[name] = [100 * _score(run, store) for run in known]
        right.append(pd.DataFrame([playground.answered(run, task, store) for run in known]))
    table = pd.DataFrame(scores, index=pd.Index(seeds, name="seed"))
    texts = right[0] - right[1]
    gaps = playground.gaps(texts, table["first"] - table["second"])
    scope = "seeds" if texts.empty else "seeds and texts like these"
    return {"scores": table, "difference": gaps[playground.SCOPES[1]], "scope": scope}


def _score(run: Run, store: Store) -> float:
    by_f1 = run.settings["training"]["metric"] == "macro_f1"
    return store.result(run)["macro_f1" if by_f1 else "accuracy"]


def suggestion(found: pd.DataFrame, choices: Sequence[str]) -> list[str]:
    """The next step of a greedy search for models to average, by dev accuracy on the target (never
    on its test set): the keys of the models to try next.

    Models are ordered by the dev accuracy from each of them alone (Wortsman et al., 2022, "greedy
    soup"). The best mean so far is extended by the first model that it was not yet tried with;
    without any, the two best are first. Empty if fewer than two models were tried alone, or nothing
    is left to try. `choices` are the keys of the models that may be chosen.
    """
    ordered = found.sort_values("dev", ascending=False)
    alone = [key for key in ordered.query("method == 'one model'")["key"] if key in choices]
    means = [
        frozenset(row["models"])
        for _, row in ordered[ordered["method"] == "mean"].iterrows()
        if set(row["models"]) <= set(choices)
    ]
    if len(alone) < 2:
        return []
    best = next((models for models in means if models <= set(alone)), None)
    if best is None:
        return alone[:2]
    for key in alone:
        if key not in best and best | {key} not in means:
            return [*(one for one in alone if one in best), key]
    return []
