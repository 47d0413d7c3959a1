"""What the verbs that train share: the machine they find, who watches, and the purse they pay from."""

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


def select_machine(wanted: str | None) -> Device:
    """The device that a run will have; where that is the CPU for want of a GPU, a red line on stderr says so.

    Raises:
        DeviceRefusedError: a GPU that is present but unusable.
    """
    from rich.console import Console

    from grokkit.device.select import select_device
    from grokkit.training.ranks import is_rank_zero

    found = select_device(wanted)
    if wanted is None and found.torch_device.type == "cpu" and is_rank_zero():
        line = "NO GPU HERE: this runs on the CPU. --device cpu says that this is meant"
        Console(stderr=True, soft_wrap=True).print(line, style="bold red", highlight=False)
    return found


def make_webhook(address: str | None) -> Webhook | None:
    """Who posts to `address`, or else to that of the environment variable GROKKIT_NOTIFY; None for neither, and in all
    but the first process of a team."""
    from grokkit.callbacks.webhook import Webhook
    from grokkit.training.ranks import is_rank_zero

    chosen = address or os.environ.get(NOTIFY_VARIABLE)
    return Webhook(chosen) if chosen and is_rank_zero() else None


def make_callbacks(device: Device, messages: Webhook | None) -> Callback | None:
    """A live bar or plain lines, which name the CPU, and messages where they are wanted; nobody in all but the first
    process of a team."""
    from grokkit.callbacks.base import CallbackList, make_terminal_callback
    from grokkit.training.ranks import is_rank_zero

    if not is_rank_zero():
        return None
    on_cpu = "cpu" if device.torch_device.type == "cpu" else ""
    return CallbackList(make_terminal_callback(on_cpu), *([messages] if messages is not None else []))


def share_budget(budget: float | None, others: Sequence[Run]) -> float | None:
    """What one run may cost where others are paid from the same purse; None for no limit.

    Raises:
        BudgetReached: the others have cost all of it.
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
            "A larger --budget "
            "goes on"
        )
    return budget - spent
