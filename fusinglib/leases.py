"""Leases: who computes a run right now, so that no other command does.

A lease is a file that its owner renews; nothing is locked, so that machines and network file
systems may share a store. If an owner dies its lease expires: at once for processes of the same
machine, otherwise when it has not been renewed for `LASTING` seconds. If two owners hold one after
all (a suspended computer wakes up), a run is computed twice, and the store keeps the first.
"""

import contextlib
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusinglib.integrity import alive, machine

LEASES = ".leases"

LASTING, RENEWED = 180.0, 20.0
"""Seconds after which a lease of another machine expires, and between renewals. A network file
system may show a renewal up to a minute late."""


class Leases:
    """The leases that this process holds in the store at `root`, which `renewing` keeps alive."""

    def __init__(self, root: Path):
        self.folder = root / LEASES
        self.owner = f"{machine()} {os.getpid()} {uuid.uuid4().hex}"
        self.held: set[str] = set()

    @contextlib.contextmanager
    def renewing(self) -> Iterator[None]:
        """Renew what is held in the background; release it at the end of the block."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(RENEWED):
                for key in list(self.held):
                    with contextlib.suppress(OSError):
                        os.utime(self.folder / key)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.release(list(self.held))

    def take(self, key: str) -> bool:
        """Whether the lease of the run with this key is ours now; false if another holds it."""
        if key in self.held:
            return True
        self.folder.mkdir(exist_ok=True)
        if self._created(key) or (self._cleared(key) and self._created(key)):
            self.held.add(key)
            return True
        return False

    def is_free(self, key: str) -> bool:
        """Whether nobody holds the lease of this run."""
        return not (self.folder / key).exists() or self._expired(self.folder / key)

    def release(self, keys: Iterable[str]) -> None:
        """Give up the leases of these runs, as far as they are ours."""
        for key in self.held.intersection(keys):
            self.held.discard(key)
            if _owner(self.folder / key) == self.owner:
                (self.folder / key).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the leases of dead processes on this machine."""
        for path in self.folder.glob("[!.]*"):
            if _is_dead(_owner(path)):
                path.unlink(missing_ok=True)

    def _created(self, key: str) -> bool:
        try:
            with open(self.folder / key, "x", encoding="utf-8") as stream:
                stream.write(self.owner)
        except FileExistsError:
            return False
        return True

    def _cleared(self, key: str) -> bool:
        """Remove a lease that has expired; false if there is none, or another was faster."""
        path = self.folder / key
        owner = _owner(path)
        if not self._expired(path):
            return False
        aside = self.folder / f".{key}-{uuid.uuid4().hex}"
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        if _owner(aside) != owner:  # another has cleared and taken it just now
            with contextlib.suppress(OSError):
                os.link(aside, path)
            owner = None
        aside.unlink()
        return owner is not None

    def _expired(self, path: Path) -> bool:
        if _is_dead(_owner(path)):
            return True
        try:
            return self._now() - path.stat().st_mtime > LASTING
        except FileNotFoundError:
            return True

    def _now(self) -> float:
        """The time by the clock of the file system."""
        clock = self.folder / f".clock-{uuid.uuid4().hex}"
        clock.touch()
        try:
            return clock.stat().st_mtime
        finally:
            clock.unlink(missing_ok=True)


def _is_dead(owner: str) -> bool:
    """Whether the owner of a lease was a process of this machine that has ended."""
    host, _, rest = owner.partition(" ")
    process = rest.partition(" ")[0]
    return host == machine() and process.isdigit() and not alive(int(process))


def _owner(path: Path) -> str:
    """Who holds a lease; "" if nobody does, or if it is being written."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
