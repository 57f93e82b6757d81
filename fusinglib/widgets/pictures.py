"""The playground's live pictures, as SVG in the colours of the page's theme: quick to draw, and
read aloud by screen readers."""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from fusinglib.fusion.geometry import Updates

INK, FAINT = "var(--jp-ui-font-color1, #222)", "var(--jp-ui-font-color3, #888)"
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
"""Okabe and Ito's colours, which colour-blind people tell apart; marks differ as well."""

WIDE = 12
"""Up to so many models, cells of the cosines hold their numbers."""


class Start(NamedTuple):
    """A base model among the models it is made of: `pretrained + scale * sum_i share_i update_i`.

    `norm` is that of its update relative to the pretrained weights, `cosines` are those with the
    models' updates, in their order.
    """

    name: str
    shares: np.ndarray
    scale: float
    norm: float
    cosines: np.ndarray


def start(name: str, updates: Updates, shares: Sequence[float], scale: float) -> Start:
    """What is known of a base model before anything is fused, from inner products alone."""
    parts = scale * np.asarray(shares, dtype=float)
    with np.errstate(all="ignore"):
        length = float(np.sqrt(max(parts @ updates.products @ parts, 0.0)))
        cosines = updates.products @ parts / (updates.norms * length)
    return Start(name, np.asarray(shares), scale, length / updates.origin, cosines)


def weight_map(updates: Updates, made: Start | None, size: tuple[int, int] = (420, 320)) -> str:
    """The pretrained model, the models, and the base model made of them, in the two dimensions that
    best preserve distances."""
    names = ["pretrained", *updates.names]
    products = np.pad(updates.products, ((1, 0), (1, 0)))  # the pretrained model's update is zero
    points, kept = Updates(names, products, updates.origin).plane()
    if made is not None:
        way = made.scale * made.shares
        points = np.vstack([points, (1 - way.sum()) * points[0] + way @ points[1:]])
    width, height = size
    span = max(np.ptp(points, axis=0).max(), 1e-12)
    scale = (min(width, height) - 80) / span
    middle = (points.min(0) + points.max(0)) / 2
    places = (points - middle) * scale * [1, -1] + [width / 2 - 20, height / 2]
    parts = []
    if made is not None:
        (x, y), (u, v) = places[0], places[-1]
        parts.append(f'<path d="M{x:.1f} {y:.1f}L{u:.1f} {v:.1f}" stroke="{FAINT}" '
                     'stroke-dasharray="4 3"/>')  # fmt: skip
    for i, name in enumerate(names):
        about = "pretrained"
        if i:
            about = (
                f"{name}: update {100 * updates.norms[i - 1] / updates.origin:.2g} % of the norm"
            )
            if made is not None:
                about += f", cosine with {made.name} {made.cosines[i - 1]:.2f}"
        mark = _square if i == 0 else _circle
        parts.append(_named(mark(*places[i]), name, about, *places[i]))
    if made is not None:
        about = f"{made.name}: update {100 * made.norm:.2g} % of the norm"
        x, y = places[-1]
        away = -1 if x < places[0][0] else 1  # beside the pretrained model's name, not over it
        parts.append(_named(_diamond(x, y), made.name, about, x, y, away))
    said = f"The weight space: {len(updates.names)} models"
    said += f" and {made.name}" if made is not None else ""
    foot = f"two dimensions preserve {100 * kept:.0f} % of the squared distances"
    parts.append(f'<text x="6" y="{height - 6}" font-size="11" fill="{FAINT}">{foot}</text>')
    return _svg(said, size, parts)


def cosines(updates: Updates, size: int = 320) -> str:
    """The cosines between the models' updates: blue for the same direction, orange for the opposite
    one."""
    found, count = updates.cosines, len(updates.names)
    cell = (size - 90) / max(count, 1)
    parts = []
    for i, name in enumerate(updates.names):
        text = html.escape(name if len(name) < 15 else name[:14] + "…")
        parts.append(f'<text x="86" y="{(i + 0.5) * cell + 4:.1f}" font-size="11" fill="{INK}" '
                     f'text-anchor="end">{text}</text>')  # fmt: skip
        for j in range(count):
            value = float(np.nan_to_num(found[i, j]))
            x, y = 90 + j * cell, i * cell
            about = html.escape(f"{name} and {updates.names[j]}: cosine {value:.2f}")
            colour = BLUE if value >= 0 else ORANGE
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}" height="{cell:.1f}" '
                f'fill="{colour}" fill-opacity="{0.08 + 0.72 * min(abs(value), 1):.2f}">'
                f"<title>{about}</title></rect>"
            )
            if count <= WIDE:
                ink = "#fff" if abs(value) > 0.6 else INK
                parts.append(
                    f'<text x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}" font-size="10" '
                    f'fill="{ink}" text-anchor="middle" pointer-events="none">{value:.2f}</text>'
                )
    return _svg("Cosines between the models' updates", (size, int(count * cell) + 4), parts)


def arms(table: pd.DataFrame, seeds: Mapping[str, Sequence[float]], unit: str = "%") -> str:
    """Base models as rows: a dot with its interval, a small dot for every seed, and the numbers.

    `table` holds `accuracy`, `low` and `high` of each base model, `seeds` the values of its runs.
    """
    rows = table.dropna(subset=["accuracy"])
    width, row, left, right = 640, 34, 110, 400
    numbers = [*rows["accuracy"], *rows["low"].dropna(), *rows["high"].dropna()]
    numbers += [value for name in rows.index for value in seeds.get(name, ())]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    span = max(high - low, 1e-9)

    def across(value: float) -> float:
        return left + (value - low) / span * (right - left)

    parts = []
    for i, name in enumerate(map(str, rows.index)):
        mean, least, most = (float(rows[column].iloc[i]) for column in ("accuracy", "low", "high"))
        y, colour = i * row + row / 2, {"pretrained": INK, "fused": ORANGE}.get(name, BLUE)
        said = f"{mean:.1f} {unit}"
        if not np.isnan(least):
            said += f" ({least:.1f} to {most:.1f})"
            parts.append(
                f'<path d="M{across(least):.1f} {y}H{across(most):.1f}" stroke="{colour}" '
                'stroke-width="2"/>'
            )
        for number, value in enumerate(seeds.get(name, ()), 1):
            parts.append(
                f'<circle cx="{across(value):.1f}" cy="{y + 9}" r="2.5" fill="{colour}" '
                f'fill-opacity="0.5"><title>run {number}: {value:.1f} {unit}</title></circle>'
            )
        about = html.escape(f"{name}: {said}")
        parts.append(
            f'<circle cx="{across(mean):.1f}" cy="{y}" r="5" fill="{colour}">'
            f"<title>{about}</title></circle>"
        )
        parts.append(_text(left - 12, y + 4, name, "end") + _text(right + 20, y + 4, said))
    means = zip(rows.index, rows["accuracy"], strict=True)
    said = "; ".join(f"{name} {mean:.1f} {unit}" for name, mean in means)
    return _svg(f"Test accuracy: {said}", (width, max(len(rows), 1) * row), parts)


CURVES = {
    "pretrained": (INK, ""),
    "intertrained": (BLUE, "6 3"),
    "fused": (ORANGE, "2 2"),
}
"""Colour and dashes of the curves from each base model."""


def curves(histories: pd.DataFrame) -> str:
    """Training loss and dev accuracy of every finetuning, over batches: a line per run; a point
    says what it is when it is pointed at. `histories` are those of `playground`."""
    width, height, left = 340, 220, 44
    panels = {"loss": "training loss (nats)", "accuracy": "dev score (%)"}
    last = histories.groupby("base", sort=False)["accuracy"].last()
    said = ", ".join(f"{base} {number:.1f} %" for base, number in last.items()) or "nothing yet"
    parts, steps = [], max([1, *(int(step) for step in histories["step"])])
    for number, (value, label) in enumerate(panels.items()):
        known = [float(one) for one in histories[value].dropna()] or [0.0, 1.0]
        low, span, start = min(known), max(np.ptp(known), 1e-9), number * width + left

        def place(step: float, y: float, low=low, span=span, start=start) -> tuple[float, float]:
            across = start + step / steps * (width - left - 16)
            return float(across), float(24 + (1 - (y - low) / span) * (height - 60))

        parts += _axes(place, (low, max(known)), steps, label)
        for base, seed in histories[["base", "seed"]].drop_duplicates().itertuples(index=False):
            run = histories.query("base == @base and seed == @seed").dropna(subset=[value])
            pairs = run[["step", value]].to_numpy(dtype=float)
            points = [(*place(step, y), int(step), y) for step, y in pairs]
            parts += _curve(base, f"{base}, seed {seed}", points, value)
    for number, (base, (colour, dashes)) in enumerate(CURVES.items()):
        x = left + 150 * number
        parts.append(
            f'<path d="M{x} {height + 6}h24" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dashes}"/>' + _text(x + 30, height + 10, base)
        )
    return _svg(f"training loss, and dev accuracy: {said}", (2 * width, height + 16), parts)


def _axes(place, ends: tuple[float, float], steps: int, label: str) -> list[str]:
    """The frame of a panel, with the numbers at its ends."""
    (x, bottom), (right, top) = place(0, ends[0]), place(steps, ends[1])
    return [
        f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}H{right:.1f}" stroke="{FAINT}" fill="none"/>',
        _text(x, top - 10, label),
        _text(x - 4, top + 4, f"{ends[1]:.3g}", "end"),
        _text(x - 4, bottom + 4, f"{ends[0]:.3g}", "end"),
        _text(x, bottom + 18, "0"),
        _text(right, bottom + 18, f"{steps} batches", "end"),
    ]


def _curve(base: str, name: str, points: list, value: str) -> list[str]:
    """The line of one run, and a mark with a tooltip for each of its evaluations."""
    colour, dashes = CURVES.get(base, (GREEN, ""))
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y, _, _ in points)
    unit = " %" if value == "accuracy" else ""
    marks = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}">'
        f"<title>{html.escape(name)}, after {step} batches: {number:.3g}{unit}</title></circle>"
        for x, y, step, number in points
    ]
    return [f'<path class="{value}-{base}" d="M{line}" fill="none" stroke="{colour}" '
            f'stroke-width="1.5" stroke-dasharray="{dashes}"/>', *marks]  # fmt: skip


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" fill="{INK}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def _named(mark: str, name: str, about: str, x: float, y: float, side: int = 1) -> str:
    """A mark with its name on its right, or left (-1), and more when it is pointed at."""
    text = html.escape(name if len(name) < 25 else name[:24] + "…")
    return (
        f'<g><title>{html.escape(about)}</title>{mark}<text x="{x + 9 * side:.1f}" '
        f'y="{y + 4:.1f}" text-anchor="{"start" if side > 0 else "end"}" font-size="11" '
        f'fill="{INK}">{text}</text></g>'
    )


def _circle(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{BLUE}"/>'


def _square(x: float, y: float) -> str:
    return f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" fill="{INK}"/>'


def _diamond(x: float, y: float) -> str:
    return f'<path d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z" fill="{ORANGE}"/>'


def _svg(label: str, size: tuple[int, int], parts: Sequence[str]) -> str:
    width, height = size
    return (
        f'<svg role="img" aria-label="{html.escape(label)}" viewBox="0 0 {width} {height}" '
        f'style="max-width: {width}px; width: 100%" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(parts)}</svg>"
    )
