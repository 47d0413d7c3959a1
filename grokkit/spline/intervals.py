"""The t interval of a mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from grokkit.errors import UsageError


class Interval(NamedTuple):
    """A mean with its bounds: floats, or arrays of one shape."""

    mean: Any
    low: Any
    high: Any


def check_level(level: float) -> None:
    """Raises UsageError: `level` is not in (0, 1)."""
    if not 0 < level < 1:
        raise UsageError(f"`level` must be a confidence level in (0, 1), for example 0.95; got {level!r}")


def t_interval(values: np.ndarray, level: float = 0.95, axis: int = 0) -> Interval:
    """Student's interval of the mean along `axis`; both bounds are NaN where there is but one value."""
    check_level(level)
    count = values.shape[axis]
    mean = values.mean(axis)
    if count < 2:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    half = stdtrit(count - 1, (1 + level) / 2) * values.std(axis, ddof=1) / np.sqrt(count)
    return Interval(mean, mean - half, mean + half)
