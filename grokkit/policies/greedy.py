"""A closed-loop baseline that moves both ways: up while a reading falls, down while it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grokkit.policies import Decision, Observation, register
from grokkit.policies.base import get_reading
from grokkit.policies.wsd import require, require_floor, require_name


@register("greedy")
@dataclass(frozen=True)
class Greedy:
    """GreedyLR (arXiv 2512.14527): divide the scale by `factor` after more than `patience` better readings in a row,
    multiply it by `factor` after more than `patience` in a row that were not.

    Better is below the best so far by more than `threshold`; readings are averaged over the last `window` first. Not
    finite ones are ignored and counted. The published method also starts over after long at its lowest rate; this one
    does not.

    Args:
        reading: name of the reading that should fall.
        factor: factor in 1e-6..0.999999.
        patience: readings in a row that are tolerated, 0..1000000.
        threshold: difference >= 0 by which a reading must be below the best one.
        cooldown: readings after a reduction during which nothing is counted, 0..1000000.
        warmup: readings after an increase during which nothing is counted, 0..1000000.
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
        require_floor("min_scale", self.min_scale)
        require("max_scale", self.max_scale, 1, 1000, "factor on the base learning rate")

    def init(self) -> dict[str, Any]:
        """Nothing heard: `best` is None, `good`, `bad` and `resting` count readings, `recent` holds the last ones,
        `ignored` counts those that were not finite, `missing` news of other things only."""
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

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale kept in the state, moved where this observation's reading asks for it."""
        value, state = get_reading(observation, self.reading, state)
        if value is None:
            return Decision(state["scale"], state)
        recent = [*state["recent"], value][-self.window :]
        state = state | {"recent": recent}
        if state["resting"]:
            return Decision(state["scale"], state | {"resting": state["resting"] - 1})
        return self._moved(self._count(sum(recent) / len(recent), state))

    def _count(self, value: float, state: dict[str, Any]) -> dict[str, Any]:
        if state["best"] is None or value < state["best"] - self.threshold:
            return state | {"best": value, "good": state["good"] + 1, "bad": 0}
        return state | {"good": 0, "bad": state["bad"] + 1}

    def _moved(self, state: dict[str, Any]) -> Decision:
        """The state after a move, where enough readings in a row were good or bad."""
        old, good, bad = state["scale"], state["good"], state["bad"]
        if good > self.patience:
            new, found = min(old / self.factor, self.max_scale), f"{good} better readings in a row"
            state = state | {"scale": new, "good": 0, "resting": self.warmup}
        elif bad > self.patience:
            new, found = max(old * self.factor, self.min_scale), f"{bad} readings in a row not below the best"
            state = state | {"scale": new, "bad": 0, "resting": self.cooldown}
        else:
            return Decision(old, state)
        if new == old:
            return Decision(old, state)
        reason = f"{self.reading}: {found}, {state['best']:.4g}: scale {old:.3g} to {new:.3g}"
        return Decision(new, state, reason)
