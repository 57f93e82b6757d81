"""Arms: controls and methods as further base models of a family table."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from fusinglib.errors import InputError
from fusinglib.evaluation import headlines, tables
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import Builder, Run
from fusinglib.study.settings import FamilyTable, FusePlayground
from fusinglib.study.store import Store

ARMS = ["scaled single", "placebo", {"ties": {"density": 0.5}}]


@pytest.fixture
def settings(mini) -> FamilyTable:
    return FamilyTable.from_parameters({**mini, "arms": ARMS})


def update(store: Store, run, pretrained) -> dict[str, np.ndarray]:
    weights = load_file(store.model(run) / "model.safetensors")
    start = load_file(store.model(pretrained) / "model.safetensors")
    return {name: weights[name].astype(np.float64) - start[name] for name in start}


def norm(tensors: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum((tensor**2).sum() for tensor in tensors.values())))


def test_arms_join_the_table_and_leave_its_own_runs_alone(settings, mini):
    plan = plan_experiment(settings)
    before = plan_experiment(FamilyTable.from_parameters({**mini, "arms": []}))
    own = ("pretrained", "intertrained", "fused")
    kept = [row["run"].key for row in plan.rows if row["base"] in own]
    assert kept == [row["run"].key for row in before.rows]
    names = list(dict.fromkeys(row["base"] for row in plan.rows))
    assert names == ["pretrained", "fused", "intertrained", "scaled single", "placebo",
                     "ties (density 0.5)"]  # fmt: skip


@pytest.mark.parametrize("arm", ["random", {"random": {}}])
def test_random_weights_are_an_arm_that_needs_no_sources(mini, arm):
    plan = plan_experiment(FamilyTable.from_parameters({**mini, "arms": [arm, "placebo"]}))
    rows = [row for row in plan.rows if row["base"] == "random"]
    assert len(rows) == 3 * len(mini["seeds"])
    assert {row["source_family"] for row in rows} == {""}
    (model,) = {row["run"].parents[0] for row in rows}
    assert model.label == "untrained miniature T5"


def test_controls_have_the_norm_of_the_mean(settings):
    """The scaled single is the intertrained model's direction; a placebo is new for every seed."""
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    execute(plan, store, settings)
    pretrained = next(r for r in plan.rows if r["base"] == "pretrained")["run"].parents[0]
    by_base = {}
    for row in plan.rows:
        if row["target"] == plan.rows[-1]["target"]:
            by_base.setdefault(row["base"], []).append(row["run"].parents[0])
    mean = update(store, by_base["fused"][0], pretrained)
    single = update(store, by_base["intertrained"][0], pretrained)
    scaled = update(store, by_base["scaled single"][0], pretrained)
    assert norm(scaled) == pytest.approx(norm(mean), rel=1e-4)
    dot = sum((scaled[name] * single[name]).sum() for name in single)
    assert dot / norm(scaled) / norm(single) == pytest.approx(1, abs=1e-6)
    placebos = [update(store, run, pretrained) for run in by_base["placebo"]]
    assert len({run.key for run in by_base["placebo"]}) == len(settings.seeds) == len(placebos)
    for placebo in placebos:
        for name in mean:
            expected = np.linalg.norm(mean[name].ravel())
            assert np.linalg.norm(placebo[name].ravel()) == pytest.approx(expected, rel=2e-3)
    found = results(plan, store)
    assert found["accuracy"].notna().all()
    table = tables.differences(found, plan.families).set_index("comparison")
    wide = found.query("source_seed == 0").pivot_table(
        index=["target", "seed", "source_family"], columns="base", values="accuracy"
    )
    gap = 100 * (wide["fused"] - wide["scaled single"]).mean()
    whole = table.loc[["fused - scaled single"]].query("target_family == 'all'")
    assert whole["estimate"].iloc[-1] == pytest.approx(gap)
    assert "placebo - pretrained" in table.index
    said = headlines.of_family_table(found, plan.families)
    assert "are there with one model shrunk to the mean's norm; the mean ends" in said
    accuracy = tables.accuracy_table(found, plan.families)
    assert {"scaled single", "placebo", "ties (density 0.5)"} <= set(accuracy.index.unique("base"))


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        (["plascebo"], "there is no arm 'plascebo': did you mean 'placebo'?"),
        (["mean"], "there is no arm 'mean'"),
        ([{"ties": {}, "dare": {}}], "has 2 names: expected one"),
        (["placebo", "placebo"], "expected every arm once"),
        ([3], "'arms'"),
        ([{"random": {"rescaled": True}}], "random has no setting 'rescaled': it takes none"),
        ([{"ties": {"densty": 0.2}}], "ties has no setting 'densty': did you mean 'density'?"),
        ([{"ties": {"density": "much"}}], "'arms'"),
    ],
)
def test_what_cannot_be_an_arm_is_named(mini, arms, said):
    with pytest.raises(InputError) as refused:
        FamilyTable.from_parameters({**mini, "arms": arms})
    assert said in str(refused.value)


def test_the_playground_shrinks_the_model_that_was_ticked_first(mini):
    how = {"method": "scaled", "weights": [], "method_settings": {}, "target": "irony"}
    for names in (["sentiment", "mood"], ["mood", "sentiment"]):
        chosen = FusePlayground.from_parameters({**mini, **how, "models": names})
        plan = plan_experiment(chosen)
        fused = next(row["run"] for row in plan.rows if row["base"] == "fused").parents[0]
        assert fused.parents[fused.settings["which"]].label.startswith(names[0])


EVERY = [
    "weighted", "slerp", "fisher", "regmean", "model_stock", {"task_arithmetic": {"scale": 0.4}},
    {"ties": {"density": 0.2, "rescaled": True}}, {"dare": {"density": 0.1, "scale": 0.4}},
    {"dare_ties": {"rescaled": True}}, {"breadcrumbs": {"scale": 0.3}},
]  # fmt: skip


def test_every_method_is_an_arm(mini):
    """Made by the engine from the store's own models; what is rescaled has the mean's norm."""
    chosen = FamilyTable.from_parameters({**mini, "arms": EVERY, "seeds": [0]})
    plan, store = plan_experiment(chosen), Store(chosen.store_folder())
    found = execute(plan, store, chosen)
    assert found["accuracy"].notna().all()
    target = plan.rows[-1]["target"]
    bases = {r["base"]: r["run"].parents[0] for r in plan.rows if r["target"] == target}
    pretrained = bases["pretrained"]
    mean = norm(update(store, bases["fused"], pretrained))
    rescaled = [name for name in bases if "rescaled" in name]
    assert rescaled == ["ties (density 0.2, rescaled)", "dare ties (rescaled)"]
    for name in rescaled:
        assert norm(update(store, bases[name], pretrained)) == pytest.approx(mean, rel=1e-4)
    sources = [run for run in bases["fused"].parents]
    models = [load_file(store.model(run) / "model.safetensors") for run in sources]
    sizes = [store.result(run)["n_train"] for run in sources]
    weighted = load_file(store.model(bases["weighted"]) / "model.safetensors")
    for name, tensor in weighted.items():
        expected = sum(n * m[name].astype(np.float64) for n, m in zip(sizes, models, strict=True))
        np.testing.assert_allclose(tensor, expected / sum(sizes), rtol=1e-5, atol=1e-6)
    for name, what in (("fisher", "fisher"), ("regmean", "gram")):
        models, estimates = bases[name].parents[: len(sources)], bases[name].parents[len(sources) :]
        assert [run.parents[0].key for run in estimates] == [run.key for run in models]
        assert all(what in run.label and store.estimate(run).is_file() for run in estimates)
    assert len(bases["slerp"].parents) == 2
    assert {run.kind for run in plan.models} == {"pretrain", "source"}


def test_estimates_of_encoders_are_of_their_trained_heads(mini, encoder):
    """Source models of encoders keep the head that their Fisher information is about."""
    changed = {"model": str(encoder), "arms": ["fisher", "regmean"], "seeds": [0]}
    chosen = FamilyTable.from_parameters({**mini, **changed})
    plan, store = plan_experiment(chosen), Store(chosen.store_folder())
    assert execute(plan, store, chosen)["accuracy"].notna().all()
    made = [run for run in plan.runs if run.kind == "estimate"]
    assert made and all(load_file(store.estimate(run)) for run in made)


def test_two_models_are_needed_for_an_arc(mini):
    families = {"pair": ["mood", "irony"]}
    chosen = {**mini, "families": families, "sources": ["pair"], "targets": ["pair"]}
    settings = FamilyTable.from_parameters({**chosen, "arms": ["slerp"]})
    with pytest.raises(InputError, match="arm 'slerp' takes two models, but a target has only"):
        plan_experiment(settings)


def test_a_model_without_training_texts_has_no_estimate(mini):
    builder = Builder(FamilyTable.from_parameters({**mini, "arms": []}), {})
    with pytest.raises(InputError, match="leave out this method or the model"):
        builder.estimate("fisher", Run("import", {}, label="mine"))
