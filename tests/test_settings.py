"""Settings: what is refused, and how; where the store is; one home for every default."""

import ast
import dataclasses
from pathlib import Path

import nbformat
import pytest
import yaml

from fusinglib.errors import InputError, nearest
from fusinglib.places import PROJECT, store_folder
from fusinglib.study.settings import CHOICES, EXPERIMENTS, RANGES, FamilyTable, ManyWorlds


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
        "parameter 'learning_rate' is the text '1e-4': expected a number "
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
        ("random_row", 1, "true or false"),
        ("random_row", "true", "true or false"),
        ("model", 3, "text"),
        ("store", None, "text"),
        ("seeds", 0, "a list"),
        ("sources", "nli", "a list"),
        ("sources", [1], "text"),
        ("families", ["nli"], "names with lists of tasks"),
        ("families", {"mine": "mnli"}, "a list"),
        ("families", {1: ["mnli"]}, "text"),
        ("weight_decay", float("nan"), "a finite number"),
        ("learning_rate", float("inf"), "a finite number"),
        ("learning_rate", 0.0, "more than 0"),
        ("seeds", [0, -1], "whole numbers from 0"),
        ("source_seeds", [-2], "whole numbers from 0"),
        ("seeds", [], "at least one seed"),
        ("source_seeds", [], "at least one seed"),
        ("seeds", [1, 1], "each seed once"),
        ("sources", [], "at least one family"),
        ("targets", [], "at least one family"),
        ("targets", ["few", "few"], "each family once"),
        ("intertraining", "best", "one of largest, paper"),
        ("dropout", 0.95, "a number from 0 to 0.9"),
        ("min_gain", 1.5, "a number from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(mini, name, value, expected):
    message = refusal(mini, **{name: value})
    assert message.startswith(f"parameter {name!r} is ") and message.endswith(expected)


@pytest.mark.parametrize("name", CHOICES)
def test_choices(mini, name):
    for value in CHOICES[name]:
        assert getattr(FamilyTable(**{**mini, name: value}), name) == value
    assert ", ".join(CHOICES[name]) in refusal(mini, **{name: "other"})


@pytest.mark.parametrize("name", RANGES)
def test_ranges(mini, name):
    least, _ = RANGES[name]
    assert getattr(FamilyTable(**{**mini, name: least}), name) == least
    assert f"from {least}" in refusal(mini, **{name: least - 1})


def test_every_number_has_a_range(mini):
    numbers = {f.name for f in dataclasses.fields(FamilyTable) if f.type in (int, float)}
    assert numbers == {*RANGES, "learning_rate"}


def test_whole_number_serves_as_float_and_tuple_as_list(mini):
    settings = FamilyTable.from_parameters({**mini, "weight_decay": 0, "seeds": (3, 4)})
    assert type(settings.weight_decay) is float
    assert settings.seeds == [3, 4]


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
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSINGLIB_STORE", str(tmp_path / "variable"))
    assert store_folder(str(tmp_path / "parameter")) == tmp_path / "parameter"
    assert store_folder() == tmp_path / "variable"
    monkeypatch.delenv("FUSINGLIB_STORE")
    assert store_folder() == PROJECT / "runs" != tmp_path / "runs"
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
    assert {name: value for name, (_, value) in cell.items()} == file
    assert 10 <= len(cell) <= 15
    fields = {field.name: field.type for field in dataclasses.fields(EXPERIMENTS[name])}
    bare = {name: getattr(kind, "__origin__", kind).__name__ for name, kind in fields.items()}
    assert all(bare.get(key, "str") == annotation for key, (annotation, _) in cell.items())
    assert all(type(value).__name__ == annotation for annotation, value in cell.values())


@pytest.mark.parametrize("folder", ["mini", "tweets", "tweets-full", "paper", "roberta", "quick"])
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
    assert "papermill: give it with -y or in a file" in refusal(mini, seeds="[5]")
