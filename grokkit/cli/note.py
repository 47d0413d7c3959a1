"""`grokkit note RUN [TEXT]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.escape import escape_controls


def main(argv: list[str]) -> None:
    """Parse arguments and add a note or print the diary."""
    parse_arguments("note", note, argv)


def note(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = None,
) -> None:
    """Add a line to a run's diary, with time, step, newest metrics and git commit; without TEXT, print the diary.

    Works while the run is training: the files of the run are not modified.

    Try:
        grokkit note runs/quickstart/constant-s0-1a2b3c4d "robust accuracy starts to rise"
        grokkit note runs/quickstart/constant-s0-1a2b3c4d

    Args:
        run: the run's folder.
        text: line to add.
    """
    from grokkit.trajectory import open_run
    from grokkit.trajectory.diary import add_note, read_diary

    opened = open_run(run)
    output = add_note(opened, text) if text is not None else read_diary(opened)
    output = output or f'the diary is empty; add a line with: grokkit note {run} "..."\n'
    print(escape_controls(output, keep="\n\t"), end="")
