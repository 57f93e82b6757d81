"""When does fusing help? An exploration: gains against what is known before training on a target.

Nothing here was fixed beforehand and nothing decides a claim.
"""

import numpy as np
import pandas as pd

from fusinglib.evaluation import landscape, statistics
from fusinglib.study.plans import Plan
from fusinglib.study.store import Store

TRAITS = {
    "similarity": "mean cosine between the updates of the source models",
    "spread": "how much longer the longest update is than the shortest",
    "sources": "number of source models",
    "target size": "training examples of the target",
    "pretrained": "accuracy from pretrained on the target (%)",
}
"""What could be known of a cell before its fused model is finetuned, and what it is."""


def cells(plan: Plan, store: Store, results: pd.DataFrame) -> pd.DataFrame:
    """A row per world, source family and target: the `TRAITS`, and the ``gain`` of the fused model
    over pretrained, in points (means over seeds and source seeds).

    The plan is that of a family table over many worlds, its source models in the store.
    """
    start = results.query("base == 'pretrained'").groupby(["world", "target"])["accuracy"].mean()
    end = results.query("base == 'fused'").groupby(["world", "source_family", "target"])
    gains = end["accuracy"].mean()
    fused = {
        (row["world"], row["source_family"], row["target"]): row["run"].parents[0]
        for row in reversed(plan.rows)
        if row["base"] == "fused"
    }
    known = {world: _Updates(plan, store, world) for world in results["world"].unique()}
    rows = []
    for (world, family, target), gain in gains.items():
        models = [run.key for run in fused[world, family, target].parents]
        traits = {
            **known[world].traits(models),
            "sources": len(models),
            "target size": plan.sizes[target]["train"],
            "pretrained": 100 * start[world, target],
        }
        cell = {"world": world, "source_family": family, "target": target}
        rows.append({**cell, **traits, "gain": 100 * (gain - start[world, target])})
    return pd.DataFrame(rows)


class _Updates:
    """Norms and cosines of the updates of a world's source models, by their keys."""

    def __init__(self, plan: Plan, store: Store, world: int):
        runs = {
            parent.key: parent
            for row in plan.rows
            if row["world"] == world and row["base"] == "fused"
            for parent in row["run"].parents[0].parents
        }
        (origin,) = {run.parents[0].key: run.parents[0] for run in runs.values()}.values()
        models = [store.model(run) for run in runs.values()]
        products = landscape.inner_products(store.model(origin), models)
        self.places = {key: place for place, key in enumerate(runs)}
        self.cosines, self.norms = landscape.cosines(products), np.sqrt(np.diag(products))

    def traits(self, keys: list[str]) -> dict[str, float]:
        places = [self.places[key] for key in keys]
        cosines = self.cosines[np.ix_(places, places)]
        norms = self.norms[places]
        others = cosines[~np.eye(len(places), dtype=bool)]
        similarity = float(others.mean()) if len(others) else np.nan
        return {"similarity": similarity, "spread": float(norms.max() / norms.min())}


def correlations(found: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each trait with the gain: taken in every world, then the mean
    over worlds with its 95 % t interval. Cells of one world share models and targets, which is why
    worlds are what is counted. NaN for a trait that does not vary.

    Returns: a row per trait with the columns what, correlation, low, high.
    """
    rows = {}
    for trait, what in TRAITS.items():
        of_worlds = [
            part[trait].corr(part["gain"], method="spearman")
            for _, part in found.groupby("world")
            if part[trait].nunique() > 1
        ]
        rows[trait] = [what, *statistics.over_seeds(of_worlds)]
    columns = ["what", "correlation", "low", "high"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("trait")
