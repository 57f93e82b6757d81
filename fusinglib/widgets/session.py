"""The playground's logic, apart from its look: compare, fuse, try and save models."""

import dataclasses
import functools
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

from fusinglib.errors import InputError
from fusinglib.evaluation import figures, playground
from fusinglib.fusion import geometry
from fusinglib.fusion.compatibility import Report
from fusinglib.fusion.engine import fuse
from fusinglib.integrity import staged
from fusinglib.places import expanded
from fusinglib.study.execution import Execution, Stopped, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import MEAN, PRETRAINED, Plan, Run
from fusinglib.study.pools import keep, kept_workers, workers
from fusinglib.study.resolver import model_of
from fusinglib.study.settings import FusePlayground
from fusinglib.study.store import Store

LINEAR = ("mean", "weighted")
"""Methods whose result is a linear combination of the models, so that its position is known before
fusing."""


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
        self.plan: Plan | None = None
        self.rounds = 0
        self.execution: Execution | None = None
        self.thread: threading.Thread | None = None
        self.pool = None
        if settings.executor != "serial":
            count = workers(settings)
            keep(count)
            self.pool = functools.partial(kept_workers, count)

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

    def recall(self, settings: FusePlayground) -> None:
        """Show the results of these settings if the store has all of them."""
        plan = plan_experiment(settings)
        with self.lock:
            if not self.busy and all(self.store.has(row["run"]) for row in plan.rows):
                self.plan = plan

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

    def fused(self) -> Run | None:
        """The run of the fused model, once it is finished."""
        runs = self.plan.runs if self.plan else []
        made = [run for run in runs if run.kind == "fuse" and self.store.has(run)]
        return made[0] if made else None

    def save(self, folder: str) -> Path:
        """Copy the fused model into a new folder, which appears complete or not at all.

        Raises `InputError` if nothing is fused yet, or if the folder exists or cannot be created.
        """
        run, path = self.fused(), expanded(folder)
        if not run:
            raise InputError("there is no fused model yet: fuse first")
        if not folder.strip() or os.path.lexists(path):
            raise InputError(f"folder {folder!r} already exists: choose a new one")
        model = model_of(run, self.store)
        try:
            with staged(path) as partial:
                shutil.copytree(model, partial)
        except OSError as error:
            raise InputError(f"folder {folder} cannot be written ({error.strerror})") from error
        return path.resolve()

    # Before anything is computed.

    def chosen(self, settings: FusePlayground) -> tuple[Run, Run, dict[str, Path]]:
        """The runs of the fused and of the pretrained model, and the folders of the available
        models to fuse, by name."""
        rows = {row["base"]: row["run"].parents[0] for row in plan_experiment(settings).rows}
        fused, pretrained = rows["fused"], rows["pretrained"]
        models = [run for run in fused.parents if run.key != pretrained.key]
        there = {run.label: model_of(run, self.store) for run in models if self.store.has(run)}
        return fused, pretrained, there

    def report(self, settings: FusePlayground) -> Report | str:
        """What fusing would do, from headers, norms and cosines; a sentence if models are
        missing."""
        _, pretrained, models = self.chosen(settings)
        lacking = len(settings.models) - len(models)
        if lacking or not self.store.has(pretrained):
            return f"{lacking} of these models are not trained yet: Fuse trains them first."
        origin = self.store.model(pretrained)
        return fuse(list(models.values()), pretrained=origin, dry_run=True)

    def map(self, settings: FusePlayground) -> figures.Figure | None:
        """The weight space, with the mean in it if the method is linear; None until two of the
        models exist."""
        fused, pretrained, models = self.chosen(settings)
        if len(models) < 2 or not self.store.has(pretrained):
            return None
        places = [self.store.model(pretrained), *models.values()]
        names = [PRETRAINED, *(label.split(" from ")[0] for label in models)]
        updates = geometry.updates(places[0], places, names)
        if settings.method in LINEAR and len(models) == len(settings.models):
            weights = np.array(fused.settings.get("weights") or [1.0] * len(models))
            updates = updates.mixed([0.0, *weights / weights.sum()], MEAN)
        return figures.weight_figure(updates)


def only_models(plan: Plan) -> Plan:
    """The runs of the plan that lead to the fused model, without finetuning on the target."""
    return Plan([run for run in plan.runs if run.kind != "target"], [], {}, {})
