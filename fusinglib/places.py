"""Where things are on this machine: the project, what the package ships, and the store of runs.

A relative path in a parameter file is looked for beside that file first (`study.parameters`). All
other relative paths, those of notebooks and `--set` included, start at the project.
"""

import os
import re
from pathlib import Path

from fusinglib.errors import InputError

_PACKAGE = Path(__file__).resolve().parent

PROJECT = _PACKAGE.parent
"""The checkout that this package is in, if it is in one."""

SHIPPED = _PACKAGE if (_PACKAGE / "notebooks").is_dir() else PROJECT
"""Where the package's own `notebooks/` and `params/` are: within it once it is installed, beside it
in a checkout."""


def project() -> Path:
    """The nearest folder at or above the current one with `notebooks/` and `params/`; if there is
    none, the checkout of this package, otherwise the current folder."""
    here = Path.cwd()
    checkout = [PROJECT] if SHIPPED == PROJECT else []
    for folder in (here, *here.parents, *checkout):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return here


def expanded(path: str | Path) -> Path:
    """A path with `~` as the user's home; raises `InputError` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such home folder: correct the path") from error


def anchored(path: str | Path) -> Path:
    """An absolute path: a relative one is taken from the project, `~` is the user's home."""
    return (project() / expanded(path)).resolve()


def shipped(path: str | Path) -> Path:
    """The path of a notebook or of parameter files: the project's own where it has them, otherwise
    those that come with the package."""
    own, ours = anchored(path), SHIPPED / path
    return ours if ours.exists() and not own.exists() else own


def is_key(name: str) -> bool:
    """Whether a name is written like the key of a run of the store."""
    return bool(re.fullmatch("[0-9a-f]{16}", name))


def store_folder(store: str = "") -> Path:
    """Where runs are kept: `store`, else FUSINGLIB_STORE, else `runs/` of the project."""
    return anchored(store or os.environ.get("FUSINGLIB_STORE") or "runs")
