"""The seed planner: spreads from their sources, what they detect, and what plans cost."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from test_tables import FAMILIES, study

from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.evaluation import planner, statistics
from fusinglib.evaluation.planner import Spread
from fusinglib.study import notebooks
from fusinglib.study.costs import of_seeds
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable, SeedPlanner
from fusinglib.study.store import Store

PLANNER = {
    "spread_from": "guess", "published_model": "roberta-base", "guess_spread": 5.0,
    "guess_effect": 4.0, "tried_seeds": [1, 2], "tried_targets": [3],
}  # fmt: skip


@pytest.fixture
def settings(mini):
    """A planner for the tiny family table."""
    return SeedPlanner(**{**mini, **PLANNER})


@pytest.mark.parametrize(
    ("model", "together", "independent"), [("t5-v1_1-base", 9.9, 8.1), ("roberta-base", 1.7, 1.4)]
)
def test_published_spreads_detect_what_the_study_says(model, together, independent):
    found = [
        planner.detectable(planner.published(model, how), seeds=5, targets=14)
        for how in (True, False)
    ]
    assert found == pytest.approx([together, independent], abs=0.05)


def test_an_unknown_published_model_is_refused():
    with pytest.raises(InputError, match="'published_model' is 'gpt': expected one of bert"):
        planner.published("gpt", together=True)


def test_the_mean_of_targets_keeps_what_runs_share():
    spread = Spread(run=5.0, shared=3.0)
    assert spread.of_mean(1) == 5
    assert spread.of_mean(4) == pytest.approx(math.sqrt(16 / 4 + 9))
    assert Spread(5.0).of_mean(25) == 1


def test_measured_spreads_are_found_again():
    """Runs made up with known deviations: 6 points per run, and 3 over targets."""
    rng = np.random.default_rng(0)
    targets = [f"t{number}" for number in range(200)]
    effects = dict(zip(targets, rng.normal(0, 0.03, len(targets)), strict=True))
    rows = [
        {
            "base": base, "source_family": family, "target": target, "source_seed": 0,
            "seed": seed,
            "accuracy": 0.7 + effects[target] * (base == "fused") + rng.normal(0, 0.06),
        }
        for base, family in [("pretrained", ""), ("fused", "f"), ("intertrained", "f")]
        for target in targets
        for seed in range(5)
    ]  # fmt: skip
    spread = planner.measured(pd.DataFrame(rows), {"f": targets})
    assert spread.run == pytest.approx(6, rel=0.05)
    assert spread.effect == pytest.approx(3, rel=0.25)
    assert spread.shared == 0


def test_what_targets_share_cannot_be_told_from_a_difference_on_others():
    assert math.isnan(planner.detectable_on_others(Spread(5.0, 1.0, 4.0), 5, 10))
    assert planner.detectable_on_others(Spread(5.0, 0.0, 4.0), 5, 10) > 0


def test_the_effect_is_found_with_several_source_seeds():
    """The spread of fused models over seeds is averaged over source seeds as well."""
    rng = np.random.default_rng(1)
    targets = [f"t{number}" for number in range(400)]
    effects = dict(zip(targets, rng.normal(0, 0.04, len(targets)), strict=True))
    bases = [("pretrained", "", 1), ("fused", "f", 5), ("intertrained", "f", 5)]
    rows = [
        {
            "base": base, "source_family": family, "target": target, "source_seed": source_seed,
            "seed": seed,
            "accuracy": 0.7 + effects[target] * (base == "fused") + rng.normal(0, 0.06),
        }
        for base, family, seeds in bases
        for target in targets
        for source_seed in range(seeds)
        for seed in range(2)
    ]  # fmt: skip
    assert planner.measured(pd.DataFrame(rows), {"f": targets}).effect == pytest.approx(4, rel=0.1)


def test_the_effect_is_found_over_several_worlds():
    """Pretrained has a run in every world as well, so its noise is divided by their number too."""
    rng = np.random.default_rng(2)
    targets = [f"t{number}" for number in range(400)]
    effects = dict(zip(targets, rng.normal(0, 0.04, len(targets)), strict=True))
    rows = [
        {
            "world": world, "base": base, "source_family": family, "target": target,
            "source_seed": 0, "seed": seed,
            "accuracy": 0.7 + effects[target] * (base == "fused") + rng.normal(0, 0.12),
        }
        for world in range(6)
        for base, family in [("pretrained", ""), ("fused", "f"), ("intertrained", "f")]
        for target in targets
        for seed in range(2)
    ]  # fmt: skip
    spread = planner.measured(pd.DataFrame(rows), {"f": targets})
    assert (spread.run, spread.effect) == pytest.approx((12, 4), rel=0.1)


def test_no_spread_is_measured_where_runs_are_missing_or_alone():
    results = study()
    assert not math.isnan(planner.measured(results, FAMILIES).run)
    assert math.isnan(planner.measured(results.query("seed == 0"), FAMILIES).run)
    results.loc[0, "accuracy"] = np.nan
    assert math.isnan(planner.measured(results, FAMILIES).run)


def test_the_chosen_spread_is_last_and_lends_no_effect_that_is_known(settings):
    for name in ("guess", "store", "published"):
        found = planner.spreads(dataclasses.replace(settings, spread_from=name), study(), FAMILIES)
        assert list(found)[-1].startswith(name) and len(found) == 4
    assert list(found)[-1] == "published, roberta-base"
    assert found["guess"] == Spread(5.0, 0.0, 4.0)
    assert found["store"].effect != 4


def test_a_store_without_runs_is_refused_as_a_source(settings):
    nothing = study().assign(accuracy=np.nan)
    wanted = dataclasses.replace(settings, spread_from="store")
    with pytest.raises(InputError, match="the store lacks runs of this study"):
        planner.spreads(wanted, nothing, FAMILIES)
    assert math.isnan(planner.spreads(settings, nothing, FAMILIES)["store"].run)


def test_grid_has_seeds_and_targets():
    table = planner.grid(planner.detectable_on_others, Spread(5.0, 0, 2.0), [1, 3], [1, 4, 9])
    assert table.index.tolist() == [1, 3] and list(table)[1] == "4 targets"
    assert table["1 targets"].isna().all()
    expected = statistics.detectable_over_targets(5, 2, seeds=3, targets=9)
    assert table.loc[3, "9 targets"] == expected


def test_curves_end_with_the_chosen_spread_on_other_targets():
    found = {"guess": Spread(5.0, 0, 4.0), "store": Spread(3.0, 0, 2.0)}
    table = planner.curves(found, [2, 5], 9)
    assert list(table) == ["guess", "store", "store, on other targets like these"]
    assert table.loc[5, "guess"] == planner.detectable(found["guess"], 5, 9)
    assert table.iloc[0, -1] == planner.detectable_on_others(found["store"], 2, 9)


def test_costs_count_what_is_left_and_are_timed_at_first(settings, mini):
    store = Store(settings.store_folder())
    costs = of_seeds(settings, store)
    assert costs["runs"].tolist() == [1 + 3 + 3 + 9, 1 + 3 + 3 + 18]
    assert costs["left"].tolist() == costs["runs"].tolist()
    assert (costs["hours from"] > 0).all() and (costs["hours from"] <= costs["to"]).all()
    assert costs["to"].is_monotonic_increasing
    family_table = FamilyTable(**{**mini, "seeds": [0]})
    execute(plan_experiment(family_table), store, family_table)
    costs = of_seeds(settings, store)
    assert costs["left"].tolist() == [0, 9]
    assert costs["to"].tolist() == costs["hours from"].tolist()
    assert costs["to"].iloc[0] == 0 and 0 < costs["to"].iloc[1] < 9 / 60


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            {"spread_from": "stor"},
            "'spread_from' is 'stor': expected 'published', 'store' or 'guess'",
        ),
        ({"guess_spread": -1.0}, "'guess_spread' is -1.0: expected a number of at least 0"),
        ({"tried_seeds": []}, "'tried_seeds' is []: expected at least 1"),
        ({"tried_targets": [0]}, "'tried_targets' is 0: expected a number of at least 1"),
    ],
)
def test_bad_settings(mini, changed, expected):
    with pytest.raises(InputError) as refusal:
        SeedPlanner(**{**mini, **PLANNER, **changed})
    assert expected in str(refusal.value)


def test_the_notebook_trains_nothing(mini, tmp_path, capsys):
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({**mini, **PLANNER}))
    out = tmp_path / "out"
    assert main(["run", "seed_planner", "--params", str(file), "--output", str(out)]) == 0
    assert "hours from" in capsys.readouterr().out
    assert (out / "seed_planner-figure.png").is_file()
    assert pd.read_csv(out / "seed_planner.csv")["left"].tolist() == [16, 25]
    assert not Store(mini["store"]).describe()
    assert "spread from" in notebooks.report(out / "seed_planner.ipynb")
