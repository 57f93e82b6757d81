"""Where the time of one run goes, and how near its matrix products are to what a processor can do.

    HF_HOME=... HF_HUB_OFFLINE=1 python benchmarks/step.py --work DIR      # a minute

A target run of the miniature T5 and one of the small encoder, as in `train.py`, with one thread:
milliseconds of a training step by part, of scoring the dev and the test set, operations of a step,
the share of matrix products in it, and the speed of these beside that of one large product. Writes
`results/benchmarks/step.csv`.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd
import torch
import train
from torch.profiler import ProfilerActivity, profile

from fusinglib.places import PROJECT
from fusinglib.study.steps import _encoded, _opened, keep_memory
from fusinglib.study.store import Store
from fusinglib.training.finetuning import adamw, batches_of
from fusinglib.training.scoring import predict
from fusinglib.training.settings import Training

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
STEPS = 50


def main() -> None:
    """Measure both, and print a column for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for 200 MB")
    work = parser.parse_args().work.absolute()
    torch.set_num_threads(1)
    keep_memory()
    table = pd.DataFrame({name: measure(name, work) for name in ("one T5", "one encoder")}).round(2)
    table.to_csv(PROJECT / "results/benchmarks/step.csv", index_label="what")
    print(table.to_string())


def measure(name: str, work: Path) -> dict[str, float]:
    """The figures of one setting of `train.py`."""
    settings, known = train.settings_of(train.SETTINGS[name], work / "runs")
    plan = train.plan_of(settings, known, train.base(settings, work))
    run, store = plan.rows[0]["run"], Store(work / "runs")
    model = _opened(run, run.parents[0], store, "cpu")
    splits = _encoded(run, model, store).splits
    step = Step(model, splits["train"], Training(**run.settings["training"]))
    for _ in range(STEPS // 10):
        step()
    step.seconds.clear()
    for _ in range(STEPS):
        step()
    found = {f"{part}, ms": 1000 * taken / STEPS for part, taken in step.seconds.items()}
    found["step, ms"] = sum(found.values())
    for split in ("dev", "test"):
        started = time.perf_counter()
        predict(model, splits[split])
        found[f"{split} set, ms"] = 1000 * (time.perf_counter() - started)
    model.network.train()
    for _ in range(2):  # the profiler's own start is in the first
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
            step()
    events = [event for event in profiled.key_averages() if event.self_cpu_time_total]
    products = [event for event in events if event.key in PRODUCTS]
    taken = sum(event.self_cpu_time_total for event in products)  # microseconds
    whole = sum(event.self_cpu_time_total for event in events)
    called = [event.count for event in events if event.key.startswith("aten::")]
    found["operations of a step"] = sum(called)
    found["matrix products, % of a step"] = 100 * taken / whole
    found["matrix products, Gflop/s"] = sum(event.flops for event in products) / taken / 1000
    found["one large product, Gflop/s"] = large()
    return found


class Step:
    """Makes one training step when called, as `finetune` does, and adds up what each part takes."""

    def __init__(self, model, tokens, training: Training):
        self.model, self.tokens = model, tokens
        self.labels = torch.tensor(tokens.labels)
        self.optimizer = adamw(dict(model.network.named_parameters()), training)
        self.batches = batches_of(tokens.lengths, training, 0)
        self.seconds: dict[str, float] = defaultdict(float)
        model.network.train()

    def __call__(self) -> None:
        rows = next(self.batches)
        inputs = self._timed("padding", lambda: self.model.inputs(self.tokens, rows))
        loss = self._timed("forward", lambda: self.model.loss(inputs, self.labels[rows]))
        self._timed("backward", loss.backward)
        self._timed("optimizer", self.optimizer.step)
        self._timed("freeing gradients", self.optimizer.zero_grad)

    def _timed(self, part: str, work):
        started = time.perf_counter()
        outcome = work()
        self.seconds[part] += time.perf_counter() - started
        return outcome


def large(size: int = 1024) -> float:
    """Gflop/s of the fastest of some products of two square matrices, fp32."""
    one, two = torch.randn(size, size), torch.randn(size, size)
    taken = []
    for _ in range(20):
        started = time.perf_counter()
        one @ two
        taken.append(time.perf_counter() - started)
    return 2 * size**3 / min(taken) / 1e9


if __name__ == "__main__":
    main()
