"""Figures from tidy results: functions that draw on an Axes and return it.

Colours are those of Okabe and Ito; the shape of the mark tells the same, so that all reads in grey.
"""

import io

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fusinglib import statistics, tables

#: Colour and shape of each base model, in the order of drawing.
BASES = {
    "pretrained": ("#000000", "D"),
    "intertrained": ("#E69F00", "s"),
    "fused": ("#0072B2", "o"),
    "random": ("#999999", "X"),
}
#: Colour and shape of each comparison.
COMPARISONS = {
    "fused - pretrained": ("#0072B2", "o"),
    "fused - intertrained": ("#009E73", "^"),
    "intertrained - pretrained": ("#E69F00", "s"),
    "pretrained - random": ("#999999", "D"),
}


class NotebookFigure(Figure):
    """A Figure that a notebook shows as an image, even before pyplot has been set up there."""

    def _repr_png_(self):
        image = io.BytesIO()
        self.savefig(image, format="png")
        return image.getvalue()


def accuracy_by_base(results, targets, ax=None):
    """Test accuracy of every target from every base model, in percent: a row per base model.

    The large mark is the mean over targets; the small ones under it are the targets (means over
    their runs), joined by a thin line each. The bar is the 95 % interval of the difference from
    pretrained, set off from pretrained's mean, the dotted line: where it reaches that line, the
    difference could be none. A base model with missing runs says how many and has no mean.

    Arguments: ``results`` as in `fusinglib.tables`; ``targets``, e.g. ``families["nli"]``; ``ax``,
    by default the current one.

    Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    arrays = tables.run_arrays(results, targets)
    rows = sorted(arrays, key=lambda row: list(BASES).index(row[0]))
    by_target = 100 * np.array([arrays[row].mean(axis=(0, 1)) for row in rows])
    means = by_target.mean(axis=1)
    start = means[0]  # pretrained comes first

    below = np.arange(len(rows)) + 0.25  # so that targets do not hide the means
    ax.plot(by_target, below, color="0.85", linewidth=0.8, zorder=1)
    ax.axvline(start, color="black", linestyle=":", linewidth=1, zorder=2)
    for y, row in enumerate(rows):
        color, marker = BASES[row[0]]
        small = {"color": color, "markersize": 4, "markerfacecolor": "white", "zorder": 3}
        ax.plot(by_target[y], np.full(len(targets), below[y]), marker, **small)
        if y > 0:
            interval = statistics.paired_difference(arrays[row], arrays[rows[0]])
            bar = start + 100 * np.array([interval.low, interval.high])
            ax.plot(bar, [y, y], color=color, linewidth=2.5, zorder=4)
        large = {"color": color, "markersize": 8, "markeredgecolor": "white", "zorder": 5}
        ax.plot(means[y], y, marker, **large)
        lacking = np.isnan(arrays[row]).sum()
        if lacking:
            note(ax, f"missing runs: {lacking}", y)
    ax.set_yticks(range(len(rows)), [" ".join(row).strip() for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.5)
    ax.set_xlabel("test accuracy (%)")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def difference_intervals(differences, ax=None):
    """Forest plot of `fusinglib.tables.differences`, in points: a row each, grouped by comparison.

    The mark is the estimate, filled where the 95 % interval leaves out zero; the line is the
    interval. A row with missing runs says how many.

    Returns: the Axes.
    """
    ax = plt.gca() if ax is None else ax
    ax.axvline(0, color="black", linewidth=1, zorder=1)
    labels, headings = [], []
    for comparison, group in differences.groupby("comparison", sort=False):
        color, marker = COMPARISONS[comparison]
        headings.append(len(labels))
        labels.append(comparison.replace("-", "−"))
        for row in group.itertuples():
            y = len(labels)
            labels.append(in_words(row))
            ax.plot([row.low, row.high], [y, y], color=color, linewidth=2, zorder=2)
            fill = color if row.low > 0 or row.high < 0 else "white"
            mark = {"color": color, "markerfacecolor": fill, "markersize": 7, "zorder": 3}
            ax.plot(row.estimate, y, marker, **mark)
            if row.missing:
                note(ax, f"missing runs: {row.missing}", y)
    ax.set_yticks(range(len(labels)), labels)
    for heading in headings:
        ax.get_yticklabels()[heading].set_fontweight("bold")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_xlabel("difference in test accuracy (points) with 95 % interval; filled: leaves out 0")
    ax.spines[["top", "right", "left"]].set_visible(False)
    return ax


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

    Arguments: as in `fusinglib.tables`. Returns: a Figure, which pyplot does not know of; a
    notebook shows it where it is a cell's last line or in ``display``.
    """
    count = len(families)
    figure = NotebookFigure(figsize=(max(5.5, 1.5 + 2.9 * count), 4.8), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
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
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    return figure


def difference_figure(differences):
    """A figure of `difference_intervals` alone, as high as its rows need."""
    rows = len(differences) + differences["comparison"].nunique()
    figure = NotebookFigure(figsize=(9, 1 + 0.28 * rows), layout="constrained")
    difference_intervals(differences, figure.subplots())
    return figure
