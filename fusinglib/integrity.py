"""Files and folders that are complete or absent, and whose corruption is noticed before use."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import xxhash

HASHES = "hashes.json"
"""In a sealed folder: the xxh3_128 of every other file, by its name."""


@contextlib.contextmanager
def staged(path: Path, aside: Path | None = None, durable: bool = True) -> Iterator[Path]:
    """A temporary path for a new file or folder, `aside` or hidden beside `path`, renamed to `path`
    when the block ends; if the block fails, nothing remains.

    What processes of this machine that have been killed left half-written under that name is
    removed first. Unless `durable` is false, everything is synced to disk first, so that even a
    power cut leaves nothing half-written. A file replaces an existing one; a folder raises
    `FileExistsError` if another process was faster.
    """
    mine = f".{path.name}.{machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    partial = aside or path.with_name(mine)
    _sweep(path)
    try:
        yield partial
        if durable:
            for each in (partial, *partial.rglob("*")):
                _flush(each)
        try:
            partial.replace(path)
        except OSError as error:
            if path.is_dir():
                raise FileExistsError(f"{path} is there already") from error
            raise
        if durable:
            _flush(path.parent)
    finally:
        _remove(partial)


def _sweep(path: Path) -> None:
    """Remove what dead processes of this machine left half-written beside `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*-*-*.partial"):
        owner, process, _ = left.name.removeprefix(f".{path.name}.").rsplit("-", 2)
        if owner == machine() and process.isdigit() and not alive(int(process)):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def machine() -> str:
    """This host and its process namespace (containers number processes separately)."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}.{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def alive(pid: int) -> bool:
    """Whether a process of this machine exists, as far as that can be asked."""
    if os.name == "nt":
        return True  # there, os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_json(path: Path, value) -> None:
    """Write `value` as JSON that a person can read."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def seal(folder: Path) -> None:
    """Write the hashes of all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(folder / HASHES, {str(path.relative_to(folder)): _hash(path) for path in files})


def problems(folder: Path, part: str = "") -> list[str]:
    """What is wrong with the files of a sealed folder, or with those whose names begin with `part`:
    missing or changed. Nothing is known about a folder that was never sealed."""
    try:
        hashes = read_json(folder / HASHES)
    except FileNotFoundError:
        return []
    except ValueError as error:
        return [str(error)]
    found = [] if hashes else [f"{HASHES} lists nothing"]
    for name in (name for name in hashes if name.startswith(part)):
        try:
            if _hash(folder / name) != hashes[name]:
                found.append(f"{name} has changed since it was written")
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
    return found


def read_json(path: Path) -> dict:
    """The object in a JSON file; raises `ValueError` with the file's name if there is none."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} does not hold a JSON object")
    return value


def _hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
