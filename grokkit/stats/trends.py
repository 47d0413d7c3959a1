"""Estimate trends over steps: the median slope, with an interval from resampled points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SLOPE_RESAMPLES = 200
"""Number of bootstrap samples of the points for the interval of a slope."""


class Slope(NamedTuple):
    """A trend per unit of log step, with the bounds of its 95 % interval; all NaN if undefined."""

    value: float
    low: float
    high: float


def log_mean(values: np.ndarray) -> tuple[float, float]:
    """Compute the logarithm of the mean over points, and its standard error by the delta method.

    Args:
        values: (points,) numbers whose mean is positive and finite. Otherwise the logarithm is -inf, inf or NaN,
            which policies ignore, and the error inf.
    """
    mean = float(np.mean(values))
    if not 0 < mean < math.inf:
        return (-math.inf if mean <= 0 else mean), math.inf
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)) / mean) if len(values) > 1 else math.inf
    return math.log(mean), error


def theil_sen(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute the median of the slopes between all pairs of points (Theil 1950, Sen 1968).

    Args:
        x: (n,) distinct positions, n >= 2.
        y: (..., n) finite values.

    Returns:
        (...).
    """
    first, second = np.triu_indices(len(x), k=1)
    slopes: np.ndarray = np.median((y[..., second] - y[..., first]) / (x[second] - x[first]), axis=-1)
    return slopes


def fit_slope(steps: Sequence[int], values: np.ndarray, scales: Sequence[float] | None = None, seed: int = 0) -> Slope:
    """Estimate how fast the log of a mean over points changes with the log of the step.

    The points are the same at every step, so a bootstrap sample takes the same ones at all of them: what the steps
    have in common at a point cancels, as it should in a difference. The interval covers the choice of points, given
    these weights: it includes neither what moves all points together from one reading to the next, such as an
    update's noise, nor the choice of frames. A fall that is significant here holds for these readings; it need not
    last.

    Args:
        steps: n updates >= 1, rising.
        values: (n, points), each row with a positive mean.
        scales: n numbers by which the means are divided, such as live units; None: 1.
        seed: of the resampling; the same samples are drawn at every call.

    Returns:
        Theil-Sen estimate with the percentile interval of `SLOPE_RESAMPLES` samples. Samples with a mean of 0, which
        has no logarithm, are left out; if that is more than half of them, the interval is NaN.

    Cost: 200 x n x points multiplications; under a millisecond at the default sizes.
    """
    if len(steps) < 2:
        return Slope(math.nan, math.nan, math.nan)
    x = np.log(np.asarray(steps, dtype=np.float64))
    offsets = np.zeros(len(x)) if scales is None else np.log(np.asarray(scales, dtype=np.float64))
    points = values.shape[1]
    counts = np.random.default_rng(seed).multinomial(points, np.full(points, 1 / points), size=SLOPE_RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values.mean(axis=1)) - offsets
        resampled = np.log(counts @ values.T / points) - offsets
    slopes = theil_sen(x, resampled[np.isfinite(resampled).all(axis=1)])
    if len(slopes) < SLOPE_RESAMPLES / 2:
        return Slope(float(theil_sen(x, logs)), math.nan, math.nan)
    low, high = np.quantile(slopes, (0.025, 0.975))
    return Slope(float(theil_sen(x, logs)), float(low), float(high))
