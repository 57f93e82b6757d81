"""What plan, store and executor cost per run: real plans of the family table, with runs that do
nothing but leave files as large as those of real ones.

    python benchmarks/overhead.py          # 10, 1,000 and 20,000 runs; a few minutes, 1 GB of disk

Writes `results/benchmarks/overhead.csv`: seconds of planning, of a pass that makes all runs with
two worker processes, of a pass over the finished store and of loading its results, milliseconds
per run, and the peak memory of this process.
"""

import argparse
import contextlib
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from fusinglib.integrity import write_json
from fusinglib.places import PROJECT
from fusinglib.progress import Progress
from fusinglib.study import parameters, steps
from fusinglib.study.execution import Execution, results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.store import HISTORY, Store

SIZES = (10, 1_000, 20_000)
WORKERS = 2
OUTPUT = PROJECT / "results/benchmarks/overhead.csv"


def idle(run, store, folder, device, report) -> dict:
    """A step that leaves what a target run leaves."""
    write_json(folder / HISTORY, [{"step": 25 * i, "loss": 1.0, "ranked": 0.5} for i in range(6)])
    labels = np.zeros(1000, dtype=np.int16)
    steps.safetensors.numpy.save_file(
        {"ranked": labels, "exact": labels}, folder / "predictions.safetensors"
    )
    scores = {"accuracy": 0.5, "ranked": 0.5, "exact": 0.5, "macro_f1": 0.5, "invalid": 0.0}
    return {**scores, "majority": 0.5, "best_step": 25}


def idle_workers() -> None:
    """In a worker: all runs do nothing."""
    steps.STEPS = dict.fromkeys(steps.STEPS, idle)
    steps.perform_means = lambda runs, store: [steps.perform(run, store, "cpu") for run in runs]


@contextlib.contextmanager
def pool():
    """Worker processes whose runs do nothing, up and warm."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context, initializer=idle_workers) as workers:
        list(workers.map(time.sleep, [0.5] * WORKERS))
        yield workers


def measure(size: int, folder: Path) -> dict:
    """One plan of about `size` runs; times in seconds."""
    changed = {"store": str(folder), "workers": WORKERS}
    if size < 100:
        few = {"families": {"few": ["sentiment", "mood"]}, "sources": ["few"], "targets": ["few"]}
        changed |= few | {"seeds": [0], "arms": []}
    else:
        changed["seeds"] = list(range(round(size / 108)))
    settings = parameters.settings(
        "family_table", {**parameters.defaults("family_table"), **changed}
    )
    times, clock = {}, time.perf_counter

    def timed(name, work):
        started = clock()
        outcome = work()
        times[name] = clock() - started
        return outcome

    plan = timed("plan", lambda: plan_experiment(settings))
    store = Store(settings.store_folder())
    with pool() as workers:
        kept = lambda: contextlib.nullcontext(workers)  # noqa: E731
        execution = Execution(plan, store, settings, Progress(len(plan.runs)), kept)
        assert not timed("make", execution.carry_out)
    timed("resume", lambda: Execution(plan, store, settings, Progress(len(plan.runs))).carry_out())
    frame = timed("results", lambda: results(plan, store))
    assert len(frame) == len(plan.rows) and frame["accuracy"].notna().all()
    timed("export", store.results)
    per_run = 1000 * (times["make"] + times["plan"]) / len(plan.runs)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"runs": len(plan.runs), **times, "ms per run": per_run, "MB": memory}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, help="measure this size alone, printed as CSV")
    size = options.parse_args().size
    if size:
        with tempfile.TemporaryDirectory() as folder:
            row = pd.DataFrame([measure(size, Path(folder))])
        print(row.to_csv(index=False, float_format="%.3f"), end="")
        return
    tables = []
    for size in SIZES:  # a process each, so that memory is that of the size
        words = [sys.executable, __file__, "--size", str(size)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        tables.append(done.stdout.splitlines())
    text = "\n".join([tables[0][0], *(lines[-1] for lines in tables)]) + "\n"
    OUTPUT.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
