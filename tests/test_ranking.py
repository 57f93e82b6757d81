"""Base models against the mean: tuning, corrected intervals, gates, and what they cost."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fusinglib.errors import InputError
from fusinglib.evaluation import claims, headlines, ranking, statistics, tables, worlds
from fusinglib.evaluation.statistics import Estimate
from fusinglib.study.arms import arm
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FusingMethods
from fusinglib.study.store import Store

FAMILIES = {"one": ["a", "b", "c"], "two": ["d", "e"]}
TARGETS = [target for members in FAMILIES.values() for target in members]
ALONE = ("pretrained", "random")


def study(accuracies: dict[str, np.ndarray], dev=None) -> pd.DataFrame:
    """Results from accuracies (worlds, targets) of each base model, one seed; `dev` likewise."""
    return pd.DataFrame(
        {
            "world": world, "base": base, "source_family": "" if base in ALONE else "every",
            "source_seed": 0, "seed": 0, "target": target, "accuracy": values[world, column],
            "dev": (dev or accuracies)[base][world, column], "metric": "accuracy",
        }
        for base, values in accuracies.items()
        for world in range(len(values))
        for column, target in enumerate(TARGETS)
    )  # fmt: skip


def drawn(rng, bases, effects=(), count=10, of_targets=0.0) -> dict[str, np.ndarray]:
    """Accuracies with effects of targets that all share, and each base model's own noise in every
    run and, with the deviation `of_targets`, on every target."""
    targets = rng.normal(0.7, 0.1, len(TARGETS))
    noise = {
        base: rng.normal(0, 0.03, (count, len(TARGETS))) + rng.normal(0, of_targets, len(TARGETS))
        for base in bases
    }
    return {base: targets + noise[base] + dict(effects).get(base, 0) for base in bases}


BASES = ["pretrained", "fused", "intertrained", *(f"m{number}" for number in range(8))]


def test_differences_are_those_from_the_mean_best_first():
    accuracies = drawn(np.random.default_rng(1), BASES)
    table = ranking.against(study(accuracies), FAMILIES)
    assert "fused" not in table.index and len(table) == len(BASES) - 1
    assert table["estimate"].is_monotonic_decreasing
    for base in table.index:
        differences = (accuracies[base] - accuracies["fused"]).mean(axis=1)
        estimate, low, high = statistics.over_seeds(100 * differences)
        row = table.loc[base]
        assert list(row[["estimate", "low", "high"]]) == pytest.approx([estimate, low, high])
        assert row["low all"] < low and high < row["high all"]
        gains = (accuracies[base] - accuracies["fused"]).mean(axis=0) > 0
        assert row["improved"] == f"{gains.sum()} of {len(TARGETS)}" and row["missing"] == 0


def test_a_missing_run_leaves_its_row_without_numbers():
    results = study(drawn(np.random.default_rng(1), BASES))
    table = ranking.against(results.drop(index=results.query("base == 'm3'").index[0]), FAMILIES)
    assert table.loc["m3", "missing"] == 1 and table.index[-1] == "m3"
    assert table.loc["m3"].drop(["missing", "improved"]).isna().all()
    assert table.drop(index="m3").notna().all(axis=None)


def test_in_one_world_all_intervals_are_over_targets():
    """Also with several source seeds, so that the gates and the rows agree."""
    parts = [
        study(drawn(np.random.default_rng(seed), ["fused", "intertrained", "placebo"], count=1))
        for seed in range(3)
    ]
    results = pd.concat(part.assign(source_seed=seed) for seed, part in enumerate(parts))
    start = study(drawn(np.random.default_rng(9), ["pretrained"], count=1))
    results = pd.concat([results, start], ignore_index=True)
    gate = ranking.gates(results, FAMILIES).iloc[0]
    row = ranking.against(results, FAMILIES).loc["pretrained"]
    assert [-gate["high"], -gate["low"]] == pytest.approx([row["low"], row["high"]])
    assert gate["scope"] == claims.HERE


def test_without_an_interval_a_gate_is_unknown_and_nothing_is_compared():
    results = study(drawn(np.random.default_rng(1), BASES[:3], count=1)).query("target == 'a'")
    gates, against = (made(results, {"one": ["a"]}) for made in (ranking.gates, ranking.against))
    assert list(gates["verdict"]) == ["unknown"]
    assert headlines.of_methods(gates, against).endswith(
        "There are no intervals, so no method is compared with the mean."
    )
    lacking = study(drawn(np.random.default_rng(1), BASES)).drop(index=0)
    assert list(ranking.gates(lacking, FAMILIES)["verdict"]) == ["unknown"] * 2


@pytest.mark.parametrize(("taught", "verdict"), [(0.3, "passed"), (0.0, "not tested")])
def test_without_the_sanity_check_no_gate_is_tested(taught, verdict):
    bases = ["fused", "intertrained", "pretrained", "random"]
    accuracies = drawn(np.random.default_rng(1), bases)
    noise = np.random.default_rng(2).normal(0, 0.01, accuracies["fused"].shape)
    accuracies["pretrained"] = accuracies["fused"] - 0.1 + noise
    accuracies["random"] = accuracies["pretrained"] - taught + noise[::-1]
    results = study(accuracies)
    gates = ranking.gates(results, FAMILIES)
    assert set(gates["verdict"]) == {verdict}
    said = headlines.of_methods(gates, ranking.against(results, FAMILIES))
    assert ("a better start" in said) == ("corrected for" in said) == (verdict == "passed")


def test_a_base_model_that_equals_the_mean_leaves_the_others_their_sentence():
    accuracies = drawn(np.random.default_rng(1), BASES)
    accuracies["m0"] = accuracies["fused"]
    results = study(accuracies)
    against = ranking.against(results, FAMILIES)
    said = headlines.of_methods(ranking.gates(results, FAMILIES), against)
    assert f"Of {len(against) - 1} base models" in said and "How sure" in said


def test_no_p_value_is_zero():
    _, (p,) = statistics.at_once([Estimate(100.0, 1.0, 9)])
    assert 0 < p < 0.001


def test_targets_of_a_cluster_count_as_one():
    accuracies = drawn(np.random.default_rng(1), ["pretrained", "fused", "intertrained"], count=1)
    found, families = tables.clustered(study(accuracies), FAMILIES, {"some": ["b", "c", "d"]})
    gaps = 100 * (accuracies["pretrained"] - accuracies["fused"])[0]
    expected = statistics.over_seeds([gaps[0], gaps[1:4].mean(), gaps[4]])
    row = ranking.against(found, families).loc["pretrained"]
    assert list(row[["estimate", "low", "high"]]) == pytest.approx(list(expected))
    assert row["improved"].endswith("of 3")
    gate = ranking.gates(found, families).iloc[0]
    assert gate["estimate"] == pytest.approx(-expected.estimate)


def test_one_mean_alone_has_the_t_interval():
    alone = Estimate(1.0, 0.25, 9)
    reach, (p,) = statistics.at_once([alone])
    assert reach == pytest.approx(stats.t.ppf(0.975, 9), rel=0.03)
    assert p == pytest.approx(alone.p_value(0), abs=0.01)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_with_many_runs_means_at_once_have_the_quantiles_of_dunnett(count):
    """Of a normal distribution with correlations of one half, of which 95 % are within them."""
    reach, p_values = statistics.at_once([Estimate(2.5, 1.0, 300)] * count)
    exact = stats.multivariate_normal(cov=0.5 * (1 + np.eye(count)))
    for at, expected in ((reach, 0.95), (2.5, 1 - p_values[0])):
        within = exact.cdf([at] * count, lower_limit=[-at] * count, rng=np.random.default_rng(0))
        assert within == pytest.approx(expected, abs=0.006)
    fewer, _ = statistics.at_once([Estimate(2.5, 1.0, 9)] * count)
    assert fewer > reach


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scope", "of_targets"), [(worlds.SCOPES[0], 0.0), (worlds.SCOPES[1], 0.03)]
)
def test_all_intervals_hold_at_once_where_arms_share_the_mean(scope, of_targets):
    """In made-up studies of ten worlds in which no method differs from the mean."""
    rng, held, alone = np.random.default_rng(3), [], []
    for _ in range(300):
        results = study(drawn(rng, BASES, of_targets=of_targets))
        table = ranking.against(results, FAMILIES, scope=scope)
        held.append(((table["low all"] <= 0) & (table["high all"] >= 0)).all())
        alone.append(((table["low"] <= 0) & (table["high"] >= 0)).all())
    assert 0.9 <= np.mean(held) <= 0.99  # 300 draws: 93 to 95 % plus or minus 3
    assert np.mean(alone) < 0.9


def test_gates_stop_at_the_first_failure():
    better = {"fused": 0.05, "scaled single": 0.05}
    bases = ["pretrained", "fused", "intertrained", "placebo", "scaled single"]
    results = study(drawn(np.random.default_rng(0), bases, better))
    table = ranking.gates(results, FAMILIES)
    gates = ["fused - pretrained", "fused - placebo", "fused - scaled single"]
    assert list(table["difference"]) == 2 * gates
    assert list(table["scope"]) == [scope for scope in worlds.SCOPES for _ in gates]
    assert list(table["verdict"])[:3] == ["passed", "passed", "not passed"]
    worse = study(drawn(np.random.default_rng(0), bases, {"fused": -0.05, "placebo": -0.2}))
    failed = ["not passed", "not tested", "not tested"]
    assert list(ranking.gates(worse, FAMILIES)["verdict"]) == 2 * failed
    lacking = results[results["base"] != "placebo"]
    assert list(ranking.gates(lacking, FAMILIES)["verdict"])[:2] == ["passed", "not passed"]


@pytest.mark.slow
def test_gates_are_rarely_passed_without_an_effect():
    rng = np.random.default_rng(4)
    bases = ["pretrained", "fused", "intertrained", "placebo", "scaled single"]
    passed = [
        ranking.gates(study(drawn(rng, bases)), FAMILIES)["verdict"].iloc[0] == "passed"
        for _ in range(400)
    ]
    assert 0.005 <= np.mean(passed) <= 0.05  # 2.5 % on the side of fusing


TIES = [arm({"ties": {"density": density}}) for density in (0.2, 0.5)]


def test_a_target_is_tuned_on_the_dev_sets_of_the_others():
    """Each variant is best on one half of the targets; a target's own dev score is ignored."""
    low, high = (one.name for one in TIES)
    rng = np.random.default_rng(0)
    accuracies = drawn(rng, ["pretrained", "fused", "intertrained", low, high], count=2)
    dev = {base: np.full((2, 5), 0.5) for base in accuracies}
    dev[low][0] = [0.9, 0.5, 0.5, 0.5, 0.5]  # best in world 0, but only because of target a
    dev[high][0] = [0.5, 0.6, 0.5, 0.5, 0.5]
    dev[high][1] = 0.6
    results = study(accuracies, dev)
    found = ranking.tuned(results, [*TIES, arm("placebo")], [])
    made = found.iloc[len(results) :]
    assert set(made["base"]) == {"ties, tuned"} and len(made) == 2 * 5
    values = made.set_index(["world", "target"])["accuracy"].unstack("target")[TARGETS].to_numpy()
    assert values[0, 0] == accuracies[high][0, 0]
    assert np.array_equal(values[0, 1:], accuracies[low][0, 1:])
    assert np.array_equal(values[1], accuracies[high][1])
    assert "ties, tuned" in ranking.against(found, FAMILIES).index


def test_a_missing_variant_or_a_single_target_is_not_tuned():
    accuracies = drawn(np.random.default_rng(0), ["fused", *(one.name for one in TIES)], count=1)
    results = study(accuracies)
    alone = results[results["target"] == "a"]
    assert len(ranking.tuned(alone, TIES, [])) == len(alone)
    lacking = results.assign(dev=results["dev"].where(results.index != len(results) - 1))
    assert len(ranking.tuned(lacking, TIES, [])) <= len(results) + 1
    assert len(ranking.tuned(results, TIES[:1], [])) == len(results)


def test_the_rate_is_tuned_on_the_targets_own_dev_set(mini):
    """Of pretrained and of fused alike; the default rate is one of those to choose from."""
    rates = [1e-4, 1e-2]
    chosen = {**mini, "arms": [], "tried_rates": rates}
    chosen |= {"seeds": [0, 1], "source_seeds": [0, 1]}
    settings = FusingMethods.from_parameters(chosen)
    plan = plan_experiment(settings)
    found = execute(plan, Store(settings.store_folder()), settings)
    results = ranking.tuned(found, [], rates)
    made = results[results["base"].str.endswith(ranking.TUNED)]
    assert set(made["base"]) == {"pretrained, tuned rate", "fused, tuned rate"}
    used = {row["run"].key: row["run"].settings["training"]["learning_rate"] for row in plan.rows}
    for row in made.to_dict("records"):
        name = row["base"].removesuffix(ranking.TUNED)
        same = found[found["base"].str.split(" ").str[0] == name].query(
            f"target == {row['target']!r} and source_family in ('', {row['source_family']!r}) and "
            f"source_seed == {row['source_seed'] * (name == 'fused')}"
        )
        dev = same.groupby(same["key"].map(used))["dev"].mean()
        assert len(dev) == 3 and dev[used[row["key"]]] == dev.max()
    assert len(made) == 2 * len(found.query("base == 'fused'"))
    rows = ranking.gates(results, plan.families)
    assert list(rows["verdict"])[-1] == "no gate" and rows["estimate"].notna().all()
    with pytest.raises(InputError, match="'tried_rates' is .*expected new ones, once"):
        FusingMethods.from_parameters({**chosen, "tried_rates": [mini["learning_rate"]]})


def test_the_rate_of_a_replicate_is_tuned_among_its_own_runs(mini):
    chosen = {**mini, "arms": [], "tried_rates": [1e-2], "seeds": [0, 1], "source_seeds": []}
    settings = FusingMethods.from_parameters(chosen)
    plan = plan_experiment(settings)
    found = execute(plan, Store(settings.store_folder()), settings)
    results = ranking.tuned(found, [], [1e-2])
    made = results[results["base"].str.endswith(ranking.TUNED)]
    assert len(made) == 2 * len(found.query("base == 'fused'"))
    assert (made["seed"] == made["source_seed"]).all()
    assert ranking.gates(results, plan.families)["estimate"].notna().all()


def test_costs_are_those_of_all_that_was_made(mini):
    """Estimates count for Fisher, and the method itself for what is rescaled."""
    arms = ["fisher", {"ties": {"rescaled": True}}, {"ties": {}}, "scaled single", "placebo"]
    chosen = {**mini, "arms": arms, "tried_rates": [], "seeds": [0]}
    settings = FusingMethods.from_parameters(chosen)
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    results = ranking.with_costs(execute(plan, store, settings), plan, store)
    table = ranking.costs(results)
    assert set(table.index) == set(results["base"]) - {"pretrained", "intertrained"}
    assert table.loc["fisher", "texts"] == 256 and table.loc["ties", "texts"] == 0
    assert table.loc["ties (rescaled)", "seconds"] > table.loc["ties", "seconds"]
    assert table.loc["ties (rescaled)", "reads"] == "three passes, and two of the result"
    model = next(r["run"] for r in plan.rows if r["base"] == "fisher").parents[0]
    parts = [run for run in model.parents if run.kind == "estimate"]
    seconds = sum(store.result(run)["seconds"] for run in [model, *parts])
    assert results.query("base == 'fisher'")["made_in"].iloc[0] == pytest.approx(seconds)
    gates, against = (made(results, plan.families) for made in (ranking.gates, ranking.against))
    said = headlines.of_methods(gates, against)
    assert said.startswith("For other targets like these:\n")
    assert "\nNot passed: the mean ends" in said or "\nPassed: the mean ends" in said
    known = against["low all"].notna().sum()
    assert f"Of {known} base models, corrected for their number" in said
    assert headlines.of_methods(gates, against.assign(estimate=np.nan)).startswith("Runs are mis")
