"""The oldest schedule: the learning rate divided at fixed times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grokkit.errors import UsageError
from grokkit.policies import Decision, Observation, register
from grokkit.policies.wsd import require, share_to_steps


@register("step")
@dataclass(frozen=True)
class Step:
    """Multiply the rate by `factor` at each milestone, as `torch.optim.lr_scheduler.MultiStepLR` does.

    Args:
        milestones: shares of the updates in 0..1, in rising order, 20 at most.
        factor: factor in 1e-6..0.999999 on the scale at each of them.
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.milestones, tuple | list) or len(self.milestones) > 20:
            raise UsageError(
                f"`milestones` must be at most 20 shares of the updates, such as (0.5, 0.75); got {self.milestones!r}"
            )
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for share in self.milestones:
            require("milestones", share, 0, 1, "shares of the updates")
        if list(self.milestones) != sorted(self.milestones):
            raise UsageError(f"`milestones` must be in rising order; got {self.milestones}")
        require("factor", self.factor, 1e-6, 0.999999, "factor on the scale")

    def init(self) -> dict[str, Any]:
        """No state: an empty dict."""
        return {}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale by the clock alone, with a reason at each milestone."""
        at = [share_to_steps(observation.total_steps, share) for share in self.milestones]
        scale = self.factor ** sum(observation.step >= milestone for milestone in at)
        here = observation.step in at and observation.step < observation.total_steps
        reason = f"milestone at {observation.step} updates: scale {scale:.3g}" if here else None
        return Decision(scale, state, reason)
