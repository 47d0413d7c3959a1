"""How sure a mean local complexity is: an interval over points, and one over points and frames at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from grokkit.errors import UsageError
from grokkit.seeding import generator
from grokkit.spline.complexity import local_complexity
from grokkit.spline.frames import orthonormal_frame
from grokkit.spline.intervals import check_level


class TwoWay(NamedTuple):
    """Variance components of a table (frame, point) without repeats, and what they say of its mean.

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


def two_way(table: np.ndarray) -> TwoWay:
    """Two-way random effects: value = mean + frame + point + residual, for a table (F, N) with F, N >= 2.

    E MS_points = residual + F points, E MS_frames = residual + N frames and E MS_residual = residual, so
    Var(mean) = (MS_points + MS_frames - MS_residual) / (N F), with Satterthwaite's degrees of freedom
    (Satterthwaite 1946; Searle, Casella and McCulloch, "Variance Components", 1992). A variance component that comes
    out negative is taken as 0: the error is then never below that of any single mean square.
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


@dataclass(frozen=True, eq=False, kw_only=True)
class ComplexityInterval:
    """Mean local complexity with an interval that covers other points and other frames.

    Args:
        mean: of `totals`.
        low, high: the interval.
        level: its confidence level.
        error: standard error of the mean.
        freedom: degrees of freedom of the t quantile.
        shares: of the variance of one total, what goes to `points`, `frames` and `residual`; NaN if none varies.
        totals: int64 (frame, point), local complexity summed over the layers.
        radius, directions, method: as measured.
    """

    mean: float
    low: float
    high: float
    level: float
    error: float
    freedom: float
    shares: dict[str, float]
    totals: Tensor
    radius: float
    directions: int
    method: str

    def __repr__(self) -> str:
        frames, points = self.totals.shape
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        return (
            f"ComplexityInterval({self.mean:.4g}, {self.level:.0%} in [{self.low:.4g}, {self.high:.4g}], "
            f"frames={frames}, points={points}, variance: {shares}, radius={self.radius:g}, "
            f"directions={self.directions}, method={self.method!r})"
        )


def complexity_interval(
    model: nn.Module,
    images: Tensor,
    radius: float = 0.005,
    directions: int = 20,
    method: str = "tangent",
    frames: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> ComplexityInterval:
    """Mean local complexity over points and frames, with an interval that speaks for both.

    Every point is measured with every one of F frames that all points share. An interval over points alone, with the
    one frame of `local_complexity`, says nothing of what another frame would have given; this one does.

    Args:
        model, images, radius, directions, method: as for `local_complexity`; at least 2 images.
        frames: number F of frames, at least 2; the f-th depends on `seed` and f alone.
        level: confidence level in (0, 1).
        seed: of the frames.

    Returns:
        mean, low and high, and how the variance splits into points, frames and residual (see `two_way`).

    Raises:
        UsageError: fewer than 2 images or frames, a level outside (0, 1); else as `local_complexity`.

    Cost: that of `local_complexity`, F times.
    """
    check_level(level)
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 2:
        raise UsageError(f"`frames` must be an int of at least 2, to tell frames from points; got {frames!r}")
    if not isinstance(images, Tensor) or images.dim() < 2 or len(images) < 2:
        came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"`images` must be a tensor (N, ...) with N >= 2, to tell points from frames; got {came}")
    totals = []
    for index in range(frames):
        frame = orthonormal_frame(directions, images[0].numel(), generator(seed, "interval frame", index))
        totals.append(local_complexity(model, images, radius, method=method, frame=frame).total)
    table = torch.stack(totals)
    found = two_way(table.double().numpy())
    half = float(stdtrit(found.freedom, (1 + level) / 2)) * found.error
    whole = found.points + found.frames + found.residual
    return ComplexityInterval(
        mean=found.mean,
        low=found.mean - half,
        high=found.mean + half,
        level=level,
        error=found.error,
        freedom=found.freedom,
        shares={name: getattr(found, name) / whole if whole else math.nan for name in ("points", "frames", "residual")},
        totals=table,
        radius=radius,
        directions=directions,
        method=method,
    )
