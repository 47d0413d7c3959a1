"""LC-WSD: a warmup-stable-decay schedule whose decay is triggered by the peak of the local complexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grokkit.policies import Decision, Observation, register
from grokkit.policies.peak import PeakWithDeadline
from grokkit.policies.wsd import decay_scale, require, share_to_steps


@register("lc_wsd")
@dataclass(frozen=True)
class ComplexityWSD(PeakWithDeadline):
    """WARMUP -> STABLE -> DECAY, one way; the decay starts at the signal's peak or, without one, at the deadline.

    DECAY starts `hold` of the budget after the peak (see `PeakRule`), or when only `decay_share` of the budget is
    left, whichever is first. It takes `decay_share` of the budget; after an early decay the rate stays at
    `final_scale` until the end (the run is not stopped). Without a peak the rates are those of `wsd`.

    Args (and those of `PeakRule` and `PeakWithDeadline`):
        hold: share of the updates in 0..1 between peak and decay.
    """

    hold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("hold", self.hold, 0, 1, "share of the updates")

    def init(self) -> dict[str, Any]:
        """Phase `warmup`, nothing heard, and `decay_step`, where the decay began."""
        return {"phase": "warmup", **self.init_state(), "decay_step": None}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale at this step; a reason where a phase begins or the peak is declared."""
        reasons: list[str] = []
        state = dict(state)
        if state["phase"] != "decay":
            probed = self.update_state(observation, state)
            self.leave_warmup(observation, state, "stable", reasons)
            if probed and state["phase"] == "stable":
                self.declare_peak(observation, state, reasons)
            self._start_decay(observation, state, reasons)
        return Decision(self._scale(observation, state), state, "; ".join(reasons) or None)

    def _scale(self, observation: Observation, state: dict[str, Any]) -> float:
        total = observation.total_steps
        if state["phase"] == "decay":
            since = observation.step - state["decay_step"]
            return decay_scale(since, share_to_steps(total, self.decay_share), self.final_scale, self.shape)
        return self.rise(observation)

    def _start_decay(self, observation: Observation, state: dict[str, Any], reasons: list[str]) -> None:
        step, total = observation.step, observation.total_steps
        length = share_to_steps(total, self.decay_share)
        peaked = state["peak_step"] is not None
        due = peaked and step >= state["peak_step"] + share_to_steps(total, self.hold)
        if step >= total or not (due or step >= total - length):
            return
        state.update(phase="decay", decay_step=step)
        if due:
            cause = f"decay starts {step - state['peak_step']} updates after the peak"
        elif peaked:
            cause = f"decay starts at the deadline, {length} updates before the end, though the hold is not over"
        else:
            cause = f"decay starts at the deadline, {length} updates before the end at {total}, {self.init_peak(state)}"
        reasons.append(f"{cause}; it takes {length} updates")
