"""Plans: the paper's counts, what a run's key depends on, leave-target-out, intertrained picks."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import pytest

from fusinglib.errors import InputError
from fusinglib.places import PROJECT
from fusinglib.study import experiments, parameters, plans
from fusinglib.study.plans import (
    Builder,
    Model,
    Run,
    choose_families,
    family_table,
    intertrained,
)
from fusinglib.study.settings import FamilyTable, LossPath, PairwiseHeatmap, SourceSize, WeightDecay
from fusinglib.study.store import Store
from fusinglib.training.data import Split, TaskData
from fusinglib.training.tasks import FAMILIES, TASKS

LARGEST = ("mnli", "qqp", "esnli", "qnli", "sst2", "sentiment", "emoji")
"""By size; the paper calls SST-2 the second largest of General (study: the paper's numbers)."""

PRETRAINED = Run("import", {"fingerprint": "f"}, label="made up", place="/models/p")


def made_up(names=TASKS, fingerprint="d") -> dict[str, TaskData]:
    """Data of these tasks whose training sets have the order of LARGEST."""
    one = Split([("a",)], [0])
    loaded = {}
    for name in names:
        size = 100 - LARGEST.index(name) if name in LARGEST else 9
        train = Split([("a",)] * size, [0] * size)
        loaded[name] = TaskData(TASKS[name], train, one, one, fingerprint + name, None)
    return loaded


def paper_settings(mini, **changes) -> FamilyTable:
    """The mini parameters with the paper's families and picks, and one seed."""
    paper = {"families": {}, "sources": [*FAMILIES], "targets": [*FAMILIES], "seeds": [0]}
    return FamilyTable(**{**mini, **paper, "intertraining": "paper", **changes})


def paper_plan(mini, data=None, pretrained=PRETRAINED, random=None, **changes):
    """The plan of the paper's family table."""
    settings = paper_settings(mini, **changes)
    chosen = choose_families(settings, TASKS, FAMILIES)
    return family_table(settings, pretrained, data or made_up(), chosen, random)


def keys(plan) -> set[str]:
    return {run.key for run in plan.runs}


@pytest.mark.parametrize(("rule", "pairs"), [("paper", 188), ("largest", 163)])
def test_papers_family_table_has_its_counts(mini, rule, pairs):
    plan = paper_plan(mini, intertraining=rule, seeds=[0, 1, 2, 3, 4])
    counts = Counter(run.kind for run in plan.runs)
    assert counts == {"import": 1, "source": 27, "fuse": 34, "target": 5 * pairs}
    assert len(keys(plan)) == len(plan.runs)
    assert len({(row["target"], row["run"].parents[0].key) for row in plan.rows}) == pairs
    assert len(plan.rows) == 27 * 5 * (
        1 + 3 + 3
    )  # more than runs: some picks of General and NLI are one
    assert plan.families == FAMILIES
    assert plan.sizes["mnli"] == {"train": 100, "dev": 1, "test": 1}


def test_parents_come_before_children(mini):
    seen = set()
    for run in paper_plan(mini).runs:
        assert all(parent.key in seen for parent in run.parents)
        seen.add(run.key)


def test_target_is_never_among_its_sources(mini):
    plan = paper_plan(mini, source_seeds=[0, 1])
    for row in plan.rows:
        base = row["run"].parents[0]
        target = TASKS[row["target"]]
        assert row["run"].settings["task"] == target.as_json()
        sources = {"fused": base.parents, "intertrained": (base,), "pretrained": ()}[row["base"]]
        found = [run.settings["task"] for run in sources]
        assert target.identity not in {(task["hub_id"], task["config"]) for task in found}
        assert sorted(task["name"] for task in found) == list(row["sources"])
        if row["base"] == "pretrained":
            assert base is PRETRAINED
            continue
        members = FAMILIES[row["source_family"]]
        assert {task["name"] for task in found} <= set(members)
        assert all(run.settings["seed"] == row["source_seed"] for run in sources)
        assert all(run.parents == (PRETRAINED,) for run in sources)
        if row["base"] == "fused":
            assert len(found) == len(members) - (row["target"] in members)


def test_every_cell_of_the_table_has_every_target_and_seed(mini):
    cells = Counter(
        (row["base"], row["source_family"], row["target"]) for row in paper_plan(mini).rows
    )
    expected = [("pretrained", ""), *((b, f) for b in ("fused", "intertrained") for f in FAMILIES)]
    assert cells == {(*cell, target): 1 for cell in expected for target in TASKS}


def picks(plan) -> dict[tuple[str, str], str]:
    """(source family, target) to the task of the intertrained model."""
    rows = [row for row in plan.rows if row["base"] == "intertrained"]
    return {(row["source_family"], row["target"]): row["sources"][0] for row in rows}


def test_papers_picks(mini):
    found = picks(paper_plan(mini))
    own = {("general", "mnli"): "sst2", ("nli", "esnli"): "mnli", ("twitter", "sentiment"): "emoji"}
    usual = {"general": "mnli", "nli": "esnli", "twitter": "sentiment"}
    assert found == {cell: own.get(cell, usual[cell[0]]) for cell in found}


def test_largest_rule(mini):
    found = picks(paper_plan(mini, intertraining="largest"))
    own = {("general", "mnli"): "qqp", ("nli", "mnli"): "esnli", ("twitter", "sentiment"): "emoji"}
    usual = {"general": "mnli", "nli": "mnli", "twitter": "sentiment"}
    assert found == {cell: own.get(cell, usual[cell[0]]) for cell in found}


def test_largest_of_equals_does_not_depend_on_the_order():
    names = ["rte", "wnli", "cola"]
    found = {intertrained("largest", "x", order, lambda name: 9) for order in (names, names[::-1])}
    assert found == {"wnli"}


def test_paper_rule_without_a_pick_is_refused(mini):
    with pytest.raises(InputError, match="of 'mine': set intertraining to 'largest'"):
        paper_plan(mini, families={"mine": ["rte", "wnli"]}, sources=["mine"])


def test_order_of_a_family_does_not_matter(mini):
    reverse = {family: names[::-1] for family, names in FAMILIES.items()}
    one, other = paper_plan(mini), paper_plan(mini, families=reverse)
    assert keys(one) == keys(other)
    for run in other.runs:
        parents = [parent.key for parent in run.parents]
        assert parents == sorted(parents)


def test_targets_share_the_mean_of_a_family_that_they_are_not_in(mini):
    rows = [row for row in paper_plan(mini).rows if row["base"] == "fused"]
    means = {(r["source_family"], r["target"]): r["run"].parents[0].key for r in rows}
    for family, members in FAMILIES.items():
        outside = {means[family, target] for target in TASKS if target not in members}
        inside = {means[family, target] for target in members}
        assert len(outside) == 1 and len(inside) == len(members) and not outside & inside


def test_two_source_seeds(mini):
    plan = paper_plan(mini, source_seeds=[0, 7])
    counts = Counter(run.kind for run in plan.runs)
    assert counts == {"import": 1, "source": 54, "fuse": 68, "target": 27 + 2 * (188 - 27)}
    fused = [run for run in plan.runs if run.kind == "fuse"]
    assert all(len({p.settings["seed"] for p in run.parents}) == 1 for run in fused)
    assert keys(paper_plan(mini)) < keys(plan)


def test_without_source_seeds_every_seed_has_source_models_of_its_own(mini):
    plan = paper_plan(mini, source_seeds=[], seeds=[3, 7], arms=["placebo"])
    alone = [
        paper_plan(mini, source_seeds=[seed], seeds=[seed], arms=["placebo"]) for seed in (3, 7)
    ]
    assert keys(plan) == keys(alone[0]) | keys(alone[1])
    assert len(plan.rows) == sum(len(one.rows) for one in alone)
    assert all(row["source_seed"] == row["seed"] for row in plan.rows)


def test_a_plan_says_which_targets_count_as_one(mini):
    clusters = {"moods": ["mood", "irony"], "sentiment": ["emoji", "topic"]}
    noted = experiments.plan_experiment(FamilyTable(**{**mini, "clusters": clusters})).notes
    (note,) = [
        note for note in noted if "count as one" in note
    ]  # no member of the other is a target
    assert note.startswith("moods: ") and note.endswith(": mood, irony")


def test_random_weights_are_a_base_model_of_every_target(mini):
    random = Run("random", {"seed": 0}, (PRETRAINED,))
    plan = paper_plan(mini, random=random)
    rows = [row for row in plan.rows if row["base"] == "random"]
    assert len(rows) == 27 and {row["run"].parents for row in rows} == {(random,)}
    assert keys(plan) - keys(paper_plan(mini)) == {random.key, *(row["run"].key for row in rows)}


@pytest.mark.parametrize(
    "change",
    [
        {"executor": "processes"},
        {"workers": 7},
        {"store": "/elsewhere"},
        {"device": "cuda"},
        {"model": "a/name"},
        {"model_revision": "main"},
        {"pretraining_steps": 5},  # of the miniature model, which this plan does not use
    ],
    ids=lambda change: next(iter(change)),
)
def test_keys_do_not_change_with(mini, change):
    assert keys(paper_plan(mini, **change)) == keys(paper_plan(mini))


def test_keys_do_not_change_with_label_and_place(mini):
    renamed = dataclasses.replace(PRETRAINED, label="other", place="/moved")
    assert keys(paper_plan(mini, pretrained=renamed)) == keys(paper_plan(mini))


EVERY_FINETUNING = [
    {"learning_rate": 3e-4},
    {"schedule": "linear"},
    {"weight_decay": 0.01},
    {"dropout": 0.3},
    {"eval_every": 3},
    {"min_gain": 0.01},
    {"metric": "exact"},
    {"precision": "bf16"},
    {"threads": 2},
    {"micro_batch": 4},
    {"group_by_length": True},
    {"split_rule": "later"},
    {"split_rule": "grouped"},
    {"split_seed": 1},
    {"max_dev": 7},
    {"max_test": 7},
    {"text_format": "later"},
    {"max_length": 32},
]


@pytest.mark.parametrize("change", EVERY_FINETUNING, ids=lambda change: next(iter(change)))
def test_every_key_but_the_pretrained_models_changes_with(mini, change):
    assert keys(paper_plan(mini, **change)) & keys(paper_plan(mini)) == {PRETRAINED.key}


def test_every_key_changes_with_the_pretrained_model(mini):
    other = Run("import", {"fingerprint": "g"})
    assert not keys(paper_plan(mini, pretrained=other)) & keys(paper_plan(mini))


@pytest.mark.parametrize("name", ["batch_size", "max_steps", "patience"])
def test_target_settings_leave_sources_and_means_as_they_are(mini, name):
    kinds = {run.key: run.kind for run in paper_plan(mini).runs}
    shared = keys(paper_plan(mini, **{f"target_{name}": 77})) & set(kinds)
    assert Counter(kinds[key] for key in shared) == {"import": 1, "source": 27, "fuse": 34}
    shared = keys(paper_plan(mini, **{f"source_{name}": 77})) & set(kinds)
    assert Counter(kinds[key] for key in shared) == {"import": 1, "target": 27}


def test_seeds_name_their_own_runs(mini):
    plan = paper_plan(mini)
    more = paper_plan(mini, seeds=[0, 1])
    assert keys(plan) < keys(more) and len(keys(more) - keys(plan)) == 188
    shared = keys(paper_plan(mini, source_seeds=[1])) & keys(plan)
    assert len(shared) == 1 + 27  # the pretrained model and its targets


def test_data_fingerprint_reaches_what_depends_on_it(mini):
    data = made_up()
    data["rte"] = dataclasses.replace(data["rte"], fingerprint="changed")
    before = {run.key: run for run in paper_plan(mini).runs}
    gone = [before[key] for key in set(before) - keys(paper_plan(mini, data))]

    def uses_rte(run):
        return run.settings.get("task", {}).get("name") == "rte" or any(map(uses_rte, run.parents))

    assert {run.key for run in gone} == {k for k, run in before.items() if uses_rte(run)}
    assert Counter(run.kind for run in gone)["source"] == 1


@pytest.mark.parametrize("kind", ["import", "source", "fuse", "target"])
def test_keys_change_with_the_version_of_their_kind(mini, monkeypatch, kind):
    before = keys(paper_plan(mini))
    monkeypatch.setitem(plans.VERSIONS, kind, 99)
    fresh = Run("import", PRETRAINED.settings)  # keys are computed once per run
    plan = paper_plan(mini, pretrained=fresh)

    def depends(run):
        return run.kind == kind or any(map(depends, run.parents))

    assert {run.key for run in plan.runs if depends(run)} == keys(plan) - before


def test_golden_keys(monkeypatch):
    """Keys that finished runs have: if this fails, every store out there is void. Raise the
    version of a kind instead of changing what its key is made of."""
    monkeypatch.setattr(plans, "VERSIONS", dict.fromkeys(plans.VERSIONS, 1))
    pretrain = Run("pretrain", {"world_seed": 0, "seed": 0, "steps": 10}, label="any")
    settings = {"task": {"name": "ä", "labels": ("a", "b")}, "training": {"learning_rate": 1e-3}}
    source = Run("source", settings, (pretrain,), place="anywhere")
    fuse = Run("fuse", {}, (source, pretrain))
    assert [run.key for run in (pretrain, source, fuse)] == GOLDEN


GOLDEN = ["9eed62bff5b444c9", "a2d35e9a78a9b273", "fc66384ab3b288ad"]


def test_key_does_not_depend_on_the_order_of_settings_but_on_that_of_parents():
    one, other = Run("fuse", {"a": 1, "b": 2}), Run("fuse", {"b": 2, "a": 1})
    assert one.key == other.key
    third = Run("fuse", {"c": 3})
    assert Run("fuse", {}, (one, third)).key != Run("fuse", {}, (third, one)).key


def test_family_with_the_target_alone_is_refused(mini):
    own = {"families": {"mine": ["mnli"]}, "sources": ["mine"], "intertraining": "largest"}
    with pytest.raises(InputError, match="'mine' has no task left for the target 'mnli'"):
        paper_plan(mini, **own)
    fine = paper_plan(mini, **own, targets=["twitter"])
    assert Counter(run.kind for run in fine.runs)["fuse"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": ["twiter"]}, "unknown family 'twiter': did you mean 'twitter'?"),
        ({"targets": ["x"]}, "unknown family 'x': one of general, nli, twitter"),
        ({"families": {"nli": ["mnlli"]}}, "unknown task 'mnlli': did you mean 'mnli'?"),
        ({"families": {"nli": []}}, "family 'nli' is empty: name at least one task"),
        ({"families": {"nli": ["rte", "rte"]}}, "family 'nli' names 'rte' twice"),
    ],
)
def test_unknown_and_malformed_families_are_refused(mini, change, message):
    with pytest.raises(InputError) as caught:
        choose_families(paper_settings(mini, **change), TASKS, FAMILIES)
    assert str(caught.value).startswith(message)


def test_own_families_come_before_the_built_in_ones(mini):
    settings = paper_settings(mini, families={"nli": ["rte", "wnli"]})
    chosen = choose_families(settings, TASKS, FAMILIES)
    assert chosen == {**FAMILIES, "nli": ["rte", "wnli"]}


def test_plan_of_the_miniature_world(mini):
    plan = experiments.plan_experiment(FamilyTable(**{**mini, "arms": ["random"]}))
    counts = Counter(run.kind for run in plan.runs)
    assert counts == {"pretrain": 2, "source": 3, "fuse": 3, "target": 2 * 3 * 4}
    first = plan.runs[0]
    assert first.settings["steps"] == mini["pretraining_steps"]
    for change in ({"world_seeds": [1]}, {"pretraining_seed": 1}, {"pretraining_steps": 3}):
        other = experiments.plan_experiment(FamilyTable(**{**mini, "arms": ["random"], **change}))
        shared = keys(plan) & keys(other)
        steps_only = "pretraining_steps" in change
        assert len(shared) == (
            1 + 3 * 2 if steps_only else 0
        )  # the untrained model's, without steps


def test_plan_of_a_model_folder(mini, encoder):
    settings = FamilyTable(**{**mini, "model": str(encoder), "arms": ["random"]})
    plan = experiments.plan_experiment(settings)
    assert [run.kind for run in plan.runs if run.kind in ("import", "random")] == [
        "import",
        "random",
    ]
    assert plan.runs[0].place == str(encoder)
    assert len(plan.runs[0].settings["fingerprint"]) == 16


def test_plan_of_a_run_of_the_store(mini, t5):
    run, store = Run("fuse", {}, label="mine"), Store(mini["store"])
    with store.new(run) as folder:
        shutil.copytree(t5, folder / "model")
    plan = experiments.plan_experiment(FamilyTable(**{**mini, "model": run.key}))
    assert plan.runs[0].kind == "import"
    assert plan.runs[0].place == str(store.model(run))


@pytest.fixture
def own_models(encoder, tmp_path) -> list[str]:
    """Four finetuned models; one has a card of the Trainer's, one a card with a data set alone."""
    folders = []
    for number in range(4):
        folder = tmp_path / f"model{number}"
        shutil.copytree(encoder, folder)
        (folder / "config.json").write_text((folder / "config.json").read_text() + " " * number)
        folders.append(str(folder))
    of_trainer = "model-index:\n- results:\n  - dataset: {type: glue, config: rte, args: rte}\n"
    (tmp_path / "model1/README.md").write_text(f"---\n{of_trainer}---\n# rte")
    (tmp_path / "model2/README.md").write_text("---\ndatasets: [tweet_eval]\n---\n")
    return folders


def test_own_models_are_sources_as_they_are(mini, encoder, own_models, monkeypatch):
    one = Split([("a",)] * 9, [0] * 9)
    monkeypatch.setattr(
        experiments.data, "load", lambda task, how: TaskData(task, one, one, one, task.name, None)
    )
    changes = {
        "model": str(encoder), "tasks": "paper",
        "families": {"mine": own_models, "some": ["rte", "cola", "irony"]},
        "sources": ["mine"], "targets": ["some"], "trained_on": {own_models[0]: ["cola", "rte"]},
    }  # fmt: skip
    plan = experiments.plan_experiment(FamilyTable(**{**mini, **changes}))
    assert Counter(run.kind for run in plan.runs)["source"] == 0
    assert {Path(run.place) for run in plan.models} == {Path(folder) for folder in own_models}
    sources = {row["target"]: list(row["sources"]) for row in plan.rows if row["base"] == "fused"}
    assert (
        sources
        == {
            "rte": own_models[
                2:
            ],  # the first was trained on it, as is said; the second by its card
            "cola": own_models[1:],
            "irony": [own_models[number] for number in (0, 1, 3)],  # any part of TweetEval
        }
    )
    picked = {r["target"]: r["sources"][0] for r in plan.rows if r["base"] == "intertrained"}
    assert picked["irony"] == own_models[0]  # it saw most examples, as far as is known
    assert plan.notes[:4] == (
        f"{own_models[0]}: it is the pretrained model itself, byte for byte; trained on cola rte "
        "(parameter 'trained_on')",
        f"{own_models[1]}: trained on glue rte (its model card)",
        f"{own_models[2]}: trained on tweet_eval (its model card)",
        f"{own_models[3]}: what it was trained on is unknown, so no target leaves it out: name its "
        "tasks in 'trained_on'",
    )


def varied(kind, mini, **changes):
    """The plan of an experiment that varies the tiny family table, and that table's plan."""
    settings = kind(**{**mini, **changes})
    return experiments.plan_experiment(settings), experiments.plan_experiment(FamilyTable(**mini))


def test_weight_decay_is_a_family_table_under_each_decay(mini):
    plan, table = varied(WeightDecay, mini, weight_decay=0.5, explored_decays=[2.0])
    assert keys(table) < keys(plan)
    for decay in (0.0, 0.5, 2.0):
        rows = [row for row in plan.rows if row["weight_decay"] == decay]
        assert len(rows) == len(table.rows)
        for row in rows:
            base = row["run"].parents[0]
            trained = {"fused": base.parents, "intertrained": (base,)}.get(row["base"], ())
            for run in (row["run"], *trained):
                assert run.settings["training"]["weight_decay"] == decay
    assert Counter(run.kind for run in plan.runs)["pretrain"] == 1


def test_source_size_is_a_family_table_for_each_size(mini):
    plan, table = varied(SourceSize, mini, sizes=[1000, 50])
    assert list(dict.fromkeys(row["source_size"] for row in plan.rows)) == [50, 1000]
    for row in plan.rows:
        assert "examples" not in row["run"].settings
        base = row["run"].parents[0]
        for run in {"fused": base.parents, "intertrained": (base,)}.get(row["base"], ()):
            there = plan.sizes[run.settings["task"]["name"]]["train"]
            assert run.settings.get("examples", there) == min(row["source_size"], there)
    starts = [row["run"].key for row in plan.rows if row["base"] == "pretrained"]
    assert starts[: len(starts) // 2] == starts[len(starts) // 2 :]
    assert set(starts) < keys(table)
    whole = {run.key for run in plan.runs if run.kind == "source"} & keys(table)
    assert len(whole) == 2  # sentiment and irony have fewer than 1,000 examples


def test_a_size_beyond_all_data_is_refused(mini):
    with pytest.raises(InputError, match="'sizes' has 4501, but the largest .* has 4500"):
        varied(SourceSize, mini, sizes=[50, 4501])


def heatmap_plan(mini, *tasks, **changes):
    """The plan of a heatmap of these tasks."""
    parameters = {**mini, "families": {"few": list(tasks)}, **changes}
    return experiments.plan_experiment(PairwiseHeatmap.from_parameters(parameters))


def test_heatmaps_without_pairs_or_targets_are_refused(mini):
    with pytest.raises(InputError, match="no pair of irony: name at least two"):
        heatmap_plan(mini, "irony")
    with pytest.raises(InputError, match="sentiment and irony has no target left"):
        heatmap_plan(mini, "sentiment", "irony")


def test_pairwise_heatmap_has_every_pair_on_every_unseen_target(mini):
    plan = heatmap_plan(mini, "sentiment", "mood", "irony", "topic")
    counts = Counter(run.kind for run in plan.runs)
    targets = len(mini["seeds"]) * (2 * 4 + 4 * 3 + 6 * 2)
    assert counts == {"pretrain": 2, "source": 4, "fuse": 6, "target": targets}
    for row in plan.rows:
        assert row["target"] not in row["sources"]
        base = row["run"].parents[0]
        models = {"fused": base.parents, "intertrained": (base,)}.get(row["base"], ())
        assert sorted(run.settings["task"]["name"] for run in models) == sorted(row["sources"])


def test_pairs_are_not_tried_on_variants_of_what_they_have_seen(mini):
    clusters = {"clusters": {"moods": ["mood", "irony"]}}
    plan = heatmap_plan(mini, "sentiment", "mood", "irony", "topic", **clusters)
    tried = {row["sources"]: set() for row in plan.rows}
    for row in plan.rows:
        tried[row["sources"]].add(row["target"])
    assert tried == {
        (): {"sentiment", "mood", "irony", "topic"},
        ("sentiment",): {"mood", "irony", "topic"},
        ("mood",): {"sentiment", "topic"},
        ("irony",): {"sentiment", "topic"},
        ("topic",): {"sentiment", "mood", "irony"},
        ("sentiment", "mood"): {"topic"},
        ("sentiment", "irony"): {"topic"},
        ("sentiment", "topic"): {"mood", "irony"},
        ("mood", "irony"): {"sentiment", "topic"},
        ("mood", "topic"): {"sentiment"},
        ("irony", "topic"): {"sentiment"},
    }
    assert any(note.endswith("their mean: mood, irony") for note in plan.notes)


def test_pairs_need_a_target_outside_the_clusters_they_have_seen(mini):
    clusters = {"clusters": {"moods": ["mood", "irony"]}}
    with pytest.raises(InputError, match="mood and topic has no target left"):
        heatmap_plan(mini, "mood", "irony", "topic", **clusters)


def path_plan(mini, sources, targets, **changes):
    """The plan of a loss path with these tasks."""
    families = {"families": {"ends": sources, "others": targets}}
    names = {"sources": ["ends"], "targets": ["others"], "points": 5, "head_learning_rate": 0.01}
    settings = LossPath.from_parameters({**mini, **families, **names, **changes})
    return experiments.plan_experiment(settings)


def test_loss_path_has_every_line_on_its_own_and_on_unseen_tasks(mini):
    plan = path_plan(mini, ["sentiment", "mood"], ["irony", "mood"])
    lines = {(row["start"], row["end"]): {} for row in plan.rows}
    for row in plan.rows:
        lines[row["start"], row["end"]][row["task"]] = row["split"]
    both = {"sentiment": "dev", "mood": "dev", "irony": "test"}
    assert lines == {
        ("pretrained", "sentiment"): {"sentiment": "dev", "irony": "test"},
        ("pretrained", "mood"): {"mood": "dev", "irony": "test"},
        ("pretrained", "mean"): both,
        ("sentiment", "mood"): both,
        ("sentiment", "mean"): both,
        ("mood", "mean"): both,
    }
    assert not any(row["head"] for row in plan.rows)
    assert len(plan.rows) == 16  # a T5 has no head, so the seeds make no difference
    assert Counter(run.kind for run in plan.runs) == {
        "pretrain": 1, "source": 2, "fuse": 1, "line": 16,
    }  # fmt: skip
    for row in plan.rows:
        assert row["run"].settings["positions"] == [0, 0.25, 0.5, 0.75, 1]
        kinds = {"pretrained": "pretrain", "mean": "fuse"}
        ends = [run.kind for run in row["run"].parents]
        assert ends == [kinds.get(row[end], "source") for end in ("start", "end")]


def test_heads_of_encoders_are_fitted_with_every_seed(mini, encoder):
    plan = path_plan(mini, ["sentiment", "mood"], ["irony"], model=str(encoder))
    lines = [run for run in plan.runs if run.kind == "line"]
    assert len(lines) == 16 * len(mini["seeds"])
    assert {run.settings["training"]["learning_rate"] for run in lines} == {0.01}
    assert {run.settings["training"]["dropout"] for run in lines} == {0.0}
    assert all(row["head"] for row in plan.rows)
    other = path_plan(mini, ["sentiment", "mood"], ["irony"], model=str(encoder), seeds=[7])
    assert not keys(other) & {run.key for run in lines}


@pytest.mark.parametrize(
    ("sources", "targets"), [(["mood"], ["irony"]), (["mood", "irony"], ["irony", "mood"])]
)
def test_loss_paths_without_two_ends_or_an_unseen_target_are_refused(mini, sources, targets):
    with pytest.raises(InputError, match="at least two source tasks and a target that is not one"):
        path_plan(mini, sources, targets)


@pytest.mark.slow
def test_the_papers_plan_on_the_real_data_has_the_papers_counts(hub, encoder):
    """`params/paper` as it is, but for the model: 27 source models, 34 means, 940 target runs."""
    file = str(PROJECT / "params/paper/family_table.yaml")
    chosen = parameters.choose("family_table", file, [f"model={encoder}"])
    plan = experiments.plan_experiment(parameters.settings("family_table", chosen))
    counts = Counter(run.kind for run in plan.runs)
    assert counts == {"import": 1, "source": 27, "fuse": 34, "target": 940}
    assert sum(plan.sizes[name]["test"] for name in plan.sizes) == 89_991
    assert "mnli: train has 13,391 rows; the published data have 392,702" in plan.notes


def test_a_bare_word_is_a_task_whatever_folders_there_are(mini):
    assert (PROJECT / "tests").is_dir() and not plans.is_model("tests")
    assert all(plans.is_model(name) for name in ("./tests", "you/model", "0123456789abcdef"))
    families = {"few": ["mood", "irony", "tests"]}
    with pytest.raises(InputError, match="unknown task 'tests'"):
        experiments.plan_experiment(FamilyTable(**{**mini, "families": families}))


def sharing_texts() -> dict[str, TaskData]:
    """Data in which the test sentences of WSC stand in the training split of WNLI."""
    sentence = Split(
        [("the councilmen refused the demonstrators a permit because they feared",)], [0]
    )
    loaded = made_up()
    for name, split in (("wsc", "test"), ("wnli", "train")):
        loaded[name] = dataclasses.replace(loaded[name], **{split: sentence})
    return loaded


@pytest.mark.parametrize(("rule", "left_out"), [("grouped", True), ("paper", False)])
def test_tasks_that_share_texts_with_the_target_are_left_out(mini, rule, left_out):
    plan = paper_plan(mini, sharing_texts(), split_rule=rule)
    of = {
        row["target"]: row["sources"]
        for row in plan.rows
        if row["base"] == "fused" and row["source_family"] == "general"
    }
    assert len(of["wsc"]) == 13 - left_out and len(of["wnli"]) == 13  # one way alone
    settings = paper_settings(mini, split_rule=rule)
    notes = experiments._kin(sharing_texts(), FAMILIES, settings)
    said = "wsc: wnli is left out as well, since its training split shares texts with 100 % of the"
    assert [note.startswith(said) for note in notes] == [True] * left_out


def test_models_trained_on_what_shares_texts_are_left_out(mini):
    model = Model(Run("import", {"fingerprint": "m"}), trained_on=(TASKS["wnli"].identity,))
    settings = paper_settings(mini, split_rule="grouped")
    builder = Builder(settings, sharing_texts(), {"./mine": model})
    assert builder.sources("wsc", ["./mine", "wnli", "rte"]) == ["rte"]
    assert builder.sources("rte", ["./mine", "wnli"]) == ["./mine", "wnli"]


@pytest.mark.parametrize("with_head", [False, True])
def test_heads_of_targets_do_not_start_as_those_of_sources(mini, with_head):
    settings = paper_settings(mini, seeds=[0, 1])
    chosen = choose_families(settings, TASKS, FAMILIES)
    plan = family_table(settings, PRETRAINED, made_up(), chosen, with_head=with_head)
    seeds = {
        kind: {run.settings["seed"] for run in plan.runs if run.kind == kind}
        for kind in ("source", "target")
    }
    assert seeds["source"] == {0} and bool(seeds["source"] & seeds["target"]) != with_head
    assert {row["seed"] for row in plan.rows} == {0, 1}
