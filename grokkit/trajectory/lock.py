"""One writer per run folder: an flock on LOCK, with a note that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from grokkit.errors import TrajectoryError


class RunLock:
    """Held from construction to `close`; the kernel gives it back when the process dies.

    Raises:
        TrajectoryError: another writer holds it; the message names its host and process.
    """

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / "LOCK", "a+")  # noqa: SIM115  (closed by close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "an unknown process"
            self._file.close()
            raise TrajectoryError(f"{folder} is being written by {holder}; wait for it or stop it") from error
        except OSError as error:
            self._file.close()
            raise TrajectoryError(f"{folder} cannot be locked: {error.strerror or error}; use a local disk") from error
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


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
