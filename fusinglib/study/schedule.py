"""Decide which runs come next: a state machine without clocks, processes or files."""

from collections import Counter
from collections.abc import Iterable

from fusinglib.study.plans import VERSIONS, Run

TRIES = 3
"""How often a run is started if its worker process dies."""

RANK = {kind: rank for rank, kind in enumerate(VERSIONS)}
"""Among ready runs, those that others wait for come first."""


class Schedule:
    """Runs that are `done`, `under_way`, `elsewhere` (another command computes them), `waiting` for
    others or for their turn, or `failed` (with the reason).

    Runs are taken in batches: means of overlapping models are computed in one pass, all others
    alone.
    """

    def __init__(self, runs: Iterable[Run], done: set[str]):
        self.done, self.failed = set(done), {}
        self.waiting = [run for run in runs if run.key not in self.done]
        self.waiting.sort(key=lambda run: RANK[run.kind])
        self.under_way: dict[str, Run] = {}
        self.elsewhere: dict[str, Run] = {}
        self.deaths: Counter[str] = Counter()
        self.alone: set[str] = set()
        self.redone: set[str] = set()

    @property
    def any_ready(self) -> bool:
        """Whether a run waits only for its turn."""
        return any(self._ready(run) for run in self.waiting)

    @property
    def left(self) -> list[Run]:
        """The runs that are neither done nor failed."""
        return [*self.waiting, *self.under_way.values(), *self.elsewhere.values()]

    @property
    def suspect(self) -> bool:
        """Whether a run is left whose worker died: then only one runs at a time."""
        return bool(self.deaths) and any(run.key in self.deaths for run in self.left)

    def next(self) -> list[Run]:
        """Take a batch of ready runs, now under way; empty if nothing is ready."""
        first = next((run for run in self.waiting if self._ready(run)), None)
        if not first:
            return []
        batch = [first]
        if self._shares(first):
            models = {parent.key for parent in first.parents}
            batch += [
                run
                for run in self.waiting
                if run is not first
                and self._shares(run)
                and self._ready(run)
                and not models.isdisjoint(parent.key for parent in run.parents)
            ]
        for run in batch:
            self.waiting.remove(run)
            self.under_way[run.key] = run
        return batch

    def finish(self, batch: Iterable[Run]) -> None:
        """Runs that were under way are done."""
        for run in batch:
            del self.under_way[run.key]
            self.done.add(run.key)

    def leave(self, batch: Iterable[Run]) -> None:
        """Another command computes these runs, which were ours to compute."""
        for run in batch:
            self.elsewhere[run.key] = self.under_way.pop(run.key)

    def resume(self, run: Run, done: bool) -> None:
        """Another command has finished a run, or given it up: then it is ours again."""
        del self.elsewhere[run.key]
        if done:
            self.done.add(run.key)
        else:
            self.waiting.insert(0, run)

    def fail(self, batch: list[Run], why: str) -> list[Run]:
        """A batch failed: a single run for good; several are retried one by one. Returns the runs
        that have failed for good."""
        if len(batch) > 1:
            self._again(batch)
            return []
        (run,) = batch
        del self.under_way[run.key]
        self.failed[run.key] = why if run.label in why else f"{run.label}: {why}"
        return batch

    def died(self, batch: list[Run]) -> list[Run]:
        """The worker of a batch died: its runs are retried one by one. Returns the runs whose
        workers died too often, which have failed for good."""
        self.deaths.update(run.key for run in batch)
        lost = [run for run in batch if self.deaths[run.key] >= TRIES]
        for run in lost:
            self.fail([run], f"its process died {TRIES} times (out of memory?)")
        self._again([run for run in batch if run not in lost])
        return lost

    def redo(self, run: Run, batch: list[Run]) -> bool:
        """A finished run that a running batch needed is corrupt: both are redone. False if that has
        happened before: then the disk is at fault."""
        self._again(batch, alone=False)
        if run.key not in self.done:  # another batch reported it
            return True
        if run.key in self.redone:
            return False
        self.redone.add(run.key)
        self.done.discard(run.key)
        self.waiting.insert(0, run)
        return True

    def _again(self, batch: list[Run], alone: bool = True) -> None:
        for run in batch:
            del self.under_way[run.key]
        self.alone.update(run.key for run in batch if alone)
        self.waiting[:0] = batch

    def _ready(self, run: Run) -> bool:
        return all(parent.key in self.done for parent in run.parents)

    def _shares(self, run: Run) -> bool:
        """Whether a run is a plain mean, which can share a pass with others."""
        return run.kind == "fuse" and not run.settings and run.key not in self.alone
