"""Detect the peak of a noisy signal; base class of the policies that wait for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from grokkit.literals import DecayShape
from grokkit.policies import Observation
from grokkit.policies.base import ReadingCounts, get_reading
from grokkit.policies.wsd import require, require_decay, require_name, share_to_steps, warmup_scale


class PeakState(ReadingCounts):
    """What `PeakRule` keeps of the readings; those that may be None are so before the first one."""

    probes: int  # readings so far
    below: int  # readings in a row below the peak
    error: float  # the last known standard error
    last: float | None  # the newest reading
    lowest: float | None  # of all readings
    highest: float | None  # of all readings
    trough: float | None  # see `PeakRule`
    peak: float | None  # see `PeakRule`
    peak_step: int | None  # step at which the peak was declared


@dataclass(frozen=True)
class PeakRule:
    """Peak detector: a signal has peaked if it rose from its first local minimum and then stayed below its maximum.

    After each finite reading, with `delta` = the larger of
    `range_share` x (highest - lowest reading so far) and `errors` x its standard error:

    * the trough is the first local minimum: the lowest reading before a rise by more than `delta` (not the global
      minimum); the peak is the highest reading since the trough;
    * the signal has PEAKED if it rose by more than `delta` from trough to peak and the last `patience` readings
      in a row lay more than `delta` below the peak, at a step not before `min_stable` of the updates.

    If the standard error (`<reading>_se`) is missing, the last known one is used, 0 before the first. Readings that are
    missing or not finite have no effect; they are counted.

    Args:
        reading: name of the reading to follow, the logarithm of a positive quantity: `log_density` of local
            complexity, or, for a comparison signal, `log_loss` or `log_oui` (see `grokkit.Signal`).
        min_stable: share of the updates in 0..1 before which no peak is declared.
        patience: readings in a row below the peak before it is declared, 1..1000000.
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
        require("patience", self.patience, 1, 1_000_000, "readings", whole=True)
        require("range_share", self.range_share, 0, 1, "part of the observed range")
        require("errors", self.errors, 0, 100, "standard errors")

    def init_state(self) -> PeakState:
        """Return the state before the first reading."""
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

    def update_state(self, observation: Observation, state: PeakState) -> bool:
        """Update `state` with this observation's reading; return False if there is no usable one."""
        value, counted = get_reading(observation, self.reading, state)
        state.update(counted)
        if value is None:
            return False
        error = observation.readings.get(f"{self.reading}_se", math.nan)
        if math.isfinite(error):
            state["error"] = float(error)
        self._update_extremes(value, state)
        return True

    def _update_extremes(self, value: float, state: PeakState) -> None:
        """Update range, trough and peak; count readings in a row below the peak."""
        state["probes"] += 1
        state["lowest"] = value if state["lowest"] is None else min(state["lowest"], value)
        state["highest"] = value if state["highest"] is None else max(state["highest"], value)
        delta = self.delta(state)
        trough = value if state["trough"] is None else state["trough"]
        peak = value if state["peak"] is None else state["peak"]
        if value < trough and peak - trough <= delta:
            trough = peak = value
        peak = max(peak, value)
        # Being more than delta below the peak implies a rise: without one, the trough is not above this value.
        state["below"] = state["below"] + 1 if value < peak - delta else 0
        state["last"], state["trough"], state["peak"] = value, trough, peak

    def delta(self, state: PeakState) -> float:
        """Return the threshold that a change must exceed to count."""
        return max(self.range_share * _subtract(state["highest"], state["lowest"]), self.errors * state["error"])

    def declare_peak(self, observation: Observation, state: PeakState, reasons: list[str]) -> bool:
        """Record the peak in `state` and its evidence in `reasons`, once; return True at the reading that shows it."""
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

    def describe_missing_peak(self, state: PeakState) -> str:
        """Return a phrase that describes the readings of a run without a peak."""
        if not state["probes"]:
            return (
                f"without a usable {self.reading} ({state['ignored']} were not finite, {state['missing']} times the "
                "news held other readings only)"
            )
        return (
            f"without a peak in {state['probes']} probes of {self.reading} between {state['lowest']:.4g} and "
            f"{state['highest']:.4g} (delta {self.delta(state):.3g}, {state['ignored']} not finite)"
        )

    def extent(self, history: Iterable[tuple[int, Mapping[str, float]]], total_steps: int) -> dict[str, float]:
        """Apply this rule to a recorded signal.

        Args:
            history: (step, readings) in order, as returned by `grokkit.signal_history(run)`.
            total_steps: updates of the run.

        Returns: `rise`, the largest rise from the trough, and `fall`, the largest fall from the peak after a rise, in
            units of `delta` at that reading; `declared`, the share of the updates at which the peak was declared, NaN
            if never.
        """
        state, rise, fall = self.init_state(), 0.0, 0.0
        for step, readings in history:
            observation = Observation(step, total_steps, 1.0, readings)
            if not self.update_state(observation, state):
                continue
            self.declare_peak(observation, state, [])
            delta = self.delta(state) or math.inf
            risen = _subtract(state["peak"], state["trough"])
            rise = max(rise, risen / delta)
            if risen > delta:
                fall = max(fall, _subtract(state["peak"], state["last"]) / delta)
        declared = state["peak_step"]
        return {"rise": rise, "fall": fall, "declared": math.nan if declared is None else declared / total_steps}


def _subtract(high: float | None, low: float | None) -> float:
    """Return the difference of two readings, 0 before the first one."""
    return 0.0 if high is None or low is None else high - low


class DeadlineState(PeakState):
    """State of a policy that waits for the peak."""

    phase: str  # `warmup`, then a phase of the subclass


@dataclass(frozen=True)
class PeakWithDeadline(PeakRule):
    """Base class of policies that wait for the peak: linear warmup, base rate, final decay.

    The decay starts at the latest when `decay_share` of the updates is left.

    Args:
        warmup: share of the updates in 0..1 for the linear warmup.
        decay_share: share of the updates in 0..1 for the final decay; warmup + decay_share <= 1.
        final_scale: scale > 0 at the end of the decay, as a factor on the rate at its start.
        shape: shape of the decay, `1-sqrt` or `linear`.
    """

    warmup: float = 0.01
    decay_share: float = 0.2
    final_scale: float = 1e-4
    shape: DecayShape = "1-sqrt"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_decay(self.warmup, self.decay_share, self.final_scale, self.shape)

    def leave_warmup(self, observation: Observation, state: DeadlineState, phase: str, reasons: list[str]) -> None:
        """Change from phase `warmup` to `phase` if the warmup is over."""
        updates = share_to_steps(observation.total_steps, self.warmup)
        if state["phase"] == "warmup" and observation.step >= updates:
            state["phase"] = phase
            if updates:
                reasons.append(f"warmup ends after {updates} updates, the rate is held")

    def warmup_factor(self, observation: Observation) -> float:
        """Return the scale of the warmup, 1 after it."""
        return warmup_scale(observation.step, share_to_steps(observation.total_steps, self.warmup))
