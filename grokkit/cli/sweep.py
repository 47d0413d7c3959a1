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
    """Read the words and work through the runs."""
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
    """Train all the runs that a file asks for, one on each GPU at a time; the same command goes on after a stop.

    Preempted runs are resumed, failed ones reported and passed by; the report stands in RUNS/sweeps/FILE/report.txt
    and at the end. Exit code 0 says that every run is done, 75 that the sweep was stopped, 1 that runs are left.

    Try:
        grokkit sweep night.toml --dry-run
        nohup grokkit sweep night.toml > night.txt &
        grokkit sweep night.toml --launcher ray --gpus-per-run 0.5
        grokkit sweep night.toml --report

    Args:
        file: what to run, see docs/sweep.md: an experiment, a grid of choices, seeds; or several under [[run]].
        runs: folder that the runs go to.
        dry_run: print the runs and what differs from their experiments, and start nothing.
        report: print how the runs stand, and start nothing.
        as_json: print the dry run or the report as JSON.
        retry_failed: go on with runs that failed in an earlier call, too, from what they saved.
        runs_per_gpu: runs at a time on one GPU.
        at_once: runs at a time where there is no GPU.
        launcher: local, or ray: the same on a Ray cluster (pip install 'grokkit[ray]').
        gpus_per_run: with ray, GPUs of each run, 1 by default; 0.5 lets two share one.
        address: with ray, the cluster's head; by default RAY_ADDRESS, or Ray on this machine alone.
    """
    from grokkit.sweep.plan import read_plan, validate_plan
    from grokkit.sweep.queue import Queue
    from grokkit.sweep.run_status import SweepFolder, collect_statuses, trusted_digests

    plan = read_plan(file)
    place = SweepFolder(runs, plan.name)
    if report:
        _print_report(plan, place, collect_statuses(plan, place), as_json)
        return
    validate_plan(plan)
    if dry_run:
        _print_plan(plan, place, collect_statuses(plan, place), as_json)
        return
    trusted = trusted_digests(plan, place)
    with _make_launcher(plan, trusted, launcher, runs_per_gpu, at_once, gpus_per_run, address) as place_of_work:
        try:
            stands = Queue(plan, place, place_of_work, retry_failed=retry_failed, say=_print_escaped).work()
        except Interrupted:
            _write_report(place, _format_table(plan, collect_statuses(plan, place)))
            raise
    _print_report(plan, place, stands, as_json)


def _make_launcher(
    plan: Plan,
    trusted: set[str],
    launcher: str,
    runs_per_gpu: int,
    at_once: int,
    gpus_per_run: float | None,
    address: str | None,
) -> AbstractContextManager[Launcher]:
    """The launcher; an option of the other one is refused."""
    from grokkit.sweep.cluster import connect
    from grokkit.sweep.local import Local, list_visible_gpus

    if launcher == "ray":
        if (runs_per_gpu, at_once) != (1, 1):
            raise UsageError("--runs-per-gpu and --at-once are the local queue's; with ray, say --gpus-per-run 0.5")
        return connect(address, gpus_per_run, plan.device, trusted)
    if gpus_per_run is not None or address is not None:
        raise UsageError("--gpus-per-run and --address need --launcher ray")
    gpus = [] if plan.device == "cpu" else list_visible_gpus()
    return nullcontext(Local(gpus, per_gpu=runs_per_gpu, at_once=at_once, trusted=trusted))


def _print_escaped(text: str) -> None:
    print(f"{time.strftime('%m-%d %H:%M:%S')}  {text}", flush=True)


def _print_plan(plan: Plan, place: SweepFolder, stands: Mapping[PlannedRun, RunStatus], as_json: bool) -> None:
    """The runs, what differs from their experiments, and what they wait for."""
    if as_json:
        told = [
            {"run": str(place.run(run)), "state": stands[run].state, "after": run.after, "changes": run.changes}
            for run in plan.runs
        ]
        print(json.dumps(told, indent=1))
        return
    rows = [
        [shorten_path(place.run(run)), stands[run].state, ", ".join(run.after), _format_changes(run)]
        for run in plan.runs
    ]
    print(_without_empty(["run", "state", "after", "differs in"], rows))
    print(f"{len(rows)} runs; nothing was started")


def _format_changes(run: PlannedRun) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in run.changes.items()) or "nothing"


def _print_report(plan: Plan, place: SweepFolder, stands: Mapping[PlannedRun, RunStatus], as_json: bool) -> None:
    """Print how the runs stand. Raises GrokkitError unless all are done."""
    if as_json:
        print(
            json.dumps(
                [{"run": str(place.run(run)), "changes": run.changes, **vars(stands[run])} for run in plan.runs],
                indent=1,
            )
        )
    else:
        print(_format_table(plan, stands))
    _write_report(place, _format_table(plan, stands))
    done = sum(each.state == "done" for each in stands.values())
    if done < len(stands):
        raise GrokkitError(
            f"{done} of {len(stands)} runs are done; what was printed by the others is in "
            f"{shorten_path(place.folder)}/logs"
        )


def _format_table(plan: Plan, stands: Mapping[PlannedRun, RunStatus]) -> str:
    header = ["run", "state", "step", "attempts", "time", "test accuracy", "test loss", "differs in", "reason"]
    return _without_empty(header, [_format_row(run, stands[run]) for run in plan.runs])


def _format_row(run: PlannedRun, stands: RunStatus) -> list[str]:
    numbers = [stands.numbers.get(f"test_set.{name}") for name in ("accuracy", "loss")]
    seen = [f"{max(stands.step, 0)}/{run.config.steps}", str(stands.attempts), _format_duration(stands.seconds)]
    return [
        run.config.run_name,
        stands.state,
        *seen,
        *("" if each is None else f"{each:.4g}" for each in numbers),
        _format_changes(run),
        stands.reason,
    ]


def _without_empty(header: list[str], rows: list[list[str]]) -> str:
    """The table without columns that say nothing."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return align_table([header[column] for column in kept], [[row[column] for column in kept] for row in rows])


def _format_duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _write_report(place: SweepFolder, text: str) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    (place.folder / "report.txt").write_text(text + "\n")
