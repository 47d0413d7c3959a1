"""Closed-loop baseline: reduce the learning rate whenever a reading stops falling."""

from __future__ import annotations

from dataclasses import dataclass

from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import ReadingCounts, get_reading
from grokkit.policies.wsd import require, require_min_scale, require_name


class PlateauState(ReadingCounts):
    """State of `Plateau`."""

    scale: float
    best: float | None  # the lowest reading, None before the first
    bad: int  # readings since the best one or the last reduction
    cooldown: int  # readings left that are not counted as bad


@register("plateau")
@dataclass(frozen=True)
class Plateau:
    """Multiply the scale by `factor` after more than `patience` readings without a new best (lowest) one.

    The decisions are those of `torch.optim.lr_scheduler.ReduceLROnPlateau(mode="min", threshold_mode="rel", eps=0)`,
    with one difference: a reading that is not finite is ignored and counted, whereas torch counts it as a bad one.
    Patience and cooldown count readings, not updates.

    Args:
        reading: name of the reading that should fall.
        factor: factor in 1e-6..0.999999 on the scale at each reduction.
        patience: readings without improvement before a reduction, 0..1000000.
        threshold: share in 0..1 by which a reading must be below the best one to count as better.
        cooldown: readings after a reduction that are not counted as bad, 0..1000000.
        min_scale: lowest scale > 0, as a factor on the base learning rate.
    """

    reading: str = "train_loss"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    cooldown: int = 0
    min_scale: float = 1e-4

    def __post_init__(self) -> None:
        require_name("reading", self.reading)
        require("factor", self.factor, 1e-6, 0.999999, "factor on the scale")
        require("patience", self.patience, 0, 1_000_000, "readings", whole=True)
        require("threshold", self.threshold, 0, 1, "relative improvement")
        require("cooldown", self.cooldown, 0, 1_000_000, "readings", whole=True)
        require_min_scale("min_scale", self.min_scale)

    def init(self) -> PlateauState:
        """Return the initial state."""
        return {"scale": 1.0, "best": None, "bad": 0, "cooldown": 0, "ignored": 0, "missing": 0}

    def update(self, observation: Observation, state: PlateauState) -> Decision:
        """Return the scale of the state, reduced if this observation's reading requires it."""
        value, state = get_reading(observation, self.reading, state)
        if value is None:
            return Decision(state["scale"], state)
        state = self._count(value, state)
        if state["bad"] <= self.patience:
            return Decision(state["scale"], state)
        bad, old = state["bad"], state["scale"]
        state = state | {"scale": max(old * self.factor, self.min_scale), "bad": 0, "cooldown": self.cooldown}
        if state["scale"] >= old:
            return Decision(old, state | {"scale": old})
        reason = (
            f"{self.reading} {value:.4g} is the last of {bad} readings not below the best, {state['best']:.4g}, "
            f"by {self.threshold:g} of it: scale {old:.3g} to {state['scale']:.3g}"
        )
        return Decision(state["scale"], state, reason)

    def _count(self, value: float, state: PlateauState) -> PlateauState:
        """Return the state after one more finite reading, before any reduction."""
        best, bad, cooldown = state["best"], state["bad"] + 1, state["cooldown"]
        if best is None or value < best * (1 - self.threshold):
            best, bad = value, 0
        if cooldown > 0:
            cooldown, bad = cooldown - 1, 0
        return state | {"best": best, "bad": bad, "cooldown": cooldown}
