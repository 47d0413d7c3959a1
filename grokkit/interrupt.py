"""Handle signals that request a stop or a save: Ctrl-C, SIGTERM, SIGHUP, SIGUSR1.

Requests are checked after training steps and between batches of analyses.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

EXIT_AT_ONCE = 130

GRACE_SECONDS = 10.0
"""How long a running measure may continue after a stop request: most end within it, and nothing is lost.
torchrun kills its processes 30 s after SIGTERM; this leaves 15 s for one more batch and the save."""


ECHO_SECONDS = 3.0
"""A second SIGTERM or SIGHUP within this time counts as the first one: a signal to a process group reaches some
processes both directly and through their parents."""


class StopRequested(BaseException):
    """A stop was requested; raised between two batches of an analysis.

    Not an `Exception`, so that it is not caught as a failed measure.
    """


class StopRequest:
    """Context manager that turns signals into requests.

    Within the block, the first SIGINT, SIGTERM or SIGHUP sets `.stop_requested`; a second one ends the process with
    exit code 130 (SIGINT at once, the others from `ECHO_SECONDS` after the first). An ignored SIGHUP, as under nohup,
    stays ignored. SIGUSR1 sets `.save_requested`, which the code that saves resets. The previous handlers are called
    on exit from the block, after everything is saved, because some of them end the process.

    Outside the main thread Python does not allow handlers: nothing is installed and both attributes stay False.

    Args:
        action: verb of the terminal message, `saving` or, if nothing is saved, `stopping`.
    """

    def __init__(self, action: str = "saving") -> None:
        self._message = f"\n{action} after the current step or measure; press Ctrl-C again to exit at once\n".encode()
        self.stop_requested = self.save_requested = False
        self.since = 0.0
        self._previous_handlers: dict[int, Any] = {}
        self._received: list[tuple[int, FrameType | None]] = []
        self._outer: StopRequest | None = None

    def __enter__(self) -> StopRequest:
        self._outer = _active_requests[-1] if _active_requests else None
        _active_requests.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        _active_requests.remove(self)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        for number, frame in self._received:
            if (
                callable(self._previous_handlers[number])
                and self._previous_handlers[number] is not signal.default_int_handler
            ):
                self._previous_handlers[number](number, frame)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save_requested = True
        elif self.stop_requested and (number == signal.SIGINT or time.monotonic() - self.since > ECHO_SECONDS):
            os._exit(EXIT_AT_ONCE)
        elif self.stop_requested:
            return
        else:
            self.stop_requested, self.since = True, time.monotonic()
            if self._outer is None:
                # Not `print`: the signal may arrive within one.
                os.write(2, self._message)
        if self._outer is not None and self._previous_handlers[number] == self._outer._on_signal:
            self._outer._on_signal(number, frame)
        else:
            self._received.append((number, frame))


def ignore_early_sigusr1() -> None:
    """Ignore SIGUSR1 outside of `StopRequest`, unless it has a handler: it would end a process that is starting up."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


_active_requests: list[StopRequest] = []
"""Instances whose blocks are active, the innermost last; blocks of other threads may exit in any order."""


def check_interrupt(grace: float = GRACE_SECONDS) -> None:
    """Raise `StopRequested` if a stop was requested at least `grace` seconds ago.

    Call it between two batches of an analysis, and with `grace=0` between two analyses.

    Raises:
        StopRequested: see above.
    """
    stop = _active_requests[-1] if _active_requests else None
    if stop is not None and stop.stop_requested and time.monotonic() - stop.since >= grace:
        raise StopRequested
