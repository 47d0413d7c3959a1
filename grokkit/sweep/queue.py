"""The queue of a sweep: starts runs, resumes preempted ones, skips past failed ones, and stops on a signal.

The status of a run is read from its folder, so the same command resumes the sweep after a crash, a reboot or Ctrl-C.
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
"""Attempts in a row that end preempted or killed without saving a further step, after which a run counts as failed."""

POLL_SECONDS = 0.5
REPORT_SECONDS = 300.0
"""Seconds between two progress lines about the running runs."""


class Attempt(Protocol):
    """Process of one run, on this machine or on another."""

    location: str

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""

    def stop(self) -> None:
        """Request that the run saves and stops."""


class Launcher(Protocol):
    """Backend that starts the processes of runs."""

    def start(self, argv: Sequence[str], log: Path) -> Attempt | None:
        """Start `grokkit ARGV...` with its output appended to `log`; return None if no slot is free now."""


class Queue:
    """Queue that trains every run of a plan.

    Args:
        plan: runs to train.
        sweep_folder: folder of the sweep.
        launcher: backend that starts the processes.
        retry_failed: also resume runs that failed in an earlier call.
        on_message: called with one line of text per event.
    """

    def __init__(
        self,
        plan: Plan,
        sweep_folder: SweepFolder,
        launcher: Launcher,
        *,
        retry_failed: bool = False,
        on_message: Callable[[str], None] = print,
    ) -> None:
        self._plan, self._folder, self._launcher, self._on_message = plan, sweep_folder, launcher, on_message
        self._statuses = {run: sweep_folder.read_status(run) for run in plan.runs}
        if retry_failed:
            retried = {
                run: replace(each, state="waiting") for run, each in self._statuses.items() if each.state == "failed"
            }
            self._statuses |= retried
        self._running: dict[PlannedRun, Attempt] = {}
        self._attempts_without_progress: Counter[PlannedRun] = Counter()
        self._last_report = time.monotonic()

    def work(self) -> dict[PlannedRun, RunStatus]:
        """Train until no run is left that may start; return the final status of every run.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGHUP; the running runs are saved, the same command resumes the sweep.
            TrajectoryError: the sweep is in use by another process.
        """
        self._folder.folder.mkdir(parents=True, exist_ok=True)
        with RunLock(self._folder.folder), StopRequest() as signals:
            self._folder.write_inputs(self._plan)
            self._on_message(f"{len(self._plan.runs)} runs: {self._format_counts()}")
            while not signals.stop_requested:
                self._collect_finished()
                external = self._has_external_processes()
                started = self._start_all()
                if not self._running and not started and not external:
                    break
                self._report_progress()
                time.sleep(POLL_SECONDS)
            if signals.stop_requested:
                self._stop()
        return {run: self._update_status(run) for run in self._plan.runs}

    def _update_status(self, run: PlannedRun) -> RunStatus:
        return apply_skips(run, self._plan, self._statuses)

    def _collect_finished(self) -> None:
        """Update the status of every run whose process has ended."""
        ended = {run: code for run, attempt in self._running.items() if (code := attempt.poll()) is not None}
        for run, code in ended.items():
            del self._running[run]
            _write_log_line(self._folder.log_path(run), f"ended with exit code {code}")
            self._statuses[run] = self._handle_exit(run, code)

    def _handle_exit(self, run: PlannedRun, code: int) -> RunStatus:
        """Return the status of a run whose process exited with `code`; status.json takes precedence over the code."""
        before, now = self._statuses[run], self._folder.read_status(run)
        if now.state == "done":
            self._on_message(f"done       {_describe_progress(run, now)}")
            return now
        if is_preempted(code):
            self._attempts_without_progress[run] = (
                0 if now.step > before.step else self._attempts_without_progress[run] + 1
            )
        if now.state == "running":  # another process trains it, such as one that outlived its queue
            self._on_message(f"running in another process  {_describe_progress(run, now)}")
            return now
        # If the attempt did not get as far as the run folder, `reason` in status.json is that of an earlier attempt.
        new_reason = now.reason if now.attempts > before.attempts else ""
        reason = new_reason or read_last_line(self._folder.log_path(run)) or now.reason or f"exit code {code}"
        if not is_preempted(code) or now.state == "failed":
            self._on_message(f"failed     {_describe_progress(run, now)}  {reason}")
            return replace(now, state="failed", reason=reason)
        if self._attempts_without_progress[run] >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
            return self._give_up(run, now, reason)
        self._on_message(f"preempted  {_describe_progress(run, now)}  {reason}")
        return now

    def _give_up(self, run: PlannedRun, now: RunStatus, reason: str) -> RunStatus:
        reason = (
            f"given up after {MAX_ATTEMPTS_WITHOUT_PROGRESS} attempts in a row that saved no further step: {reason}"
        )
        self._on_message(f"failed     {_describe_progress(run, now)}  {reason}")
        return replace(now, state="failed", reason=reason)

    def _start_all(self) -> bool:
        """Start every run that may start while slots are free; return whether one was started or waits for a slot."""
        started = False
        for run in self._plan.runs:
            if run in self._running or not self._may_start(run):
                continue
            attempt = self._launcher.start(self._build_arguments(run), self._folder.log_path(run))
            if attempt is None:
                return True  # a run is waiting for a free slot
            self._running[run], started = attempt, True
            action = "started  " if self._statuses[run].step < 0 else "resumed  "
            _write_log_line(self._folder.log_path(run), f"{action.strip()} on {attempt.location}")
            self._on_message(f"{action}  {_describe_progress(run, self._statuses[run])}  on {attempt.location}")
        return started

    def _may_start(self, run: PlannedRun) -> bool:
        status = self._update_status(run)
        if status.state not in UNFINISHED:
            return False
        return all(
            self._statuses[other].state == "done" for group in run.after for other in self._plan.runs_in_group(group)
        )

    def _has_external_processes(self) -> bool:
        """Return whether processes that this queue did not start train some runs; update the status of those runs."""
        external = [run for run, status in self._statuses.items() if status.state == "running"]
        for run in external:
            before, now = self._statuses[run], self._folder.read_status(run)
            if now.step > before.step:
                self._attempts_without_progress[run] = 0
            if now.state in UNFINISHED and self._attempts_without_progress[run] >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
                now = self._give_up(run, now, read_last_line(self._folder.log_path(run)) or "the process was killed")
            self._statuses[run] = now
        return bool(external)

    def _build_arguments(self, run: PlannedRun) -> list[str]:
        device = ["--device", self._plan.device] if self._plan.device else []
        path = self._folder.run_path(run)
        if path.exists():
            return ["resume", str(path), *device]
        study, config = self._folder.study_path(run), self._folder.config_path(run)
        return ["train", str(study), "--config", str(config), "--runs", str(self._folder.runs), *device]

    def _stop(self) -> None:
        """Stop every process, wait until all have saved, and raise Interrupted."""
        self._on_message(f"stopping: saving {len(self._running)} runs first; press Ctrl-C again to exit immediately")
        for attempt in self._running.values():
            attempt.stop()
        while self._running:
            self._collect_finished()
            time.sleep(0.1)
        raise Interrupted(f"Interrupted with {self._format_counts()}. Run the same command again to resume")

    def _report_progress(self) -> None:
        if time.monotonic() - self._last_report < REPORT_SECONDS:
            return
        self._last_report = time.monotonic()
        runs = "; ".join(_describe_progress(run, self._folder.read_status(run)) for run in self._running)
        self._on_message(
            f"{self._format_counts()}: {runs or 'no free slot; other processes use the resources of this sweep'}"
        )

    def _format_counts(self) -> str:
        """Return the number of runs by state, as in `3 done, 2 running, 7 waiting`."""
        states = Counter(
            "running" if run in self._running else self._update_status(run).state for run in self._plan.runs
        )
        return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _describe_progress(run: PlannedRun, status: RunStatus) -> str:
    return f"{run.config.run_name}  step {max(status.step, 0)}/{run.config.steps}"


def _write_log_line(log: Path, text: str) -> None:
    with open(log, "a") as file:
        file.write(f"{LOG_MARK}{text}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
