"""Which run comes next, without clocks or processes; and what is booked of workers that fail."""

import contextlib
from concurrent.futures import Future

from fusinglib.study.execution import Execution
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import Run
from fusinglib.study.schedule import TRIES, Schedule
from fusinglib.study.settings import FamilyTable
from fusinglib.study.store import Store

START = Run("pretrain", {})
SOURCES = [Run("source", {"task": {"name": name}}, (START,), label=name) for name in "abcd"]
A, B, C, D = SOURCES
MEANS = [Run("fuse", {}, pair, label="mean") for pair in ((A, B), (B, C))]
OTHER = Run("fuse", {"method": "ties"}, (A, B), label="ties")
TARGETS = [Run("target", {"seed": n}, (mean,), label="target") for n, mean in enumerate(MEANS)]
RUNS = [START, *SOURCES, *MEANS, OTHER, *TARGETS]


def schedule(*done: Run) -> Schedule:
    return Schedule(RUNS, {run.key for run in done})


def test_runs_come_after_what_they_start_from_and_means_together():
    found = schedule()
    assert found.next() == [START] and found.next() == []
    found.finish([START])
    for source in SOURCES:
        assert found.next() == [source]
        found.finish([source])
    assert found.next() == MEANS, "they share a model"
    assert found.next() == [OTHER] and not found.any_ready
    found.finish(MEANS)
    assert [found.next(), found.next()] == [[target] for target in TARGETS]
    found.finish([OTHER, *TARGETS])
    assert not found.left and found.done == {run.key for run in RUNS}


def test_a_batch_that_fails_goes_again_each_run_alone():
    found = schedule(START, *SOURCES)
    assert found.fail(found.next(), "no reason") == []
    first, second = found.next(), found.next()
    assert [first, second] == [[mean] for mean in MEANS]
    assert found.fail(first, "a reason") == first
    assert found.failed == {MEANS[0].key: "mean: a reason"}
    found.finish(second)
    assert [found.next(), found.next()] == [[OTHER], [TARGETS[1]]]
    assert not found.any_ready and found.waiting == [TARGETS[0]], "left out for want of its mean"


def test_a_batch_that_kills_its_worker_goes_again_each_run_alone():
    """Else the runs of a batch, of which one kills, would all be lost together."""
    found = schedule(START, *SOURCES)
    assert found.died(found.next()) == [] and found.suspect
    for death in range(2, TRIES + 1):
        batch = found.next()
        assert batch == [MEANS[0]]
        lost = found.died(batch)
        assert lost == (batch if death == TRIES else [])
    assert "died 3 times" in found.failed[MEANS[0].key]
    assert found.next() == [MEANS[1]]
    found.finish([MEANS[1]])
    assert not found.suspect


def test_a_corrupt_parent_is_redone_once_and_then_what_needed_it():
    found = schedule(START, *SOURCES)
    batch = found.next()
    assert found.redo(B, batch) and found.next() == [B]
    found.finish([B])
    batch = found.next()
    assert batch == MEANS
    assert not found.redo(B, batch), "the disk is at fault"


class Broken:
    """An executor of which every worker is lost, as Dask tells it: no traceback is written."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_exception(RuntimeError("all those workers died"))
        return future


class Shown:
    def __init__(self):
        self.texts = []

    def update(self, done, text, last=False):
        self.texts.append(text)

    def say(self, event):
        self.texts.append(event)


def test_a_failure_that_no_worker_could_write_is_written_here(mini):
    settings = FamilyTable.from_parameters({**mini, "executor": "processes"})
    plan, store = plan_experiment(settings), Store(mini["store"])
    pool = lambda: contextlib.nullcontext(Broken())  # noqa: E731
    failed = Execution(plan, store, settings, Shown(), pool, lambda: 1).carry_out()
    (key,) = failed
    assert key == plan.runs[0].key and "all those workers died" in failed[key]
    text = store.failure_file(key).read_text()
    assert "RuntimeError: all those workers died" in text


def test_the_time_left_is_shared_by_the_workers_that_there_are(mini):
    """Of a cluster those that have joined, not the cores of this machine."""
    settings = FamilyTable.from_parameters({**mini, "executor": "dask"})
    plan, store = plan_experiment(settings), Store(mini["store"])
    shown = Shown()
    found = Execution(plan, store, settings, shown, places=lambda: 4)
    for run in plan.runs:
        found.pace.learn(run, 1000.0)
    found.at_once = found.places()
    found._show()
    minutes = len(plan.runs) * 1000 / 4 / 60
    assert f"about {minutes / 60:.1f} h left" in shown.texts[-1]


def grid(count, **changed):
    """Finetunings on one task, each from a model of its own, as the plan has them."""
    made = []
    for number in range(count):
        start = Run("fuse", {"number": number})
        settings = {"training": {}, "seed": number % 3, **changed}
        made.append(Run("target", settings, (start,)))
    return made


def test_finetunings_on_one_task_make_stacks_of_nearly_equal_size():
    seven, other = grid(7), grid(2, fingerprint="of another task")
    parents = {run.parents[0].key for run in seven + other}
    found = Schedule(seven + other, parents, lambda run: 3)
    assert [found.next() for _ in range(5)] == [seven[:2], seven[2:4], seven[4:], other, []]


def test_a_stack_waits_for_all_of_it_but_not_for_what_cannot_be():
    runs = grid(4)
    first, *starts = [run.parents[0] for run in runs]
    found = Schedule([*starts, *runs], {first.key}, lambda run: 4)
    assert [found.next() for _ in starts] == [[start] for start in starts]
    assert found.next() == [] and not found.any_ready, "a run that could start waits for its stack"
    found.fail(starts[:1], "no reason")
    found.finish(starts[1:])
    assert found.next() == [runs[0], *runs[2:]]


def test_a_plan_has_the_same_stacks_however_much_of_it_is_done():
    runs = grid(6)
    starts = {run.parents[0].key for run in runs}
    found = Schedule(runs, starts | {runs[1].key}, lambda run: 3)
    assert [found.next(), found.next()] == [[runs[0], runs[2]], runs[3:]]


def test_runs_of_a_failed_stack_are_retried_one_by_one():
    runs = grid(3)
    found = Schedule(runs, {run.parents[0].key for run in runs}, lambda run: 3)
    assert found.fail(found.next(), "one of them diverged") == []
    assert [found.next() for _ in range(4)] == [[runs[0]], [runs[1]], [runs[2]], []]
