import numpy as np
import pandas as pd
import pytest

from fusinglib.errors import InputError
from fusinglib.evaluation import reference, statistics, tables, worlds
from fusinglib.study.settings import EXPERIMENTS

FAMILIES = {"letters": ["a", "b", "shared"], "digits": ["1", "shared"]}
TARGETS = ["a", "b", "shared", "1"]


def study(families=FAMILIES, seeds=(0, 1, 2), source_seeds=(0,), random=True):
    """Made-up results, every run different."""
    bases = [("pretrained", "", [0])] + [("random", "", [0])] * random
    bases += [(base, f, source_seeds) for base in ("fused", "intertrained") for f in families]
    rows = [
        (base, source, source_seed, seed, target)
        for base, source, all_seeds in bases
        for source_seed in all_seeds
        for seed in seeds
        for target in tables.distinct_targets(families)
    ]
    results = pd.DataFrame(rows, columns=[name for name in tables.RUN if name != "world"])
    accuracy = np.random.default_rng(5).uniform(0.3, 0.9, len(rows))
    return results.assign(accuracy=accuracy, ranked=0.0).sample(frac=1, random_state=1)


def pick(results, **where):
    """Accuracies of the runs with these values."""
    for name, value in where.items():
        results = results[results[name].isin(value if isinstance(value, list) else [value])]
    return results["accuracy"]


def paper_families():
    """Families of the paper's names and sizes."""
    return {f: [f"{f}{i}" for i in range(n)] for f, n in reference.FAMILY_SIZES.items()}


def test_accuracy_table_has_the_layout_of_the_paper():
    table = tables.accuracy_table(study(), FAMILIES)
    assert list(table.index) == [
        ("intertrained", "letters"),
        ("intertrained", "digits"),
        ("fused", "letters"),
        ("fused", "digits"),
        ("pretrained", ""),
        ("random", ""),
    ]
    assert list(table.columns) == ["letters", "digits", "average"]
    assert ("random", "") not in tables.accuracy_table(study(random=False), FAMILIES).index


def test_a_cluster_is_one_target_with_the_mean_of_its_runs():
    results, clusters = study(), {"pair": ["a", "shared"], "alone": ["b", "x"]}
    found, families = tables.clustered(results, FAMILIES, clusters)
    assert families == {"letters": ["pair", "b"], "digits": ["1", "pair"]}
    assert len(found) == len(results) * 3 / 4
    where = {"base": "fused", "source_family": "digits", "seed": 1}
    both = pick(results, target=["a", "shared"], **where)
    assert pick(found, target="pair", **where).tolist() == [pytest.approx(both.mean())]
    assert pick(found, target="b").tolist() == pick(results, target="b").tolist()


@pytest.mark.parametrize("lost", ["a row", "its accuracy"])
def test_a_run_on_a_cluster_is_missing_if_one_of_its_members_is(lost):
    results = study().reset_index(drop=True)
    at = results.query("base == 'fused' and target == 'a' and seed == 1").index[0]
    if lost == "a row":
        results = results.drop(index=at)
    else:
        results.loc[at, "accuracy"] = np.nan
    found, families = tables.clustered(results, FAMILIES, {"pair": ["a", "shared"]})
    assert len(tables.missing(found, families)) == 1
    assert found["accuracy"].isna().sum() == 1


def test_without_clusters_among_the_targets_results_stay_as_they_are():
    results = study()
    found, families = tables.clustered(results, FAMILIES, {"elsewhere": ["x", "y"], "one": ["a"]})
    assert found is results and families == FAMILIES


def test_clusters_keep_apart_what_an_experiment_varies():
    parts = [
        study().assign(weight_decay=decay, metric="macro_f1", macro_f1=0.5) for decay in (0, 1)
    ]
    results = pd.concat(parts, ignore_index=True)
    found, families = tables.clustered(results, FAMILIES, {"pair": ["a", "b"]})
    assert found.groupby("weight_decay").size().tolist() == [len(results) * 3 / 8] * 2
    table = tables.accuracy_table(found[found["weight_decay"] == 1], families)
    assert table.eq(50).all(axis=None)


def of_replicates(count=3):
    """Made-up results in which every seed has source models of its own."""
    parts = [
        study(seeds=[seed], source_seeds=[seed], random=False).assign(source_seed=seed)
        for seed in range(count)
    ]
    results = pd.concat(parts, ignore_index=True)
    return results.assign(accuracy=np.random.default_rng(3).uniform(0.3, 0.9, len(results)))


def test_intervals_of_replicates_are_over_replicates_and_targets():
    """Each replicate is a row of the table, paired with its own runs from pretrained."""
    results = of_replicates()
    runs = results.set_index(["base", "source_family", "seed", "target"])["accuracy"].sort_index()
    gaps = runs["fused", "digits"] - runs["pretrained", ""]
    table = gaps.unstack("target").loc[[0, 1, 2], TARGETS].to_numpy()
    expected = worlds.estimate(100 * table, worlds.SCOPES[1]).interval
    rows = tables.differences(results, FAMILIES).set_index(
        ["comparison", "source_family", "target_family"]
    )
    row = rows.loc["fused - pretrained", "digits", "all"]
    assert list(row[["estimate", "low", "high"]]) == pytest.approx(list(expected))
    assert (row["seeds"], row["source_seeds"], row["missing"]) == (3, 3, 0)


def test_one_seed_with_source_models_of_its_own_lacks_nothing():
    results = of_replicates().query("seed == 2")
    assert tables.missing(results, FAMILIES).empty


def test_spread_of_replicates_is_over_their_seeds():
    results = of_replicates()
    own = pick(results, base="fused", source_family="digits", target="1")
    table = tables.accuracy_table(results, {"digits": ["1"], "letters": ["a", "b"]}, "std")
    assert table.loc[("fused", "digits"), "digits"] == pytest.approx(100 * own.std())
    said = " ".join(tables.caveats(results, FAMILIES))
    assert "One seed" not in said and "One source seed" not in said


def test_a_missing_replicate_is_named_by_its_seed():
    results = of_replicates()
    at = results.query("base == 'pretrained' and seed == 2 and target == 'b'").index[0]
    (lost,) = tables.missing(results.drop(index=at), FAMILIES).to_dict("records")
    assert (lost["base"], lost["seed"], lost["target"]) == ("pretrained", 2, "b")


def test_accuracy_table_holds_means_in_percent():
    results = study(source_seeds=(0, 1))
    table = tables.accuracy_table(results, FAMILIES)
    runs = pick(results, base="fused", source_family="digits", target=FAMILIES["letters"])
    assert len(runs) == 18
    cell = table.loc[("fused", "digits")]
    assert cell["letters"] == pytest.approx(100 * runs.mean())
    assert cell["average"] == pytest.approx((cell["letters"] + cell["digits"]) / 2)


def test_each_statistic_is_that_of_the_runs_of_its_cell():
    results = study()
    wide = results[(results["base"] == "intertrained") & (results["source_family"] == "letters")]
    runs = wide.pivot(index="seed", columns="target", values="accuracy")[FAMILIES["digits"]]
    for name, function in tables.STATISTICS.items():
        table = tables.accuracy_table(results, FAMILIES, name)
        expected = 100 * function(runs.to_numpy())
        assert table.loc[("intertrained", "letters"), "digits"] == pytest.approx(expected)
    assert expected > 0, "the collapse rate is tried on runs that do collapse"


@pytest.mark.parametrize("as_nan", [False, True])
def test_a_missing_run_makes_its_cells_nan_and_is_counted(as_nan):
    results = study()
    hole = (results["base"] == "pretrained") & (results["seed"] == 1) & (results["target"] == "1")
    holed = results.assign(accuracy=results["accuracy"].mask(hole)) if as_nan else results[~hole]
    table = tables.accuracy_table(holed, FAMILIES)
    row = table.loc[("pretrained", "")]
    assert np.isnan(row["digits"]) and np.isnan(row["average"]) and row["letters"] > 0
    assert list(table["missing runs"]) == [0, 0, 0, 0, 1, 0]
    lacking = tables.missing(holed, FAMILIES)
    assert lacking.to_dict("records") == [
        {"base": "pretrained", "source_family": "", "source_seed": 0, "seed": 1, "target": "1"}
    ]
    assert tables.missing(results, FAMILIES).empty


def test_a_base_without_any_run_is_a_row_of_holes():
    results = study()
    table = tables.accuracy_table(results[results["base"] != "fused"], FAMILIES)
    assert table.loc["fused"].drop(columns="missing runs").isna().all(axis=None)
    assert list(table.loc["fused", "missing runs"]) == [12, 12]


def test_thin_results_run():
    families = {"only": ["a"]}
    results = study(families, seeds=(0,))
    assert tables.accuracy_table(results, families).notna().all(axis=None)
    assert (tables.show(tables.accuracy_table(results, families, "std")) == "–").all(axis=None)
    differences = tables.differences(results, families)
    assert differences["estimate"].notna().all() and differences["low"].isna().all()


def test_results_read_back_from_a_file_give_the_same_table(tmp_path):
    results = study()
    results.to_csv(tmp_path / "results.csv", index=False)
    read = pd.read_csv(tmp_path / "results.csv", dtype={"target": str})
    pd.testing.assert_frame_equal(
        tables.accuracy_table(read, FAMILIES), tables.accuracy_table(results, FAMILIES)
    )


def test_difference_pairs_the_runs_of_a_target_and_seed():
    results = study(source_seeds=(0, 1))
    row = difference(results, "fused - pretrained", "letters", "digits")
    fused = results[(results["base"] == "fused") & (results["source_family"] == "letters")]
    pairs = fused.merge(results[results["base"] == "pretrained"], on=["target", "seed"])
    pairs = pairs[pairs["target"].isin(FAMILIES["digits"])]
    gains = pairs["accuracy_x"] - pairs["accuracy_y"]
    assert len(gains) == 2 * 3 * 2
    assert row["estimate"] == pytest.approx(100 * gains.mean())
    assert row["low"] <= row["estimate"] <= row["high"]
    assert row["improved"] == (gains.groupby(pairs["target"]).mean() > 0).sum()
    assert (row["targets"], row["seeds"], row["source_seeds"], row["missing"]) == (2, 3, 2, 0)


def test_interval_of_a_difference_is_that_of_the_statistics():
    results = study()
    row = difference(results, "pretrained - random", "", "all")
    wide = results.pivot_table(index=["base", "seed"], columns="target", values="accuracy")[TARGETS]
    gaps = wide.loc["pretrained"] - wide.loc["random"]
    interval = statistics.Estimate.of(gaps.mean(axis=0)).interval
    assert [row["estimate"], row["low"], row["high"]] == pytest.approx(
        [100 * value for value in interval]
    )


def test_all_targets_count_once_and_all_sources_are_averaged():
    results = study()
    row = difference(results, "fused - intertrained", "all", "all")
    expected = pick(results, base="fused").mean() - pick(results, base="intertrained").mean()
    assert row["targets"] == 4
    assert row["estimate"] == pytest.approx(100 * expected)


def test_every_comparison_has_every_source_and_target_family():
    rows = tables.differences(study(), FAMILIES)
    assert not rows.duplicated(["comparison", "source_family", "target_family"]).any()
    assert rows.groupby("comparison").size().to_dict() == {
        "fused - pretrained": 9,
        "fused - intertrained": 9,
        "intertrained - pretrained": 9,
        "pretrained - random": 3,
    }
    rows = tables.differences(study(random=False), FAMILIES)
    assert "pretrained - random" not in set(rows["comparison"])


def test_a_difference_with_a_missing_run_is_nan():
    results = study()
    hole = (results["base"] == "fused") & (results["source_family"] == "digits")
    hole &= (results["target"] == "a") & (results["seed"] == 0)
    row = difference(results[~hole], "fused - pretrained", "all", "letters")
    assert row[["estimate", "low", "high", "improved"]].isna().all()
    assert row["missing"] == 1
    row = difference(results[~hole], "fused - pretrained", "letters", "letters")
    assert row.notna().all() and row["missing"] == 0


def test_caveats_tell_what_is_lacking():
    assert tables.caveats(study(source_seeds=(0, 1)), FAMILIES) == []
    thin = tables.caveats(study(seeds=(0,)).iloc[1:], FAMILIES)
    assert [sentence.split(":")[0] for sentence in thin] == [
        "1 of 24 runs are missing; their cells show –.",
        "One seed",
        "One source seed",
    ]
    cut = study(source_seeds=(0, 1)).assign(truncated=0.25)
    assert tables.caveats(cut, FAMILIES) == [
        "25.0 % of the texts were longer than the model can read and were truncated."
    ]


def test_targets_without_signal_are_named():
    """Of 500 test texts two standard errors are 4.4 points around a majority of 60 %."""
    results = study(source_seeds=(0, 1)).assign(majority=0.6, n_test=500)
    targets = tables.distinct_targets(FAMILIES)
    above = dict(zip(targets, [0.59, 0.64, 0.65], strict=False))
    results["accuracy"] = results["target"].map(above).fillna(0.9)
    assert tables.without_signal(results) == targets[:2]
    said = f"Pretrained does not beat the majority label on {', '.join(targets[:2])}: accuracy"
    assert [sentence.startswith(said) for sentence in tables.caveats(results, FAMILIES)] == [True]
    table = tables.targets_table(results.assign(macro_f1=0.5), FAMILIES)
    assert list(table["signal"]) == ["none", "none", *[""] * (len(targets) - 2)]
    assert (table["majority"] == 60).all() and (table["F1 fused"] == 50).all()
    assert list(table["pretrained"].round(6)) == [100 * above.get(t, 0.9) for t in targets]
    before = tables.targets_table(study(), FAMILIES)  # without macro-F1 and majority
    assert before["majority"].isna().all() and before["F1 fused"].isna().all()


def test_runs_that_were_still_improving_are_counted():
    results = study(source_seeds=(0, 1)).assign(best_step=40, steps=80, stopped="max_steps")
    assert (tables.still_improving(results) == 0).all()
    late = results["base"].eq("fused") & results["seed"].eq(0)
    results.loc[late, "best_step"] = 80
    seeds = results["seed"].nunique()
    assert tables.still_improving(results)["fused"] == pytest.approx(100 / seeds)
    results.loc[results["base"].eq("fused"), "best_step"] = 80
    (said,) = tables.caveats(results, FAMILIES)
    assert said.startswith("100 % of the runs from fused did best at their last evaluation")
    patient = results.assign(stopped="patience")
    assert tables.caveats(patient, FAMILIES) == []


def test_tables_show_the_metric_that_runs_were_stopped_by():
    results = study(source_seeds=(0, 1))
    by_f1 = results.assign(metric="macro_f1", macro_f1=results["accuracy"] / 2)
    whole, half = (tables.accuracy_table(one, FAMILIES) for one in (results, by_f1))
    pd.testing.assert_frame_equal(half * 2, whole)
    assert tables.caveats(by_f1, FAMILIES) == [
        "All scores are macro-F1, in percent, not accuracies."
    ]
    kept = results.assign(metric="accuracy", macro_f1=0.0)
    pd.testing.assert_frame_equal(tables.accuracy_table(kept, FAMILIES), whole)


def difference(results, comparison, source, target):
    """One row of the differences."""
    rows = tables.differences(results, FAMILIES).set_index(
        ["comparison", "source_family", "target_family"]
    )
    return rows.loc[(comparison, source, target)]


def test_paper_stands_beside_the_papers_families_only():
    families = paper_families()
    table = tables.accuracy_table(study(families, seeds=(0,)), families)
    both = tables.beside_paper(table, reference.TABLE_1, families)
    assert both.loc[("fused", "nli"), ("general", "paper")] == 68.96
    assert both.loc[("pretrained", ""), ("average", "paper")] == 62.40
    assert np.isnan(both.loc[("random", ""), ("nli", "paper")])
    pd.testing.assert_frame_equal(
        both.xs("ours", axis="columns", level=1), table, check_names=False
    )

    smaller = families | {"nli": families["nli"][:5]}
    assert tables.beside_paper(table, reference.TABLE_1, smaller) is table


def test_paper_table_fits_a_terminal():
    families = paper_families()
    table = tables.accuracy_table(study(families, seeds=(0,)), families)
    text = repr(tables.show(tables.beside_paper(table, reference.TABLE_1, families)))
    assert max(map(len, text.splitlines())) <= 80


def test_averages_of_the_reference_are_means_of_its_columns():
    """Copying errors would show: the paper's own averages agree to its rounding."""
    for table in (reference.TABLE_1, reference.TABLE_3):
        means = table[list(reference.FAMILY_SIZES)].mean(axis=1)
        np.testing.assert_allclose(table["average"], means, atol=0.011)


def test_contradictions_hold_in_the_reference():
    table = reference.TABLE_1
    families = list(reference.FAMILY_SIZES)
    fused, intertrained = table.loc["fused"], table.loc["intertrained"]
    pretrained = table.loc[("pretrained", "")]
    assert (fused[families] < pretrained[families]).sum().sum() == 4
    assert (fused[families] < intertrained[families]).all(axis=None)
    assert fused.loc["twitter", "average"] < pretrained["average"]
    assert (reference.TABLE_3["nli"] > 1.67).sum() == 2
    assert set(reference.CONTRADICTIONS) <= set(EXPERIMENTS)


def test_show_rounds_and_marks_what_is_not_there():
    table = pd.DataFrame(
        {
            "source_family": ["nli", ""],
            "low": [-0.04, np.nan],
            "improved": pd.array([3, pd.NA], dtype="Int64"),
        }
    )
    shown = tables.show(table)
    assert shown.to_numpy().tolist() == [["0.0", "3"], ["–", "–"]]
    assert shown.index.name == "source family"


def test_show_keeps_a_named_index_beside_labels():
    table = pd.DataFrame({"text": ["–"], "n": [1]}, index=pd.Index(["a"], name="base"))
    assert tables.show(table).index.tolist() == [("a", "–")]


def test_shown_table_prints_whole():
    wide = pd.DataFrame(np.ones((100, 40)), columns=[f"a long name {i}" for i in range(40)])
    text = repr(tables.show(wide))
    assert len(text.splitlines()) == 101 and "..." not in text
    assert isinstance(tables.show(wide)._repr_html_(), str)


def test_unusable_input_is_refused():
    results = study()
    with pytest.raises(InputError, match="none of mean, std"):
        tables.accuracy_table(results, FAMILIES, "mode")
    with pytest.raises(InputError, match="column.*accuracy"):
        tables.accuracy_table(results.drop(columns="accuracy"), FAMILIES)
    with pytest.raises(InputError, match="twice"):
        tables.accuracy_table(pd.concat([results, results.iloc[:1]]), FAMILIES)
    with pytest.raises(InputError, match="nothing to show"):
        tables.accuracy_table(results.iloc[:0], FAMILIES)
    with pytest.raises(InputError, match='"all"'):
        tables.differences(results, {"all": ["a"]})
