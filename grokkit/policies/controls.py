"""Controls for closed-loop policies: the same policy without feedback from its own run.

A gain that remains without the feedback is not an effect of the feedback. The names are those of control groups: `sham`
takes part in everything but the treatment (the signal is measured, its readings are withheld); `yoked` receives what
another run received, at the same steps, whatever it does itself; `shuffled` receives the same in random order.
"""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from grokkit.errors import UsageError
from grokkit.policies import Decision, Observation, register_wrapper
from grokkit.policies.wrappers import Wrapper, WrapperState
from grokkit.policies.wsd import require

SignalHistory = tuple[tuple[int, dict[str, float]], ...]


@register_wrapper("sham")
@dataclass(frozen=True)
class Sham(Wrapper):
    """Measure the signal but withhold all readings: the policy's open-loop schedule, at the cost of the measurement."""

    readings = frozenset[str]()

    def update(self, observation: Observation, state: WrapperState) -> Decision:
        """Return the decision of the policy without readings."""
        muted = dataclasses.replace(observation, readings={})
        scale, inner, reason = self.policy.update(muted, state["inner"])
        return Decision(scale, WrapperState(inner=inner), reason)


class YokedState(WrapperState):
    """State of `Yoked`."""

    told: int  # number of replayed readings


@register_wrapper("yoked")
@dataclass(frozen=True)
class Yoked(Wrapper):
    """Replay the readings of another run, at the same steps: that run's learning rates, open loop.

    A policy is a pure function of its readings, so the rates equal those of the other run exactly, if both runs have
    the same number of updates and `news` holds every reading that the other policy used; `grokkit.signal_history` has
    the readings of the signal, not the losses.

    Args:
        news: one or more pairs (step, readings) in the order of their steps, as returned by
            `grokkit.signal_history(run)`.
    """

    readings = frozenset[str]()

    news: Any = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "news", _validate_history(self.news))

    @property
    def history(self) -> SignalHistory:
        """The replayed readings as pairs (step, readings)."""
        history: SignalHistory = self.news
        return history

    def init(self) -> YokedState:
        """Return the inner state, with no reading replayed."""
        return {**super().init(), "told": 0}

    def update(self, observation: Observation, state: YokedState) -> Decision:
        """Return the decision of the policy on the other run's readings."""
        history, delivered = self.history, state["told"]
        readings: dict[str, float] = {}
        while delivered < len(history) and history[delivered][0] <= observation.step:
            readings.update(history[delivered][1])
            delivered += 1
        scale, inner, reason = self.policy.update(dataclasses.replace(observation, readings=readings), state["inner"])
        return Decision(scale, YokedState(inner=inner, told=delivered), reason)


@register_wrapper("shuffled")
@dataclass(frozen=True)
class Shuffled(Yoked):
    """Replay as `yoked` does, with the readings permuted among the steps: the same values without their time course.

    Args:
        seed: seed of the permutation, 0 or more.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("seed", self.seed, 0, 2**63 - 1, "seed of the permutation", whole=True)

    @cached_property
    def history(self) -> SignalHistory:
        """The steps in order, with the readings permuted among them."""
        order = np.random.default_rng(self.seed).permutation(len(self.news))
        return tuple((step, self.news[index][1]) for (step, _), index in zip(self.news, order, strict=True))


def _validate_history(history: Any) -> SignalHistory:
    pairs = []
    for item in history if isinstance(history, tuple | list) else (history,):
        try:
            step, readings = item
            pairs.append((operator.index(step), {str(name): float(value) for name, value in readings.items()}))
        except (TypeError, ValueError, AttributeError):
            raise UsageError(
                f"`news` must hold pairs (step, {{name: number}}), as returned by grokkit.signal_history(run); "
                f"got {item!r}"
            ) from None
    if not pairs:
        raise UsageError(
            "`news` is empty; the control without readings is `sham`. Pass grokkit.signal_history(run) of a run "
            "with a signal"
        )
    if [step for step, _ in pairs] != sorted(step for step, _ in pairs):
        raise UsageError("`news` must be in the order of their steps, as returned by grokkit.signal_history(run)")
    return tuple(pairs)
