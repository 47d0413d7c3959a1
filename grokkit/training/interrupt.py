"""Ctrl-C and SIGTERM: the first asks the loop to save and stop, the second leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_AT_ONCE = 130


class StopRequest:
    """Within the block, the first SIGINT or SIGTERM sets `.asked`, the second ends the process with exit code 130.

    Outside the main thread, where Python allows no handlers, nothing is installed and `.asked` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(EXIT_AT_ONCE)
        self.asked = True
        print("\nsaving after this step; press again to leave at once", file=sys.stderr, flush=True)
