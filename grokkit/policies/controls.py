"""Controls for a policy that listens: the same policy, deaf to its own run. What remains of a gain without the feedback
was never the feedback's."""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from grokkit.errors import UsageError
from grokkit.policies import Decision, Observation, register_wrapper
from grokkit.policies.wrappers import Wrapper
from grokkit.policies.wsd import require

SignalHistory = tuple[tuple[int, dict[str, float]], ...]


@register_wrapper("sham")
@dataclass(frozen=True)
class Sham(Wrapper):
    """The signal is measured, and the policy hears nothing: its schedule without news, at the cost of the probe."""

    readings = frozenset[str]()

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """What the policy does in silence."""
        silent = dataclasses.replace(observation, readings={})
        scale, inner, reason = self.policy.update(silent, state["inner"])
        return Decision(scale, {"inner": inner}, reason)


@register_wrapper("yoked")
@dataclass(frozen=True)
class Yoked(Wrapper):
    """The policy hears what another run heard, when it heard it: that run's learning rates, step by step, open loop.

    A policy is a pure function of its news, so the rates are those of the other run exactly, if the budgets are equal
    and `news` holds all that its policy listened to; `grokkit.signal_history` has the readings of the signal, not the
    losses.

    Args:
        news: one or more pairs (step, readings) in the order of their steps, as `grokkit.signal_history(run)` gives
            them.
    """

    readings = frozenset[str]()

    news: Any = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "news", _validate_history(self.news))

    @property
    def history(self) -> SignalHistory:
        """What the policy hears, and when."""
        return self.news

    def init(self) -> dict[str, Any]:
        """The inner state, and how many of the news were told."""
        return {**super().init(), "told": 0}

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """What the policy does on the other run's news."""
        heard, told = self.history, state["told"]
        readings: dict[str, float] = {}
        while told < len(heard) and heard[told][0] <= observation.step:
            readings.update(heard[told][1])
            told += 1
        scale, inner, reason = self.policy.update(dataclasses.replace(observation, readings=readings), state["inner"])
        return Decision(scale, {"inner": inner, "told": told}, reason)


@register_wrapper("shuffled")
@dataclass(frozen=True)
class Shuffled(Yoked):
    """As `yoked`, but what was heard is told in a random order at the same steps: the values without their course.

    Args:
        seed: of the order, 0 or more.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("seed", self.seed, 0, 2**63 - 1, "of the order", whole=True)

    @cached_property
    def history(self) -> SignalHistory:
        """The steps in order, the readings permuted among them."""
        order = np.random.default_rng(self.seed).permutation(len(self.news))
        return tuple((step, self.news[place][1]) for (step, _), place in zip(self.news, order, strict=True))


def _validate_history(news: Any) -> SignalHistory:
    found = []
    for item in news if isinstance(news, tuple | list) else (news,):
        try:
            step, readings = item
            found.append((operator.index(step), {str(name): float(value) for name, value in readings.items()}))
        except (TypeError, ValueError, AttributeError):
            raise UsageError(
                f"`news` must hold pairs (step, {{name: number}}), as gk.heard(run) gives; got {item!r}"
            ) from None
    if not found:
        raise UsageError(
            "`news` is empty, and a policy that is told nothing is `sham`: give gk.heard(run) of a run with a signal"
        )
    if [step for step, _ in found] != sorted(step for step, _ in found):
        raise UsageError("`news` must be in the order of their steps, as gk.heard(run) gives them")
    return tuple(found)
