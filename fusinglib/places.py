"""Where things are on this machine: the project, and the store of runs.

A relative path in a parameter file is looked for beside that file first (`study.parameters`); all
others, and those of notebooks and `--set`, are paths from the project.
"""

import os
import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
"""The checkout that this package is in, if it is in one."""


def project() -> Path:
    """The nearest folder at or above the current one with `notebooks/` and `params/`; where there
    is none, the checkout of this package, or else the current folder."""
    here = Path.cwd()
    for folder in (here, *here.parents, PROJECT):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return here


def anchored(path: str | Path) -> Path:
    """An absolute path: a relative one is taken from the project, `~` is the user's home."""
    return (project() / Path(path).expanduser()).resolve()


def is_key(name: str) -> bool:
    """Whether a name is written like the key of a run of the store."""
    return bool(re.fullmatch("[0-9a-f]{16}", name))


def store_folder(store: str = "") -> Path:
    """Where runs are kept: `store`, else FUSINGLIB_STORE, else `runs/` of the project."""
    return anchored(store or os.environ.get("FUSINGLIB_STORE") or "runs")
