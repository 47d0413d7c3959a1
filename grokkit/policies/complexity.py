"""LC-WSD: a warmup-stable-decay schedule whose decay is triggered by the peak of the local complexity."""

from __future__ import annotations

from dataclasses import dataclass

from grokkit.policies import Decision, Observation, register
from grokkit.policies.peak import DeadlineState, PeakWithDeadline
from grokkit.policies.wsd import decay_scale, require, share_to_steps


class WSDState(DeadlineState):
    """State of `ComplexityWSD`."""

    decay_step: int | None  # the first step of the decay


@register("lc_wsd")
@dataclass(frozen=True)
class ComplexityWSD(PeakWithDeadline):
    """Three phases, WARMUP -> STABLE -> DECAY; the decay starts at the signal's peak or, without one, at the deadline.

    DECAY starts `hold` of the updates after the peak (see `PeakRule`), or when only `decay_share` of the updates is
    left, whichever comes first. It lasts for `decay_share` of the updates; after an early decay the rate stays at
    `final_scale` until the end (the run is not stopped). Without a peak the rates are those of `wsd`.

    Args (and those of `PeakRule` and `PeakWithDeadline`):
        hold: share of the updates in 0..1 between peak and decay.
    """

    hold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("hold", self.hold, 0, 1, "share of the updates")

    def init(self) -> WSDState:
        """Return the initial state: phase `warmup`, no readings."""
        return {"phase": "warmup", **self.init_state(), "decay_step": None}

    def update(self, observation: Observation, state: WSDState) -> Decision:
        """Return the scale at this step, with a reason if a phase begins or the peak is declared."""
        reasons: list[str] = []
        state = state.copy()
        if state["phase"] != "decay":
            has_reading = self.update_state(observation, state)
            self.leave_warmup(observation, state, "stable", reasons)
            if has_reading and state["phase"] == "stable":
                self.declare_peak(observation, state, reasons)
            self._start_decay(observation, state, reasons)
        return Decision(self._scale(observation, state), state, "; ".join(reasons) or None)

    def _scale(self, observation: Observation, state: WSDState) -> float:
        total = observation.total_steps
        if state["decay_step"] is not None:
            since = observation.step - state["decay_step"]
            return decay_scale(since, share_to_steps(total, self.decay_share), self.final_scale, self.shape)
        return self.warmup_factor(observation)

    def _start_decay(self, observation: Observation, state: WSDState, reasons: list[str]) -> None:
        step, total = observation.step, observation.total_steps
        length = share_to_steps(total, self.decay_share)
        peak_step = state["peak_step"]
        due = peak_step is not None and step >= peak_step + share_to_steps(total, self.hold)
        if step >= total or not (due or step >= total - length):
            return
        state["phase"], state["decay_step"] = "decay", step
        if peak_step is None:
            cause = (
                f"decay starts at the deadline, {length} updates before the end at {total}, "
                f"{self.describe_missing_peak(state)}"
            )
        elif due:
            cause = f"decay starts {step - peak_step} updates after the peak"
        else:
            cause = f"decay starts at the deadline, {length} updates before the end, before the hold is over"
        reasons.append(f"{cause}; it takes {length} updates")
