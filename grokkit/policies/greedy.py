"""Closed-loop baseline: raise the learning rate while a reading falls, lower it while it does not."""

from __future__ import annotations

from dataclasses import dataclass

from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import ReadingCounts, get_reading
from grokkit.policies.wsd import require, require_min_scale, require_name


class GreedyState(ReadingCounts):
    """State of `Greedy`."""

    scale: float
    best: float | None  # the best reading, averaged; None before the first
    good: int  # better readings in a row
    bad: int  # readings in a row that were not better
    resting: int  # readings left of a cooldown or warmup
    recent: list[float]  # the last readings


@register("greedy")
@dataclass(frozen=True)
class Greedy:
    """GreedyLR (arXiv 2512.14527).

    Divide the scale by `factor` after more than `patience` better readings in a row, multiply it
    by `factor` after more than `patience` in a row that were not better.

    A reading is better if it is below the best so far by more than `threshold`; readings are first averaged over the
    last `window`. Readings that are not finite are ignored and counted. The published method also resets the rate
    after a long time at the lowest rate; this one does not.

    Args:
        reading: name of the reading that should fall.
        factor: factor in 1e-6..0.999999.
        patience: readings in a row without effect, 0..1000000.
        threshold: difference >= 0 by which a reading must be below the best one.
        cooldown: readings after a reduction that are not counted, 0..1000000.
        warmup: readings after an increase that are not counted, 0..1000000.
        window: readings that are averaged, 1..1000.
        min_scale: lowest scale > 0, as a factor on the base learning rate.
        max_scale: highest scale, 1..1000.
    """

    reading: str = "train_loss"
    factor: float = 0.95
    patience: int = 10
    threshold: float = 1e-6
    cooldown: int = 0
    warmup: int = 0
    window: int = 1
    min_scale: float = 0.01
    max_scale: float = 10.0

    def __post_init__(self) -> None:
        require_name("reading", self.reading)
        require("factor", self.factor, 1e-6, 0.999999, "factor on the scale")
        require("threshold", self.threshold, 0, 1e12, "difference")
        for name in ("patience", "cooldown", "warmup"):
            require(name, getattr(self, name), 0, 1_000_000, "readings", whole=True)
        require("window", self.window, 1, 1000, "readings", whole=True)
        require_min_scale("min_scale", self.min_scale)
        require("max_scale", self.max_scale, 1, 1000, "factor on the base learning rate")

    def init(self) -> GreedyState:
        """Return the initial state."""
        return {
            "scale": 1.0,
            "best": None,
            "good": 0,
            "bad": 0,
            "resting": 0,
            "recent": [],
            "ignored": 0,
            "missing": 0,
        }

    def update(self, observation: Observation, state: GreedyState) -> Decision:
        """Return the scale of the state, changed if this observation's reading requires it."""
        value, state = get_reading(observation, self.reading, state)
        if value is None:
            return Decision(state["scale"], state)
        recent = [*state["recent"], value][-self.window :]
        state = state | {"recent": recent}
        if state["resting"]:
            return Decision(state["scale"], state | {"resting": state["resting"] - 1})
        return self._apply_move(self._count(sum(recent) / len(recent), state))

    def _count(self, value: float, state: GreedyState) -> GreedyState:
        if state["best"] is None or value < state["best"] - self.threshold:
            return state | {"best": value, "good": state["good"] + 1, "bad": 0}
        return state | {"good": 0, "bad": state["bad"] + 1}

    def _apply_move(self, state: GreedyState) -> Decision:
        """Change the scale if enough readings in a row were good or bad."""
        old, good, bad = state["scale"], state["good"], state["bad"]
        if good > self.patience:
            new, evidence = min(old / self.factor, self.max_scale), f"{good} better readings in a row"
            state = state | {"scale": new, "good": 0, "resting": self.warmup}
        elif bad > self.patience:
            new, evidence = max(old * self.factor, self.min_scale), f"{bad} readings in a row not below the best"
            state = state | {"scale": new, "bad": 0, "resting": self.cooldown}
        else:
            return Decision(old, state)
        if new == old:
            return Decision(old, state)
        reason = f"{self.reading}: {evidence}, {state['best']:.4g}: scale {old:.3g} to {new:.3g}"
        return Decision(new, state, reason)
