"""One writer per run folder: an flock on LOCK, with a note that says who holds it and a token that nobody else has.

Some network file systems keep no lock between machines. There the token still tells a writer that another one has
taken the run over: it is read again before a file is published (detection, not prevention).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from grokkit.errors import TrajectoryError, UsageError

PATIENCE = 0.5
"""Seconds that a writer waits for a lock that somebody has."""


class RunLock:
    """Held from construction to `close`; the kernel gives it back when the process dies.

    Raises:
        TrajectoryError: another writer holds it; the message names its host and process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "LOCK"
        self._token, self._pid = uuid.uuid4().hex, os.getpid()
        self._file = open(folder / "LOCK", "a+")  # noqa: SIM115  (closed by close)
        try:
            self._take()
        except BlockingIOError as error:
            self._file.seek(0)
            holder = _note(self._file.read())
            self._file.close()
            raise TrajectoryError(f"{folder} is being written by {_in_words(holder)}") from error
        except OSError as error:
            self._file.close()
            raise TrajectoryError(f"{folder} cannot be locked: {error.strerror or error}; use a local disk") from error
        _held.add(self)
        self._file.truncate(0)
        self._file.write(json.dumps(_holder() | {"token": self._token}))
        self._file.flush()

    def _take(self) -> None:
        """A reader that looks whether a run lives holds the lock for a moment: that is waited for."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    @property
    def is_anothers(self) -> bool:
        """Whether this process is not the one that took it, but a fork of that."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise UsageError in a fork of the process that took it."""
        if self.is_anothers:
            raise UsageError(
                f"{self._path.parent} is written by process {self._pid}, and this is process {os.getpid()}, a fork of "
                "it: record in the one that opened the run, or open one of its own"
            )

    def owns(self, folder: Path | None = None) -> bool:
        """Whether LOCK holds this writer's token, in its folder or in `folder`."""
        path = self._path if folder is None else folder / "LOCK"
        return _note(path.read_text() if path.exists() else "").get("token") == self._token

    def remove_folder(self) -> None:
        """Remove the folder that is locked, and give the lock back; what another writer has there by now stays."""
        folder = self._path.parent
        aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            if self.owns():
                os.rename(folder, aside)
                if self.owns(aside):
                    shutil.rmtree(aside)
                else:  # it came between the look and the rename
                    os.rename(aside, folder)
        finally:
            self.close()

    def check(self) -> None:
        """Raises TrajectoryError where LOCK no longer holds this writer's token."""
        found = _note(self._path.read_text() if self._path.exists() else "")
        if found.get("token") != self._token:
            if not found:
                raise TrajectoryError(
                    f"{self._path} is gone or empty: the folder was removed, renamed or emptied while it was written"
                )
            raise TrajectoryError(
                f"another writer has taken {self._path.parent} over ({_named(found)}); this one stops before it "
                "mixes two runs"
            )

    def close(self) -> None:
        """Give it back, also where a forked process has inherited the file; in such a process, only forget it."""
        if not self._file.closed and not self.is_anothers:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
        _held.discard(self)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()
"""Locks of this process; a forked one forgets them, or it would keep them when their process is gone."""


def _forget() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_forget)


def _holder() -> dict[str, object]:
    """This process: host, pid, the machine's boot and the time."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    booted = boot.read_text().strip() if boot.exists() else ""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": booted, "since": time.time()}


def _note(text: str) -> dict[str, object]:
    """What LOCK says; nothing where it is half written."""
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


def _in_words(holder: dict[str, object]) -> str:
    """Who holds a lock, and what is to be done."""
    if (holder.get("pid"), holder.get("host")) == (os.getpid(), socket.gethostname()):
        return "a recorder of this process: close it, such as by `recorder.close()`"
    return f"{_named(holder)}; wait for it or stop it"


def _named(holder: dict[str, object]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if "pid" in holder else "an unknown process"


@contextmanager
def being_filled(folder: Path) -> Iterator[None]:
    """Keep a new folder from being cleared away as one that a killed process has left."""
    folder.mkdir(parents=True)
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a live process on this file system writes the run in `folder`."""
    try:
        with open(folder / "LOCK") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
