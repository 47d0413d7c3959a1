"""`grokkit lc RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from grokkit.cli.analyse import print_measure, run_analysis
from grokkit.cli.parse import parse_arguments
from grokkit.config.run_config import spec


def main(argv: list[str]) -> None:
    """Parse arguments and measure."""
    parse_arguments("lc", lc, argv)


def lc(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    radius: tuple[float, ...] | None = None,
    directions: int | None = None,
    points: int | None = None,
    method: Literal["tangent", "vertex"] | None = None,
    preset: str | None = None,
    last: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    trust: bool = False,
) -> None:
    """Measure local complexity at the stored snapshots, on the run's own probe sets.

    Try:
        grokkit lc RUN
        grokkit lc RUN --radius 0.05 --method vertex --last 10
        grokkit lc RUN --preset humayun2024

    Args:
        run: the run's folder.
        radius: radii of the neighbourhoods, in the net's normalised input space; by default 0.005 0.05 0.5.
        directions: number of orthonormal directions; by default 20.
        points: number of images of each probe set; by default 256.
        method: tangent (all radii in one pass, the default) or vertex (the published count).
        preset: a published setting, humayun2024 or humayun2024_mnist; other options given override it.
        last: use only this many of the newest snapshots.
        device: cpu or cuda; by default a GPU if there is one.
        trust: execute the run's experiment.py if it is needed to resolve a name, even if it is not on your list of
            trusted code; read it first.
    """
    given = {"radii": radius, "directions": directions, "points": points, "method": method}
    options = {name: value for name, value in given.items() if value is not None}
    measure = spec("local_complexity", **(_load_preset(preset) | options))
    run_analysis(run, [measure], [], device, last, trust)
    print_measure(run, measure)


def _load_preset(name: str | None) -> dict[str, Any]:
    from grokkit.spline import preset  # here, because it imports torch and --help must be fast

    return {} if name is None else preset(name).measure()
