"""LC-WSD: a warmup-stable-decay schedule whose decay is triggered by the peak of the local complexity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from grokkit.errors import UsageError
from grokkit.policies import Decision, Observation, register
from grokkit.policies.wsd import decay_scale, require, require_decay, share_of, warmup_scale


@register("lc_wsd")
@dataclass(frozen=True)
class ComplexityWSD:
    """WARMUP -> STABLE -> DECAY, one way; the decay starts at the signal's peak or, without one, at the deadline.

    A probe is an observation that carries a finite `reading`. After each one, with `delta` = the larger of
    `range_share` x (highest - lowest reading so far) and `errors` x its standard error:

    * the trough is the first local minimum: the lowest reading before a rise by more than `delta` (not the global
      minimum); the peak is the highest reading since the trough;
    * the signal has PEAKED when it rose by more than `delta` from trough to peak and the last `patience` probes in
      a row lay more than `delta` below the peak, at a probe not before `min_stable` of the budget.

    DECAY starts `hold` of the budget after that, or when only `decay_share` of the budget is left, whichever is first.
    It takes `decay_share` of the budget; after an early decay the rate stays at `final_scale` until the end (the
    run is not stopped). Without a peak the rates are those of `wsd`. A missing standard error leaves the last
    known one in force, 0 before the first; readings that are missing or not finite never decide anything.

    Args:
        reading: name of the reading that is followed, a logarithm of a density.
        error: name of the reading with its standard error, in the same unit.
        warmup: share of the updates in 0..1 of the linear rise.
        min_stable: share of the updates in 0..1 before which no peak is declared.
        patience: probes in a row below the peak that it takes, 1..1000000.
        range_share: part of the observed range in 0..1 that a change must exceed.
        errors: number of standard errors, 0..100, that a change must exceed.
        hold: share of the updates in 0..1 between peak and decay.
        decay_share: share of the updates in 0..1 that the decay takes; warmup + decay_share <= 1.
        final_scale: scale > 0 at the end of the decay, as a factor on the base learning rate.
        shape: shape of the decay, `1-sqrt` or `linear`.
    """

    reading: str = "log_density"
    error: str = "log_density_se"
    warmup: float = 0.01
    min_stable: float = 0.2
    patience: int = 3
    range_share: float = 0.05
    errors: float = 3.0
    hold: float = 0.0
    decay_share: float = 0.2
    final_scale: float = 1e-4
    shape: str = "1-sqrt"

    def __post_init__(self) -> None:
        for name in ("reading", "error"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UsageError(f"`{name}` must be the name of a reading; got {getattr(self, name)!r}")
        require("min_stable", self.min_stable, 0, 1, "share of the updates")
        require("patience", self.patience, 1, 1_000_000, "probes", whole=True)
        require("range_share", self.range_share, 0, 1, "part of the observed range")
        require("errors", self.errors, 0, 100, "standard errors")
        require("hold", self.hold, 0, 1, "share of the updates")
        require_decay(self.warmup, self.decay_share, self.final_scale, self.shape)

    def init(self) -> dict[str, Any]:
        """Phase `warmup`, nothing seen.

        `last` is the newest reading, `lowest` and `highest` bound all of them, `trough` and `peak` are as in the
        class text, `error` is the last standard error; `probes`, `below`, `ignored` and `missing` count probes,
        those in a row below the peak, readings that were not finite and news of other things only; `peak_step`
        and `decay_step` are the steps of the two decisions.
        """
        return {
            "phase": "warmup", "probes": 0, "ignored": 0, "missing": 0, "below": 0, "error": 0.0, "last": None,
            "lowest": None, "highest": None, "trough": None, "peak": None, "peak_step": None, "decay_step": None,
        }  # fmt: skip

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale at this step; a reason where a phase begins or the peak is declared."""
        reasons: list[str] = []
        state = dict(state)
        if state["phase"] != "decay":
            probed = self._probe(observation, state)
            self._leave_warmup(observation, state, reasons)
            if probed and state["peak_step"] is None:
                self._declare_peak(observation, state, reasons)
            self._start_decay(observation, state, reasons)
        return Decision(self._scale(observation, state), state, "; ".join(reasons) or None)

    def _scale(self, observation: Observation, state: dict[str, Any]) -> float:
        total = observation.total_steps
        if state["phase"] == "decay":
            since = observation.step - state["decay_step"]
            return decay_scale(since, share_of(total, self.decay_share), self.final_scale, self.shape)
        return warmup_scale(observation.step, share_of(total, self.warmup))

    def _probe(self, observation: Observation, state: dict[str, Any]) -> bool:
        """Take this observation's reading into `state`; False where there is none to take."""
        if not observation.readings:
            return False
        if self.reading not in observation.readings:
            state["missing"] += 1
            return False
        value = observation.readings[self.reading]
        if not math.isfinite(value):
            state["ignored"] += 1
            return False
        error = observation.readings.get(self.error, math.nan)
        if math.isfinite(error):
            state["error"] = float(error)
        self._follow(float(value), state)
        return True

    def _follow(self, value: float, state: dict[str, Any]) -> None:
        """Move range, trough and peak; count probes in a row below the peak."""
        if state["probes"] == 0:
            state.update(lowest=value, highest=value, trough=value, peak=value)
        state["probes"] += 1
        state["lowest"], state["highest"] = min(state["lowest"], value), max(state["highest"], value)
        delta = self._delta(state)
        if value < state["trough"] and state["peak"] - state["trough"] <= delta:
            state["trough"] = state["peak"] = value
        state["peak"] = max(state["peak"], value)
        # Below the peak by more than delta implies the rise: without one the trough is not above this value.
        state["below"] = state["below"] + 1 if value < state["peak"] - delta else 0
        state["last"] = value

    def _delta(self, state: dict[str, Any]) -> float:
        return max(self.range_share * (state["highest"] - state["lowest"]), self.errors * state["error"])

    def _leave_warmup(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        updates = share_of(observation.total_steps, self.warmup)
        if state["phase"] == "warmup" and observation.step >= updates:
            state["phase"] = "stable"
            if updates:
                reasons.append(f"warmup over after {updates} updates, the rate is held")

    def _declare_peak(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        early = observation.step < share_of(observation.total_steps, self.min_stable)
        if early or state["below"] < self.patience:
            return
        state["peak_step"] = observation.step
        reasons.append(
            f"{self.reading} peaked: it rose from {state['trough']:.4g} to {state['peak']:.4g} and was below that by "
            f"more than {self._delta(state):.3g} at the last {state['below']} of {state['probes']} probes "
            f"(now {state['last']:.4g}, standard error {state['error']:.2g})"
        )

    def _start_decay(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        step, total = observation.step, observation.total_steps
        length = share_of(total, self.decay_share)
        peaked = state["peak_step"] is not None
        due = peaked and step >= state["peak_step"] + share_of(total, self.hold)
        if not due and step < total - length:
            return
        state.update(phase="decay", decay_step=step)
        if due:
            cause = f"decay starts {step - state['peak_step']} updates after the peak"
        elif peaked:
            cause = f"decay starts at the deadline, {length} updates before the end, though the hold is not over"
        else:
            cause = f"decay starts at the deadline, {length} updates before the end at {total}, {self._unpeaked(state)}"
        reasons.append(f"{cause}; it takes {length} updates")

    def _unpeaked(self, state: dict[str, Any]) -> str:
        """What was seen instead of a peak."""
        if not state["probes"]:
            return (
                f"without a usable {self.reading} ({state['ignored']} were not finite, "
                f"{state['missing']} times the news held other readings only)"
            )
        return (
            f"without a peak in {state['probes']} probes of {self.reading} between {state['lowest']:.4g} and "
            f"{state['highest']:.4g} (delta {self._delta(state):.3g}, {state['ignored']} not finite)"
        )
