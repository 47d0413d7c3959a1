"""The steps at which snapshots and measures are taken."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import SupportsIndex

import numpy as np

from grokkit.errors import UsageError


def log_spaced(count: int = 50, last: int = 1_000_000) -> tuple[int, ...]:
    """0 and about `count` steps from 1 to `last`, evenly spaced in the logarithm, without repetitions.

    A run that ends before `last` records the ones it passes; a run's own length as `last` gives all of them.

    >>> log_spaced(4, 1000)
    (0, 1, 10, 100, 1000)
    """
    if count < 1 or last < 1:
        raise UsageError(f"`count` and `last` must be at least 1; got {count} and {last}")
    steps = np.unique(np.round(np.geomspace(1, last, count)).astype(np.int64)) if count > 1 else np.array([last])
    return (0, *(int(step) for step in steps))


def validate_steps(steps: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """The schedule sorted, without repetitions, with step 0 in it. Raises UsageError for negative steps."""
    found = sorted({0, *(as_step(step) for step in steps)})
    if found[0] < 0:
        raise UsageError(f"a recording schedule holds steps of at least 0; got {found[0]}")
    return tuple(found)


def as_step(value: SupportsIndex) -> int:
    """A step as an int; NumPy's and torch's whole numbers will do. Raises UsageError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"a step is a whole number of optimizer updates; got {value!r}") from None
