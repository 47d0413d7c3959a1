"""The company of a run: what a person sees while it goes on, a live line in a terminal, plain lines anywhere else.

Company never changes a run, and what goes wrong with it never ends one.
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
    """Read-only company of a run; it never draws random numbers and never changes the run. One of your own is a
    subclass of `BaseCallback` with the methods that it needs.

    `report` brings the numbers of a step that is over, `event` a decision or an incident as events.jsonl has it
    (`policy`, `slow`, `measure_failed`, ...), `close` what the run has cost. The last that it hears of a run is an
    event that says how it ended: `done`, `interrupted`, `budget` or `failed`.
    """

    def start(self, title: str, done: int, total: int) -> None: ...

    def report(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...

    def close(self, summary: str = "") -> None: ...


NOTABLE_EVENTS = frozenset({"slow", "measure_failed", "differs", "restarted", "changed"})
"""Events that are told to a person at once; the others can be read in events.jsonl."""


class BaseCallback:
    """Says nothing."""

    def start(self, title: str, done: int, total: int) -> None: ...

    def report(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, step: int, kind: str, text: str) -> None: ...

    def close(self, summary: str = "") -> None: ...


class CallbackList:
    """Several callbacks as one. One that raises is told about once, and hears nothing more: a paid run is not lost to
    its company.

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

    def _call_each(self, what: str, *arguments: Any) -> None:
        for each in list(self._callbacks):
            try:
                getattr(each, what)(*arguments)
            except Exception as error:
                self._callbacks.remove(each)
                with suppress(Warning):  # where warnings are made errors, this one is not to end the run either
                    warnings.warn(
                        f"the callback {type(each).__name__} failed in `{what}` ({type(error).__name__}: {error}) and "
                        "hears nothing more of this run, which goes on",
                        stacklevel=3,
                    )

    @contextmanager
    def report_outcome(self, steps: int) -> Iterator[None]:
        """Tell how the block, which trains to `steps`, has ended."""
        try:
            yield
        except BaseException as error:
            told = str(error) if isinstance(error, Interrupted) else f"{type(error).__name__}: {error}"
            self.event(self._step, _describe_outcome(error), told)
            raise
        self.event(steps, "done", f"done at step {steps}")


FINAL_EVENTS = frozenset({"done", "interrupted", "budget", "failed"})
"""Events that are the last of a run."""


def _describe_outcome(error: BaseException) -> str:
    if isinstance(error, BudgetReached):
        return "budget"
    return "interrupted" if isinstance(error, Interrupted | StopRequested | KeyboardInterrupt) else "failed"


def as_callback_list(callback: Callback | None) -> CallbackList:
    """`callback` as company that cannot end a run; None is nobody."""
    if isinstance(callback, CallbackList):
        return callback
    return CallbackList() if callback is None else CallbackList(callback)


class LogLines(BaseCallback):
    """One plain line now and then, for log files and batch systems.

    Args:
        stream: where to.
        seconds: shortest time between two lines.
        device: named in every line; empty: not.
    """

    def __init__(self, stream: TextIO, seconds: float = 10.0, device: str = "") -> None:
        self._stream, self._seconds, self._last, self._total = stream, seconds, 0.0, 0
        self._device = f"  {device}" if device else ""
        self._waiting = ""

    def start(self, title: str, done: int, total: int) -> None:
        self._total, self._began, self._done = total, time.monotonic(), done
        self._last = self._began
        print(title, file=self._stream, flush=True)

    def report(self, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        speed = (step - self._done) / max(now - self._began, 1e-9)
        self._waiting = f"step {step}/{self._total}{self._device}  {speed:.3g} steps/s  {format_values(values)}"
        if now - self._last >= self._seconds:
            self._print(now)

    def _print(self, now: float) -> None:
        print(self._waiting, file=self._stream, flush=True)
        self._last, self._waiting = now, ""

    def event(self, step: int, kind: str, text: str) -> None:
        if kind in NOTABLE_EVENTS:
            print(f"step {step}: {text}", file=self._stream, flush=True)

    def close(self, summary: str = "") -> None:
        if self._waiting:
            self._print(time.monotonic())
        if summary:
            print(summary, file=self._stream, flush=True)


class ProgressBar(BaseCallback):
    """A progress bar with the live metrics, redrawn in place; `device` is named in it."""

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
    """`loss 0.31  accuracy 0.912`: names and rounded numbers, short enough for a line of 80 characters."""
    return "  ".join(f"{name} {value:.3g}" for name, value in values.items())


def make_terminal_callback(device: str = "") -> Callback:
    """A live bar where standard error is a terminal, plain lines where it is not; both name `device`."""
    return ProgressBar(Console(stderr=True), device) if sys.stderr.isatty() else LogLines(sys.stderr, device=device)
