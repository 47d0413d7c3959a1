"""Policies for the time after the peak, while local complexity falls: hold the rate, or steer it by the speed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from statistics import median
from typing import Any

from grokkit.policies import Decision, Observation, register
from grokkit.policies.peak import PeakWithDeadline
from grokkit.policies.wsd import decay_scale, require, require_floor, share_to_steps


@dataclass(frozen=True)
class Migration(PeakWithDeadline, ABC):
    """WARMUP -> ASCENT -> MIGRATE -> ANNEAL, one way; what happens in MIGRATE is the subclass's.

    ASCENT keeps the base rate until the peak (see `PeakRule`). MIGRATE begins there and moves a level by which the
    base rate is multiplied. ANNEAL begins when `decay_share` of the budget is left, whatever was heard, and falls from
    the present level to `final_scale` of it. Without a peak the rates are those of `wsd` of the same shape.
    """

    shape: str = "linear"

    def init(self) -> dict[str, Any]:
        """Phase `warmup`, nothing heard, level 1; `unsloped` counts probes in MIGRATE without a usable slope."""
        return {"phase": "warmup", **self.init_state(), "level": 1.0, "unsloped": 0, **self.init_migration()}

    @abstractmethod
    def init_migration(self) -> dict[str, Any]:
        """What the subclass keeps besides."""

    @abstractmethod
    def migrate(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        """One probe in MIGRATE: move `state["level"]` and say why."""

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale at this step; a reason where a phase begins or the level moves."""
        reasons: list[str] = []
        state = dict(state)
        if state["phase"] != "anneal":
            probed = self.update_state(observation, state)
            self.leave_warmup(observation, state, "ascent", reasons)
            if probed and state["phase"] == "migrate":
                self.migrate(observation, state, reasons)
            elif probed and state["phase"] == "ascent" and self.declare_peak(observation, state, reasons):
                state["phase"] = "migrate"
            self._start_anneal(observation, state, reasons)
        return Decision(self._scale(observation, state), state, "; ".join(reasons) or None)

    def _scale(self, observation: Observation, state: dict[str, Any]) -> float:
        total = observation.total_steps
        if state["phase"] == "anneal":
            length = share_to_steps(total, self.decay_share)
            since = observation.step - (total - length)
            return float(state["level"] * decay_scale(since, length, self.final_scale, self.shape))
        return float(state["level"] * self.rise(observation))

    def _start_anneal(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        total = observation.total_steps
        length = share_to_steps(total, self.decay_share)
        if not total - length <= observation.step < total:
            return
        found = f"at {state['level']:.3g} of the base rate" if state["peak_step"] is not None else self.init_peak(state)
        state["phase"] = "anneal"
        reasons.append(f"the last fall starts at the deadline, {length} updates before the end at {total}, {found}")

    def slope(self, observation: Observation, state: dict[str, Any], side: str = "") -> float | None:
        """This probe's slope per unit of log step, or with `side` `_high` the upper end of its interval; None, and
        counted, where it is missing or not finite."""
        found = observation.readings.get(f"{self.reading}_slope{side}", math.nan)
        if not math.isfinite(found):
            state["unsloped"] += 1
            return None
        return float(found)


@register("lc_hold")
@dataclass(frozen=True)
class ComplexityHold(Migration):
    """LC-hold: keep the rate as long as the local complexity is surely falling, halve it where that can't be told.

    In MIGRATE, at each probe outside the `cooldown`:

    * a reading more than `delta` above the lowest since the last move gives one halving back, once in a run;
    * else a slope whose interval lies below 0 keeps the rate;
    * else, after `flat` such probes in a row, the level is multiplied by `factor`, at most `most` times.

    Args (and those of `PeakRule` and `PeakWithDeadline`, with `shape="linear"`):
        flat: probes in a row whose slope may be 0 that it takes, 1..1000000.
        factor: factor in 0.01..0.999999 on the level.
        most: times that the level may be lowered, 0..100.
        cooldown: probes after a move during which nothing is decided, 0..1000000.
    """

    flat: int = 3
    factor: float = 0.5
    most: int = 4
    cooldown: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("flat", self.flat, 1, 1_000_000, "probes", whole=True)
        require("factor", self.factor, 0.01, 0.999999, "factor on the level")
        require("most", self.most, 0, 100, "times", whole=True)
        require("cooldown", self.cooldown, 0, 1_000_000, "probes", whole=True)

    def init_migration(self) -> dict[str, Any]:
        """`level_free`: probes in a row without a sure fall; `lowered`: times; `returned`: whether one was given back;
        `resting`: probes of the cooldown left; `bottom`: the lowest reading since the last move."""
        return {"level_free": 0, "lowered": 0, "returned": False, "resting": 0, "bottom": None}

    def migrate(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        value = state["last"]
        bottom = value if state["bottom"] is None else min(state["bottom"], value)
        state["bottom"] = bottom
        if state["resting"]:
            state["resting"] -= 1
            return
        if state["lowered"] and not state["returned"] and value > bottom + self.delta(state):
            self._move(state, 1 / self.factor, returned=True)
            reasons.append(
                f"{self.reading} rose from {bottom:.4g} to {value:.4g}, by more than {self.delta(state):.3g}: one "
                f"lowering is given back, level {state['level']:.3g}"
            )
            return
        high = self.slope(observation, state, "_high")
        if high is None:
            return
        state["level_free"] = state["level_free"] + 1 if high >= 0 else 0
        if state["level_free"] >= self.flat and state["lowered"] < self.most:
            probes = state["level_free"]
            self._move(state, self.factor, lowered=state["lowered"] + 1)
            reasons.append(
                f"{self.reading} was not surely falling at {probes} probes in a row (upper end of its slope "
                f"{high:.3g} per unit of log step): level {state['level']:.3g}, lowered {state['lowered']} of at most "
                f"{self.most} times"
            )

    def _move(self, state: dict[str, Any], factor: float, **changes: Any) -> None:
        state.update(level=state["level"] * factor, level_free=0, resting=self.cooldown, bottom=state["last"])
        state.update(changes)


@register("lc_servo")
@dataclass(frozen=True)
class ComplexityServo(Migration):
    """LC-velocity servo: steer the rate so that the local complexity falls at the speed it had after its peak.

    The speed is v = - slope per unit of log step. Its target is the median speed of the first `aim` probes in MIGRATE;
    where that is not above 0 there is nothing to hold and the rate stays. From then on, at each probe, with the error
    e = (target - v) / target kept in -1..1, the level is multiplied by exp(gain x e) unless |e| <= `deadband`: up
    where the fall is too slow, down where it is too fast. It integrates nothing.

    Args (and those of `PeakRule` and `PeakWithDeadline`, with `shape="linear"`):
        gain: of the servo, 0..0.18: no probe moves the rate by more than 1.2 times.
        deadband: error in 0..1 that is left alone.
        aim: probes that set the target, 1..1000000.
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
        require("gain", self.gain, 0, 0.18, "of the servo")
        require("deadband", self.deadband, 0, 1, "relative error")
        require("aim", self.aim, 1, 1_000_000, "probes", whole=True)
        require_floor("min_scale", self.min_scale)
        require("max_scale", self.max_scale, 1, 1000, "factor on the base learning rate")

    def init_migration(self) -> dict[str, Any]:
        """`speeds`: of the first probes; `target`: None before it is set."""
        return {"speeds": [], "target": None}

    def migrate(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        slope = self.slope(observation, state)
        if slope is None:
            return
        if len(state["speeds"]) < self.aim:
            self._aim(-slope, state, reasons)
        elif state["target"] > 0:
            self._steer(-slope, state, reasons)

    def _aim(self, speed: float, state: dict[str, Any], reasons: list[str]) -> None:
        state["speeds"] = [*state["speeds"], speed]
        if len(state["speeds"]) == self.aim:
            state["target"] = float(median(state["speeds"]))
            found = "to be held" if state["target"] > 0 else "no fall to hold: the rate stays"
            reasons.append(
                f"{self.reading} falls by {state['target']:.3g} per unit of log step, the median of {self.aim} probes: "
                f"{found}"
            )

    def _steer(self, speed: float, state: dict[str, Any], reasons: list[str]) -> None:
        error = min(1.0, max(-1.0, (state["target"] - speed) / state["target"]))
        if abs(error) <= self.deadband:
            return
        old = state["level"]
        state["level"] = min(self.max_scale, max(self.min_scale, old * math.exp(self.gain * error)))
        if state["level"] != old:
            word = "slower" if error > 0 else "faster"
            reasons.append(
                f"{self.reading} falls by {speed:.3g} per unit of log step, {word} than {state['target']:.3g}: level "
                f"{old:.3g} to {state['level']:.3g}"
            )
