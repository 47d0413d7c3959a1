"""`grokkit model NAME`."""

from __future__ import annotations

from typing import Annotated

import tyro

from grokkit.cli.parse import parse_arguments


def main(argv: list[str]) -> None:
    """Parse arguments and print the model."""
    parse_arguments("model", model, argv)


def model(
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")],
    input_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
) -> None:
    """Print a model's parameters, FLOPs and MACs, receptive field and counted units.

    Try:
        grokkit model resnet18
        grokkit model mlp --input-shape 1 8 8

    Args:
        name: a name from `grokkit.models.names()`.
        input_shape: channels, height, width.
        classes: number of logits.
    """
    from grokkit import models
    from grokkit.measures.profile import profile

    print(profile(models.create(name, input_shape, classes), input_shape))
