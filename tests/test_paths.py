"""Tables of the loss path, from results made up by hand."""

import numpy as np
import pandas as pd
import pytest

from fusinglib.evaluation import paths

NAN = float("nan")


def line(start, end, task, split, losses, accuracies, source_seed=0, seed=0):
    """A row of results: a run that scored a line on a task."""
    own = {"start": start, "end": end, "task": task, "split": split, "head": False}
    places = np.linspace(0, 1, len(losses))
    points = [
        {"position": p, "loss": loss, "accuracy": accuracy}
        for p, loss, accuracy in zip(places, losses, accuracies, strict=True)
    ]
    return {**own, "source_seed": source_seed, "seed": seed, "points": points}


@pytest.fixture
def results():
    """Two models and their mean: three places on each line."""
    return pd.DataFrame(
        [
            line("pretrained", "mood", "mood", "dev", [9, 1, 0], [0.2, 0.8, 1.0]),
            line("pretrained", "mood", "irony", "test", [9, 10, 8], [0.5, 0.4, 0.5]),
            line("pretrained", "topic", "topic", "dev", [7, 6, 2], [0.4, 0.4, 0.6]),
            line("mood", "topic", "mood", "dev", [0, 4, 8], [1.0, 0.5, 0.2]),
            line("mood", "topic", "topic", "dev", [6, 6, 2], [0.2, 0.3, 0.6]),
            line("topic", "mean", "mood", "dev", [8, 6, 4], [0.2, 0.2, 0.2]),
        ]
    )


def test_points_have_a_row_per_place(results):
    table = paths.points(results)
    assert len(table) == 18
    assert table["kind"].unique().tolist() == [
        "pretrained to finetuned", "finetuned to finetuned", "finetuned to mean",
    ]  # fmt: skip
    assert table.query("task == 'irony'")["tasks"].unique().tolist() == ["unseen"]
    assert table.loc[1, ["position", "loss", "accuracy"]].tolist() == [0.5, 1, 0.8]


def test_lines_are_means_over_their_tasks(results):
    every = paths.lines(paths.points(results))
    between = every.loc["finetuned to finetuned", "mood", "topic", 0, "trained on"]
    assert between["loss at start"] == 3 and between["loss at middle"] == 5
    assert between["barrier"] == pytest.approx(5 - (3 + 5) / 2)
    assert between["rise"] == 2
    assert between["accuracy at start"] == pytest.approx(60)
    assert between["drop"] == pytest.approx((60 + 40) / 2 - 40)


def test_summary_by_kind(results):
    table = paths.summary(paths.points(results))
    assert table.index.tolist() == [
        ("pretrained to finetuned", "trained on"),
        ("pretrained to finetuned", "unseen"),
        ("finetuned to finetuned", "trained on"),
        ("finetuned to mean", "trained on"),
    ]
    first = table.iloc[0]
    assert first["lines"] == 2 and first["never rising"] == 2 and first["missing"] == 0
    assert first["loss at start"] == 8 and first["loss at end"] == 1
    assert first["highest barrier"] == pytest.approx(6 - (7 + 2) / 2)
    assert first["barrier"] == pytest.approx(1.5 / 2)
    assert table.iloc[1]["never rising"] == 0


def test_numbers_between_models_are_symmetric(results):
    found = paths.between(paths.points(results), "drop")
    assert found.index.tolist() == found.columns.tolist()
    assert set(found) == {"pretrained", "mood", "topic", "mean"}
    assert found.loc["mood", "topic"] == found.loc["topic", "mood"] == pytest.approx(10)
    assert np.isnan(np.diag(found)).all() and np.isnan(found.loc["pretrained", "mean"])


def test_several_source_seeds_are_lines_of_their_own_and_head_seeds_are_not(results):
    again = results.assign(source_seed=1)
    assert paths.summary(paths.points(pd.concat([results, again]))).iloc[0]["lines"] == 4
    again = results.assign(seed=1)
    assert paths.summary(paths.points(pd.concat([results, again]))).iloc[0]["lines"] == 2


def test_one_missing_source_seed_makes_a_number_between_models_nan(results):
    again = results.assign(source_seed=1, accuracy=NAN)
    again.at[3, "points"] = NAN
    found = paths.between(paths.points(pd.concat([results, again])), "drop")
    assert np.isnan(found.loc["mood", "topic"]) and found.loc["pretrained", "mood"] >= 0


def test_nothing_finished_is_shown_as_nothing(results):
    table = paths.points(results.assign(points=NAN))
    summary = paths.summary(table)
    assert summary["missing"].tolist() == summary["lines"].tolist()
    assert paths.between(table, "barrier").isna().all(axis=None)


def test_a_missing_run_makes_its_line_nan_and_is_counted(results):
    results["accuracy"] = NAN
    results.at[0, "points"] = NAN
    table = paths.points(results)
    assert table["accuracy"].isna().sum() == 1
    first = paths.summary(table).iloc[0]
    assert first["missing"] == 1 and first["lines"] == 2 and np.isnan(first["barrier"])
    results.at[4, "points"] = NAN  # one of two tasks of a line
    between = paths.summary(paths.points(results)).loc[("finetuned to finetuned", "trained on")]
    assert between["missing"] == 1 and np.isnan(between["loss at start"])
