"""Warmup-stable-decay schedule, the open-loop counterpart of `lc_wsd`; argument checks and shapes for all schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from grokkit.errors import UsageError
from grokkit.literals import DecayShape
from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import NoState

SHAPES: dict[str, Callable[[float], float]] = {
    "1-sqrt": lambda progress: 1 - math.sqrt(progress),
    "linear": lambda progress: 1 - progress,
}
"""Decay shapes: progress 0..1 -> height 1..0. `1-sqrt` is from Hägele et al., arXiv 2405.18392."""


def require(name: str, value: float, low: float, high: float, meaning: str, *, whole: bool = False) -> None:
    """Raise a `UsageError` unless `value` is a number (an int if `whole`) in low..high."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "an int" if whole else "a number"
        raise UsageError(f"`{name}` must be {kind} in {low:g}..{high:g} ({meaning}); got {value!r}")


def require_name(name: str, value: str) -> None:
    """Raise a `UsageError` unless `value` can name a reading."""
    if not isinstance(value, str) or not value:
        raise UsageError(f"`{name}` must be the name of a reading; got {value!r}")


def require_decay(warmup: float, decay_share: float, final_scale: float, shape: DecayShape) -> None:
    """Raise a `UsageError` unless the shares fit into the run, `final_scale` is positive and the shape is known."""
    require("warmup", warmup, 0, 1, "share of the updates")
    require("decay_share", decay_share, 0, 1, "share of the updates")
    require_min_scale("final_scale", final_scale)
    if warmup + decay_share > 1:
        raise UsageError(f"`warmup` + `decay_share` must be at most 1, the whole run; got {warmup:g} + {decay_share:g}")
    if shape not in SHAPES:
        raise UsageError(f"`shape` must be one of {', '.join(SHAPES)}; got {shape!r}")


def require_min_scale(name: str, value: float) -> None:
    """Raise a `UsageError` unless `value` can be the lowest scale of a schedule."""
    require(name, value, 1e-12, 1, "factor on the base learning rate; no factor could raise a scale of 0 again")


def share_to_steps(total_steps: int, share: float) -> int:
    """Convert a share of the run's length to whole updates."""
    return round(share * total_steps)


def warmup_scale(step: int, updates: int) -> float:
    """Return the scale of a linear warmup: 1/updates at the first update, 1 at the last one and after it."""
    return min(1.0, (step + 1) / updates) if updates else 1.0


def decay_scale(since: int, updates: int, final_scale: float, shape: DecayShape) -> float:
    """Return the scale `since` updates after the start of a decay of `updates` updates; `final_scale` after its end."""
    progress = min(1.0, since / updates) if updates else 1.0
    return final_scale + (1 - final_scale) * SHAPES[shape](progress)


@register("wsd")
@dataclass(frozen=True)
class WSD:
    """Linear warmup, constant phase, then a decay that ends with the last update.

    Args:
        warmup: share of the updates in 0..1 for the linear warmup.
        decay_share: share of the updates in 0..1 for the decay; warmup + decay_share <= 1.
        final_scale: scale > 0 after the last update, as a factor on the base learning rate.
        shape: `1-sqrt` or `linear`.
    """

    warmup: float = 0.01
    decay_share: float = 0.2
    final_scale: float = 1e-4
    shape: DecayShape = "1-sqrt"

    def __post_init__(self) -> None:
        require_decay(self.warmup, self.decay_share, self.final_scale, self.shape)

    def init(self) -> NoState:
        """Return an empty state."""
        return {}

    def update(self, observation: Observation, state: NoState) -> Decision:
        """Return the scale at this step, with a reason when the decay starts; readings are ignored."""
        step, total = observation.step, observation.total_steps
        length = share_to_steps(total, self.decay_share)
        start = total - length
        if step < start:
            return Decision(warmup_scale(step, share_to_steps(total, self.warmup)), state)
        reason = (
            f"decay starts by the clock, {length} updates before the end at {total}" if step == start < total else None
        )
        return Decision(decay_scale(step - start, length, self.final_scale, self.shape), state, reason)
