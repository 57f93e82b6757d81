"""Learning curves in SVG: drawn anew in a moment, in the colours of the page's theme."""

import html

import pandas as pd

from fusinglib.evaluation.figures import BASES
from fusinglib.evaluation.playground import BASES as NAMES

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 360, 200, 46, 30, 14
"""Of one panel, in pixels, and of what is kept free around its curves."""

DASHES = {"pretrained": "2 3", "intertrained": "7 4", "fused": ""}
"""Tell the base models apart without colour."""

PANELS = {"loss": "training loss (nats)", "accuracy": "dev accuracy (%)"}


def learning_curves(histories: pd.DataFrame, steps: int) -> str:
    """Two panels, loss and dev accuracy, the mean over the seeds of each base model, as HTML with
    the numbers in a table below.

    Arguments: `histories` of `fusinglib.evaluation.playground`; `steps`, where the axis ends.
    """
    means = histories.groupby(["base", "step"], sort=False)[list(PANELS)].mean()
    parts = [_panel(means[value], value, steps) for value in PANELS]
    legend = " ".join(_key(base) for base in NAMES)
    return (
        f"<div style='color: var(--jp-ui-font-color1, currentColor)'>{legend}<br>"
        f"{''.join(parts)}<details><summary>numbers</summary>{_table(histories)}</details></div>"
    )


def _colour(base: str) -> str:
    colour, _ = BASES[base]
    return "currentColor" if colour == "#000000" else colour


def _key(base: str) -> str:
    line = _line([(0, 8), (34, 8)], base)
    return f"<svg width='36' height='16' aria-hidden='true'>{line}</svg> {base} &nbsp;&nbsp;"


def _line(points: list[tuple[float, float]], base: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = f"stroke='{_colour(base)}' stroke-width='2.5' stroke-dasharray='{DASHES[base]}'"
    return f"<polyline points='{places}' fill='none' {style}/>"


def _panel(means: pd.Series, value: str, steps: int) -> str:
    low, high = (means.min(), means.max()) if len(means) else (0.0, 1.0)
    room = 0.05 * (high - low) or 0.5
    low, high = low - room, high + room

    def place(step: float, number: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 12) * step / steps
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - number) / (high - low)

    lines, said = [], []
    for base in NAMES:
        if base in means.index.unique("base"):
            curve = means[base]
            points = [place(step, number) for step, number in curve.items()]
            lines.append(_line(points, base))
            lines += [
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{_colour(base)}'/>"
                for x, y in points
            ]
            said.append(f"{base} {curve.iloc[-1]:.2f}")
    texts = [_text(WIDTH / 2, HEIGHT - 1, "batches", "middle"), _text(LEFT + 6, 11, PANELS[value])]
    for number in (low + room, high - room):
        texts.append(_text(LEFT - 6, place(0, number)[1] + 4, f"{number:.3g}", "end"))
    for step in (0, steps):
        texts.append(_text(place(step, low)[0], HEIGHT - 14, str(step), "middle"))
    (left, bottom), (right, top) = place(0, low), place(steps, high)
    axes = f"<path d='M{left} {top}V{bottom}H{right}' fill='none' stroke='currentColor'/>"
    label = html.escape(f"{PANELS[value]}: {', '.join(said) or 'nothing yet'}")
    return (
        f"<svg width='{WIDTH}' height='{HEIGHT}' role='img' aria-label='{label}' "
        f"data-curve='{value}' font-size='11' fill='currentColor'>"
        f"{axes}{''.join(texts)}{''.join(lines)}</svg>"
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{words}</text>"


def _table(histories: pd.DataFrame) -> str:
    """The numbers of the curves, a row per evaluation."""
    return histories.to_html(index=False, float_format="{:.3g}".format, border=0)
