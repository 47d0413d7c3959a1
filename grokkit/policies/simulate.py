"""Simulate a policy without a network: signal in, learning rates and decisions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grokkit.errors import UsageError
from grokkit.policies import Observation, Policy, as_count, as_policy, get_followed_readings


class Simulation(NamedTuple):
    """Learning rates and decisions of a simulated policy.

    Args:
        rates: (total_steps,) float64 learning rates; entry i is the rate of the update that follows i updates.
        decisions: (step, reason) of every decision, in order.
    """

    rates: np.ndarray
    decisions: list[tuple[int, str]]


def simulate(
    policy: str | Mapping[str, Any] | Policy,
    signal: Sequence[float | Mapping[str, float]],
    total_steps: int,
    every: int = 1,
    base_lr: float = 1.0,
) -> Simulation:
    """Run `policy` for `total_steps` updates on a given signal.

    Args:
        policy: a policy, its name, or a mapping with its name and parameters.
        signal: readings in order: item i (from 0) is delivered after (i + 1) * `every` updates, as in training. A
            number is the value of the reading that the policy follows, if it follows any; a mapping is passed
            unchanged. It may be empty or end early; the policy then gets no further readings.
        total_steps: updates, >= 1.
        every: updates between two items, >= 1.
        base_lr: the learning rate at a scale of 1, > 0.

    Returns:
        The `Simulation`.

    Raises:
        UsageError: on a count below 1, a base rate that is not positive, or a number for a policy that follows several
            readings.
    """
    total_steps, every = as_count("total_steps", total_steps), as_count("every", every)
    if not base_lr > 0:
        raise UsageError(f"`base_lr` must be a number > 0; got {base_lr}")
    controller: Policy = as_policy(policy)
    state, rates, decisions = controller.init(), np.empty(total_steps), []
    for step in range(total_steps):
        item, offset = divmod(step, every)
        fresh = offset == 0 and 0 < item <= len(signal)
        readings = _to_readings(signal[item - 1], controller) if fresh else {}
        scale, state, reason = controller.update(Observation(step, total_steps, base_lr, readings), state)
        rates[step] = base_lr * scale
        if reason:
            decisions.append((step, reason))
    return Simulation(rates, decisions)


def _to_readings(item: float | Mapping[str, float], policy: Policy) -> Mapping[str, float]:
    """Return `item` as a mapping; a bare number gets the name of the reading that the policy follows."""
    if isinstance(item, Mapping):
        return item
    names = get_followed_readings(policy)
    name = getattr(policy, "reading", None) or (next(iter(names)) if len(names) == 1 else None)
    if name is None and names:
        raise UsageError(
            f"the policy follows {', '.join(sorted(names))}: pass mappings from name to number; got {item!r}"
        )
    return {name: float(item)} if name else {}
