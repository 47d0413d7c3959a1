"""Warmup, stable, decay: the open-loop twin of a triggered decay, and the pieces that other schedules share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grokkit.errors import UsageError
from grokkit.policies import Decision, Observation, register

SHAPES: dict[str, Callable[[float], float]] = {
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
    "linear": lambda progress: 1 - progress,
}
"""Decay shapes: progress in 0..1 to height in 1..0. `1-sqrt` is from Hägele et al., arXiv 2405.18392."""


def require(name: str, value: float, low: float, high: float, meaning: str, *, whole: bool = False) -> None:
    """Raise a `UsageError` unless `value` is a number (an int where `whole`) in low..high."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "an int" if whole else "a number"
        raise UsageError(f"`{name}` must be {kind} in {low:g}..{high:g} ({meaning}); got {value!r}")


def require_name(name: str, value: str) -> None:
    """Raise a `UsageError` unless `value` can name a reading."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"`{name}` must be the name of a reading; got {value!r}")


def require_decay(warmup: float, decay_share: float, final_scale: float, shape: str) -> None:
    """Raise a `UsageError` unless the shares fit into the budget, the floor is positive and the shape is known."""
    require("warmup", warmup, 0, 1, "share of the updates")
    require("decay_share", decay_share, 0, 1, "share of the updates")
    require_floor("final_scale", final_scale)
    if warmup + decay_share > 1:
        raise UsageError(
            f"`warmup` + `decay_share` must be at most 1, the whole budget; got {warmup:g} + {decay_share:g}"
        )
    if shape not in SHAPES:
        raise UsageError(f"`shape` must be one of {', '.join(SHAPES)}; got {shape!r}")


def require_floor(name: str, value: float) -> None:
    """Raise a `UsageError` unless `value` can be the lowest scale of a schedule."""
    require(name, value, 1e-12, 1, "factor on the base learning rate; a scale of 0 could not be left again")


def share_to_steps(total_steps: int, share: float) -> int:
    """A share of the budget in whole updates."""
    return round(share * total_steps)


def warmup_scale(step: int, updates: int) -> float:
    """Linear rise: update number 1 of `updates` gets 1/updates, the last one gets 1; 1 from then on."""
    return min(1.0, (step + 1) / updates) if updates else 1.0


def decay_scale(since: int, updates: int, final_scale: float, shape: str) -> float:
    """Scale `since` updates after a decay over `updates` updates began; `final_scale` once it is over."""
    progress = min(1.0, since / updates) if updates else 1.0
    return final_scale + (1 - final_scale) * SHAPES[shape](progress)


@register("wsd")
@dataclass(frozen=True)
class WSD:
    """Linear warmup, a constant stretch, then a decay that ends with the budget.

    Args:
        warmup: share of the updates in 0..1 that the linear rise takes.
        decay_share: share of the updates in 0..1 that the final fall takes; warmup + decay_share <= 1.
        final_scale: scale > 0 at the end of the fall, after the last update, as a factor on the base learning rate.
        shape: `1-sqrt` or `linear`.
    """

    warmup: float = 0.01
    decay_share: float = 0.2
    final_scale: float = 1e-4
    shape: str = "1-sqrt"

    def __post_init__(self) -> None:
        require_decay(self.warmup, self.decay_share, self.final_scale, self.shape)

    def init(self) -> dict[str, Any]:
        """No state: an empty dict."""
        return {}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale by the clock alone, with a reason at the step where the decay starts."""
        step, total = observation.step, observation.total_steps
        length = share_to_steps(total, self.decay_share)
        start = total - length
        if step < start:
            return Decision(warmup_scale(step, share_to_steps(total, self.warmup)), state)
        reason = (
            f"decay starts by the clock, {length} updates before the end at {total}" if step == start < total else None
        )
        return Decision(decay_scale(step - start, length, self.final_scale, self.shape), state, reason)
