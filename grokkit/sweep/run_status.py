"""Status of the runs of a sweep, read from their run folders; the report contains nothing else."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from grokkit.errors import GrokkitError, Interrupted
from grokkit.interrupt import EXIT_AT_ONCE
from grokkit.stored_code import STUDY_FILE
from grokkit.sweep.child_process import is_log_locked
from grokkit.sweep.plan import Plan, PlannedRun
from grokkit.trajectory import Run, to_path
from grokkit.trajectory.durable import write_atomic
from grokkit.trust import hash_source, is_trusted, read_regular

LOG_MARK = "== "
"""Prefix of the lines of a log that the queue wrote, not the run."""

UNFINISHED = ("waiting", "interrupted")
"""States in which a run may be started or resumed, unless a process already trains it."""


@dataclass(frozen=True)
class RunStatus:
    """Status of one run.

    Args:
        state: `waiting`, `running`, `interrupted`, `done`, `failed` or `skipped`.
        step: optimizer updates done; -1 if the run has no folder yet.
        total_steps: updates planned.
        attempts: times that the run was started or resumed.
        seconds: wall time of training and instruments, over all attempts.
        numbers: the newest loss and accuracy.
        reason: why it failed, stopped or was skipped.
    """

    state: str
    step: int = -1
    total_steps: int = 0
    attempts: int = 0
    seconds: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


class SweepFolder:
    """Folder `<runs>/sweeps/<name>/` of a sweep: logs, configs, experiment sources and the report.

    Args:
        runs: root of the run folders.
        name: name of the sweep.
    """

    def __init__(self, runs: Path, name: str) -> None:
        self.runs = to_path(runs)
        self.folder = self.runs / "sweeps" / name

    def run_path(self, planned: PlannedRun) -> Path:
        """Return the path of the run's folder, whether or not it exists."""
        return self.runs / planned.config.run_name

    def log_path(self, planned: PlannedRun) -> Path:
        """Return the path of the log that the run's processes write."""
        return self.folder / "logs" / f"{self.run_path(planned).name}.txt"

    def config_path(self, planned: PlannedRun) -> Path:
        """Return the path of the config file with which the run's first process starts."""
        return self.folder / "configs" / f"{self.run_path(planned).name}.toml"

    def study_path(self, planned: PlannedRun) -> Path:
        """Return the path of the experiment source, copied when the sweep starts so that later edits have no effect."""
        digest = hashlib.sha256(planned.study.source.encode()).hexdigest()[:8]
        return self.folder / "studies" / digest / f"{planned.study.name}.py"

    def write_inputs(self, plan: Plan) -> None:
        """Write the configs and experiment sources of all runs."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        for planned in plan.runs:
            write_atomic(self.config_path(planned), planned.config.to_toml().encode())
            write_atomic(self.study_path(planned), planned.study.source.encode())

    def read_status(self, planned: PlannedRun) -> RunStatus:
        """Return the status from the run's folder, or from the sweep's log of it if the folder does not exist.

        A run with a live process is `running`, even before it has a folder and while it prepares to resume.
        """
        status = self._read_folder(planned)
        if status.state not in UNFINISHED:
            return status
        is_alive = is_log_locked(self.log_path(planned))
        status = self._read_folder(planned)  # again: the process may have ended just before the lock was checked
        return replace(status, state="running") if is_alive and status.state in UNFINISHED else status

    def _read_folder(self, planned: PlannedRun) -> RunStatus:
        path = self.run_path(planned)
        if not os.path.lexists(path / "status.json"):
            return self._read_status_from_log(planned)
        try:
            return self._to_status(planned, Run(path))
        except (GrokkitError, OSError) as error:
            return RunStatus("failed", total_steps=planned.config.steps, reason=f"unreadable: {error}")

    def _to_status(self, planned: PlannedRun, run: Run) -> RunStatus:
        status, state = run.status, run.state
        if state == "killed":
            state, reason = "interrupted", "The process exited without an error message."
        else:
            reason = status.get("reason") or ""
        return RunStatus(
            "running" if state == "starting" else state,
            status.get("step", 0),
            planned.config.steps,
            status.get("attempt", 0),
            status.get("seconds") or sum((status.get("costs") or {}).values()),
            run.newest_metrics(),
            reason,
        )

    def _read_status_from_log(self, planned: PlannedRun) -> RunStatus:
        log = self.log_path(planned)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        ended = re.match(f"{LOG_MARK}ended with exit code (-?\\d+)", lines[-1] if lines else "")
        if ended is None or is_preempted(int(ended[1])):
            return RunStatus("waiting", total_steps=planned.config.steps)
        return RunStatus("failed", total_steps=planned.config.steps, reason=read_last_line(log))


def is_preempted(code: int) -> bool:
    """Return whether this exit code means that the process was stopped or killed from outside and can be resumed."""
    return code < 0 or code in (Interrupted.exit_code, EXIT_AT_ONCE)


def read_last_line(log: Path) -> str:
    """Return the last line that a run printed before it ended; empty if there is none."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    printed = [line.strip() for line in lines if line.strip() and not line.startswith(LOG_MARK)]
    return printed[-1] if printed else ""


def trusted_digests(plan: Plan, sweep_folder: SweepFolder) -> set[str]:
    """Return digests of the experiment sources that the runs' processes may execute: those that the sweep file names,
    and those in its run folders that are on this user's trust list, such as an earlier version of an edited one."""
    digests = {hash_source(run.study.source.encode()) for run in plan.runs}
    for run in plan.runs:
        with suppress(OSError):
            source = read_regular(sweep_folder.run_path(run) / STUDY_FILE)
            digests |= {hash_source(source)} if is_trusted(source) else set()
    return digests


def collect_statuses(plan: Plan, sweep_folder: SweepFolder) -> dict[PlannedRun, RunStatus]:
    """Return the status of every run; a run that waits for a group with a failure is `skipped`."""
    statuses = {run: sweep_folder.read_status(run) for run in plan.runs}
    return {run: apply_skips(run, plan, statuses) for run in plan.runs}


def apply_skips(run: PlannedRun, plan: Plan, statuses: Mapping[PlannedRun, RunStatus]) -> RunStatus:
    """Return the run's status, or `skipped` if a run that it waits for has failed or is skipped."""
    if statuses[run].state != "waiting":
        return statuses[run]
    for group in run.after:
        for other in plan.runs_in_group(group):
            state = apply_skips(other, plan, statuses).state
            if state in ("failed", "skipped"):
                reason = (
                    f"waits for {group}, and {other.config.run_name} {'failed' if state == 'failed' else 'was skipped'}"
                )
                return RunStatus("skipped", total_steps=run.config.steps, reason=reason)
    return statuses[run]
