"""The store: finished runs as folders of JSON and safetensors, complete or absent."""

import contextlib
import functools
import glob
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.numpy

from fusinglib.errors import Damaged, InputError, StoreError
from fusinglib.integrity import (
    HASHES,
    alive,
    machine,
    problems,
    read_json,
    seal,
    staged,
    write_json,
)  # fmt: skip
from fusinglib.leases import Leases
from fusinglib.study.plans import Run

PENDING = ".pending"

VERSION = 1
"""The version of the store's layout, in `store.json`; older stores have none."""

RECORDS = ("run.json", "result.json")
"""What a run is, and its result."""

DAMAGED = ".damaged"
"""Quarantine: the folder of runs whose files have changed since they were written."""

TOKENS = ".tokens"
"""The folder of tokenized texts, which can be recomputed at any time."""

HISTORY = "history.json"
"""A row per evaluation of a finetuning, written after each of them."""

PREDICTIONS = "predictions.safetensors"
"""The label ids that a finetuned model predicted for the test split."""

ESTIMATE = "estimate.safetensors"
"""What a method of fusing has to know of a model: its Fisher information, or its Gram matrices."""

PROGRESS = "progress.txt"
"""In a pending folder: a line of progress."""


class Store:
    """A folder of runs: `<root>/<kind>/<key>/` with `run.json` (what it is), `result.json` (its
    result), `hashes.json`, and, by kind, `model/`, `history.json`, `predictions.safetensors`,
    `estimate.safetensors`.

    A run is written into a pending folder and renamed, so that it is complete or absent. If two
    processes finish the same run (which `leases` avoid), the first stays: nothing is locked, and
    processes, machines and network file systems may share a store. Everything is verified when it
    is read. Raises `StoreError` if the folder cannot be created or written, or was made by a newer
    version.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.tokens = self.root / TOKENS
        with self.writing():
            if not (self.root / PENDING).is_dir():
                self.root.mkdir(parents=True, exist_ok=True)
                with staged(self.root / "store.json") as file:
                    write_json(file, {"version": VERSION})
                (self.root / PENDING).mkdir(exist_ok=True)
        self._check_version()

    def _check_version(self) -> None:
        file = self.root / "store.json"
        try:
            made = read_json(file).get("version")
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise StoreError(f"{file} cannot be read ({error}): {REWRITE}") from error
        if not isinstance(made, int):
            raise StoreError(f"{file} has version {made!r}, which is not a number: {REWRITE}")
        if made > VERSION:
            raise StoreError(
                f"the store {self.root} has version {made}, and this package reads up to "
                f"{VERSION}: use a newer package, or another store"
            )

    def path(self, run: Run) -> Path:
        """The folder of `run`, finished or not."""
        return self.root / run.kind / run.key

    def has(self, run: Run) -> bool:
        """Whether `run` is finished."""
        return self.path(run).is_dir()

    def pruned(self, run: Run) -> bool:
        """Whether `run` is a finished mean whose model was removed; it can be fused again."""
        return run.kind == "fuse" and self.has(run) and not (self.path(run) / "model").is_dir()

    def result(self, run: Run) -> dict:
        """The result of a finished run; raises `Damaged` if it cannot be read."""
        return self.read(self.path(run), "result.json")

    def read(self, folder: Path, name: str) -> dict:
        """A JSON file of a finished run, verified; raises `Damaged` if it cannot be read."""
        for problem in problems(folder, name):
            raise _damaged(folder, problem)
        try:
            return read_json(folder / name)
        except (OSError, ValueError) as error:
            raise _damaged(folder, str(error)) from error

    def quarantine(self, folder: Path) -> None:
        """Move the folder of a corrupt run to `.damaged`."""
        place = self.root / DAMAGED / f"{folder.parent.name}-{folder.name}-{time.time_ns()}"
        with self.writing():
            place.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                folder.rename(place)

    def find(self, key: str) -> Run:
        """The finished run with this key.

        Raises `InputError` if there is none, or if another version of the code made it.
        """
        for path in self.root.glob(f"[!.]*/{glob.escape(key)}"):
            said = self.read(path, "run.json")
            parents = tuple(self.find(parent) for parent in said["parents"])
            run = Run(said["kind"], said["settings"], parents, said["label"])
            if run.key == key:
                return run
            raise InputError(f"run {key} was made by another version of the code: run it again")
        raise InputError(f"the store {self.root} has no finished run {key}")

    def model(self, run: Run) -> Path:
        """The folder of the model that a finished run made, verified on first use.

        Raises `Damaged` if its files have changed or are missing.
        """
        folder = self.path(run) / "model"
        try:
            written = tuple(path.stat().st_mtime_ns for path in sorted(folder.iterdir()))
        except OSError as error:
            raise _damaged(self.path(run), f"it has no folder {folder.name}/") from error
        for problem in _model_problems(self.path(run), written):
            raise _damaged(self.path(run), problem)
        return folder

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn the store's I/O errors into one clear error."""
        try:
            yield
        except OSError as error:
            raise self.error(error) from error

    def error(self, cause: Exception) -> StoreError:
        """The clear error for a store that cannot be written."""
        return StoreError(
            f"the store {self.root} cannot be written ({cause}): free some space, correct its "
            "permissions, or use another one (parameter 'store' or FUSINGLIB_STORE); finished "
            "runs are kept"
        )

    @contextlib.contextmanager
    def new(self, run: Run) -> Iterator[Path]:
        """A pending folder for the files of `run`, which becomes the run's folder when the block
        ends."""
        folder = self._pending(run.key)
        with self.writing():
            folder.mkdir()
        try:
            yield folder
            with (
                self.writing(),
                contextlib.suppress(FileExistsError),  # another process was faster
                staged(self.path(run), aside=folder),
            ):
                description = {**run.identity, "key": run.key, "label": run.label}
                write_json(folder / "run.json", description)
                (folder / PROGRESS).unlink(missing_ok=True)
                self.path(run).parent.mkdir(exist_ok=True)
                seal(folder)
            with self.writing():
                self.failure_file(run.key).unlink(missing_ok=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _pending(self, key: str) -> Path:
        """A new name for a folder that belongs to this process."""
        name = f"{key}-{machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        return self.root / PENDING / name

    def progress(self, run: Run) -> str:
        """The progress of `run`, if it is running and reports it."""
        for path in (self.root / PENDING).glob(f"{run.key}-*/{PROGRESS}"):
            with contextlib.suppress(OSError):
                return path.read_text()
        return ""

    def history(self, run: Run) -> list[dict]:
        """The evaluations of a finetuning, so far if it is running; empty if it has not started."""
        pending = (self.root / PENDING).glob(f"{run.key}-*/{HISTORY}")
        for path in (self.path(run) / HISTORY, *pending):
            with contextlib.suppress(OSError, ValueError):  # missing or half-written
                return json.loads(path.read_text())
        return []

    def predictions(self, run: Run) -> dict[str, np.ndarray]:
        """The label ids that a finished target or source run predicted for the test split, by
        metric; raises `Damaged` if they cannot be read."""
        for problem in problems(self.path(run), PREDICTIONS):
            raise _damaged(self.path(run), problem)
        return safetensors.numpy.load_file(self.path(run) / PREDICTIONS)

    def estimate(self, run: Run) -> Path:
        """The file of a finished estimate; raises `Damaged` if it has changed or is missing."""
        file = self.path(run) / ESTIMATE
        for problem in problems(self.path(run), ESTIMATE):
            raise _damaged(self.path(run), problem)
        return file

    def record_failure(self, run: Run, traceback: str) -> None:
        """Keep the traceback of a failed run; it is deleted when the run succeeds."""
        self.failure_file(run.key).parent.mkdir(exist_ok=True)
        self.failure_file(run.key).write_text(f"{run.kind} {run.key}: {run.label}\n{traceback}")

    def failure_file(self, key: str) -> Path:
        """The file with the traceback of the failed run with this key."""
        return self.root / "failed" / f"{key}.txt"

    def sweep(self) -> None:
        """Remove pending folders and leases that dead processes on this machine left behind."""
        Leases(self.root).sweep()
        for folder in (self.root / PENDING).glob("*"):
            owner = re.fullmatch(r"[0-9a-f]+-(.+)-([0-9]+)-[^-]+", folder.name)
            if owner and owner[1] == machine() and not alive(int(owner[2])):
                shutil.rmtree(folder, ignore_errors=True)

    def folders(self) -> list[Path]:
        """The folders of all finished runs."""
        return sorted(path.parent for path in self.root.glob("[!.]*/*/run.json"))

    def describe(self) -> list[dict]:
        """The description of every finished run, with its size in bytes."""
        found = []
        for folder in self.folders():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            found.append({**self.read(folder, "run.json"), "bytes": size})
        return found

    def results(self) -> pd.DataFrame:
        """All finished runs as one table: what each is (its settings as columns `settings.*`) and
        its result."""
        rows = []
        for folder in self.folders():
            said, result = (self.read(folder, name) for name in RECORDS)
            rows.append({**said, **result, "parents": " ".join(said["parents"])})
        return pd.json_normalize(rows)

    def prunable(self) -> list[Path]:
        """The folders of means that are only needed by finished target runs: their models can be
        fused again from their parents."""
        led_to: dict[str, set[str]] = {}
        for run in self.describe():
            for parent in run["parents"]:
                led_to.setdefault(parent, set()).add(run["kind"])
        means = [folder for folder in self.folders() if folder.parent.name == "fuse"]
        means = [folder for folder in means if (folder / "model").is_dir()]
        return [folder for folder in means if led_to.get(folder.name) == {"target"}]

    def prune(self, folder: Path) -> None:
        """Remove the model in the folder of a finished run; its result stays."""
        with self.writing():
            if (folder / HASHES).is_file():
                hashes = self.read(folder, HASHES)
                kept = {file: hashes[file] for file in hashes if not file.startswith("model/")}
                with staged(folder / HASHES) as file:
                    write_json(file, kept)
            removed = self._pending(folder.name)
            (folder / "model").rename(removed)  # so that it is never partly there
            shutil.rmtree(removed)

    def forget(self, run: Run) -> None:
        """Remove the folder of a finished run, so that it is recomputed."""
        removed = self._pending(run.key)
        with self.writing(), contextlib.suppress(FileNotFoundError):  # another process was faster
            self.path(run).rename(removed)
            shutil.rmtree(removed)


REWRITE = "delete this file; the runs in the store are not affected"


def _damaged(folder: Path, problem: str) -> Damaged:
    return Damaged(
        f"the finished run {folder} is damaged ({problem}): `fusinglib store check` quarantines "
        "it, and then it is recomputed",
        folder.name,
    )


@functools.cache
def _model_problems(folder: Path, written: tuple[int, ...]) -> list[str]:
    """The problems of a run's model whose files have these modification times, in nanoseconds."""
    return problems(folder, "model/")
