"""Settings: what is refused, and how; where the store is; one home for every default."""

import ast
import dataclasses
import hashlib
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

import nbformat
import pytest
import yaml

from fusinglib.__main__ import main
from fusinglib.errors import InputError, nearest
from fusinglib.places import PROJECT, store_folder
from fusinglib.study import parameters
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.settings import (
    EXPERIMENTS,
    FamilyTable,
    ManyWorlds,
    read_common,
    read_parameters,
)  # fmt: skip

LISTS = ("seeds", "source_seeds", "world_seeds", "sources", "targets")


def refusal(mini, **changes) -> str:
    """The message with which `changes` to good parameters are refused."""
    with pytest.raises(InputError) as caught:
        FamilyTable.from_parameters({**mini, **changes})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_parameters_are_kept_as_they_are(mini):
    settings = FamilyTable.from_parameters({**mini, "unrelated": object()})
    assert dataclasses.asdict(settings) == mini


def test_missing_name_is_named(mini):
    del mini["learning_rate"]
    assert refusal(mini) == "parameter 'learning_rate' is missing: FamilyTable needs it"


def test_text_for_a_number_is_refused_with_a_hint(mini):
    message = refusal(mini, learning_rate=yaml.safe_load("1e-4"))
    assert message == (
        "parameter 'learning_rate' is '1e-4': expected a number "
        "(YAML reads 1e-4 as text: write 1.0e-4)"
    )
    assert "YAML" not in refusal(mini, learning_rate="0.1")
    assert "1.0e-4" in refusal(mini, source_max_steps="1e3")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("eval_every", True, "a whole number"),
        ("eval_every", 2.0, "a whole number"),
        ("eval_every", None, "a whole number"),
        ("seeds", [0, True], "a whole number"),
        ("seeds", [0.5], "a whole number"),
        ("learning_rate", True, "a number"),
        ("learning_rate", [1], "a number"),
        ("allow_pickle", 1, "true or false"),
        ("allow_pickle", "true", "true or false"),
        ("model", 3, "text"),
        ("store", None, "text"),
        ("seeds", 0, "a list"),
        ("sources", "nli", "a list"),
        ("sources", [1], "text"),
        ("families", ["nli"], "a mapping of names to values"),
        ("families", {"mine": "mnli"}, "a list"),
        ("families", {1: ["mnli"]}, "text"),
        ("weight_decay", float("nan"), "a finite number"),
        ("learning_rate", float("inf"), "a finite number"),
        ("learning_rate", 0.0, "a number above 0"),
        ("seeds", [0, -1], "a number of at least 0"),
        ("source_seeds", [-2], "a number of at least 0"),
        ("seeds", [], "at least 1"),
        ("seeds", [1, 1], "each once"),
        ("sources", [], "at least 1"),
        ("targets", [], "at least 1"),
        ("targets", ["few", "few"], "each once"),
        ("intertraining", "best", "'largest' or 'paper'"),
        ("dropout", 0.95, "a number of at most 0.9"),
        ("min_gain", 1.5, "a number of at most 1"),
    ],
)
def test_what_does_not_fit_is_refused(mini, name, value, expected):
    message = refusal(mini, **{name: value})
    assert message.startswith(f"parameter {name!r} is ") and message.endswith(expected)


CHOICES = {
    field.name: get_args(field.type)
    for field in dataclasses.fields(FamilyTable)
    if get_origin(field.type) is Literal
}
RANGES = {
    field.name: field.type.__metadata__[0].metadata[0].ge
    for field in dataclasses.fields(FamilyTable)
    if get_origin(field.type) is Annotated
    and field.name not in ("learning_rate", "clusters", *LISTS)
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices(mini, name):
    for value in CHOICES[name]:
        assert getattr(FamilyTable(**{**mini, name: value}), name) == value
    assert all(repr(value) in refusal(mini, **{name: "other"}) for value in CHOICES[name])


@pytest.mark.parametrize("name", RANGES)
def test_ranges(mini, name):
    least = RANGES[name]
    assert getattr(FamilyTable(**{**mini, name: least}), name) == least
    assert f"at least {least}" in refusal(mini, **{name: least - 1})


def test_every_number_has_a_range(mini):
    numbers = {name for name, value in mini.items() if type(value) in (int, float)}
    assert numbers == {*RANGES, "learning_rate"}


def test_whole_number_serves_as_float(mini):
    settings = FamilyTable.from_parameters({**mini, "weight_decay": 0, "seeds": [3, 4]})
    assert type(settings.weight_decay) is float
    assert settings.seeds == [3, 4]


PINNED = {
    "mini/family_table": (343, "0b967d4c924499d2"),
    "mini/fuse_playground": (14, "dbbb667de5509a6d"),
    "mini/loss_path": (142, "b6992498955b9bf6"),
    "mini/pairwise_heatmap": (181, "bd65f8ff6c077712"),
    "mini/seed_planner": (343, "0b967d4c924499d2"),
    "mini/source_size": (206, "570b8bf39566a7da"),
    "mini/weight_decay": (199, "83b1cbaad02363b8"),
    "mini-worlds/many_worlds": (3430, "4358949e06a01695"),
}
"""How many runs the plans had when the first stores were made, and the hash of their keys."""


@pytest.mark.parametrize("path", PINNED)
def test_the_keys_of_runs_are_those_of_the_first_stores(path, tmp_path):
    name = path.split("/")[1]
    chosen = parameters.choose(name, PROJECT / f"params/{path}.yaml", [f"store={tmp_path}"])
    if "arms" in chosen:  # all but one came later, and join the others
        chosen["arms"] = [one for one in chosen["arms"] if one == "random"]
    plan, later = plan_experiment(parameters.settings(name, chosen)), set()
    if name in ("pairwise_heatmap", "weight_decay", "source_size"):  # random weights came later
        random = [row["run"] for row in plan.rows if row["base"] == "random"]
        later = {run.key for run in [*random, *(run.parents[0] for run in random)]}
        assert later
    keys = sorted(run.key for run in plan.runs if run.key not in later)
    assert (len(keys), hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16]) == PINNED[path]


def test_paths_are_looked_for_beside_their_parameter_file_then_in_the_project(mini, tmp_path):
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "mood").mkdir()
    (tmp_path / "all.yaml").write_text("learning_rate: 0.5\nmodel: mood")
    (tmp_path / "reviews.csv").write_text("text,label\n")
    own = {"columns": ["text"], "labels": ["bad", "good"]}
    del mini["learning_rate"]
    families = {"few": ["mood", "irony"], "mine": ["models/mine", "you/elsewhere"]}
    given = {
        **mini, "common": "all.yaml", "families": families, "sources": ["few"],
        "trained_on": {"models/mine": ["irony"]},
        "own_tasks": {
            "here": {**own, "files": "reviews.csv"}, "there": {**own, "files": ["data/more.csv"]}
        },
    }  # fmt: skip
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(given))
    settings = parameters.settings("family_table", parameters.choose("family_table", file, []))
    assert settings.learning_rate == 0.5
    assert read_common(str(tmp_path / "all.yaml"))["model"] == str(tmp_path / "mood")
    mine = str(tmp_path / "models/mine")
    assert settings.families == {"few": ["mood", "irony"], "mine": [mine, "you/elsewhere"]}
    assert settings.trained_on == {mine: ["irony"]}
    known, _ = settings.known_tasks()
    assert known["here"].files == (("train", str(tmp_path / "reviews.csv")),)
    assert known["there"].files == (("train", str(PROJECT / "data/more.csv")),)


def test_a_relative_path_means_the_same_wherever_one_stands(monkeypatch, tmp_path):
    for folder in (PROJECT, PROJECT / "notebooks", PROJECT / "fusinglib/study", tmp_path):
        monkeypatch.chdir(folder)
        assert store_folder("kept/runs") == PROJECT / "kept/runs"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "params").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert store_folder("kept/runs") == tmp_path / "kept/runs"


def test_a_projects_own_notebooks_and_files_win(monkeypatch, tmp_path):
    assert main(["new", str(tmp_path / "mine")]) == 0
    monkeypatch.chdir(tmp_path / "mine")
    notebook = tmp_path / "mine/notebooks/family_table.ipynb"
    assert parameters.notebook("family_table") == notebook
    notebook.write_text(
        notebook.read_text().replace("seeds: list = [0, 1, 2]", "seeds: list = [7]")
    )
    assert parameters.defaults("family_table")["seeds"] == [7]
    notebook.write_text(notebook.read_text().replace('"parameters"', '"others"'))
    with pytest.raises(InputError, match="family_table.ipynb has no cell tagged `parameters`"):
        parameters.defaults("family_table")
    notebook.unlink()  # then the package's own
    assert parameters.defaults("family_table")["seeds"] == [0, 1, 2]
    common = tmp_path / "mine/params/mini/common.yaml"
    common.write_text(common.read_text().replace("target_max_steps: 150", "target_max_steps: 3"))
    chosen = parameters.choose("family_table", "params/mini/family_table.yaml", [])
    assert parameters.settings("family_table", chosen).target_max_steps == 3


def test_source_and_target_training_take_their_own(mini):
    settings = FamilyTable(**{**mini, "source_patience": 7, "target_patience": 9})
    source, target = settings.source_training(), settings.target_training()
    assert (source.patience, target.patience) == (7, 9)
    assert (source.batch_size, target.batch_size) == (32, 16)
    assert source.learning_rate == target.learning_rate == mini["learning_rate"]
    assert settings.data().max_test == mini["max_test"]


def test_did_you_mean():
    assert nearest("learning_rat", ["seeds", "learning_rate"]) == "did you mean 'learning_rate'?"
    assert nearest("xyz", ["b", "a"]) == "one of a, b"


def test_store_folder_is_the_parameter_then_the_variable_then_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSINGLIB_STORE", str(tmp_path / "variable"))
    assert store_folder(str(tmp_path / "parameter")) == tmp_path / "parameter"
    assert store_folder() == tmp_path / "variable"
    monkeypatch.delenv("FUSINGLIB_STORE")
    assert store_folder() == PROJECT / "runs"
    assert store_folder("~/runs") == Path.home() / "runs"


def test_settings_give_the_store_folder(mini, tmp_path):
    assert FamilyTable(**mini).store_folder() == tmp_path / "runs"


def parameters_cell(name: str) -> dict[str, tuple[str, object]]:
    """Name to (annotation, value) of the notebook's parameters cell."""
    cells = nbformat.read(PROJECT / f"notebooks/{name}.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return {
        line.target.id: (line.annotation.id, ast.literal_eval(line.value))
        for line in ast.parse(cell.source).body
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_notebooks_set_what_the_mini_file_sets(name):
    cell = parameters_cell(name)
    folder = "mini-worlds" if EXPERIMENTS[name] is ManyWorlds else "mini"
    file = yaml.safe_load((PROJECT / f"params/{folder}/{name}.yaml").read_text())
    values = {name: value for name, (_, value) in cell.items()}
    if "recorded" in values:  # shown where the notebook is opened, computed where it is run
        assert values.pop("recorded") == "results/mini-worlds" and file.pop("recorded") == ""
    assert values == file
    assert 10 <= len(cell) <= 16
    assert all(type(value).__name__ == annotation for annotation, value in cell.values())


@pytest.mark.parametrize(
    "folder", ["mini", "tweets", "tweets-full", "controls", "paper", "roberta", "quick"]
)
def test_each_number_has_one_home(folder):
    """A parameter stands in the common file or in the notebooks' own; decay is an experiment's."""
    common = yaml.safe_load((PROJECT / f"params/{folder}/common.yaml").read_text())
    for file in (PROJECT / f"params/{folder}").glob("*.yaml"):
        if file.stem != "common":
            own = yaml.safe_load(file.read_text())
            assert own["common"] == f"params/{folder}/common.yaml"
            assert own.keys() & common.keys() <= {"weight_decay"}, file
            assert own.keys() <= parameters_cell(file.stem).keys(), file


@pytest.mark.parametrize("folder", ["mini", "tweets", "paper", "roberta", "quick"])
def test_every_notebook_has_its_parameter_files(folder):
    ours = {name for name, kind in EXPERIMENTS.items() if not issubclass(kind, ManyWorlds)}
    files = (PROJECT / f"params/{folder}").glob("*.yaml")
    assert {file.stem for file in files} == {*ours, "common"}


@pytest.mark.parametrize(
    "path", sorted(PROJECT.glob("params/*/[!c]*.yaml")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_every_parameter_file_is_valid(path):
    chosen = yaml.safe_load(path.read_text())
    defaults = {name: value for name, (_, value) in parameters_cell(path.stem).items()}
    settings = EXPERIMENTS[path.stem].from_parameters({**defaults, **chosen})
    del chosen["common"]
    assert chosen.items() <= dataclasses.asdict(settings).items()


def test_explicit_parameters_win_over_the_common_file(mini, tmp_path):
    file = tmp_path / "common.yaml"
    file.write_text("learning_rate: 0.5\nmax_dev: 9\npoints: 3\n")  # points: of another notebook
    del mini["learning_rate"]
    settings = FamilyTable.from_parameters({**mini, "common": str(file)})
    assert (settings.learning_rate, settings.max_dev) == (0.5, mini["max_dev"])


def test_bad_common_files_are_refused(mini, tmp_path):
    file = tmp_path / "common.yaml"
    file.write_text("learning_rat: 0.5\n")
    assert "did you mean 'learning_rate'?" in refusal(mini, common=str(file))
    file.write_text("seeds: [0]\n")
    del mini["learning_rate"]
    message = refusal(mini, common=str(file))
    assert message.endswith(f"FamilyTable needs it, and {file} does not set it")
    assert "No such file" in refusal(mini, common="params/none.yaml")
    assert "expected text" in refusal(mini, common=3)


def test_a_list_given_as_text_says_how_papermill_takes_lists(mini):
    assert "papermill: pass it with -y or in a file" in refusal(mini, seeds="[5]")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seeds: [0]\nseeds: [1]\n", "'seeds'"),
        ("families:\n  few: [mood]\n  few: [irony]\n", "'few'"),
        ("own_tasks: {a: {labels: [x], labels: [y]}}\n", "'labels'"),
        ("families: {1: [mood], 1: [irony]}\n", "1"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path, text, key):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_parameters(file)
    assert f"{key} is set twice; remove one" in str(caught.value)
    assert f"line {text.rstrip().count(chr(10)) + 1}" in str(caught.value)


def test_yaml_anchors_and_merged_keys_are_read(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert read_parameters(file)["b"] == {"x": 1, "y": 3}
