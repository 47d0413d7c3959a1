"""`grokkit sweep FILE`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.parse import parse
from grokkit.cli.text import aligned, shown
from grokkit.errors import GrokkitError, Interrupted, UsageError

if TYPE_CHECKING:
    from grokkit.sweep.plan import Plan, Planned
    from grokkit.sweep.queue import Launcher
    from grokkit.sweep.run_status import Place, Standing


def main(words: list[str]) -> None:
    """Read the words and work through the runs."""
    parse("sweep", sweep, words)


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
    from grokkit.sweep.plan import check, read_plan
    from grokkit.sweep.queue import Queue
    from grokkit.sweep.run_status import Place, accepted, standings

    plan = read_plan(file)
    place = Place(runs, plan.name)
    if report:
        _report(plan, place, standings(plan, place), as_json)
        return
    check(plan)
    if dry_run:
        _list(plan, place, standings(plan, place), as_json)
        return
    trusted = accepted(plan, place)
    with _launched(plan, trusted, launcher, runs_per_gpu, at_once, gpus_per_run, address) as place_of_work:
        try:
            stands = Queue(plan, place, place_of_work, retry_failed=retry_failed, say=_say).work()
        except Interrupted:
            _write(place, _table(plan, standings(plan, place)))
            raise
    _report(plan, place, stands, as_json)


def _launched(
    plan: Plan, trusted: set[str], launcher: str, runs_per_gpu: int, at_once: int, gpus_per_run: float | None,
    address: str | None,
) -> AbstractContextManager[Launcher]:  # fmt: skip
    """The launcher; an option of the other one is refused."""
    from grokkit.sweep.cluster import connected
    from grokkit.sweep.local import Local, visible_gpus

    if launcher == "ray":
        if (runs_per_gpu, at_once) != (1, 1):
            raise UsageError("--runs-per-gpu and --at-once are the local queue's; with ray, say --gpus-per-run 0.5")
        return connected(address, gpus_per_run, plan.device, trusted)
    if gpus_per_run is not None or address is not None:
        raise UsageError("--gpus-per-run and --address need --launcher ray")
    gpus = [] if plan.device == "cpu" else visible_gpus()
    return nullcontext(Local(gpus, per_gpu=runs_per_gpu, at_once=at_once, trusted=trusted))


def _say(text: str) -> None:
    print(f"{time.strftime('%m-%d %H:%M:%S')}  {text}", flush=True)


def _list(plan: Plan, place: Place, stands: Mapping[Planned, Standing], as_json: bool) -> None:
    """The runs, what differs from their experiments, and what they wait for."""
    if as_json:
        told = [{"run": str(place.run(run)), "state": stands[run].state, "after": run.after, "changes": run.changes}
                for run in plan.runs]  # fmt: skip
        print(json.dumps(told, indent=1))
        return
    rows = [[shown(place.run(run)), stands[run].state, ", ".join(run.after), _changes(run)] for run in plan.runs]
    print(_without_empty(["run", "state", "after", "differs in"], rows))
    print(f"{len(rows)} runs; nothing was started")


def _changes(run: Planned) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in run.changes.items()) or "nothing"


def _report(plan: Plan, place: Place, stands: Mapping[Planned, Standing], as_json: bool) -> None:
    """Print how the runs stand. Raises GrokkitError unless all are done."""
    if as_json:
        print(json.dumps([{"run": str(place.run(run)), "changes": run.changes, **vars(stands[run])}
                          for run in plan.runs], indent=1))  # fmt: skip
    else:
        print(_table(plan, stands))
    _write(place, _table(plan, stands))
    done = sum(each.state == "done" for each in stands.values())
    if done < len(stands):
        raise GrokkitError(
            f"{done} of {len(stands)} runs are done; what was printed by the others is in {shown(place.folder)}/logs"
        )


def _table(plan: Plan, stands: Mapping[Planned, Standing]) -> str:
    header = ["run", "state", "step", "attempts", "time", "test accuracy", "test loss", "differs in", "reason"]
    return _without_empty(header, [_row(run, stands[run]) for run in plan.runs])


def _row(run: Planned, stands: Standing) -> list[str]:
    numbers = [stands.numbers.get(f"test_set.{name}") for name in ("accuracy", "loss")]
    seen = [f"{max(stands.step, 0)}/{run.config.steps}", str(stands.attempts), _duration(stands.seconds)]
    return [run.config.run_name, stands.state, *seen, *("" if each is None else f"{each:.4g}" for each in numbers),
            _changes(run), stands.reason]  # fmt: skip


def _without_empty(header: list[str], rows: list[list[str]]) -> str:
    """The table without columns that say nothing."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return aligned([header[column] for column in kept], [[row[column] for column in kept] for row in rows])


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _write(place: Place, text: str) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    (place.folder / "report.txt").write_text(text + "\n")
