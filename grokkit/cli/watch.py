"""`grokkit watch RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from grokkit.cli.parse import parse_arguments


def main(argv: list[str]) -> None:
    """Parse arguments and follow the run."""
    parse_arguments("watch", watch, argv)


def watch(run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]) -> None:
    """Follow a run in the terminal until it ends: step, time left, newest numbers, learning rate, events.

    Ctrl-C ends the view, not the run. If standard output is not a terminal, prints a plain line every few seconds.

    Try:
        grokkit watch runs/quickstart/constant-s0-1a2b3c4d

    Args:
        run: the run's folder; a finished run is shown once.
    """
    from rich.console import Console

    from grokkit.live.terminal import watch_run
    from grokkit.trajectory import open_run

    try:
        watch_run(open_run(run), Console())
    except KeyboardInterrupt:
        print()
