"""Claims: right verdicts on made-up results, the paper's own numbers, thin and missing results."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from fusinglib.evaluation import claims, reference, tables
from fusinglib.study.settings import EXPERIMENTS

FAMILIES = {name: [f"{name}{i}" for i in range(5)] for name in ("general", "nli", "twitter")}
TARGETS = [target for targets in FAMILIES.values() for target in targets]
SEEDS = range(5)
NOISE = 0.005


def results(rows, seed=0):
    """A run per seed of each (facts, expected accuracy, noise)."""
    noise = np.random.default_rng(seed)
    return pd.DataFrame(
        {**facts, "source_seed": 0, "seed": s, "accuracy": accuracy + noise.normal(0, sd)}
        for facts, accuracy, sd in rows
        for s in SEEDS
    )


def family_results(effect):
    """Fused beats pretrained and varies less, intertrained beats fused, most for its own family."""
    rows = []
    for number, target in enumerate(TARGETS):
        start = 0.4 + 0.02 * number
        facts = {"base": "pretrained", "source_family": "", "target": target}
        rows.append((facts, start, NOISE * (1 + 2 * max(effect, 0))))
        for family in FAMILIES:
            facts = {"source_family": family, "target": target}
            fused = start + 0.05 * effect
            own = 0.05 * effect * (target in FAMILIES[family])
            sd = NOISE * (1 + 2 * max(-effect, 0))
            rows.append(({"base": "fused", **facts}, fused, sd))
            rows.append(({"base": "intertrained", **facts}, fused + 0.05 * effect + own, sd))
    return results(rows), FAMILIES


def pair_results(effect):
    """With an effect: four of six models lose, and pairs beat both, the more the better they are.
    Reversed: all models gain, and pairs lose to both, the more the better they are."""
    tasks = [f"t{i}" for i in range(6)]
    gains = {1: [-5, -4, -3, -2, 1, 2], 0: [0] * 6, -1: [1, 2, 3, 4, 5, 6]}[effect]
    gains = dict(zip(tasks, np.array(gains) / 100, strict=True))
    bases = {("pretrained", ()): 0.0}
    bases |= {("intertrained", (task,)): gain for task, gain in gains.items()}
    for pair in combinations(tasks, 2):
        two = [gains[task] for task in pair]
        gain = {1: max(two) + 0.05, 0: 0, -1: -0.1 - sum(two)}[effect]
        bases["fused", pair] = gain
    rows = [
        ({"base": base, "sources": names, "target": target}, 0.5 + gain, NOISE)
        for (base, names), gain in bases.items()
        for target in tasks
        if target not in names
    ]
    return results(rows), {"tasks": tasks}


def decay_results(effect):
    """All lose under decay, intertrained most."""
    lost = {"pretrained": 0.05, "intertrained": 0.10, "fused": 0.02}
    return over("weight_decay", {0.0: 0.0, 0.01: -effect}, lost)


def size_results(effect):
    """All rise with the source size, intertrained most."""
    rise = {"pretrained": 0.0, "intertrained": 0.10, "fused": 0.04}
    return over("source_size", {50: 0.0, 200: 0.5 * effect, 1000: effect}, rise)


def over(column, values, slopes):
    rows = []
    for value, factor in values.items():
        for number, target in enumerate(FAMILIES["general"]):
            for base, slope in slopes.items():
                family = "" if base == "pretrained" else "general"
                facts = {column: value, "base": base, "source_family": family, "target": target}
                rows.append((facts, 0.5 + 0.02 * number + slope * factor, NOISE))
    return results(rows), {"general": FAMILIES["general"]}


MADE_UP = {
    "family_table": family_results,
    "pairwise_heatmap": pair_results,
    "weight_decay": decay_results,
    "source_size": size_results,
}


def verdicts(experiment, made_up):
    return claims.verdicts(experiment, *made_up)


def test_claims_on_seeds_with_source_models_of_their_own():
    """The same estimates; the spread is still over seeds; more seeds or targets would decide."""
    frame, families = family_results(0)
    plain = claims.verdicts("family_table", frame, families)
    own = claims.verdicts("family_table", frame.assign(source_seed=frame["seed"]), families)
    assert own["estimate"].to_numpy() == pytest.approx(plain["estimate"].to_numpy())
    spread = own["claim"].str.startswith("2")
    assert own.loc[spread, ["low", "high"]].notna().all(axis=None)
    assert own.loc[spread, "decided by"].item() == plain.loc[spread, "decided by"].item()
    others = own[~spread & (own["raw verdict"] == claims.UNDECIDED)]["decided by"]
    assert len(others) and others.str.fullmatch(r".* source seeds or .* targets").all()


def test_all_claims_stand_in_the_notebook_that_decides_them():
    assert set(claims.CLAIMS) == set(MADE_UP) <= set(EXPERIMENTS)
    numbers = [claim.number for these in claims.CLAIMS.values() for claim in these]
    assert numbers == list(range(1, 14))


@pytest.mark.parametrize("experiment", MADE_UP)
@pytest.mark.parametrize(("effect", "verdict"), [(1, "supported"), (-1, "contradicted")])
def test_a_large_effect_and_its_reverse_are_seen(experiment, effect, verdict):
    table = verdicts(experiment, MADE_UP[experiment](effect))
    assert set(table["verdict"]) == {verdict}, table
    assert set(table["decided by"]) == {"-"}


@pytest.mark.parametrize("experiment", MADE_UP)
def test_without_effect_nothing_is_supported(experiment):
    table = verdicts(experiment, MADE_UP[experiment](0))
    assert "supported" not in set(table["verdict"])
    assert set(table["verdict"]) == {"undecided"}, table


def test_ties_are_not_above():
    """Sums of floats in another order differ in the last digit; right answers are as many."""
    tasks = [f"t{i}" for i in range(5)]
    pairs = list(combinations(tasks, 2))
    gain = (0.1 + 0.2) - 0.3  # 5.6e-17
    bases = {("pretrained", ()): 0.0, **{("intertrained", (task,)): 0.0 for task in tasks}}
    bases |= {("fused", pair): gain for pair in pairs}
    rows = [
        ({"base": base, "sources": names, "target": target}, 0.125 + gain, 0.0)
        for (base, names), gain in bases.items()
        for target in tasks
        if target not in names
    ]
    table = verdicts("pairwise_heatmap", (results(rows), {"tasks": tasks})).set_index("claim")
    assert list(table["estimate"][:4]) == [0, 0, 0, 0]


def test_pairs_that_are_alike_reach_the_thresholds_on_average():
    """A pair, its two models: of three that are alike in any order, two of three beat the worse."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(300):
        sample = {("pretrained", ()): np.zeros((1, 1, 1, 8))}
        sample |= {("intertrained", (name,)): rng.normal(size=(1, 1, 1, 8)) for name in "ab"}
        sample["fused", ("a", "b")] = rng.normal(size=(1, 1, 1, 8))
        shares.append(
            [claim.statistic(sample)[0] for claim in claims.CLAIMS["pairwise_heatmap"][1:4]]
        )
    thresholds = [claim.threshold for claim in claims.CLAIMS["pairwise_heatmap"][1:4]]
    assert thresholds == pytest.approx([200 / 3, 50, 100 / 3])
    assert np.mean(shares, axis=0) == pytest.approx(thresholds, abs=8)


def test_verdicts_lead_with_those_corrected_for_their_number():
    made = pd.DataFrame({
        "claim": ["a", "b", "c", "d"], "scope": ["here"] * 3 + ["there"],
        "estimate": [1.0, -1.0, 1.0, 1.0], "low": 0.0, "high": 0.0, "threshold": 0.0, "paper": "",
        "p": [0.01, 0.06, np.nan, 0.04], "raw verdict": "", "decided by": "-",
    })  # fmt: skip
    table = claims.adjusted(made)
    assert list(table["verdict"]) == ["supported", "undecided", "undecided", "supported"]
    assert list(table["p adjusted"]) == pytest.approx([0.02, 0.06, np.nan, 0.04], nan_ok=True)
    assert list(table.columns[:3]) == ["claim", "scope", "verdict"]
    pd.testing.assert_frame_equal(claims.adjusted(table), table)
    insane = made.assign(**{"decided by": ["-", "-", "pretrained - random", "-"]})
    p = claims.adjusted(insane)["p adjusted"]  # left untested by its data, a claim still counts
    assert list(p) == pytest.approx([0.03, 0.12, np.nan, 0.04], nan_ok=True)


def test_claims_and_differences_have_one_interval():
    """Claim 1 on a family is the difference of fused and pretrained there, mean of sources."""
    frame, families = family_results(0)
    rows = tables.differences(frame, families).query("comparison == 'fused - pretrained'")
    rows = rows.query("source_family == 'all'").set_index("target_family")
    found = verdicts("family_table", (frame, families))
    for number, family in enumerate(families):
        row = found.iloc[number][["estimate", "low", "high"]].astype(float)
        expected = rows.loc[family, ["estimate", "low", "high"]].astype(float)
        assert row.tolist() == pytest.approx(expected.tolist())


def test_estimates_are_in_points():
    table = verdicts("family_table", family_results(1))
    assert list(table["estimate"][:3]) == pytest.approx([5] * 3, abs=0.5)
    assert list(table["estimate"][4:]) == pytest.approx([5 + 5 / 3, 5], abs=0.5)
    shares = verdicts("pairwise_heatmap", pair_results(1))
    assert list(shares["estimate"][:4]) == pytest.approx([100 * 4 / 6, 100, 100, 100])
    decay = verdicts("weight_decay", decay_results(1))
    assert list(decay["estimate"]) == pytest.approx([8, 17 / 3], abs=0.5)


def test_what_the_papers_tables_give_stands_beside():
    paper = verdicts("family_table", family_results(0))["paper"]
    spread = reference.TABLE_3["average"]
    less = spread["pretrained", ""] - spread["fused"].mean()
    assert list(paper) == ["+3.3", "+0.8", "-1.7", f"{less:+.1f}", "+2.6", "+0.8"]
    paper = verdicts("weight_decay", decay_results(0))["paper"]
    assert list(paper) == ["+8.0", "+5.5"]
    other = {f"own {name}": targets for name, targets in FAMILIES.items()}
    frame = family_results(0)[0].replace({"source_family": {f: f"own {f}" for f in FAMILIES}})
    assert list(verdicts("family_table", (frame, other))["paper"][:3]) == [""] * 3


def test_missing_runs_and_a_single_target_decide_nothing():
    frame, families = family_results(1)
    frame.loc[3, "accuracy"] = np.nan
    table = verdicts("family_table", (frame, families))
    assert table[["estimate", "low", "high"]].isna().all(axis=None)
    assert set(table["verdict"]) == {"undecided"}
    frame, _ = decay_results(1)
    one = frame[frame["target"] == "general0"]
    table = verdicts("weight_decay", (one, {"general": ["general0"]}))
    assert table["estimate"].notna().all() and table["low"].isna().all()


def test_seeds_decide_where_seeds_vary_and_targets_where_these_do():
    frame, families = decay_results(0.05)
    moved = frame["base"].eq("fused") & frame["weight_decay"].gt(0)
    by_seed = frame.assign(accuracy=frame["accuracy"] + 0.01 * (frame["seed"] - 2) * moved)
    row = verdicts("weight_decay", (by_seed, families)).iloc[0]
    assert row["raw verdict"] == "undecided" and row["decided by"].endswith(") seeds")
    number = {name: n for n, name in enumerate(families["general"])}
    shift = frame["target"].map(number) % 2 - 0.4
    unlike = frame.assign(accuracy=frame["accuracy"] + 0.2 * shift * moved)
    row = verdicts("weight_decay", (unlike, families)).iloc[0]
    assert (row["raw verdict"], row["decided by"]) == ("undecided", "more targets")


def test_few_tasks_give_intervals_without_a_warning():
    """A resample may hold no target that a model or a pair has not seen."""
    frame, _ = pair_results(1)
    few = [f"t{i}" for i in range(4)]
    known = frame["sources"].map(lambda names: set(names) <= set(few))
    of_few = frame[known & frame["target"].isin(few)]
    table = claims.verdicts("pairwise_heatmap", of_few, {"tasks": few})
    assert table["estimate"].notna().all() and table["low"].notna().all()
