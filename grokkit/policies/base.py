"""The policy interface: a pure function from readings to a learning-rate scale. No torch.

Reading (of a policy): one named number, such as `train_loss` or `log_density`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypedDict, TypeVar, runtime_checkable

from grokkit.errors import UsageError


@dataclass(frozen=True)
class Observation:
    """Input of a policy at one step.

    Args:
        step: optimizer updates done so far.
        total_steps: updates in the whole run; deadlines count back from it.
        base_lr: the learning rate at a scale of 1.
        readings: new readings since the last update, name -> number; empty on most steps.
    """

    step: int
    total_steps: int
    base_lr: float
    readings: Mapping[str, float] = field(default_factory=dict)


class Decision(NamedTuple):
    """Output of a policy at one step.

    Args:
        scale: factor > 0 on the base learning rate for the next update.
        state: the policy's next state: a dict of JSON values.
        reason: one sentence with the evidence if something was decided, else None.
    """

    scale: float
    state: Mapping[str, Any]
    reason: str | None = None


class NoState(TypedDict):
    """State of a policy whose scale depends on the step only: an empty dict."""


class ReadingCounts(TypedDict):
    """Part of the state of every policy that follows a reading."""

    ignored: int  # readings that were not finite
    missing: int  # observations that held only other readings


S = TypeVar("S", bound=ReadingCounts)


def get_reading(observation: Observation, name: str, state: S) -> tuple[float | None, S]:
    """Return the reading called `name`, or None if it is missing or not finite, and the state, which counts both."""
    if not observation.readings:
        return None, state
    if name not in observation.readings:
        return None, _count(state, "missing")
    value = float(observation.readings[name])
    return (value, state) if math.isfinite(value) else (None, _count(state, "ignored"))


def _count(state: S, name: Literal["ignored", "missing"]) -> S:
    """Return a copy of the state in which the count `name` is larger by 1."""
    counted = state.copy()
    counted[name] += 1
    return counted


def get_followed_readings(policy: Any) -> frozenset[str]:
    """Return the names of the readings that a policy uses: its `readings` if it has that attribute, else its `reading`.

    Those of a wrapper include the readings of the wrapped policies. Slopes and standard errors that belong to a
    reading are not listed.
    """
    names = getattr(policy, "readings", getattr(policy, "reading", ()))
    names = names if isinstance(names, frozenset | set | tuple | list) else (names,)
    return frozenset(name for name in names if isinstance(name, str))


def as_count(name: str, value: Any) -> int:
    """Return `value` as an int. Raises UsageError unless it is an integer (NumPy's included) of at least 1."""
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise UsageError(f"`{name}` must be an int >= 1 (optimizer updates); got {value!r}")
    return count


@runtime_checkable
class Policy(Protocol):
    """A frozen dataclass of parameters with two pure methods.

    The state is a dict. Name its type in both methods: a `TypedDict`, or `dict[str, Any]`.
    """

    def init(self) -> Mapping[str, Any]:
        """Return the state before the first update, JSON values only."""
        ...

    def update(self, observation: Observation, state: Any) -> Decision:
        """Return the scale at `observation.step` and the next state; neither argument is changed.

        Called once per optimizer step, in order, also if there are no new readings.
        """
        ...
