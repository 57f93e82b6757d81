"""A study as a notebook sees it: parameters in; a plan, its costs, and results out."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fusinglib.places import shipped
from fusinglib.study import costs, execution, experiments, resolver
from fusinglib.study.plans import Plan, Run
from fusinglib.study.settings import EXPERIMENTS, Families, ManyWorlds, Settings
from fusinglib.study.store import Store
from fusinglib.training import description


class Study:
    """One experiment: its validated `settings`, the `store` of its runs, and its `plan`.

    `Study.open("family_table", globals())` opens a notebook's study.
    """

    def __init__(self, settings: Settings):
        self.settings, self.store = settings, Store(settings.store_folder())

    @classmethod
    def open(cls, name: str, parameters: Mapping[str, Any]) -> "Study":
        """The study of the notebook `name`, with the settings among `parameters` (its `globals()`);
        raises `InputError` if one is missing or invalid."""
        return cls(EXPERIMENTS[name].from_parameters(parameters))

    @functools.cached_property
    def plan(self) -> Plan:
        """All runs of the study, planned on first use: loads the tasks and finds the models; raises
        `InputError` for whatever would fail later."""
        return experiments.plan_experiment(self.settings)

    @property
    def families(self) -> dict[str, list[str]]:
        """The target families, with their tasks."""
        return self.plan.families

    @property
    def sources(self) -> dict[str, list[str]]:
        """The source families, with their tasks or models."""
        settings = self.settings
        assert isinstance(settings, Families)
        families = {**settings.known_tasks()[1], **settings.families}
        return {name: families[name] for name in settings.sources}

    @property
    def pretrained(self) -> Path:
        """The folder of the pretrained model (the first world's), once it is finished."""
        rows = self.plan.rows
        return self.model(
            next(row for row in rows if row["base"] == "pretrained")["run"].parents[0]
        )

    @property
    def parameters(self) -> pd.DataFrame:
        """Every setting with its value."""
        values = {name: getattr(self.settings, name) for name in vars(self.settings)}
        return pd.Series(values, name="value", dtype=object).to_frame()

    def texts(self, count: int = 3) -> pd.DataFrame:
        """One text from each of the first tasks of each family, with its label."""
        known, _ = self.settings.known_tasks()
        families = {**self.sources, **self.families}
        return description.examples(families, known, self.settings.data(), count)

    def costs(self) -> pd.DataFrame:
        """Runs, disk and hours, estimated from finished runs (see `costs.estimate`)."""
        return costs.estimate(self.plan, self.store, self.settings)

    def run(self, cluster=None) -> pd.DataFrame:
        """Execute what the store lacks, and return the tidy results (see `execution.execute`)."""
        return execution.execute(self.plan, self.store, self.settings, cluster)

    def recorded(self) -> pd.DataFrame | None:
        """The results of these very runs (by their keys) in the folder `recorded`, if the store
        lacks some; None if it has all, or if the folder does not have the same runs.

        Prints where they come from, and what to do to compute them.
        """
        assert isinstance(self.settings, ManyWorlds)
        folder = self.settings.recorded
        file = shipped(Path(folder) / "family_table.csv")
        if not folder or not file.is_file():
            return None
        missing = sum(not self.store.has(row["run"]) for row in self.plan.rows)
        if not missing:
            return None
        rows = execution.read_results(file)
        if list(rows["key"]) != [row["run"].key for row in self.plan.rows]:
            return None
        print(
            f"Shown: the results recorded in {folder}, since {missing:,} of {len(rows):,} "
            'finetunings are not in the store. To compute them, set recorded = "".'
        )
        return rows

    def results(self) -> pd.DataFrame:
        """The tidy results so far; nothing is executed."""
        return execution.results(self.plan, self.store)

    def model(self, run: Run) -> Path:
        """The folder of the model that a finished run made."""
        return resolver.model_of(run, self.store)

    def models(self) -> dict[str, Path]:
        """The folders of the models that are fused, by name, as far as they are finished."""
        rows = [row for row in self.plan.rows if row["base"] == "pretrained"]
        origins = {parent.key for row in rows for parent in row["run"].parents}
        return {
            run.label.split(" from ")[0]: self.model(run)
            for run in self.plan.models
            if run.key not in origins and self.store.has(run)
        }
