"""`grokkit ls`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.text import align_table, pretty_json, shorten_path
from grokkit.errors import GrokkitError

if TYPE_CHECKING:
    from grokkit.trajectory import Run


def main(argv: list[str]) -> None:
    """Parse arguments and list the runs."""
    parse_arguments("ls", ls, argv)


def ls(
    runs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = Path("runs"), as_json: bool = False
) -> None:
    """List the runs below a folder with state, step and cost.

    Try:
        grokkit ls
        grokkit ls /scratch/runs --as-json

    Args:
        runs: folder to look in.
        as_json: print JSON instead of a table.
    """
    from grokkit.trajectory import find_runs

    rows = [_describe_run(run) for run in find_runs(runs)]
    if as_json:
        print(pretty_json(rows))
        return
    if not rows:
        print(f"no runs found below {runs}; create one with: grokkit demo")
        return
    print(align_table(["run", "state", "step", "spent", "reason"], [_format_row(row) for row in rows]))


def _format_row(row: dict[str, Any]) -> list[str]:
    from grokkit.recording.budget import format_dollars

    spent = row.get("spent")
    steps = f"{row.get('step', '?')}/{row.get('total_steps') or '?'}"
    return [
        shorten_path(Path(row["path"])),
        row["state"],
        steps,
        "" if spent is None else format_dollars(spent),
        row.get("reason") or "",
    ]


def _describe_run(run: Run) -> dict[str, Any]:
    """Return the row of one run; a run that cannot be read has the state `unreadable` and the error as reason."""
    try:
        return {"path": str(run.path), **run.status, "state": run.state}
    except (GrokkitError, OSError) as error:
        return {"path": str(run.path), "state": "unreadable", "reason": str(error)}
