"""Child processes of a sweep: a lock on the log while a process writes to it, and an end with the parent process."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARENT_VARIABLE = "GROKKIT_PARENT"
"""Environment variable: id of the parent process; this process is killed when the parent is gone."""

LOCK_SECONDS = 0.5
"""Seconds to wait for the lock of a log: `is_log_locked` in another process holds it for a moment."""

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5


@contextmanager
def lock_log(log: Path) -> Iterator[BinaryIO | None]:
    """Open `log` for appending and lock it; yield None if another process holds the lock.

    The lock belongs to the open file: a child process that inherits the file as its output holds the lock until it
    ends, even if its parent ends earlier. On a file system without locks, the file is opened unlocked.
    """
    with open(log, "ab") as file:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    yield None
                    return
                time.sleep(0.01)
                continue
            except OSError:
                pass
            yield file
            return


def is_log_locked(log: Path) -> bool:
    """Return whether a live process appends to `log`, including a process that has no run folder yet."""
    try:
        with open(log, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def end_with_parent() -> None:
    """Kill this process (SIGKILL) as soon as its parent, whose id is in GROKKIT_PARENT, is gone.

    A run must end with its Ray worker, because Ray assigns the worker's share of the GPU to the next run at once.
    """
    value = os.environ.pop(PARENT_VARIABLE, "")
    if not value.isdecimal():
        return
    parent = int(value)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # the parent ended before the signal was set up
        os.kill(os.getpid(), signal.SIGKILL)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
