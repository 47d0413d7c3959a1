"""Requests to stop or save (Ctrl-C, SIGTERM, hang-up, SIGUSR1), heard after steps and between batches of analyses."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

EXIT_AT_ONCE = 130

GRACE_SECONDS = 10.0
"""How long a measure that is under way may go on when a stop is asked for: most end within it, and nothing is lost.
torchrun kills its processes 30 s after it has asked them; this leaves 15 for one more batch and the save."""


ECHO_SECONDS = 3.0
"""For so long a second SIGTERM or SIGHUP is taken for the first: whoever stops a whole group of processes reaches some
of them directly and through their parents."""


class StopRequested(BaseException):
    """A stop was asked for; raised between two batches of an analysis. Not an `Exception`: nobody is to take it for a
    measure that failed."""


class StopRequest:
    """Within the block, the first SIGINT, SIGTERM or SIGHUP sets `.stop_requested`, a second one (`ECHO_SECONDS`
    later, where it is no SIGINT) ends the process with exit code 130; a hang-up that is ignored, as under nohup, stays
    so. SIGUSR1 sets `.save_requested`, for whoever saves to take back. Handlers that were there before are called when
    the block is left,
    when all is saved: some of them end the process.

    Outside the main thread, where Python allows no handlers, nothing is installed and both stay False.

    Args:
        doing: what the terminal is told to happen; another word where nothing is saved.
    """

    def __init__(self, doing: str = "saving") -> None:
        self._told = f"\n{doing} as soon as this step or measure allows; press again to leave at once\n".encode()
        self.stop_requested = self.save_requested = False
        self.since = 0.0
        self._before: dict[int, Any] = {}
        self._heard: list[tuple[int, FrameType | None]] = []
        self._around: StopRequest | None = None

    def __enter__(self) -> StopRequest:
        self._around = _listening[-1] if _listening else None
        _listening.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        _listening.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for number, frame in self._heard:
            if callable(self._before[number]) and self._before[number] is not signal.default_int_handler:
                self._before[number](number, frame)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save_requested = True
        elif self.stop_requested and (number == signal.SIGINT or time.monotonic() - self.since > ECHO_SECONDS):
            os._exit(EXIT_AT_ONCE)
        elif self.stop_requested:
            return
        else:
            self.stop_requested, self.since = True, time.monotonic()
            if self._around is None:
                # not `print`: this may interrupt one
                os.write(2, self._told)
        if self._around is not None and self._before[number] == self._around._on_signal:
            self._around._on_signal(number, frame)
        else:
            self._heard.append((number, frame))


def ignore_early_sigusr1() -> None:
    """Ignore SIGUSR1 outside of `StopRequest`, unless somebody hears it: it would end a process that still prepares."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


_listening: list[StopRequest] = []
"""Those whose blocks are open, the innermost last; a block of another thread may be left in any order."""


def check_interrupt(grace: float = GRACE_SECONDS) -> None:
    """To be called between two batches of an analysis, and with `grace=0` between two analyses.

    Raises:
        Stopped: a stop was asked for more than `grace` seconds ago.
    """
    stop = _listening[-1] if _listening else None
    if stop is not None and stop.stop_requested and time.monotonic() - stop.since >= grace:
        raise StopRequested
