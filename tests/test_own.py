"""Your own tasks and your own models, from parameters to a table; and what a plan says it costs."""

import json
from pathlib import Path

import pytest

from fusinglib.__main__ import main
from fusinglib.errors import InputError
from fusinglib.evaluation import tables
from fusinglib.study import costs
from fusinglib.study.costs import Calibration, estimate
from fusinglib.study.execution import execute
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import FamilyTable, FusePlayground, PairwiseHeatmap
from fusinglib.study.store import Store
from fusinglib.training import cards
from fusinglib.widgets import choice


@pytest.fixture
def reviews(tmp_path) -> dict:
    """Tasks in a CSV file, with labels that nobody has seen before."""
    rows = [f"the baker {'sold' if i % 2 else 'lost'} the bread {i},{i % 2}" for i in range(60)]
    (tmp_path / "reviews.csv").write_text("remark,verdict\n" + "\n".join(rows) + "\n")
    fields = {"columns": ["remark"], "label_column": "verdict", "labels": ["zorp", "blip"]}
    return {"reviews": {**fields, "files": str(tmp_path / "reviews.csv")}}


def carried_out(settings):
    """The plan of the settings, its store and its results."""
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    return plan, store, execute(plan, store, settings)


def test_an_own_task_is_source_and_target(mini, encoder, reviews):
    changes = {
        "model": str(encoder), "own_tasks": reviews,
        "families": {"few": ["reviews", "mood", "irony"]}, "target_batch_size": 8,
    }  # fmt: skip
    plan, _, results = carried_out(FamilyTable.from_parameters({**mini, **changes}))
    assert plan.sizes["reviews"] == {"train": 48, "dev": 6, "test": 6}
    assert results["accuracy"].notna().all()
    sources = results.query("base == 'fused'").groupby("target")["sources"].first().to_dict()
    assert sources == {
        "reviews": ("irony", "mood"), "mood": ("irony", "reviews"), "irony": ("mood", "reviews")
    }  # fmt: skip


def test_an_own_task_can_be_chosen_in_the_playground(mini, encoder, reviews):
    chosen = {"models": ["mood", "irony"], "target": "reviews", "method": "mean", "weights": []}
    for built_in, others in (("miniworld", 13), ("paper", 0)):
        changes = {"model": str(encoder), "own_tasks": reviews, "tasks": built_in, **chosen}
        settings = FusePlayground.from_parameters({**mini, **changes, "method_settings": {}})
        if built_in == "miniworld":
            names = [one.name for one in choice.candidates(settings)]
            assert "reviews" in names and len(names) == others + 1
        assert "reviews" in settings.known_tasks()[0]


def saved_models(mini, encoder, tmp_path, names: list[str]) -> dict:
    """Folders of finetuned models by their tasks, moved out of a store as if from elsewhere."""
    made = {"model": str(encoder), "families": {"few": names}, "seeds": [0]}
    plan, store, _ = carried_out(PairwiseHeatmap.from_parameters({**mini, **made}))
    tasks = {run.settings["task"]["name"]: run for run in plan.models}
    return {name: store.model(run).rename(tmp_path / name) for name, run in tasks.items()}


def test_four_saved_models_are_sources(mini, encoder, tmp_path):
    """Nothing is trained on sources, and their cards say what they were trained on."""
    folders = saved_models(mini, encoder, tmp_path, ["sentiment", "mood", "irony", "topic"])
    changes = {
        "model": str(encoder), "seeds": [0, 1], "store": str(tmp_path / "other"),
        "families": {"mine": [*map(str, folders.values())], "few": ["mood", "emoji"]},
        "sources": ["mine"], "targets": ["few"],
    }  # fmt: skip
    plan, store, results = carried_out(FamilyTable.from_parameters({**mini, **changes}))
    assert not {run.kind for run in plan.runs} & {"source"}
    assert (
        plan.notes[0] == f"{folders['sentiment']}: trained on miniworld sentiment (its model card)"
    )
    table = tables.accuracy_table(results, plan.families)
    assert table.notna().all(axis=None)
    assert list(table.index) == [("intertrained", "mine"), ("fused", "mine"), ("pretrained", "")]
    fused = results.query("base == 'fused'").groupby("target")["sources"].first()
    assert str(folders["mood"]) not in fused["mood"] and len(fused["emoji"]) == 4


def test_a_card_that_cannot_be_read_is_named(tmp_path):
    for front in ("datasets: [glue", "- glue"):
        (tmp_path / "README.md").write_text(f"---\n{front}\n---\n")
        with pytest.raises(InputError, match="metadata of .*README.md cannot be read"):
            cards.read(tmp_path)


TRAINER = """
datasets: [glue]
model-index:
- name: mine
  results:
  - task: {name: Text Classification, type: text-classification}
    dataset: {name: GLUE MRPC, type: glue, config: mrpc, split: validation, args: mrpc}
    metrics: [{name: Accuracy, type: accuracy, value: 0.86}]
"""


@pytest.mark.parametrize(
    ("front", "found"),
    [
        ("datasets: glue", (("glue", ""),)),
        ("datasets:\n- imdb\n- glue\n- imdb", (("imdb", ""), ("glue", ""))),
        (TRAINER, (("glue", "mrpc"),)),
        (TRAINER.replace("[glue]", "[imdb]"), (("glue", "mrpc"), ("imdb", ""))),
        (TRAINER.replace("config: mrpc, ", ""), (("glue", "mrpc"),)),
        ("license: mit", ()),
        (None, ()),
    ],
)
def test_a_card_says_what_a_model_was_trained_on(tmp_path, front, found):
    text = "# A model without metadata" if front is None else f"---\n{front.strip()}\n---\n"
    (tmp_path / "README.md").write_text(text)
    assert cards.read(tmp_path) == found


def test_a_trainers_card_counts_the_examples_of_its_task(mini, encoder, tmp_path):
    """It says `miniworld` by a short name without an owner, and the largest is the largest."""
    folders = saved_models(mini, encoder, tmp_path, ["topic", "irony", "mood"])
    for folder in folders.values():
        card = folder / "README.md"
        card.write_text(card.read_text().replace("type: miniworld", "type: someone/miniworld"))
    changes = {
        "model": str(encoder), "store": str(tmp_path / "other"), "sources": ["mine"],
        "families": {"mine": [*map(str, folders.values())], "few": ["emoji"]}, "targets": ["few"],
    }  # fmt: skip
    settings = FamilyTable.from_parameters({**mini, **changes})
    picked = f"mine: intertrained is {folders['mood']} (4,500 training rows)"
    assert picked in plan_experiment(settings).notes
    (folders["mood"] / "README.md").unlink()
    (folders["irony"] / "README.md").unlink()
    (folders["topic"] / "README.md").unlink()
    assert any(
        "(the last by name, since no number of training rows is known: name the models' tasks"
        in note
        for note in plan_experiment(settings).notes
    )


def test_a_plan_says_what_it_costs(mini, encoder, capsys):
    settings = FamilyTable.from_parameters({**mini, "model": str(encoder)})
    plan, store = plan_experiment(settings), Store(settings.store_folder())
    before = estimate(plan, store, settings, Calibration(settings))
    counts = before["runs"].to_dict()
    assert counts == {"import": 1, "source": 3, "fuse": 3, "target": 18, "all": 25}
    assert (before["hours from"] <= before["to"]).all() and before.loc["target", "to"] > 0
    execute(plan, store, settings)
    after = estimate(plan, store, settings)
    assert (after["finished"] == after["runs"]).all() and not after["to"].any()
    stored = sum(file.stat().st_size for file in store.root.rglob("*.safetensors"))
    assert before.loc["all", "GB"] == pytest.approx(stored / 1e9, rel=0.2)


@pytest.mark.parametrize(("patience", "texts"), [(60, 32), (0, 8)])
def test_batches_are_timed_whole_if_that_is_quick(mini, encoder, monkeypatch, patience, texts):
    """A GPU takes as long for eight texts as for a batch: eight alone would say too many hours."""
    settings = FamilyTable.from_parameters({**mini, "target_batch_size": 32})
    task = plan_experiment(settings).runs[-1].task
    monkeypatch.setattr(costs, "LONG", patience)
    monkeypatch.setattr(costs, "_paces", lambda model, loaded, training, texts: (3 / texts, 1.0))
    assert costs._measure(encoder, task, settings).trained == 3 / texts


def test_a_plan_on_the_command_line_says_notes_and_costs(mini, encoder, tmp_path, capsys, reviews):
    changes = {"model": str(encoder), "own_tasks": reviews, "targets": ["few"]}
    changes["families"] = {"few": ["reviews", "mood"]}
    file = tmp_path / "params.yaml"
    file.write_text(json.dumps({**mini, **changes}))
    assert main(["run", "family_table", "--params", str(file), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "GB" in said and "hours from" in said
    assert "few: intertrained is " in said and "mood (4,500 training rows)" in said


def test_the_playgrounds_plan_says_notes_and_costs_too(mini, encoder, tmp_path, capsys, reviews):
    """Its costs need the sizes of the models' own tasks, not of the target alone."""
    file = Path(reviews["reviews"]["files"])
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *rows, *rows]) + "\n")
    changes = {"model": str(encoder), "own_tasks": reviews, "models": ["reviews", "mood"]}
    changes |= {"target": "irony", "method": "mean", "weights": [], "method_settings": {}}
    settings = FusePlayground.from_parameters({**mini, **changes})
    plan = plan_experiment(settings)
    assert "test texts also occur in train" in " ".join(plan.notes)
    table = estimate(plan, Store(settings.store_folder()), settings, Calibration(settings))
    assert table.loc["all", "to"] > 0
