"""Recording schedules: the steps at which snapshots and measures are taken."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np

from grokkit.errors import UsageError


def log_spaced(count: int = 50, last: int = 1_000_000) -> tuple[int, ...]:
    """Return step 0 and about `count` steps from 1 to `last`, evenly spaced in the logarithm, without duplicates.

    A run that ends before `last` records only the steps it reaches; pass the run's length as `last` to record all.

    >>> log_spaced(4, 1000)
    (0, 1, 10, 100, 1000)
    """
    if count < 1 or last < 1:
        raise UsageError(f"`count` and `last` must be at least 1; got {count} and {last}")
    steps = np.unique(np.round(np.geomspace(1, last, count)).astype(np.int64)) if count > 1 else np.array([last])
    return (0, *(int(step) for step in steps))


def validate_steps(steps: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Return the schedule sorted, without duplicates and including step 0. Raises UsageError for negative steps."""
    schedule = sorted({0, *(as_step(step) for step in steps)})
    if schedule[0] < 0:
        raise UsageError(f"steps of a recording schedule must be at least 0; got {schedule[0]}")
    return tuple(schedule)


def as_step(value: SupportsIndex) -> int:
    """Convert a step to an int, also from NumPy's and torch's integers. Raises UsageError for anything else."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise UsageError(f"a step must be a whole number of optimizer updates; got {value!r}") from None
