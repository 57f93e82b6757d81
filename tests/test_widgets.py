"""The playground without a browser: its plan, its session, and the controls by their values."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import weights_hash

from fusinglib import fuse, widgets
from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.evaluation import pairs, playground
from fusinglib.fusion import geometry
from fusinglib.study.execution import execute, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import VERSIONS
from fusinglib.study.pools import KeptPool, end_kept
from fusinglib.study.settings import (
    FamilyTable,
    FusePlayground,
    PairwiseHeatmap,
    SourceSize,
    WeightDecay,
)
from fusinglib.study.store import Store
from fusinglib.widgets import choice, pictures
from fusinglib.widgets import shown as shown_as
from fusinglib.widgets.session import Session
from fusinglib.widgets.view import Playground

CHOSEN = {
    "models": ["sentiment", "mood"],
    "target": "irony",
    "method": "mean",
    "weights": [],
    "method_settings": {},
}


@pytest.fixture
def settings(mini) -> FusePlayground:
    return FusePlayground.from_parameters({**mini, **CHOSEN})


@pytest.fixture
def made(settings):
    """The settings, with all their runs in the store."""
    execute(plan_experiment(settings), Store(settings.store_folder()), settings)
    return settings


@pytest.fixture
def shown(settings):
    return Playground(settings)


def until(holds, seconds=60):
    """Wait until `holds()`, which is what a person does at the page."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def refusal(settings, **changes) -> str:
    with pytest.raises(InputError) as caught:
        plan_experiment(dataclasses.replace(settings, **changes))
    return str(caught.value)


# The plan.


def test_the_playground_shares_the_runs_of_the_family_table(mini, settings):
    table = {run.key for run in plan_experiment(FamilyTable.from_parameters(mini)).runs}
    plan = plan_experiment(settings)
    assert {run.key for run in plan.runs} <= table
    assert [(row["base"], row["seed"]) for row in plan.rows] == [
        (base, seed) for base in playground.BASES for seed in settings.seeds
    ]


def test_the_single_model_is_that_of_the_largest_training_set(settings):
    (sources,) = {r["sources"] for r in plan_experiment(settings).rows if r["base"][0] == "i"}
    assert sources == ("mood",)  # 4,500 examples, sentiment has 800


def test_models_by_key_and_by_folder(made, tmp_path):
    plan, store = plan_experiment(made), Store(made.store_folder())
    mood = next(run for run in plan.runs if run.label.startswith("mood"))
    by_key = plan_experiment(dataclasses.replace(made, models=["sentiment", mood.key]))
    assert {run.key for run in by_key.runs} >= {run.key for run in plan.runs if run.kind == "fuse"}
    folder = shutil.copytree(store.model(mood), tmp_path / "mine")
    settings = dataclasses.replace(made, models=["sentiment", str(folder)])
    own = plan_experiment(settings)
    assert [run.kind for run in own.runs if run.label == str(folder)] == ["import"]
    assert execute(own, store, settings)["accuracy"].notna().all()


@pytest.mark.parametrize(
    ("method", "numbers"),
    [("weighted", {}), ("ties", {"density": 0.3, "scale": 1.0}), ("dare", {"seed": 3.0})],
)
def test_other_methods_are_those_of_fuse(made, tmp_path, method, numbers):
    numbers = numbers | ({"density": 0.5} if method == "dare" else {})
    settings = dataclasses.replace(
        made, method=method, weights=[0.75, 0.25], method_settings=numbers, seeds=[0]
    )
    store, plan = Store(made.store_folder()), plan_experiment(settings)
    assert execute(plan, store, settings)["accuracy"].notna().all()
    fused = next(run for run in plan.runs if run.kind == "fuse")
    models = {run.label.split()[0]: store.model(run) for run in fused.parents}
    order = [run.label.split()[0] for run in fused.parents if run.kind == "source"]
    more = {} if method == "weighted" else {"pretrained": models["miniature"]}
    weights = [{"sentiment": 0.75, "mood": 0.25}[name] for name in order]
    numbers = {k: int(v) if k == "seed" else v for k, v in numbers.items()}
    direct = tmp_path / "direct"
    fuse([models[n] for n in order], direct, method=method, weights=weights, **more, **numbers)
    assert weights_hash(direct) == weights_hash(store.model(fused))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": ["irony", "mood"]}, "irony was trained on the target irony"),
        ({"target": "iron"}, "did you mean 'irony'"),
        ({"models": ["mood"]}, "at least 2"),
        ({"models": ["mood", "mood"]}, "each once"),
        ({"models": ["mood", "0123456789abcdef"]}, "has no finished run 0123456789abcdef"),
        ({"models": ["mood", "/nowhere"]}, "no such folder"),
        ({"weights": [1.0, 2.0]}, "none for the method mean"),
        ({"method": "weighted", "weights": [1.0]}, "one per model"),
        ({"method": "fishr"}, "one of mean, weighted"),
        ({"method_settings": {"density": "much"}}, "expected a number"),
    ],
)
def test_bad_choices_are_refused(settings, changes, expected):
    assert expected in refusal(settings, **changes)


def test_a_model_trained_on_the_target_is_refused_by_its_key_too(made):
    store = Store(made.store_folder())
    mood = next(run for run in plan_experiment(made).runs if run.label.startswith("mood"))
    assert store.find(mood.key).key == mood.key
    assert "trained on the target" in refusal(made, models=["sentiment", mood.key], target="mood")


def test_a_model_is_refused_whose_card_or_parents_or_parameter_knows_the_target(made, tmp_path):
    """As the family table leaves such models out; the control says the same before."""
    store, plan = Store(made.store_folder()), plan_experiment(made)
    mood = next(run for run in plan.runs if run.label.startswith("mood"))
    mean = next(run for run in plan.runs if run.kind == "fuse")
    folders = [str(shutil.copytree(store.model(mood), tmp_path / name)) for name in ("a", "b")]
    (tmp_path / "b" / "README.md").unlink()  # it has no card
    known = {"trained_on": {folders[1]: ["mood"]}}
    for name, changes in ((folders[0], {}), (mean.key, {}), (folders[1], known)):
        chosen = {"models": ["topic", name], "target": "mood"}
        assert f"{name} was trained on the target mood" in refusal(made, **changes, **chosen)
        candidate = choice.named(name, dataclasses.replace(made, **changes))
        assert candidate.knows(made.known_tasks()[0]["mood"])
        assert not candidate.knows(made.known_tasks()[0]["topic"])
    plan = plan_experiment(dataclasses.replace(made, models=["topic", folders[1]], target="mood"))
    assert f"{folders[1]}: what it was trained on is unknown" in plan.notes[0]


def test_a_model_of_few_examples_is_not_the_one_of_the_largest_training_set(made):
    """`topic` has 120 examples, the model of `mood` saw 20 of its many."""
    sized = SourceSize.from_parameters(
        {**made.__dict__, "families": {"few": ["mood", "irony"]}, "sources": ["few"],
         "targets": ["few"], "intertraining": "largest", "arms": [], "clusters": {},
         "sizes": [20]}
    )  # fmt: skip
    plan, store = plan_experiment(sized), Store(sized.store_folder())
    execute(plan, store, sized)
    few = next(run for run in plan.runs if run.kind == "source" and run.task.name == "mood")
    chosen = dataclasses.replace(made, models=[few.key, "topic"], target="irony")
    rows = {row["base"]: row for row in plan_experiment(chosen).rows}
    assert rows["intertrained"]["sources"] == ("topic",)
    assert choice.named(few.key, made).train == 20


# What came out.


def test_intervals_of_accuracies_stay_within_0_and_100():
    found = pd.DataFrame({"base": "fused", "seed": [0, 1], "accuracy": [0.9, 1.0]})
    found = found.assign(metric="accuracy", macro_f1=found["accuracy"])
    row = playground.accuracies(found, {}).loc["fused"]
    half = 12.7062 * 5  # t(.975) with one degree of freedom, times the standard error
    assert (row["low"], row["high"]) == (pytest.approx(95 - half, abs=1e-3), 100)


def test_accuracies_and_differences_over_seeds(made):
    plan, store = plan_experiment(made), Store(made.store_folder())
    found, right = results(plan, store), playground.answers(plan, store)
    runs = found.pivot(index="seed", columns="base", values="accuracy")
    table = playground.accuracies(found, right)
    assert list(table.index) == playground.BASES
    assert table["accuracy"].to_numpy() == pytest.approx(
        100 * runs[playground.BASES].mean().to_numpy()
    )
    gap = 100 * (runs["fused"] - runs["pretrained"])
    for base in playground.BASES:
        assert right[base].mean(axis=1).tolist() == pytest.approx(runs[base].tolist())
    row = playground.differences(found, right).loc["fused - pretrained"]
    half = 12.7062 * gap.std(ddof=1) / np.sqrt(2)  # t(.975) with one degree of freedom
    same = [row["estimate"], row["low_same"]]
    assert same == pytest.approx([gap.mean(), gap.mean() - half], rel=1e-4) or half < 1
    expected = playground.gap((right["fused"] - right["pretrained"]).to_numpy(), "texts like these")
    assert row["low"] == pytest.approx(100 * expected.interval.low)
    over_seeds = playground.differences(found, {}).loc["fused - pretrained"]
    assert over_seeds["low"] == over_seeds["low_same"] == pytest.approx(gap.mean() - half, rel=1e-4)
    assert "undecided" in playground.verdict(found, "irony", right) or row["low"] > 0
    one = found[found["seed"] == 0]
    assert "one seed: that decides nothing" in playground.verdict(one, "irony", {})
    none = playground.verdict(found.assign(accuracy=np.nan), "irony", {})
    assert none == "Fused and pretrained cannot be compared yet; finished so far: nothing."
    known = found["accuracy"].where(found["base"] != "fused")
    two = playground.verdict(found.assign(accuracy=known), "irony", {})
    assert two.endswith("finished so far: pretrained 2, intertrained 2.")


def test_what_is_copied_repeats_the_plan(made, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(playground.parameter_file(made))
    words = ["run", "fuse_playground", "--plan", "--params", str(file)]
    words += ["--set", f"store={made.store}"]
    done = subprocess.run([sys.executable, "-m", "fusinglib", *words], capture_output=True)
    lines = [line for line in done.stdout.decode().splitlines() if line.split()[0] in VERSIONS]
    assert lines and all(line.split()[1] == line.split()[2] for line in lines)  # all finished
    call = playground.call(made)
    assert call.startswith("from fusinglib import widgets\n") and f"models={made.models}" in call
    known = {}
    exec(call.replace("widgets.playground", "chosen = dict"), known)
    again = FusePlayground.from_parameters({**vars(made), **known["chosen"]})
    assert again == made


def test_histories_are_those_of_the_store_and_drawn(made):
    plan, store = plan_experiment(made), Store(made.store_folder())
    table = playground.histories(plan, store)
    assert len(table) == 3 * 2 * 2  # base models, seeds, evaluations
    run = plan.rows[0]["run"]
    last = json.loads((store.path(run) / "history.json").read_text())[-1]
    assert table.iloc[1]["loss"] == last["loss"]
    drawn = pictures.curves(table)
    for base in playground.BASES:
        for value in ("loss", "accuracy"):
            assert drawn.count(f'class="{value}-{base}"') == 2  # seeds
    assert drawn.count('role="img"') == 1 and "#000" not in drawn  # text on dark pages too
    said = f"pretrained, seed 0, after {last['step']} batches: {100 * last['ranked']:.3g} %"
    assert f"<title>{said}</title>" in drawn
    assert f"{100 * last['ranked']:.3g}" in shown_as.evaluations(table)
    assert "nothing yet" in pictures.curves(table[:0])


# Candidates.


def test_candidates_are_tasks_then_the_store_then_what_is_named(made, mini, tmp_path):
    wide = {**mini, **CHOSEN, "source_seeds": [1]}
    other = FusePlayground.from_parameters(wide)
    execute(plan_experiment(other), Store(other.store_folder()), other)
    found = choice.candidates(made)
    by_name = {one.name: one for one in found}
    assert len(by_name) == 13 + 2
    assert by_name["mood"].date and by_name["topic"].facts == "120 examples, not trained yet"
    assert {one.label for one in found[13:]} == {
        "mood, seed 1", "sentiment, seed 1",
    }  # fmt: skip
    decays = {"weight_decay": 0.5, "explored_decays": []}
    decayed = WeightDecay.from_parameters({**mini, **decays})
    execute(plan_experiment(decayed), Store(decayed.store_folder()), decayed)
    labels = [one.label for one in choice.candidates(made)[13:]]
    assert "sentiment, seed 0, weight decay 0.5" in labels and len(set(labels)) == len(labels) > 2
    store = Store(made.store_folder())
    folder = store.model(next(r for r in plan_experiment(made).runs if r.kind == "source"))
    named = choice.named(str(folder), made)
    assert named.megabytes > 1 and named.train == 800
    with pytest.raises(InputError, match="no such folder"):
        choice.named("/nowhere", made)


# The controls.


def test_a_choice_says_at_once_what_stands_against_it(shown):
    assert not shown.message.value and not shown.fuse.disabled
    shown.ticks["irony"].value = True
    assert "irony was trained on irony, the target" in shown.message.value
    assert shown.fuse.disabled and shown.compare.disabled
    shown.target.value = "topic"
    assert not shown.message.value and not shown.fuse.disabled
    for tick in shown.ticks.values():
        tick.value = False
    assert "at least two" in shown.message.value


def test_weights_are_shown_as_shares(shown):
    assert shown.shares["mood"].value.endswith(" share 50%") and shown.weights["mood"].disabled
    shown.method.value = "weighted"
    shown.weights["mood"].value = 3.0
    assert shown.shares["mood"].value.endswith(" share 75%") and not shown.weights["mood"].disabled
    assert shown.shares["topic"].value == ""
    assert shown.chosen().weights == [1.0, 3.0]  # in the order of the ticks
    shown.method.value = "ties"
    assert not shown.density.disabled
    assert shown.chosen().method_settings == {"scale": 1.0, "density": 0.2}


def test_families_are_ticked_without_the_target(shown):
    shown.target.value = "sentiment"
    shown._tick("all but the target")
    assert sum(tick.value for tick in shown.ticks.values()) == 12 and not shown.message.value
    shown._tick("nli")
    assert set(shown.models.ticked()) == set(shown.families["nli"])


def test_the_controls_begin_with_the_settings(settings):
    numbers = {"density": 0.4, "scale": 0.9, "seed": 7.0}
    given = dataclasses.replace(settings, method="dare", method_settings=numbers, seeds=[4, 2])
    shown = Playground(given)
    assert shown.chosen() == given
    shown.seeds.value = 3
    assert shown.chosen().seeds == [4, 2, 5]


def test_fuse_compare_save(shown, settings, tmp_path):
    until(lambda: "not trained yet" in shown.report.value)
    shown.fuse.click()
    until(lambda: "<b>done</b>" in shown.status.value)
    until(lambda: "mean of 2 models" in shown.report.value)
    until(lambda: shown.map.value.startswith("<svg"))
    assert 'aria-label="The weight space' in shown.map.value
    shown.compare.click()
    shown.compare.click()  # a second click changes nothing
    until(lambda: "the fused model ends" in shown.outcome.value and not shown.session.busy)
    until(lambda: shown.status.value.startswith("<b>done</b>: 10 of 10 runs"))
    found = results(plan_experiment(settings), Store(settings.store_folder()))
    assert found["accuracy"].notna().all()
    for number in playground.accuracies(found, {})["accuracy"]:
        assert f"{number:.1f}" in shown.outcome.value
    shown.folder.value = str(tmp_path / "mine")
    until(lambda: not shown.save.disabled)
    shown.save.click()
    assert "saved" in shown.saved.value
    assert weights_hash(tmp_path / "mine") == weights_hash(
        Store(settings.store_folder()).model(shown.session.fused(shown.chosen()))
    )
    shown.save.click()
    assert "Not saved" in shown.saved.value and "already exists" in shown.saved.value
    until(lambda: shown.facts["mood"].value.startswith("4,500 examples, dev"))


def test_what_is_finished_is_shown_again(made):
    shown = Playground(made)
    until(lambda: "On irony, the fused model ends" in shown.outcome.value)
    assert (
        "Fused: sentiment, mood" in shown.outcome.value and "accuracy-fused" in shown.curves.value
    )
    assert shown.save.disabled  # until there is a name
    shown.folder.value = "mine"
    until(lambda: not shown.save.disabled)


def test_a_model_can_be_added_by_its_folder(shown, made, tmp_path):
    store = Store(made.store_folder())
    source = next(run for run in plan_experiment(made).runs if run.kind == "source")
    folder = shutil.copytree(store.model(source), tmp_path / "mine")
    shown.more.value = str(tmp_path / "none")
    shown.add.click()
    assert "Not added" in shown.message.value
    shown.more.value = str(folder)
    shown.add.click()
    assert shown.ticks[str(folder)].value and str(folder) in shown.chosen().models


def test_stopping_at_once_keeps_the_store_whole(shown, settings):
    shown.compare.click()
    shown.stop.click()
    until(lambda: not shown.session.busy)
    until(lambda: "stopped" in shown.status.value)
    until(lambda: not shown.compare.disabled)
    store = Store(settings.store_folder())
    assert not list((store.root / ".pending").iterdir())
    shown.compare.click()
    until(lambda: "<b>done</b>: 10 of 10 runs" in shown.status.value)


def test_a_choice_changed_meanwhile_does_not_change_what_is_made(shown, settings):
    shown.compare.click()
    until(lambda: shown.session.busy)
    shown.ticks["topic"].value = True
    shown.target.value = "emotion"
    until(lambda: not shown.session.busy)
    until(lambda: "On irony, the fused model ends" in shown.outcome.value)
    assert shown.session.plan.rows[0]["target"] == "irony"
    assert shown.chosen().models == ["sentiment", "topic", "mood"]


def test_a_model_that_vanished_is_named(made):
    shown = Playground(made)
    until(lambda: "mean of 2 models" in shown.report.value)
    store = Store(made.store_folder())
    source = next(run for run in plan_experiment(made).runs if run.kind == "source")
    shutil.rmtree(store.model(source))
    shown.wake.set()
    until(lambda: "has no folder model/" in shown.report.value)


def test_two_playgrounds_share_a_store(settings):
    one, two = Playground(settings), Playground(settings)
    one.compare.click()
    two.compare.click()
    until(lambda: not one.session.busy and not two.session.busy)
    for shown in (one, two):
        until(lambda shown=shown: "<b>done</b>: 10 of 10 runs" in shown.status.value, 5)
    assert one.outcome.value == two.outcome.value


@pytest.mark.slow
def test_a_stop_ends_long_runs_and_the_pool_starts_anew(settings):
    long = dataclasses.replace(
        settings, executor="processes", workers=2, source_max_steps=100_000, source_patience=10**6
    )
    session = Session(long)
    assert session.start(long) and not session.start(long)
    until(lambda: "step" in session.state.text)
    session.stop()
    until(lambda: not session.busy, 20)
    assert session.state.phase == "stopped"
    short = dataclasses.replace(settings, executor="processes", workers=2)
    assert session.start(short)
    until(lambda: session.state.phase == "done")
    end_kept()


def test_a_kept_pool_serves_twice():
    pool = KeptPool(1)
    with pool() as workers:
        first = workers.submit(time.time).result()
    with pool() as again:
        assert again is workers and again.submit(time.time).result() > first
    pool.close()
    with pool() as anew:
        assert anew is not workers
        os.kill(anew.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            anew.submit(time.sleep, 9).result()
    with pool() as healed:
        assert healed.submit(abs, -1).result() == 1
    pool.close()


def test_a_widget_that_is_run_again_leaves_no_workers_behind(settings):
    several = dataclasses.replace(settings, executor="processes", workers=2)
    one, two = (Session(several) for _ in range(2))
    with one.pool() as first, two.pool() as other:
        assert other is not first, "nobody's stop ends the runs of others"
        assert first.submit(abs, -1).result() == other.submit(abs, -1).result() == 1
    with two.pool() as again:
        assert again is first
        workers = set(again._processes)
    end_kept()
    assert not workers & {process.pid for process in psutil.Process().children()}


@pytest.mark.slow
def test_the_notebook_in_batch_leaves_a_static_result(made, mini, tmp_path, capsys):
    file = tmp_path / "params.yaml"
    file.write_text(playground.parameter_file(made))
    before = len(Store(mini["store"]).describe())
    words = ["--params", str(file), "--set", f"store={mini['store']}", "--output", str(tmp_path)]
    assert main(["run", "fuse_playground", *words]) == 0
    assert "On irony, the fused model ends" in capsys.readouterr().out
    assert len(Store(mini["store"]).describe()) == before  # nothing is made twice
    for picture in ("map", "curves"):
        png = (tmp_path / f"fuse_playground-{picture}.png").read_bytes()
        assert png.startswith(b"\x89PNG")
    executed = json.loads((tmp_path / "fuse_playground.ipynb").read_text())
    cells = {cell["id"]: cell for cell in executed["cells"]}
    assert cells["widgets"]["outputs"] == [] and cells["record"]["outputs"]


def test_the_call_of_the_notebook(mini):
    shown = widgets.playground(models=["topic", "mood"], target="irony", store=mini["store"])
    assert shown.ticks["topic"].value and not shown.ticks["sentiment"].value
    with pytest.raises(InputError, match="did you mean 'target'"):
        widgets.playground(targt="irony")


# What is shown belongs to the current choice.


def test_save_stores_the_chosen_models_and_nothing_else(made, tmp_path):
    shown = Playground(made)
    until(lambda: "On irony, the fused model ends" in shown.outcome.value)
    shown.folder.value = str(tmp_path / "mine")
    until(lambda: not shown.save.disabled)
    shown.ticks["topic"].value = True
    assert shown.save.disabled  # these three are not fused yet
    shown.save.click()
    assert (
        "these models are not fused yet" in shown.saved.value and not (tmp_path / "mine").exists()
    )
    shown.fuse.click()
    until(lambda: "<b>done</b>" in shown.status.value and not shown.save.disabled)
    shown.save.click()
    card = (tmp_path / "mine/README.md").read_text()
    assert all(name in card for name in ("sentiment", "mood", "topic"))
    shown.ticks["topic"].value = False
    assert not shown.saved.value


def test_results_of_another_choice_are_dimmed_and_come_back(made):
    shown = Playground(made)
    until(lambda: "On irony, the fused model ends" in shown.outcome.value)
    assert "of the previous choice" not in shown.outcome.value
    assert "Fused: sentiment, mood (method mean)" in shown.outcome.value
    shown.method.value = "ties"
    until(lambda: "of the previous choice" in shown.outcome.value)
    assert "of the previous choice" in shown.curves.value
    until(lambda: "ties of 2 models" in shown.report.value)
    shown.method.value = "mean"
    until(lambda: "of the previous choice" not in shown.outcome.value)


def test_the_report_is_that_of_method_weights_and_settings(made):
    shown = Playground(made)
    shown.method.value = "weighted"
    shown.weights["mood"].value = 3.0
    until(lambda: "weighted of 2 models" in shown.report.value and "0.75" in shown.report.value)
    shown.method.value = "slerp"
    until(lambda: "slerp of 2 models" in shown.report.value)


@pytest.mark.parametrize(("method", "what"), [("fisher", "fisher"), ("regmean", "gram")])
def test_estimates_are_made_when_fisher_or_regmean_fuse(made, method, what):
    shown = Playground(dataclasses.replace(made, seeds=[0]))
    shown.method.value = method
    until(lambda: "Fuse makes estimates on 256 training texts" in shown.report.value)
    shown.fuse.click()
    until(lambda: "<b>done</b>" in shown.status.value)
    plan, store = plan_experiment(shown.chosen()), Store(made.store_folder())
    fused = next(row["run"] for row in plan.rows if row["base"] == "fused").parents[0]
    assert store.has(fused) and store.model(fused).is_dir()
    assert [run.settings["what"] for run in fused.parents[2:]] == [what, what]


@pytest.mark.parametrize(
    ("method", "weights", "said"),
    [
        ("weighted", {"sentiment": 1.0, "mood": -1.0}, "the weights sum to zero"),
        ("slerp", {"topic": 1.0}, "slerp takes two models, not 3"),
    ],
)
def test_what_would_fail_later_is_said_at_once(shown, method, weights, said):
    shown.method.value = method
    for name, weight in weights.items():
        shown.ticks[name].value, shown.weights[name].value = True, weight
    assert said in shown.message.value and shown.fuse.disabled


# The live map.


def test_the_map_moves_with_a_weight_before_anything_is_fused(made, monkeypatch):
    shown = Playground(made)
    until(lambda: "1.00" in shown.square.value and "mean" in shown.map.value)
    shown.method.value = "weighted"
    before = shown.map.value
    monkeypatch.setattr("fusinglib.fusion.geometry.updates", None)  # nothing is read again
    shown.weights["mood"].value = 3.0
    assert shown.map.value != before  # at once, by the callback
    updates = shown.updates
    made_of = pictures.start("x", updates, [0.25, 0.75], 1.0)
    way = np.array([0.25, 0.75])
    assert made_of.norm * updates.origin == pytest.approx(np.sqrt(way @ updates.products @ way))
    mixed = updates.mixed(way, "mixed")
    assert made_of.cosines == pytest.approx(mixed.cosines[-1, :2])
    assert f"{100 * made_of.norm:.2g} % of the pretrained norm" in shown.numbers.value


@pytest.mark.parametrize("scale", [0.0, 0.4, 1.3])
def test_a_start_is_where_it_will_be(made, tmp_path, scale):
    """Norm and cosines foretold from inner products are those of the fused model."""
    session, plan = Session(made), plan_experiment(made)
    keys = {one.name: one.key for one in choice.candidates(made)}
    updates = session.updates(made, keys)
    store = Store(made.store_folder())
    pretrained = next(run for run in plan.runs if run.kind == "pretrain")
    _, models = session.places(made, keys)
    how = {"method": "task_arithmetic", "weights": [0.3, 0.7], "scale": scale}
    fuse(list(models.values()), tmp_path / "out", pretrained=store.model(pretrained), **how)
    found = geometry.updates(store.model(pretrained), [tmp_path / "out", *models.values()])
    start = pictures.start("start", updates, [0.3, 0.7], scale)
    assert start.norm == pytest.approx(found.norms[0] / found.origin, rel=1e-4, abs=1e-9)
    if scale:
        assert start.cosines == pytest.approx(found.cosines[0, 1:], rel=1e-3)


def test_pictures_are_named_and_escaped():
    products = np.eye(14) + 0.1
    names = [*map(str, range(13)), "<img src=x>"]
    updates = geometry.Updates(names, products, 10.0)
    start = pictures.start("mean", updates, [1 / 14] * 14, 1.0)
    for drawn in (pictures.weight_map(updates, start), pictures.weight_map(updates, None),
                  pictures.cosines(updates)):  # fmt: skip
        assert 'role="img"' in drawn and "aria-label=" in drawn and "<img" not in drawn
    assert pictures.cosines(updates).count("<rect") == 14 * 14


def test_a_dot_an_interval_and_a_point_for_every_seed():
    table = pd.DataFrame(
        {"accuracy": [60.0, np.nan, 70.0], "low": [55.0, np.nan, np.nan],
         "high": [65.0, np.nan, np.nan]},
        index=["pretrained", "intertrained", "fused"],
    )  # fmt: skip
    drawn = pictures.arms(table, {"pretrained": [58.0, 62.0], "fused": [70.0]})
    assert "60.0 % (55.0 to 65.0)" in drawn and "intertrained" not in drawn
    assert drawn.count("<circle") == 2 + 3 and drawn.count("<path") == 1
    assert 'aria-label="Test accuracy: pretrained 60.0 %; fused 70.0 %"' in drawn


# One model, scaled.


def test_one_models_update_can_be_scaled_and_compared(made):
    shown = Playground(made)
    shown.ticks["sentiment"].value = False
    assert "or scale the update of one" in shown.message.value
    shown.scale.value = 0.35
    chosen = shown.chosen()
    assert not shown.message.value and chosen.method == "task_arithmetic"
    assert (chosen.models, chosen.weights) == (["mood"], [1.0])
    assert chosen.method_settings == {"scale": 0.35}
    shown.compare.click()
    until(lambda: "<b>done</b>" in shown.status.value)
    until(lambda: "method task_arithmetic" in shown.outcome.value)


def test_one_model_as_it_is_is_refused(settings):
    assert "at least 2, or one for task_arithmetic" in refusal(settings, models=["mood"])


def test_a_scaled_mean_is_task_arithmetic_with_equal_shares(shown):
    shown.scale.value = 0.5
    chosen = shown.chosen()
    assert chosen.method == "task_arithmetic" and chosen.weights == [0.5, 0.5]
    shown.scale.value = 1.0
    assert shown.chosen().method == "mean" and shown.chosen().weights == []


# The list, the presets, and what was tried before.


def test_the_list_is_searched_filtered_and_ordered(shown):
    listed = lambda: [row.children[0].description for row in shown.models.list.children]  # noqa: E731
    assert len(listed()) == len(shown.candidates) == 13  # tasks
    shown.models.search.value = "moo"
    assert listed() == ["mood"] and "ticked, not shown: sentiment" in shown.models.count.value
    shown.models.search.value = ""
    shown.models.kind.value = "ticked"
    assert listed() == ["sentiment", "mood"]
    shown.models.kind.value = "all models"
    shown.models.order.value = "most examples"
    assert listed()[0] == "captions" and listed()[-1] == "topic"


def test_the_most_alike_are_those_with_the_largest_cosines(made):
    shown = Playground(made)
    shown._tick("most alike")
    assert "Not known yet" in shown.message.value
    names = ["sentiment", "topic", "irony", "emoji", "mood"]
    for name in names[1:]:
        wide = dataclasses.replace(made, models=["sentiment", name], target="emotion")
        execute(plan_experiment(wide), Store(made.store_folder()), wide)
    shown = Playground(made)
    shown._tick("most alike")
    known = shown.session.of_runs(
        [next(o.key for o in shown.candidates if o.name == n) for n in ["irony", *names]]
    )
    others = [(known.cosines[0, i + 1], n) for i, n in enumerate(names) if n != "irony"]
    assert set(shown.models.ticked()) == {n for _, n in sorted(others)[-3:]}


def test_a_comparison_of_the_store_is_brought_back(made):
    other = dataclasses.replace(made, models=["sentiment", "topic"], method="ties",
                                method_settings={"density": 0.4, "scale": 0.8})  # fmt: skip
    execute(plan_experiment(other), Store(made.store_folder()), other)
    shown = Playground(made)
    until(lambda: len(shown.past.rows.children) == 5)  # pretrained, two models, the mean, TIES
    table = shown.past.found
    assert table["gain"].dropna().is_monotonic_decreasing
    ties = table[table["method"] == "ties"].iloc[0]
    runs = results(plan_experiment(other), Store(made.store_folder()))
    wide = 100 * runs.pivot(index="seed", columns="base", values="accuracy")
    assert ties["gain"] == pytest.approx((wide["fused"] - wide["pretrained"]).mean())
    texts = [row.children[3].value for row in shown.past.rows.children]
    assert sum("best so far" in text for text in texts) == 1
    (text,) = [text for text in texts if "s: ties of " in text]
    assert all(word in text for word in ("sentiment", "topic", "(density 0.4, scale 0.8)"))
    shown.bring_back(ties["key"])
    again = shown.chosen()
    assert (again.models, again.method) == (["sentiment", "topic"], "ties")
    assert again.method_settings == {"density": 0.4, "scale": 0.8}
    until(lambda: "Fused: sentiment, topic (" in shown.outcome.value)
    assert shown.past.export.value.startswith('<a download="tried.csv"')


def test_rows_of_the_history_are_ordered_compared_and_saved(made, tmp_path):
    other = dataclasses.replace(made, models=["sentiment", "topic"], method="ties",
                                method_settings={"density": 0.4, "scale": 0.8})  # fmt: skip
    store = Store(made.store_folder())
    execute(plan_experiment(other), store, other)
    shown = Playground(made)
    until(lambda: len(shown.past.rows.children) == 5)
    past = shown.past
    methods = lambda: [past.found.set_index("key")["method"][key] for key in past.ticks]  # noqa: E731
    past.order.value = "method"
    assert methods() == sorted(methods())
    past.order.value = "fewest models"
    assert methods()[:3] != methods()[-2:] and set(methods()[-2:]) == {"mean", "ties"}
    keys = past.found.set_index("method")["key"]
    for method in ("mean", "ties"):
        past.ticks[keys[method]].value = True
    runs = results(plan_experiment(other), store).query("base == 'fused'").set_index("seed")
    mean = results(plan_experiment(made), store).query("base == 'fused'").set_index("seed")
    gap = 100 * (mean["accuracy"] - runs["accuracy"])
    assert f"ends {abs(gap.mean()):.1f} points" in past.beside.value.replace("</i>", "")
    assert all(f"<td>{one:+.1f}</td>" in past.beside.value for one in gap)
    past.ticks[keys["pretrained"]].value = True
    assert past.beside.value == "<b>Tick two rows, not more, to compare them.</b>"
    row = next(r for r in past.rows.children if ": ties of" in r.children[3].value)
    assert "copy as Python" in row.children[3].value and "copy as YAML" in row.children[3].value
    shown.folder.value = str(tmp_path / "saved")
    row.children[2].click()
    assert "merge_method: ties" in (tmp_path / "saved/recipe.yml").read_text()
    assert "saved:" in shown.saved.value
    single = next(r for r in past.rows.children if "one model of" in r.children[3].value)
    assert single.children[1].disabled and single.children[2].disabled


def test_the_greedy_search_extends_the_best_average(made):
    shown = Playground(made)
    until(lambda: len(shown.past.rows.children) == 3)
    assert set(shown.past.found["method"]) == {"pretrained", "one model", "mean"}
    shown._tick("greedy")
    assert shown.message.value.startswith("<b>No suggestion:</b>")  # one model was tried alone


def test_controls_of_the_family_table_come_back_as_they_were(mini, made):
    """The scaled single is that of its own model, a placebo that of its seed; none is the best."""
    arms = ["scaled single", "placebo"]
    table = FamilyTable.from_parameters({**mini, "arms": arms, "seeds": made.seeds})
    store = Store(made.store_folder())
    execute(plan_experiment(table), store, table)
    one = next(row for row in plan_experiment(table).rows if row["base"] == "scaled single")
    chosen = dataclasses.replace(made, target=one["target"], models=sorted(one["sources"])[:2])
    shown = Playground(chosen)
    until(lambda: "placebo" in set(shown.past.found["method"]))
    rows = shown.past.found
    for method in ("scaled", "placebo"):
        for row in rows[rows["method"] == method].to_dict("records"):
            settings = shown.settings_of(row["key"])
            if settings is None:  # of a single model
                continue
            shown.bring_back(row["key"])
            assert shown.session._fused(shown.chosen()).key == row["key"]
    assert "best so far" not in "".join(
        line.children[3].value for line in shown.past.rows.children
        if ": placebo of" in line.children[3].value
    )  # fmt: skip


def test_pairs_belong_to_the_target_that_their_rows_are_of(made):
    shown = Playground(made)
    until(lambda: len(shown.past.rows.children) == 3)
    keys = shown.past.found.set_index("method")["key"]
    expected = shown._paired(keys["mean"], keys["pretrained"])
    shown._tick("none")  # which cannot be fused: the rows stay
    shown.target.value = "emotion"
    again = shown._paired(keys["mean"], keys["pretrained"])
    assert again["difference"] == expected["difference"]
    assert shown.settings_of(keys["mean"]).target == "irony"
    shown.bring_back(keys["mean"])
    assert shown.target.value == "irony" and shown.chosen().models == made.models


def test_before_anything_is_known_nothing_breaks(made):
    past = Playground(dataclasses.replace(made, models=["mood", "irony", "sentiment"][::2])).past
    empty = type(past)(past.actions)
    empty.order.value = "cheapest"
    assert not empty.rows.children and len(empty.found.columns) > 5


def test_a_cell_that_is_run_again_stops_what_the_first_one_runs(mini):
    how = {"models": ["topic", "mood"], "target": "irony", "store": mini["store"]}
    first = widgets.playground(**how)
    first.session.state.phase = "working"
    finish = threading.Event()
    first.session.thread = threading.Thread(target=finish.wait, daemon=True)
    first.session.thread.start()
    widgets.playground(**how)
    assert first.session.state.text == "stopping"
    finish.set()


# The heatmap.


def test_the_explorer_shows_what_stands_behind_a_cell(mini):
    settings = PairwiseHeatmap.from_parameters(mini)
    plan, store = plan_experiment(settings), Store(mini["store"])
    found = execute(plan, store, settings)
    shown = widgets.explorer(settings, found)
    cells = pairs.table(found)
    assert len(shown.buttons) == len(cells) == 3 and shown.to_playground.disabled
    button = shown.buttons["sentiment", "mood"]
    gain = cells.query("one == 'sentiment' and two == 'mood'")["gain"].item()
    assert button.description.startswith(f"{gain:+.1f} ")
    assert button.tooltip.startswith("sentiment and mood: ")
    assert f"fused {gain:+.1f} points over pretrained" in button.tooltip  # one target: no interval
    button.click()
    names = ("sentiment", "mood")
    table = pairs.detail(found, names)
    fused = found[found["sources"].isin([names])].set_index(["target", "seed"])["accuracy"]
    for (target, seed), accuracy in fused.items():
        assert table.loc[(target, seed), "fused"] == pytest.approx(100 * accuracy)
    assert table.loc[("mean", ""), "fused"] - table.loc[("mean", ""), "pretrained"] == (
        pytest.approx(gain)
    )
    assert "irony" in shown.detail.value and not shown.to_playground.disabled
    shown.to_playground.click()
    (below,) = shown.below.children
    assert below.ticks["sentiment"].value and below.ticks["mood"].value
    assert not below.ticks["topic"].value and below.target.value == "irony"


def test_the_explorer_shows_a_cluster_as_one_target(mini):
    clusters = {"moods": ["mood", "irony"]}
    few = {"few": ["sentiment", "topic", "mood", "irony"]}
    settings = PairwiseHeatmap.from_parameters({**mini, "clusters": clusters, "families": few})
    found = execute(plan_experiment(settings), Store(mini["store"]), settings)
    shown = widgets.explorer(settings, found)
    shown.buttons["sentiment", "topic"].click()
    assert "moods" in shown.detail.value and "irony" not in shown.detail.value
    shown.to_playground.click()
    (below,) = shown.below.children
    assert below.target.value == "mood"


def test_the_first_picture_needs_neither_torch_nor_transformers(made):
    """Which take seconds to import: what is known of finished models follows from headers."""
    code = (
        "import sys, time\n"
        "from fusinglib.widgets import pictures\n"
        "from fusinglib.widgets.view import Playground\n"
        "draw, known = pictures.weight_map, []\n"
        "pictures.weight_map = lambda *given: (known.append(set(sys.modules)), draw(*given))[1]\n"
        "from fusinglib.study.settings import FusePlayground\n"
        f"shown = Playground(FusePlayground(**{vars(made)!r}))\n"
        "while not shown.map.value: time.sleep(0.02)\n"
        "assert not {'torch', 'transformers', 'datasets'} & known[0], 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
