"""The playground's look: a board of controls and pictures for a `Session`."""

import dataclasses
import html
import threading
import time
from collections.abc import Callable
from typing import Any

import ipywidgets as ipw
import numpy as np

from fusinglib.errors import InputError
from fusinglib.evaluation.tried import suggestion
from fusinglib.fusion.geometry import Updates
from fusinglib.fusion.methods import METHODS
from fusinglib.study.settings import FusePlayground
from fusinglib.widgets import choice, pictures, shown
from fusinglib.widgets.elements import Arrows, Folded, Spoken, slider
from fusinglib.widgets.history import Actions, History
from fusinglib.widgets.models import Models
from fusinglib.widgets.session import Session

EVERY, NOTICE = 0.3, 2.0
"""Seconds between updates of running work, and between looks at what others have finished."""

DENSE = ("ties", "dare", "dare_ties", "breadcrumbs")
SCALED = ("mean", "weighted", "task_arithmetic", *DENSE)
"""Methods that have a density, and those whose update can be scaled."""

LINEAR = ("mean", "weighted", "task_arithmetic")
"""Methods whose result is known from inner products alone."""

WORDS = {
    "mean": "The mean of the ticked models.",
    "weighted": "Their weighted mean: what counts are the shares.",
    "task_arithmetic": "The weighted sum of their updates, added to pretrained.",
    "ties": "The largest entries of every update; where signs differ, the majority's.",
    "dare": "A random part of every update, scaled up again, summed.",
    "dare_ties": "A random part of every update; where signs differ, the majority's.",
    "breadcrumbs": "Every update without its largest and its smallest entries, summed.",
    "model_stock": "Between pretrained and the mean, nearer to it the more updates agree.",
    "scaled": "A control: the first model alone, its update shrunk to the mean update's norm.",
    "placebo": "A control: a random update with the mean update's norm.",
    "slerp": "A point on the arc between two models.",
    "regmean": "For each linear layer, the weights whose outputs are nearest to all models'.",
    "fisher": "A mean in which every weight counts as much as it matters to its model's output.",
}  # fmt: skip
"""What every method does, in a sentence."""

PRESETS = {
    "all but the target": "tick every task's model, but none trained on the target",
    "none": "untick all",
    "most alike": "tick the models whose updates are nearest to that of the target's own model",
    "greedy": "tick the next models of a greedy search by dev accuracy on the target: the two best "
    "alone, then the best average so far and one more",
}
"""Buttons that tick models, and what they do."""

STYLE = """<style>
.fusinglib-playground {container-type: inline-size; overflow: visible}
.fusinglib-board {display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 1em}
.fusinglib-look {position: sticky; top: 0; align-self: start; background:
  var(--jp-layout-color0, #fff); color: var(--jp-ui-font-color1, #222)}
@container (max-width: 900px) {
  .fusinglib-board {grid-template-columns: minmax(0, 1fr)} .fusinglib-look {position: static}}
.fusinglib-models {max-height: 24em; overflow: auto; border: 1px solid
  var(--jp-border-color2, #ccc)}
.fusinglib-row {display: grid; align-items: center; flex: none; overflow: visible;
  grid-template-columns: minmax(8em, 1.4fr) minmax(7em, 2fr) 7.5em 6.5em 8em}
@container (max-width: 700px) {.fusinglib-row {grid-template-columns: 1fr 1fr}}
.fusinglib-bar {display: inline-block; height: .7em; background: #D55E00}
.fusinglib-chip {display: inline-block; margin: 2px; padding: 1px 8px; border-radius: 9px;
  border: 1px solid var(--jp-border-color2, #ccc)}
.fusinglib-chip.bad {border-color: #D55E00; font-weight: bold}
.fusinglib-old {opacity: .45}
.fusinglib-compare label {overflow: hidden; color: transparent}
.jupyter-widgets-disconnected > .fusinglib-status {font-size: 0; color: transparent}
.jupyter-widgets-disconnected > .fusinglib-status::after {font-weight: bold;
  font-size: var(--jp-widgets-font-size, 13px); color: var(--jp-ui-font-color1, #222);
  content: "The kernel has ended or was restarted: run this cell again. Finished runs are kept."}
.fusinglib-playground table {border-collapse: collapse}
.fusinglib-playground th, .fusinglib-playground td {text-align: right; padding: 2px 8px}
.fusinglib-playground tbody th {text-align: left}
</style>"""

WIDE = ipw.Layout(width="auto")


class Playground(ipw.VBox):
    """Tick models, choose a method and a target, fuse, finetune and compare, save.

    Equivalent to the notebook `fuse_playground`, with the same runs in the same store. What is
    shown belongs to the current choice; older results are dimmed. `session` does the work;
    callbacks only read the controls, redraw what inner products tell, and wake a thread.
    """

    def __init__(self, settings: FusePlayground):
        self.settings, self.session = settings, Session(settings)
        self.candidates = choice.candidates(settings)
        self.targets, self.families = settings.known_tasks()
        self.wake, self.rounds, self.drawn = threading.Event(), 0, ()
        self.finished, self.compared = 0, self.settings  # those of the rows of the history
        self.given, self.single = dict(self.settings.method_settings), ""
        self.updates: Updates | None = None
        self.squared: Updates | None = None
        self.drawing, self.enabling = threading.Lock(), threading.Lock()
        self._make_controls()
        board = ipw.Box([self._choosing(), self._looking()])
        board.add_class("fusinglib-board")
        keys = Arrows(".fusinglib-playground", ".fusinglib-models input[type=checkbox]")
        super().__init__([ipw.HTML(STYLE), board, self._doing(), self._shown(), keys])
        self.add_class("fusinglib-playground")  # for tests and style sheets
        self.status.add_class("fusinglib-status")
        self.outcome.add_class("fusinglib-outcome")
        self._observe()
        self._changed()
        threading.Thread(target=self._follow, daemon=True).start()

    # Controls.

    def _make_controls(self) -> None:
        settings = self.settings
        self.models = Models(lambda: self._changed())
        self.ticks, self.weights = self.models.ticks, self.models.weights
        self.facts, self.shares = self.models.facts, self.models.shares
        self.message, self.words, self.planned = Spoken(), ipw.HTML(), ipw.HTML()
        self.alike = _labelled(ipw.BoundedIntText, "how many", value=3, min=2, max=50)
        self.alike.layout.width = "9em"
        self.more = _labelled(ipw.Text, "Add a model", placeholder="key, folder or Hub id")
        self.add = ipw.Button(description="Add", tooltip="Add this model")
        methods = {"options": list(METHODS), "value": settings.method}
        self.method = _labelled(ipw.Dropdown, "Method", **methods)
        numbers = {"scale": 1.0, "density": 0.2, **settings.method_settings}
        scale = {"value": numbers["scale"], "min": -2.0, "max": 3.0, "step": 0.05}
        self.scale = _labelled(ipw.BoundedFloatText, "scale", **scale)
        share = {"value": numbers["density"], "min": 0.01, "max": 1.0, "step": 0.01}
        self.density = _labelled(ipw.BoundedFloatText, "density", **share)
        target = {"options": list(self.targets), "value": settings.target}
        self.target = _labelled(ipw.Dropdown, "Target task", **target)
        count = {"value": len(settings.seeds), "min": 1, "max": 50}
        self.seeds = _labelled(ipw.BoundedIntText, "Seeds", **count)
        steps = {"value": settings.target_max_steps, "min": 1, "max": 100_000}
        self.steps = _labelled(ipw.BoundedIntText, "Max. batches", **steps)
        self.fuse = ipw.Button(description="Fuse")
        self.compare = ipw.Button(description="Finetune and compare", layout=WIDE)
        self.stop = ipw.Button(description="Stop", tooltip="stop; finished runs are kept")
        self.folder = _labelled(ipw.Text, "Save model to", placeholder="a new folder")
        self.save = ipw.Button(description="Save model", disabled=True)
        self.status, self.saved = Spoken("<b>ready</b>"), Spoken()
        self.report, self.map, self.square, self.numbers = (ipw.HTML() for _ in range(4))
        self.curves, self.outcome = ipw.HTML(), ipw.HTML()
        titles = ("norms and cosines", "numbers of the curves", "repeat this comparison")
        self.norms, self.evaluations, self.repeat = map(Folded, titles)
        self.past = History(
            Actions(self.settings_of, self.bring_back, self._save_row, self._paired, shown.copyable)
        )
        given = settings.weights or [1.0] * len(settings.models)
        start = dict(zip(settings.models, given, strict=True))
        for one in self.candidates:
            self.models.add(one, one.name in start, start.get(one.name, 1.0))
        if not all(one.group == "tasks" for one in self.candidates if one.name in start):
            self.models.kind.value = "all models"

    def _choosing(self) -> ipw.Widget:
        buttons = []
        for name, hint in (
            PRESETS | {name: f"tick the family {name}" for name in self.families}
        ).items():
            button = ipw.Button(description=name, tooltip=hint, layout=WIDE)
            button.on_click(lambda _, name=name: self._tick(name))
            buttons.append(button)
        buttons.insert(3, self.alike)
        heading = ipw.HTML("<b>Finetuned models</b>")
        adding = ipw.HBox([self.more, self.add])
        self.numbers_of = {
            name: ipw.HBox(
                [slider(number, low, high, "12em", f"slider for {name}"), number, ipw.HTML(words)]
            )
            for name, number, low, high, words in (
                ("scale", self.scale, 0.0, 1.5, "how far along the update: 1 is all of it"),
                ("density", self.density, 0.0, 1.0, "which part of every update is kept"),
            )
        }
        how = ipw.VBox([ipw.HBox([self.method, self.words]), *self.numbers_of.values()])
        what = ipw.HBox([self.target, self.seeds, self.steps])
        for row in (adding, what, how.children[0], presets := ipw.HBox(buttons)):
            row.layout.flex_flow = "row wrap"
        return ipw.VBox([heading, presets, self.models, adding, how, what])

    def _looking(self) -> ipw.Widget:
        look = ipw.VBox([self.map, self.square, self.numbers, self.norms, self.report])
        look.add_class("fusinglib-look")
        return look

    def _doing(self) -> ipw.Widget:
        buttons = ipw.HBox([self.fuse, self.compare, self.stop, self.planned])
        buttons.layout.flex_flow = "row wrap"
        return ipw.VBox([self.message, buttons, self.status])

    def _shown(self) -> ipw.Widget:
        saving = ipw.HBox([self.folder, self.save, self.saved])
        parts = [self.outcome, saving, self.repeat, self.curves, self.evaluations, self.past]
        return ipw.VBox(parts)

    def _observe(self) -> None:
        for control in (self.method, self.scale, self.density, self.target, self.seeds, self.steps):
            control.observe(lambda change: self._changed(), "value")
        self.folder.observe(lambda change: self._enable(), "value")
        self.fuse.on_click(lambda _: self._start(finetune=False))
        self.compare.on_click(lambda _: self._start(finetune=True))
        self.stop.on_click(lambda _: self._stop())
        self.save.on_click(lambda _: self._save())
        self.add.on_click(lambda _: self._add())

    # The choice.

    def chosen(self) -> FusePlayground:
        """The settings that the controls say; raises `InputError` for what cannot be fused.

        A scaled mean is task arithmetic with the models' shares as weights.
        """
        names, method = self.models.ticked(), self.method.value
        shrunk = method in LINEAR and self.scale.value != 1
        picked = [one for one in self.candidates if one.name in names]
        least = 1 if shrunk or method == "task_arithmetic" else 2
        objections = choice.objections(picked, self.targets[self.target.value], least)
        if objections:
            raise InputError(objections[0])
        weights = [self.weights[name].value for name in names] if METHODS[method].weighted else []
        if all(weight == 1 for weight in weights):
            weights = []  # equal
        if method in ("weighted", "slerp") and weights and abs(sum(weights)) < 1e-9:
            raise InputError("the weights sum to zero: change one")
        if method == "slerp" and len(names) != 2:
            raise InputError(f"slerp takes two models, not {len(names)}: tick two")
        settings = {"scale": self.scale.value, "density": self.density.value}
        wanted = {"scale": method in SCALED[2:], "density": method in DENSE}
        settings = {name: settings[name] for name in settings if wanted[name]}
        if method in ("dare", "dare_ties", "placebo"):
            settings["seed"] = self.given.get("seed", 0.0)
        if method == "breadcrumbs" and "gamma" in self.given:
            settings["gamma"] = self.given["gamma"]
        if method == "scaled" and self.single in names:
            settings["which"] = names.index(self.single)
        if shrunk and method != "task_arithmetic":
            weights = [float(share) for share in self._shares()]
            method, settings = "task_arithmetic", {"scale": self.scale.value}
        seeds = self.settings.seeds
        seeds = [*seeds, *range(max(seeds) + 1, max(seeds) + 51)][: self.seeds.value]
        return self.session.choose(
            models=names, target=self.target.value, method=method, weights=weights,
            method_settings=settings, seeds=seeds,
            target_max_steps=self.steps.value,
        )  # fmt: skip

    def _shares(self) -> list[float]:
        """What part of the update each ticked model has; of the sum for task arithmetic."""
        names = self.models.ticked()
        if not METHODS[self.method.value].weighted:
            return [1 / len(names)] * len(names)
        weights = [self.weights[name].value for name in names]
        whole = 1.0 if self.method.value == "task_arithmetic" else sum(weights)
        return [weight / whole if whole else 0.0 for weight in weights]

    def run_keys(self) -> dict[str, str]:
        """The keys of the models' runs, where they are known."""
        return {one.name: one.key for one in self.candidates}

    def _tick(self, preset: str) -> None:
        """Tick the models of a preset or family, never those trained on the target; untick
        others."""
        target = self.targets[self.target.value]
        free = [one for one in self.candidates if not one.knows(target)]
        if preset == "most alike":
            return self._tick_alike(free)
        if preset == "greedy":
            return self._tick_greedily(free)
        tasks = [one.name for one in free if one.group == "tasks"]
        wanted = {"none": [], "all but the target": tasks} | self.families
        self.models.tick(one.name for one in free if one.name in wanted[preset])

    def _tick_alike(self, free: list[choice.Candidate]) -> None:
        """Tick the models whose updates have the largest cosines with that of the model that was
        trained on the target."""
        own = next((o for o in self.candidates if o.name == self.target.value and o.date), None)
        there = [one for one in free if one.date and one.group == "tasks"]
        if not own or len(there) < self.alike.value:
            self.message.value = (
                "<b>Not known yet:</b> the target's own model and "
                f"{self.alike.value} others must be trained"
            )
            return
        known = self.session.of_runs([own.key, *(one.key for one in there)])
        nearest = np.argsort(-known.cosines[0, 1:])[: self.alike.value]
        self.models.tick(there[i].name for i in nearest)

    def _tick_greedily(self, free: list[choice.Candidate]) -> None:
        """Tick the next models to try in a greedy search by dev accuracy on the target."""
        names = {one.key: one.name for one in free if one.key}
        keys = suggestion(self.past.found, list(names))
        if not keys:
            self.message.value = (
                "<b>No suggestion:</b> it needs two models that were tried alone on this target, "
                "and an average of them that was not tried"
            )
            return
        self.method.value, self.scale.value = "mean", 1.0
        self.models.tick(names[key] for key in keys)

    def _changed(self) -> None:
        """Say what is wrong with the choice, draw what is known of it, and wake the thread."""
        names, method = self.models.ticked(), self.method.value
        shares = dict(zip(names, self._shares(), strict=True)) if names else {}
        self.models.show(shares, METHODS[method].weighted)
        self.words.value = html.escape(WORDS[method])
        for name, methods in (("scale", SCALED), ("density", DENSE)):
            getattr(self, name).disabled = method not in methods
            self.numbers_of[name].layout.display = "" if method in methods else "none"
        objection = self._objection()
        said = f"<b>Cannot be fused:</b> {html.escape(objection)}" if objection else ""
        self.message.value, self.saved.value = said, ""
        self._draw()
        self._enable()
        self.wake.set()

    def _objection(self) -> str:
        """What is wrong with the choice, or nothing."""
        try:
            self.chosen()
        except InputError as error:
            return str(error)
        return ""

    def _draw(self) -> None:
        """The map of the weight space and the numbers beside it, from the inner products of the
        models' updates, if these are at hand."""
        with self.drawing:
            known, names = self.updates, self.models.ticked()
            if known is None or not set(known.names) <= set(names):
                return
            labels = {one.name: one.label for one in self.candidates}
            drawn = Updates([labels[n] for n in known.names], known.products, known.origin)
            made = None
            if self.method.value in LINEAR and list(known.names) == names:
                name = self.method.value if len(names) > 1 else "scaled"
                made = pictures.start(name, drawn, self._shares(), self.scale.value)
            self.map.value = pictures.weight_map(drawn, made)
            if known is not self.squared:  # the cosines do not depend on weights
                self.square.value, self.squared = pictures.cosines(drawn), known
            self.numbers.value = shown.of_start(made) if made else ""
            self.norms.value = shown.norms(made, drawn) if made else ""

    def _enable(self) -> None:
        with self.enabling:  # called by two threads: the last one must see the last choice
            wrong = bool(self._objection())
            self.fuse.disabled = self.compare.disabled = wrong
            named = bool(self.folder.value.strip())
            self.save.disabled = wrong or not (named and self._is_fused())

    def _is_fused(self) -> bool:
        try:
            return self.session.fused(self.chosen()) is not None
        except InputError:
            return False

    # Actions.

    def _start(self, finetune: bool) -> None:
        try:
            if self.session.start(self.chosen(), finetune):
                self.wake.set()
            else:
                self.message.value = "<b>Still working:</b> wait, or press Stop first"
        except InputError as error:
            self.message.value = f"<b>Cannot be fused:</b> {html.escape(str(error))}"

    def _stop(self) -> None:
        self.session.stop()
        self.wake.set()

    def _save(self, settings: FusePlayground | None = None) -> None:
        try:
            path = self.session.save(settings or self.chosen(), self.folder.value)
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
            self.models.add(one, True, 1.0)
            self.models.kind.value = "all models"
        self.more.value = ""
        self._changed()

    # What was tried before.

    def settings_of(self, key: str) -> FusePlayground | None:
        """The settings that repeat a base model that was tried before; None if it is not fused, or
        if one of its models is not in the list."""
        row = self.past.found.set_index("key").loc[key]
        names = {one.key: one.name for one in self.candidates}
        if row["method"] not in METHODS or not set(row["models"]) <= set(names):
            return None
        try:
            return dataclasses.replace(
                self.compared, models=[names[run] for run in row["models"]], method=row["method"],
                weights=row["weights"], method_settings=row["settings"], seeds=sorted(row["runs"]),
            )  # fmt: skip
        except InputError:  # the mean of one model, for example
            return None

    def bring_back(self, key: str) -> None:
        """Tick the models of a base model that was tried before, with its method and settings."""
        settings = self.settings_of(key)
        assert settings
        self.target.value, self.method.value = settings.target, settings.method
        weights = settings.weights or [1.0] * len(settings.models)
        for name, weight in zip(settings.models, weights, strict=True):
            self.weights[name].value = weight
        self.given = {"scale": 1.0, "density": 0.2, **settings.method_settings}
        self.scale.value, self.density.value = self.given["scale"], self.given["density"]
        self.single = settings.models[int(self.given.pop("which", 0))]
        self.models.tick(settings.models)

    def _save_row(self, key: str) -> None:
        self._save(self.settings_of(key))

    def _paired(self, one: str, two: str) -> dict[str, Any]:
        return self.session.paired(self.compared, self.past.found, one, two)

    # Display, by a separate thread: nothing else writes these.

    def _follow(self) -> None:
        while True:
            try:
                if not self.wake.wait(NOTICE) and not self._noticed():
                    continue
                self.wake.clear()
                self._show()
                self.session.warm()  # after the first picture
            except Exception as error:  # nobody else would report it, and the thread must survive
                self.status.value = f"<b>failed</b>: {html.escape(str(error))}"

    def _noticed(self) -> bool:
        """Whether others, such as the notebook's next cells, have finished runs of this choice."""
        try:
            return self.session.finished(self.chosen()) != self.finished
        except InputError:
            return False

    def _show(self) -> None:
        self._show_choice()
        while self.session.busy:
            self._show_progress()
            time.sleep(EVERY)
        self._show_progress()
        self._enable()
        if self.session.rounds != self.rounds:  # there are models now
            self.rounds, self.message.value = self.session.rounds, ""
            self._show_facts()
            self._show_choice()

    def _show_facts(self) -> None:
        found = {one.name: one for one in choice.candidates(self.settings)}
        self.candidates = [found.get(one.name, one) for one in self.candidates]
        for one in self.candidates:
            self.models.tell(one)

    def _show_choice(self) -> None:
        """Show report, map, history and the code that repeats the choice, or what is wrong."""
        try:
            settings = self.chosen()
            report = self.session.report(settings, self.run_keys())
            updates = self.session.updates(settings, self.run_keys())
        except InputError as error:
            self.report.value, self.planned.value = shown.chips([str(error)], "bad"), ""
            self._blank()
            return
        with self.drawing:
            self.updates = updates
        if updates is None:
            self._blank()
        self._draw()
        self.report.value = shown.report(report, updates)
        self.repeat.value = shown.copyable(settings)
        self.planned.value = html.escape(self.session.ahead(settings))
        self.finished = self.session.finished(settings)
        self._show_outcome(self.session.recall(settings))
        names = {one.key: one.label for one in self.candidates}
        found, self.compared = self.session.tried(settings), settings
        self.past.show(found, names)

    def _blank(self) -> None:
        """Nothing is known of the choice's place."""
        with self.drawing:
            self.updates = self.squared = None
            self.map.value = self.square.value = self.numbers.value = self.norms.value = ""

    def _show_outcome(self, current: bool) -> None:
        """What came out of the last plan; dimmed if it is not that of the current choice."""
        plan = self.session.plan
        found = self.session.results() if plan else None
        if plan is None or found is None or not len(found["accuracy"].dropna()):
            return
        known = len(found["accuracy"].dropna()), len(self.session.histories())
        drawn = (current, *known, *(row["run"].key for row in plan.rows))
        if drawn != self.drawn:
            self.drawn = drawn
            histories = self.session.histories()
            self.curves.value = shown.dimmed(pictures.curves(histories), current)
            self.evaluations.value = shown.evaluations(histories)
            outcome = shown.outcome(found, self.session.answers(), plan)
            self.outcome.value = shown.dimmed(outcome, current)

    def _show_progress(self) -> None:
        with self.session.lock:
            state = dataclasses.replace(self.session.state)
        bar = f"<progress value='{state.done}' max='{state.total or 1}'></progress> "
        words = [f"{state.done} of {state.total} runs"] if state.total else []
        words += [state.text] if state.text else []
        bar = bar if state.phase == "working" else ""
        try:
            current = self.session.recall(self.chosen())
        except InputError:
            current = False
        self._show_outcome(current)
        said = f"<b>{state.phase}</b>" + (f": {html.escape(', '.join(words))}" if words else "")
        self.status.value = bar + said


def _labelled(kind: Callable[..., Any], label: str, **settings) -> Any:
    """A control with its label beside it, as wide as needed."""
    style = {"description_width": "initial"}
    return kind(description=label, tooltip=label, style=style, **settings)
