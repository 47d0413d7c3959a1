"""Compute intervals of a mean: Student's t and the bootstrap."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from grokkit.errors import UsageError

TIE_TOLERANCE = 1e-9
"""Relative to the largest difference, below which two differences tie: 0.3 - 0.2 and 0.2 - 0.1 mean the same number of
images.
"""

RESAMPLES = 10_000
"""Default number of bootstrap samples."""


class Interval(NamedTuple):
    """A mean with its bounds: floats, or arrays of one shape."""

    mean: Any
    low: Any
    high: Any


def check_level(level: float) -> None:
    """Raise UsageError if `level` is not in (0, 1)."""
    if not 0 < level < 1:
        raise UsageError(f"`level` must be a confidence level in (0, 1), for example 0.95; got {level!r}")


def t_interval(values: np.ndarray, level: float = 0.95, axis: int = 0) -> Interval:
    """Compute Student's interval of the mean along `axis`; both bounds are NaN if there is only one value."""
    check_level(level)
    count = values.shape[axis]
    mean = values.mean(axis)
    if count < 2:
        return Interval(mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    half = stdtrit(count - 1, (1 + level) / 2) * values.std(axis, ddof=1) / np.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def bca_interval(values: np.ndarray, level: float, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """Compute the bias-corrected and accelerated bootstrap interval of the mean of (n,) values.

    NaN for n < 2; a single point if all values are equal (the method is undefined there).
    """
    from scipy import stats

    if _has_no_spread(values):
        return _degenerate_interval(values)
    generator = np.random.default_rng(seed)
    interval = stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=level, method="BCa", rng=generator
    ).confidence_interval
    return float(interval.low), float(interval.high)


def t_bounds(values: np.ndarray, level: float) -> tuple[float, float]:
    """Compute Student's interval of the mean of (n,) values; NaN for n < 2, a single point if all are equal."""
    from scipy import stats

    if _has_no_spread(values):
        return _degenerate_interval(values)
    low, high = stats.t.interval(level, len(values) - 1, values.mean(), stats.sem(values))
    return float(low), float(high)


def _has_no_spread(values: np.ndarray) -> bool:
    """Return whether the interval would have no width: fewer than 2 values, or all equal."""
    return len(values) < 2 or float(np.ptp(values)) <= TIE_TOLERANCE * float(np.abs(values).max())


def _degenerate_interval(values: np.ndarray) -> tuple[float, float]:
    mean = float(values.mean()) if len(values) > 1 else math.nan
    return mean, mean
