"""`grokkit resume RUN...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from grokkit.cli.parse import parse_arguments
from grokkit.cli.setup import make_callbacks, make_webhook, select_machine, share_budget
from grokkit.cli.text import format_cost, format_final_accuracy, shorten_path
from grokkit.errors import UsageError


def main(argv: list[str]) -> None:
    """Parse arguments and resume."""
    parse_arguments("resume", resume, argv)


def resume(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")],
    device: Literal["cpu", "cuda"] | None = None,
    price: float | None = None,
    budget: float | None = None,
    notify: str | None = None,
    trust: bool = False,
) -> None:
    """Resume interrupted runs, one after the other, from their newest resume states, with their stored configs.

    Try:
        grokkit resume runs/quickstart/constant-s0-1a2b3c4d
        grokkit resume RUN --budget 2.00

    Args:
        runs: run folders; a finished run is left unchanged.
        device: cpu or cuda; by default a GPU if there is one.
        price: price of this machine in dollars per hour; by default $GROKKIT_PRICE, or the run's last price.
        budget: maximum total cost of the runs in dollars, including what they have cost before; when it is reached,
            they are saved and stop with exit code 6.
        notify: webhook URL for messages at start, decisions, problems and end (ntfy, Slack, Discord or any other); by
            default $GROKKIT_NOTIFY, which keeps a secret URL out of the process list.
        trust: execute a run's experiment.py if it is needed to resolve a name, even if it is not on your list of
            trusted code; read it first.
    """
    from grokkit.training import loop
    from grokkit.training.ranks import is_rank_zero
    from grokkit.trajectory import open_run

    if not runs:
        raise UsageError("no run given; expected at least one run folder, such as runs/quickstart/constant-s0-1a2b3c4d")
    opened, machine, webhook = [open_run(run) for run in runs], select_machine(device), make_webhook(notify)
    for run in opened:
        remaining = share_budget(budget, [other for other in opened if other is not run])
        finished = loop.resume(
            run.path,
            device=device,
            callback=make_callbacks(machine, webhook),
            price=price,
            budget=remaining,
            trust=trust,
        )
        if not is_rank_zero():
            continue
        status = finished.status
        accuracy = format_final_accuracy(finished.newest_metrics())
        print(f"{shorten_path(finished.path)}: done at step {status['step']}{accuracy}{format_cost(status)}")
