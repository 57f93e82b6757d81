"""Is fusing more than a shorter update? Gains of base models against the norm of their update."""

# pandas annotates what groupby and unstack return too widely to be checked.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

import numpy as np
import pandas as pd

from fusinglib.evaluation import claims, tables, worlds
from fusinglib.fusion import geometry
from fusinglib.fusion.geometry import Updates
from fusinglib.study.plans import Plan, Run
from fusinglib.study.store import Store

CELL = ["world", "source_family", "source_seed", "seed", "target"]


def with_norms(results: pd.DataFrame, plan: Plan, store: Store) -> pd.DataFrame:
    """The results with a column ``update``: the norm of the base model's update, in percent of the
    norm of the pretrained weights (0 for pretrained itself; NaN while models are missing).

    It is computed from the inner products of the source models' updates.
    """
    known = {key: _updates(runs, store) for key, runs in _sources(plan).items()}
    norms = []
    for row in plan.rows:
        model = row["run"].parents[0]
        weights = _weights(model)
        updates = next((u for u in known.values() if u and {*weights} <= {*u.names}), None)
        norms.append(_norm(model, updates) if updates else np.nan if weights else 0.0)
    return results.assign(update=norms)


def _sources(plan: Plan) -> dict[str, list[Run]]:
    """The source models of every pretrained model, by its key."""
    found: dict[str, list[Run]] = {}
    for model in plan.models:
        if model.kind == "source":
            found.setdefault(model.parents[0].key, []).append(model)
    return found


def _updates(models: list[Run], store: Store) -> Updates | None:
    """The updates of models from their pretrained model; None while one is missing."""
    origin = models[0].parents[0]
    if not all(store.has(run) for run in [origin, *models]):
        return None
    folders = [store.model(run) for run in models]
    return geometry.updates(store.model(origin), folders, [run.key for run in models])


def _weights(model: Run) -> dict[str, float]:
    """A base model's update as a sum of those of source models, by their keys: the weights. What
    is rescaled is given as it was before."""
    if model.kind == "source":
        return {model.key: 1.0}
    if model.settings.get("rescaled") or "scale" in model.settings:
        factor = model.settings.get("scale", 1.0)
        return {key: factor * weight for key, weight in _weights(model.parents[0]).items()}
    parts = [_weights(parent) for parent in model.parents]
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: sum(part.get(key, 0.0) for part in parts) / len(parts) for key in keys}


def _norm(model: Run, updates: Updates) -> float:
    """The norm of a base model's update, in percent of that of the pretrained weights."""
    weights = _weights(model.parents[1] if model.settings.get("rescaled") else model)
    vector = np.array([weights.get(name, 0.0) for name in updates.names])
    return float(100 * np.sqrt(vector @ updates.products @ vector) / updates.origin)


def curves(results: pd.DataFrame, families: dict) -> pd.DataFrame:
    """The gain over pretrained of the mean and of the intertrained model at every scale.

    Returns: a row per base and scale with ``update`` (its mean norm, see `with_norms`), and
    ``gain``, ``low``, ``high``: points, with 95 % intervals over worlds and targets.
    """
    return _gains(results, families, ["base", "scale"], ["fused", "intertrained"])


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
    """The mean minus the single model with an update of the same norm, in points.

    The single model's score is interpolated between its scales (linearly in the norm, from
    pretrained at 0), in every world, for every target and seed. Scales of the mean with a longer
    update than the single model ever has are left out.

    Returns: a row per scale of the mean with ``scope``, ``update``, ``estimate``, ``low``,
    ``high``.
    """
    targets = tables.distinct_targets(families)
    results = results if "world" in results else results.assign(world=0)
    scores = results.assign(score=tables.scored(results))
    start = scores.query("base == 'pretrained'").set_index(["world", "seed", "target"])["score"]
    single = dict(list(scores.query("base == 'intertrained'").groupby(CELL)))
    mean = scores.query("base == 'fused'").copy()
    mean["score"] -= [
        _interpolated(update, single[cell], start[cell[0], cell[3], cell[4]])
        for update, *cell_ in mean[["update", *CELL]].itertuples(index=False)
        for cell in [tuple(cell_)]
    ]
    rows = []
    for scale, part in mean.groupby("scale"):
        if part["score"].notna().all():
            difference = part.assign(accuracy=part["score"], metric="accuracy")
            runs = _averaged(difference, targets)
            scope = worlds.SCOPES[1] if len(runs) > 1 else claims.HERE
            found = [100 * number for number in worlds.difference(runs, 0.0)]
            rows.append([scope, scale, part["update"].mean(), *found])
    return pd.DataFrame(rows, columns=["scope", "scale", "update", "estimate", "low", "high"])


def _interpolated(update: float, runs: pd.DataFrame, start: float) -> float:
    """A single model's score with an update of this norm; NaN beyond its longest."""
    runs = runs.sort_values("update")
    norms, scores = [0.0, *runs["update"]], [start, *runs["score"]]
    return float(np.interp(update, norms, scores, right=np.nan))
