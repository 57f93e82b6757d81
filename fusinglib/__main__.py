"""The command line: `fusinglib new | run | lab | tasks | fuse | store`."""

import argparse
import inspect
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from fusinglib.errors import InputError, missing


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Bad input prints one line and returns 2; any other failure returns 1."""
    options = command_line().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        status = options.command(options)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"error: {missing(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; finished runs are kept: start the same command again to go on",
              file=sys.stderr)  # fmt: skip
        return 130


def _terminate(number, frame) -> None:
    """End as Ctrl-C does, so that nothing half-written stays behind."""
    raise KeyboardInterrupt


def new(options: argparse.Namespace) -> int:
    """Create a project of your own: a new folder with the notebooks and parameter files."""
    from fusinglib.places import SHIPPED

    folder = Path(options.folder)
    if folder.exists():
        raise InputError(f"{folder} already exists: name a new folder")
    for name in ("notebooks", "params"):
        shutil.copytree(SHIPPED / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    index = (folder / "notebooks/index.ipynb").read_text(encoding="utf-8")
    for picture in re.findall(r"\.\./([^)]+\.png)", index):
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SHIPPED / picture, folder / picture)
    print(
        f"{folder} holds notebooks/ and params/; finished runs will go to {folder}/runs. Next:\n"
        f"  cd {shlex.quote(str(folder))}\n  fusinglib lab"
    )
    return 0


def lab(options: argparse.Namespace) -> int:
    """Open the project's notebooks in JupyterLab."""
    from fusinglib.places import project

    if not (project() / "notebooks/index.ipynb").is_file():
        raise InputError("there are no notebooks here: make some with `fusinglib new my-study`")
    os.chdir(project())
    page = "--LabApp.default_url=/lab/tree/notebooks/index.ipynb"
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []  # containers
    words = [sys.executable, "-m", "jupyterlab", page, *root, *options.arguments]
    os.execv(sys.executable, words)


def run(options: argparse.Namespace) -> int:
    """Execute one notebook, or all that a folder has parameter files for, or print their plans."""
    from fusinglib.study import parameters

    studies = {}
    for name, file in _chosen(options).items():
        chosen = parameters.choose(name, file, options.set)
        studies[name] = chosen, parameters.settings(name, chosen)
    if options.plan:
        for name, (_, settings) in studies.items():
            if options.all:
                print(name)
            _print_plan(settings)
        return 0
    if options.all:
        return _run_all(studies, options)
    ((name, (chosen, _)),) = studies.items()
    return _execute(name, chosen, options)


def _run_all(studies: dict, options: argparse.Namespace) -> int:
    """Execute one notebook after the other; the summary page grows with them."""

    from fusinglib.study import summary

    output, names, statuses = Path(options.output), list(studies), []
    page = output / "summary.html"
    for number, (name, (chosen, _)) in enumerate(studies.items(), 1):
        print(f"\n{name} ({number} of {len(names)})", flush=True)
        try:
            statuses.append(_execute(name, chosen, options))
        except InputError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            statuses.append(2)
        done = [output / f"{name}.ipynb" for name in names[:number]]
        summary.write([path for path in done if path.is_file()], page, names[number:])
        print(page, flush=True)
    return max(statuses)


def _chosen(options: argparse.Namespace) -> Mapping[str, str | None]:
    """The requested notebooks, with their parameter files."""
    from fusinglib.places import shipped
    from fusinglib.study.settings import EXPERIMENTS

    if not options.all:
        if not options.notebook:
            raise InputError("name a notebook, or ask for --all")
        return {options.notebook: options.params}
    folder = Path(options.params or "params/mini")
    folder = folder if folder.is_dir() else shipped(folder)
    files = {name: folder / f"{name}.yaml" for name in EXPERIMENTS}
    found = {name: str(file) for name, file in files.items() if file.is_file()}
    if options.notebook or not found:
        raise InputError(
            "--all takes a folder of parameter files (--params) and no notebook, but got "
            f"{options.notebook or folder}"
        )
    return found


def _execute(name, chosen, options) -> int:
    """Execute one notebook, print what it reports, and return the exit status."""
    from fusinglib.study import notebooks

    output = Path(options.output)
    try:
        executed = notebooks.run(name, chosen, output)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (output / f"{name}.txt").write_text(_command(name, options))
    print(notebooks.report(executed))
    print(f"\n{executed}")
    missing = notebooks.missing(executed)
    if missing:
        lines = [*notebooks.failures(executed), f"error: {missing} results are missing"]
        print("\n".join(lines), file=sys.stderr)
    return 1 if missing else 0


def _print_plan(settings) -> None:
    from fusinglib.evaluation import tables
    from fusinglib.study.costs import Calibration, estimate
    from fusinglib.study.experiments import plan_experiment
    from fusinglib.study.store import Store

    store, plan = Store(settings.store_folder()), plan_experiment(settings)
    print(tables.show(estimate(plan, store, settings, Calibration(settings)), decimals=2))
    for note in plan.notes:
        print(note)


def _command(name: str, options: argparse.Namespace) -> str:
    """The command that repeats the run of one notebook."""
    words = ["fusinglib", "run", name]
    file = _chosen(options)[name]
    words += ["--params", file] if file else []
    words += ["--output", options.output]
    for text in options.set:
        words += ["--set", text]
    return shlex.join(words) + "\n"


def tasks(options: argparse.Namespace) -> int:
    """List tasks with statistics of their data, or show some of their texts."""
    import pandas as pd

    from fusinglib.evaluation.tables import show
    from fusinglib.study import parameters, resolver
    from fusinglib.training import description
    from fusinglib.training.tasks import find

    chosen = parameters.choose("family_table", options.params, options.set)
    settings = parameters.settings("family_table", chosen)
    known, how = settings.known_tasks()[0], settings.data()
    named = [find(name, known) for name in options.names or known]
    if options.show:
        for task in named:
            print(f"{task.name}: {task.hub_id} ({task.config})")
            print(description.show(task, how, options.show))
        return 0
    try:
        length, unit = resolver.length_of(settings), "tokens"
    except InputError:  # the model is not available
        length, unit = lambda task, text: sum(len(part.split()) for part in text), "words"
    table = description.describe(named, how, length)
    print(show(table.drop(columns="notes")))
    print(
        f"split rule {how.split_rule!r}. groups: groups of test examples that share texts; error: "
        f"binomial standard error at 50 %, in points; overlap: % of test examples that share a "
        f"text with train; overlaps: % that share a passage with the training split of other "
        f"tasks, from 1 % on; length: of an input, in {unit}"
    )
    for name, notes in table["notes"].to_dict().items():
        if notes:
            print(f"{name}: {notes}")
    unread = [name for name, rows in table["train"].to_dict().items() if pd.isna(rows)]
    if unread:
        print(f"error: cannot read {', '.join(unread)} (see above)", file=sys.stderr)
    return 2 if unread else 0


def fuse(options: argparse.Namespace) -> int:
    """Fuse models into a new folder, or only report whether and how they can be fused."""
    from fusinglib.fusion import upload
    from fusinglib.fusion.engine import fuse

    if options.adapter:
        return _fuse_adapters(options)
    if options.rank:
        raise InputError("--rank is of an adapter: add --adapter, or leave it out")
    settings = _settings(options.set)
    for name in settings.keys() & inspect.signature(fuse).parameters.keys():
        raise InputError(
            f"--set {name}: it is not a setting of a method; see fusinglib fuse --help"
        )
    what = {
        "models": options.models, "method": options.method, "weights": options.weights,
        "pretrained": options.pretrained, "dtype": options.dtype, "heads": options.heads,
        "untie": options.untie, **settings,
    }  # fmt: skip
    if options.models[0].endswith((".yml", ".yaml")):
        what = _recipe(options)
    what["models"] = [_place(model) for model in what["models"]]
    if what.get("pretrained"):
        what["pretrained"] = _place(what["pretrained"])
    if options.push and not _may_push(options, fuse, what):
        return 1
    report = fuse(
        output=options.output, dry_run=options.dry_run,
        max_shard_size=options.max_shard_size, allow_pickle=options.allow_pickle, **what,
    )  # fmt: skip
    print(report)
    if not options.dry_run:
        print(options.output)
    if options.push:
        print(upload.push(Path(options.output), options.push, report.recipe))
    return 2 if report.problems else 0


def _may_push(options: argparse.Namespace, fuse, what: dict) -> bool:
    """Show what will be fused and uploaded, and ask; raises `InputError` if it cannot be."""
    from fusinglib.fusion import upload

    if options.dry_run or not options.output:
        raise InputError("--push needs --output, and no --dry-run: it shows the plan and asks")
    upload.check(options.push)
    report = fuse(dry_run=True, allow_pickle=options.allow_pickle, **what)
    if report.problems:
        raise InputError(report.problems[0])
    if options.yes:
        return True
    print(report)
    if not sys.stdin.isatty():
        raise InputError("--push asks before it uploads: pass --yes to answer beforehand")
    return input(f"Fuse, and upload to {options.push}? [y/N] ").strip().lower() in ("y", "yes")


def _fuse_adapters(options: argparse.Namespace) -> int:
    """Fuse adapters into an adapter; options that say nothing about that are refused."""
    from fusinglib.fusion.adapter_sums import fuse_adapters

    names = ("pretrained", "set", "dtype", "heads", "untie", "dry_run", "allow_pickle", "push")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    given += ["--method"] if options.method != "mean" else []
    if given:
        raise InputError(f"--adapter takes --weights and --rank: leave out {', '.join(given)}")
    if not options.output:
        raise InputError("No output given: name a new folder with --output.")
    models = [_place(model) for model in options.models]
    report = fuse_adapters(models, options.output, weights=options.weights, rank=options.rank)
    print(report)
    print(options.output)
    return 0


def _recipe(options: argparse.Namespace) -> dict:
    """The arguments that a recipe stands for; options that it replaces are refused."""
    from fusinglib.fusion import recipes

    names = ("weights", "pretrained", "set", "dtype", "heads", "untie")
    given = [f"--{name}" for name in names if getattr(options, name)]
    given += ["--method"] if options.method != "mean" else []
    given += ["other models"] if len(options.models) > 1 else []
    if given:
        raise InputError(
            f"a recipe says which models are fused and how: leave out {', '.join(given)}"
        )
    return recipes.read(options.models[0])


def _place(model: str) -> str:
    """The folder of a run's model if a key is given; any other model unchanged."""
    from fusinglib.places import is_key, store_folder

    if not is_key(model) or Path(model).exists():
        return model
    from fusinglib.study.resolver import folder_of
    from fusinglib.study.store import Store

    return str(folder_of(model, Store(store_folder())))


def _settings(words: list[str]) -> dict:
    """The settings of a method: numbers are parsed, commas make a list."""
    settings = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--set {word}: expected NAME=VALUE")
        values = [_number(part) for part in text.split(",")]
        settings[name] = values if len(values) > 1 or isinstance(values[0], str) else values[0]
    return settings


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _weights(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def store(options: argparse.Namespace) -> int:
    """List a store, check it, prune it, or export its results."""
    from fusinglib.places import store_folder
    from fusinglib.study.store import Store

    folder = store_folder(options.store)
    if not folder.is_dir():
        raise InputError(f"there is no store {folder}: give one with --store or FUSINGLIB_STORE")
    if not (folder / "store.json").is_file() and not any(folder.glob("*/*/run.json")):
        raise InputError(f"{folder} is not a store: give one with --store or FUSINGLIB_STORE")
    return STORE[options.action](Store(folder), options)


def _list(kept, options: argparse.Namespace) -> int:
    import pandas as pd

    runs = pd.DataFrame(kept.describe())
    print(f"{kept.root}: {len(runs)} finished runs")
    if len(runs):
        runs["MB"] = (runs["bytes"] / 1e6).round(2)
        print(runs[["kind", "key", "MB", "label"]].to_string(index=False))
        print(runs.groupby("kind").agg(runs=("key", "count"), MB=("MB", "sum")).to_string())
    return 0


def _check(kept, options: argparse.Namespace) -> int:
    """Verify every file of every finished run; corrupt ones are quarantined."""
    from fusinglib.integrity import problems
    from fusinglib.progress import Line

    folders, damaged, line = kept.folders(), 0, Line()
    for number, folder in enumerate(folders):
        line.show(f"{number} of {len(folders)} runs checked")
        if found := problems(folder):
            line.close()
            print(f"{folder.parent.name} {folder.name}: {'; '.join(found)}: quarantined")
            kept.quarantine(folder)
            damaged += 1
    line.show(f"{len(folders)} runs checked, {damaged} quarantined", last=True)
    return 1 if damaged else 0


def _prune(kept, options: argparse.Namespace) -> int:
    """Report what pruning would remove; with --yes, remove it."""
    folders = kept.prunable()
    size = sum(file.stat().st_size for each in folders for file in (each / "model").iterdir())
    print(f"{len(folders)} fused models that only led to finished results: {size / 1e6:.1f} MB")
    if not options.yes:
        print("nothing removed; pass --yes to remove them (they are fused again when needed)")
        return 0
    for folder in folders:
        kept.prune(folder)
    return 0


def _export(kept, options: argparse.Namespace) -> int:
    """Write every finished run and its result to a CSV file, one row each."""
    if not options.output:
        raise InputError("name the CSV file: fusinglib store export --output runs.csv")
    table = kept.results()
    table.to_csv(options.output, index=False)
    print(f"{options.output}: {len(table)} runs")
    return 0


STORE = {"list": _list, "check": _check, "prune": _prune, "export": _export}


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="fusinglib", description="Fuse finetuned models, and study when that helps."
    )
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser(
        "new", help="start a project: notebooks and parameter files", description=new.__doc__
    )
    command.set_defaults(command=new)
    command.add_argument("folder", help="a folder that does not exist yet")

    command = commands.add_parser(
        "lab", help="open the project's notebooks in JupyterLab", description=lab.__doc__
    )
    command.set_defaults(command=lab)
    command.add_argument(
        "arguments", nargs="*", metavar="ARGUMENT", help="passed on to JupyterLab (after --)"
    )

    command = commands.add_parser(
        "run", help="execute a notebook in batch", description=run.__doc__
    )
    command.set_defaults(command=run)
    command.add_argument("notebook", nargs="?", help="its name, for example family_table")
    command.add_argument(
        "--all", action="store_true", help="every notebook that the folder --params has a file for"
    )
    command.add_argument(
        "--params", metavar="FILE", help="parameter file (YAML); with --all, a folder of them"
    )
    command.add_argument(
        "--output",
        metavar="DIR",
        default="executed",
        help="folder for the results (default: executed)",
    )
    command.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="override a parameter (repeatable)",
    )
    command.add_argument("--plan", action="store_true", help="print the plan and stop")

    command = commands.add_parser(
        "tasks",
        help="list tasks with sizes, labels, lengths and overlaps",
        description=tasks.__doc__,
    )
    command.set_defaults(command=tasks)
    command.add_argument("names", nargs="*", metavar="NAME", help="tasks (default: all)")
    command.add_argument(
        "--params", metavar="FILE", default="params/paper/family_table.yaml",
        help="parameter file (default: the 27 tasks of the paper)",
    )  # fmt: skip
    command.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="override a parameter"
    )
    command.add_argument("--show", metavar="N", type=int, help="show N texts of each split instead")

    command = commands.add_parser(
        "fuse", help="fuse finetuned models into one", description=fuse.__doc__
    )
    command.set_defaults(command=fuse)
    command.add_argument(
        "models", nargs="+", metavar="MODEL",
        help="folder, safetensors file, LoRA adapter, run key, or Hub id[@revision]; or a single "
        "mergekit recipe (.yml)",
    )  # fmt: skip
    command.add_argument("--output", metavar="DIR", help="a new folder (not needed with --dry-run)")
    command.add_argument(
        "--method",
        default="mean",
        help="mean (default), weighted, fisher, regmean, task_arithmetic, ties, dare, dare_ties, "
        "breadcrumbs, model_stock, slerp; as controls: scaled, placebo",
    )
    command.add_argument("--weights", type=_weights, metavar="W,W,...", help="one weight per model")
    command.add_argument("--pretrained", metavar="MODEL", help="the models' common ancestor")
    command.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="set an option of the method, for example density=0.2",
    )
    command.add_argument(
        "--heads",
        action="store_true",
        help="also average classification heads, if all labels agree",
    )
    command.add_argument(
        "--adapter",
        action="store_true",
        help="fuse LoRA adapters of one base into an adapter, not into a model",
    )
    command.add_argument(
        "--rank",
        type=int,
        default=0,
        metavar="R",
        help="with --adapter: the rank of the result (default: the sum of all ranks, exact)",
    )
    command.add_argument(
        "--untie",
        action="store_true",
        help="store output embeddings separately where some models tie them and others do not",
    )
    command.add_argument("--dry-run", action="store_true", help="only report what would be done")
    command.add_argument(
        "--dtype", default="", help="float32, float16, bfloat16 or float64 (default: the models')"
    )
    command.add_argument(
        "--max-shard-size",
        default="50GB",
        metavar="SIZE",
        help="largest weight file (default: 50GB)",
    )
    command.add_argument("--allow-pickle", action="store_true", help="load pickled .bin weights")
    command.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the result to the Hub, as a private repository if it is new; asks first",
    )
    command.add_argument("--yes", action="store_true", help="with --push: do not ask")

    command = commands.add_parser(
        "store", help="list, check, prune or export a store", description=store.__doc__
    )
    command.set_defaults(command=store)
    command.add_argument(
        "action", nargs="?", choices=STORE, default="list", help="what to do (default: list)"
    )
    command.add_argument("--output", metavar="FILE", help="CSV file for export")
    command.add_argument("--yes", action="store_true", help="with prune: remove what is listed")
    command.add_argument(
        "--store",
        metavar="DIR",
        default="",
        help="the store (default: FUSINGLIB_STORE, else runs/)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
