"""`grokkit note RUN [TEXT]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.escape import escape_controls


def main(argv: list[str]) -> None:
    """Read the words and write or print."""
    parse_arguments("note", note, argv)


def note(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    text: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = None,
) -> None:
    """Add a line to a run's diary, with time, step, newest metrics and git commit; without TEXT, print the diary.

    A live run may be written about: its own files are left alone.

    Try:
        grokkit note runs/quickstart/constant-s0-1a2b3c4d "robust accuracy starts to rise"
        grokkit note runs/quickstart/constant-s0-1a2b3c4d

    Args:
        run: the run's folder.
        text: what to remember.
    """
    from grokkit.trajectory import open_run
    from grokkit.trajectory.diary import add_note, read_diary

    opened = open_run(run)
    said = add_note(opened, text) if text is not None else read_diary(opened)
    said = said or f'nothing is written yet; begin with: grokkit note {run} "..."\n'
    print(escape_controls(said, keep="\n\t"), end="")
