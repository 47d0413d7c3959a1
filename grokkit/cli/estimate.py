"""`grokkit estimate EXPERIMENT`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from grokkit.cli.parse import parse_arguments

if TYPE_CHECKING:
    from grokkit.diagnostics.estimate import Estimate


def main(argv: list[str]) -> None:
    """Parse arguments and estimate."""
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
    """Estimate time, disk space and cost in dollars of every variant of an experiment before it is trained.

    Runs and times some real training steps and records in a temporary folder, and extrapolates over the schedule. On a
    machine that is shared, or that lowers its clock as it heats up, the estimate is too low.

    Try:
        grokkit estimate quickstart
        grokkit estimate cifar10_small:no_batchnorm --data cifar10.npz --price 0.28

    Args:
        experiment: a name or the path of a .py file, with :VARIANT for one of its functions, as in `grokkit train`.
        data: data in place of the experiment's: the name of a dataset, an .npz file or a folder of classes.
        runs: folder for the runs; the write speed of its disk is measured.
        seed: root seed, in place of the experiment's.
        steps: number of optimizer updates, in place of the experiment's.
        device: cpu or cuda; by default a GPU if there is one.
        price: price of this machine in dollars per hour; by default $GROKKIT_PRICE.
    """
    from grokkit import recipes
    from grokkit.cli.setup import select_machine
    from grokkit.config.overrides import apply_cli_overrides
    from grokkit.diagnostics import estimate as estimation
    from grokkit.recording.budget import SECONDS_PER_HOUR, Budget, format_dollars

    price = Budget.create(price).price
    configs = [apply_cli_overrides(each, data, seed, steps) for each in recipes.find_experiment(experiment).configs()]
    select_machine(device)
    estimates = []
    for config in configs:
        estimates.append(estimation.estimate(config, device, runs))
        print(f"{config.experiment}/{config.variant}\n  {estimation.summarize_estimate(estimates[-1], price)}")
        print("\n".join(f"  {line}" for line in _format_details(estimates[-1])), flush=True)
    seconds = sum(each.seconds for each in estimates)
    cost = (
        ""
        if price is None
        else f", about {format_dollars(seconds * price / SECONDS_PER_HOUR)} at {format_dollars(price)}/h"
    )
    disk = estimation.format_size(sum(each.bytes for each in estimates))
    print(f"total, one after the other: {estimation.format_duration(seconds)}, disk {disk}{cost}")


def _format_details(result: Estimate) -> list[str]:
    """Return lines on what was timed, and on the share of each instrument and each kind of file."""
    from grokkit.diagnostics.estimate import format_duration, format_size, format_speed

    timed = result.training
    warm_up_steps, warm_up_seconds = timed.warm_up
    slow, fast = format_speed(1 / timed.high), format_speed(1 / timed.low)
    lines = [
        f"measured: {timed.steps} steps at {slow} to {fast}, "
        f"after {warm_up_steps} warm-up steps in {warm_up_seconds:.2g} s"
    ]
    for each in result.instruments:
        share = 100 * each.seconds / result.seconds
        times = f"{each.count} x {each.later:.2g} s" + (f", the first {each.first:.2g} s" if each.count > 1 else "")
        lines.append(f"{each.name:22}{format_duration(each.seconds):>8}  {share:4.1f} %  ({times})")
    kinds = sorted(result.files.items(), key=lambda item: -item[1])
    return [*lines, "disk: " + ", ".join(f"{name} {format_size(count)}" for name, count in kinds if count)]
