"""What was tried on a target before: a row each, to bring back, compare, copy and save."""

import base64
import html
from collections.abc import Callable
from typing import Any, NamedTuple

import ipywidgets as ipw
import numpy as np
import pandas as pd

from fusinglib.evaluation.tried import COLUMNS

ORDERS = {
    "best first": ("gain", False),
    "fewest models": ("count", True),
    "method": ("method", True),
    "cheapest": ("seconds", True),
}
"""Orders of the rows: the column they sort by, and whether it ascends."""


class Actions(NamedTuple):
    """What the buttons of a row do, each called with its key.

    `settings` gives the settings that repeat it, or None if its models are not in the list;
    `bring_back` ticks them; `save` copies the model; `paired` compares two rows (`tried.paired`).
    """

    settings: Callable[[str], Any]
    bring_back: Callable[[str], None]
    save: Callable[[str], None]
    paired: Callable[[str, str], dict[str, Any]]
    code: Callable[[Any], str]


class History(ipw.VBox):
    """The base models of `tried.tried`, a row each, and the comparison of the two that are ticked.

    Rows that cannot be brought back, since a model is no longer in the list, still show and
    compare.
    """

    def __init__(self, actions: Actions):
        self.actions, self.found, self.names = actions, pd.DataFrame(columns=COLUMNS), {}
        self.ticks: dict[str, ipw.Checkbox] = {}
        said = "Order of what was tried"
        self.order = ipw.Dropdown(options=list(ORDERS), description=said, tooltip=said)
        self.order.style.description_width = "initial"
        self.order.layout.width = "auto"
        self.rows, self.beside, self.export = ipw.VBox(), ipw.HTML(), ipw.HTML("nothing yet")
        heading = ipw.HTML("<b>Tried on this target</b>: tick two to compare them")
        super().__init__([heading, self.order, self.rows, self.beside, self.export])
        self.order.observe(lambda _: self._fill(), "value")

    def show(self, found: pd.DataFrame, names: dict[str, str]) -> None:
        """Show these rows; `names` are those of models, by the keys of their runs."""
        if found.equals(self.found) and names == self.names:
            return
        self.found, self.names = found, names
        self._fill()
        self.export.value = _download(found, names)

    def _fill(self) -> None:
        ticked = [key for key, tick in self.ticks.items() if tick.value]
        column, ascending = ORDERS[str(self.order.value)]
        best = _best(self.found)
        found = self.found.assign(count=[len(models) for models in self.found["models"]])
        found = found.sort_values(column, ascending=ascending, kind="stable")
        self.ticks = {}
        rows = found.to_dict("records")
        self.rows.children = [self._row(row, row["key"] == best) for row in rows]
        for key in set(ticked) & set(self.ticks):
            self.ticks[key].value = True
        self._show_pair()

    def _row(self, row: dict, best: bool) -> ipw.Widget:
        key, settings = row["key"], self.actions.settings(row["key"])
        said = described(row, self.names)
        tick = ipw.Checkbox(description=f"compare {said}", indent=False, tooltip=f"compare {said}")
        tick.layout.width = "2em"
        tick.add_class("fusinglib-compare")
        tick.observe(lambda _: self._show_pair(), "value")
        self.ticks[key] = tick
        back = ipw.Button(description="Bring back", tooltip=f"tick the models of {said} again")
        back.disabled = settings is None
        back.on_click(lambda _: self.actions.bring_back(key))
        save = ipw.Button(description="Save", tooltip=f"save {said} to the folder named above")
        save.disabled = settings is None
        save.on_click(lambda _: self.actions.save(key))
        for button in (back, save):
            button.layout.width, button.layout.flex = "auto", "none"
        text = line(row, self.names, best)
        if settings is not None:
            code = self.actions.code(settings)
            text += f"<details><summary>repeat it</summary>{code}</details>"
        return ipw.HBox([tick, back, save, ipw.HTML(text)])

    def _show_pair(self) -> None:
        """Show the two ticked rows side by side."""
        ticked = [key for key, tick in self.ticks.items() if tick.value]
        if len(ticked) < 2:
            self.beside.value = ""
        elif len(ticked) > 2:
            self.beside.value = "<b>Tick two rows, not more, to compare them.</b>"
        else:
            rows = self.found.set_index("key", drop=False).loc[ticked].to_dict("records")
            names = [described(row, self.names) for row in rows]
            self.beside.value = side_by_side(names, self.actions.paired(*ticked))


def _best(found: pd.DataFrame) -> str:
    """The key of the row of the largest gain among those with the most seeds; never a random
    update, of which every seed has its own."""
    rows = [row for row in found.to_dict("records") if row["method"] != "placebo"]
    most = max((row["seeds"] for row in rows), default=0)
    rows = [row for row in rows if row["seeds"] == most and not np.isnan(row["gain"])]
    return max(rows, key=lambda row: row["gain"])["key"] if rows else ""


def described(row: dict, names: dict[str, str]) -> str:
    """What a base model is made of, in words."""
    if row["method"] in ("pretrained", "random weights"):
        return row["method"]
    models = ", ".join(str(names.get(key, key[:8])) for key in row["models"])
    how = [f"{name} {value}" for name, value in row["settings"].items()]
    if row["weights"]:
        how.append("weights " + ", ".join(f"{weight:.3g}" for weight in row["weights"]))
    return f"{row['method']} of {models}" + (f" ({', '.join(how)})" if how else "")


def line(row: dict, names: dict[str, str], best: bool) -> str:
    """A base model that was tried, with its gain and what it cost, in a line of HTML."""
    gain = f"{row['gain']:+.1f} points"
    if not np.isnan(row["low"]):
        gain += f" ({row['low']:+.1f} to {row['high']:+.1f})"
    said = f"{gain}, {row['accuracy']:.1f} %, {row['seeds']} seeds, {row['seconds']:.0f} s: "
    said += described(row, names)
    return f"{'<b>best so far:</b> ' if best else ''}{html.escape(said)}"


def side_by_side(names: list[str], found: dict[str, Any]) -> str:
    """The accuracies of two base models by seed, their paired difference first, as HTML."""
    first, second = map(html.escape, names)
    if found["scores"].empty:
        return f"<p><b>{first} and {second} have no seed in common.</b></p>"
    estimate, low, high = found["difference"]
    said = f"{abs(estimate):.1f} points {'above' if estimate >= 0 else 'below'} <i>{second}</i>"
    if np.isnan(low):
        said += ", with one seed: that decides nothing."
    else:
        said += f" ({low:+.1f} to {high:+.1f}, 95 % over {found['scope']}): "
        said += "undecided." if low <= 0 <= high else "a difference."
    rows = "".join(
        f"<tr><th>seed {seed}</th><td>{one:.1f} %</td><td>{two:.1f} %</td>"
        f"<td>{one - two:+.1f}</td></tr>"
        for seed, one, two in found["scores"].itertuples()
    )
    head = f"<tr><td></td><th>{first}</th><th>{second}</th><th>difference</th></tr>"
    return f"<p><i>{first}</i> ends {said}</p><table>{head}{rows}</table>"


def _download(found: pd.DataFrame, names: dict[str, str]) -> str:
    """A link to the rows as a CSV file."""
    if found.empty:
        return "nothing yet"
    models = [", ".join(str(names.get(key, key)) for key in one) for one in found["models"]]
    table = found.assign(models=models).drop(columns="runs")
    data = base64.b64encode(table.to_csv(index=False).encode()).decode()
    return f'<a download="tried.csv" href="data:text/csv;base64,{data}">as CSV</a>'
