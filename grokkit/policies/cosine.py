"""Cosine decay from the base learning rate to a final scale, after an optional warmup."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import NoState
from grokkit.policies.wsd import require, require_min_scale, share_to_steps, warmup_scale


@register("cosine")
@dataclass(frozen=True)
class Cosine:
    """Cosine annealing (Loshchilov & Hutter, arXiv 1608.03983) without restarts.

    With `warmup=0` it gives the rates of `torch.optim.lr_scheduler.CosineAnnealingLR`.

    Args:
        warmup: share of the updates in 0..1 for the linear warmup.
        final_scale: scale > 0 after the last update, as a factor on the base learning rate.
    """

    warmup: float = 0.0
    final_scale: float = 1e-4

    def __post_init__(self) -> None:
        require("warmup", self.warmup, 0, 1, "share of the updates")
        require_min_scale("final_scale", self.final_scale)

    def init(self) -> NoState:
        """Return an empty state."""
        return {}

    def update(self, observation: Observation, state: NoState) -> Decision:
        """Return the scale at this step; readings are ignored."""
        rise = share_to_steps(observation.total_steps, self.warmup)
        if observation.step < rise:
            return Decision(warmup_scale(observation.step, rise), state)
        progress = min(1.0, (observation.step - rise) / max(1, observation.total_steps - rise))
        height = (1 + math.cos(math.pi * progress)) / 2
        return Decision(self.final_scale + (1 - self.final_scale) * height, state)
