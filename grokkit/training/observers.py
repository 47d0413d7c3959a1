"""What a person sees while a run goes on: a live line in a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Observer(Protocol):
    """Read-only company of a run; it never draws random numbers and never changes the run.

    `report` brings the numbers of a step that is over, `close` what the run has cost.
    """

    def start(self, title: str, done: int, total: int) -> None: ...

    def report(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, summary: str = "") -> None: ...


class Silent:
    """Says nothing."""

    def start(self, title: str, done: int, total: int) -> None: ...

    def report(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, summary: str = "") -> None: ...


class Lines:
    """One plain line now and then, for log files and batch systems.

    Args:
        stream: where to.
        seconds: shortest time between two lines.
    """

    def __init__(self, stream: TextIO, seconds: float = 10.0) -> None:
        self._stream, self._seconds, self._last, self._total = stream, seconds, 0.0, 0
        self._waiting = ""

    def start(self, title: str, done: int, total: int) -> None:
        self._total, self._began, self._done = total, time.monotonic(), done
        self._last = self._began
        print(title, file=self._stream, flush=True)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        speed = (step - self._done) / max(now - self._began, 1e-9)
        self._waiting = f"step {step}/{self._total}  {speed:.3g} steps/s  {shown(values)}"
        if now - self._last >= self._seconds:
            self._print(now)

    def _print(self, now: float) -> None:
        print(self._waiting, file=self._stream, flush=True)
        self._last, self._waiting = now, ""

    def close(self, summary: str = "") -> None:
        if self._waiting:
            self._print(time.monotonic())
        if summary:
            print(summary, file=self._stream, flush=True)


class Live:
    """A progress bar with the live metrics, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            BarColumn(bar_width=12), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}"), console=console,
        )  # fmt: skip
        self._task = TaskID(0)

    def start(self, title: str, done: int, total: int) -> None:
        self._bar.console.print(title, highlight=False)
        self._task = self._bar.add_task("", total=total, completed=done, values="")
        self._bar.start()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=step, values=shown(values))

    def close(self, summary: str = "") -> None:
        self._bar.stop()
        if summary:
            self._bar.console.print(summary, highlight=False)


def shown(values: Mapping[str, float]) -> str:
    """`loss 0.31  accuracy 0.912`: names and rounded numbers, short enough for a line of 80 characters."""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


def for_terminal() -> Observer:
    """A live bar where standard error is a terminal, plain lines where it is not."""
    return Live(Console(stderr=True)) if sys.stderr.isatty() else Lines(sys.stderr)
