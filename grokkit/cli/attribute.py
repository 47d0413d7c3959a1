"""`grokkit attribute RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grokkit.cli.analyse import run_analysis
from grokkit.cli.parse import parse_arguments
from grokkit.config.run_config import spec


def main(argv: list[str]) -> None:
    """Parse arguments and attribute."""
    parse_arguments("attribute", attribute, argv)


def attribute(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    method: tuple[str, ...] = ("saliency", "integrated_gradients"),
    images: int = 8,
    last: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    trust: bool = False,
) -> None:
    """Attribute the logit of the true class to the pixels of the same test images at the stored snapshots.

    Try:
        grokkit attribute RUN
        grokkit attribute RUN --method grad_cam --images 16

    Args:
        run: the run's folder.
        method: names from `grokkit.attributions.names()`.
        images: number of images, the first ones of the test probe set.
        last: use only this many of the newest snapshots.
        device: cpu or cuda; by default a GPU if there is one.
        trust: execute the run's experiment.py if it is needed to resolve a name, even if it is not on your list of
            trusted code; read it first.
    """
    run_analysis(run, [], [spec(name, images=images) for name in method], device, last, trust)
    print(f"Draw them with: grokkit figure attributions {run}")
