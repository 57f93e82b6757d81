"""Where things are on this machine: the project, and the store of runs."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def store_folder(store: str = "") -> Path:
    """Where runs are kept: `store`, else FUSINGLIB_STORE, else `runs/` at the project's root."""
    chosen = store or os.environ.get("FUSINGLIB_STORE") or PROJECT / "runs"
    return Path(chosen).expanduser().resolve()
