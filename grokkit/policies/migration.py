"""Policies for the phase after the peak, in which the regions migrate: hold the rate, or control it by the slope.

The regions of the network's partition migrate away from the data after the peak (Humayun et al., arXiv:2402.15555), so
that the local complexity at the data falls.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from grokkit.literals import DecayShape
from grokkit.policies import Decision, Observation, register
from grokkit.policies.peak import DeadlineState, PeakWithDeadline
from grokkit.policies.wsd import decay_scale, require, require_min_scale, share_to_steps


class MigrationState(DeadlineState):
    """State of every `Migration`; a subclass adds its own entries."""

    level: float  # factor on the base rate
    unsloped: int  # readings in MIGRATE without a usable slope


M = TypeVar("M", bound=MigrationState)


@dataclass(frozen=True)
class Migration(PeakWithDeadline, ABC, Generic[M]):
    """Base class with four phases in order, WARMUP -> ASCENT -> MIGRATE -> ANNEAL; the subclass implements MIGRATE.

    ASCENT keeps the base rate until the peak (see `PeakRule`). MIGRATE begins at the peak and changes a level, the
    factor on the base rate. ANNEAL begins when `decay_share` of the updates is left, whatever the readings are, and
    decays from the current level to `final_scale` of it. Without a peak the rates are those of `wsd` of the same shape.
    """

    shape: DecayShape = "linear"

    def init(self) -> MigrationState:
        """Return the initial state, to which a subclass adds the entries of MIGRATE."""
        return {"phase": "warmup", **self.init_state(), "level": 1.0, "unsloped": 0}

    @abstractmethod
    def migrate(self, observation: Observation, state: M, reasons: list[str]) -> None:
        """Process one reading in MIGRATE: update `state["level"]` and append to `reasons` if it changes."""

    def update(self, observation: Observation, state: M) -> Decision:
        """Return the scale at this step, with a reason if a phase begins or the level changes."""
        reasons: list[str] = []
        state = state.copy()
        if state["phase"] != "anneal":
            has_reading = self.update_state(observation, state)
            self.leave_warmup(observation, state, "ascent", reasons)
            if has_reading and state["phase"] == "migrate":
                self.migrate(observation, state, reasons)
            elif has_reading and state["phase"] == "ascent" and self.declare_peak(observation, state, reasons):
                state["phase"] = "migrate"
            self._start_anneal(observation, state, reasons)
        return Decision(self._scale(observation, state), state, "; ".join(reasons) or None)

    def _scale(self, observation: Observation, state: MigrationState) -> float:
        total = observation.total_steps
        if state["phase"] == "anneal":
            length = share_to_steps(total, self.decay_share)
            since = observation.step - (total - length)
            return float(state["level"] * decay_scale(since, length, self.final_scale, self.shape))
        return float(state["level"] * self.warmup_factor(observation))

    def _start_anneal(self, observation: Observation, state: MigrationState, reasons: list[str]) -> None:
        total = observation.total_steps
        length = share_to_steps(total, self.decay_share)
        if not total - length <= observation.step < total:
            return
        detail = (
            f"at {state['level']:.3g} of the base rate"
            if state["peak_step"] is not None
            else self.describe_missing_peak(state)
        )
        state["phase"] = "anneal"
        reasons.append(f"the last fall starts at the deadline, {length} updates before the end at {total}, {detail}")

    def slope(self, observation: Observation, state: MigrationState, side: str = "") -> float | None:
        """Return this reading's slope per unit of log step, or the upper end of its interval if `side` is `_high`.

        None if it is missing or not finite, which `state["unsloped"]` counts.
        """
        detail = observation.readings.get(f"{self.reading}_slope{side}", math.nan)
        if not math.isfinite(detail):
            state["unsloped"] += 1
            return None
        return float(detail)


class HoldState(MigrationState):
    """State of `ComplexityHold`."""

    level_free: int  # readings in a row without a significant fall
    lowered: int  # number of reductions
    returned: bool  # whether one was undone
    resting: int  # remaining readings of the cooldown
    bottom: float | None  # lowest reading since the last change, None before MIGRATE


@register("lc_hold")
@dataclass(frozen=True)
class ComplexityHold(Migration[HoldState]):
    """LC-hold: keep the rate while local complexity falls significantly, reduce it otherwise.

    In MIGRATE, at each reading outside the `cooldown`:

    * a reading more than `delta` above the lowest since the last change undoes one reduction, once in a run;
    * else, a slope whose interval lies below 0 keeps the rate;
    * else, after `flat` such readings in a row, the level is multiplied by `factor`, at most `most` times.

    Args (and those of `PeakRule` and `PeakWithDeadline`, with `shape="linear"`):
        flat: readings in a row whose slope may be 0 before a reduction, 1..1000000.
        factor: factor in 0.01..0.999999 on the level.
        most: maximum number of reductions, 0..100.
        cooldown: readings after a change without a decision, 0..1000000.
    """

    flat: int = 3
    factor: float = 0.5
    most: int = 4
    cooldown: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("flat", self.flat, 1, 1_000_000, "readings", whole=True)
        require("factor", self.factor, 0.01, 0.999999, "factor on the level")
        require("most", self.most, 0, 100, "times", whole=True)
        require("cooldown", self.cooldown, 0, 1_000_000, "readings", whole=True)

    def init(self) -> HoldState:
        """Return the initial state."""
        return {**super().init(), "level_free": 0, "lowered": 0, "returned": False, "resting": 0, "bottom": None}

    def migrate(self, observation: Observation, state: HoldState, reasons: list[str]) -> None:
        value = float(observation.readings[self.reading])
        bottom = value if state["bottom"] is None else min(state["bottom"], value)
        state["bottom"] = bottom
        if state["resting"]:
            state["resting"] -= 1
            return
        if state["lowered"] and not state["returned"] and value > bottom + self.delta(state):
            self._change_level(state, 1 / self.factor)
            state["returned"] = True
            reasons.append(
                f"{self.reading} rose from {bottom:.4g} to {value:.4g}, by more than {self.delta(state):.3g}: one "
                f"reduction is undone, level {state['level']:.3g}"
            )
            return
        high = self.slope(observation, state, "_high")
        if high is None:
            return
        state["level_free"] = state["level_free"] + 1 if high >= 0 else 0
        if state["level_free"] >= self.flat and state["lowered"] < self.most:
            probes = state["level_free"]
            self._change_level(state, self.factor)
            state["lowered"] += 1
            reasons.append(
                f"{self.reading} did not fall significantly at {probes} probes in a row (upper end of its slope "
                f"{high:.3g} per unit of log step): level {state['level']:.3g}, lowered {state['lowered']} of at most "
                f"{self.most} times"
            )

    def _change_level(self, state: HoldState, factor: float) -> None:
        state["level"] *= factor
        state["level_free"], state["resting"], state["bottom"] = 0, self.cooldown, state["last"]


class ServoState(MigrationState):
    """State of `ComplexityServo`."""

    speeds: list[float]  # of the first readings in MIGRATE
    target: float | None  # their median, None until there are `aim` of them


@register("lc_servo")
@dataclass(frozen=True)
class ComplexityServo(Migration[ServoState]):
    """LC-velocity servo: control the rate so that local complexity keeps falling at the speed it had after its peak.

    The speed is v = - slope per unit of log step. Its target is the median speed at the first `aim` readings in
    MIGRATE; if that is not above 0, the rate is kept. From then on, at each reading, with the error
    e = (target - v) / target clipped to -1..1, the level is multiplied by exp(gain x e) unless |e| <= `deadband`: up if
    the fall is too slow, down if it is too fast. There is no integral term.

    Args (and those of `PeakRule` and `PeakWithDeadline`, with `shape="linear"`):
        gain: proportional gain, 0..0.18, so that no reading changes the rate by more than a factor of 1.2.
        deadband: error in 0..1 that has no effect.
        aim: number of readings that set the target, 1..1000000.
        min_scale: lowest level > 0, as a factor on the base learning rate.
        max_scale: highest level, 1..1000; 1 never exceeds the base rate.
    """

    gain: float = 0.1
    deadband: float = 0.1
    aim: int = 5
    min_scale: float = 0.01
    max_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("gain", self.gain, 0, 0.18, "proportional gain")
        require("deadband", self.deadband, 0, 1, "relative error")
        require("aim", self.aim, 1, 1_000_000, "readings", whole=True)
        require_min_scale("min_scale", self.min_scale)
        require("max_scale", self.max_scale, 1, 1000, "factor on the base learning rate")

    def init(self) -> ServoState:
        """Return the initial state."""
        return {**super().init(), "speeds": [], "target": None}

    def migrate(self, observation: Observation, state: ServoState, reasons: list[str]) -> None:
        slope = self.slope(observation, state)
        if slope is None:
            return
        target = state["target"]
        if target is None:
            self._set_target(-slope, state, reasons)
        elif target > 0:
            self._steer(-slope, target, state, reasons)

    def _set_target(self, speed: float, state: ServoState, reasons: list[str]) -> None:
        state["speeds"] = [*state["speeds"], speed]
        if len(state["speeds"]) == self.aim:
            target = state["target"] = float(median(state["speeds"]))
            detail = "this is the target" if target > 0 else "not above 0, so the rate is kept"
            reasons.append(
                f"{self.reading} falls by {target:.3g} per unit of log step, the median of {self.aim} probes: {detail}"
            )

    def _steer(self, speed: float, target: float, state: ServoState, reasons: list[str]) -> None:
        error = min(1.0, max(-1.0, (target - speed) / target))
        if abs(error) <= self.deadband:
            return
        old = state["level"]
        state["level"] = min(self.max_scale, max(self.min_scale, old * math.exp(self.gain * error)))
        if state["level"] != old:
            comparison = "slower" if error > 0 else "faster"
            reasons.append(
                f"{self.reading} falls by {speed:.3g} per unit of log step, {comparison} than {target:.3g}: "
                f"level {old:.3g} to {state['level']:.3g}"
            )
