"""Policies that wrap a policy: they bound, smooth, guard or replace its scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, TypedDict

from grokkit.policies import Decision, Observation, as_policy, get_followed_readings, register_wrapper
from grokkit.policies.wsd import require, require_min_scale, require_name, share_to_steps, warmup_scale


class WrapperState(TypedDict):
    """State of every wrapper; some add their own entries."""

    inner: Mapping[str, Any]  # the wrapped policy's state


@dataclass(frozen=True)
class Wrapper:
    """Base class of policies around a policy.

    Args:
        policy: a policy, its name, or a mapping with its name and parameters.
    """

    policy: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", as_policy(self.policy))

    @property
    def reading(self) -> str | None:
        """The reading that the wrapped policy follows, or None."""
        return getattr(self.policy, "reading", None)

    @property
    def readings(self) -> frozenset[str]:
        """All readings used, including those of the wrapped policy."""
        return get_followed_readings(self.policy)

    def init(self) -> WrapperState:
        """Return the wrapped policy's state."""
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
        require_min_scale("low", self.low)
        require("high", self.high, self.low, 1e6, "factor on the base learning rate")

    def update(self, observation: Observation, state: WrapperState) -> Decision:
        """Return the inner scale, clipped."""
        scale, inner, reason = self.policy.update(observation, state["inner"])
        return Decision(min(self.high, max(self.low, scale)), WrapperState(inner=inner), reason)


@register_wrapper("warmup")
@dataclass(frozen=True)
class Warmup(Wrapper):
    """Linear warmup: the inner scale times 1/n, 2/n, ... 1 during the first n updates.

    Args:
        share: share of the updates in 0..1 for the warmup.
    """

    share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require("share", self.share, 0, 1, "share of the updates")

    def update(self, observation: Observation, state: WrapperState) -> Decision:
        """Return the inner scale times the warmup factor; the wrapped policy sees the same steps."""
        scale, inner, reason = self.policy.update(observation, state["inner"])
        rise = warmup_scale(observation.step, share_to_steps(observation.total_steps, self.share))
        return Decision(scale * rise, WrapperState(inner=inner), reason)


class RateLimitState(WrapperState):
    """State of `RateLimit`."""

    scale: float | None  # the last scale, None before the first


@register_wrapper("rate_limit")
@dataclass(frozen=True)
class RateLimit(Wrapper):
    """Limit the change of the scale from one update to the next to a factor.

    Args:
        factor: largest ratio of two consecutive scales, 1..1e6.
    """

    factor: float = 1.2

    def __post_init__(self) -> None:
        super().__post_init__()
        require("factor", self.factor, 1, 1e6, "ratio of two consecutive scales")

    def init(self) -> RateLimitState:
        """Return the wrapped policy's state, without a last scale."""
        return {**super().init(), "scale": None}

    def update(self, observation: Observation, state: RateLimitState) -> Decision:
        """Return the inner scale, or the nearest one that the limit allows."""
        scale, inner, reason = self.policy.update(observation, state["inner"])
        if state["scale"] is not None:
            scale = min(state["scale"] * self.factor, max(state["scale"] / self.factor, scale))
        return Decision(scale, RateLimitState(inner=inner, scale=scale), reason)


class GuardState(WrapperState):
    """State of `Guard`."""

    level: float  # factor on the wrapped policy's scale
    frozen: int  # remaining readings without a decision
    recent: list[float]  # the last finite readings


@register_wrapper("guard")
@dataclass(frozen=True)
class Guard(Wrapper):
    """Lower the rate, and withhold readings from the policy for a while, if the loss is not finite or explodes.

    The loss explodes if it is more than `factor` times the median of its last `window` finite readings, of which there
    must be at least 3; a median of 0 or less (possible for a logarithm) is not used. The scale is then permanently
    multiplied by `shrink`. For the next `freeze` readings of the loss the guard decides nothing and the wrapped policy
    gets no readings; its steps continue. `grokkit.train` ends a run whose loss is not finite before a policy sees that
    loss.

    Args:
        loss: name of the reading to watch; your own training loop passes it with
            `policy.observe({"train_loss": loss.item()})`.
        factor: multiple of the median that counts as an explosion, 1..1e6.
        window: number of readings in the median, 3..1000.
        shrink: factor in 1e-6..0.999999 on the scale.
        freeze: readings without a decision, 0..1000000.
        min_scale: lower bound > 0 of this guard's factor on the policy's scale.
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
        require("factor", self.factor, 1, 1e6, "multiple of the median")
        require("window", self.window, 3, 1000, "readings", whole=True)
        require("shrink", self.shrink, 1e-6, 0.999999, "factor on the scale")
        require("freeze", self.freeze, 0, 1_000_000, "readings", whole=True)
        require_min_scale("min_scale", self.min_scale)

    @property
    def readings(self) -> frozenset[str]:
        """The loss, and the readings of the wrapped policy."""
        return super().readings | {self.loss}

    def init(self) -> GuardState:
        """Return the initial state."""
        return {**super().init(), "level": 1.0, "frozen": 0, "recent": []}

    def update(self, observation: Observation, state: GuardState) -> Decision:
        """Return the inner scale times the guard's level."""
        was_frozen = state["frozen"] > 0
        state, alarm = self._watch(observation, state)
        if was_frozen or alarm:
            observation = dataclasses.replace(observation, readings={})
        scale, inner, reason = self.policy.update(observation, state["inner"])
        reasons = "; ".join(text for text in (alarm, reason) if text) or None
        return Decision(scale * state["level"], state | {"inner": inner}, reasons)

    def _watch(self, observation: Observation, state: GuardState) -> tuple[GuardState, str | None]:
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
        cause = f"more than {self.factor:g} times the median {middle:.4g}" if math.isfinite(value) else "not finite"
        return (
            state | {"level": level, "frozen": self.freeze},
            f"{self.loss} is {value:.4g}, {cause}: the policy's scale is multiplied by {level:.3g}, and it gets "
            f"no readings during the next {self.freeze} of the loss",
        )


class DryRunState(WrapperState):
    """State of `DryRun`."""

    instead: Mapping[str, Any]  # the state of the policy that sets the rate


@register_wrapper("dry_run")
@dataclass(frozen=True)
class DryRun(Wrapper):
    """Log what a policy would decide while another one sets the rate.

    Args:
        instead: the policy that sets the rate; constant by default.
    """

    instead: Any = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "instead", as_policy(self.instead))

    @property
    def readings(self) -> frozenset[str]:
        """The readings of both policies."""
        return super().readings | get_followed_readings(self.instead)

    def init(self) -> DryRunState:
        """Return the states of both policies."""
        return {**super().init(), "instead": self.instead.init()}

    def update(self, observation: Observation, state: DryRunState) -> Decision:
        """Return the scale of `instead` and the reasons of both policies, with the scale that `policy` would set."""
        dry_scale, inner, dry_reason = self.policy.update(observation, state["inner"])
        scale, other, reason = self.instead.update(observation, state["instead"])
        reasons = [reason] if reason else []
        if dry_reason:
            reasons.append(f"dry run, it would take {dry_scale:.3g} of the base rate: {dry_reason}")
        return Decision(scale, DryRunState(inner=inner, instead=other), "; ".join(reasons) or None)
