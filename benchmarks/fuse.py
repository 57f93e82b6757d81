"""Time and memory of fusing models: ours, mergekit, loading everything, and the machine's limit.

    python benchmarks/fuse.py --mergekit benchmarks/.venv-mergekit/bin/python

The models are T5 v1.1 of random numbers: one base, and small updates. First our results are
compared with mergekit's on tiny models (`--agree`: nothing else). Then, for every setting, all
contestants run once in each round, in processes of their own, each round beginning with another:

    ours             python -m fusinglib fuse, and fuse() inside
    mergekit         mergekit-yaml with a linear merge, and run_merge() inside
    load everything  from_pretrained of all models, the mean of their parameters, save_pretrained
    limit            all inputs read and as many bytes written as one has, without arithmetic

The limit is the fastest of several ways of moving these bytes (`WAYS`): each setting tries them all
before its rounds, three times in turn, and goes on with the one of the least seconds; fuse-ways.csv
has all of them.

`command` is the time of a whole process as seen from outside, `merge` the time inside another one
that has imported everything. Before each run, untimed, all inputs are read, and three outputs are
written and deleted: so the inputs are in the page cache, and free memory is available. Memory is
that of a third run, which is not timed: /proc/PID/smaps_rollup is read every few milliseconds, and
the most counts. `private_mb` (clean and dirty) includes the pages of files that a process maps, as
mergekit and transformers map the inputs; `dirty_mb` is without them, which the system can take back
at any time.

mergekit has an environment of its own (fuse-requirements.txt); without `--mergekit` it is left out.
Its options: it copies no tokenizer, as the models have none, and writes no model card, which asks
the Hub. All others for speed (--lazy-unpickle, --low-cpu-memory, --num-threads, --async-write with
and without small shards) made no difference with safetensors on a CPU.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple


class Way(NamedTuple):
    """How the limit moves bytes: threads (0: one for every core), bytes read at once of each input,
    and whether the room of the output is reserved first."""

    threads: int
    piece: int
    reserve: bool = False

    @property
    def name(self) -> str:
        threads = f"{self.threads or 'all'} threads, {self.piece // 1024} KiB"
        return threads + (", reserved" if self.reserve else "")


WAYS = [Way(0, 2**power) for power in (16, 18, 20, 22)]
WAYS += [Way(1, 2**20), Way(0, 2**20, reserve=True)]

SHAPES = {  # d_model, d_ff, d_kv, heads, layers of each half, vocabulary
    "base": (768, 2048, 64, 12, 12, 32128),
    "small": (512, 1024, 64, 6, 8, 32128),
    "tiny": (64, 128, 32, 2, 2, 512),
}
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
STYLES = {  # Okabe and Ito's colours; marks and dashes tell the same
    "ours": ("#0072B2", "o", ""),
    "mergekit": ("#D55E00", "s", (4, 2)),
    "load everything": ("#009E73", "^", (1, 1)),
    "limit": ("#000000", "D", (6, 2, 1, 2)),
}


class Setting(NamedTuple):
    """How many models of which size and dtype; `kind` is LEAVE_ONE_OUT or nothing."""

    size: str
    dtype: str
    models: int
    kind: str = ""

    @property
    def name(self) -> str:
        return f"{self.size}-{self.dtype}-{self.models}"


LEAVE_ONE_OUT = "leave-one-out "
SETTINGS = [Setting("base", "fp32", 8), Setting("base", "bf16", 8)]
SETTINGS += [Setting("small", "fp32", count) for count in (2, 8, 32)]
SETTINGS += [Setting("small", "fp32", 13, LEAVE_ONE_OUT)]
QUICK = [Setting("tiny", "fp32", 2), Setting("tiny", "bf16", 2), Setting("tiny", "fp32", 4)]
QUICK += [Setting("tiny", "fp32", 3, LEAVE_ONE_OUT)]
WANTED = [  # setting, what, ratio of which contestants, bound
    ("base-fp32-8", "command", "mergekit", "ours", "at least 4"),
    ("base-fp32-8", "merge", "mergekit", "ours", "at least 2"),
    ("base-fp32-8", "merge", "ours", "limit", "at most 1.5"),
    ("small-fp32-13", f"{LEAVE_ONE_OUT}merge", "ours", "limit", "at most 2"),
]


def main() -> int:
    """Read the command line, compare, measure, report."""
    options = _parser().parse_args()
    settings, rounds = (QUICK, 1) if options.quick else (SETTINGS, options.rounds)
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"  # no contestant asks the Hub
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the models are removed
    if not options.mergekit:
        say("no --mergekit: it is left out, and so is the comparison with its results")
    with tempfile.TemporaryDirectory(dir=options.work, prefix="fuse-") as work:
        if options.mergekit:
            found = agreement(Path(work), options.mergekit)
            found.to_csv(options.output / "fuse-agreement.csv", index=False)
            print(found.to_string(index=False), end="\n\n", flush=True)
        if options.agree:
            return 0
        chosen = [one for one in settings if one.name in (options.setting or one.name)]
        measured = [measure(one, rounds, Path(work), options.mergekit) for one in chosen]
    rows, ways = ([row for part in parts for row in part] for parts in zip(*measured, strict=True))
    report(rows, ways, options.output)
    return 0


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


# Models.


def make_models(folder: Path, size: str, dtype: str, count: int, update: float = 0.1) -> list[Path]:
    """Write a base and `count` models, which add updates `update` times as large; the base last."""
    import torch
    from safetensors.torch import save_file

    say(f"  making {count} models of {size} size in {dtype}")
    base = random_tensors(size, 0)
    folders = [folder / "base", *(folder / f"model-{seed}" for seed in range(1, count + 1))]
    for seed, path in enumerate(folders):
        tensors = random_tensors(size, seed)
        for name in base if seed else []:
            tensors[name].mul_(update).add_(base[name])
        tensors = {name: value.to(getattr(torch, DTYPES[dtype])) for name, value in tensors.items()}
        path.mkdir(parents=True)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(config(size) | {"torch_dtype": DTYPES[dtype]}))
    return [*folders[1:], folders[0]]


def config(size: str) -> dict:
    """What config.json of google/t5-v1_1-base and -small says."""
    names = ["d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size"]
    return dict(zip(names, SHAPES[size], strict=True)) | {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    }


def random_tensors(size: str, seed: int) -> dict:
    """Normal numbers for every tensor of a T5 v1.1 file.

    lm_head is a matrix of its own there, which transformers 5 ties in a new model.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**config(size)))
    shapes = {name: value.shape for name, value in model.named_parameters()}
    shapes["lm_head.weight"] = shapes["shared.weight"]
    numbers = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shapes[name], generator=numbers).mul_(0.05) for name in shapes}


# Contestants. Each function imports what it needs and returns what is timed as the merge itself.


def ours(output: Path, models: list[str]):
    from fusinglib import fuse

    return lambda: fuse(models, output)


def ours_all_but_one(output: Path, models: list[str]):
    from fusinglib import leave_one_out

    return lambda: leave_one_out(models, output)


def mergekit(output: Path, configuration: list[str]):
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    chosen = MergeConfiguration.model_validate(yaml.safe_load(Path(configuration[0]).read_text()))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    return lambda: run_merge(chosen, str(output), options)


def load_everything(output: Path, models: list[str]):
    import torch
    from transformers import T5ForConditionalGeneration

    def merge() -> None:
        loaded = [T5ForConditionalGeneration.from_pretrained(m, dtype="auto") for m in models]
        with torch.no_grad():
            for same in zip(*(model.parameters() for model in loaded), strict=True):
                same[0].copy_(sum(parameter.float() for parameter in same) / len(same))
        loaded[0].save_pretrained(output)

    return merge


def limit(output: Path, arguments: list[str], outputs: int = 1):
    """Reads all inputs once and writes as many bytes as one has, `outputs` times.

    `arguments` are the number of a way, and the models.
    """
    way, models = WAYS[int(arguments[0])], arguments[1:]

    def merge() -> None:
        output.mkdir()
        inputs = [os.open(f"{model}/model.safetensors", os.O_RDONLY) for model in models]
        new = os.O_WRONLY | os.O_CREAT
        written = [os.open(output / f"{i}.safetensors", new) for i in range(outputs)]
        size = os.fstat(inputs[0]).st_size
        for file in written if way.reserve else []:
            os.posix_fallocate(file, 0, size)
        starts = iter(range(0, size, way.piece))  # each thread takes the next; next() is atomic

        def copy() -> None:
            buffer = bytearray(way.piece)
            for start in starts:
                for file in inputs:
                    os.preadv(file, [buffer], start)
                for file in written:
                    os.pwrite(file, memoryview(buffer)[: size - start], start)

        count = way.threads or len(os.sched_getaffinity(0))
        threads = [threading.Thread(target=copy) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for file in inputs + written:
            os.close(file)

    return merge


def limit_all_but_one(output: Path, arguments: list[str]):
    return limit(output, arguments, outputs=len(arguments) - 1)


CONTESTANTS = [ours, ours_all_but_one, mergekit, load_everything, limit, limit_all_but_one]


def inside(contestant: str, output: str, *models: str) -> int:
    """Merge in this process and print the seconds that the merge itself took."""
    known = {function.__name__: function for function in CONTESTANTS}
    merge = known[contestant](Path(output), list(models))
    started = time.perf_counter()
    merge()
    print(json.dumps({"seconds": time.perf_counter() - started}))
    return 0


def within(name: str, output: Path, *words) -> list:
    """The command of `inside`."""
    return [sys.executable, __file__, "--inside", name, output, *words]


def limit_command(setting: Setting, models: list[Path], output: Path, way: int) -> list:
    """The command that moves the bytes in the way of this number."""
    return within("limit_all_but_one" if setting.kind else "limit", output, str(way), *models)


def commands(
    setting: Setting, models: list[Path], output: Path, python: Path | None, way: int
) -> dict:
    """Every contestant's command, and the one that prints the seconds of its merge."""
    least = {"limit": [limit_command(setting, models, output, way)] * 2}
    if setting.kind:
        return {"ours": [within("ours_all_but_one", output, *models)] * 2} | least
    command = [sys.executable, "-m", "fusinglib", "fuse", *models, "--output", output]
    found = {"ours": [command, within("ours", output, *models)]}
    if python:
        file = output.with_name("mergekit.yaml")
        file.write_text(merge_config(models, setting.dtype))
        command = mergekit_command(python, file, output)
        found["mergekit"] = [command, [python, *within("mergekit", output, file)[1:]]]
    return found | {"load everything": [within("load_everything", output, *models)] * 2} | least


def mergekit_command(python: Path, configuration: Path, output: Path) -> list:
    """mergekit-yaml, which lies beside the interpreter of its environment, with our options."""
    program = python.absolute().with_name("mergekit-yaml")
    options = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return [program, configuration, output, *options]


def merge_config(models: list[Path], dtype: str) -> str:
    """A mergekit configuration for the mean of models (JSON is YAML)."""
    chosen = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    return json.dumps({"merge_method": "linear", "models": chosen, "dtype": DTYPES[dtype]})


# Agreement with mergekit.


def agreement(work: Path, python: Path):
    """Our results against mergekit's, from the same recipes, on tiny models: a row for each recipe.

    `units` is the largest difference, in units of rounding of the largest input at that place, and
    `beyond_4` the share of numbers that differ by more than four of them. What differs by design
    (`fusinglib.fusion.methods`): DARE draws other numbers and rescales by the density, not to the
    update's L1 norm, so that only a density of 1 can be compared; TIES keeps all numbers of equal
    magnitude; model_stock takes a negative mean cosine for 0.
    """
    import pandas as pd

    say("agreement with mergekit on tiny models")
    rows = []
    for number, (about, recipe) in enumerate(recipes(work)):
        output, file = work / f"agreement-{number}", work / "recipe.yml"
        file.write_text(json.dumps(recipe))  # JSON is YAML
        run(mergekit_command(python, file, output / "theirs"))
        run([sys.executable, "-m", "fusinglib", "fuse", file, "--output", output / "ours"])
        named = [row["model"] for row in recipe["models"]] + [recipe.get("base_model")]
        units, beyond = difference(output, {Path(model) for model in named if model})
        row = {"recipe": recipe["merge_method"], "with": about}
        rows.append(row | {"units": units, "beyond_4": beyond})
    return pd.DataFrame(rows)


def recipes(work: Path) -> list[tuple[str, dict]]:
    """What is compared: a remark, and a recipe for models of tiny size."""
    *three, base = map(str, make_models(work / "fp32", "tiny", "fp32", 3))
    *bf16, _ = map(str, make_models(work / "bf16", "tiny", "bf16", 3))
    *close, _ = map(str, make_models(work / "close", "tiny", "fp32", 2, update=0.01))
    layers, names = [0.2, 1, 0.6], [{"filter": "Attention", "value": [1, 0.3]}, {"value": 0.5}]

    def recipe(method, models=three, weights=(0.5, 0.8, 0.3), dtype="fp32", **shared) -> dict:
        chosen = [
            {"model": m, "parameters": {"weight": w}} for m, w in zip(models, weights, strict=False)
        ]
        found = {"merge_method": method, "models": chosen, "dtype": DTYPES[dtype]}
        found |= {"parameters": shared} if shared else {}
        return found if method == "linear" else found | {"base_model": base}

    varied, scale = (layers, names, 0.3), {"lambda": 0.7}
    densities = recipe("ties", density=0.5, **scale)
    for row, density in zip(densities["models"], ([1, 0.7, 0.1], 0.4, names), strict=True):
        row["parameters"]["density"] = density
    found = [
        ("equal weights", recipe("linear", weights=(1, 1, 1))),
        ("equal weights, bf16", recipe("linear", bf16, (1, 1, 1), "bf16")),
        ("weights", recipe("linear")),
        ("weights, bf16", recipe("linear", bf16, dtype="bf16")),
        ("weights by layer and name", recipe("linear", weights=varied)),
        ("weights", recipe("task_arithmetic", **scale)),
        ("weights by layer and name", recipe("task_arithmetic", weights=varied, **scale)),
        ("density 0.2", recipe("ties", density=0.2, **scale)),
        ("densities by layer, name and model", densities),
        ("density 1", recipe("dare_linear", density=1.0)),
        ("density 1", recipe("dare_ties", density=1.0, weights=varied)),
        ("density 0.6, gamma 0.1", recipe("breadcrumbs", density=0.6, gamma=0.1)),
        ("density 0.95, gamma 0.1", recipe("breadcrumbs", density=0.95, gamma=0.1)),
    ]
    stock = recipe("model_stock") | {"base_model": three[2]}
    stock["models"] = [{"model": model} for model in (*three[:2], base)]
    found.append(("updates that share a direction", stock))
    for about, models, place in (
        ("t 0.3", three, 0.3), ("t by layer and name", three, [names[0], {"value": layers}]),
        ("t 0.3, nearly parallel", close, 0.3),
    ):  # fmt: skip
        both = [{"model": model} for model in models[:2]]
        slerp = recipe("slerp", weights=(), t=place)
        found.append((about, slerp | {"models": both, "base_model": models[0]}))
    return found


def difference(output: Path, parents: set[Path]) -> tuple[float, float]:
    """The largest difference in units of rounding, and the share of those beyond four."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    folders = [output / "ours", output / "theirs", *parents]
    ours, theirs, *inputs = [load_file(folder / "model.safetensors") for folder in folders]
    found = []
    for name in ours.keys() | theirs.keys():
        largest = torch.stack([model[name].float().abs() for model in inputs]).amax(0).numpy()
        unit = np.spacing(largest) * (2**16 if ours[name].dtype == torch.bfloat16 else 1)
        away = (ours[name].double() - theirs[name].double()).abs().numpy()
        found.append((away / unit).ravel())
    found = np.concatenate(found)
    return round(float(found.max()), 1), float((found > 4).mean())


# Measuring.


def fastest_way(setting: Setting, models: list[Path], output: Path, prepare) -> list[dict]:
    """Three rounds of all ways of the limit, a row for each way, the fastest first."""
    seconds = {number: [] for number in range(len(WAYS))}
    for _ in range(3):
        for number, found in seconds.items():
            command = limit_command(setting, models, output, number)
            found.append(json.loads(fresh(prepare, output, run, command)[1])["seconds"])
    rows = [
        {"setting": setting.name, "way": WAYS[number].name, "number": number, "seconds": min(found)}
        for number, found in seconds.items()
    ]
    return sorted(rows, key=lambda row: row["seconds"])


def measure(
    setting: Setting, rounds: int, work: Path, python: Path | None
) -> tuple[list[dict], list[dict]]:
    """All rounds of a setting, a row for each contestant, round, and command or merge; and the
    ways of the limit."""
    say(setting.name)
    folder, output, rows = work / setting.name, work / "output", []
    *models, _ = make_models(folder, setting.size, setting.dtype, setting.models)
    prepare = limit(output, ["2", *models], 2 + (setting.models if setting.kind else 1))
    ways = fastest_way(setting, models, output, prepare)
    say(f"  limit: {ways[0]['way']}")
    known = commands(setting, models, output, python, ways[0].pop("number"))
    names = list(known)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            command, merge = known[name]
            seconds, _ = fresh(prepare, output, run, command)
            _, printed = fresh(prepare, output, run, merge)
            private, dirty = fresh(prepare, output, peak_memory, command)
            say(f"  round {number + 1}, {name}: {seconds:.2f} s, {private:.0f} MB")
            row = {"contestant": name, "models": setting.models, "size": setting.size}
            row |= {"dtype": setting.dtype, "round": number + 1}
            memory = {"private_mb": private, "dirty_mb": dirty}
            rows.append(row | {"what": f"{setting.kind}command", "seconds": seconds} | memory)
            rows.append(row | {"what": f"{setting.kind}merge"} | json.loads(printed))
    shutil.rmtree(folder)
    return rows, ways


def fresh(prepare, output: Path, do, command: list):
    """`do(command)` with the inputs in the page cache, free memory available, nothing to be
    written.

    Where the machine is a virtual one, memory that has been free for seconds may be the host's
    again, and touching it again can take longer than a merge.
    """
    prepare()
    shutil.rmtree(output)
    os.sync()
    result = do(command)
    shutil.rmtree(output)
    return result


def run(command: list) -> tuple[float, str]:
    """Seconds that a command took, and what it printed; ends everything if it failed."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return seconds, done.stdout


def peak_memory(command: list) -> tuple[float, float]:
    """The most private, and the most private dirty, memory of a command and its children, in MB."""
    import psutil

    nowhere, private, dirty = subprocess.DEVNULL, 0.0, 0.0
    with subprocess.Popen(command, stdout=nowhere, stderr=nowhere) as process:
        main = psutil.Process(process.pid)
        while process.poll() is None:
            counts = [memory(one.pid) for one in [main, *main.children(recursive=True)]]
            private = max(private, sum(count[0] for count in counts))
            dirty = max(dirty, sum(count[1] for count in counts))
            time.sleep(0.01)
    return private, dirty


def memory(pid: int) -> tuple[float, float]:
    """Private and private dirty memory of a process, in MB; none when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0, 0.0
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}
    dirty = found.get("Private_Dirty", 0.0)
    return found.get("Private_Clean", 0.0) + dirty, dirty


# Reporting.


def report(rows: list[dict], ways: list[dict], folder: Path) -> None:
    """Write the results, the table and the figure, and print what was wanted and what came."""
    import pandas as pd

    columns = "contestant models size dtype what round seconds private_mb dirty_mb".split()
    results = pd.DataFrame(rows)[columns].round({"seconds": 4, "private_mb": 1, "dirty_mb": 1})
    results.to_csv(folder / "fuse.csv", index=False)
    tried = pd.DataFrame(ways)[["setting", "way", "seconds"]].round({"seconds": 4})
    tried.to_csv(folder / "fuse-ways.csv", index=False)
    results["setting"] = [f"{r.size}-{r.dtype}-{r.models}" for r in results.itertuples(index=False)]
    keys = ["setting", "what"]
    times = results.pivot(index=[*keys, "round"], columns="contestant", values="seconds")
    shown = []
    for (setting, what, name), group in results.groupby([*keys, "contestant"], sort=False):
        seconds = times.loc[setting, what]
        row = {"setting": setting, "what": what, "contestant": name}
        row["seconds"] = spread(seconds[name])
        row |= {f"/ {other}": spread(seconds[name] / seconds[other]) for other in ("ours", "limit")}
        most = group[["private_mb", "dirty_mb"]].max()
        shown.append(row | {column: f"{most[column]:.0f}" for column in most.index})
    lines = [pd.DataFrame(shown).replace("nan", "").to_string(index=False), ""]
    for setting, what, top, bottom, bound in WANTED:
        if (setting, what) in times.index.droplevel("round") and top in times:
            seconds = times.loc[setting, what]
            came = spread(seconds[top] / seconds[bottom])
            lines.append(f"{setting}, {what}, {top} / {bottom}: {came}; wanted {bound}")
    own = results[(results["contestant"] == "ours") & (results["what"] == "command")]
    for setting, most in own.groupby("setting", sort=False)["private_mb"].max().items():
        lines.append(f"{setting}, private memory of ours: {most:.0f} MB; wanted under 300, equal")
    (folder / "fuse.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    figure(results, folder / "fuse.png")


def spread(values) -> str:
    """Median (least to most)."""
    return f"{values.median():.2f} ({values.min():.2f} to {values.max():.2f})"


def figure(results, file: Path) -> None:
    """Time and private memory against the number of models, for the size that has several."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    results = results[~results["what"].str.startswith(LEAVE_ONE_OUT)]
    counts = results.groupby(["size", "dtype"])["models"].nunique()
    if not len(counts) or counts.max() < 2:
        return say("no figure: no size with several numbers of models")
    size, dtype = counts.idxmax()
    results = results[(results["size"] == size) & (results["dtype"] == dtype)]
    names = [name for name in STYLES if name in set(results["contestant"])]
    colors, markers, dashes = ({n: STYLES[n][i] for n in names} for i in range(3))
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    panels = [
        ("command", "seconds", "whole command (s)"),
        ("merge", "seconds", "merge itself (s)"),
        ("command", "private_mb", "private memory (MB)"),
    ]
    for ax, (what, column, label) in zip(axes, panels, strict=True):
        data = results[results["what"] == what].astype({"models": float})
        sns.lineplot(
            data, x="models", y=column, hue="contestant", hue_order=names, palette=colors,
            style="contestant", style_order=names, markers=markers, dashes=dashes, markersize=7,
            estimator="median", errorbar=("pi", 100), ax=ax,
        )  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="models", ylabel=label)
        ax.set_xticks(data["models"].unique(), [f"{n:.0f}" for n in data["models"].unique()])
        ax.xaxis.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
        ax.get_legend().remove()
        ax.spines[["top", "right"]].set_visible(False)
    lines, labels = axes[0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside lower center", ncols=len(names), frameon=False)
    fig.suptitle(f"T5 v1.1 {size}, {dtype}: median of all rounds, and least to most")
    fig.savefig(file, dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help="interpreter that has it")
    parser.add_argument("--output", type=Path, metavar="DIR", default="results/benchmarks")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for up to 20 GB of models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--agree", action="store_true", help="only compare with mergekit's results")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round")
    names = [setting.name for setting in SETTINGS + QUICK]
    parser.add_argument("--setting", nargs="+", choices=names, metavar="NAME", help=f"of {names}")
    return parser


if __name__ == "__main__":
    sys.exit(inside(*sys.argv[2:]) if sys.argv[1:2] == ["--inside"] else main())
