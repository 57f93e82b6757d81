"""How long the notebooks of `make demo` take: in stacks, run by run, and before there were stacks.

    git worktree add DIR/before 9f0babb
    python benchmarks/demo.py --work DIR --before DIR/before   # an hour and a quarter on two cores

Each notebook is executed from the command line, side by side: in stacks in one store, run by run in
another, by an earlier version in a third, and each begins with what its earlier notebooks left
there. 9f0babb is the last version without stacks; its demo had the same runs but for those from
random weights under two decays, which came later. Writes a row for each notebook to
`results/benchmarks/demo.csv`. `--set seeds=[0]` and `--notebooks` make it shorter;
`results/benchmarks/demo_before.csv` has the family table alone.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from fusinglib.places import PROJECT
from fusinglib.study.settings import EXPERIMENTS

WAYS = {"stacks": ["stack=0"], "run by run": ["stack=1"], "before": []}


def main() -> None:
    """Execute, print and write the seconds of each notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 500 MB")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version")
    parser.add_argument("--notebooks", nargs="+", default=notebooks(), metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks/demo.csv")
    options = parser.parse_args()
    ways = [way for way in WAYS if way != "before" or options.before]
    rows = []
    for number, name in enumerate(options.notebooks):
        order = ways if number % 2 == 0 else ways[::-1]
        seconds = {way: executed(name, way, options) for way in order}
        rows.append({"notebook": name} | {way: seconds[way] for way in ways})
        print(rows[-1], flush=True)
        pd.DataFrame(rows).round(2).to_csv(options.output, index=False)
    total = pd.DataFrame(rows)[ways].sum()
    for way in ways[1:]:
        print(f"in stacks {total[way] / total['stacks']:.2f} times as fast as {way}")


def notebooks() -> list[str]:
    """The notebooks that `make demo` executes, in its order."""
    return [name for name in EXPERIMENTS if (PROJECT / f"params/mini/{name}.yaml").is_file()]


def executed(name: str, way: str, options: argparse.Namespace) -> float:
    """Seconds that a notebook takes, from the command line, in the store of this way."""
    version = options.before.absolute() if way == "before" else PROJECT
    folder = options.work.absolute() / "stores" / way.replace(" ", "-")
    command = [sys.executable, "-m", "fusinglib", "run", name, "--output", str(folder / "executed")]
    command += ["--params", f"params/mini/{name}.yaml"]
    for change in [*WAYS[way], *options.set]:
        command += ["--set", change]
    environment = os.environ | {"FUSINGLIB_STORE": f"{folder}/runs", "PYTHONPATH": str(version)}
    started = time.perf_counter()
    subprocess.run(command, cwd=version, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
