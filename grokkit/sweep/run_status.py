"""How the runs of a sweep stand, told by their own folders; the report is made of nothing else."""

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
from grokkit.trajectory.checksummed import write_atomic
from grokkit.trust import digest_of, is_trusted, read_regular

LOG_MARK = "== "
"""Lines of a log that the queue wrote, not the run."""

UNFINISHED = ("waiting", "interrupted")
"""States of a run that may be started or resumed, unless a process is at it."""


@dataclass(frozen=True)
class RunStatus:
    """How one run stands.

    Args:
        state: `waiting`, `running`, `interrupted`, `done`, `failed` or `skipped`.
        step: optimizer updates done; -1 where there is no folder yet.
        total_steps: updates planned.
        attempts: times that the run was started or resumed.
        seconds: of training and instruments, over all attempts.
        numbers: the newest loss and accuracy.
        reason: why it failed, stopped or was left out.
    """

    state: str
    step: int = -1
    total_steps: int = 0
    attempts: int = 0
    seconds: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


class SweepFolder:
    """Where a sweep keeps what is not of one run alone: `<runs>/sweeps/<name>/`.

    Args:
        runs: root of the run folders.
        name: of the sweep.
    """

    def __init__(self, runs: Path, name: str) -> None:
        self.runs = to_path(runs)
        self.folder = self.runs / "sweeps" / name

    def run(self, planned: PlannedRun) -> Path:
        """The run's folder, whether it is there or not."""
        return self.runs / planned.config.run_name

    def log(self, planned: PlannedRun) -> Path:
        """What the run's processes print."""
        return self.folder / "logs" / f"{self.run(planned).name}.txt"

    def config(self, planned: PlannedRun) -> Path:
        """The run's config, written for its first process."""
        return self.folder / "configs" / f"{self.run(planned).name}.toml"

    def study(self, planned: PlannedRun) -> Path:
        """The experiment's source as it was when the sweep began: a file edited at night changes nothing."""
        digest = hashlib.sha256(planned.study.source.encode()).hexdigest()[:8]
        return self.folder / "studies" / digest / f"{planned.study.name}.py"

    def write(self, plan: Plan) -> None:
        """Put configs and studies there."""
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        for planned in plan.runs:
            write_atomic(self.config(planned), planned.config.to_toml().encode())
            write_atomic(self.study(planned), planned.study.source.encode())

    def status_of(self, planned: PlannedRun) -> RunStatus:
        """How the run stands by its own folder; where there is none, by the log of what tried to make it.

        A run whose process goes on is `running`, also before it has a folder and while it gets ready to resume.
        """
        found = self._by_folder(planned)
        if found.state not in UNFINISHED:
            return found
        goes_on = is_log_locked(self.log(planned))
        found = self._by_folder(planned)  # once more: it may have ended just before
        return replace(found, state="running") if goes_on and found.state in UNFINISHED else found

    def _by_folder(self, planned: PlannedRun) -> RunStatus:
        path = self.run(planned)
        if not os.path.lexists(path / "status.json"):
            return self._status_not_begun(planned)
        try:
            return self._told(planned, Run(path))
        except (GrokkitError, OSError) as error:
            return RunStatus("failed", total_steps=planned.config.steps, reason=f"unreadable: {error}")

    def _told(self, planned: PlannedRun, run: Run) -> RunStatus:
        status, state = run.status, run.state
        if state == "killed":
            state, reason = "interrupted", "its process ended without a word"
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

    def _status_not_begun(self, planned: PlannedRun) -> RunStatus:
        log = self.log(planned)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        ended = re.match(f"{LOG_MARK}ended with exit code (-?\\d+)", lines[-1] if lines else "")
        if ended is None or is_preempted(int(ended[1])):
            return RunStatus("waiting", total_steps=planned.config.steps)
        return RunStatus("failed", total_steps=planned.config.steps, reason=read_last_line(log))


def is_preempted(code: int) -> bool:
    """Whether a process with this exit code was stopped or killed from outside, so that the run may go on."""
    return code < 0 or code in (Interrupted.exit_code, EXIT_AT_ONCE)


def read_last_line(log: Path) -> str:
    """The last line that a run printed before it ended."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = [line.strip() for line in lines if line.strip() and not line.startswith(LOG_MARK)]
    return said[-1] if said else ""


def trusted_digests(plan: Plan, place: SweepFolder) -> set[str]:
    """Digests of the study sources that the runs' processes may execute: the plan's own, which the sweep file names,
    and those in the folders of its runs that are on this user's list, such as an earlier text of an edited study."""
    found = {digest_of(run.study.source.encode()) for run in plan.runs}
    for run in plan.runs:
        with suppress(OSError):
            source = read_regular(place.run(run) / STUDY_FILE)
            found |= {digest_of(source)} if is_trusted(source) else set()
    return found


def collect_statuses(plan: Plan, place: SweepFolder) -> dict[PlannedRun, RunStatus]:
    """How every run stands; what waits for a group with a failure is `skipped`."""
    found = {run: place.status_of(run) for run in plan.runs}
    return {run: apply_skips(run, plan, found) for run in plan.runs}


def apply_skips(run: PlannedRun, plan: Plan, found: Mapping[PlannedRun, RunStatus]) -> RunStatus:
    """The run's standing in `found`, or that it is skipped because of a run that it waits for."""
    if found[run].state != "waiting":
        return found[run]
    for group in run.after:
        for other in plan.of_group(group):
            state = apply_skips(other, plan, found).state
            if state in ("failed", "skipped"):
                reason = (
                    f"waits for {group}, and {other.config.run_name} {'failed' if state == 'failed' else 'was skipped'}"
                )
                return RunStatus("skipped", total_steps=run.config.steps, reason=reason)
    return found[run]
