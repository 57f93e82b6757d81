"""When does fusing help? An exploration: gains against what is known before training on a target.

Nothing here was fixed beforehand and nothing decides a claim.
"""

# pandas annotates what groupby, unstack and map return too widely to be checked.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportReturnType=false

import numpy as np
import pandas as pd

from fusinglib.evaluation import statistics, tables
from fusinglib.fusion import geometry
from fusinglib.fusion.geometry import Updates
from fusinglib.study.plans import Plan
from fusinglib.study.store import Store

TRAITS = {
    "similarity": "mean cosine between the updates of the source models",
    "spread": "how much longer the longest update is than the shortest",
    "sources": "number of source models",
    "target size": "training examples of the target",
    "pretrained": "accuracy from pretrained on the target (%)",
}
"""What can be known about a cell before its fused model is finetuned, with a description."""


def cells(plan: Plan, store: Store, results: pd.DataFrame) -> pd.DataFrame:
    """A row per world, source family and target: the `TRAITS`, and the ``gain`` of the fused model
    over pretrained, in points (means over seeds and source seeds).

    The plan is that of a family table over many worlds, its source models in the store.
    """
    results = results.assign(score=tables.scored(results))
    start = results.query("base == 'pretrained'").groupby(["world", "target"])["score"].mean()
    end = results.query("base == 'fused'").groupby(["world", "source_family", "target"])
    gains = end["score"].mean()
    fused = {
        (row["world"], row["source_family"], row["target"]): row["run"].parents[0]
        for row in reversed(plan.rows)
        if row["base"] == "fused"
    }
    known = source_updates(plan, store)
    rows = []
    for (world, family, target), gain in gains.dropna().items():
        models = [run.key for run in fused[world, family, target].parents]
        traits = {
            **_traits(known[world], models),
            "sources": len(models),
            "target size": plan.sizes[target]["train"],
            "pretrained": 100 * start[world, target],
        }
        cell = {"world": world, "source_family": family, "target": target}
        rows.append({**cell, **traits, "gain": 100 * (gain - start[world, target])})
    return pd.DataFrame(rows)


def _traits(known: Updates, keys: list[str]) -> dict[str, float]:
    """Traits of the updates of some source models, given by their keys."""
    places = [known.names.index(key) for key in keys]
    cosines, norms = known.cosines[np.ix_(places, places)], known.norms[places]
    others = cosines[~np.eye(len(places), dtype=bool)]
    similarity = float(others.mean()) if len(others) else np.nan
    return {"similarity": similarity, "spread": float(norms.max() / norms.min())}


def source_updates(plan: Plan, store: Store) -> dict[int, Updates]:
    """The updates of each world's source models, as far as they are finished, from that world's
    pretrained model, by their keys; without worlds there is one, 0."""
    origins, sources = {}, {}
    for row in plan.rows:
        world, base = row.get("world", 0), row["run"].parents[0]
        if row["base"] == "pretrained":
            origins[world] = base
        if row["base"] == "fused":
            known = sources.setdefault(world, {})
            known |= {run.key: run for run in base.parents if store.has(run)}
    return {
        world: geometry.updates(
            store.model(origins[world]), [store.model(run) for run in runs.values()], [*runs]
        )
        for world, runs in sources.items()
        if runs and store.has(origins[world])
    }


def alikeness(plan: Plan, store: Store) -> pd.DataFrame:
    """How far the source models of a family table are from their own world's pretrained model, and
    in which directions.

    Returns: a row per source model, over worlds and source seeds, with the mean norm of its
    ``update``, in percent of the norm of the pretrained weights, its smallest and largest cosine
    with the others' updates, and a ``note`` if it is an outlier.
    """
    labels = {run.key: run.label.split(" from ")[0] for run in plan.models}
    rows = []
    for updates in source_updates(plan, store).values():
        notes = updates.out_of_line()
        for row in updates.rows():
            cosines = [one for one in row["cosines"] if one is not None] or [np.nan]
            found = (100 * row["norm"], min(cosines), max(cosines), notes.get(row["model"], ""))
            rows.append((labels[row["model"]], *found))
    names = ["model", "update", "least cosine", "greatest cosine", "note"]
    table = pd.DataFrame(rows, columns=names).groupby("model", sort=False)
    return table.agg(dict(zip(names[1:], ("mean", "min", "max", "max"), strict=True)))


def correlations(found: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each trait with the gain: computed in every world, then the
    mean over worlds with its 95 % t interval. Cells of one world share models and targets, so
    worlds are the units. NaN for a trait that does not vary.

    Returns: a row per trait with the columns what, correlation, low, high.
    """
    rows = {}
    for trait, what in TRAITS.items():
        of_worlds = [
            part[trait].corr(part["gain"], method="spearman")
            for _, part in found.groupby("world")
            if len(part[trait].unique()) > 1
        ]
        rows[trait] = [what, *statistics.over_seeds(of_worlds)]
    columns = ["what", "correlation", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("trait")
