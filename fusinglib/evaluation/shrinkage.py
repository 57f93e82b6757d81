"""Is fusing more than a shorter update? Gains of base models against the norm of their update."""

# pandas annotates what groupby and unstack return too widely to be checked.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

import numpy as np
import pandas as pd

from fusinglib.evaluation import claims, tables, worlds
from fusinglib.fusion import geometry
from fusinglib.fusion.geometry import Updates
from fusinglib.study.arms import RANDOM
from fusinglib.study.plans import Plan, Run
from fusinglib.study.store import Store


def with_norms(results: pd.DataFrame, plan: Plan, store: Store) -> pd.DataFrame:
    """The results with a column ``update``: the norm of the base model's update, in percent of the
    norm of the pretrained weights (0 for pretrained itself; NaN for random weights, and while
    models are missing).

    It is computed from the inner products of the updates of the models that were fused.
    """
    origins: dict[int, Run] = {}
    models: dict[int, dict[str, Run]] = {}
    for row in plan.rows:
        world, model = row.get("world", 0), row["run"].parents[0]
        if row["base"] == "pretrained":
            origins[world] = model
        elif row["base"] != RANDOM:
            models.setdefault(world, {}).update({run.key: run for run in _fused(model)})
    known = {world: _updates(origins[world], runs, store) for world, runs in models.items()}
    norms = []
    for row in plan.rows:
        updates = known.get(row.get("world", 0))
        measured = updates and row["base"] != RANDOM
        norm = _norm(row["run"].parents[0], updates) if measured else np.nan
        norms.append(0.0 if row["base"] == "pretrained" else norm)
    return results.assign(update=norms)


def _updates(origin: Run, models: dict[str, Run], store: Store) -> Updates | None:
    """The updates of models from their pretrained model; None while one is missing."""
    if not all(store.has(run) for run in [origin, *models.values()]):
        return None
    folders = [store.model(run) for run in models.values()]
    return geometry.updates(store.model(origin), folders, list(models))


def _parts(model: Run) -> tuple[Run, ...]:
    """What a base model's direction and length come from: the models of a mean, or the one that is
    scaled."""
    if model.settings.get("method") == "scaled":
        return model.parents[:-1]  # its length is that of their mean
    if model.settings.get("rescaled") or "scale" in model.settings:
        return model.parents[:1]
    return model.parents


def _fused(model: Run) -> list[Run]:
    """The models that a base model was made of, however often it was fused."""
    if model.kind != "fuse":
        return [model]
    return [run for part in _parts(model) for run in _fused(part)]


def _weights(model: Run) -> dict[str, float]:
    """A sum of the updates of models, by their keys, that is as long as a base model's update."""
    if model.kind != "fuse":
        return {model.key: 1.0}
    if model.settings.get("rescaled"):
        return _weights(model.parents[1])
    factor, parts = model.settings.get("scale", 1.0), [_weights(part) for part in _parts(model)]
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: factor * sum(part.get(key, 0.0) for part in parts) / len(parts) for key in keys}


def _norm(model: Run, updates: Updates) -> float:
    """The norm of a base model's update, in percent of that of the pretrained weights."""
    weights = _weights(model)
    vector = np.array([weights.get(name, 0.0) for name in updates.names])
    return float(100 * np.sqrt(vector @ updates.products @ vector) / updates.origin)


def curves(results: pd.DataFrame, families: dict) -> pd.DataFrame:
    """The gain over pretrained of the mean and of the intertrained model at every scale, and of the
    scaled single.

    Returns: a row per base and scale with ``update`` (its mean norm, see `with_norms`), and
    ``gain``, ``low``, ``high``: points, with 95 % intervals over worlds and targets.
    """
    return _gains(results, families, ["base", "scale"], ["fused", "intertrained", "scaled single"])


def by_count(results: pd.DataFrame, families: dict) -> pd.DataFrame:
    """The gain over pretrained of means of fewer models, averaged over draws, as `curves`: a row
    per ``norm`` ("own", or "fixed": that of the mean of all) and number of ``models``; the mean of
    all is in both."""
    every = results.query("base == 'fused' and scale == 1").assign(models=np.inf)
    both = [results, *(every.assign(base="drawn", norm=norm) for norm in ("own", "fixed"))]
    joined = pd.concat(both, ignore_index=True)
    return _gains(joined, families, ["norm", "models"], ["drawn"])


def _gains(results, families, keys: list[str], bases: list[str]) -> pd.DataFrame:
    targets = tables.distinct_targets(families)
    start = tables.arrays(results.query("base == 'pretrained'"), ["base"], targets)["pretrained",]
    rows = []
    for values, part in results[results["base"].isin(bases)].groupby(keys):
        gain = worlds.difference(_averaged(part, targets), start)
        rows.append([*values, part["update"].mean(), *(100 * number for number in gain)])
    return pd.DataFrame(rows, columns=[*keys, "update", "gain", "low", "high"])


def _averaged(part: pd.DataFrame, targets: list[str]) -> np.ndarray:
    """Scores (worlds, source seeds, seeds, targets), the mean of source families and draws."""
    found = tables.arrays(part, ["source_family", "draw"], targets)
    return np.mean(list(found.values()), axis=0)


def at_equal_norm(results: pd.DataFrame, families: dict) -> pd.DataFrame:
    """The mean minus the single model, its update rescaled to the norm of the mean's, in points:
    for every scope a row with ``update``, ``estimate``, ``low``, ``high``."""
    targets = tables.distinct_targets(families)
    mean = results.query("base == 'fused' and scale == 1")
    single = results.query("base == 'scaled single'")
    runs = [_averaged(part, targets) for part in (mean, single)]
    rows = [
        [scope, mean["update"].mean(), *(100 * n for n in worlds.difference(*runs, scope))]
        for scope in claims.scopes_of(len(runs[0]))
    ]
    return pd.DataFrame(rows, columns=["scope", "update", "estimate", "low", "high"])
