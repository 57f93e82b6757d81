"""What was tried on a target before: a row each, to bring back, to compare and to take away."""

import base64
import html
from collections.abc import Callable

import ipywidgets as ipw
import numpy as np
import pandas as pd

from fusinglib.fusion.methods import METHODS


class History(ipw.VBox):
    """The base models of `playground.tried`, the best first. `bring_back` is called with the key of
    the row whose button is clicked."""

    def __init__(self, bring_back: Callable[[str], None]):
        self.bring_back, self.found = bring_back, pd.DataFrame()
        self.rows, self.export = ipw.VBox(), ipw.HTML("nothing yet")
        super().__init__([ipw.HTML("<b>Tried on this target</b>"), self.rows, self.export])

    def show(self, found: pd.DataFrame, names: dict[str, str]) -> None:
        """Show these rows; `names` are those of models, by the keys of their runs."""
        if found.equals(self.found):
            return
        self.found, rows = found, []
        gains = found["gain"].to_numpy(dtype=float)
        best = int(np.nanargmax(gains)) if np.isfinite(gains).any() else None
        for number, row in enumerate(found.to_dict("records")):
            button = ipw.Button(description="Bring back", tooltip="tick these models again")
            known = all(key in names for key in row["models"]) and row["method"] in METHODS
            button.disabled = not known
            button.on_click(lambda _, key=row["key"]: self.bring_back(key))
            rows.append(ipw.HBox([button, ipw.HTML(line(row, names, number == best))]))
        self.rows.children = rows
        self.export.value = _download(found, names)


def line(row: dict, names: dict[str, str], best: bool) -> str:
    """A base model that was tried, in a line."""
    models = ", ".join(str(names.get(key, key[:8])) for key in row["models"])
    models = "" if row["method"] == "pretrained" else models
    how = [f"{name} {value}" for name, value in row["settings"].items()]
    if row["weights"]:
        how.append("weights " + ", ".join(f"{weight:.3g}" for weight in row["weights"]))
    gain = f"{row['gain']:+.1f} points"
    if not np.isnan(row["low"]):
        gain += f" ({row['low']:+.1f} to {row['high']:+.1f})"
    said = f"{gain}, {row['accuracy']:.1f} %, {row['seeds']} seeds: {row['method']} {models}"
    said += f" ({', '.join(how)})" if how else ""
    return f"{'<b>best so far:</b> ' if best else ''}{html.escape(said)}"


def _download(found: pd.DataFrame, names: dict[str, str]) -> str:
    """A link to the rows as a CSV file."""
    if found.empty:
        return "nothing yet"
    models = [", ".join(str(names.get(key, key)) for key in one) for one in found["models"]]
    data = base64.b64encode(found.assign(models=models).to_csv(index=False).encode()).decode()
    return f'<a download="tried.csv" href="data:text/csv;base64,{data}">as CSV</a>'
