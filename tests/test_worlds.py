"""Many worlds: intervals of a two-way table, sources of uncertainty, what decides, the pictures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fusinglib.errors import InputError
from fusinglib.evaluation import claims, figures, pairs, statistics, tables, worlds
from fusinglib.evaluation.worlds import SCOPES, Squares
from fusinglib.places import PROJECT

SAME, OTHER = SCOPES
FAMILIES = {"few": ["a", "b", "c", "d"], "rest": ["e", "f"]}


def table(worlds_=6, types=5, deviations=(1.0, 2.0, 0.5), seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    world, type_, rest = deviations
    made = rng.normal(0, world, (worlds_, 1)) + rng.normal(0, type_, (1, types))
    return 1 + made + rng.normal(0, rest, (worlds_, types))


def test_mean_squares_are_those_of_an_analysis_of_variance():
    """Sums of squares by hand, for a small table."""
    values = np.array([[1.0, 2.0, 6.0], [3.0, 5.0, 7.0]])
    found = Squares.of(values)
    assert found.of_worlds == pytest.approx(3 * ((3 - 4) ** 2 + (5 - 4) ** 2))
    assert found.of_types == pytest.approx(2 * ((2 - 4) ** 2 + (3.5 - 4) ** 2 + (6.5 - 4) ** 2) / 2)
    total = ((values - 4) ** 2).sum()
    rest = total - found.of_worlds - 2 * found.of_types
    assert found.of_rest == pytest.approx(rest / 2)


def test_the_scope_of_these_types_is_a_t_interval_over_worlds():
    values = table()
    found = worlds.estimate(values, SAME).interval
    expected = stats.ttest_1samp(values.mean(axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.estimate == pytest.approx(values.mean())


def test_a_single_row_is_a_t_interval_over_tasks_and_a_single_task_one_over_rows():
    values = table()
    for one in (values[:1], values[:, :1]):
        expected = stats.ttest_1samp(one.ravel(), 0).confidence_interval(0.95)
        assert worlds.estimate(one, OTHER).interval[1:] == pytest.approx(tuple(expected))


def test_small_tables_have_intervals_of_finite_width():
    """Satterthwaite's degrees of freedom alone fall below one, and the widths to 10^150."""
    for seed in range(300):
        values = table(2, 5, (0, 0, 1), seed)
        squares = Squares.of(values)
        assert squares.variance(OTHER)[1] >= 1
        assert worlds.estimate(values, OTHER).reach() < 13 * np.sqrt(squares.variance(OTHER)[0])


@pytest.mark.parametrize(
    ("size", "deviations"),
    [((10, 13), (1, 1, 1)), ((10, 5), (0.5, 2, 1)), ((5, 6), (2, 0.5, 1)), ((1, 6), (0, 1, 1))],
)
def test_intervals_cover_the_truth(size, deviations):
    """400 draws: a true 95 % lies within 92 and 98 % nearly always."""
    rng, hits = np.random.default_rng(1), np.zeros(2)
    for _ in range(400):
        type_ = rng.normal(0, deviations[1], (1, size[1]))
        made = type_ + rng.normal(0, deviations[0], (size[0], 1))
        made = made + rng.normal(0, deviations[2], size)
        found = [worlds.estimate(made, scope).interval for scope in SCOPES]
        truths = [type_.mean() if size[0] > 1 else 0, 0]
        hits += [one.low <= truth <= one.high for one, truth in zip(found, truths, strict=True)]
    assert (0.92 <= hits / 400).all() and (hits / 400 <= 0.98).all()


def test_families_that_differ_are_covered_by_the_interval_over_families():
    """The interval over tasks holds for this mix of families, seldom for others (400 draws)."""
    families = {name: [f"{name}{task}" for task in range(4)] for name in "xyz"}
    rng, hits = np.random.default_rng(0), np.zeros(3)
    for _ in range(400):
        of_families = np.repeat(rng.normal(0, 1.5, 3), 4)
        made = of_families + rng.normal(0, 1, 12) + rng.normal(0, 1, (8, 1, 2, 12))
        mix = worlds.difference(made, 0.0)
        other = worlds.by_family({"made": made}, families).iloc[-1]
        hits[0] += mix.low <= of_families.mean() <= mix.high
        hits[1] += mix.low <= 0 <= mix.high
        hits[2] += other["low"] <= 0 <= other["high"]
    assert 0.92 <= hits[0] / 400 and hits[1] / 400 <= 0.85 and 0.92 <= hits[2] / 400 <= 0.985


def test_by_family_has_each_family_and_their_mean():
    differences = tables.paired(study(), FAMILIES)
    found = worlds.by_family(differences, FAMILIES).set_index(["comparison", "family"])
    assert list(found.loc["fused - pretrained"].index) == ["few", "rest", worlds.OTHER_FAMILIES]
    rows = tables.differences(study(), FAMILIES).set_index(["comparison", "target_family"])
    for family in FAMILIES:
        row = rows.loc[("fused - pretrained", family)]
        assert found.loc[("fused - pretrained", family)].tolist() == pytest.approx(
            row[["estimate", "low", "high"]].astype(float).tolist()
        )
    mean = found.loc["fused - pretrained", "estimate"]
    assert mean[worlds.OTHER_FAMILIES] == pytest.approx(mean[["few", "rest"]].mean())


def test_components_and_variances_find_what_was_put_in():
    rng, sums = np.random.default_rng(0), 0
    for _ in range(150):
        made = (
            rng.normal(0, 2, (8, 1, 1, 1)) + rng.normal(0, 3, (1, 1, 1, 10))
            + rng.normal(0, 1.5, (8, 2, 1, 1)) + rng.normal(0, 1, (8, 1, 1, 10))
            + rng.normal(0, 4, (8, 2, 3, 10))
        )  # fmt: skip
        sums = sums + worlds.variances(made)["std"] ** 2 / 150
    expected = {"world": 2, "task": 3, "source seed": 1.5, "seed": 4, "world x task": 1}
    for name, deviation in expected.items():
        assert np.sqrt(sums[name]) == pytest.approx(deviation, rel=0.12), name
    assert worlds.variances(made)["share"].sum() == pytest.approx(100)
    one = worlds.variances(made[:, :1])
    assert "source seed" not in one.index and "seed" in one.index
    assert "seed" not in worlds.variances(made[:, :1, :1]).index


def test_what_is_needed_is_the_least_that_decides_with_power():
    values = table(deviations=(1, 0.3, 1)) - 0.6
    found, gap = Squares.of(values), abs(values.mean())
    needed = worlds.needed(values, 0.0, SAME)
    assert list(needed) == ["worlds"]
    count = int(needed["worlds"].split()[0])

    def reach(count, scope):
        return found.expected(count, 5).estimate(0.0, scope).reach(0.80)

    assert reach(count, SAME) < gap <= reach(count - 1, SAME)
    assert list(worlds.needed(values, 0.0, OTHER)) == ["worlds", "tasks"]
    assert worlds.needed(values, values.mean(), SAME)["worlds"].startswith("> 100 (")


def test_the_range_of_what_is_needed_is_that_of_the_estimate_drawn_anew():
    known = statistics.Estimate(2.0, 1.0, 9)
    drawn = np.abs(np.random.default_rng(0).normal(2, 1, 100_000))
    high, low = (round(100 / gap) for gap in np.quantile(drawn, [0.1, 0.9]))
    said = worlds.in_range(lambda gap: round(100 / gap), known, 0.0)
    middle, few, many = said.replace("(", "").replace(")", "").replace("to ", "").split(" ", 2)
    assert (
        (middle, int(few)) == ("50", pytest.approx(low, abs=1)) and many == "> 100" and high > 100
    )


def test_expected_squares_of_the_same_size_are_the_same():
    found = Squares.of(table())
    assert found.expected(6, 5) == pytest.approx(found)


def test_a_table_of_one_world_or_one_type_is_refused():
    for shape in ((1, 5), (5, 1)):
        with pytest.raises(InputError, match="two worlds and two tasks"):
            Squares.of(np.zeros(shape))


def test_one_world_has_a_t_interval_over_its_targets():
    made = np.random.default_rng(0).normal(0.5, 0.1, (1, 1, 3, 6))
    expected = stats.ttest_1samp(made.mean(axis=(0, 1, 2)), 0).confidence_interval(0.95)
    assert worlds.difference(made, 0 * made)[1:] == pytest.approx(tuple(expected))
    missing = made.copy()
    missing[0, 0, 0, 0] = np.nan
    assert np.isnan(worlds.difference(missing, 0.0)).all()
    assert np.isnan(worlds.difference(np.concatenate([missing, made]), 0.0)).all()
    one = worlds.difference(made[..., :1], 0.0)
    assert one.estimate == pytest.approx(made[..., 0].mean()) and np.isnan(one[1:]).all()


def test_source_seeds_of_one_world_widen_its_interval():
    noise = np.random.default_rng(1).normal(0, 0.01, (1, 4, 3, 8))
    alike = worlds.difference(0.1 + noise, 0.0)
    shifts = np.array([-0.1, 0.1, -0.1, 0.1]).reshape(1, 4, 1, 1)
    unlike = worlds.difference(0.1 + noise + shifts, 0.0)
    assert unlike.estimate == pytest.approx(alike.estimate)
    assert unlike.high - unlike.low > 5 * (alike.high - alike.low)


def test_a_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(5).normal(0, 1, (1, 1, 3, 200))
    found = worlds.bootstrapped({"a": values}, lambda some: some["a"].mean(axis=(-3, -2, -1)))
    known = worlds.estimate(values.mean(axis=(1, 2)), OTHER)
    assert found.value == pytest.approx(known.value) and found.freedom == known.freedom
    assert found.variance == pytest.approx(known.variance, rel=0.15)


def study(count=4, seed=0) -> pd.DataFrame:
    """Results of a family table over worlds."""
    rng = np.random.default_rng(seed)
    bases = [("pretrained", ""), ("intertrained", "few"), ("fused", "few")]
    lift = {"pretrained": 0.0, "intertrained": 0.02, "fused": 0.05}
    return pd.DataFrame(
        [
            {
                "world": world, "base": base, "source_family": source, "source_seed": 0,
                "seed": s, "target": target,
                "accuracy": 0.6 + lift[base] + rng.normal(0, 0.01),
            }
            for world in range(count)
            for base, source in bases
            for s in range(2)
            for target in "abcdef"
        ]
    )  # fmt: skip


def test_tables_over_worlds():
    results = study()
    accuracy = tables.accuracy_table(results, FAMILIES)
    by_hand = results.query("base == 'fused' and target in ['a', 'b', 'c', 'd']")["accuracy"].mean()
    assert accuracy.loc[("fused", "few"), "few"] == pytest.approx(100 * by_hand)
    rows = tables.differences(results, FAMILIES).query("target_family == 'all'")
    row = rows.set_index("comparison").loc["fused - pretrained"]
    values = 100 * tables.paired(results, FAMILIES)["fused - pretrained"].mean(axis=(1, 2))
    other, same = (worlds.estimate(values, scope).interval for scope in (OTHER, SAME))
    assert (row["low"], row["high"]) == pytest.approx(other[1:])
    assert (row["low_same"], row["high_same"]) == pytest.approx(same[1:])
    assert row["worlds"] == 4 and row["missing"] == 0
    holed = tables.missing(results.iloc[1:], FAMILIES)
    assert holed[["base", "world", "target"]].to_numpy().tolist() == [["pretrained", 0, "a"]]
    one = tables.differences(results.query("world == 0"), FAMILIES)
    assert "low_same" not in one


def test_claims_over_worlds_are_those_of_their_differences():
    results = study()
    rows = claims.verdicts("family_table", results, FAMILIES)
    assert len(rows) == len(SCOPES) * (len(FAMILIES) + 3)
    paired = tables.paired(results, FAMILIES)["fused - pretrained"][..., :4]
    for scope in SCOPES:
        found = worlds.estimate(100 * paired.mean(axis=(1, 2)), scope).interval
        row = rows[(rows["scope"] == scope) & rows["claim"].str.endswith("on few")].iloc[0]
        assert tuple(row[["estimate", "low", "high"]]) == pytest.approx(tuple(found))
        assert row["verdict"] == "supported" and row["decided by"] == "-"


def test_over_worlds_the_source_models_are_covered():
    assert tables.caveats(study(), FAMILIES) == []
    (caveat,) = tables.caveats(study(count=1), FAMILIES)
    assert caveat.startswith("One source seed")


def test_verdicts_of_one_family_and_of_one_target():
    """What is not defined has no interval, and ends nothing."""
    few = {"few": FAMILIES["few"]}
    rows = claims.verdicts("family_table", study().query("target in ['a', 'b', 'c', 'd']"), few)
    four = rows[rows["claim"].str.startswith("4")]
    assert len(four) == 2 and four["estimate"].isna().all()
    assert (four["verdict"] == "undecided").all()
    one = claims.verdicts("family_table", study().query("target == 'a'"), {"one": ["a"]})
    assert one["claim"].str.startswith("1").any() and one.iloc[0]["low"] < one.iloc[0]["high"]


def test_no_interval_leaves_what_its_statistic_can_be():
    """Six pairs in three worlds, of which all or few beat their models."""
    rng, names = np.random.default_rng(0), "abcd"
    bases = [("pretrained", ()), *(("intertrained", (n,)) for n in names)]
    bases += [("fused", (one, two)) for one in names for two in names if one < two]
    results = pd.DataFrame(
        [
            {"world": world, "base": base, "sources": sources, "source_seed": 0, "seed": s,
             "target": target, "accuracy": 0.5 + rng.normal(0.1 * (world == 1), 0.1)}
            for world in range(3) for base, sources in bases for s in range(2)
            for target in "abcdef" if target not in sources
        ]
    )  # fmt: skip
    rows = claims.verdicts("pairwise_heatmap", results, {"six": [*"abcdef"]})
    shares = rows[~rows["claim"].str.startswith("9")]
    assert (shares["low"] >= 0).all() and (shares["high"] <= 100).all()
    assert ((rows["low"] == 0) | (rows["high"] == 100)).any()
    nine = rows[rows["claim"].str.startswith("9")]
    assert nine["low"].between(-1, 1).all() and nine["high"].between(-1, 1).all()


def test_pairs_over_worlds():
    rng, names = np.random.default_rng(0), "abc"
    bases = [("pretrained", ()), *(("intertrained", (n,)) for n in names)]
    bases += [("fused", tuple(pair)) for pair in ("ab", "ac", "bc")]
    results = pd.DataFrame(
        [
            {"world": world, "base": base, "sources": sources, "source_seed": 0, "seed": s,
             "target": target, "accuracy": 0.5 + 0.1 * (base == "fused") + rng.normal(0, 0.01)}
            for world in range(3) for base, sources in bases for s in range(2)
            for target in "abcde" if target not in sources
        ]
    )  # fmt: skip
    cells = pairs.table(results)
    assert (cells["better_than_both"] == 100).all() and (cells["rank"] == "better than both").all()
    assert pairs.diagonal(results).shape == (3, 3)
    assert pairs.detail(results, ("a", "b")).shape == (3 * 2 + 1, 4)
    assert len(claims.verdicts("pairwise_heatmap", results, {"five": [*"abcde"]})) == 10


def test_worlds_are_drawn_and_foretold():
    differences = tables.paired(study(), FAMILIES)
    by_world = worlds.by_world(differences, [3, 7, 8, 11])
    assert len(by_world) == 3 * (4 + len(SCOPES))
    figure = figures.world_figure(by_world)
    assert [ax.get_title() for ax in figure.axes] == [n.replace("-", "−") for n in differences]
    labels = [text.get_text().replace("\n", " ") for text in figure.axes[0].get_yticklabels()]
    assert labels == ["world 3", "world 7", "world 8", "world 11", *SCOPES]
    shares = {name: worlds.variances(100 * array)["share"] for name, array in differences.items()}
    assert len(figures.share_figure(pd.DataFrame(shares)).axes[0].patches) == 3 * 4
    found = worlds.forecast(differences["fused - pretrained"], 3)
    values = 100 * differences["fused - pretrained"].mean(axis=(1, 2))
    assert found["actual"].tolist() == [worlds.estimate(values, scope).reach() for scope in SCOPES]
    decided = worlds.to_decide(differences).loc["fused - pretrained"]
    assert (decided["worlds"] == "*").all()


def test_what_is_said_of_coverage_is_what_was_measured():
    measured = pd.read_csv(PROJECT / "results/benchmarks/coverage.csv")
    at_once = measured["interval"].str.startswith("all rows at once")
    assert measured[at_once]["after"].between(93.95, 99.25).all()
    ten = measured[~at_once & measured["size"].str.startswith("10 worlds")]
    real, families = ten[ten["case"].str.startswith("real")], ten[ten["case"].str.contains("other")]
    assert real["after"].between(93.95, 95.05).all()
    other = real[real["interval"] == OTHER]
    found = [*other["above"].agg(["min", "max"]), *other["below"].agg(["min", "max"])]
    assert found == [3.8, 4.5, 1.0, 1.2]
    over_tasks = families[families["interval"] == OTHER]["after"].round()
    assert list(over_tasks) == [82, 75, 73]
    over_families = families[families["interval"] == worlds.OTHER_FAMILIES]["after"]
    assert over_families.between(94.5, 95.5).all()
