"""Policies around a policy: they bound, soften or guard what it answers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from grokkit.policies import Decision, Observation, as_policy, get_followed_readings, register_wrapper
from grokkit.policies.wsd import require, require_floor, require_name, share_to_steps, warmup_scale


@dataclass(frozen=True)
class Wrapper:
    """What is around a policy. Its state holds the policy's own under `inner`.

    Args:
        policy: a policy, its name, or a mapping with its name and parameters.
    """

    policy: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", as_policy(self.policy))

    @property
    def reading(self) -> str | None:
        """The reading that the policy inside follows; None where it follows none."""
        return getattr(self.policy, "reading", None)

    @property
    def readings(self) -> frozenset[str]:
        """All that is listened to, inside too."""
        return get_followed_readings(self.policy)

    def init(self) -> dict[str, Any]:
        """The inner policy's state."""
        return {"inner": self.policy.init()}


@register_wrapper("clip")
@dataclass(frozen=True)
class Clip(Wrapper):
    """Keep the scale between two bounds.

    Args:
        low: lowest scale > 0, as a factor on the base learning rate.
        high: highest scale, low..1e6.
    """

    low: float = 1e-4
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_floor("low", self.low)
        require("high", self.high, self.low, 1e6, "factor on the base learning rate")

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The inner scale, clipped."""
        scale, inner, reason = self.policy.update(observation, state["inner"])
        return Decision(min(self.high, max(self.low, scale)), {"inner": inner}, reason)


@register_wrapper("warmup")
@dataclass(frozen=True)
class Warmup(Wrapper):
    """A linear rise in front: the inner scale times 1/n, 2/n, ... 1 during the first n updates.

    Args:
        share: share of the updates in 0..1 that the rise takes.
    """

    share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require("share", self.share, 0, 1, "share of the updates")

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The inner scale on the rise; the inner clock runs along."""
        scale, inner, reason = self.policy.update(observation, state["inner"])
        rise = warmup_scale(observation.step, share_to_steps(observation.total_steps, self.share))
        return Decision(scale * rise, {"inner": inner}, reason)


@register_wrapper("rate_limit")
@dataclass(frozen=True)
class RateLimit(Wrapper):
    """Let the scale change by no more than a factor from one update to the next; it follows at that speed.

    Args:
        factor: largest ratio of two scales that follow each other, 1..1e6.
    """

    factor: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require("factor", self.factor, 1, 1e6, "ratio of two scales")

    def init(self) -> dict[str, Any]:
        """The inner policy's state and the last scale, None before the first."""
        return {**super().init(), "scale": None}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The inner scale, or the nearest that may follow the last one."""
        scale, inner, reason = self.policy.update(observation, state["inner"])
        if state["scale"] is not None:
            scale = min(state["scale"] * self.factor, max(state["scale"] / self.factor, scale))
        return Decision(scale, {"inner": inner, "scale": scale}, reason)


@register_wrapper("guard")
@dataclass(frozen=True)
class Guard(Wrapper):
    """Lower the rate, and leave the policy in the dark for a while, where the loss is not finite or explodes.

    The loss explodes where it is more than `factor` times the median of its last `window` finite readings, of which
    there must be 3 at least; a median of 0 or less, as of a logarithm, says nothing. Then the scale is multiplied by
    `shrink`, for good, and for the next `freeze` readings of the loss nothing is decided and the inner policy hears
    nothing; its clock goes on. `grokkit.train` ends a run whose loss is not finite before a policy could hear of it.

    Args:
        loss: name of the reading that is watched; a loop of one's own delivers it,
            `policy.observe({"train_loss": loss.item()})`.
        factor: of the median that is too much, 1..1e6.
        window: readings of which the median is taken, 3..1000.
        shrink: factor in 1e-6..0.999999 on the scale.
        freeze: readings during which nothing is decided, 0..1000000.
        min_scale: lowest factor > 0 that this guard puts on the policy's own scale.
    """

    loss: str = "train_loss"
    factor: float = 3.0
    window: int = 20
    shrink: float = 0.5
    freeze: int = 10
    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_name("loss", self.loss)
        require("factor", self.factor, 1, 1e6, "of the median")
        require("window", self.window, 3, 1000, "readings", whole=True)
        require("shrink", self.shrink, 1e-6, 0.999999, "factor on the scale")
        require("freeze", self.freeze, 0, 1_000_000, "readings", whole=True)
        require_floor("min_scale", self.min_scale)

    @property
    def readings(self) -> frozenset[str]:
        """The loss, and what the policy inside listens to."""
        return super().readings | {self.loss}

    def init(self) -> dict[str, Any]:
        """The inner state, `level` = the factor on the inner scale, `frozen` = readings left, `recent` = the last
        finite ones."""
        return {**super().init(), "level": 1.0, "frozen": 0, "recent": []}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The inner scale times the guard's level."""
        was_frozen = state["frozen"] > 0
        state, alarm = self._watch(observation, state)
        if was_frozen or alarm:
            observation = dataclasses.replace(observation, readings={})
        scale, inner, reason = self.policy.update(observation, state["inner"])
        told = "; ".join(each for each in (alarm, reason) if each) or None
        return Decision(scale * state["level"], state | {"inner": inner}, told)

    def _watch(self, observation: Observation, state: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        if self.loss not in observation.readings:
            return state, None
        value = float(observation.readings[self.loss])
        middle = median(state["recent"]) if len(state["recent"]) >= 3 else 0.0
        if math.isfinite(value):
            state = state | {"recent": [*state["recent"], value][-self.window :]}
        if state["frozen"]:
            return state | {"frozen": state["frozen"] - 1}, None
        if math.isfinite(value) and (middle <= 0 or value <= self.factor * middle):
            return state, None
        level = max(self.min_scale, state["level"] * self.shrink)
        found = f"more than {self.factor:g} times the median {middle:.4g}" if math.isfinite(value) else "not finite"
        return (
            state | {"level": level, "frozen": self.freeze},
            f"{self.loss} is {value:.4g}, {found}: the rate is taken at {level:.3g} of the policy's, which hears "
            f"nothing for {self.freeze} readings",
        )


@register_wrapper("dry_run")
@dataclass(frozen=True)
class DryRun(Wrapper):
    """Log what a policy would decide while another one sets the rate.

    Args:
        instead: the policy that sets the rate, by default a constant one.
    """

    instead: Any = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "instead", as_policy(self.instead))

    @property
    def readings(self) -> frozenset[str]:
        """What the two listen to."""
        return super().readings | get_followed_readings(self.instead)

    def init(self) -> dict[str, Any]:
        """The states of both."""
        return {**super().init(), "instead": self.instead.init()}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The other policy's scale; the reasons of both, the inner one's with the scale it would have taken."""
        would, inner, because = self.policy.update(observation, state["inner"])
        scale, other, reason = self.instead.update(observation, state["instead"])
        told = [reason] if reason else []
        if because:
            told.append(f"dry run, it would take {would:.3g} of the base rate: {because}")
        return Decision(scale, {"inner": inner, "instead": other}, "; ".join(told) or None)
