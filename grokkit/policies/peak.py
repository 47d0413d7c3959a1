"""What policies that follow a signal share: hearing it, and telling its rise and fall from noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from grokkit.policies import Observation
from grokkit.policies.base import get_reading
from grokkit.policies.wsd import require, require_decay, require_name, share_to_steps, warmup_scale


@dataclass(frozen=True)
class PeakRule:
    """A signal has peaked when it rose from its first local minimum and then stayed below the height it reached.

    A probe is an observation that carries a finite `reading`. After each one, with `delta` = the larger of
    `range_share` x (highest - lowest reading so far) and `errors` x its standard error:

    * the trough is the first local minimum: the lowest reading before a rise by more than `delta` (not the global
      minimum); the peak is the highest reading since the trough;
    * the signal has PEAKED when it rose by more than `delta` from trough to peak and the last `patience` probes in
      a row lay more than `delta` below the peak, at a probe not before `min_stable` of the budget.

    A missing standard error (`<reading>_se`) leaves the last known one in force, 0 before the first. Readings that are
    missing or not finite never decide anything; they are counted.

    Args:
        reading: name of the reading that is followed, the logarithm of something positive: `log_density` of local
            complexity, or for a twin `log_loss` or `log_oui` (see `grokkit.Signal`).
        min_stable: share of the updates in 0..1 before which no peak is declared.
        patience: probes in a row below the peak that it takes, 1..1000000.
        range_share: part of the observed range in 0..1 that a change must exceed.
        errors: number of standard errors, 0..100, that a change must exceed.
    """

    reading: str = "log_density"
    min_stable: float = 0.2
    patience: int = 3
    range_share: float = 0.05
    errors: float = 3.0

    def __post_init__(self) -> None:
        require_name("reading", self.reading)
        require("min_stable", self.min_stable, 0, 1, "share of the updates")
        require("patience", self.patience, 1, 1_000_000, "probes", whole=True)
        require("range_share", self.range_share, 0, 1, "part of the observed range")
        require("errors", self.errors, 0, 100, "standard errors")

    def init_state(self) -> dict[str, Any]:
        """The state before the first probe.

        `last` is the newest reading, `lowest` and `highest` bound all of them, `trough` and `peak` are as in the
        class text, `error` is the last standard error; `probes`, `below`, `ignored` and `missing` count probes,
        those in a row below the peak, readings that were not finite and news of other things only; `peak_step` is the
        step at which the peak was declared.
        """
        return {
            "probes": 0,
            "ignored": 0,
            "missing": 0,
            "below": 0,
            "error": 0.0,
            "last": None,
            "lowest": None,
            "highest": None,
            "trough": None,
            "peak": None,
            "peak_step": None,
        }

    def update_state(self, observation: Observation, state: dict[str, Any]) -> bool:
        """Take this observation's reading into `state`; False where there is none to take."""
        value, counted = get_reading(observation, self.reading, state)
        state.update(counted)
        if value is None:
            return False
        error = observation.readings.get(f"{self.reading}_se", math.nan)
        if math.isfinite(error):
            state["error"] = float(error)
        self._follow(value, state)
        return True

    def _follow(self, value: float, state: dict[str, Any]) -> None:
        """Move range, trough and peak; count probes in a row below the peak."""
        if state["probes"] == 0:
            state.update(lowest=value, highest=value, trough=value, peak=value)
        state["probes"] += 1
        state["lowest"], state["highest"] = min(state["lowest"], value), max(state["highest"], value)
        delta = self.delta(state)
        if value < state["trough"] and state["peak"] - state["trough"] <= delta:
            state["trough"] = state["peak"] = value
        state["peak"] = max(state["peak"], value)
        # Below the peak by more than delta implies the rise: without one the trough is not above this value.
        state["below"] = state["below"] + 1 if value < state["peak"] - delta else 0
        state["last"] = value

    def delta(self, state: dict[str, Any]) -> float:
        """What a change must exceed to be one."""
        return max(self.range_share * (state["highest"] - state["lowest"]), self.errors * state["error"])

    def declare_peak(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> bool:
        """Note the peak in `state` and its evidence in `reasons`, once, at the probe that shows it."""
        early = observation.step < share_to_steps(observation.total_steps, self.min_stable)
        if state["peak_step"] is not None or early or state["below"] < self.patience:
            return False
        state["peak_step"] = observation.step
        reasons.append(
            f"{self.reading} peaked: it rose from {state['trough']:.4g} to {state['peak']:.4g} and was below that by "
            f"more than {self.delta(state):.3g} at the last {state['below']} of {state['probes']} probes "
            f"(now {state['last']:.4g}, standard error {state['error']:.2g})"
        )
        return True

    def init_peak(self, state: dict[str, Any]) -> str:
        """What was seen instead of a peak."""
        if not state["probes"]:
            return (
                f"without a usable {self.reading} ({state['ignored']} were not finite, "
                f"{state['missing']} times the news held other readings only)"
            )
        return (
            f"without a peak in {state['probes']} probes of {self.reading} between {state['lowest']:.4g} and "
            f"{state['highest']:.4g} (delta {self.delta(state):.3g}, {state['ignored']} not finite)"
        )

    def extent(self, news: Iterable[tuple[int, Mapping[str, float]]], total_steps: int) -> dict[str, float]:
        """What this rule makes of a recorded signal.

        Args:
            news: (step, readings) in order, as of `grokkit.signal_history(run)`.
            total_steps: updates of the run.

        Returns: `rise`, the most that it rose from its trough, and `fall`, the most that it fell from its peak after
            a rise, in units of `delta` at that probe; `declared`, the share of the budget at which the peak was
            declared, NaN for never.
        """
        state, rise, fall = self.init_state(), 0.0, 0.0
        for step, readings in news:
            observation = Observation(step, total_steps, 1.0, readings)
            if not self.update_state(observation, state):
                continue
            self.declare_peak(observation, state, [])
            delta = self.delta(state) or math.inf
            rise = max(rise, (state["peak"] - state["trough"]) / delta)
            if state["peak"] - state["trough"] > delta:
                fall = max(fall, (state["peak"] - state["last"]) / delta)
        declared = state["peak_step"]
        return {"rise": rise, "fall": fall, "declared": math.nan if declared is None else declared / total_steps}


@dataclass(frozen=True)
class PeakWithDeadline(PeakRule):
    """A policy that waits for the peak: a linear warm-up, then the base rate, and in the end a fall that comes at the
    latest when `decay_share` of the budget is left.

    Args:
        warmup: share of the updates in 0..1 of the linear rise.
        decay_share: share of the updates in 0..1 that the last fall takes; warmup + decay_share <= 1.
        final_scale: scale > 0 at the end of the fall, as a factor on the rate that it began at.
        shape: shape of the fall, `1-sqrt` or `linear`.
    """

    warmup: float = 0.01
    decay_share: float = 0.2
    final_scale: float = 1e-4
    shape: str = "1-sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay(self.warmup, self.decay_share, self.final_scale, self.shape)

    def leave_warmup(self, observation: Observation, state: dict[str, Any], phase: str, reasons: list[str]) -> None:
        """From the phase `warmup` into `phase`, when the rise is over."""
        updates = share_to_steps(observation.total_steps, self.warmup)
        if state["phase"] == "warmup" and observation.step >= updates:
            state["phase"] = phase
            if updates:
                reasons.append(f"warmup over after {updates} updates, the rate is held")

    def rise(self, observation: Observation) -> float:
        """The scale of the warm-up, 1 after it."""
        return warmup_scale(observation.step, share_to_steps(observation.total_steps, self.warmup))
