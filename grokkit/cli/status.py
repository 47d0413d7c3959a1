"""`grokkit status RUN`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.text import align_table, pretty_json
from grokkit.errors import TrajectoryError
from grokkit.escape import escape_controls

if TYPE_CHECKING:
    from grokkit.trajectory import Run


UNITS = {
    "seconds": " s",
    "costs": " s",
    "price": " dollars/h",
    "spent": " dollars",
    "measures": " snapshots",
    "attributions": " snapshots",
}
LABELS = {"seconds": "time", "costs": "time of"}


def main(argv: list[str]) -> None:
    """Parse arguments and print the status."""
    parse_arguments("status", status, argv)


def status(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    verify: bool = False,
    as_json: bool = False,
) -> None:
    """Show the status of a run: state, step, device, stored snapshots and readings, newest metrics.

    Try:
        grokkit status runs/quickstart/constant-s0-1a2b3c4d
        grokkit status RUN --verify

    Args:
        run: the run's folder.
        verify: also check every file against its digest, its name and the manifest, and the config against the one with
            which the run started; exit code 4 if anything is damaged, changed or missing.
        as_json: print JSON instead of lines.
    """
    from grokkit.trajectory import open_run

    opened = open_run(run)
    try:
        facts = _describe(opened)
    except TrajectoryError as error:
        raise TrajectoryError("\n".join(opened.verify() or [str(error)]) if verify else str(error)) from error
    print(pretty_json(facts) if as_json else "\n".join(_format_lines(facts)))
    if verify:
        problems = opened.verify()
        if problems:
            raise TrajectoryError("\n".join(problems))
        print("every file matches its digest, its name and the manifest")
        for name in opened.unlisted():
            print(f"not in the manifest (written just before a kill, by an older version, or added by hand): {name}")


def _describe(opened: Run) -> dict[str, Any]:
    status = {name: value for name, value in opened.status.items() if name != "manifest"}
    updated = status.get("updated")
    return {
        **status,
        "state": opened.state,
        "updated": None if updated is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(updated)),
        "device": opened.environment.get("device"),
        "snapshots": len(opened.steps()),
        "measures": {name: len(steps) for name, steps in opened.measures().items()},
        "attributions": {name: len(steps) for name, steps in opened.attributions().items()},
        "newest": opened.newest_metrics(),
    }


def _format_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line per fact that is known, with its unit; of a table of facts one per entry."""
    for key, value in facts.items():
        label, unit = LABELS.get(key, key), UNITS.get(key, "")
        if isinstance(value, dict):
            rows = [[f"  {name}", f"{_format_value(item)}{unit}"] for name, item in value.items()]
            yield align_table([label, ""], rows) if rows else f"{label:12} none"
        elif value is not None and value != "":
            yield escape_controls(f"{label:12} {_format_value(value)}{unit}", keep="\n")


def _format_value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)
