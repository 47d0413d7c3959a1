"""`grokkit resume RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grokkit.cli.parse import parse
from grokkit.cli.text import final_accuracy


def main(words: list[str]) -> None:
    """Read the words and resume."""
    parse("resume", resume, words)


def resume(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Go on with an interrupted run from its newest resume slot; everything else comes from the run.

    Try:
        grokkit resume runs/quickstart/constant-s0-1a2b3c4d

    Args:
        run: the run's folder.
        device: cpu or cuda; by default a GPU where there is one.
    """
    from grokkit.training import loop
    from grokkit.training.observers import for_terminal

    finished = loop.resume(run, device=device, observer=for_terminal())
    print(f"{finished.path}: done at step {finished.status['step']}{final_accuracy(finished.newest_metrics())}")
