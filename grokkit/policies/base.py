"""What every policy is: a pure controller of the learning rate. Numbers in, number out; no torch."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

from grokkit.errors import UsageError


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one step.

    Args:
        step: optimizer updates done so far.
        total_steps: updates the run will do; a deadline counts back from it.
        base_lr: the learning rate that a scale of 1 stands for.
        readings: news since the last update, name -> number; empty on most steps.
    """

    step: int
    total_steps: int
    base_lr: float
    readings: Mapping[str, float] = field(default_factory=dict)


class Decision(NamedTuple):
    """What a policy answers.

    Args:
        scale: factor > 0 on the base learning rate for the next update.
        state: the policy's next state: a dict of JSON values.
        reason: one sentence with the evidence where something was decided, else None.
    """

    scale: float
    state: dict[str, Any]
    reason: str | None = None


def get_reading(observation: Observation, name: str, state: dict[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """The finite reading called `name` or None, and the state with one more `ignored` for a reading that is not finite
    and one more `missing` for news of other things only."""
    if not observation.readings:
        return None, state
    if name not in observation.readings:
        return None, state | {"missing": state["missing"] + 1}
    value = float(observation.readings[name])
    return (value, state) if math.isfinite(value) else (None, state | {"ignored": state["ignored"] + 1})


def get_followed_readings(policy: Any) -> frozenset[str]:
    """Names of the readings that a policy listens to: its `readings` where it has some, else its `reading`. A wrapper's
    are those of the policies inside too; slopes and errors that belong to a reading are not named."""
    names = getattr(policy, "readings", getattr(policy, "reading", ()))
    names = names if isinstance(names, frozenset | set | tuple | list) else (names,)
    return frozenset(name for name in names if isinstance(name, str))


def as_count(name: str, value: Any) -> int:
    """`value` as an int. Raises UsageError where it is none of 1 or more; NumPy's are some."""
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise UsageError(f"`{name}` must be an int >= 1 (optimizer updates); got {value!r}")
    return count


@runtime_checkable
class Policy(Protocol):
    """A frozen dataclass of parameters with two pure methods."""

    def init(self) -> dict[str, Any]:
        """The state before the first update, JSON values only."""
        ...

    def update(self, observation: Observation, state: dict[str, Any]) -> Decision:
        """The scale at `observation.step` and the next state; neither argument is changed.

        Called once per optimizer step, in order, also when there is no news.
        """
        ...
