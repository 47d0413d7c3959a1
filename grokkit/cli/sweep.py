"""`grokkit sweep FILE`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.text import align_table, shorten_path
from grokkit.errors import GrokkitError, Interrupted, UsageError

if TYPE_CHECKING:
    from grokkit.sweep.plan import Plan, PlannedRun
    from grokkit.sweep.queue import Launcher
    from grokkit.sweep.run_status import RunStatus, SweepFolder


def main(argv: list[str]) -> None:
    """Parse arguments and work through the runs."""
    parse_arguments("sweep", sweep, argv)


def sweep(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    runs: Path = Path("runs"),
    dry_run: bool = False,
    report: bool = False,
    as_json: bool = False,
    retry_failed: bool = False,
    runs_per_gpu: int = 1,
    at_once: int = 1,
    launcher: Literal["local", "ray"] = "local",
    gpus_per_run: float | None = None,
    address: str | None = None,
) -> None:
    """Train all the runs of a sweep file, one at a time on each GPU; the same command resumes an interrupted sweep.

    Resumes preempted runs, skips past failed ones, and writes a report to RUNS/sweeps/FILE/report.txt and to the
    terminal. Exit code 0: all runs are done; 75: the sweep was interrupted; 1: some runs are not done.

    Try:
        grokkit sweep night.toml --dry-run
        nohup grokkit sweep night.toml > night.txt &
        grokkit sweep night.toml --launcher ray --gpus-per-run 0.5
        grokkit sweep night.toml --report

    Args:
        file: sweep file (TOML), see docs/sweep.md: an experiment, a grid and seeds, or several of these under [[run]].
        runs: folder for the runs.
        dry_run: print the runs and how they differ from their experiments, and start nothing.
        report: print the status of the runs, and start nothing.
        as_json: print the dry run or the report as JSON.
        retry_failed: also resume runs that failed in an earlier call, from their last saved state.
        runs_per_gpu: number of runs at a time on one GPU.
        at_once: number of runs at a time if there is no GPU.
        launcher: local, or ray for a Ray cluster (pip install 'grokkit[ray]').
        gpus_per_run: with ray, number of GPUs of each run, 1 by default; with 0.5 two runs share one.
        address: with ray, address of the cluster's head; by default $RAY_ADDRESS, or Ray on this machine alone.
    """
    from grokkit.sweep.plan import read_plan, validate_plan
    from grokkit.sweep.queue import Queue
    from grokkit.sweep.run_status import SweepFolder, collect_statuses, trusted_digests

    plan = read_plan(file)
    sweep_folder = SweepFolder(runs, plan.name)
    if report:
        _print_report(plan, sweep_folder, collect_statuses(plan, sweep_folder), as_json)
        return
    validate_plan(plan)
    if dry_run:
        _print_plan(plan, sweep_folder, collect_statuses(plan, sweep_folder), as_json)
        return
    trusted = trusted_digests(plan, sweep_folder)
    with _make_launcher(plan, trusted, launcher, runs_per_gpu, at_once, gpus_per_run, address) as backend:
        try:
            statuses = Queue(plan, sweep_folder, backend, retry_failed=retry_failed, on_message=_print_with_time).work()
        except Interrupted:
            _write_report(sweep_folder, _format_table(plan, collect_statuses(plan, sweep_folder)))
            raise
    _print_report(plan, sweep_folder, statuses, as_json)


def _make_launcher(
    plan: Plan,
    trusted: set[str],
    launcher: str,
    runs_per_gpu: int,
    at_once: int,
    gpus_per_run: float | None,
    address: str | None,
) -> AbstractContextManager[Launcher]:
    """Return the launcher. Raises UsageError for an option of the other launcher."""
    from grokkit.sweep.cluster import connect
    from grokkit.sweep.local import LocalLauncher, list_visible_gpus

    if launcher == "ray":
        if (runs_per_gpu, at_once) != (1, 1):
            raise UsageError(
                "--runs-per-gpu and --at-once need --launcher local; with ray, pass --gpus-per-run, such as 0.5"
            )
        return connect(address, gpus_per_run, plan.device, trusted)
    if gpus_per_run is not None or address is not None:
        raise UsageError("--gpus-per-run and --address need --launcher ray")
    gpus = [] if plan.device == "cpu" else list_visible_gpus()
    return nullcontext(LocalLauncher(gpus, per_gpu=runs_per_gpu, at_once=at_once, trusted=trusted))


def _print_with_time(text: str) -> None:
    print(f"{time.strftime('%m-%d %H:%M:%S')}  {text}", flush=True)


def _print_plan(plan: Plan, sweep_folder: SweepFolder, statuses: Mapping[PlannedRun, RunStatus], as_json: bool) -> None:
    """Print the runs, their states, the groups they wait for, and how they differ from their experiments."""
    if as_json:
        entries = [
            {
                "run": str(sweep_folder.run_path(run)),
                "state": statuses[run].state,
                "after": run.after,
                "changes": run.changes,
            }
            for run in plan.runs
        ]
        print(json.dumps(entries, indent=1))
        return
    rows = [
        [shorten_path(sweep_folder.run_path(run)), statuses[run].state, ", ".join(run.after), _format_changes(run)]
        for run in plan.runs
    ]
    print(_format_nonempty_columns(["run", "state", "after", "differs in"], rows))
    print(f"{len(rows)} runs; nothing started (dry run)")


def _format_changes(run: PlannedRun) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in run.changes.items()) or "nothing"


def _print_report(
    plan: Plan, sweep_folder: SweepFolder, statuses: Mapping[PlannedRun, RunStatus], as_json: bool
) -> None:
    """Print and write the status of the runs. Raises GrokkitError unless all are done."""
    if as_json:
        print(
            json.dumps(
                [
                    {"run": str(sweep_folder.run_path(run)), "changes": run.changes, **vars(statuses[run])}
                    for run in plan.runs
                ],
                indent=1,
            )
        )
    else:
        print(_format_table(plan, statuses))
    _write_report(sweep_folder, _format_table(plan, statuses))
    done = sum(each.state == "done" for each in statuses.values())
    if done < len(statuses):
        raise GrokkitError(
            f"{done} of {len(statuses)} runs are done; the logs of the others are in "
            f"{shorten_path(sweep_folder.folder)}/logs"
        )


def _format_table(plan: Plan, statuses: Mapping[PlannedRun, RunStatus]) -> str:
    header = ["run", "state", "step", "attempts", "time", "test accuracy", "test loss", "differs in", "reason"]
    return _format_nonempty_columns(header, [_format_row(run, statuses[run]) for run in plan.runs])


def _format_row(run: PlannedRun, status: RunStatus) -> list[str]:
    numbers = [status.numbers.get(f"test_set.{name}") for name in ("accuracy", "loss")]
    progress = [f"{max(status.step, 0)}/{run.config.steps}", str(status.attempts), _format_duration(status.seconds)]
    return [
        run.config.run_name,
        status.state,
        *progress,
        *("" if each is None else f"{each:.4g}" for each in numbers),
        _format_changes(run),
        status.reason,
    ]


def _format_nonempty_columns(header: list[str], rows: list[list[str]]) -> str:
    """Format the table without its empty columns."""
    columns = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return align_table([header[column] for column in columns], [[row[column] for column in columns] for row in rows])


def _format_duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _write_report(sweep_folder: SweepFolder, text: str) -> None:
    sweep_folder.folder.mkdir(parents=True, exist_ok=True)
    (sweep_folder.folder / "report.txt").write_text(text + "\n")
