"""`grokkit attack RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grokkit.cli.analyse import print_measure, run_analysis
from grokkit.cli.parse import parse_arguments
from grokkit.config.run_config import spec


def main(argv: list[str]) -> None:
    """Parse arguments and attack."""
    parse_arguments("attack", attack, argv)


def attack(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    epsilon: tuple[float, ...] = (2 / 255, 8 / 255),
    steps: int = 10,
    points: int = 256,
    last: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    trust: bool = False,
) -> None:
    """Attack test images at the stored snapshots by projected gradient descent (PGD) on cross-entropy and margin loss.

    Try:
        grokkit attack RUN
        grokkit attack RUN --epsilon 0.05 0.1 --steps 20

    Args:
        run: the run's folder.
        epsilon: l_inf radii, for pixel values between 0 and 1 (8/255 is 0.0314).
        steps: iterations of each attack.
        points: number of test images.
        last: use only this many of the newest snapshots.
        device: cpu or cuda; by default a GPU if there is one.
        trust: execute the run's experiment.py if it is needed to resolve a name, even if it is not on your list of
            trusted code; read it first.
    """
    measure = spec("robust_accuracy", epsilons=epsilon, steps=steps, points=points)
    run_analysis(run, [measure], [], device, last, trust)
    print_measure(run, measure)
