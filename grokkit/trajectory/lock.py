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
import stat
import time
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from grokkit.errors import TrajectoryError, UsageError
from grokkit.trajectory.documents import read_bytes

MAX_HOLDER_BYTES = 1 << 16
"""Bytes of LOCK that are read."""

WAIT_SECONDS = 0.5
"""Seconds that a writer waits for a lock that somebody has."""


class RunLock:
    """Held from construction to `close`; the kernel gives it back when the process dies.

    Raises:
        TrajectoryError: another writer holds it; the message names its host and process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "LOCK"
        self._token, self._pid = uuid.uuid4().hex, os.getpid()
        self._file = os.fdopen(self._taken(), "rb+", buffering=0)
        _held.add(self)
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(_describe_process() | {"token": self._token}).encode())
        except OSError as error:
            self.close()
            raise TrajectoryError(f"{folder} cannot be locked: {error.strerror or error}") from error

    def _taken(self) -> int:
        """A descriptor of LOCK, locked. A folder that was moved away or replaced before that is looked for again: the
        lock would be another run's."""
        while True:
            handle = self._opened()
            try:
                self._wait_for(handle)
                if self._is_in_place(handle):
                    return handle
            except BlockingIOError as error:
                holder = _describe_holder(_parse_holder(os.pread(handle, MAX_HOLDER_BYTES, 0)))
                os.close(handle)
                raise TrajectoryError(f"{self._path.parent} is being written by {holder}") from error
            except OSError as error:
                os.close(handle)
                why = f"{error.strerror or error}; use a local disk"
                raise TrajectoryError(f"{self._path.parent} cannot be locked: {why}") from error
            os.close(handle)

    def _opened(self) -> int:
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except FileNotFoundError:
            raise TrajectoryError(
                f"{self._path.parent} is not there, or no more: nothing can be written to it"
            ) from None
        except OSError as error:
            why = f"{error.strerror or error}; copy the run to where it may be written"
            raise TrajectoryError(f"{self._path.parent} cannot be locked: {why}") from error
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        raise TrajectoryError(f"{self._path.parent} cannot be locked: LOCK is no regular file; remove it")

    def _wait_for(self, handle: int) -> None:
        """A reader that looks whether a run lives holds the lock for a moment: that is waited for."""
        end = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _is_in_place(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self._path))
        except FileNotFoundError:
            return False

    def set_folder(self, folder: Path) -> None:
        """Say that the folder has another name now; the lock goes with it."""
        self._path = folder / "LOCK"

    @property
    def is_forked(self) -> bool:
        """Whether this process is not the one that took it, but a fork of that."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise UsageError in a fork of the process that took it."""
        if self.is_forked:
            raise UsageError(
                f"{self._path.parent} is written by process {self._pid}, and this is process {os.getpid()}, a fork of "
                "it: record in the one that opened the run, or open one of its own"
            )

    def owns(self, folder: Path | None = None) -> bool:
        """Whether LOCK holds this writer's token, in its folder or in `folder`."""
        return _read_holder(self._path if folder is None else folder / "LOCK").get("token") == self._token

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
        found = _read_holder(self._path)
        if found.get("token") != self._token:
            if not found:
                raise TrajectoryError(
                    f"{self._path} is gone or empty: the folder was removed, renamed or emptied while it was written"
                )
            raise TrajectoryError(
                f"another writer has taken {self._path.parent} over ({_name_holder(found)}); this one stops before it "
                "mixes two runs"
            )

    def close(self) -> None:
        """Give it back, also where a forked process has inherited the file; in such a process, only forget it."""
        if not self._file.closed and not self.is_forked:
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


def _describe_process() -> dict[str, object]:
    """This process: host, pid, the machine's boot and the time."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    booted = boot.read_text().strip() if boot.exists() else ""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": booted, "since": time.time()}


def _read_holder(path: Path) -> dict[str, object]:
    """What LOCK says; nothing where there is none that can be read."""
    try:
        return _parse_holder(read_bytes(path, MAX_HOLDER_BYTES))
    except (OSError, TrajectoryError):
        return {}


def _parse_holder(text: bytes) -> dict[str, object]:
    """What LOCK says; nothing where it is half written, or no table."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _describe_holder(holder: dict[str, object]) -> str:
    """Who holds a lock, and what is to be done."""
    if (holder.get("pid"), holder.get("host")) == (os.getpid(), socket.gethostname()):
        return "a recorder of this process: close it, such as by `recorder.close()`"
    return f"{_name_holder(holder)}; wait for it or stop it"


def _name_holder(holder: dict[str, object]) -> str:
    if "pid" not in holder:
        return "an unknown process"
    return f"process {holder['pid']} on {holder.get('host', 'an unknown machine')}"


@contextmanager
def mark_being_filled(folder: Path) -> Iterator[None]:
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
        handle = os.open(folder / "LOCK", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
