"""`grokkit estimate EXPERIMENT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.parse import parse_arguments

if TYPE_CHECKING:
    from grokkit.diagnostics.estimate import Estimate


def main(argv: list[str]) -> None:
    """Read the words and estimate."""
    parse_arguments("estimate", estimate, argv)


def estimate(
    experiment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="EXPERIMENT")],
    data: str | None = None,
    runs: Path = Path("runs"),
    seed: int | None = None,
    steps: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    price: float | None = None,
) -> None:
    """Say how long every variant of an experiment would take, how much disk and how many dollars, before it is begun.

    Some real steps and records are taken and timed in a folder that goes again, and summed over the schedule. On a
    machine that other programs use, or whose clock goes down as it warms up, it will be less than the truth.

    Try:
        grokkit estimate quickstart
        grokkit estimate cifar10_small:no_batchnorm --data cifar10.npz --price 0.28

    Args:
        experiment: a name or the path of a .py file, with :VARIANT for one of its functions, as of `grokkit train`.
        data: other data than the experiment's: a dataset's name, an .npz file or a folder of classes.
        runs: folder that the runs would go to; its disk is the one that is timed.
        seed: another root seed than the experiment's.
        steps: another number of updates than the experiment's.
        device: cpu or cuda; by default a GPU where there is one.
        price: dollars an hour of this machine; by default $GROKKIT_PRICE.
    """
    from grokkit import recipes
    from grokkit.cli.setup import select_machine
    from grokkit.config.overrides import apply_cli_overrides
    from grokkit.diagnostics import estimate as room
    from grokkit.recording.budget import HOUR, Budget, format_dollars

    price = Budget.of(price).price
    configs = [apply_cli_overrides(each, data, seed, steps) for each in recipes.find_experiment(experiment).configs()]
    select_machine(device)
    found = []
    for config in configs:
        found.append(room.estimate(config, device, runs))
        print(f"{config.experiment}/{config.variant}\n  {room.summarize_estimate(found[-1], price)}")
        print("\n".join(f"  {line}" for line in _format_details(found[-1])), flush=True)
    seconds = sum(each.seconds for each in found)
    at = "" if price is None else f", about {format_dollars(seconds * price / HOUR)} at {format_dollars(price)}/h"
    disk = room.format_size(sum(each.bytes for each in found))
    print(f"all of it, one after the other: {room.format_duration(seconds)}, disk {disk}{at}")


def _format_details(found: Estimate) -> list[str]:
    """What was timed, and what each instrument and each kind of file makes of the whole."""
    from grokkit.diagnostics.estimate import format_duration, format_size, format_speed

    timed = found.training
    first, taken = timed.warm_up
    slow, fast = format_speed(1 / timed.high), format_speed(1 / timed.low)
    lines = [
        f"measured: {timed.steps} steps, by stretch {slow} to {fast}, after the first {first}, which took {taken:.2g} s"
    ]
    for each in found.instruments:
        share = 100 * each.seconds / found.seconds
        times = f"{each.count} x {each.later:.2g} s" + (f", the first {each.first:.2g} s" if each.count > 1 else "")
        lines.append(f"{each.name:22}{format_duration(each.seconds):>8}  {share:4.1f} %  ({times})")
    kinds = sorted(found.files.items(), key=lambda item: -item[1])
    return [*lines, "disk: " + ", ".join(f"{name} {format_size(count)}" for name, count in kinds if count)]
