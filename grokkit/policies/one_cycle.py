"""The 1cycle schedule, as in torch's OneCycleLR."""

from __future__ import annotations

import math
from dataclasses import dataclass

from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import NoState
from grokkit.policies.wsd import require


@register("one_cycle")
@dataclass(frozen=True)
class OneCycle:
    """The learning rate (not the momentum) of the 1cycle policy (Smith & Topin, arXiv 1708.07120), cosine annealed.

    The base learning rate is the peak. The rates are those of `torch.optim.lr_scheduler.OneCycleLR(max_lr=base_lr)`.

    Args:
        pct_start: share of the updates in 0..1 for the rise.
        div_factor: peak rate / first rate, 1..1e6.
        final_div_factor: first rate / last rate, 1..1e6.
    """

    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def __post_init__(self) -> None:
        require("pct_start", self.pct_start, 0, 1, "share of the updates")
        require("div_factor", self.div_factor, 1, 1e6, "peak rate over first rate")
        require("final_div_factor", self.final_div_factor, 1, 1e6, "first rate over last rate")

    def init(self) -> NoState:
        """Return an empty state."""
        return {}

    def update(self, observation: Observation, state: NoState) -> Decision:
        """Return the scale at this step; readings are ignored."""
        first = 1 / self.div_factor
        peak_step, last_step = self.pct_start * observation.total_steps - 1, observation.total_steps - 1
        if observation.step <= peak_step:
            # A rise of a single update has length 0: start at the peak.
            progress = observation.step / peak_step if peak_step > 0 else 1.0
            return Decision(_anneal(first, 1.0, progress), state)
        length = last_step - peak_step
        progress = min(1.0, (observation.step - peak_step) / length) if length > 0 else 1.0
        return Decision(_anneal(1.0, first / self.final_div_factor, progress), state)


def _anneal(start: float, end: float, progress: float) -> float:
    """Interpolate from `start` to `end` along half a cosine."""
    return end + (start - end) / 2 * (math.cos(math.pi * progress) + 1)
