import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_pairs import TASKS, heatmap
from test_paths import line
from test_sweeps import over_decays
from test_tables import FAMILIES, study

from fusinglib.evaluation import figures, pairs, paths, sweeps, tables
from fusinglib.fusion.geometry import Updates

matplotlib.use("agg")


@pytest.fixture
def ax():
    return Figure().subplots()


def ticks(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def marks(ax, size):
    """(x, y) of the lines drawn as marks of this size."""
    drawn = [line for line in ax.lines if line.get_marker() != "None"]
    return [line.get_xydata() for line in drawn if line.get_markersize() == size]


def test_accuracy_rows_are_the_base_models_pretrained_first(ax):
    assert figures.accuracy_by_base(study(), FAMILIES["letters"], ax) is ax
    assert ticks(ax) == [
        "pretrained",
        "intertrained letters",
        "intertrained digits",
        "fused letters",
        "fused digits",
        "random",
    ]
    assert ax.yaxis_inverted()


def test_accuracy_shows_the_numbers_of_the_table(ax):
    results = study()
    figures.accuracy_by_base(results, FAMILIES["digits"], ax)
    table = tables.accuracy_table(results, FAMILIES)["digits"]
    means = [point[0, 0] for point in marks(ax, 8)]
    rows = [tuple((label + " ").split(" ")[:2]) for label in ticks(ax)]
    assert means == pytest.approx([table[row] for row in rows])
    targets = marks(ax, 4)
    assert [row[:, 0].mean() for row in targets] == pytest.approx(means)
    assert all(len(row) == 2 for row in targets)


def test_bar_is_the_interval_of_the_difference_from_pretrained(ax):
    results = study()
    figures.accuracy_by_base(results, FAMILIES["letters"], ax)
    rows = tables.differences(results, FAMILIES)
    row = rows[
        (rows["comparison"] == "fused - pretrained")
        & (rows["source_family"] == "digits")
        & (rows["target_family"] == "letters")
    ].iloc[0]
    start = tables.accuracy_table(results, FAMILIES).loc[("pretrained", ""), "letters"]
    bars = [line for line in ax.lines if line.get_linewidth() == 2.5]
    at = ticks(ax).index("fused digits")
    (bar,) = [line.get_xdata() for line in bars if set(line.get_ydata()) == {at}]
    assert bar == pytest.approx([start + row["low"], start + row["high"]])
    assert len(bars) == 5, "pretrained has none"


def test_a_base_model_with_missing_runs_says_so_and_has_no_mean(ax):
    results = study()
    hole = (results["base"] == "random") & (results["target"] == "a") & (results["seed"] == 0)
    figures.accuracy_by_base(results[~hole], FAMILIES["letters"], ax)
    (text,) = ax.texts
    assert text.get_text() == "missing runs: 1" and text.xy[1] == 5
    means = marks(ax, 8)
    assert np.isnan(means[5][0, 0]) and not np.isnan(means[:5]).any()


def test_differences_are_drawn_in_order_under_their_comparison(ax):
    rows = tables.differences(study(), FAMILIES)
    rows = rows[rows["target_family"] == "all"]
    assert figures.difference_intervals(rows, ax) is ax
    labels = ticks(ax)
    assert labels[:4] == [
        "fused − pretrained",
        "from letters, on all (4 targets)",
        "from digits, on all (4 targets)",
        "mean of sources, on all (4 targets)",
    ]
    assert labels[-2:] == ["pretrained − random", "on all (4 targets)"]
    points = np.vstack(marks(ax, 7))
    assert points[:, 0] == pytest.approx(rows["estimate"])
    headings = [label for y, label in enumerate(labels) if y not in points[:, 1]]
    assert headings == [name.replace("-", "−") for name in [*figures.COMPARISONS][:4]]


def test_mark_is_filled_where_the_interval_leaves_out_zero(ax):
    rows = tables.differences(study(), FAMILIES).iloc[:3].copy()
    rows[["low", "estimate", "high"]] = [[1, 2, 3], [-1, 2, 3], [np.nan, 2, np.nan]]
    figures.difference_intervals(rows, ax)
    fills = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    assert fills == ["#0072B2", "white", "white"]


def test_a_difference_with_missing_runs_says_so(ax):
    results = study()
    rows = tables.differences(results[results["base"] != "random"], FAMILIES)
    figures.difference_intervals(rows.assign(missing=[2] + [0] * (len(rows) - 1)), ax)
    assert [text.get_text() for text in ax.texts] == ["missing runs: 2"]


def test_family_figure_has_a_panel_per_family_and_is_an_image_in_a_notebook():
    figure = figures.family_figure(study(), FAMILIES)
    assert [ax.get_title() for ax in figure.axes] == ["letters (3 targets)", "digits (2 targets)"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_thin_results_can_be_drawn():
    families = {"only": ["a"]}
    figure = figures.family_figure(study(families, seeds=(0,)), families)
    assert figure.axes[0].get_title() == "only (1 target)"
    figure.draw_without_rendering()


def test_every_base_and_comparison_has_its_own_colour_and_shape():
    assert [" - ".join(pair) for pair in tables.COMPARISONS] == list(figures.COMPARISONS)
    for looks in (figures.BASES, figures.COMPARISONS):
        colours, shapes = zip(*looks.values(), strict=True)
        assert len(set(colours)) == len(set(shapes)) == len(looks)


def test_every_pair_stands_in_its_cell_with_colour_sign_and_doubt(ax):
    results = heatmap({"a b": 0.03, "b c": -0.01, "c d": 0.0}, spread=1e-4)
    cells = pairs.table(results).assign(certain=[True, True, False])
    figures.pair_heatmap(cells, pairs.diagonal(results), ax)
    assert ticks(ax) == TASKS
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts[0, 1] == "+3.0\n++" and texts[1, 2] == "-1.0\n-"
    assert texts[2, 3].endswith(" ?") and texts[0, 0] == "+2.0"
    colors = {cell.get_xy(): matplotlib.colors.to_hex(cell.get_facecolor()) for cell in ax.patches}
    assert colors[-0.5, 0.5] == "#009e73" and colors[0.5, 1.5] == "#000000"
    assert len(texts) == len(colors) == len(TASKS) + 3


def test_lines_over_a_column_are_accuracies_or_paired_differences_with_bars(ax):
    table = sweeps.table(over_decays(), FAMILIES, "weight_decay")
    rows = table.query("base == 'fused' and source_family == 'digits'")
    figures.lines_over(table, "weight_decay", "accuracy", ax)
    assert len(ax.containers) == 5
    fused = next(one for one in ax.containers if one.get_label() == "fused from digits")
    assert fused.lines[0].get_ydata() == pytest.approx(rows["accuracy"].to_numpy())
    assert not fused.has_yerr
    ax.clear()
    figures.lines_over(table, "weight_decay", "difference", ax)
    fused = next(one for one in ax.containers if one.get_label() == "fused from digits")
    line, _, (segments,) = fused.lines
    assert line.get_ydata() == pytest.approx(rows["difference"].to_numpy())
    ends = np.array([segment[:, 1] for segment in segments.get_segments()])
    assert ends == pytest.approx(rows[["low", "high"]].to_numpy())


def test_figures_of_sizes_and_decays_have_their_own_ticks():
    table = sweeps.table(over_decays(), FAMILIES, "weight_decay")
    floor = table[table["base"] == "pretrained"].assign(base="random")
    for ax in figures.decay_figure(pd.concat([table, floor]), {0.0: 0.0, 1.0: 12.0}).axes:
        assert len(ax.containers) == len(table) / 2  # a line for each base model but random
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert labels == ["0\n(0 %)", "1\n(12 %)"]
    sizes = table.assign(source_size=table["weight_decay"].map({0.0: 50, 1.0: 4000}))
    for ax in figures.size_figure(sizes).axes:
        assert [label.get_text() for label in ax.get_xticklabels()] == ["50", "4,000"]
        assert ax.get_xscale() == "log"


def path_points():
    """A line of each of two kinds, on a task of its ends and an unseen one."""
    ends = [("pretrained", "mood"), ("pretrained", "topic"), ("mood", "topic")]
    tasks = [("mood", "dev", [4, 2, 0]), ("irony", "test", [9, 8, 7])]
    rows = [line(*ends, *task, [0.1, 0.5, 0.9]) for ends in ends for task in tasks]
    return paths.points(pd.DataFrame(rows))


def test_lines_of_a_kind_are_thin_and_their_mean_is_thick(ax):
    curves = paths.curves(path_points(), "loss").xs("pretrained to finetuned", level="kind")
    figures.line_curves(curves, ax)
    thick = [line for line in ax.lines if line.get_linewidth() == 3]
    assert [line.get_ydata().tolist() for line in thick] == [[4, 2, 0], [9, 8, 7]]
    assert [line.get_linestyle() for line in thick] == ["-", "--"]
    assert len(ax.lines) == 2 + 2 * 2


def test_path_figure_has_a_column_per_kind():
    figure = figures.path_figure(path_points())
    titles = [ax.get_title() for ax in figure.axes]
    two = ["pretrained to finetuned\n(2 lines)", "finetuned to finetuned\n(1 line)"]
    assert titles == [*two, "", ""]
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure.get_suptitle() == ""
    with_heads = figures.path_figure(path_points().assign(head=True))
    assert "a head is fitted" in with_heads.get_suptitle()


def test_weight_map_names_every_model(ax):
    places = np.array([[0.0, 0], [3, 4], [1.5, 2]])
    figures.weight_map(places, ["pretrained", "mood", "mean"], ax)
    assert [text.get_text() for text in ax.texts] == ["pretrained", "mood", "mean"]
    assert [line.get_xydata()[0].tolist() for line in ax.lines[1::2]] == places.tolist()
    assert [line.get_marker() for line in ax.lines[1::2]] == ["D", "s", "o"]


def test_weight_figure_states_what_two_dimensions_keep():
    figure = figures.weight_figure(Updates(["pretrained", "a", "b", "mean"], np.eye(4), 1.0))
    assert "preserve 67 %" in figure.axes[0].get_title()


def test_planner_figure_has_a_curve_per_spread_the_last_dashed():
    columns = ["guess", "published, independent", "published", "store", "store, on others"]
    curves = pd.DataFrame([[4, 3, 2, 1, 5]] * 2, index=[2, 5], columns=columns)
    (ax,) = figures.planner_figure(curves).axes
    drawn = {line.get_label(): line for line in ax.lines[:5]}
    assert list(drawn) == columns
    assert [drawn[name].get_ydata()[0] for name in columns] == [4, 3, 2, 1, 5]
    assert drawn["store, on others"].get_linestyle() == "--"
    assert drawn["store, on others"].get_color() == drawn["store"].get_color()
    assert [text.get_text()[-4:] for text in ax.texts] == ["+4.3", "+1.2"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "5"]


def test_squares_write_every_number(ax):
    names = ["a", "b"]
    matrix = pd.DataFrame([[np.nan, 1.25], [-0.001, 3]], names, names)
    figures.square(matrix, ax, decimals=1)
    assert [text.get_text() for text in ax.texts] == ["1.2", "0.0", "3.0"]
    assert ticks(ax) == names
