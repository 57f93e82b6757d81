"""Time and memory of every method of fusing.

    python benchmarks/fuse_methods.py        # three minutes on two cores

Eight models of T5 v1.1 small's shape, of random numbers in fp32, with random estimates for Fisher
and RegMean, are fused by every method with its default settings. In each round every method runs
in a process of its own that has imported everything, once timed and once watched for the most
private memory that it holds. Writes `results/benchmarks/fuse_methods.csv`.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from fuse import make_models, peak_memory, run
from safetensors.numpy import load_file, save_file

from fusinglib import fuse
from fusinglib.fusion.methods import METHODS
from fusinglib.places import PROJECT

MODELS, ROUNDS = 8, 3
FISHER, GRAM = "fisher", "gram"


def main() -> None:
    """Measure, print and write a row for each method and round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", help="small (default), base or tiny")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path, default=PROJECT / "results/benchmarks")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(timed(options.one[0], Path(options.one[1]))))
        return
    import pandas as pd  # not in the processes that are watched

    rows = []
    with tempfile.TemporaryDirectory(prefix="fuse-") as work:
        models = make_models(Path(work), options.size, "fp32", MODELS)[:-1]
        for number, model in enumerate(models):
            estimates(model, number)
        for number in range(options.rounds):
            for name in METHODS:
                command = [sys.executable, __file__, "--one", name, work]
                _, printed = run(command)
                private, _ = peak_memory(command)
                rows.append({"method": name, "round": number + 1, **json.loads(printed)})
                rows[-1]["private_mb"] = private
                print(rows[-1], flush=True)
    columns = {"seconds": 3, "private_mb": 1}
    pd.DataFrame(rows).round(columns).to_csv(options.output / "fuse_methods.csv", index=False)


def estimates(model: Path, seed: int) -> None:
    """Random estimates of a model, in files of the form that `fisher` and `gram` write."""
    rng, tensors = np.random.default_rng(seed), load_file(model / "model.safetensors")
    fisher = {name: rng.random(tensor.shape, np.float32) for name, tensor in tensors.items()}
    save_file(fisher, model / FISHER)
    linear = [name for name, tensor in tensors.items() if tensor.ndim == 2 and is_linear(name)]
    inputs = {name: rng.random((64, tensors[name].shape[1]), np.float32) for name in linear}
    save_file({name: seen.T @ seen for name, seen in inputs.items()}, model / GRAM)


def is_linear(name: str) -> bool:
    """Whether a matrix of T5 is that of a linear layer, and not an embedding."""
    return not any(word in name for word in ("shared", "relative_attention_bias"))


def timed(method: str, folder: Path) -> dict:
    """Fuse the models in a folder by a method: seconds."""
    known = METHODS[method]
    models = sorted(folder.glob("model-*"))[: 2 if method == "slerp" else None]
    given = {}
    if method in ("fisher", "regmean"):
        file = FISHER if method == "fisher" else GRAM
        given = {file: [model / file for model in models]}
    if known.with_base:
        given["pretrained"] = folder / "base"
    with tempfile.TemporaryDirectory(dir=folder) as output:
        started = time.perf_counter()
        fuse(models, f"{output}/fused", method=method, progress=False, **given)
        return {"models": len(models), "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
