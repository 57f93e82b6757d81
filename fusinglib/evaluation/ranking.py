"""Base models ranked against one of them, the mean: paired differences over the same targets and
seeds, corrected for their number, with what each of them costs."""

# pandas annotates what groupby and loc return too widely to be checked.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from collections.abc import Sequence

import numpy as np
import pandas as pd

from fusinglib.evaluation import claims, statistics, tables, worlds
from fusinglib.fusion.methods import METHODS
from fusinglib.study.arms import Arm
from fusinglib.study.plans import Plan, Run
from fusinglib.study.store import Store

MEAN = "fused"

TUNED = ", tuned rate"
"""What is added to the name of a base model whose learning rate on targets is tuned."""

GATES = ("pretrained", "placebo", "scaled single")
"""What the mean has to beat, one after the other, if averaging is what helps."""

CELL = ["world", "source_family", "source_seed", "target"]


def tuned(results: pd.DataFrame, arms: Sequence[Arm], rates: Sequence[float]) -> pd.DataFrame:
    """The results with a base model more for each method that has several settings among the arms:
    ``"ties, tuned"``, whose runs on a target are those of the setting with the best mean dev score
    on the *other* targets of the same world and source models. The target's own dev and test
    scores are not looked at.

    If there are further learning rates, ``"pretrained, tuned rate"`` and ``"fused, tuned rate"``
    are added as well: the runs with the rate that is best on the target's own dev set, as one would
    choose it in practice.
    """
    results = results if "world" in results else results.assign(world=0)
    variants: dict[str, list[str]] = {}
    for one in arms:
        name = one.method.replace("_", " ") + ", tuned" + " and rescaled" * one.rescaled
        variants.setdefault(name, []).append(one.name)
    made = [
        _chosen(results[results["base"].isin(bases)], others=True).assign(base=name)
        for name, bases in variants.items()
        if len(bases) > 1
    ]
    own_sources = tables.replicates(results)
    for base in ("pretrained", MEAN) if rates else ():
        name, first = base + TUNED, results[results["base"] == base]
        every = results[results["base"].isin([f"{base} (rate {rate:g})" for rate in rates])]
        for (family, seed), part in every.groupby(["source_family", "source_seed"], sort=False):
            own = (first[["source_family", "source_seed"]] == [family, seed]).all(axis=1)
            shared = first["source_family"] == ""  # pretrained is the same for all
            if own_sources:
                shared &= first["source_seed"] == seed
            start = first[own | shared]
            start = start.assign(source_family=family, source_seed=seed)
            made.append(_chosen(pd.concat([start, part]), others=False).assign(base=name))
    return pd.concat([results, *made], ignore_index=True)


def _chosen(runs: pd.DataFrame, others: bool) -> pd.DataFrame:
    """The runs of the variant that is best on the dev set of the target, or on those of all others,
    for every cell in which that is known."""
    dev = runs.groupby([*CELL, "base"])["dev"].mean().unstack("base")
    if others:
        of_studies = dev.groupby(level=CELL[:-1])
        alone = of_studies.transform("count").le(1)
        dev = (of_studies.transform(lambda scores: scores.sum(skipna=False)) - dev).mask(alone)
    known = dev[dev.notna().all(axis=1)]
    best = known.idxmax(axis=1).reindex(pd.MultiIndex.from_frame(runs[CELL]))
    return runs[runs["base"].to_numpy() == best.to_numpy()]


def against(results: pd.DataFrame, families: dict, scope: str = "") -> pd.DataFrame:
    """Every base model minus the mean, in points, on all targets: the mean of source families.

    Returns: a row per base model, best first, with ``estimate``, its 95 % interval ``low`` to
    ``high`` in the scope (by default the first), the interval ``low all`` to ``high all`` that
    holds for all rows at once, ``p adjusted`` likewise (see `statistics.at_once`), ``improved``
    (how many targets of how many are above zero), and ``missing``, the runs that lack on either
    side: one is enough for NaN.
    """
    runs = _runs(results, families)
    scope = scope or claims.scopes_of(len(runs[MEAN]))[0]
    differences = {base: array - runs[MEAN] for base, array in runs.items() if base != MEAN}
    return compared(differences, scope)


def compared(differences: dict[str, np.ndarray], scope: str) -> pd.DataFrame:
    """The rows of `against`, from the differences (worlds, source seeds, seeds, targets), as
    fractions, of each base model."""
    rows, known = {}, {}
    for base, difference in differences.items():
        lacking = int(np.isnan(difference).sum())
        one = worlds.known(difference, 0.0, scope)
        gains = difference.mean(axis=(0, 1, 2))
        improved = "" if lacking else f"{(gains > 0).sum()} of {len(gains)}"
        rows[base] = [*one.interval, np.nan, np.nan, np.nan, improved, lacking]
        if one.variance > 0:
            known[base] = one
    if known:
        reach, p_values = statistics.at_once(list(known.values()))
        for (base, one), p in zip(known.items(), p_values, strict=True):
            width = reach * np.sqrt(one.variance)
            rows[base][3:6] = [one.value - width, one.value + width, p]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS).rename_axis("base")
    table[COLUMNS[:5]] *= 100
    return table.sort_values("estimate", ascending=False)


COLUMNS = ["estimate", "low", "high", "low all", "high all", "p adjusted", "improved", "missing"]


def _runs(results: pd.DataFrame, families: dict) -> dict[str, np.ndarray]:
    """The runs of every base model, the mean of source families: (worlds, source seeds, seeds,
    targets)."""
    arrays = tables.run_arrays(results, tables.distinct_targets(families))
    return {
        base: tables.by_source(arrays, base, "all").mean(axis=0)
        for base in dict.fromkeys(base for base, _ in arrays)
    }


def gates(results: pd.DataFrame, families: dict) -> pd.DataFrame:
    """Whether it is averaging that helps: the mean against `GATES`, in this order, each two-sided
    at 5 %. The first that is not clearly below the mean ends the test, so that all together keep
    the 5 % (Maurer, Hothorn and Lehmacher 1995). Where the sanity check is not passed (see
    `tables.sane`), none is tested.

    Returns: for every scope a row per gate with ``estimate``, ``low``, ``high`` in points, ``p``,
    and ``verdict``: "passed", "not passed", "unknown" (without an interval), or "not tested". What
    the results lack is left out. Where learning rates were tried, a row that is no gate compares
    fused with pretrained, each with its own rate.
    """
    runs, rows = _runs(results, families), []
    for scope in claims.scopes_of(len(runs[MEAN])):
        open_ = tables.sane(results, families, scope)
        for base in [base for base in GATES if base in runs]:
            known = worlds.known(runs[MEAN], runs[base], scope)
            passed = open_ and known.interval.low > 0
            unknown = np.isnan(known.interval.low)
            closed = "unknown" if unknown else "not passed"
            verdict = "passed" if passed else closed if open_ else "not tested"
            numbers = [100 * number for number in known.interval]
            rows.append([scope, f"{MEAN} - {base}", *numbers, known.p_value(0.0), verdict])
            open_ = passed
        if {MEAN + TUNED, "pretrained" + TUNED} <= set(runs):
            known = worlds.known(runs[MEAN + TUNED], runs["pretrained" + TUNED], scope)
            numbers = [100 * number for number in known.interval]
            name = f"{MEAN}{TUNED} - pretrained{TUNED}"
            rows.append([scope, name, *numbers, known.p_value(0.0), "no gate"])
    columns = ["scope", "difference", "estimate", "low", "high", "p", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def with_costs(results: pd.DataFrame, plan: Plan, store: Store) -> pd.DataFrame:
    """The results with what it took to make each base model, once its source models were there:
    ``made_in``, seconds of fusing, estimates included; ``reads``, how often all models are read;
    and ``texts``, the training texts of every source task that were needed. Empty for base models
    that were not fused."""
    rows = []
    for row in plan.rows:
        model = row["run"].parents[0]
        made = _made_by(model) if model.kind == "fuse" and store.has(model) else []
        rows.append({
            "made_in": sum(store.result(run)["seconds"] for run in made) if made else np.nan,
            "reads": _reads(model) if made else "",
            "texts": max((run.settings.get("examples", 0) for run in made), default=np.nan),
        })  # fmt: skip
    return results.assign(**pd.DataFrame(rows, index=results.index))


def costs(results: pd.DataFrame) -> pd.DataFrame:
    """What it takes to make each base model that is fused (see `with_costs`): a row each, with mean
    ``seconds``, ``reads`` and ``texts``."""
    made = results[results["made_in"].notna()].groupby("base", sort=False)
    table = made.agg(seconds=("made_in", "mean"), reads=("reads", "first"), texts=("texts", "max"))
    return table.astype({"texts": "Int64"})


def _made_by(model: Run) -> list[Run]:
    """A fused model, with the estimates and fused models that it was made of."""
    parents = [run for run in model.parents if run.kind in ("fuse", "estimate")]
    return [model, *(run for parent in parents for run in _made_by(parent))]


def _reads(model: Run) -> str:
    """How often a method reads all models, in words."""
    if model.settings.get("rescaled"):
        return f"{_reads(model.parents[0])}, and two of the result"
    return METHODS[model.settings.get("method", "mean")].cost
