"""The list of models to choose from: search, filter, sort, tick and weigh."""

import html
from collections.abc import Callable, Iterable

import ipywidgets as ipw

from fusinglib.widgets.choice import Candidate
from fusinglib.widgets.elements import Slider, slider

ORDERS = {
    "as listed": lambda one: 0,
    "name": lambda one: one.label.lower(),
    "most examples": lambda one: -one.train,
    "best on dev": lambda one: -one.dev if one.dev == one.dev else 0.0,
}
"""Orders of the list, and what they sort by."""

KINDS = {
    "all models": lambda one: True,
    "tasks": lambda one: one.group == "tasks",
    "in the store": lambda one: one.group == "in the store",
    "named by you": lambda one: one.group == "named by you",
    "ticked": None,
}
"""Filters of the list; the last one asks the tick."""


class Models(ipw.VBox):
    """A row for every model: a tick, what is known, a slider and a number for the weight, and its
    share. `changed` is called whenever a tick or a weight changes."""

    def __init__(self, changed: Callable[[], None]):
        self.changed, self.known = changed, {}
        self.ticks: dict[str, ipw.Checkbox] = {}
        self.weights: dict[str, ipw.BoundedFloatText] = {}
        self.sliders: dict[str, Slider] = {}
        self.facts: dict[str, ipw.HTML] = {}
        self.shares: dict[str, ipw.HTML] = {}
        self.rows: dict[str, ipw.Box] = {}
        self.search = ipw.Text(placeholder="search", description="Search models")
        self.kind = ipw.Dropdown(options=list(KINDS), value="tasks", description="Show")
        self.order = ipw.Dropdown(options=list(ORDERS), description="Order")
        for control in (self.search, self.kind, self.order):
            control.style.description_width = "initial"
            control.layout.width, control.tooltip = "auto", control.description
            control.observe(lambda _: self.filter(), "value")
        self.list, self.count = ipw.VBox(), ipw.HTML()
        self.list.add_class("fusinglib-models")
        self.weighing = False
        tools = ipw.HBox([self.search, self.kind, self.order])
        tools.layout.flex_flow = "row wrap"
        super().__init__([tools, self.list, self.count])

    def add(self, one: Candidate, ticked: bool, weight: float) -> None:
        """Add a row."""
        wide = ipw.Layout(width="auto")
        tick = ipw.Checkbox(ticked, description=one.label, indent=False, layout=wide)
        limits = {"value": weight, "min": -100, "max": 100, "step": 0.1}
        said = f"weight of {one.label}"
        number = ipw.BoundedFloatText(description=said, tooltip=said, **limits)
        number.layout.width, number.style.description_width = "6em", "0"
        label = f"slider for the weight of {one.label}"
        handle = slider(number, min(0.0, weight), max(3.0, weight), "7em", label)
        self.ticks[one.name], self.weights[one.name], self.sliders[one.name] = tick, number, handle
        self.facts[one.name], self.shares[one.name] = ipw.HTML(), ipw.HTML()
        self.tell(one)
        row = ipw.Box([tick, self.facts[one.name], handle, number, self.shares[one.name]])
        row.add_class("fusinglib-row")
        self.rows[one.name] = row
        for control in (tick, number):
            control.observe(lambda _: self.changed(), "value")
        self.filter()

    def tell(self, one: Candidate) -> None:
        """Show what is known of a model, the rest when it is pointed at."""
        self.known[one.name] = one
        self.ticks[one.name].tooltip = f"{one.label}: {one.facts}"
        self.facts[one.name].value = html.escape(", ".join(one.facts.split(", ")[:2]))

    def ticked(self) -> list[str]:
        """The names of the ticked models, as listed."""
        return [name for name, tick in self.ticks.items() if tick.value]

    def filter(self) -> None:
        """Show the rows that search and filter want, in the chosen order."""
        words, kind = self.search.value.lower().split(), KINDS[str(self.kind.value)]
        found = [
            name
            for name, one in self.known.items()
            if all(word in f"{one.label} {one.facts}".lower() for word in words)
            and (kind(one) if kind else self.ticks[name].value)
        ]
        found.sort(key=lambda name: ORDERS[str(self.order.value)](self.known[name]))
        self.list.children = [self.rows[name] for name in found]
        hidden = [name for name in self.ticked() if name not in found]
        self.count.value = f"{len(found)} of {len(self.known)} models"
        if hidden:
            self.count.value += f"; ticked, not shown: {html.escape(', '.join(hidden))}"

    def show(self, shares: dict[str, float], weighing: bool) -> None:
        """Show the shares of the ticked models; weights only where the method takes them."""
        for name, cell in self.shares.items():
            share = shares.get(name)
            part = min(abs(share or 0.0), 1.0)
            bar = f"<span class='fusinglib-bar' style='width: {3 * part:.2f}em'></span>"
            cell.value = "" if share is None else f"{bar} share {share:.0%}"
            for control in (self.weights[name], self.sliders[name]):
                control.disabled = not weighing
                control.layout.visibility = (
                    "visible" if weighing and share is not None else "hidden"
                )

    def tick(self, names: Iterable[str]) -> None:
        """Tick these models and no others; `changed` is called once."""
        wanted, changed = set(names), self.changed
        self.changed = lambda: None
        for name, tick in self.ticks.items():
            tick.value = name in wanted
        self.changed = changed
        self.filter()
        changed()
