"""Allow one writer per run folder: an flock on LOCK, which also holds the writer's process, host and a unique token.

Some network file systems do not share locks between machines. There the token still shows a writer that another one has
taken over the run: it is read again before a file is published (detection, not prevention).
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
"""Seconds that a writer waits for a lock that another process holds."""


class RunLock:
    """Exclusive lock of a run folder, held from construction to `close`; the kernel releases it when the process dies.

    Raises:
        TrajectoryError: another writer holds it; the message names its host and process.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "LOCK"
        self._token, self._pid = uuid.uuid4().hex, os.getpid()
        self._file = os.fdopen(self._acquire(), "rb+", buffering=0)
        _open_locks.add(self)
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(_describe_process() | {"token": self._token}).encode())
        except OSError as error:
            self.close()
            raise TrajectoryError(f"{folder} cannot be locked: {error.strerror or error}") from error

    def _acquire(self) -> int:
        """Open and lock LOCK, and return its descriptor.

        Retries if the folder was moved or replaced in between: the lock would be that of another run.
        """
        while True:
            handle = self._open_lock_file()
            try:
                self._wait_for_lock(handle)
                if self._is_in_place(handle):
                    return handle
            except BlockingIOError as error:
                holder = _describe_holder(_parse_holder(os.pread(handle, MAX_HOLDER_BYTES, 0)))
                os.close(handle)
                raise TrajectoryError(f"{self._path.parent} is being written by {holder}") from error
            except OSError as error:
                os.close(handle)
                reason = f"{error.strerror or error}; use a local disk"
                raise TrajectoryError(f"{self._path.parent} cannot be locked: {reason}") from error
            os.close(handle)

    def _open_lock_file(self) -> int:
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except FileNotFoundError:
            raise TrajectoryError(f"{self._path.parent} not found, or removed: nothing can be written to it") from None
        except OSError as error:
            reason = f"{error.strerror or error}; copy the run to a writable folder"
            raise TrajectoryError(f"{self._path.parent} cannot be locked: {reason}") from error
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
        raise TrajectoryError(f"{self._path.parent} cannot be locked: LOCK is not a regular file; remove it")

    def _wait_for_lock(self, handle: int) -> None:
        """Lock LOCK, and wait for readers that check whether the run is live: they hold the lock for a moment."""
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
        """Update the path after the folder was renamed; the lock stays held."""
        self._path = folder / "LOCK"

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that acquired the lock."""
        return os.getpid() != self._pid

    def check_process(self) -> None:
        """Raise UsageError if this process is a fork of the one that acquired the lock."""
        if self.is_forked:
            raise UsageError(
                f"{self._path.parent} is written by process {self._pid}, and this is process {os.getpid()}, a fork of "
                "it: record in the process that opened the run, or open another run in this one"
            )

    def owns(self, folder: Path | None = None) -> bool:
        """Return whether LOCK in its folder, or in `folder`, holds this writer's token."""
        return _read_holder(self._path if folder is None else folder / "LOCK").get("token") == self._token

    def remove_folder(self) -> None:
        """Remove the locked folder and release the lock; keep a folder that another writer has put there meanwhile."""
        folder = self._path.parent
        draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            if self.owns():
                os.rename(folder, draft)
                if self.owns(draft):
                    shutil.rmtree(draft)
                else:  # another writer's folder, created between the check and the rename
                    os.rename(draft, folder)
        finally:
            self.close()

    def check(self) -> None:
        """Raise TrajectoryError if LOCK no longer holds this writer's token."""
        holder = _read_holder(self._path)
        if holder.get("token") != self._token:
            if not holder:
                raise TrajectoryError(
                    f"{self._path} is missing or empty: the folder was removed, renamed or emptied while it was written"
                )
            raise TrajectoryError(
                f"another writer has taken over {self._path.parent} ({_name_holder(holder)}); this one stops, so that "
                "two runs are not mixed"
            )

    def close(self) -> None:
        """Release the lock, even if a forked process has inherited the file; in such a process, only close the
        descriptor."""
        if not self._file.closed and not self.is_forked:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
        _open_locks.discard(self)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


_open_locks: weakref.WeakSet[RunLock] = weakref.WeakSet()
"""Locks of this process. A forked child closes its copies, or it would keep the locks after the parent is gone."""


def _release_inherited_locks() -> None:
    for lock in list(_open_locks):
        lock.close()


os.register_at_fork(after_in_child=_release_inherited_locks)


def _describe_process() -> dict[str, object]:
    """Return host, pid, boot id of the machine and time."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    booted = boot.read_text().strip() if boot.exists() else ""
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": booted, "since": time.time()}


def _read_holder(path: Path) -> dict[str, object]:
    """Read the content of LOCK; empty if it cannot be read."""
    try:
        return _parse_holder(read_bytes(path, MAX_HOLDER_BYTES))
    except (OSError, TrajectoryError):
        return {}


def _parse_holder(text: bytes) -> dict[str, object]:
    """Parse the content of LOCK; empty if it is incomplete or not a table."""
    try:
        holder = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe_holder(holder: dict[str, object]) -> str:
    """Describe the holder of a lock and how to proceed."""
    if (holder.get("pid"), holder.get("host")) == (os.getpid(), socket.gethostname()):
        return "a recorder of this process: close it, such as by `recorder.close()`"
    return f"{_name_holder(holder)}; wait for it or stop it"


def _name_holder(holder: dict[str, object]) -> str:
    if "pid" not in holder:
        return "an unknown process"
    return f"process {holder['pid']} on {holder.get('host', 'an unknown machine')}"


@contextmanager
def locked_draft(folder: Path) -> Iterator[None]:
    """Create a new folder and lock it, so that recovery does not remove it as the leftover of a killed process."""
    folder.mkdir(parents=True)
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Return whether a live process on this file system writes the run in `folder`."""
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
