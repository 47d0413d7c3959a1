"""`grokkit lc RUN`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from grokkit.cli.analyse import analyse, print_measure
from grokkit.cli.parse import parse
from grokkit.errors import UsageError
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
    preset: str | None = None,
    last: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
) -> None:
    """Measure local complexity at the stored snapshots, on the run's own probe sets.

    Try:
        grokkit lc RUN
        grokkit lc RUN --radius 0.05 --method vertex --last 10
        grokkit lc RUN --preset humayun2024

    Args:
        run: the run's folder.
        radius: radii of the neighbourhood, in the net's normalised input space.
        directions: orthonormal directions of the frame.
        points: images of each probe set.
        method: tangent (all radii in one pass) or vertex (the published count).
        preset: a published setting in place of the four above, for example humayun2024 or humayun2024_mnist.
        last: only the newest snapshots, this many.
        device: cpu or cuda; by default a GPU where there is one.
    """
    options = {"radii": radius, "directions": directions, "points": points, "method": method}
    if preset is not None:
        options = _of_preset(preset, options)
    wanted = part("local_complexity", **options)
    analyse(run, [wanted], [], device, last)
    print_measure(run, wanted)


def _of_preset(name: str, given: dict[str, Any]) -> dict[str, Any]:
    from grokkit.spline import preset  # brings torch, which help does without

    defaults = {parameter.name: parameter.default for parameter in inspect.signature(lc).parameters.values()}
    if any(given[option] != defaults.get(option, defaults["radius"]) for option in given):
        raise UsageError(
            "--preset sets --radius, --directions, --points and --method; leave these out, or leave it out"
        )
    return preset(name).measure()
