"""One attempt at a run: its log, locked for as long as a process writes it, and its end with the process above it."""

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
"""Environment variable: number of the process that this one is to end with."""

LOCK_SECONDS = 0.5
"""Seconds that a log is waited for: whoever looks whether it is written holds it for a moment."""

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5


@contextmanager
def lock_log(log: Path) -> Iterator[BinaryIO | None]:
    """Open `log` to append to it, locked; None where another process has it.

    The lock belongs to the open file: a process that inherits it as its output holds it to its end, whatever becomes of
    the one that started it. Where a file system keeps no locks, there is none.
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
    """Whether a process that appends to `log` goes on, also one that has no run folder yet."""
    try:
        with open(log, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def end_with_parent() -> None:
    """End this process by SIGKILL as soon as the one that GROKKIT_PARENT names, which has started it, is gone.

    A Ray worker that is killed takes its run with it: Ray gives the run's share of the GPU to the next one at once.
    """
    told = os.environ.pop(PARENT_VARIABLE, "")
    if not told.isdecimal():
        return
    parent = int(told)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
