"""Step schedule: reduce the learning rate at fixed milestones."""

from __future__ import annotations

from dataclasses import dataclass

from grokkit.errors import UsageError
from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import NoState
from grokkit.policies.wsd import require, share_to_steps


@register("step")
@dataclass(frozen=True)
class Step:
    """Multiply the rate by `factor` at each milestone, as `torch.optim.lr_scheduler.MultiStepLR` does.

    Args:
        milestones: shares of the updates in 0..1, in ascending order, at most 20.
        factor: factor in 1e-6..0.999999 on the scale at each milestone.
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
            raise UsageError(f"`milestones` must be in ascending order; got {self.milestones}")
        require("factor", self.factor, 1e-6, 0.999999, "factor on the scale")

    def init(self) -> NoState:
        """Return an empty state."""
        return {}

    def update(self, observation: Observation, state: NoState) -> Decision:
        """Return the scale at this step, with a reason at each milestone; readings are ignored."""
        steps = [share_to_steps(observation.total_steps, share) for share in self.milestones]
        scale = self.factor ** sum(observation.step >= milestone for milestone in steps)
        is_milestone = observation.step in steps and observation.step < observation.total_steps
        reason = f"milestone at {observation.step} updates: scale {scale:.3g}" if is_milestone else None
        return Decision(scale, state, reason)
