"""Half a cosine from the base learning rate to a floor, after an optional warmup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from grokkit.policies import Decision, Observation, register
from grokkit.policies.wsd import require, require_floor, share_to_steps, warmup_scale


@register("cosine")
@dataclass(frozen=True)
class Cosine:
    """Cosine annealing (Loshchilov & Hutter, arXiv 1608.03983) without restarts.

    With `warmup=0` it gives the rates of `torch.optim.lr_scheduler.CosineAnnealingLR`.

    Args:
        warmup: share of the updates in 0..1 that a linear rise takes first.
        final_scale: scale > 0 reached after the last update, as a factor on the base learning rate.
    """

    warmup: float = 0.0
    final_scale: float = 1e-4

    def __post_init__(self) -> None:
        require("warmup", self.warmup, 0, 1, "share of the updates")
        require_floor("final_scale", self.final_scale)

    def init(self) -> dict[str, Any]:
        """No state: an empty dict."""
        return {}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale by the clock alone."""
        rise = share_to_steps(observation.total_steps, self.warmup)
        if observation.step < rise:
            return Decision(warmup_scale(observation.step, rise), state)
        progress = min(1.0, (observation.step - rise) / max(1, observation.total_steps - rise))
        height = (1 + math.cos(math.pi * progress)) / 2
        return Decision(self.final_scale + (1 - self.final_scale) * height, state)
