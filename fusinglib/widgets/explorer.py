"""The clickable pairwise heatmap: the runs behind a cell, and from there to the playground."""

import dataclasses
import html
import math
from collections.abc import Iterable
from typing import Any

import ipywidgets as ipw
import pandas as pd

from fusinglib.evaluation import pairs, tables
from fusinglib.evaluation.figures import PAIRS
from fusinglib.study.settings import FusePlayground, PairwiseHeatmap, Settings
from fusinglib.widgets.elements import Arrows, Spoken
from fusinglib.widgets.view import Playground


class PairExplorer(ipw.VBox):
    """Figure 2 as buttons: a click shows the pair's targets and seeds, and a second one sends the
    pair to a playground below, where both models are ticked."""

    def __init__(self, settings: PairwiseHeatmap, results: pd.DataFrame):
        self.settings, self.results = settings, results
        targets = {"": list(results["target"].unique())}
        self.units, _ = tables.clustered(results, targets, settings.clusters, "sources")
        self.cells = pairs.table(self.units).assign(
            names=lambda t: [*zip(t["one"], t["two"], strict=True)]
        )
        self.detail = Spoken("Choose a cell to see its targets and seeds.")
        self.to_playground = ipw.Button(description="Send to the playground", disabled=True)
        self.to_playground.layout.width = "auto"
        self.below = ipw.VBox()
        self.buttons: dict[tuple[str, str], ipw.Button] = {}
        self.names = ()
        keys = Arrows(".fusinglib-explorer", ".fusinglib-cells button")
        parts = [ipw.HTML(_legend()), self._grid(), self.detail, self.to_playground, self.below]
        parts.append(keys)
        super().__init__(parts)
        self.add_class("fusinglib-explorer")
        self.to_playground.on_click(lambda _: self._open_playground())

    def _grid(self) -> ipw.Widget:
        tasks = list(dict.fromkeys([*self.cells["one"], *self.cells["two"]]))
        cells: Iterable[Any] = self.cells.itertuples()
        found = {frozenset((cell.one, cell.two)): cell for cell in cells}
        children = []
        for number, row in enumerate(tasks):
            children.append(ipw.HTML(f"<b>{html.escape(row)}</b>"))
            for column in tasks[: number + 1]:
                cell = found.get(frozenset((row, column)))
                children.append(self._button(cell) if cell else ipw.HTML(""))
            children += [ipw.HTML("") for _ in tasks[number + 1 :]]
        children += [ipw.HTML(""), *(ipw.HTML(f"<b>{html.escape(name)}</b>") for name in tasks)]
        columns = f"8em repeat({len(tasks)}, minmax(6.5em, 9em))"
        grid = ipw.GridBox(children, layout=ipw.Layout(grid_template_columns=columns))
        grid.add_class("fusinglib-cells")
        return grid

    def _button(self, cell) -> ipw.Button:
        colour, ink = PAIRS[cell.rank]
        sign = pairs.CLASSES.get(cell.rank, "–")
        button = ipw.Button(
            description=f"{cell.gain:+.1f} {sign}{'' if cell.certain else ' ?'}",
            tooltip=f"{cell.one} and {cell.two}: {cell.rank or 'runs are missing'}; "
            f"{self._gain(cell.names)}, {cell.one} {cell.gain_one:+.1f}, {cell.two} "
            f"{cell.gain_two:+.1f}",
            style={"button_color": colour, "text_color": ink},
            layout=ipw.Layout(width="auto", min_width="0"),
        )
        button.on_click(lambda _, names=cell.names: self._choose(names))
        self.buttons[cell.names] = button
        return button

    def _gain(self, names: tuple[str, str]) -> str:
        """The gain of a pair with its interval, in words."""
        gain, low, high = pairs.gain(self.units, names)
        interval = "" if math.isnan(low) else f" ({low:+.1f} to {high:+.1f})"
        return f"fused {gain:+.1f}{interval} points over pretrained"

    def _choose(self, names: tuple[str, str]) -> None:
        (cell,) = (cell for cell in self.cells.to_dict("records") if cell["names"] == names)
        words = f"{cell['one']} and {cell['two']}, {self._gain(names)}: "
        words += cell["rank"] or "runs are missing"
        table = tables.show(pairs.detail(self.units, names)).to_html(border=0, col_space="6em")
        self.detail.value = f"<b>{html.escape(words)}</b>{table}"
        self.names, self.to_playground.disabled = names, False

    def _open_playground(self) -> None:
        """Below, a playground with the two models ticked and the first target chosen."""
        shared = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(Settings)}
        target = pairs.unseen(self.results, self.names)[0]
        shared["trained_on"] = self.settings.trained_on
        how = {"method": "mean", "weights": [], "method_settings": {}}
        models = list(self.names)
        chosen = FusePlayground(**shared, models=models, target=target, **how)
        self.below.children = [Playground(chosen)]


def _legend() -> str:
    """What colours and signs mean."""
    kinds = []
    for rank, (colour, ink) in PAIRS.items():
        style = f"background: {colour}; color: {ink}; padding: 1px 8px; margin-right: 6px"
        said = html.escape(f"{pairs.CLASSES.get(rank, '–')} {rank or 'runs are missing'}")
        kinds.append(f"<span style='{style}'>{said}</span>")
    said = "Numbers: points over pretrained. ?: the rank is uncertain. Colours rank the fused pair"
    style = "<style>.fusinglib-explorer :is(th, td) {text-align: right; padding: 2px 8px}</style>"
    said += " among its two singles, not against pretrained:"
    return f"{style}<p>{said}</p><p>{''.join(kinds)}</p>"
