"""What was found in a sentence: decided or not, and nothing without the sanity check."""

import numpy as np
import pandas as pd
import pytest
from test_claims import FAMILIES, family_results
from test_pairs import TASKS, heatmap

from fusinglib.evaluation import claims, headlines, pairs, tables


def with_random(effect: float, taught: float) -> pd.DataFrame:
    """Results of a family table where pretrained is `taught` above random."""
    made, _ = family_results(effect)
    start = made[made["base"] == "pretrained"]
    noise = np.random.default_rng(1).normal(0, 0.02, len(start))
    random = start.assign(base="random", accuracy=start["accuracy"] - taught + noise)
    return pd.concat([made, random], ignore_index=True)


@pytest.mark.parametrize(("taught", "passed"), [(0.1, True), (0.0, False)])
def test_without_the_sanity_check_nothing_is_decided(taught, passed):
    made = with_random(1.0, taught)
    said = headlines.of_family_table(made, FAMILIES)
    table = claims.verdicts("family_table", made, FAMILIES)
    assert ("Sanity check passed" in said) == passed
    assert ("Sanity check failed" in said) != passed
    assert ("a better start" in said) == passed
    decided = table["verdict"] != claims.UNDECIDED
    assert decided.any() == passed
    assert (table["decided by"] == "pretrained - random").all() != passed
    before = claims.verdicts("family_table", made[made["base"] != "random"], FAMILIES)
    if passed:
        pd.testing.assert_frame_equal(table, before)


def test_the_sentence_is_that_of_the_table():
    made = with_random(1.0, 0.1)
    row = tables.differences(made, FAMILIES).query(
        "comparison == 'fused - pretrained' and target_family == 'all' and source_family == 'all'"
    )
    said = headlines.of_family_table(made, FAMILIES)
    assert f"ends {row['estimate'].item():.1f} points above pretrained" in said
    assert "a better start" in said and said.startswith("Over 15 targets with 5 seeds: ")
    none = headlines.of_family_table(made[made["base"] != "random"], FAMILIES)
    assert none.endswith("no run starts from random weights (arms: [random]).")


def test_what_cannot_be_compared_is_said():
    made = with_random(1.0, 0.1)
    made.loc[made["base"] == "fused", "accuracy"] = np.nan
    assert headlines.of_family_table(made, FAMILIES).startswith("Runs are missing")


def test_claims_are_counted():
    table = claims.verdicts("family_table", with_random(1.0, 0.1), FAMILIES)
    said = headlines.of_claims(table)
    supported = list(table[table["verdict"] == "supported"]["claim"])
    assert supported and f"{len(supported)} supported ({'; '.join(supported)})" in said
    assert said.startswith(f"Of {len(table)} verdicts")


def test_the_best_of_a_column_is_starred():
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, np.nan]}, index=["x", "y"])
    shown = repr(tables.show(table, best=["a", "b"]))
    assert "2.0*" in shown and "3.0*" in shown and "1.0*" not in shown


def test_a_check_that_cannot_be_made_is_no_failure():
    made = with_random(1.0, 0.1)
    lacking = made.assign(accuracy=made["accuracy"].where(made["base"] != "random"))
    said = headlines.sanity(lacking, FAMILIES)
    assert said == "Sanity check not possible: runs from random weights are missing."
    one = {"general": FAMILIES["general"][:1]}
    alone = made[made["target"].isin(one["general"])]
    alone = alone[alone["source_family"].isin(["", "general"])]
    assert headlines.sanity(alone, one).startswith("Sanity check undecided: pretrained - random is")


def test_the_check_holds_for_tables_that_vary_something():
    made = pd.concat([with_random(1.0, 0.0).assign(weight_decay=decay) for decay in (0.0, 0.1)])
    table = claims.verdicts("weight_decay", made, FAMILIES)
    assert (table["verdict"] == claims.UNDECIDED).all()
    assert (table["decided by"] == "pretrained - random").all()
    assert headlines.sanity(made, FAMILIES).startswith("Sanity check failed")


def test_the_check_is_of_the_mean_over_what_varies():
    taught = {0.0: 0.02, 0.1: 0.2}
    parts = [with_random(1.0, gap).assign(weight_decay=decay) for decay, gap in taught.items()]
    both = tables.taught(pd.concat(parts), FAMILIES)
    each = [tables.taught(part, FAMILIES).estimate for part in parts]
    assert both.estimate == pytest.approx(np.mean(each))
    missing = pd.concat([parts[0], parts[1].assign(accuracy=np.nan)])
    assert np.isnan(tables.taught(missing, FAMILIES).estimate)


def test_scopes_that_disagree_are_checked_one_by_one():
    def world(number: int, taught: list[float]) -> pd.DataFrame:
        made = pd.DataFrame({"source_family": "", "source_seed": 0, "seed": 0, "world": number,
                             "target": TASKS})  # fmt: skip
        start, floor = made.assign(base="pretrained"), made.assign(base="random")
        return pd.concat(
            [start.assign(accuracy=np.array(taught) + 0.2), floor.assign(accuracy=0.2)]
        )

    one_task, families = [0.5, 0.01, 0.0, 0.01, 0.0], {"tasks": TASKS}
    made = pd.concat([world(0, one_task), world(1, [gap + 0.002 for gap in one_task])])
    these, others = headlines.sanity(made, families).splitlines()
    assert these.startswith("For other worlds, these tasks: sanity check passed")
    assert others.startswith("For other worlds, other tasks") and "sanity check failed" in others
    alike = pd.concat([world(0, [0.3] * 5), world(1, [0.31] * 5)])
    assert headlines.sanity(alike, families).startswith("Sanity check passed: pretrained - random")


@pytest.mark.parametrize("taught", [0.2, 0.0])
def test_pairs_are_checked_and_random_weights_change_nothing_else(taught):
    made = heatmap({"a b": 0.03, "a c": 0.03, "b c": 0.03}, spread=0.01)
    start = made[made["base"] == "pretrained"]
    noise = np.random.default_rng(1).normal(0, 0.01, len(start))
    random = start.assign(base="random", accuracy=start["accuracy"] - taught + noise)
    checked, families = pd.concat([made, random], ignore_index=True), {"tasks": TASKS}
    pd.testing.assert_frame_equal(pairs.table(checked), pairs.table(made))
    pd.testing.assert_frame_equal(pairs.diagonal(checked), pairs.diagonal(made))
    before = claims.verdicts("pairwise_heatmap", made, families)
    table = claims.verdicts("pairwise_heatmap", checked, families)
    assert (before["raw verdict"] != claims.UNDECIDED).any()
    said = headlines.sanity(checked, families)
    if taught:
        assert said.startswith("Sanity check passed")
        pd.testing.assert_frame_equal(table, before)
    else:
        assert said.startswith("Sanity check failed")
        assert (table["decided by"] == "pretrained - random").all()


def test_another_method_is_compared_with_the_mean():
    made = with_random(1.0, 0.1)
    ties = made[made["base"] == "fused"].assign(base="ties")
    ties["accuracy"] += 0.01
    table = tables.differences(pd.concat([made, ties]), FAMILIES).set_index("comparison")
    assert table.loc["ties - fused", "estimate"].to_numpy() == pytest.approx(1.0)
