"""`grokkit lc RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grokkit.cli.analyse import analyse, print_measure
from grokkit.cli.parse import parse
from grokkit.training.config import part


def main(words: list[str]) -> None:
    """Read the words and measure."""
    parse("lc", lc, words)


def lc(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    radius: tuple[float, ...] = (0.005, 0.05, 0.5),
    directions: int = 20,
    points: int = 256,
    method: Literal["tangent", "vertex"] = "tangent",
    last: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Measure local complexity at the stored snapshots, on the run's own probe sets.

    Try:
        grokkit lc RUN
        grokkit lc RUN --radius 0.05 --method vertex --last 10

    Args:
        run: the run's folder.
        radius: radii of the neighbourhood, in the net's normalised input space.
        directions: orthonormal directions of the frame.
        points: images of each probe set.
        method: tangent (all radii in one pass) or vertex (the published count).
        last: only the newest snapshots, this many.
        device: cpu or cuda; by default a GPU where there is one.
    """
    wanted = part("local_complexity", radii=radius, directions=directions, points=points, method=method)
    analyse(run, [wanted], [], device, last)
    print_measure(run, wanted)
