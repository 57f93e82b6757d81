"""Progress of long work in a notebook, a terminal and a log."""

import html
import shutil
import sys
import time
from collections.abc import Callable

LOG_EVERY = 30
"""Seconds between two lines of progress where output goes to a file."""

MARK = "fusinglib_progress"
"""Output metadata that marks progress among a notebook's outputs, for the command line."""


class Line:
    """A status line: overwritten in a terminal, repeated every 30 seconds in a log."""

    def __init__(self):
        self.terminal = sys.stderr.isatty()
        self.written = -float("inf")
        self.open = False

    def show(self, text: str, last: bool = False) -> None:
        """Show `text`; the `last` one is always shown and stays."""
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            end = "\n" if last else ""
            print(f"\r\x1b[2K{text[:width]}", end=end, file=sys.stderr, flush=True)
            self.open = not last
        elif last or time.monotonic() - self.written >= LOG_EVERY:
            self.written = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line: the next output starts on a new one."""
        if self.open:
            print(file=sys.stderr, flush=True)
            self.open = False


class Progress:
    """How many of `total` are done: call `update(done, text)`, at the end with `last=True`.

    In a notebook it is an updated display (which stays in an executed copy), elsewhere a `Line`.
    `count` is the format of the count.
    """

    def __init__(self, total: int, count: Callable[[int, int], str] = "{} of {} runs".format):
        self.total, self.count = total, count
        self.line = None if _in_kernel() else Line()
        self.handle = None
        self.shown = ""

    def update(self, done: int, text: str, last: bool = False) -> None:
        """Show that `done` runs are done, and `text` beside it."""
        text = self.count(done, self.total) + (f", {text}" if text else "")
        if self.line:
            self.line.show(text, last)
        elif text != self.shown:
            self.shown = text
            self._display(done, text, last)

    def say(self, event: str) -> None:
        """Print an event on a line of its own."""
        self.close()
        print(event, flush=True)

    def close(self) -> None:
        """End the display."""
        if self.line:
            self.line.close()

    def _display(self, done: int, text: str, last: bool) -> None:
        from IPython.display import display

        bar = f"<progress value='{done}' max='{self.total}' style='width: 20em'></progress>"
        content = {"text/plain": text, "text/html": f"{bar} {html.escape(text)}"}
        metadata = {MARK: "last" if last else "under way"}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True, metadata=metadata)
        else:
            self.handle.update(content, raw=True, metadata=metadata)


def amount(count: float) -> str:
    """A number of bytes in words: `340 MB`, `1.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """A duration in words: `42 s`, `7 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _in_kernel() -> bool:
    """Whether this is a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")
