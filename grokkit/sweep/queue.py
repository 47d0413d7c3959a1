"""The queue: starts what may start, goes on with what was preempted, past what failed, and stops when asked.

How a run stands is read from its folder, so the same command after a crash, a reboot or Ctrl-C goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from grokkit.errors import Interrupted
from grokkit.interrupt import StopRequest
from grokkit.sweep.plan import Plan, PlannedRun
from grokkit.sweep.run_status import (
    LOG_MARK,
    UNFINISHED,
    RunStatus,
    SweepFolder,
    apply_skips,
    is_preempted,
    read_last_line,
)
from grokkit.trajectory.lock import RunLock

MAX_ATTEMPTS_WITHOUT_PROGRESS = 3
"""Attempts in a row that end preempted or killed without one more step on the disk, after which a run is given up."""

POLL_SECONDS = 0.5
REPORT_SECONDS = 300.0
"""Between two lines that say where the running ones are."""


class Attempt(Protocol):
    """A process of one run, on this machine or on another."""

    where: str

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it goes on."""

    def stop(self) -> None:
        """Ask it to save and stop."""


class Launcher(Protocol):
    """Where the processes of runs are started."""

    def start(self, words: Sequence[str], log: Path) -> Attempt | None:
        """Start `grokkit WORDS...` with its output appended to `log`; None where there is no room now."""


class Queue:
    """Brings every run of a plan to its end.

    Args:
        plan: what to run.
        place: where.
        launcher: on what.
        retry_failed: go on with runs that failed in an earlier call, too.
        say: gets a line for everything that happens.
    """

    def __init__(
        self,
        plan: Plan,
        place: SweepFolder,
        launcher: Launcher,
        *,
        retry_failed: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self._plan, self._place, self._launcher, self._say = plan, place, launcher, say
        self._statuses = {run: place.status_of(run) for run in plan.runs}
        if retry_failed:
            again = {
                run: replace(each, state="waiting") for run, each in self._statuses.items() if each.state == "failed"
            }
            self._statuses |= again
        self._running: dict[PlannedRun, Attempt] = {}
        self._attempts_without_progress: Counter[PlannedRun] = Counter()
        self._told = time.monotonic()

    def work(self) -> dict[PlannedRun, RunStatus]:
        """Run until nothing is left that may run; returns how every run stands then.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGHUP; what was running is saved, the same command goes on.
            TrajectoryError: another process works on this sweep.
        """
        self._place.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(self._place.folder), StopRequest() as signals:
            self._place.write(self._plan)
            self._say(f"{len(self._plan.runs)} runs: {self._counts()}")
            while not signals.stop_requested:
                self._collect_finished()
                elsewhere = self._is_held_elsewhere()
                started = self._start_all()
                if not self._running and not started and not elsewhere:
                    break
                self._report_progress()
                time.sleep(POLL_SECONDS)
            if signals.stop_requested:
                self._stop()
        return {run: self._update_status(run) for run in self._plan.runs}

    def _update_status(self, run: PlannedRun) -> RunStatus:
        return apply_skips(run, self._plan, self._statuses)

    def _collect_finished(self) -> None:
        """Take note of every process that has ended."""
        ended = {run: code for run, attempt in self._running.items() if (code := attempt.code()) is not None}
        for run, code in ended.items():
            del self._running[run]
            _note(self._place.log(run), f"ended with exit code {code}")
            self._statuses[run] = self._after(run, code)

    def _after(self, run: PlannedRun, code: int) -> RunStatus:
        """How the run stands after a process that ended with `code`; status.json has the last word."""
        before, now = self._statuses[run], self._place.status_of(run)
        if now.state == "done":
            self._say(f"done       {_describe_end(run, now)}")
            return now
        if is_preempted(code):
            self._attempts_without_progress[run] = (
                0 if now.step > before.step else self._attempts_without_progress[run] + 1
            )
        if now.state == "running":  # another process brings it on, such as one that outlived its queue
            self._say(f"elsewhere  {_describe_end(run, now)}")
            return now
        told = now.reason if now.attempts > before.attempts else ""  # an attempt that did not begin has told nothing
        reason = told or read_last_line(self._place.log(run)) or now.reason or f"exit code {code}"
        if not is_preempted(code) or now.state == "failed":
            self._say(f"failed     {_describe_end(run, now)}  {reason}")
            return replace(now, state="failed", reason=reason)
        if self._attempts_without_progress[run] >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
            return self._give_up(run, now, reason)
        self._say(f"preempted  {_describe_end(run, now)}  {reason}")
        return now

    def _give_up(self, run: PlannedRun, now: RunStatus, reason: str) -> RunStatus:
        reason = f"given up after {MAX_ATTEMPTS_WITHOUT_PROGRESS} attempts without one more step saved: {reason}"
        self._say(f"failed     {_describe_end(run, now)}  {reason}")
        return replace(now, state="failed", reason=reason)

    def _start_all(self) -> bool:
        """Start everything that may start and has room; whether anything was."""
        started = False
        for run in self._plan.runs:
            if run in self._running or not self._may_start(run):
                continue
            attempt = self._launcher.start(self._build_arguments(run), self._place.log(run))
            if attempt is None:
                return True  # there is something to do, and no room for it now
            self._running[run], started = attempt, True
            verb = "started  " if self._statuses[run].step < 0 else "resumed  "
            _note(self._place.log(run), f"{verb.strip()} on {attempt.where}")
            self._say(f"{verb}  {_describe_end(run, self._statuses[run])}  on {attempt.where}")
        return started

    def _may_start(self, run: PlannedRun) -> bool:
        stands = self._update_status(run)
        if stands.state not in UNFINISHED:
            return False
        return all(self._statuses[other].state == "done" for group in run.after for other in self._plan.of_group(group))

    def _is_held_elsewhere(self) -> bool:
        """Whether a run is trained by a process that this queue did not start; looks again how it stands."""
        held = [run for run, stands in self._statuses.items() if stands.state == "running"]
        for run in held:
            before, now = self._statuses[run], self._place.status_of(run)
            if now.step > before.step:
                self._attempts_without_progress[run] = 0
            if now.state in UNFINISHED and self._attempts_without_progress[run] >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
                now = self._give_up(run, now, read_last_line(self._place.log(run)) or "its process was killed")
            self._statuses[run] = now
        return bool(held)

    def _build_arguments(self, run: PlannedRun) -> list[str]:
        device = ["--device", self._plan.device] if self._plan.device else []
        path = self._place.run(run)
        if path.exists():
            return ["resume", str(path), *device]
        study, config = self._place.study(run), self._place.config(run)
        return ["train", str(study), "--config", str(config), "--runs", str(self._place.runs), *device]

    def _stop(self) -> None:
        """Ask every process to save, wait for all of them, and say so."""
        self._say(f"stopping: {len(self._running)} runs are saved first; once more leaves at once")
        for attempt in self._running.values():
            attempt.stop()
        while self._running:
            self._collect_finished()
            time.sleep(0.1)
        raise Interrupted(f"stopped with {self._counts()}; the same command goes on")

    def _report_progress(self) -> None:
        if time.monotonic() - self._told < REPORT_SECONDS:
            return
        self._told = time.monotonic()
        now = "; ".join(_describe_end(run, self._place.status_of(run)) for run in self._running)
        self._say(f"{self._counts()}: {now or 'there is no room; other processes use what this sweep may use'}")

    def _counts(self) -> str:
        """`3 done, 2 running, 7 waiting`."""
        states = Counter(
            "running" if run in self._running else self._update_status(run).state for run in self._plan.runs
        )
        return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _describe_end(run: PlannedRun, stands: RunStatus) -> str:
    return f"{run.config.run_name}  step {max(stands.step, 0)}/{run.config.steps}"


def _note(log: Path, text: str) -> None:
    with open(log, "a") as file:
        file.write(f"{LOG_MARK}{text}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
