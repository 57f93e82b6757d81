"""Kill a study at random moments, start it again each time, and compare with an undisturbed run.

    python benchmarks/survive_kills.py --params params/mini/family_table.yaml \\
        --executor processes --kills 5 --store killed --reference runs

`--store` must be new; `--reference` holds the same study, executed undisturbed. Each kill is a
SIGKILL, in turn of the command alone (what it started must then end by itself), of the notebook's
kernel, of a worker (the study must then go on by itself), and of all processes at once (as in a
power cut). Exit status 0 if the study survived.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from safetensors.numpy import load_file

from fusinglib.study import parameters
from fusinglib.study.execution import results
from fusinglib.study.experiments import plan_experiment
from fusinglib.study.plans import Plan
from fusinglib.study.store import PENDING, Store

VICTIMS = {
    "serial": ("the command", "the kernel", "all processes"),
    "processes": ("the command", "a worker", "the kernel", "all processes"),
}
"""By executor, who is killed in turn."""

PATIENCE = 20
"""Seconds in which every process must have ended after the command was killed."""


def main() -> int:
    """Read the command line, kill, compare, report."""
    options = _parser().parse_args()
    overrides = [*options.set, f"executor={options.executor}", f"store={options.store}"]
    chosen = parameters.choose("family_table", options.params, overrides)
    plan = plan_experiment(parameters.settings("family_table", chosen))
    command = ["--params", options.params]
    for text in overrides:
        command += ["--set", text]

    victims = VICTIMS[options.executor]
    problems = kill_and_restart(command, plan, options.store, victims, options.kills, options.seed)
    problems += compare(plan, options.store, options.reference)
    print(*problems or ["survived: same results bit for bit, nothing lost or made twice"], sep="\n")
    return 1 if problems else 0


def kill_and_restart(
    command: list[str], plan: Plan, store: Path, victims: Sequence[str], kills: int, seed: int
) -> list[str]:
    """Run the study into the new folder `store`, killed `kills` times; what went wrong.

    `command` is what follows `python -m fusinglib run family_table --output ...`; `victims` are
    killed in turn. The moments are spread over the plan: one at random in each of its `kills`
    parts, counted in finished runs, and up to a second later.
    """
    rng = random.Random(seed)
    print(f"{len(plan.runs)} runs, {kills} kills, seed {seed}")
    problems, started = [], time.monotonic()
    seen: dict[str, tuple[int, int]] = {}
    process = start(command, store)
    for number in range(kills):
        victim = victims[number % len(victims)]
        wanted = int(len(plan.runs) * (number + rng.random()) / kills)
        wait_for(process, store, wanted, rng.random())
        if process.poll() is not None:
            problems.append(f"kill {number + 1}: the command had ended, status {process.poll()}")
            process = start(command, store)
            continue
        before = finished(store)
        problems += made_anew(seen, before)
        survivors = kill_worker(process, store) if victim == "a worker" else kill(process, victim)
        problems += [f"kill {number + 1}: still running: {name}" for name in survivors]
        seen = finished(store)
        problems += made_anew(before, seen)
        print(
            f"kill {number + 1} ({victim}) after {time.monotonic() - started:.0f} s: "
            f"{len(before)} runs finished before, {len(seen)} after",
            flush=True,
        )
        if victim != "a worker":
            process = start(command, store)
    if process.wait():
        problems.append(f"the last start ended with status {process.returncode}")
    end = finished(store)
    print(f"done after {time.monotonic() - started:.0f} s: {len(end)} runs finished")
    left = [path.name for path in (store / PENDING).iterdir()]
    return problems + made_anew(seen, end) + [f"left pending: {name}" for name in left]


def start(command: list[str], store: Path) -> subprocess.Popen:
    """Start the study; what it prints goes to a file beside the store."""
    words = [sys.executable, "-m", "fusinglib", "run", "family_table", *command]
    output = store.with_name(store.name + "-executed")
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "log.txt", "a") as log:
        return subprocess.Popen(
            [*words, "--output", output], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def wait_for(process: subprocess.Popen, store: Path, runs: int, seconds: float) -> None:
    """Wait until something is running and `runs` runs are finished, then `seconds` more."""
    while process.poll() is None:
        if len(finished(store)) >= runs and busy(process, store):
            time.sleep(seconds)
            return
        time.sleep(0.1)


def busy(process: subprocess.Popen, store: Path) -> list[psutil.Process]:
    """The processes that the command started and that have a run in progress."""
    owners = {int(path.name.split("-")[-2]) for path in (store / PENDING).glob("*-*")}
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if child.pid in owners]
    return []


def kill(process: subprocess.Popen, victim: str) -> list[str]:
    """SIGKILL the command, its kernel or all; which of the processes live on in the end."""
    started = psutil.Process(process.pid).children(recursive=True)
    if victim != "the kernel":
        process.send_signal(signal.SIGKILL)
    for child in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            kernel = "ipykernel_launcher" in child.cmdline()
            if victim == "all processes" or (victim == "the kernel" and kernel):
                child.kill()
    process.wait()
    _, alive = psutil.wait_procs(started, timeout=PATIENCE)
    alive = [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    names = [f"{child.pid} {' '.join(child.cmdline()[:4])}" for child in alive]
    for child in alive:
        child.kill()
    return names


def kill_worker(process: subprocess.Popen, store: Path) -> list[str]:
    """SIGKILL a process that has a run in progress, if there is one; which need not end
    anything."""
    for worker in busy(process, store)[:1]:
        worker.kill()
    return []


def finished(store: Path) -> dict[str, tuple[int, int]]:
    """Every finished run, with inode and time of its result: both change if it is recomputed."""
    paths = [path / "result.json" for path in store.glob("[!.]*/*") if path.is_dir()]
    facts = [(path.parent, path.stat()) for path in paths]
    return {str(run.relative_to(store)): (stat.st_ino, stat.st_mtime_ns) for run, stat in facts}


def made_anew(before: dict, after: dict) -> list[str]:
    """What was finished before and is gone or another one after."""
    return [f"{run} was lost or recomputed" for run in before if after.get(run) != before[run]]


def compare(plan: Plan, store: Path, reference: Path) -> list[str]:
    """How the results and weights in `store` differ from those in `reference`, bit for bit."""
    ours, theirs = Store(store), Store(reference)
    lacking = [run.label for run in plan.runs if not (ours.has(run) and theirs.has(run))]
    if lacking:
        return [f"not in both stores: {label}" for label in lacking]
    tables = [results(plan, one).drop(columns="seconds") for one in (ours, theirs)]
    problems = [] if tables[0].equals(tables[1]) else ["the results differ"]
    for run in plan.runs:
        files = [path.relative_to(ours.path(run)) for path in weights(ours.path(run))]
        if files != [path.relative_to(theirs.path(run)) for path in weights(theirs.path(run))]:
            problems.append(f"{run.kind} {run.label}: other files")
        for file in files:
            if tensors(ours.path(run) / file) != tensors(theirs.path(run) / file):
                problems.append(f"{run.kind} {run.label}: {file} differs")
    return problems


def weights(folder: Path) -> list[Path]:
    """The safetensors files under `folder`: models and predictions."""
    return sorted(folder.rglob("*.safetensors"))


def tensors(file: Path) -> dict[str, tuple]:
    """Type, shape and bytes of every tensor (the header of a mean names the folders it is of)."""
    return {n: (t.dtype, t.shape, t.tobytes()) for n, t in load_file(file).items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--params", required=True, help="a parameter file of family_table")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[])
    parser.add_argument("--executor", default="processes", choices=["serial", "processes"])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--store", type=Path, required=True, help="a new folder")
    parser.add_argument("--reference", type=Path, required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
