"""What a notebook found, in one sentence, with the sanity check that comes before it."""

import math
import statistics

import pandas as pd

from fusinglib.evaluation import claims, tables
from fusinglib.evaluation.statistics import Difference


def of_family_table(results: pd.DataFrame, families: dict) -> str:
    """Fused compared with pretrained over all targets, then the sanity check."""
    found = _row(results, families, "fused - pretrained")
    if found is None:
        return "Runs are missing: fused cannot be compared with pretrained."
    targets, seeds = len(tables.distinct_targets(families)), len(set(results["seed"]))
    over = f"{targets} targets with {seeds} seed{'s' * (seeds > 1)}"
    worlds = tables.world_count(results)
    over = f"{worlds} worlds and {over}" if worlds > 1 else over
    verdict = said("the fused model ends", found, "pretrained", tables.sane(results, families))
    lines = [f"Over {over}: {verdict}", sanity(results, families), shrunk(results, families)]
    return "\n".join(line for line in lines if line)


def said(what: str, found: Difference, other: str, tested: bool = True) -> str:
    """A difference in words, and whether its interval decides it. Nothing is decided if it was not
    `tested`, for example because the sanity check failed."""
    way = "above" if found.estimate >= 0 else "below"
    text = f"{what} {abs(found.estimate):.1f} points {way} {other}"
    if math.isnan(found.low):
        return f"{text}; there is no interval, so nothing is decided."
    text += f" (95 % interval {found.low:+.1f} to {found.high:+.1f})"
    if found.low <= 0 <= found.high or not tested:
        return f"{text}: undecided."
    return f"{text}: a {'better' if found.estimate > 0 else 'worse'} start."


def sanity(results: pd.DataFrame, families: dict) -> str:
    """Whether pretraining helps at all: without that, no difference between base models means
    anything. With many worlds, in each scope where they disagree."""
    scopes = claims.scopes_of(tables.world_count(results))
    found = {scope: tables.taught(results, families, scope) for scope in scopes}
    if len({check is None or check.low > 0 for check in found.values()}) == 1:
        return _checked(found[scopes[-1]])
    said = {scope: _checked(check) for scope, check in found.items()}
    return "\n".join(f"For {scope}: {text[0].lower()}{text[1:]}" for scope, text in said.items())


def _checked(found: Difference | None) -> str:
    """The sanity check of one scope in words (see `tables.taught`)."""
    if found is None:
        return "Sanity check not made: no run starts from random weights (arms: [random])."
    if math.isnan(found.estimate):
        return "Sanity check not possible: runs from random weights are missing."
    if math.isnan(found.low):
        said = f"pretrained - random is {found.estimate:+.1f} points, without an interval"
        return f"Sanity check undecided: {said}."
    numbers = f"{found.estimate:+.1f} points ({found.low:+.1f} to {found.high:+.1f})"
    if found.low > 0:
        return f"Sanity check passed: pretrained - random is {numbers}, so pretraining helps here."
    return (
        f"Sanity check failed: pretrained - random is {numbers}, not clearly above zero. No "
        "difference between base models means anything here, and no claim is decided for it."
    )


def shrunk(results: pd.DataFrame, families: dict) -> str:
    """How much of what fusing gains is there with one model whose update is shrunk to the mean's;
    empty if that was not tried."""
    gain = _row(results, families, "fused - pretrained")
    single = _row(results, families, "scaled single - pretrained")
    gap = _row(results, families, "fused - scaled single")
    if gain is None or single is None or gap is None:
        return ""
    sane = tables.sane(results, families)
    share = 100 * single.estimate / gain.estimate
    share = f" ({share:.0f} % of it)" if sane and gain.low > 0 else ""
    more = said("the mean ends", gap, "that one", sane).replace("start", "base model")
    return (
        f"Of fused's {gain.estimate:+.1f} points, {single.estimate:+.1f}{share} are there with one "
        f"model shrunk to the mean's norm; {more}"
    )


def of_methods(gates: pd.DataFrame, against: pd.DataFrame) -> str:
    """Whether averaging helps, whether a method beats the mean, and how sure that is, in the first
    scope (see `ranking`)."""
    rows = against.reset_index().to_dict("records")
    scope = gates["scope"].iloc[0]
    tests = [row for row in gates.to_dict("records") if row["scope"] == scope]
    tests = [row for row in tests if row["verdict"] != "no gate"]
    if any(math.isnan(row["estimate"]) for row in [*rows, *tests]):
        return "Runs are missing: base models cannot be compared."
    lines = [f"For {scope}:"]
    for row in tests:
        found = Difference(row["estimate"], row["low"], row["high"])
        other = row["difference"].removeprefix("fused - ")
        verdict = said("the mean ends", found, other, row["verdict"] != "not tested")
        lines.append(f"{row['verdict'].capitalize()}: {verdict}")
    if tests[0]["verdict"] == "not tested":  # the sanity check failed
        return "\n".join(lines)
    better = [row["base"] for row in rows if row["low all"] > 0]
    worse = [row["base"] for row in rows if row["high all"] < 0]
    widths = [row["high all"] - row["low all"] for row in rows if not math.isnan(row["low all"])]
    if not widths:
        return "\n".join(
            [*lines, "There are no intervals, so no method is compared with the mean."]
        )
    lines.append(
        f"Of {len(widths)} base models, corrected for their number, {len(better)} are better than "
        f"the mean{_listed(better)} and {len(worse)} worse{_listed(worse)}."
    )
    wide = statistics.median(widths) / 2
    lines.append(f"How sure: the median of the intervals for all rows is ±{wide:.1f} points.")
    return "\n".join(lines)


def of_shrinkage(results: pd.DataFrame, families: dict, equal: pd.DataFrame) -> str:
    """The mean compared with one model whose update is as long (see `shrinkage.at_equal_norm`), in
    every scope, then the sanity check."""
    lines = []
    for row in equal.to_dict("records"):
        if math.isnan(row["estimate"]):
            return "Runs are missing: the mean cannot be compared with one model."
        found = Difference(row["estimate"], row["low"], row["high"])
        other = "one model with an update of the same norm"
        sane = tables.sane(results, families, row["scope"])
        verdict = said("the mean ends", found, other, sane)
        lines.append(f"For {row['scope']}: {verdict}")
    return "\n".join([*lines, sanity(results, families)])


def _listed(names: list[str]) -> str:
    return f" ({'; '.join(names)})" if names else ""


def _row(results: pd.DataFrame, families: dict, comparison: str) -> Difference | None:
    """The difference over all targets and source families; None if it is unknown."""
    rows = {
        row["source_family"]: Difference(row["estimate"], row["low"], row["high"])
        for row in tables.differences(results, families).to_dict("records")
        if row["comparison"] == comparison and row["target_family"] == "all"
    }
    found = rows.get("all") or next(iter(rows.values()), None)  # one source family has no "all"
    return None if found is None or math.isnan(found.estimate) else found


def of_claims(verdicts: pd.DataFrame) -> str:
    """How many of the paper's claims are supported, contradicted and undecided (in the widest scope
    of the table), and which are decided."""
    scope = verdicts["scope"].iloc[-1]
    rows = verdicts[verdicts["scope"] == scope]
    parts = []
    for verdict in ("supported", "contradicted", claims.UNDECIDED):
        names = list(rows[rows["verdict"] == verdict]["claim"])
        told = f" ({'; '.join(names)})" if names and verdict != claims.UNDECIDED else ""
        parts.append(f"{len(names)} {verdict}{told}")
    return f"Of {len(rows)} verdicts on the paper's claims, for {scope}: {', '.join(parts)}."


def of_paths(summary: pd.DataFrame) -> str:
    """On how many of the straight lines between models the loss never rises (see
    `paths.summary`)."""
    counts: dict[str, list[int]] = {}
    for (kind, _), row in zip(summary.index, summary.to_dict("records"), strict=True):
        count = counts.setdefault(kind, [0, 0])
        count[0], count[1] = count[0] + row["never rising"], count[1] + row["lines"]
    parts = [f"{flat} of {lines} {kind}" for kind, (flat, lines) in counts.items()]
    return f"The loss never rises on these straight lines: {', '.join(parts)}."


def of_traits(correlations: pd.DataFrame) -> str:
    """The trait with the strongest rank correlation with the gain (see `exploration`)."""
    name = str(correlations["correlation"].abs().idxmax())
    row = correlations.loc[name]
    said = f"rank correlation {row['correlation']:+.2f}"
    if not math.isnan(row["low"]):
        said += f", {row['low']:+.2f} to {row['high']:+.2f}"
    return f"An exploration: what goes with the gain most closely is the {row['what']} ({said})."


def of_planner(detectable: pd.DataFrame) -> str:
    """What the fewest and the most seeds of a grid detect (see `planner.grid`)."""
    column = detectable.columns[-1]
    few, many = detectable.index[0], detectable.index[-1]
    return (
        f"On {column}, {few} seeds detect a difference of {detectable.loc[few, column]:.1f} points "
        f"with 80 % power, {many} seeds one of {detectable.loc[many, column]:.1f}."
    )
