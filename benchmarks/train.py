"""Time of finetuning: one run, and a grid of runs, beside loops around the Transformers Trainer.

    HF_HOME=... HF_HUB_OFFLINE=1 python benchmarks/train.py --work DIR

Settings (`SETTINGS`): one run of the miniature T5 and of a small encoder, and grids of 24 and 12 of
them. All contestants run once in each round, in processes of their own, each round beginning with
another:

    ours, N threads     the runs' plan executed into an empty store, each run alone: a single run
                        with one thread or two; of a grid one run for every core, in worker
                        processes
    ours, stacked       a grid in stacks of at most STACK runs, one stack for every core
    trainer, N threads  train_peer.py, what a user would write: one process, a run after the other

Both make the same runs: the same model, texts, seeds, batches sorted by length, steps, evaluations
on the dev set, best weights restored, test set predicted. `runs` is the time that they take inside
processes which have imported everything (ours holds planning and reading the texts as well),
`command` that of the whole process. What was done and how accurate it was is compared at the end.
The miniature T5 is made first, and kept in `--work`; the encoder's data and weights come from the
cache that HF_HOME names.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fusinglib.places import PROJECT

PEER = Path(__file__).with_name("train_peer.py")
STACK = 8
"""Runs of a grid that are trained as one by the stacked contestant."""

THREADS = (1, 2)
"""Of the peer, and of ours where there is one run; what is faster counts, on either side."""


class Setting(NamedTuple):
    """Runs on the parameters of `params`/common.yaml, but of `steps` batches (0: as many as there);
    `wanted` is the peer's time over ours."""

    params: str
    model: str
    tasks: tuple[str, ...]
    seeds: int
    eval_every: int
    wanted: float
    steps: int = 0


MINI = ("mood", "topic", "irony", "sentiment", "emotion", "entailment", "answerable", "inference")
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SETTINGS = {
    "one T5": Setting("mini", "miniworld", ("topic",), 1, 50, 1.5),
    "one encoder": Setting("tweets", MINILM, ("irony",), 1, 20, 1.2),
    "24 of T5": Setting("mini", "miniworld", MINI, 3, 50, 4.0),
    "12 of an encoder": Setting(
        "tweets", MINILM, ("emotion", "hate", "irony", "offensive"), 3, 20, 1.7, 40
    ),
}


def main() -> int:
    """Read the command line, measure, report."""
    options = _parser().parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.setting or SETTINGS:
        rounds = options.rounds if SETTINGS[name].seeds == 1 else max(1, options.rounds // 2)
        report(name, pd.DataFrame(measure(name, rounds, work)), options.output)
    return 0


def measure(name: str, rounds: int, work: Path) -> list[dict]:
    """All rounds of a setting: a row per contestant, round, and `runs` or `command`."""
    print(name, file=sys.stderr)
    setting, rows = SETTINGS[name], []
    with tempfile.TemporaryDirectory(dir=work) as folder:
        spec = prepare(setting, work, Path(folder))
        one = len(setting.tasks) * setting.seeds == 1
        ours = THREADS if one else THREADS[:1]
        contestants = {f"ours, {n} threads": [__file__, "--ours", spec(n)] for n in ours}
        if not one:
            contestants["ours, stacked"] = [__file__, "--ours", spec(1, STACK)]
        contestants |= {f"trainer, {n} threads": [PEER, spec(n)] for n in THREADS}
        names = list(contestants)
        for number in range(rounds):
            start = number % len(names)
            for contestant in names[start:] + names[:start]:
                shutil.rmtree(Path(folder) / "store", ignore_errors=True)
                began = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, *contestants[contestant]], capture_output=True, text=True
                )
                whole = time.perf_counter() - began
                if done.returncode:
                    raise SystemExit(f"{contestant}: {done.stderr[-2000:]}")
                made = pd.DataFrame(map(json.loads, done.stdout.splitlines()))
                row = {"setting": name, "contestant": contestant, "round": number + 1}
                row |= {"runs": len(made), "accuracy": 100 * made["accuracy"].mean()}
                row |= {key: int(made[key].sum()) for key in ("steps", "evaluations", "train")}
                inside = made["seconds"].sum()
                print(f"  round {number + 1}, {contestant}: {inside:.1f} s", file=sys.stderr)
                rows.append(row | {"what": "runs", "seconds": inside})
                rows.append(row | {"what": "command", "seconds": whole})
    return rows


def prepare(setting: Setting, work: Path, folder: Path):
    """Write what the contestants read; returns how to write a spec for a number of threads."""
    from fusinglib.study.store import Store
    from fusinglib.training import data, folders
    from fusinglib.training.data import SPLITS

    settings, known = settings_of(setting, work / "runs")
    model = Store(work / "runs").model(base(settings, work))
    text_to_text = folders.is_text_to_text(model)
    for name in setting.tasks:
        loaded = data.load(known[name], settings.data())
        labels = data.label_texts(known[name], settings.text_format)
        (folder / f"{name}-labels.json").write_text(json.dumps(labels))
        for split in SPLITS:
            part = getattr(loaded, split)
            rows = []
            for text, label in zip(part.texts, part.labels, strict=True):
                if text_to_text:
                    given = {"text": data.text_input(known[name], text, settings.text_format)}
                else:
                    given = dict(
                        zip(("text", "pair"), data.pair_input(known[name], text), strict=False)
                    )
                rows.append(json.dumps({**given, "label": label}))
            (folder / f"{name}-{split}.json").write_text("\n".join(rows))
    how = {
        **dataclasses.asdict(settings.target_training()),
        "max_length": settings.max_length,
    }
    runs = [(name, seed) for name in setting.tasks for seed in settings.seeds]

    def spec(threads: int, stack: int = 1) -> Path:
        file = folder / f"spec-{threads}-{stack}.json"
        content = {
            "model": str(model), "data": str(folder), "text_to_text": text_to_text,
            "training": how, "runs": runs, "threads": threads, "stack": stack,
            "store": str(folder / "store"), "setting": setting,
        }  # fmt: skip
        file.write_text(json.dumps(content))
        return file

    return spec


def settings_of(setting: Setting, store: Path, model: str = ""):
    """The settings of a family table whose target runs these are, and all tasks by name."""
    from fusinglib.study import parameters

    one = len(setting.tasks) == 1 and setting.seeds == 1
    given = {
        "model": model or setting.model, "families": {"tasks": list(setting.tasks)},
        "tasks": "miniworld" if setting.model == "miniworld" else "paper",
        "sources": ["tasks"], "targets": ["tasks"], "seeds": list(range(setting.seeds)),
        "eval_every": setting.eval_every, "group_by_length": True, "store": str(store),
        "executor": "serial" if one else "processes",
        "common": f"params/{setting.params}/common.yaml",
    }  # fmt: skip
    settings = parameters.settings("family_table", given)
    most = setting.steps or settings.target_max_steps
    settings = dataclasses.replace(settings, target_max_steps=most, target_patience=most)
    return settings, settings.known_tasks()[0]


def plan_of(settings, known, model):
    """The plan of all runs from `model`, for which all texts are read."""
    from fusinglib.study.plans import Builder
    from fusinglib.training import data

    loaded = {name: data.load(known[name], settings.data()) for name in settings.families["tasks"]}
    builder = Builder(settings, loaded)
    builder.without_sources("pretrained", model, list(loaded))
    return builder.plan(settings.families)


def base(settings, work: Path):
    """The run of the model that all runs start from, made where the store in `work` lacks it."""
    from fusinglib.study.resolver import base_model
    from fusinglib.study.steps import perform
    from fusinglib.study.store import Store

    store = Store(work / "runs")
    run, _ = base_model(settings)
    perform(run, store, "cpu")
    return run


def ours(spec: dict) -> None:
    """Carry the runs out into an empty store, and print them as the peer does."""
    from fusinglib.progress import Progress
    from fusinglib.study.execution import Execution, results
    from fusinglib.study.pools import KeptPool, workers
    from fusinglib.study.resolver import base_model
    from fusinglib.study.steps import perform
    from fusinglib.study.store import Store

    settings, known = settings_of(Setting(*spec["setting"]), Path(spec["store"]), spec["model"])
    settings = dataclasses.replace(settings, threads=spec["threads"], stack=spec["stack"])
    store = Store(settings.store_folder())
    model, _ = base_model(settings)
    perform(model, store, "cpu")  # a copy, which the peer does without: not timed
    pool = KeptPool(workers(settings)) if settings.executor == "processes" else None
    if pool:  # up, and all imported, as the peer is when its clock starts
        list(pool.pool.map(time.sleep, [1.0] * pool.count))
    started = time.perf_counter()
    plan = plan_of(settings, known, model)
    Execution(plan, store, settings, Progress(len(plan.runs)), pool).carry_out()
    made = results(plan, store)
    seconds = (time.perf_counter() - started) / len(made)
    if pool:
        pool.close()
    for row in made.itertuples():
        # `exact` is what generation writes; a classifier's is its best label
        evaluations = -(-row.steps // settings.eval_every) + 1
        done = {"accuracy": row.exact, "steps": row.steps, "evaluations": evaluations}
        print(json.dumps({"seconds": seconds, **done, "train": row.n_train}))


def report(name: str, made: pd.DataFrame, folder: Path) -> None:
    """Put the results of a setting beside those of others, and print ratios: the faster peer of
    each round over the faster of ours."""
    results, file = made.round({"seconds": 3, "accuracy": 2}), folder / "train.csv"
    if file.is_file():
        before = pd.read_csv(file)
        results = pd.concat([before[before["setting"] != name], results])
    order = list(SETTINGS).index
    results = results.sort_values("setting", key=lambda names: names.map(order), kind="stable")
    results.to_csv(file, index=False)
    lines = []
    for (setting, what), rows in results.groupby(["setting", "what"], sort=False):
        seconds = rows.pivot(index="round", columns="contestant", values="seconds")
        ours = seconds.filter(like="ours").min(axis=1)
        ratio = seconds.filter(like="trainer").min(axis=1) / ours
        line = f"{setting}, {what}: trainer / ours {spread(ratio)}"
        line += f"; wanted {SETTINGS[setting].wanted}" if what == "runs" else ""
        lines.append(f"{line} (ours {ours.median():.1f} s)")
        if "ours, stacked" in seconds:
            gain = seconds["ours, 1 threads"] / seconds["ours, stacked"]
            lines.append(f"{setting}, {what}: one by one / stacked {spread(gain)}")
    work = ["runs", "steps", "evaluations", "train"]
    table = results[results["what"] == "runs"].groupby(["setting", "contestant"], sort=False)
    done = table.agg({**dict.fromkeys(work, "first"), "accuracy": "mean"}).round(1)
    lines += ["", "done, and test accuracy in percent:", done.to_string()]
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), end="\n\n", flush=True)


def spread(values: pd.Series) -> str:
    """Median (least to most)."""
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 200 MB")
    parser.add_argument(
        "--output", type=Path, default=PROJECT / "results/benchmarks", metavar="DIR"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of single runs; grids: half as many")
    parser.add_argument("--setting", nargs="+", choices=list(SETTINGS), metavar="NAME")
    return parser


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # no contestant asks the Hub
    if sys.argv[1:2] == ["--ours"]:
        ours(json.loads(Path(sys.argv[2]).read_text()))
    else:
        sys.exit(main())
