"""The playground's logic, apart from its look: compare, fuse, try and save models."""

import dataclasses
import functools
import math
import os
import shutil
import threading
import time
import weakref
from pathlib import Path

import pandas as pd

from fusinglib.errors import InputError
from fusinglib.evaluation import playground, tried
from fusinglib.fusion import geometry
from fusinglib.fusion.compatibility import Report
from fusinglib.fusion.engine import preview
from fusinglib.fusion.methods import METHODS
from fusinglib.integrity import staged
from fusinglib.places import expanded
from fusinglib.study.arms import ESTIMATES
from fusinglib.study.costs import Pace
from fusinglib.study.execution import Execution, Stopped, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import ESTIMATED, PRETRAINED, Plan, Run
from fusinglib.study.pools import keep, kept_workers, workers
from fusinglib.study.resolver import model_of
from fusinglib.study.settings import FusePlayground
from fusinglib.study.store import Store


@dataclasses.dataclass
class State:
    """The state of a session: `phase` is "ready", "working", "done", "stopped" or "failed"."""

    phase: str = "ready"
    done: int = 0
    total: int = 0
    text: str = ""


class Session:
    """One playground: the last request, and the thread that executes it.

    Everything is kept in the store: losing a session loses nothing that was finished. `rounds`
    counts how often something was executed.
    """

    def __init__(self, settings: FusePlayground):
        self.settings, self.store = settings, Store(settings.store_folder())
        self.lock, self.state = threading.Lock(), State()
        SESSIONS.add(self)
        self.plan: Plan | None = None
        self.last: tuple[FusePlayground, Plan] | None = None
        self.known: dict[tuple[str, ...], geometry.Updates] = {}
        self.rounds = 0
        self.execution: Execution | None = None
        self.thread: threading.Thread | None = None
        self.pool = None
        if settings.executor != "serial":
            self.pool = functools.partial(kept_workers, workers(settings))

    def warm(self) -> None:
        """Start the worker processes, so that the first run need not wait for them."""
        if self.pool:
            keep(workers(self.settings))

    def choose(self, **changes) -> FusePlayground:
        """The settings with these changes; raises `InputError` if they are invalid."""
        return dataclasses.replace(self.settings, **changes)

    @property
    def busy(self) -> bool:
        """Whether something is running."""
        return self.thread is not None and self.thread.is_alive()

    def start(self, settings: FusePlayground, finetune: bool = True) -> bool:
        """Start to fuse and, unless told otherwise, to finetune; false while something is
        running."""
        with self.lock:
            if self.busy:
                return False
            self.state = State("working", text="planning")
            self.thread = threading.Thread(
                target=self._work, args=[settings, finetune], daemon=True
            )
            self.thread.start()
            return True

    def stop(self) -> None:
        """Stop what is running; finished runs are kept."""
        with self.lock:
            if self.busy:
                self.state = dataclasses.replace(self.state, text="stopping")
                if self.execution:
                    self.execution.stopped.set()
                else:  # still planning
                    self.state.phase = "stopped"

    def _work(self, settings: FusePlayground, finetune: bool) -> None:
        started = time.monotonic()
        try:
            self.store.sweep()
            plan = plan_experiment(settings)
            runs = plan if finetune else only_models(plan)
            execution = Execution(runs, self.store, settings, self, self.pool)  # calls `say`
            with self.lock:
                self.plan = plan
                if self.state.phase == "stopped":
                    raise Stopped
                self.execution = execution
            failed = list(execution.carry_out().values())
            phase = "failed" if failed else "done"
            text = failed[0] if failed else f"done in {time.monotonic() - started:.1f} s"
        except Stopped:
            phase, text = "stopped", "stopped; finished runs are kept"
        except Exception as error:
            phase, text = "failed", str(error)
        with self.lock:
            self.execution, self.rounds = None, self.rounds + 1
            self.state = dataclasses.replace(self.state, phase=phase, text=text)

    def update(self, done: int, text: str, last: bool = False) -> None:
        """Record the progress reported by `Execution`."""
        with self.lock:
            total = len(self.execution.plan.runs) if self.execution else self.state.total
            self.state = State(self.state.phase, done, total, text)

    def say(self, event: str) -> None:
        """Show what happened until the next update."""
        with self.lock:
            self.state = dataclasses.replace(self.state, text=event)

    def recall(self, settings: FusePlayground) -> bool:
        """Take these settings' plan for the current one, if the store has all of its runs, or if it
        is the one that was executed; whether the results are those of these settings."""
        plan = self.planned(settings)
        with self.lock:
            if not self.busy and all(self.store.has(row["run"]) for row in plan.rows):
                self.plan = plan
            ours = self.plan and [row["run"].key for row in self.plan.rows]
        return ours == [row["run"].key for row in plan.rows]

    def ahead(self, settings: FusePlayground) -> str:
        """What a comparison with these settings would compute, in words, with about how long."""
        plan = self.planned(settings)
        left = [run for run in plan.runs if not self.store.has(run)]
        if not left:
            return f"all {len(plan.runs)} runs of the comparison are in the store"
        pace = Pace([run for run in plan.runs if self.store.has(run)], self.store)
        seconds = pace.seconds(left) / workers(self.settings)
        took = "" if math.isnan(seconds) else f", about {max(seconds, 1):.0f} s"
        return f"planned: {len(plan.runs)} runs, {len(left)} of them to compute{took}"

    def finished(self, settings: FusePlayground) -> int:
        """How many runs of a comparison with these settings are in the store."""
        return sum(self.store.has(run) for run in self.planned(settings).runs)

    def planned(self, settings: FusePlayground) -> Plan:
        """The plan of these settings; the last one is kept."""
        last = self.last  # two threads may plan
        if last is None or last[0] != settings:
            last = self.last = settings, plan_experiment(settings)
        return last[1]

    # Results.

    def histories(self) -> pd.DataFrame:
        """The evaluations of the target runs so far (`fusinglib.evaluation.playground`)."""
        assert self.plan
        return playground.histories(self.plan, self.store)

    def answers(self):
        """Which test texts the finished runs got right (see `evaluation.playground.answers`)."""
        assert self.plan
        return playground.answers(self.plan, self.store)

    def results(self) -> pd.DataFrame:
        """The results of the plan so far."""
        assert self.plan
        return results(self.plan, self.store)

    def tried(self, settings: FusePlayground) -> pd.DataFrame:
        """What was tried on the target before (see `tried.tried`)."""
        return tried.tried(self.planned(settings), self.store)

    def paired(self, settings: FusePlayground, found: pd.DataFrame, one: str, two: str) -> dict:
        """Two rows of what was tried, compared run by run (see `tried.paired`)."""
        return tried.paired(found, one, two, self.planned(settings), self.store)

    # The current choice.

    def fused(self, settings: FusePlayground) -> Run | None:
        """The run of the chosen models' fused model, once it is finished."""
        run = self._fused(settings)
        return run if self.store.has(run) else None

    def _fused(self, settings: FusePlayground) -> Run:
        rows = {row["base"]: row["run"].parents[0] for row in self.planned(settings).rows}
        return rows["fused"]

    def save(self, settings: FusePlayground, folder: str) -> Path:
        """Copy the chosen models' fused model into a new folder, which appears complete or not at
        all.

        Raises `InputError` if they are not fused yet, or if the folder exists or cannot be created.
        """
        run, path = self.fused(settings), expanded(folder)
        if not run:
            raise InputError("these models are not fused yet: fuse first")
        if not folder.strip() or os.path.lexists(path):
            raise InputError(f"folder {folder!r} already exists: choose a new one")
        model = model_of(run, self.store)
        try:
            with staged(path) as partial:
                shutil.copytree(model, partial)
        except OSError as error:
            raise InputError(f"folder {folder} cannot be written ({error.strerror})") from error
        return path.resolve()

    def places(
        self, settings: FusePlayground, keys: dict[str, str]
    ) -> tuple[Path | None, dict[str, Path]]:
        """The folders of the pretrained model and of the chosen models, by name, as far as they are
        finished. `keys` are those of the models' runs, where they are known; others are told by
        their labels."""
        plan = self.planned(settings)
        pretrained = next(row for row in plan.rows if row["base"] == PRETRAINED)["run"].parents[0]
        runs = [run for run in self._fused(settings).parents if run.key != pretrained.key]
        known = {run.label: run for run in runs} | {run.key: run for run in runs}
        found = {name: known.get(keys.get(name) or name) for name in settings.models}
        finished = {name: run for name, run in found.items() if run and self.store.has(run)}
        there = {name: model_of(run, self.store) for name, run in finished.items()}
        return self.store.model(pretrained) if self.store.has(pretrained) else None, there

    def updates(self, settings: FusePlayground, keys: dict[str, str]) -> geometry.Updates | None:
        """The updates of the chosen models that are finished, in their order; read once and kept.
        None if there are none."""
        pretrained, models = self.places(settings, keys)
        if not models or pretrained is None:
            return None
        return self._updates(pretrained, list(models), list(models.values()))

    def of_runs(self, keys: list[str]) -> geometry.Updates:
        """The updates of finished source models, by their keys; read once and kept."""
        runs = [self.store.find(key) for key in keys]
        origin = self.store.model(runs[0].parents[0])
        return self._updates(origin, keys, [model_of(run, self.store) for run in runs])

    def _updates(self, origin: Path, names: list[str], models: list[Path]) -> geometry.Updates:
        place = (*names, str(origin), *map(str, models))
        if place not in self.known:
            self.known[place] = geometry.updates(origin, models, names)
        return self.known[place]

    def report(self, settings: FusePlayground, keys: dict[str, str]) -> Report | str:
        """What fusing the chosen models in the chosen way would do, from headers; a sentence if
        models are missing."""
        pretrained, models = self.places(settings, keys)
        lacking = len(settings.models) - len(models)
        if lacking or pretrained is None:
            return f"{lacking} of these models are not trained yet: Fuse trains them first."
        if settings.method in ESTIMATES:
            return (
                f"Fuse makes estimates on {ESTIMATED} training texts of every model's task first."
            )
        numbers = {k: int(v) if k == "seed" else v for k, v in settings.method_settings.items()}
        return preview(
            list(models.values()), method=settings.method, weights=settings.weights or None,
            pretrained=pretrained if METHODS[settings.method].with_base else None, **numbers,
        )  # fmt: skip


def only_models(plan: Plan) -> Plan:
    """The runs of the plan that lead to the fused model, without finetuning on the target."""
    return Plan([run for run in plan.runs if run.kind != "target"], [], {}, {})


SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()
"""The sessions of this kernel."""


def end_others() -> None:
    """Stop what earlier playgrounds of this kernel still run: a cell that is run again shows a new
    one, and the old one can no longer be stopped."""
    for session in list(SESSIONS):
        session.stop()
