"""Trends over steps: the median slope, with an interval from resampled points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SLOPE_RESAMPLES = 200
"""Bootstrap samples of the points for the interval of a slope."""


class Slope(NamedTuple):
    """A trend per unit of log step, and the ends of its 95 % interval; all NaN where there is none."""

    value: float
    low: float
    high: float


def log_mean(values: np.ndarray) -> tuple[float, float]:
    """Logarithm of the mean over points, and its standard error by the delta method.

    Args:
        values: (points,) numbers whose mean is positive and finite. Otherwise the logarithm is -inf, inf or NaN, which
            policies ignore, and the error inf.
    """
    mean = float(np.mean(values))
    if not 0 < mean < math.inf:
        return (-math.inf if mean <= 0 else mean), math.inf
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)) / mean) if len(values) > 1 else math.inf
    return math.log(mean), error


def theil_sen(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The median of the slopes between all pairs of places (Theil 1950, Sen 1968).

    Args:
        x: (n,) distinct places, n >= 2.
        y: (..., n) finite values.

    Returns: (...).
    """
    first, second = np.triu_indices(len(x), k=1)
    return np.median((y[..., second] - y[..., first]) / (x[second] - x[first]), axis=-1)


def fit_slope(steps: Sequence[int], values: np.ndarray, scales: Sequence[float] | None = None, seed: int = 0) -> Slope:
    """How fast the log of a mean over points changes with the log of the step.

    The points are the same at every step, so a bootstrap sample takes the same ones at all of them: what the steps have
    in common at a point cancels, as it should in a difference. The interval is for the choice of points, given these
    weights: what moves all points together from one reading to the next, an update's own noise, is not in it, nor are
    the frames. So a fall is sure at these points and for these readings, not sure to last.

    Args:
        steps: n updates >= 1, rising.
        values: (n, points), each row with a positive mean.
        scales: n numbers by which the means are divided, such as live units; None: 1.
        seed: of the resampling; the same samples are drawn at every call.

    Returns: Theil-Sen estimate with the percentile interval of `SLOPE_RESAMPLES` samples. Samples with a mean of 0,
        which has no logarithm, are left out; where that is more than half of them the interval is NaN.

    Cost: 200 x n x points multiplications; under a millisecond at the default sizes.
    """
    if len(steps) < 2:
        return Slope(math.nan, math.nan, math.nan)
    x = np.log(np.asarray(steps, dtype=np.float64))
    offsets = np.zeros(len(x)) if scales is None else np.log(np.asarray(scales, dtype=np.float64))
    points = values.shape[1]
    chosen = np.random.default_rng(seed).multinomial(points, np.full(points, 1 / points), size=SLOPE_RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.log(values.mean(axis=1)) - offsets
        resampled = np.log(chosen @ values.T / points) - offsets
    found = theil_sen(x, resampled[np.isfinite(resampled).all(axis=1)])
    if len(found) < SLOPE_RESAMPLES / 2:
        return Slope(float(theil_sen(x, own)), math.nan, math.nan)
    low, high = np.quantile(found, (0.025, 0.975))
    return Slope(float(theil_sen(x, own)), float(low), float(high))
