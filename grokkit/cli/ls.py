"""`grokkit ls`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from grokkit.cli.parse import parse


def main(words: list[str]) -> None:
    """Read the words and list."""
    parse("ls", ls, words)


def ls(
    runs: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = Path("runs"), as_json: bool = False
) -> None:
    """List the runs below a folder with their state and their step.

    Try:
        grokkit ls
        grokkit ls /scratch/runs --as-json

    Args:
        runs: folder to look in.
        as_json: print JSON instead of a table.
    """
    from rich.console import Console
    from rich.table import Table

    from grokkit.trajectory import find_runs

    rows = [{"path": str(run.path), **run.status, "state": run.state} for run in find_runs(runs)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print(f"no runs below {runs}; make one with: grokkit demo")
        return
    table = Table("run", "state", "step", "reason")
    for row in rows:
        table.add_row(row["path"], row["state"], f"{row['step']}/{row['total_steps'] or '?'}", row.get("reason", ""))
    Console().print(table)
