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
    """Read the words and resume."""
    parse_arguments("resume", resume, argv)


def resume(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")],
    device: Literal["cpu", "cuda"] | None = None,
    price: float | None = None,
    budget: float | None = None,
    notify: str | None = None,
    trust: bool = False,
) -> None:
    """Go on with interrupted runs, one after the other, from their newest resume slots; all else comes from the runs.

    Try:
        grokkit resume runs/quickstart/constant-s0-1a2b3c4d
        grokkit resume RUN --budget 2.00

    Args:
        runs: the runs' folders; a finished run is left as it is.
        device: cpu or cuda; by default a GPU where there is one.
        price: dollars an hour of this machine; by default $GROKKIT_PRICE, or what it was before.
        budget: dollars that the runs together may cost, what they have cost before included; then they are saved and
            stop, with exit code 6.
        notify: web address that hears of start, decisions, trouble and end (ntfy, Slack, Discord or any other); by
            default $GROKKIT_NOTIFY, which keeps a secret address out of the list of processes.
        trust: execute a run's experiment.py for a name that is unknown without it, although it is not on your list of
            trusted code; read it first.
    """
    from grokkit.training import loop
    from grokkit.training.ranks import is_rank_zero
    from grokkit.trajectory import open_run

    if not runs:
        raise UsageError("which run? Give at least one run's folder, such as runs/quickstart/constant-s0-1a2b3c4d")
    opened, found, messages = [open_run(run) for run in runs], select_machine(device), make_webhook(notify)
    for run in opened:
        left = share_budget(budget, [other for other in opened if other is not run])
        finished = loop.resume(
            run.path, device=device, callback=make_callbacks(found, messages), price=price, budget=left, trust=trust
        )
        if not is_rank_zero():
            continue
        status = finished.status
        numbers = format_final_accuracy(finished.newest_metrics())
        print(f"{shorten_path(finished.path)}: done at step {status['step']}{numbers}{format_cost(status)}")
