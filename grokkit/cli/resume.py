"""`grokkit resume RUN...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grokkit.cli.parse import parse
from grokkit.cli.text import final_accuracy
from grokkit.errors import UsageError


def main(words: list[str]) -> None:
    """Read the words and resume."""
    parse("resume", resume, words)


def resume(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")],
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Go on with interrupted runs, one after the other, from their newest resume slots; all else comes from the runs.

    Try:
        grokkit resume runs/quickstart/constant-s0-1a2b3c4d

    Args:
        runs: the runs' folders; a finished run is left as it is.
        device: cpu or cuda; by default a GPU where there is one.
    """
    from grokkit.training import loop
    from grokkit.training.observers import for_terminal
    from grokkit.training.team import is_first

    if not runs:
        raise UsageError("which run? Give at least one run's folder, such as runs/quickstart/constant-s0-1a2b3c4d")
    for run in runs:
        finished = loop.resume(run, device=device, observer=for_terminal() if is_first() else None)
        if is_first():
            print(f"{finished.path}: done at step {finished.status['step']}{final_accuracy(finished.newest_metrics())}")
