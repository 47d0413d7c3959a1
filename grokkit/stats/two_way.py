"""Estimate the variance components of a two-way table."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class TwoWay(NamedTuple):
    """Variance components of a table (frame, point) without repeats, and the standard error of its mean.

    Args:
        mean, error: of the table, and the mean's standard error.
        freedom: degrees of freedom of `error`.
        points, frames, residual: estimated variances, none below 0.
    """

    mean: float
    error: float
    freedom: float
    points: float
    frames: float
    residual: float


def fit_two_way(table: np.ndarray) -> TwoWay:
    """Fit two-way random effects: value = mean + frame + point + residual, for a table (F, N) with F, N >= 2.

    E MS_points = residual + F points, E MS_frames = residual + N frames and E MS_residual = residual, so Var(mean) =
    (MS_points + MS_frames - MS_residual) / (N F), with Satterthwaite's degrees of freedom (Satterthwaite 1946;
    Searle, Casella and McCulloch, "Variance Components", 1992). A negative estimate of a variance component is set to
    0: the error is then never below that of any single mean square.
    """
    frames, points = table.shape
    mean = table.mean()
    by_frame, by_point = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    freedoms = np.array([points - 1, frames - 1, (points - 1) * (frames - 1)])
    sums = [
        frames * ((by_point - mean) ** 2).sum(),
        points * ((by_frame - mean) ** 2).sum(),
        ((table - by_frame - by_point + mean) ** 2).sum(),
    ]
    squares = np.array(sums) / freedoms
    ms_points, ms_frames, residual = squares.tolist()
    combined = ms_points + ms_frames - residual
    largest, freedom = squares.max(), float(freedoms[squares.argmax()])
    if combined > largest:
        largest, freedom = combined, combined**2 / float((squares**2 / freedoms).sum())
    return TwoWay(
        mean=float(mean),
        error=math.sqrt(largest / (points * frames)),
        freedom=max(freedom, 1.0),
        points=max(ms_points - residual, 0.0) / frames,
        frames=max(ms_frames - residual, 0.0) / points,
        residual=residual,
    )
