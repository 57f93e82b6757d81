"""The playground's look: controls for a `Session`."""

import base64
import dataclasses
import html
import io
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets as ipw

from fusinglib.errors import InputError
from fusinglib.evaluation import figures, playground, tables
from fusinglib.fusion.methods import METHODS
from fusinglib.study.settings import FusePlayground
from fusinglib.widgets import choice
from fusinglib.widgets.session import Session

EVERY = 0.3
"""Seconds between updates."""

SETTINGS = {"task_arithmetic": ["scale"]} | dict.fromkeys(
    ("ties", "dare", "dare_ties", "breadcrumbs"), ["scale", "density"]
)
"""The settings of each method that has any."""

WIDE = ipw.Layout(width="auto")


class Playground(ipw.VBox):
    """Tick models, choose a method and a target, fuse, finetune and compare, save.

    Equivalent to the notebook `fuse_playground`, with the same runs in the same store. `session`
    does the work; callbacks only read the controls and wake a thread.
    """

    def __init__(self, settings: FusePlayground):
        self.settings, self.session = settings, Session(settings)
        self.candidates = choice.candidates(settings)
        self.targets, self.families = settings.known_tasks()
        self.wake, self.rounds, self.drawn = threading.Event(), 0, ()
        self._make_controls()
        super().__init__([self._choosing(), self._doing(), self._shown()])
        self.add_class("fusinglib-playground")  # for tests and style sheets
        self.status.add_class("fusinglib-status")
        self.outcome.add_class("fusinglib-outcome")
        self._observe()
        self._changed()
        threading.Thread(target=self._follow, daemon=True).start()

    # Controls.

    def _make_controls(self) -> None:
        settings = self.settings
        self.rows = ipw.GridBox(layout=ipw.Layout(grid_template_columns="16em 26em 17em 6em"))
        self.facts: dict[str, ipw.HTML] = {}
        self.ticks: dict[str, ipw.Checkbox] = {}
        self.weights: dict[str, ipw.BoundedFloatText] = {}
        self.shares: dict[str, ipw.HTML] = {}
        given = settings.weights or [1.0] * len(settings.models)
        start = dict(zip(settings.models, given, strict=True))
        for one in self.candidates:
            self._add_row(one, one.name in start, start.get(one.name, 1.0))
        self.more = _labelled(ipw.Text, "Add a model", placeholder="key, folder or Hub id")
        self.add = ipw.Button(description="Add", tooltip="Add this model")
        names = [name for name in METHODS if name != "fisher"]
        self.method = _labelled(ipw.Dropdown, "Method", options=names, value=settings.method)
        numbers = {"scale": 1.0, "density": 0.2, **settings.method_settings}
        self.scale = _labelled(ipw.FloatText, "scale", value=numbers["scale"])
        share = {"value": numbers["density"], "min": 0.01, "max": 1.0}
        self.density = _labelled(ipw.BoundedFloatText, "density", **share)
        target = {"options": list(self.targets), "value": settings.target}
        self.target = _labelled(ipw.Dropdown, "Target task", **target)
        count = {"value": len(settings.seeds), "min": 1, "max": 50}
        self.seeds = _labelled(ipw.BoundedIntText, "Seeds", **count)
        steps = {"value": settings.target_max_steps, "min": 1, "max": 100_000}
        self.steps = _labelled(ipw.BoundedIntText, "Max. batches", **steps)
        self.fuse = ipw.Button(description="Fuse")
        self.compare = ipw.Button(description="Finetune and compare", layout=WIDE)
        self.stop = ipw.Button(description="Stop", disabled=True)
        self.folder = _labelled(ipw.Text, "Save model to", placeholder="a new folder")
        self.save = ipw.Button(description="Save model", disabled=True)
        self.message = ipw.HTML()
        self.status, self.saved = ipw.HTML("ready"), ipw.HTML()
        self.report, self.map, self.curves, self.outcome, self.repeat = (
            ipw.HTML() for _ in range(5)
        )

    def _add_row(self, one: choice.Candidate, ticked: bool, weight: float) -> None:
        tick = ipw.Checkbox(ticked, description=one.label, indent=False, layout=WIDE)
        limits = {"value": weight, "min": -100, "max": 100, "step": 0.1, "layout": WIDE}
        number = _labelled(ipw.BoundedFloatText, f"weight of {one.label}", **limits)
        self.ticks[one.name], self.weights[one.name] = tick, number
        self.facts[one.name], self.shares[one.name] = ipw.HTML(html.escape(one.facts)), ipw.HTML()
        row = [tick, self.facts[one.name], number, self.shares[one.name]]
        self.rows.children = [*self.rows.children, *row]

    def _choosing(self) -> ipw.Widget:
        buttons = []
        for name in ("all", "none", *self.families):
            button = ipw.Button(description=name, tooltip=f"tick {name}", layout=WIDE)
            button.on_click(lambda _, name=name: self._tick(name, self.families.get(name, [])))
            buttons.append(button)
        heading = ipw.HTML("<b>Finetuned models</b>")
        adding = ipw.HBox([self.more, self.add])
        how = ipw.HBox([self.method, self.scale, self.density])
        what = ipw.HBox([self.target, self.seeds, self.steps])
        return ipw.VBox([heading, ipw.HBox(buttons), self.rows, adding, how, what])

    def _doing(self) -> ipw.Widget:
        buttons = ipw.HBox([self.fuse, self.compare, self.stop])
        saving = ipw.HBox([self.folder, self.save, self.saved])
        return ipw.VBox([self.message, buttons, self.status, saving])

    def _shown(self) -> ipw.Widget:
        look = ipw.HBox([self.report, self.map], layout=ipw.Layout(flex_flow="row wrap"))
        return ipw.VBox([self.curves, self.outcome, look, self.repeat])

    def _observe(self) -> None:
        for control in [*self.ticks.values(), *self.weights.values(), self.method, self.scale,
                        self.density, self.target, self.seeds, self.steps]:  # fmt: skip
            control.observe(lambda change: self._changed(), "value")
        self.folder.observe(lambda change: self._enable(), "value")
        self.fuse.on_click(lambda _: self._start(finetune=False))
        self.compare.on_click(lambda _: self._start(finetune=True))
        self.stop.on_click(lambda _: self._stop())
        self.save.on_click(lambda _: self._save())
        self.add.on_click(lambda _: self._add())

    # The choice.

    def chosen(self) -> FusePlayground:
        """The settings that the controls say; raises `InputError` for what cannot be fused."""
        names = [name for name, tick in self.ticks.items() if tick.value]
        picked = [one for one in self.candidates if one.name in names]
        objections = choice.objections(picked, self.targets[self.target.value])
        if objections:
            raise InputError(objections[0])
        weighted = METHODS[self.method.value].weighted
        weights = [self.weights[name].value for name in names] if weighted else []
        numbers = {"scale": self.scale.value, "density": self.density.value}
        settings = {name: numbers[name] for name in SETTINGS.get(self.method.value, [])}
        if self.method.value in ("dare", "dare_ties", "placebo"):
            settings["seed"] = self.settings.method_settings.get("seed", 0.0)
        seeds = self.settings.seeds
        seeds = [*seeds, *range(max(seeds) + 1, max(seeds) + 51)][: self.seeds.value]
        return self.session.choose(
            models=names, target=self.target.value, method=self.method.value, weights=weights,
            method_settings=settings, seeds=seeds,
            target_max_steps=self.steps.value,
        )  # fmt: skip

    def _tick(self, group: str, members: list[str]) -> None:
        """Tick a family, or all models, except those trained on the target; untick others."""
        target = self.targets[self.target.value]
        for one in self.candidates:
            wanted = group == "all" or one.name in members
            self.ticks[one.name].value = wanted and not one.knows(target)

    def _changed(self) -> None:
        """Say what is wrong with the choice, show shares, and wake the thread."""
        names = [name for name, tick in self.ticks.items() if tick.value]
        equal = not METHODS[self.method.value].weighted
        total = sum(self.weights[name].value for name in names)
        for name, share in self.shares.items():
            self.weights[name].disabled = equal
            value = 1 / len(names) if equal and names else self.weights[name].value / (total or 1)
            share.value = f"share {value:.0%}" if name in names else ""
        wanted = SETTINGS.get(self.method.value, [])
        self.scale.disabled, self.density.disabled = (
            name not in wanted for name in ("scale", "density")
        )
        try:
            self.chosen()
            objection = ""
        except InputError as error:
            objection = f"<b>Cannot be fused:</b> {html.escape(str(error))}"
        self.message.value = objection
        self._enable(objection)
        self.wake.set()

    def _enable(self, objection: str | None = None) -> None:
        busy = self.session.busy
        blocked = busy or bool(self.message.value if objection is None else objection)
        self.fuse.disabled = self.compare.disabled = blocked
        self.stop.disabled = not busy
        self.save.disabled = not (self.session.fused() and self.folder.value.strip())

    # Actions.

    def _start(self, finetune: bool) -> None:
        try:
            if self.session.start(self.chosen(), finetune):
                self._enable()
                self.wake.set()
        except InputError as error:
            self.message.value = f"<b>Cannot be fused:</b> {html.escape(str(error))}"

    def _stop(self) -> None:
        self.session.stop()
        self.wake.set()

    def _save(self) -> None:
        try:
            path = self.session.save(self.folder.value)
            self.saved.value = f"saved: <code>{html.escape(str(path))}</code>"
        except InputError as error:
            self.saved.value = f"<b>Not saved:</b> {html.escape(str(error))}"

    def _add(self) -> None:
        try:
            one = choice.named(self.more.value.strip(), self.settings)
        except InputError as error:
            self.message.value = f"<b>Not added:</b> {html.escape(str(error))}"
            return
        if one.name not in self.ticks:
            self.candidates.append(one)
            self._add_row(one, True, 1.0)
            for control in (self.ticks[one.name], self.weights[one.name]):
                control.observe(lambda change: self._changed(), "value")
        self.more.value = ""
        self._changed()

    # Display, by a separate thread: nothing else writes these.

    def _follow(self) -> None:
        while True:
            self.wake.wait()
            self.wake.clear()
            try:
                self._show()
            except Exception as error:  # nobody else would report it, and the thread must survive
                self.status.value = f"<b>failed</b>: {html.escape(str(error))}"

    def _show(self) -> None:
        self._show_choice()
        while self.session.busy:
            self._show_progress()
            time.sleep(EVERY)
        self._show_progress()
        self._enable()
        if self.session.rounds != self.rounds:  # there are models now
            self.rounds = self.session.rounds
            self._show_choice()
            self._show_facts()

    def _show_facts(self) -> None:
        for one in choice.candidates(self.settings):
            if one.name in self.facts:
                self.facts[one.name].value = html.escape(one.facts)

    def _show_choice(self) -> None:
        """Show report, map and the code that repeats the choice, or what is wrong with it."""
        try:
            settings = self.chosen()
            report, figure = self.session.report(settings), self.session.map(settings)
        except InputError as error:
            self.report.value, self.map.value = html.escape(str(error)), ""
            return
        plain = isinstance(report, str)
        self.report.value = html.escape(report) if plain else report._repr_html_()
        self.map.value = _image(figure, "The weight space: the models and their mean")
        self.repeat.value = _copyable(settings)
        self.session.recall(settings)

    def _show_progress(self) -> None:
        with self.session.lock:
            state = dataclasses.replace(self.session.state)
        bar = f"<progress value='{state.done}' max='{state.total or 1}'></progress> "
        count = f"{state.done} of {state.total} runs, " if state.total else ""
        bar = bar if state.phase == "working" else ""
        plan = self.session.plan
        found = self.session.results() if plan else None
        if plan and found is not None and (len(found["accuracy"].dropna()) or bar):
            histories = self.session.histories()
            drawn = (*(row["run"].key for row in plan.rows), len(histories))
            if drawn != self.drawn:
                self.drawn = drawn
                self.curves.value = _curves(histories, self.steps.value)
            self.outcome.value = _outcome(found, self.session.answers())
        self.status.value = f"{bar}<b>{state.phase}</b>: {count}{html.escape(state.text)}"


def _labelled(kind: Callable[..., Any], label: str, **settings) -> Any:
    """A control with its label beside it, as wide as needed."""
    return kind(description=label, style={"description_width": "initial"}, **settings)


def _image(figure, label: str) -> str:
    """A figure as HTML, with alternative text."""
    if figure is None:
        return ""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=80)
    data = base64.b64encode(file.getvalue()).decode()
    style, alt = "max-width: 100%", html.escape(label)
    return f'<img style="{style}" alt="{alt}" src="data:image/png;base64,{data}">'


def _curves(histories, steps: int) -> str:
    """The learning curves in the colours of the page's theme, and their numbers, as HTML."""
    file = io.StringIO()
    figures.learning_curves(histories, steps).savefig(file, format="svg", transparent=True)
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace("#000000", "currentColor")
    drawn = drawn.replace("<svg ", "<svg fill='currentColor' ", 1)
    last = histories.groupby("base", sort=False)["accuracy"].last()
    said = ", ".join(f"{base} {number:.1f} %" for base, number in last.items()) or "nothing yet"
    numbers = histories.to_html(index=False, float_format="{:.3g}".format, border=0)
    return (
        f"<div role='img' aria-label='training loss, and dev accuracy: {said}'>{drawn}</div>"
        f"<details><summary>numbers</summary>{numbers}</details>"
    )


def _outcome(results, right) -> str:
    """Accuracies, differences and the verdict, as HTML; `right` are the `playground.answers`."""
    shown = [playground.accuracies(results, right), playground.differences(results, right)]
    parts = [tables.show(table).to_html(border=0, col_space="6em") for table in shown]
    models = ", ".join(results[results["base"] == "fused"]["sources"].iloc[0])
    parts.append(f"<p>Fused: {html.escape(models)}</p>")
    verdict = html.escape(playground.verdict(results, results["target"].iloc[0], right))
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in playground.collapses(results)]
    return f"{''.join(parts)}<p><b>{verdict}</b></p>"


def _copyable(settings: FusePlayground) -> str:
    call, file = playground.call(settings), playground.parameter_file(settings)
    return (
        f"<details><summary>repeat it</summary><pre>{html.escape(call)}</pre>"
        f"<pre># fusinglib run fuse_playground --params FILE\n{html.escape(file)}</pre>"
        "</details>"
    )
