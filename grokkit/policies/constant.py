"""The open-loop baseline: one learning rate from the first update to the last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grokkit.policies import Decision, Observation, register


@register("constant")
@dataclass(frozen=True)
class Constant:
    """The base learning rate at every update; it has no parameters."""

    def init(self) -> dict[str, Any]:
        """No state: an empty dict."""
        return {}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """Scale 1."""
        return Decision(1.0, state)
