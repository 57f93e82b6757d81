"""The table of tasks: families, identities, label words, leave-target-out."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import fusinglib
from fusinglib.__main__ import main as fusinglib_main
from fusinglib.errors import InputError
from fusinglib.places import PROJECT
from fusinglib.training import data, miniworld, tasks
from fusinglib.training.tasks import FAMILIES, MINI_FAMILIES, TASKS, find, leave_out

GLUE, SUPERGLUE, TWEETS = "nyu-mll/glue", "aps/super_glue", "cardiffnlp/tweet_eval"
STUDY = {
    "general": [(GLUE, c) for c in "cola sst2 mrpc qqp mnli qnli rte wnli".split()]
    + [(SUPERGLUE, c) for c in "boolq cb copa multirc wic wsc".split()],
    "nli": [(GLUE, c) for c in "mnli qnli rte wnli".split()]
    + [("esnli/esnli", "plain_text"), ("facebook/anli", "plain_text")],
    "twitter": [
        (TWEETS, c)
        for c in "emoji emotion hate irony offensive sentiment stance_abortion stance_atheism "
        "stance_climate stance_feminist stance_hillary".split()
    ],
}


def test_families_are_the_papers():
    found = {family: [TASKS[name].identity for name in names] for family, names in FAMILIES.items()}
    assert found == STUDY
    assert sum(map(len, FAMILIES.values())) == 31
    assert len({name for names in FAMILIES.values() for name in names}) == len(TASKS) == 27


def test_names_and_identities_are_unique():
    assert len({task.identity for task in TASKS.values()}) == 27
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize(
    "task", [*TASKS.values(), *tasks.mini_tasks(0).values()], ids=lambda t: t.name
)
def test_label_words_differ_and_the_split_rule_exists(task):
    words = [label.casefold().strip() for label in task.labels]
    assert len(set(words)) == len(words) >= 2
    assert all(label.isprintable() and label.isascii() for label in task.labels)
    assert task.splits in data.SPLIT_RULES
    assert task.columns


def test_numbers_of_labels():
    counts = {name: len(task.labels) for name, task in TASKS.items()}
    three = {"mnli", "cb", "esnli", "anli", "sentiment", *(n for n in TASKS if "stance" in n)}
    assert {name for name, count in counts.items() if count == 3} == three
    assert counts["emoji"] == 20 and counts["emotion"] == 4
    assert sum(count == 2 for count in counts.values()) == 27 - len(three) - 2


def test_split_rules():
    rules = {name: task.splits for name, task in TASKS.items()}
    assert {name for name, rule in rules.items() if rule == "own"} == {
        "esnli",
        *FAMILIES["twitter"],
    }
    assert (rules["mnli"], rules["anli"]) == ("mnli", "rounds")
    carved = {name for name, rule in rules.items() if rule == "carve"}
    assert carved == set(FAMILIES["general"]) - {"mnli"}


def test_target_is_left_out_by_identity_across_families():
    general = [TASKS[name] for name in FAMILIES["general"]]
    mnli_of_nli = TASKS[FAMILIES["nli"][0]]
    left = leave_out(mnli_of_nli, general)
    assert [task.name for task in left] == [n for n in FAMILIES["general"] if n != "mnli"]
    assert leave_out(TASKS["esnli"], general) == general


def test_renamed_task_and_anli_rounds_are_the_same_task():
    renamed = replace(TASKS["rte"], name="my_rte", labels=("yes", "no"), revision="abc")
    assert leave_out(renamed, [TASKS["rte"], TASKS["qnli"]]) == [TASKS["qnli"]]
    assert leave_out(TASKS["rte"], [renamed]) == []
    round_1 = replace(TASKS["anli"], name="anli_r1", splits="own")
    round_2 = replace(TASKS["anli"], name="anli_r2", splits="own")
    assert leave_out(round_1, [TASKS["anli"], round_2, TASKS["esnli"]]) == [TASKS["esnli"]]


def test_same_config_of_another_data_set_is_another_task():
    assert TASKS["esnli"].config == TASKS["anli"].config
    assert leave_out(TASKS["esnli"], [TASKS["anli"]]) == [TASKS["anli"]]


def test_mini_tasks_are_the_worlds():
    made, families = tasks.table("miniworld", 5)
    assert families is MINI_FAMILIES and set(families) == set(FAMILIES)
    assert set(made) == set(miniworld.TASKS) == {n for names in families.values() for n in names}
    assert {task.revision for task in made.values()} == {"5"}
    assert len({task.identity for task in made.values()}) == len(made)
    assert all(len(names) >= 2 for names in families.values())


def test_other_models_get_the_papers_tasks():
    assert tasks.table("paper", 0) == (TASKS, FAMILIES)


def test_settings_of_a_task_are_what_they_were_for_the_first_stores():
    """What came later (names, row counts, files) decides nothing; marks do, where there are any."""
    assert set(TASKS["emoji"].as_json()) == {
        "name", "hub_id", "config", "columns", "labels", "label_column", "splits", "revision"
    }  # fmt: skip
    assert TASKS["wic"].as_json()["marks"] == "characters"


def test_published_rows_are_those_of_the_whole_data():
    counts = {name: dict(task.rows) for name, task in TASKS.items()}
    assert all(counts.values())
    assert sum(counts["anli"][f"train_r{n}"] for n in (1, 2, 3)) == 162_865
    assert counts["mnli"]["validation_mismatched"] == 9832


OWN = {"columns": ["text"], "labels": ["bad", "good"]}


def test_own_tasks_join_the_table(tmp_path):
    known, families = tasks.table("paper", 0, {"reviews": {**OWN, "files": "reviews.csv"}})
    assert known["reviews"].files == (("train", str(Path("reviews.csv").resolve())),)
    assert known.keys() - TASKS.keys() == {"reviews"} and families is FAMILIES


def test_added_tasks_are_known_everywhere():
    fusinglib.add_task("reviews", **OWN, files="reviews.csv")
    for built_in in ("paper", "miniworld"):
        assert "reviews" in tasks.table(built_in, 0)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["good"]}, "two labels or more"),
        ({"labels": ["good", "good"]}, "each once"),
        ({"labels": "good"}, "labels is 'good': expected a list of words"),
        ({"labels": None}, "labels is None: expected a list of words"),
        ({"columns": 3}, "columns is 3: expected a list of words"),
        ({"columns": []}, "no column"),
        ({"names": ["1"]}, "expected 2 names"),
        ({"files": None}, "set exactly one of"),
        ({"hub_id": "me/reviews"}, "set exactly one of"),
        ({"files": {"train": 3}}, "files of train are 3: expected a file or a list of files"),
        ({"files": ["a.csv", 3]}, "expected a file or a list of files"),
        ({"files": {"train": []}}, "expected a file or a list of files"),
    ],
)
def test_what_makes_no_task_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        tasks.own_task("reviews", **{**OWN, "files": "reviews.csv", **change})


def test_unknown_task_is_refused_with_the_nearest():
    assert find("mnli", TASKS) is TASKS["mnli"]
    with pytest.raises(InputError, match="unknown task 'mnlli': did you mean 'mnli'?"):
        find("mnlli", TASKS)


def test_tasks_are_listed_with_what_their_data_are_like(capsys, tmp_path):
    """Own, built-in, and one whose data are not at hand; texts as every model reads them."""
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\n" + "".join(f"words of row {i},{i % 4 // 3}\n" for i in range(40)))
    own = {"reviews": {**OWN, "files": str(file)}, "gone": {**OWN, "files": "gone.csv"}}
    how = ["--params", "params/mini/family_table.yaml", "--set", f"own_tasks={own}"]
    assert fusinglib_main(["tasks", "reviews", "gone", "mood", *how]) == 2
    said, errors = capsys.readouterr()
    assert errors.endswith("error: cannot read gone (see above)\n")
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    labels, majority = lines["reviews"][5:7]
    assert lines["reviews"] == ["32", "4", "4", "4", "25.0", labels, majority, "0.0", "8", "8"]
    assert lines["mood"][:3] == ["4500", "200", "1000"]
    assert "task 'gone': there is no file" in said and "length: of an input, in tokens" in said
    assert fusinglib_main(["tasks", "reviews", "--show", "1", *how]) == 0
    said = capsys.readouterr().out
    assert "  t5: reviews text: words of row" in said and "<reviews\n    -> 0" in said
    assert fusinglib_main(["tasks", "revews", *how]) == 2
    assert "did you mean 'reviews'?" in capsys.readouterr().err


def test_tasks_are_listed_where_there_is_no_ipython():
    code = """
import sys
sys.modules["IPython"] = None
from fusinglib.__main__ import main
sys.exit(main(["tasks", "mood", "--params", "params/mini/family_table.yaml"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("mood")


def test_counting_tokens_downloads_no_weights(encoder, monkeypatch, tmp_path, capsys):
    """Of a model on the Hub its tokenizer's files alone are asked for."""
    import huggingface_hub

    asked = []

    def download(model, *, revision, allow_patterns):
        asked.append((model, sorted(allow_patterns)))
        return str(encoder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    file = tmp_path / "reviews.csv"
    file.write_text("text,label\n" + "".join(f"words of row {i},{i % 2}\n" for i in range(40)))
    own = {"reviews": {**OWN, "files": str(file)}}
    how = ["--params", "params/mini/family_table.yaml", "--set", f"own_tasks={own}"]
    assert fusinglib_main(["tasks", "reviews", *how, "--set", "model=someone/bert"]) == 0
    assert asked == [("someone/bert", ["*.jinja", "*.json", "*.model", "*.txt"])]
    assert "length: of an input, in tokens" in capsys.readouterr().out
