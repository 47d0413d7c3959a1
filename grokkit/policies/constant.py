"""Open-loop baseline: a constant learning rate."""

from __future__ import annotations

from dataclasses import dataclass

from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import NoState


@register("constant")
@dataclass(frozen=True)
class Constant:
    """Keep the base learning rate at every update; no parameters."""

    def init(self) -> NoState:
        """Return an empty state."""
        return {}

    def update(self, observation: Observation, state: NoState) -> Decision:
        """Return scale 1."""
        return Decision(1.0, state)
