"""Figures from tidy results: functions that draw on an Axes and return it.

Colours are those of Okabe and Ito; marker shapes carry the same information, so that figures read
in grey.
"""

import io
import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator

from fusinglib.evaluation import pairs, paths, reference, tables, worlds
from fusinglib.evaluation.paths import MEAN, PRETRAINED
from fusinglib.evaluation.statistics import Difference

plt.rcParams |= {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # keep text as text
    "text.parse_math": False,  # task names are not formulas, whatever they contain
}

#: Colour and shape of each base model, in the order of drawing.
BASES = {
    "pretrained": ("#000000", "D"),
    "intertrained": ("#E69F00", "s"),
    "fused": ("#0072B2", "o"),
    "scaled single": ("#CC79A7", "v"),
    "placebo": ("#56B4E9", "P"),
    "random": ("#999999", "X"),
}
#: Colour and shape of each comparison.
COMPARISONS = {
    "fused - pretrained": ("#0072B2", "o"),
    "fused - intertrained": ("#009E73", "^"),
    "intertrained - pretrained": ("#E69F00", "s"),
    "pretrained - random": ("#999999", "D"),
    "fused - scaled single": ("#D55E00", "p"),
    "scaled single - pretrained": ("#CC79A7", "v"),
    "scaled single - intertrained": ("#8C6D31", "<"),
    "placebo - pretrained": ("#56B4E9", "P"),
}
#: Colour of a cell and of its text for each class of pairs.
PAIRS = {
    "better than both": ("#009E73", "black"),
    "better than their mean": ("#F0E442", "black"),
    "better than the worse": ("#D55E00", "white"),
    "worse than both": ("#000000", "white"),
    "": ("white", "black"),
}


#: Colours of what has no colour of its own.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#000000"]
#: Colour and shape of the curves of the seed planner, in their order.
SPREADS = [("#D55E00", "^"), ("#E69F00", "v"), ("#009E73", "s"), ("#0072B2", "o")]
#: Colour and dashes of the curves of a loss path.
CURVES: dict[str, tuple[str, Any]]
CURVES = {"trained on": ("#D55E00", "-"), "unseen": ("#0072B2", "--")}


def look_of(base):
    """Colour and shape of a base model; methods of fusing that have none of their own share one."""
    return BASES.get(base, ("#D55E00", "h"))


class NotebookFigure(Figure):
    """A Figure that a notebook shows as an image, even before pyplot has been set up there."""

    def _repr_png_(self):
        image = io.BytesIO()
        self.savefig(image, format="png", bbox_inches="tight")
        return image.getvalue()


def facets(columns, width, height, rows=1, **shared):
    """A figure for a notebook, and its axes, (rows, columns); inner axes share labels."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def forest(ax, labels):
    """Set up the rows of a forest plot: top down, each with its label, around a line at zero."""
    ax.axvline(0, color="black", linewidth=1, zorder=1)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def interval(ax, y, row, color, marker, size=7.0, width=2.0):
    """Draw an estimate with its interval; filled if the interval excludes zero."""
    fill = color if row.low > 0 or row.high < 0 else "white"
    ax.plot([row.low, row.high], [y, y], color=color, linewidth=width, zorder=2)
    mark = {"color": color, "markerfacecolor": fill, "markersize": size, "zorder": 3}
    ax.plot(row.estimate, y, marker, **mark)


METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
"""What a metric is called on an axis."""


def accuracy_by_base(results, targets, ax=None):
    """Test accuracy of every target from every base model, in percent: a row per base model.

    The large marker is the mean over targets; the small ones below it are the targets (means over
    their runs), each connected by a thin line; a cross means that pretrained does not beat the
    majority label (`tables.without_signal`). The bar is the 95 % interval of the difference from
    pretrained, drawn from pretrained's mean, the dotted line: if it reaches that line, there may be
    no difference. A base model with missing runs shows how many, and has no mean.

    Arguments: ``results`` as in `fusinglib.evaluation.tables`; ``targets``, for example
    ``families["nli"]``; ``ax``, by default the current one.

    Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    arrays = tables.run_arrays(results, targets)
    others = [base for base, _ in arrays if base not in BASES]
    order = [base for base in BASES if base != "random"] + [*dict.fromkeys(others), "random"]
    rows = sorted(arrays, key=lambda row: order.index(row[0]))
    by_target = 100 * np.array([arrays[row].mean(axis=(0, 1, 2)) for row in rows])
    silent = np.isin(targets, tables.without_signal(results))
    means = by_target.mean(axis=1)
    start = means[0]  # pretrained comes first

    below = np.arange(len(rows)) + 0.25  # so that targets do not hide the means
    ax.plot(by_target, below, color="0.85", linewidth=0.8, zorder=1)
    ax.axvline(start, color="black", linestyle=":", linewidth=1, zorder=2)
    for y, row in enumerate(rows):
        color, marker = look_of(row[0])
        small = {"color": color, "markersize": 4, "markerfacecolor": "white", "zorder": 3}
        ax.plot(by_target[y, ~silent], np.full((~silent).sum(), below[y]), marker, **small)
        if silent.any():
            ax.plot(by_target[y, silent], np.full(silent.sum(), below[y]), "x", **small)
        if y > 0:
            interval = worlds.difference(arrays[row], arrays[rows[0]])
            bar = start + 100 * np.array([interval.low, interval.high])
            ax.plot(bar, [y, y], color=color, linewidth=2.5, zorder=4)
        large = {"color": color, "markersize": 8, "markeredgecolor": "white", "zorder": 5}
        ax.plot(means[y], y, marker, **large)
        lacking = np.isnan(arrays[row]).sum()
        if lacking:
            note(ax, f"missing runs: {lacking}", y)
    ax.set_yticks(range(len(rows)), [" ".join(row).strip() for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.5)
    ax.set_xlabel(f"test {METRICS[tables.metric_of(results)]} (%)")
    return ax


def difference_intervals(differences, ax=None):
    """Forest plot of `fusinglib.evaluation.tables.differences`, in points: one row each, grouped by
    comparison.

    The marker is the estimate, filled if the 95 % interval excludes zero; the line is the interval;
    with many worlds, its thick part is the interval with these tasks. A row with missing runs shows
    how many.

    Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    labels, headings = [], []
    for comparison, group in differences.groupby("comparison", sort=False):
        color, marker = COMPARISONS.get(comparison, look_of(comparison))
        headings.append(len(labels))
        labels.append(comparison.replace("-", "−"))
        for row in group.itertuples():
            y = len(labels)
            labels.append(in_words(row))
            if "low_same" in differences:
                ax.plot([row.low_same, row.high_same], [y, y], color=color, linewidth=5, zorder=2)
            interval(ax, y, row, color, marker)
            if row.missing:
                note(ax, f"missing runs: {row.missing}", y)
    forest(ax, labels)
    for heading in headings:
        ax.get_yticklabels()[heading].set_fontweight("bold")
    ax.set_xlabel("difference (points) with 95 % interval; filled: excludes 0")
    return ax


def world_rows(rows, ax=None):
    """Forest plot of one comparison of `fusinglib.evaluation.worlds.by_world`: a row per world with
    the interval that it gives alone, and the mean of all with its intervals in both scopes.

    Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    comparison = rows["comparison"].iloc[0]
    color, marker = COMPARISONS.get(comparison, look_of(comparison))
    for y, row in enumerate(rows.itertuples()):
        whole = row.world in worlds.SCOPES
        look = (color, "D", 10, 4) if whole else (color, marker, 6, 1.5)
        interval(ax, y, row, *look)
    ax.axhline(len(rows) - len(worlds.SCOPES) - 0.5, color="0.8", linewidth=1)
    names = [row if row in worlds.SCOPES else f"world {row}" for row in rows["world"]]
    forest(ax, [textwrap.fill(name, 28) for name in names])
    ax.set_title(rows["comparison"].iloc[0].replace("-", "−"))
    return ax


def world_figure(by_world):
    """The comparisons of `fusinglib.evaluation.worlds.by_world` side by side, as `world_rows`."""
    groups = by_world.groupby("comparison", sort=False)
    height = 1.5 + 0.32 * len(by_world) / len(groups)
    figure, axes = facets(len(groups), 4 + 3 * len(groups), height, sharey=True)
    for ax, (_, rows) in zip(axes[0], groups, strict=True):
        world_rows(rows, ax)
    figure.supxlabel("points, with 95 % intervals; filled: excludes 0")
    return figure


def trait_figure(cells, correlations):
    """The gain of fusing against each trait: one marker per cell, shapes by source family.

    Arguments: ``cells`` and ``correlations`` of `fusinglib.evaluation.exploration`.
    """
    figure, (axes,) = facets(len(correlations), 3 * len(correlations), 3.6, sharey=True)
    colors = sns.color_palette(PALETTE, cells["source_family"].nunique())
    by_family = {"hue": "source_family", "style": "source_family", "palette": colors}
    for ax, (trait, row) in zip(axes, correlations.iterrows(), strict=True):
        ax.axhline(0, color="black", linestyle=":", linewidth=1)
        sns.scatterplot(
            cells, x=trait, y="gain", **by_family, s=20, alpha=0.6, legend=ax is axes[0], ax=ax
        )
        if trait == "target size":
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
        ax.set_title(
            f"ρ = {row.correlation:.2f} ({row.low:.2f} to {row.high:.2f})", fontsize="medium"
        )
    axes[0].set_ylabel("fused − pretrained (points)")
    handles, names = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    names = [f"sources: {name}" for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=6)
    return figure


def share_figure(shares):
    """Where the variance of each difference comes from: a bar per comparison, in percent.

    Arguments: ``shares``, a column per comparison, a row per source of uncertainty.
    """
    figure, ((ax,),) = facets(1, 9, 1.5 + 0.5 * len(shares.columns))
    bars = shares.rename(columns=lambda name: name.replace("-", "−")).T
    bars.plot.barh(stacked=True, color=PALETTE, edgecolor="white", width=0.8, ax=ax, legend=False)
    for bar, hatch in zip(ax.containers, ["", "//", "..", "xx", "\\\\"], strict=False):
        for patch in bar:
            patch.set_hatch(hatch)
    ax.invert_yaxis()
    ax.set(xlabel="share of the variance of the mean difference (%)", xlim=(0, 100), ylabel="")
    figure.legend(loc="outside upper center", ncols=len(shares))
    return figure


def in_words(row):
    """The label of a row of differences."""
    source = {"": "", "all": "mean of sources, "}.get(
        row.source_family, f"from {row.source_family}, "
    )
    return f"{source}on {row.target_family} ({counted(row.targets)})"


def counted(targets):
    """A number of targets in words."""
    return f"{targets} target" if targets == 1 else f"{targets} targets"


def note(ax, text, y):
    """Write a short text at the right end of row ``y``."""
    place = {"xy": (0.99, y), "xycoords": ax.get_yaxis_transform(), "ha": "right", "va": "center"}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    ax.annotate(text, **place, fontsize=9, bbox=box, zorder=6)


def family_figure(results, families):
    """A figure of `accuracy_by_base` for every target family, side by side.

    Arguments: as in `fusinglib.evaluation.tables`. Returns: a Figure that pyplot does not manage; a
    notebook shows it as a cell's last line or with ``display``.
    """
    count = len(families)
    figure, (axes,) = facets(count, max(5.5, 1.5 + 2.9 * count), 4.8, sharey=True)
    for ax, (family, targets) in zip(axes, families.items(), strict=True):
        accuracy_by_base(results, targets, ax)
        ax.set_title(f"{family} ({counted(len(targets))})")
    small = {"color": "black", "markersize": 4, "markerfacecolor": "white"}
    handles = [
        Line2D([], [], marker="o", linestyle="none", label="a target", **small),
        Line2D([], [], marker="o", linestyle="none", color="black", label="mean over targets"),
        Line2D([], [], color="black", linewidth=2.5, label="95 % interval of the difference"),
        Line2D([], [], color="black", linestyle=":", label="mean of pretrained"),
    ]
    columns = 4 if count > 2 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def difference_figure(differences):
    """A figure of `difference_intervals` alone, as tall as its rows need."""
    rows = len(differences) + differences["comparison"].nunique()
    figure, ((ax,),) = facets(1, 9, 1 + 0.28 * rows)
    difference_intervals(differences, ax)
    return figure


def method_figure(against, costs):
    """Base models minus the mean, best first: the thick line is the 95 % interval of a row alone,
    the thin one holds for all rows at once; the marker is filled if the thin one excludes zero. On
    the right is what each takes to make. Random is left out, since it lies too far off.

    Arguments: ``against`` and ``costs`` of `fusinglib.evaluation.ranking`.
    """
    rows = against.dropna(subset="estimate").drop(index="random", errors="ignore")
    figure, ((ax,),) = facets(1, 9, 1.2 + 0.3 * len(rows))
    for y, (base, row) in enumerate(rows.iterrows()):
        color, marker = look_of(base)
        ax.plot([row["low"], row["high"]], [y, y], color=color, linewidth=5, zorder=2)
        for_all = Difference(row["estimate"], row["low all"], row["high all"])
        interval(ax, y, for_all, color, marker, width=1.5)
        if base in costs.index:
            cost = costs.loc[base]
            texts = f", {cost['texts']:.0f} texts a model" if cost["texts"] else ""
            at = {"xycoords": ax.get_yaxis_transform(), "va": "center", "fontsize": 9}
            ax.annotate(f"{cost['seconds']:.2g} s{texts}", (1.02, y), **at)
    forest(ax, [f"{base} − mean" for base in rows.index])
    ax.set_xlabel("points; thick: 95 % interval, thin: for all rows at once; filled: excludes 0")
    return figure


#: Colour, shape and label of means with their own norm and with that of the mean of all.
NORMS = {
    "own": ("#D55E00", "^", "with their own norm"),
    "fixed": ("#0072B2", "o", "with the norm of the mean of all"),
}


def shrinkage_figure(curves, counts):
    """Gains over pretrained: on the left against the norm of the update, for the mean and for the
    intertrained model, their scales beside the markers; on the right against the number of models
    averaged. Bands are 95 % intervals.

    Arguments: ``curves`` and ``by_count`` of `fusinglib.evaluation.shrinkage`.
    """
    figure, (axes,) = facets(2, 11, 4.4, sharey=True)
    for base, part in curves.groupby("base"):
        color, marker = BASES[base]
        gain_curve(axes[0], part["update"], part, color, marker, base)
        above = 7 if base == "fused" else -13  # so that the scales of the two stay apart
        for row in part.itertuples() if len(part) > 1 else ():
            at = {"xytext": (0, above), "textcoords": "offset points", "ha": "center"}
            axes[0].annotate(f"{row.scale:g}", (row.update, row.gain), color=color, size=8, **at)
    log_ticks(axes[0], "x")
    axes[0].set(xlabel="norm of the update (% of the pretrained weights); numbers: scale")
    axes[0].set_ylabel("gain over pretrained (points)")
    places = sorted(counts["models"].unique())
    for norm, part in counts.groupby("norm"):
        at = part["models"].map(places.index)
        gain_curve(axes[1], at, part, *NORMS[norm])
    names = ["all" if np.isinf(count) else f"{count:.0f}" for count in places]
    axes[1].set_xticks(range(len(places)), names)
    axes[1].set_xlabel("models averaged")
    for ax in axes:
        ax.axhline(0, color="black", linestyle=":", linewidth=1)
        ax.legend()
    return figure


def gain_curve(ax, x, rows, color, marker, label):
    """A curve of ``gain`` with a band from ``low`` to ``high``; a single point with a bar."""
    ax.fill_between(x, rows["low"], rows["high"], color=color, alpha=0.15, linewidth=0)
    if len(rows) == 1:
        ax.vlines(x, rows["low"], rows["high"], color=color, linewidth=1)
    ax.plot(x, rows["gain"], color=color, marker=marker, label=label)


def pair_heatmap(cells, diagonal, ax=None):
    """Figure 2: the gain of every fused pair over pretrained, in points, coloured by its class.

    The sign beside the gain shows the class as well; a ``?`` means that it changes within one
    standard error. With many worlds, the percentage of worlds in which the pair is better than both
    follows. The diagonal has the gain of the single intertrained model, over other targets than the
    pairs' (see `fusinglib.evaluation.pairs.diagonal`).

    Arguments: ``cells`` and ``diagonal`` of `fusinglib.evaluation.pairs`. Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    names = list(diagonal.index)
    for at, gain in enumerate(diagonal["estimate"]):
        paint(ax, at, at, f"{gain:+.1f}", "0.9", "black")
    for pair in cells.itertuples():
        row, column = sorted((names.index(pair.one), names.index(pair.two)), reverse=True)
        color, ink = PAIRS[pair.rank]
        sign = pairs.CLASSES.get(pair.rank, "–")
        uncertainty = "" if pair.certain else " ?"
        shares = f"\n{pair.better_than_both:.0f} %" if "better_than_both" in cells else ""
        paint(ax, column, row, f"{pair.gain:+.1f}\n{sign}{uncertainty}{shares}", color, ink)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_aspect("equal")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def paint(ax, x, y, text, color, ink):
    """Draw one cell of a heatmap with its text."""
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white"))
    ax.text(x, y, text, color=ink, ha="center", va="center")


def pair_figure(cells, diagonal):
    """A figure of `pair_heatmap` with its legend in words."""
    side = 2 + 0.8 * len(diagonal)
    figure, ((ax,),) = facets(1, max(7.5, side + 2), side)
    pair_heatmap(cells, diagonal, ax)
    handles = [
        Patch(facecolor=PAIRS[name][0], edgecolor="0.5", label=f"{sign}  {name}")
        for name, sign in pairs.CLASSES.items()
    ]
    handles.append(Patch(facecolor="0.9", edgecolor="0.5", label="a single model"))
    figure.legend(handles=handles, loc="outside right upper", title="the fused pair is")
    return figure


def lines_over(table, column, value, ax=None, log=False):
    """A line per base model over a column that varies: its ``accuracy`` in percent, or its paired
    ``difference`` from pretrained in points, with 95 % intervals.

    Base models are placed side by side, so that no bar hides another.

    Arguments: ``table`` of `fusinglib.evaluation.sweeps.table`; ``column``; ``value``; ``log``:
    whether the column's axis is logarithmic. Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    for number, ((base, source), part) in enumerate(
        table.groupby(["base", "source_family"], sort=False)
    ):
        color, marker = look_of(base)
        places = part[column] * 1.06**number if log else part[column] + 0.05 * number
        bars = None
        if value == "difference":
            bars = [part["difference"] - part["low"], part["high"] - part["difference"]]
        ax.errorbar(
            places, part[value], bars, color=color, marker=marker, capsize=3, elinewidth=1.5,
            linestyle=":" if base == "pretrained" else "-",
            label=f"{base} from {source}" if source else base,
        )  # fmt: skip
    ax.set_xscale("log" if log else "linear")
    return ax


def over_figure(table, column, label, ticks, log=False):
    """Accuracy over a column that varies, and beside it the paired differences from pretrained.
    Random weights, far below all others, are left out.

    Arguments: as of `lines_over`; the column's ``label``; ``ticks``, its values with their labels.
    """
    table = table[table["base"] != "random"]
    figure, ((left, right),) = facets(2, 10, 4.5)
    lines_over(table, column, "accuracy", left, log).set_ylabel("test score (%)")
    lines_over(table, column, "difference", right, log)
    right.axhline(0, color="black", linestyle=":", linewidth=1)
    right.set_ylabel("paired difference from pretrained (points)")
    for ax in (left, right):
        ax.set_xticks(list(ticks), list(ticks.values()))
        ax.minorticks_off()
    figure.supxlabel(label, fontsize="medium")
    lines, labels = left.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=3)
    return figure


def size_figure(table):
    """Figure 3: `over_figure` of the source size, on a logarithmic axis."""
    ticks = {size: f"{size:,}" for size in sorted(table["source_size"].unique())}
    label = "training examples per source model"
    return over_figure(table, "source_size", label, ticks, log=True)


def decay_figure(table, shares):
    """Table 2 as a picture: `over_figure` of the weight decay, its values at equal distances.

    Arguments: ``shares``: decay -> the share of the weights that it removes, in percent.
    """
    decays = sorted(table["weight_decay"].unique())
    places = table.assign(place=table["weight_decay"].map(decays.index))
    ticks = {i: f"{decay:g}\n({shares[decay]:.2g} %)" for i, decay in enumerate(decays)}
    return over_figure(places, "place", "weight decay (share of the weights it removes)", ticks)


def learning_curves(histories, steps=None):
    """Training loss and dev accuracy of every finetuning: thin lines for seeds, a thick one for
    their mean.

    Arguments: ``histories`` of `fusinglib.evaluation.playground`; ``steps``, where the axis ends
    (by default with the last evaluation). Returns: a Figure.
    """
    figure, (axes,) = facets(2, 10, 4)
    labels = {"loss": "training loss (nats)", "accuracy": "dev score (%)"}
    for ax, (value, label) in zip(axes, labels.items(), strict=True):
        for base, part in histories.groupby("base", sort=False):
            color, marker = BASES[base]
            curves = part.pivot(index="step", columns="seed", values=value)
            ax.plot(curves, color=color, linewidth=0.7, alpha=0.5)
            mean = {"color": color, "marker": marker, "linewidth": 2.5, "label": base}
            ax.plot(curves.mean(axis=1), gid=f"{value}-{base}", **mean)
        ax.set(xlabel="batches", ylabel=label, xlim=(0, steps))
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3)
    return figure


def line_curves(curves, ax=None):
    """The curves of the lines of one kind: thin for single lines, thick for their mean.

    Arguments: ``curves`` of `fusinglib.evaluation.paths.curves`, of one kind. Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    for tasks, part in curves.groupby(level="tasks", sort=False):
        color, dashes = CURVES[tasks]
        if len(part) > 1:
            ax.plot(part.columns, part.T, color=color, linestyle=dashes, linewidth=0.7, alpha=0.5)
        mean = part.mean(skipna=False)
        ax.plot(part.columns, mean, color=color, linestyle=dashes, linewidth=3, label=tasks)
    return ax


def path_figure(table):
    """Loss and accuracy along the straight lines, one column per kind of line; says if heads were
    fitted.

    Arguments: ``table`` of `fusinglib.evaluation.paths.points`. Returns: a Figure.
    """
    values = {"loss (nats)": paths.curves(table, "loss")}
    values["accuracy (%)"] = 100 * paths.curves(table, "accuracy")
    kinds = [kind for kind in paths.KINDS if (table["kind"] == kind).any()]
    figure, axes = facets(len(kinds), 11, 5.5, rows=2, sharex=True, sharey="row")
    for row, (label, curves) in zip(axes, values.items(), strict=True):
        row[0].set_ylabel(label)
        for ax, kind in zip(row, kinds, strict=True):
            line_curves(curves.xs(kind, level="kind"), ax)
    for ax, kind in zip(axes[0], kinds, strict=True):
        count = table[table["kind"] == kind].groupby(["start", "end", "source_seed"]).ngroups
        ax.set_title(f"{kind}\n({count} line{'s' * (count > 1)})")
    axes[1, 0].set_xticks([0, 0.5, 1], ["start", "½", "end"])
    if table["head"].any():
        figure.suptitle("a head is fitted on the frozen body at every position", fontsize="medium")
    handles = [
        Line2D([], [], color=color, linestyle=dashes, linewidth=3, label=f"tasks {name}")
        for name, (color, dashes) in CURVES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def weight_map(coordinates, names, ax=None):
    """Models as points of a plane: pretrained, finetuned and mean, by the names of their ends.

    Arguments: ``coordinates`` (models, 2), e.g. of `Updates.plane`. Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    base = {PRETRAINED: "pretrained", MEAN: "fused"}
    start = coordinates[list(names).index(PRETRAINED)]
    for name, place in zip(names, coordinates, strict=True):
        color, marker = BASES[base.get(name, "intertrained")]
        ax.plot(*zip(start, place, strict=True), color="0.8", linewidth=1, zorder=1)
        ax.plot(*place, marker, color=color, markersize=9, markeredgecolor="white", zorder=2)
        below = name == MEAN  # which is near the others' lines
        text = {"textcoords": "offset points", "xytext": (7, -13 if below else 5), "zorder": 3}
        ax.annotate(name, place, fontweight="bold" if name in base else "normal", **text)
    ax.set_aspect("equal")
    ax.margins(0.15)
    return ax


def weight_figure(updates):
    """The weight space: `weight_map`, and the fraction of the distances that it preserves.

    Arguments: ``updates`` of `fusinglib.fusion.geometry`. Returns: a Figure.
    """
    figure, ((ax,),) = facets(1, 7.5, 5.5)
    coordinates, share = updates.plane()
    weight_map(coordinates, updates.names, ax)
    ax.set_title(f"two dimensions preserve {100 * share:.0f} % of the squared distances")
    ax.set_xlabel("first dimension (Euclidean distance of weights)")
    ax.set_ylabel("second dimension")
    return figure


def square(matrix, ax=None, decimals=1):
    """A heatmap of numbers between models, each written in its cell; NaN stays empty.

    Arguments: ``matrix``, a square DataFrame. Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    sns.heatmap(
        matrix, cmap="cividis", annot=True, fmt=f"z.{decimals}f", annot_kws={"fontsize": 8},
        square=True, linewidths=0.5, cbar=False, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="", ylabel="")
    ax.set_yticks(np.arange(len(matrix)) + 0.5, matrix.index, rotation=0)
    ax.set_xticks(np.arange(len(matrix)) + 0.5, matrix.index, rotation=45, ha="right")
    ax.tick_params(length=0)
    return ax


def squares_figure(matrices, decimals=(1, 1)):
    """`square` heatmaps side by side, by their titles."""
    side = 1.6 + 0.48 * len(next(iter(matrices.values())))
    figure, (axes,) = facets(len(matrices), len(matrices) * side, side)
    for ax, (title, matrix), places in zip(axes, matrices.items(), decimals, strict=True):
        square(matrix, ax, places).set_title(title)
    return figure


def planner_figure(curves):
    """What different numbers of seeds detect, one curve per spread, on logarithmic axes.

    Dotted lines: the paper's gains of fused over pretrained (Table 1). The last curve, of the
    chosen spread on other targets, is dashed and has the colour of the one before it.

    Arguments: ``curves`` of `fusinglib.evaluation.planner`. Returns: a Figure.
    """
    figure, ((ax,),) = facets(1, 8.5, 4.8)
    *names, others = curves
    for name, (color, marker) in zip(names, SPREADS, strict=True):
        ax.plot(curves.index, curves[name], color=color, marker=marker, label=name)
    dashed = {"color": color, "marker": marker, "linestyle": "--", "linewidth": 2.5}
    ax.plot(curves.index, curves[others], label=others, **dashed)
    table = reference.TABLE_1
    for family in ("general", "average"):
        gain = table.loc[("fused", "general"), family] - table.loc[("pretrained", ""), family]
        ax.axhline(gain, color="0.4", linestyle=":")
        ax.annotate(
            f"the paper,\n{family}: {gain:+.1f}", (1, gain), xycoords=("axes fraction", "data"),
            xytext=(4, 0), textcoords="offset points", va="center", color="0.3",
        )  # fmt: skip
    ax.set(xscale="log", xlabel="seeds", ylabel="detectable difference (points)")
    ax.set_xticks(curves.index, [str(count) for count in curves.index])
    log_ticks(ax, "y")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def log_ticks(ax, name):
    """Scale an axis ("x" or "y") logarithmically, with ticks at 1, 2, 5, 10, ..."""
    ax.set(**{f"{name}scale": "log"})
    ax.minorticks_off()
    axis = getattr(ax, f"{name}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
