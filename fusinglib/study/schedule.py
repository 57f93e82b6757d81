"""Decide which runs come next: a state machine without clocks, processes or files."""

import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from fusinglib.study.plans import VERSIONS, Run

TRIES = 3
"""How often a run is started if its worker process dies."""

STACKED = ("source", "target")
"""The kinds of run that are finetunings."""

RANK = {kind: rank for rank, kind in enumerate(VERSIONS)}
"""Among ready runs, those that others wait for come first."""


class Schedule:
    """Runs that are `done`, `under_way`, `elsewhere` (another command computes them), `waiting` for
    others or for their turn, or `failed` (with the reason).

    Runs are taken in batches: means of overlapping models are computed in one pass, finetunings
    that differ in their seeds and in where they start from in stacks of at most `stack(run)`, all
    others alone. Which finetunings make a stack depends on the plan and on what is done already, so
    that undisturbed executions have the same ones, wherever.
    """

    def __init__(
        self, runs: Iterable[Run], done: set[str], stack: Callable[[Run], int] = lambda run: 1
    ):
        runs = list(runs)
        self.done, self.failed, self.stack = set(done), {}, stack
        self.stacks: dict[str, list[Run]] = {}
        self.alike: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            if run.kind in STACKED:
                self.alike[but_seed(run)].append(run)
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
        return any(self._batches())

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
        batch = next(self._batches(), [])
        for run in batch:
            self.waiting.remove(run)
            self.under_way[run.key] = run
        return batch

    def _batches(self) -> Iterator[list[Run]]:
        """What can be executed now."""
        seen = set()
        for run in self.waiting:
            if run.key in seen or not self._ready(run):
                continue
            if run.kind not in STACKED or run.key in self.alone:
                yield self._batch(run)
                continue
            stack = [one for one in self._stack_of(run) if self._waits(one)]
            seen |= {one.key for one in stack}
            late = [one for one in stack if not self._ready(one)]
            if all(map(self._hopeless, late)):
                yield [one for one in stack if one not in late]

    def _batch(self, first: Run) -> list[Run]:
        """A ready run, and those that share a pass with it."""
        if not self._shares(first):
            return [first]
        models = {parent.key for parent in first.parents}
        return [first] + [
            run
            for run in self.waiting
            if run is not first
            and self._shares(run)
            and self._ready(run)
            and not models.isdisjoint(parent.key for parent in run.parents)
        ]

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

    def _stack_of(self, run: Run) -> list[Run]:
        """The finetunings that the plan has in one stack with this one, those of a kind in stacks
        of nearly equal size."""
        if run.key not in self.stacks:
            alike = self.alike[but_seed(run)]
            count = math.ceil(len(alike) / self.stack(run))
            ends = [len(alike) * number // count for number in range(count + 1)]
            for start, end in itertools.pairwise(ends):
                one = alike[start:end]
                self.stacks |= dict.fromkeys((run.key for run in one), one)
        return self.stacks[run.key]

    def _waits(self, run: Run) -> bool:
        """Whether a run waits and may share a batch."""
        taken = (self.done, self.failed, self.under_way, self.elsewhere, self.alone)
        return not any(run.key in those for those in taken)

    def _hopeless(self, run: Run) -> bool:
        """Whether a run depends on one that has failed."""
        return any(
            parent.key in self.failed or self._hopeless(parent)
            for parent in run.parents
            if parent.key not in self.done
        )

    def _shares(self, run: Run) -> bool:
        """Whether a run is a plain mean, which can share a pass with others."""
        return run.kind == "fuse" and not run.settings and run.key not in self.alone


def but_seed(run: Run) -> str:
    """What a finetuning shares with those that it can be stacked with."""
    return json.dumps([run.kind, {**run.settings, "seed": None}], sort_keys=True)
