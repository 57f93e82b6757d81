"""What two worker processes gain over one on equal independent runs, and what this machine allows.

    python benchmarks/scaling.py --work DIR          # three minutes

In every round 12 target runs of the miniature T5 are executed by one worker process and by two,
which are up already. Beside them the limit: as many steps of the same training in bare processes
that share nothing, one and then two at a time. Two processors that are one core's two threads gain
less than 2 there, and so does everything on them. Writes `results/benchmarks/scaling.csv`.
"""

import argparse
import dataclasses
import multiprocessing
import shutil
import time
from pathlib import Path

import pandas as pd
import train

from fusinglib.places import PROJECT
from fusinglib.progress import Progress
from fusinglib.study.execution import Execution
from fusinglib.study.pools import KeptPool
from fusinglib.study.steps import _encoded, _opened
from fusinglib.study.store import Store
from fusinglib.training.finetuning import finetune
from fusinglib.training.settings import Training

SETTING = train.Setting("mini", "miniworld", ("topic", "irony", "sentiment", "mood"), 3, 50, 1.7)


def main() -> None:
    """Measure in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 50 MB")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    work = options.work.absolute()
    settings, known = train.settings_of(SETTING, work / "runs")
    plan = train.plan_of(settings, known, train.base(settings, work))
    pools = {number: KeptPool(number) for number in (1, 2)}
    for number, pool in pools.items():  # up, warm, and with the texts in their cache
        once(plan, settings, work, pool, number)
    rows = []
    for number in range(options.rounds):
        seconds = {f"runs, {n}": once(plan, settings, work, pools[n], n) for n in (1, 2)}
        seconds |= {f"bare, {n}": bare(plan.rows[0]["run"], work, n) for n in (1, 2)}
        rows.append({"round": number + 1, **seconds})
        print(rows[-1], flush=True)
    for pool in pools.values():
        pool.close()
    table = pd.DataFrame(rows)
    table["runs, gain of two"] = table["runs, 1"] / table["runs, 2"]
    table["bare, gain of two"] = 2 * table["bare, 1"] / table["bare, 2"]
    table.round(3).to_csv(PROJECT / "results/benchmarks/scaling.csv", index=False)
    for what in ("runs", "bare"):
        print(f"{what}: two gain {train.spread(table[f'{what}, gain of two'])}")


def once(plan, settings, work: Path, pool, workers: int) -> float:
    """Seconds of all runs, none of which is finished before."""
    store = Store(work / "runs")
    shutil.rmtree(store.root / "target", ignore_errors=True)
    settings = dataclasses.replace(settings, executor="processes", workers=workers)
    started = time.perf_counter()
    execution = Execution(plan, store, settings, Progress(len(plan.runs)), pool)
    assert not execution.carry_out()
    return time.perf_counter() - started


def bare(run, work: Path, processes: int) -> float:
    """Seconds that as many processes take for one training each, at the same time."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(processes + 1), context.Barrier(processes + 1)
    args = (run, work, ready, go)
    started = [context.Process(target=_train, args=args) for _ in range(processes)]
    for process in started:
        process.start()
    ready.wait()
    go.wait()
    began = time.perf_counter()
    for process in started:
        process.join()
    return time.perf_counter() - began


def _train(run, work: Path, ready, go) -> None:
    import torch

    torch.set_num_threads(1)
    store = Store(work / "runs")
    model = _opened(run, run.parents[0], store, "cpu")
    splits = _encoded(run, model, store).splits
    training = Training(**run.settings["training"])
    finetune(model, splits["train"], splits["dev"], dataclasses.replace(training, max_steps=10), 0)
    ready.wait()
    go.wait()
    finetune(model, splits["train"], splits["dev"], training, 0)


if __name__ == "__main__":
    main()
