"""Tables of the seed planner: what seeds and targets can detect, and what they cost."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from fusinglib.errors import InputError, one_of
from fusinglib.evaluation import reference, statistics
from fusinglib.evaluation.tables import arrays_over_seeds, distinct_targets
from fusinglib.study.settings import SeedPlanner

PUBLISHED_TARGETS = 14
"""The number of data sets behind the published standard deviations of a mean."""


class Spread(NamedTuple):
    """How much runs vary, in points.

    `run`: the standard deviation of one run on one target. `shared`: the part of it that the runs
    of one seed share on all targets (0: none). `effect`: the standard deviation across targets of
    the true difference between two base models (NaN: unknown).
    """

    run: float
    shared: float = 0.0
    effect: float = math.nan

    def of_mean(self, targets: int) -> float:
        """The standard deviation of the mean of one run on each of so many targets."""
        own = self.run**2 - self.shared**2
        return math.sqrt(own / targets + self.shared**2)


def published(model: str, together: bool) -> Spread:
    """The spread of the authors' 20 runs of a pretrained model (`reference.PUBLISHED`).

    `together`: runs with the same number belong together on all data sets; otherwise they are
    independent. Negative covariance counts as none. Raises `InputError` for an unknown model.
    """
    if model not in reference.PUBLISHED.index:
        known = one_of(reference.PUBLISHED.index)
        raise InputError(f"parameter 'published_model' is {model!r}: expected {known}")
    row, count = reference.PUBLISHED.loc[model], PUBLISHED_TARGETS
    run = float(row["independent"] * math.sqrt(count))
    if not together:
        return Spread(run)
    shared = (row["together"] ** 2 - row["independent"] ** 2) * count / (count - 1)
    return Spread(run, math.sqrt(max(float(shared), 0)))


def measured(results: pd.DataFrame, families: dict) -> Spread:
    """The spread of a family table's own runs: of all base models together, and of fused over
    pretrained; NaN if runs are missing or there is only one seed.

    Runs on different targets share no randomness, so nothing is assumed to be shared.
    """
    targets = distinct_targets(families)
    arrays = arrays_over_seeds(results, targets)
    variances = [
        runs.var(axis=-2, ddof=1).ravel() for runs in arrays.values() if runs.shape[-2] > 1
    ]
    run = math.sqrt(np.mean(np.concatenate(variances))) if variances else math.nan
    seeds, start = results["seed"].nunique(), arrays["pretrained", ""].mean(axis=(0, 1, 2))
    effects = [
        np.var(runs.mean(axis=(0, 1, 2)) - start, ddof=1) if len(targets) > 1 else math.nan
        for (base, _), runs in arrays.items()
        if base == "fused"
    ]
    worlds, source_seeds = np.max([runs.shape[:2] for runs in arrays.values()], axis=0)
    noise = run**2 / (worlds * seeds) * (1 + 1 / source_seeds)  # for pretrained and for fused
    effect = max(float(np.mean(np.array(effects))) - noise, 0)
    return Spread(100 * run, 0.0, 100 * math.sqrt(effect))


def spreads(settings: SeedPlanner, results: pd.DataFrame, families: dict) -> dict[str, Spread]:
    """All available spreads by origin; the chosen one is last.

    Raises `InputError` if the store is chosen and lacks runs of the study.
    """
    model = settings.published_model
    found = {
        "guess": Spread(settings.guess_spread),
        "store": measured(results, families),
        f"published, {model}, targets independent": published(model, together=False),
        f"published, {model}": published(model, together=True),
    }
    found = {
        name: spread._replace(effect=settings.guess_effect) if math.isnan(spread.effect) else spread
        for name, spread in found.items()
    }
    if settings.spread_from == "store" and math.isnan(found["store"].run):
        raise InputError(
            "parameter 'spread_from' is 'store', but the store lacks runs of this study, or it has "
            "one seed: run the family table with these parameters and two seeds or more, or choose "
            "'published' or 'guess'"
        )
    return dict(sorted(found.items(), key=lambda item: item[0].startswith(settings.spread_from)))


def sources(found: dict[str, Spread], seeds: int, targets: int) -> pd.DataFrame:
    """The spreads side by side, and what so many seeds and targets detect with each."""
    rows = {
        name: {
            "one run": spread.run,
            "mean of targets": spread.of_mean(targets),
            "detectable": detectable(spread, seeds, targets),
            "effect": spread.effect,
            "detectable on others": detectable_on_others(spread, seeds, targets),
        }
        for name, spread in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("spread from")


def detectable(spread: Spread, seeds: int, targets: int) -> float:
    """The smallest difference detected on these very targets, in points: by a test of the means
    over targets, with 2k - 2 degrees of freedom for k seeds (`statistics`)."""
    return statistics.detectable_difference(spread.of_mean(targets), seeds)


def detectable_on_others(spread: Spread, seeds: int, targets: int) -> float:
    """The smallest difference detected on targets like these, in points; NaN if targets share part
    of the spread, which a test over targets cannot see."""
    if spread.shared:
        return math.nan
    return statistics.detectable_over_targets(spread.run, spread.effect, seeds, targets)


def grid(measure, spread: Spread, seeds: list[int], targets: list[int]) -> pd.DataFrame:
    """What `measure` (`detectable` or `detectable_on_others`) gives: seeds x targets."""
    rows = [[measure(spread, k, m) for m in targets] for k in seeds]
    index = pd.Index(seeds, name="seeds")
    return pd.DataFrame(rows, index=index, columns=[f"{m} targets" for m in targets])


def curves(found: dict[str, Spread], seeds: list[int], targets: int) -> pd.DataFrame:
    """What different numbers of seeds detect on so many targets: one column per spread, and last
    the chosen one's on other targets like these."""
    columns = {
        name: [detectable(spread, k, targets) for k in seeds] for name, spread in found.items()
    }
    name, chosen = list(found.items())[-1]
    columns[f"{name}, on other targets like these"] = [
        detectable_on_others(chosen, k, targets) for k in seeds
    ]
    return pd.DataFrame(columns, index=pd.Index(seeds, name="seeds"))
