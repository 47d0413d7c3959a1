"""Callbacks that tests share."""

import os
import signal
from collections.abc import Mapping

from grokkit.callbacks.base import BaseCallback


class PressesCtrlC(BaseCallback):
    """Sends SIGINT to this process once, in step `at`: when the step before it, or a later one, is reported."""

    def __init__(self, at: int) -> None:
        self.at, self.has_pressed = at, False

    def report(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.at - 1 and not self.has_pressed:
            self.has_pressed = True
            os.kill(os.getpid(), signal.SIGINT)


class RecordsCalls(BaseCallback):
    """Keeps what it was called with: reports by step, and all other calls in order."""

    def __init__(self) -> None:
        self.title = self.summary = ""
        self.reports: dict[int, dict[str, float]] = {}
        self.calls: list[tuple] = []

    def start(self, title: str, done: int, total: int) -> None:
        self.title = title
        self.calls.append(("start", done, total))

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self.reports[step] = dict(values)

    def event(self, step: int, kind: str, text: str) -> None:
        self.calls.append((kind, step, text))

    def close(self, summary: str = "") -> None:
        self.summary = summary
        self.calls.append(("close", summary[:8]))

    def texts(self, kind: str) -> list[str]:
        """The texts of all events of a kind."""
        return [text for called, *_, text in self.calls if called == kind]
