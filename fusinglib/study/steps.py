"""What a worker does for each kind of run: parents from the store in, files of the run out."""

import contextlib
import ctypes
import errno
import functools
import platform
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from fusinglib.errors import Damaged, InputError, StoreError
from fusinglib.fusion import engine, geometry
from fusinglib.integrity import write_json
from fusinglib.study.plans import Run
from fusinglib.study.schedule import but_seed
from fusinglib.study.store import ESTIMATE, HISTORY, PREDICTIONS, PROGRESS, Store
from fusinglib.training import (
    cards,
    data,
    fisher,
    folders,
    gram,
    models,
    pretraining,
    stacked,
    tokens,
)
from fusinglib.training.finetuning import finetune, linear_probe
from fusinglib.training.scoring import OutOfMemory, cross_entropy, metrics, predict
from fusinglib.training.settings import Data, Training
from fusinglib.training.tokens import Encoded

ONE_AT_A_TIME = threading.Lock()
"""Threads of one process (two playgrounds, run serially) take turns."""

ESTIMATES = {"fisher": fisher, "gram": gram}
"""The modules that estimate what methods of fusing have to know, by what that is."""

FITTING: dict[str, int] = {}
"""The largest stack still worth trying, by `but_seed`, once a larger one ran out of memory."""

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Options of glibc's mallopt: the bytes of free memory above which it is returned to the system,
and how many tensors may have pages of their own, which are returned at once."""

Report = Callable[[str], None]
"""Called with a line of progress."""


def perform(run: Run, store: Store, device: str, watch: Callable[[], None] = lambda: None) -> None:
    """Execute `run`: its files appear in the store complete, or not at all.

    Its parents must be finished. `watch` is called whenever the run has reported progress. A run
    that fails leaves its traceback in the store and raises; a store that cannot be written, for
    instance on a full or read-only disk, raises `StoreError`.
    """
    if store.has(run):
        return
    try:
        with _on_disk(store), _determined(run, device), store.new(run) as folder:

            def report(text: str) -> None:
                (folder / PROGRESS).write_text(text)
                watch()

            started = time.perf_counter()
            result = STEPS[run.kind](run, store, folder, device, report)
            result["seconds"] = round(time.perf_counter() - started, 3)
            write_json(folder / "result.json", result)
    except StoreError:
        raise
    except Exception:
        with store.writing():
            store.record_failure(run, traceback.format_exc())
        raise


def perform_means(runs: Sequence[Run], store: Store) -> None:
    """Compute several means of overlapping models in one pass (the paper's leave-target-out means,
    or pairs): bit for bit as one by one.

    Errors are raised without a traceback in the store; no run is finished then.
    """
    models = {parent.key: store.model(parent) for run in runs for parent in run.parents}
    order = sorted(models)
    subsets = [[order.index(parent.key) for parent in run.parents] for run in runs]
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(store.new(run)) for run in runs]
        reports = engine.fuse_subsets(
            [models[key] for key in order], subsets, [f / "model" for f in folders], progress=False
        )
        seconds = round((time.perf_counter() - started) / len(runs), 3)
        for folder, report in zip(folders, reports, strict=True):
            write_json(folder / "result.json", {**report.done(), "seconds": seconds})


def perform_stack(
    runs: Sequence[Run], store: Store, device: str, watch: Callable[[], None] = lambda: None
) -> str:
    """Execute finetunings that differ in their seeds and base models as one (see `stacked`), or one
    by one where they cannot be stacked: then returns why.

    If memory is too small the stack is halved, and later stacks of this kind start at that size. If
    runs fail, the others are finished before the first error is raised; as with `perform_means`, no
    traceback is left of a run in a stack.
    """
    runs, unfit = [run for run in runs if not store.has(run)], ""
    if len(runs) < 2:
        for run in runs:
            perform(run, store, device, watch)
        return ""
    what, half = but_seed(runs[0]), len(runs) // 2
    parts = [runs[:half], runs[half:]]
    if len(runs) <= FITTING.get(what, len(runs)):
        try:
            with _on_disk(store), _determined(runs[0], device):
                unfit = _stack(runs, store, device, watch)
            parts = [[run] for run in runs] if unfit else []
        except (OutOfMemory, torch.OutOfMemoryError):
            FITTING[what] = len(runs) - half
    errors = []
    for part in parts:
        try:
            unfit = perform_stack(part, store, device, watch) or unfit
        except (StoreError, Damaged):
            raise
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return unfit


@contextlib.contextmanager
def _on_disk(store: Store) -> Iterator[None]:
    """Raise `StoreError` for what a full or read-only disk raises."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, StoreError) and _disk_failed(error):
            raise store.error(error) from error
        raise


def _disk_failed(error: Exception) -> bool:
    """Whether a disk is full or read-only; safetensors says so only in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    return "No space left on device" in str(error) or "Read-only file system" in str(error)


@contextlib.contextmanager
def _determined(run: Run, device: str) -> Iterator[None]:
    """Set the thread count of the run's settings, and restore the caller's random state; both are
    global, and one run at a time executes in a process, which keeps its memory from then on."""
    keep_memory()
    with ONE_AT_A_TIME:
        before = torch.get_num_threads()
        torch.set_num_threads(run.settings.get("training", {}).get("threads", 1))
        try:
            cuda = available(device) == "cuda"
            with torch.random.fork_rng([torch.cuda.current_device()] if cuda else []):
                yield
        finally:
            torch.set_num_threads(before)


@functools.cache
def keep_memory() -> None:
    """Have the process keep what it frees, up to 2 GiB, from now on. By default glibc returns large
    tensors to the system, which clears their pages again in every step."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def _pretrain(run: Run, store: Store, folder: Path, device: str, report: Report) -> dict:
    def say(step: int, steps: int, loss: float) -> None:
        report(f"step {step} of {steps}, loss {loss:.2f}")

    wanted = {name: run.settings[name] for name in ("world_seed", "seed", "steps")}
    return pretraining.pretrain(folder / "model", **wanted, report=say)


def _import(run: Run, store: Store, folder: Path, device: str, report: Report) -> dict:
    tokenizer = store.model(run.parents[0]) if run.parents else None
    folders.import_model(Path(run.place), folder / "model", tokenizer)
    return {}


def _random(run: Run, store: Store, folder: Path, device: str, report: Report) -> dict:
    folders.randomise(store.model(run.parents[0]), folder / "model", run.settings["seed"])
    return {}


def _fuse(run: Run, store: Store, folder: Path, device: str, report: Report) -> dict:
    """Fuse the parents by the mean, or as the settings say. Estimates are the last parents, one for
    each model; a pretrained model is the last parent."""
    how, parents = dict(run.settings), list(run.parents)
    if what := how.pop("estimates", ""):
        count = len(parents) // 2
        how[what] = [store.estimate(parent) for parent in parents[count:]]
        del parents[count:]
    models = [store.model(parent) for parent in parents]
    pretrained = None
    if how.pop("rescaled", False):
        *models, pretrained = models
        model, reference = geometry.updates(pretrained, models, ["model", "reference"]).norms
        models, scale = models[:1], float(reference / model) if model else 0.0
        how = {"method": "task_arithmetic", "scale": scale}
    elif how.pop("with_pretrained", False):
        pretrained = models.pop()
    output = folder / "model"
    return engine.fuse(models, output, pretrained=pretrained, progress=False, **how).done()


def _estimate(run: Run, store: Store, folder: Path, device: str, report: Report) -> dict:
    """Estimate what a method of fusing has to know of the parent, on training texts of its task."""
    made, how = ESTIMATES[run.settings["what"]], Data(**run.settings["data"])
    assert run.task
    made.estimate(
        store.model(run.parents[0]), run.task, how, folder / ESTIMATE, device=available(device),
        examples=run.settings["examples"], seed=run.settings["seed"], progress=False,
    )  # fmt: skip
    return {"examples": run.settings["examples"]}


def _finetune(run: Run, store: Store, folder: Path, device: str, report: Report) -> dict:
    """Finetune the parent on the run's task, score the test split, and keep what this kind of run
    keeps."""
    model = _opened(run, run.parents[0], store, device)
    encoded = _encoded(run, model, store)
    train, dev, test = (encoded.splits[name] for name in data.SPLITS)
    training = Training(**run.settings["training"])

    def say(history: list[dict]) -> None:
        report(_history(run, folder, history))

    outcome, _ = finetune(model, train, dev, training, run.settings["seed"], say)
    predicted = predict(model, test, training.micro_batch)
    return _finished(run, folder, model, encoded, predicted) | outcome | {"stack": 1}


def _stack(runs: Sequence[Run], store: Store, device: str, watch: Callable[[], None]) -> str:
    """`_finetune` for several runs as one; returns why that cannot be, if it cannot."""
    started, failed = time.perf_counter(), {}
    first = _opened(runs[0], runs[0].parents[0], store, device)
    encoded = _encoded(runs[0], first, store)
    train, dev, test = (encoded.splits[name] for name in data.SPLITS)
    training = Training(**runs[0].settings["training"])
    if unfit := stacked.unfit(first, train):
        return unfit
    models = [first, *(_opened(run, run.parents[0], store, device) for run in runs[1:])]
    if len({stacked.kind(model) for model in models}) > 1:
        return "they have different configurations"
    if not _read_alike(runs, models, store):
        return "they have different tokenizers"
    stack = stacked.Stack(models)
    del models
    with contextlib.ExitStack() as exits:
        folders = [exits.enter_context(_unless_failed(run, store, failed)) for run in runs]

        def say(row: int, history: list[dict]) -> None:
            (folders[row] / PROGRESS).write_text(_history(runs[row], folders[row], history))
            watch()

        seeds = [run.settings["seed"] for run in runs]
        found = stacked.finetune(stack, train, dev, training, seeds, say)
        predicted = predict(stack, test, stack.share(training.micro_batch))
        seconds = round((time.perf_counter() - started) / len(runs), 3)
        for row, (run, folder, (outcome, _)) in enumerate(zip(runs, folders, found, strict=True)):
            if isinstance(outcome, InputError):
                failed[run.key] = outcome
                continue
            own = {name: array[row] for name, array in predicted.items()}
            result = _finished(run, folder, stack.one(row), encoded, own) | outcome
            result |= {"stack": len(runs), "seconds": seconds}
            write_json(folder / "result.json", result)
    for error in failed.values():
        raise error
    return ""


def _read_alike(runs: Sequence[Run], models: Sequence[models.BaseModel], store: Store) -> bool:
    """Whether all models read the texts as the first does; the hashes of equal tokenizers may
    differ, as transformers saves them anew."""
    first, *others = {
        model.tokenizer_hash: (_encoded(run, model, store).splits, model.tokenizer.padding_side)
        for run, model in zip(runs, models, strict=True)
    }.values()
    return all(
        side == first[1] and all(first[0][name].same_as(splits[name]) for name in splits)
        for splits, side in others
    )


class _Failed(Exception):
    """A run of a stack has failed."""


@contextlib.contextmanager
def _unless_failed(run: Run, store: Store, failed: Mapping[str, Exception]) -> Iterator[Path]:
    """A run's folder, as `store.new` has it, which does not appear if the run is among `failed`."""
    with contextlib.suppress(_Failed), store.new(run) as folder:
        yield folder
        if run.key in failed:
            raise _Failed


def _history(run: Run, folder: Path, history: list[dict]) -> str:
    """Write a finetuning's history so far; returns a line about it."""
    write_json(folder / HISTORY, history)
    last, training = history[-1], run.settings["training"]
    step = f"step {last['step']} of {training['max_steps']}"
    return f"{run.label}: {step}, dev {last[training['metric']]:.3f}"


def _finished(run: Run, folder: Path, model: models.BaseModel, encoded: Encoded,
              predicted: dict[str, np.ndarray]) -> dict:  # fmt: skip
    """Keep what this kind of finetuning keeps: predictions, and a source's model. Returns what is
    to be said of its data and of its predictions on the test split."""
    test, training = encoded.splits["test"], Training(**run.settings["training"])
    scores = metrics(predicted, test.labels)
    accuracy = scores[_accuracy(training)]
    kept = {name: array for name, array in predicted.items() if name != "scores"}
    safetensors.numpy.save_file(kept, folder / PREDICTIONS)
    assert run.task
    if run.kind == "source":
        model.save(folder / "model")
        cards.write(folder / "model", run.task, accuracy)
    sizes = {f"n_{name}": len(split) for name, split in encoded.splits.items()}
    return {"accuracy": accuracy, **scores, "majority": data.majority(test.labels), **sizes,
            "truncated": encoded.truncated, "revision": encoded.revision,
            "notes": "; ".join(encoded.notes)}  # fmt: skip


def _accuracy(training: Training) -> str:
    """The accuracy in `metrics` that belongs to the early-stopping metric."""
    return "exact" if training.metric == "exact" else "ranked"


def _line(run: Run, store: Store, folder: Path, device: str, report: Report) -> dict:
    """Loss and accuracy of models on the straight line between the two parents."""
    training = Training(**run.settings["training"])
    end, points = _opened(run, run.parents[1], store, device), []
    encoded = _encoded(run, end, store)
    scored = encoded.splits[run.settings["split"]]
    for position in run.settings["positions"]:
        report(f"{run.label}: at {position:g}")
        model = _opened(run, run.parents[0], store, device)
        models.interpolate(model, end, position)
        if isinstance(model, models.Classifier):
            train, dev = encoded.splits["train"], encoded.splits["dev"]
            linear_probe(model, train, dev, training, run.settings["seed"])
        predicted = predict(model, scored, training.micro_batch)
        scores = metrics(predicted, scored.labels)
        loss = cross_entropy(predicted, scored.labels)
        own = {"position": position, "loss": loss, "accuracy": scores[_accuracy(training)]}
        points.append({**own, **scores})
    return {"points": points, "examples": len(scored), "revision": encoded.revision}


def _opened(run: Run, parent: Run, store: Store, device: str) -> models.BaseModel:
    """A parent's model, ready for the run's task."""
    how, training = Data(**run.settings["data"]), Training(**run.settings["training"])
    folder, seed = store.model(parent), run.settings["seed"]
    assert run.task
    return models.load(folder, run.task, training, how, seed=seed, device=available(device))


def _encoded(run: Run, model: models.BaseModel, store: Store) -> Encoded:
    """The task of a run as its model reads it, from the store's cache, so that texts are tokenized
    once for all runs."""
    fingerprint, task = run.settings["fingerprint"], run.task
    assert task

    def encode() -> Encoded:
        loaded = data.load(task, model.data)
        if loaded.fingerprint != fingerprint:
            raise InputError(f"task {task.name!r}: its data changed since the run was planned")
        splits = {name: model.encode(getattr(loaded, name)) for name in data.SPLITS}
        return Encoded(splits, loaded.revision, loaded.notes)

    found = tokens.cached(model.encoding(fingerprint), encode, store.tokens)
    if "examples" in run.settings:
        examples, seed = run.settings["examples"], model.data.split_seed
        train = data.sample(found.splits["train"], examples, seed, "train")
        return replace(found, splits={**found.splits, "train": train})
    return found


STEPS = {
    "pretrain": _pretrain,
    "import": _import,
    "random": _random,
    "source": _finetune,
    "estimate": _estimate,
    "fuse": _fuse,
    "target": _finetune,
    "line": _line,
}


def available(device: str) -> str:
    """The device that "auto" means on this machine; a named one as it is."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
