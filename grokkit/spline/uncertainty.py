"""Compute a confidence interval of mean local complexity over points and frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from grokkit.errors import UsageError
from grokkit.literals import CountingMethod
from grokkit.seeding import make_generator
from grokkit.spline.complexity import local_complexity
from grokkit.spline.frames import draw_orthonormal_frame
from grokkit.stats.intervals import check_level
from grokkit.stats.two_way import fit_two_way


@dataclass(frozen=True, eq=False, kw_only=True)
class ComplexityInterval:
    """Mean local complexity with an interval that covers other points and other frames.

    Args:
        mean: mean of `totals`.
        low, high: bounds of the interval.
        level: confidence level.
        error: standard error of the mean.
        freedom: degrees of freedom of the t quantile.
        shares: shares of the variance of one total due to `points`, `frames` and `residual`; NaN if it is zero.
        totals: int64 (frame, point), local complexity summed over the layers.
        radius, directions, method: settings of the measurement.
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
    method: CountingMethod

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
    method: CountingMethod = "tangent",
    frames: int = 8,
    level: float = 0.95,
    seed: int = 0,
) -> ComplexityInterval:
    """Measure mean local complexity over points and frames, with an interval that covers both.

    Every point is measured with each of F shared frames. An interval over points alone, with the single shared frame
    of `local_complexity`, does not include the variance between frames; this one does.

    Args:
        model, images, radius, directions, method: as for `local_complexity`; at least 2 images.
        frames: number F of frames, at least 2; the f-th depends on `seed` and f alone.
        level: confidence level in (0, 1).
        seed: seed of the frames.

    Returns:
        Mean, low and high, and the shares of the variance due to points, frames and residual (see `fit_two_way`).

    Raises:
        UsageError: fewer than 2 images or frames, a level outside (0, 1); else as `local_complexity`.

    Cost: that of `local_complexity`, F times.
    """
    check_level(level)
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 2:
        raise UsageError(
            f"`frames` must be an int of at least 2, to separate the variance of frames and points; got {frames!r}"
        )
    if not isinstance(images, Tensor) or images.dim() < 2 or len(images) < 2:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(
            f"`images` must be a tensor (N, ...) with N >= 2, to separate the variance of points and frames; got {got}"
        )
    totals = []
    for index in range(frames):
        frame = draw_orthonormal_frame(directions, images[0].numel(), make_generator(seed, "interval frame", index))
        totals.append(local_complexity(model, images, radius, method=method, frame=frame).total)
    table = torch.stack(totals)
    fit = fit_two_way(table.double().numpy())
    half = float(stdtrit(fit.freedom, (1 + level) / 2)) * fit.error
    total = fit.points + fit.frames + fit.residual
    return ComplexityInterval(
        mean=fit.mean,
        low=fit.mean - half,
        high=fit.mean + half,
        level=level,
        error=fit.error,
        freedom=fit.freedom,
        shares={name: getattr(fit, name) / total if total else math.nan for name in ("points", "frames", "residual")},
        totals=table,
        radius=radius,
        directions=directions,
        method=method,
    )
