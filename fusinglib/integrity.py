"""Folders whose files have their hashes beside them, so that damage is seen before it is used."""

import hashlib
import json
import os
from pathlib import Path

import xxhash

HASHES = "hashes.json"
"""In a sealed folder: the xxh3_128 of every other file, by its name."""


def seal(folder: Path) -> None:
    """Write the hashes of all files in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(folder)): _hash(path) for path in files}
    (folder / HASHES).write_text(json.dumps(hashes, indent=1) + "\n")


def publish(partial: Path, folder: Path) -> None:
    """Seal a finished folder, have its files on the disk, and give it its name; where another
    process was faster, the first one's stays."""
    seal(partial)
    partial.chmod(0o755)
    for path in partial.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def problems(folder: Path, part: str = "") -> list[str]:
    """What is wrong with the files of a sealed folder, or with those whose names begin with `part`:
    not there, or not as they were written. Of one that was never sealed nothing is known."""
    try:
        hashes = json.loads((folder / HASHES).read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        return [f"{HASHES}: {error}"]
    found = []
    for name in (name for name in hashes if name.startswith(part)):
        try:
            if _hash(folder / name) != hashes[name]:
                found.append(f"{name} is not as it was written")
        except OSError as error:
            found.append(f"{name}: {error.strerror}")
    return found


def _hash(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()
