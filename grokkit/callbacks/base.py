"""Callbacks: a progress bar in a terminal, plain log lines elsewhere.

Callbacks must not modify the run; exceptions they raise are caught.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from grokkit.errors import BudgetReached, Interrupted
from grokkit.interrupt import StopRequested


class Callback(Protocol):
    """Interface of a callback, a read-only observer of a run: it must not draw random numbers or modify the run.

    To write one, subclass `BaseCallback` and override the methods you need.

    `start` is called before the first step, `report` with the metrics after a step, `event` for each entry of
    events.jsonl (`policy`, `slow`, `measure_failed`, ...) but those of the data, which are logged before, `close` with
    a summary of the run's timers. The last call is always an event with the outcome: `done`, `interrupted`, `budget` or
    `failed`.
    """

    def start(self, title: str, done: int, total: int) -> None: ...

    def report(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...

    def close(self, summary: str = "") -> None: ...


NOTABLE_EVENTS = frozenset({"slow", "measure_failed", "differs", "restarted", "changed"})
"""Events that are shown in the terminal at once; the others are only in events.jsonl."""


class BaseCallback:
    """Base class of callbacks: every method does nothing."""

    def start(self, title: str, done: int, total: int) -> None: ...

    def report(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...

    def close(self, summary: str = "") -> None: ...


class CallbackList:
    """Several callbacks as one. A callback that raises is removed with a warning, and the run continues.

    Args:
        callbacks: called in this order.
    """

    def __init__(self, *callbacks: Callback) -> None:
        self._callbacks = list(callbacks)
        self._step = 0

    def start(self, title: str, done: int, total: int) -> None:
        self._step = done
        self._call_each("start", title, done, total)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        self._call_each("report", step, values)

    def event(self, step: int, kind: str, text: str) -> None:
        self._call_each("event", step, kind, text)

    def close(self, summary: str = "") -> None:
        self._call_each("close", summary)

    def _call_each(self, method: str, *arguments: Any) -> None:
        for each in list(self._callbacks):
            try:
                getattr(each, method)(*arguments)
            except Exception as error:
                self._callbacks.remove(each)
                with suppress(Warning):  # must not end the run if warnings are errors, either
                    warnings.warn(
                        f"the callback {type(each).__name__} failed in `{method}` ({type(error).__name__}: {error}) "
                        "and is removed; the run continues",
                        stacklevel=3,
                    )

    @contextmanager
    def report_outcome(self, steps: int) -> Iterator[None]:
        """Send an event with the outcome of the block, which trains to `steps`."""
        try:
            yield
        except BaseException as error:
            message = str(error) if isinstance(error, Interrupted) else f"{type(error).__name__}: {error}"
            self.event(self._step, _describe_outcome(error), message)
            raise
        self.event(steps, "done", f"done at step {steps}")


FINAL_EVENTS = frozenset({"done", "interrupted", "budget", "failed"})
"""Events of which one is the last of every run."""


def _describe_outcome(error: BaseException) -> str:
    if isinstance(error, BudgetReached):
        return "budget"
    return "interrupted" if isinstance(error, Interrupted | StopRequested | KeyboardInterrupt) else "failed"


def as_callback_list(callback: Callback | None) -> CallbackList:
    """Wrap `callback` in a CallbackList, which catches its exceptions; None gives an empty list."""
    if isinstance(callback, CallbackList):
        return callback
    return CallbackList() if callback is None else CallbackList(callback)


class LogLines(BaseCallback):
    """Callback that prints a plain line at intervals, for log files and batch systems.

    Args:
        stream: the stream to print to.
        seconds: shortest time between two lines.
        device: name of the device, printed in every line; empty: none.
    """

    def __init__(self, stream: TextIO, seconds: float = 10.0, device: str = "") -> None:
        self._stream, self._seconds, self._last, self._total = stream, seconds, 0.0, 0
        self._device = f"  {device}" if device else ""
        self._pending = ""

    def start(self, title: str, done: int, total: int) -> None:
        self._total, self._began, self._done = total, time.monotonic(), done
        self._last = self._began
        print(title, file=self._stream, flush=True)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        speed = (step - self._done) / max(now - self._began, 1e-9)
        self._pending = f"step {step}/{self._total}{self._device}  {speed:.3g} steps/s  {format_values(values)}"
        if now - self._last >= self._seconds:
            self._print(now)

    def _print(self, now: float) -> None:
        print(self._pending, file=self._stream, flush=True)
        self._last, self._pending = now, ""

    def event(self, step: int, kind: str, text: str) -> None:
        if kind in NOTABLE_EVENTS:
            print(f"step {step}: {text}", file=self._stream, flush=True)

    def close(self, summary: str = "") -> None:
        if self._pending:
            self._print(time.monotonic())
        if summary:
            print(summary, file=self._stream, flush=True)


class ProgressBar(BaseCallback):
    """Callback that draws a progress bar with the current metrics and the name of `device`, updated in place."""

    def __init__(self, console: Console, device: str = "") -> None:
        self._device = f"{device}  " if device else ""
        self._bar = Progress(
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}"),
            console=console,
        )
        self._task = TaskID(0)

    def start(self, title: str, done: int, total: int) -> None:
        self._bar.console.print(title, highlight=False)
        self._task = self._bar.add_task("", total=total, completed=done, values=self._device)
        self._bar.start()

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._bar.update(self._task, completed=step, values=self._device + format_values(values))

    def event(self, step: int, kind: str, text: str) -> None:
        if kind in NOTABLE_EVENTS:
            self._bar.console.print(f"step {step}: {text}", highlight=False)

    def close(self, summary: str = "") -> None:
        self._bar.stop()
        if summary:
            self._bar.console.print(summary, highlight=False)


def format_values(values: Mapping[str, float]) -> str:
    """Format metrics as `loss 0.31  accuracy 0.912`, short enough for a line of 80 characters."""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


def make_terminal_callback(device: str = "") -> Callback:
    """Return a progress bar if standard error is a terminal, else plain log lines; both show `device`."""
    return ProgressBar(Console(stderr=True), device) if sys.stderr.isatty() else LogLines(sys.stderr, device=device)
