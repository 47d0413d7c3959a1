"""Shared by the commands that train: device selection, callbacks and the budget."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from grokkit.callbacks.base import Callback
    from grokkit.callbacks.webhook import Webhook
    from grokkit.device.select import Device
    from grokkit.trajectory import Run

NOTIFY_VARIABLE = "GROKKIT_NOTIFY"


def select_machine(requested: str | None) -> Device:
    """Return the device for a run; if no GPU is found and none was requested, print a red warning to stderr.

    Raises:
        DeviceRefusedError: a GPU is present but unusable.
    """
    from rich.console import Console

    from grokkit.device.select import select_device
    from grokkit.training.ranks import is_rank_zero

    device = select_device(requested)
    if requested is None and device.torch_device.type == "cpu" and is_rank_zero():
        line = "No GPU found, running on the CPU. Pass --device cpu to silence this."
        Console(stderr=True, soft_wrap=True).print(line, style="bold red", highlight=False)
    return device


def make_webhook(address: str | None) -> Webhook | None:
    """Return a webhook for `address`, or else for the environment variable GROKKIT_NOTIFY; None if neither is given,
    and on all ranks but 0."""
    from grokkit.callbacks.webhook import Webhook
    from grokkit.training.ranks import is_rank_zero

    url = address or os.environ.get(NOTIFY_VARIABLE)
    return Webhook(url) if url and is_rank_zero() else None


def make_callbacks(device: Device, webhook: Webhook | None) -> Callback | None:
    """Return the callbacks of a run: a progress bar or log lines (which name the CPU if it is used), and the webhook if
    there is one. None on all ranks but 0."""
    from grokkit.callbacks.base import CallbackList, make_terminal_callback
    from grokkit.training.ranks import is_rank_zero

    if not is_rank_zero():
        return None
    on_cpu = "cpu" if device.torch_device.type == "cpu" else ""
    return CallbackList(make_terminal_callback(on_cpu), *([webhook] if webhook is not None else []))


def share_budget(budget: float | None, others: Sequence[Run]) -> float | None:
    """Return the budget that is left for one run after the costs of the others; None for no limit.

    Raises:
        BudgetReached: the others have spent all of it.
    """
    from grokkit.errors import BudgetReached
    from grokkit.recording.budget import format_dollars, get_spent

    if budget is None:
        return None
    spent = sum(get_spent(run.status) for run in others)
    if spent >= budget:
        paths = ", ".join(str(run.path) for run in others)
        raise BudgetReached(
            f"the budget of {format_dollars(budget)} is spent: {format_dollars(spent)} by {paths}. "
            "Pass a larger --budget to continue"
        )
    return budget - spent
