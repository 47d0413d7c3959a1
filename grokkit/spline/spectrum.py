"""Statistics from the tangents of one pass besides counts: critical radii, Jacobian norm and rounding error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError, UsageError
from grokkit.spline.frames import Frames
from grokkit.spline.tangent import TangentReach, iter_reaches

SAMPLED_POINTS = 4
"""Number of points on which rounded tangents are compared with exact ones."""


def validate_quantiles(levels: Iterable[float]) -> tuple[float, ...]:
    """Return the levels as floats; raise UsageError unless all are in (0, 1]."""
    try:
        values = tuple(float(level) for level in levels)
    except (TypeError, ValueError) as error:
        raise UsageError(f"`quantiles` must be levels in (0, 1]; got {levels!r}") from error
    if not all(0 < value <= 1 for value in values):
        raise UsageError(f"`quantiles` must be levels in (0, 1]; got {list(values)}")
    return values


def choose_tangent_dtype(tangents: str, dtype: torch.dtype) -> torch.dtype | None:
    """Return the dtype in which to store the tangents of a model in `dtype`; None: exact, in the model's dtype.

    Raises:
        UsageError: unknown `tangents`.
        ModelContractError: bfloat16 is requested for a float64 model.
    """
    if tangents not in ("exact", "bfloat16"):
        raise UsageError(f"`tangents` must be 'exact' or 'bfloat16'; got {tangents!r}")
    if tangents == "bfloat16" and dtype != torch.float32:
        raise ModelContractError(f"bfloat16 tangents need a float32 model; this one is {dtype}. Use tangents='exact'")
    return torch.bfloat16 if tangents == "bfloat16" else None


class PointStatistics:
    """Accumulator of per-point statistics over blocks of points; memory grows only with the number of points."""

    def __init__(self, levels: Sequence[float], directions: int, size: int) -> None:
        self.levels = levels
        self._share = size / directions
        self._radii: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, reach: TangentReach) -> None:
        """Add one block of points."""
        self._squares.append(reach.jacobian_squares.cpu())
        if self.levels:
            self._radii.append(_compute_quantiles(_compute_critical_radii(reach), self.levels).cpu())

    @property
    def critical_radius(self) -> Tensor:
        """float64 (quantile, point)."""
        if not self.levels:
            return torch.empty(0, sum(len(squares) for squares in self._squares), dtype=torch.float64)
        return torch.cat(self._radii, dim=1)

    @property
    def jacobian_norm(self) -> Tensor:
        """float64 (point,)."""
        return (self._share * torch.cat(self._squares)).sqrt()


def _compute_critical_radii(reach: TangentReach) -> Tensor:
    """Compute |z - kink| / max_p |J v_p|, (point, unit-kink pair); infinite if no direction changes the unit."""
    parts = [torch.where(change > 0, distance / change, math.inf) for distance, change in reach.iter_distances()]
    return torch.cat(parts, dim=1) if parts else reach.jacobian_squares.new_empty(len(reach.jacobian_squares), 0)


def _compute_quantiles(rows: Tensor, levels: Sequence[float]) -> Tensor:
    """Compute exact quantiles, float64 (quantile, row): the smallest value that a share >= level does not exceed."""
    pairs = rows.shape[1]
    if pairs == 0:
        return torch.full((len(levels), len(rows)), math.nan, dtype=torch.float64)
    indices = [max(math.ceil(level * pairs - 1e-9), 1) - 1 for level in levels]
    return _sort_rows(rows)[:, indices].T.double()


def _sort_rows(rows: Tensor) -> Tensor:
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    # numpy's sort is many times as fast as torch's on a CPU
    return torch.from_numpy(np.sort(rows.numpy(), axis=1))


def estimate_tangent_error(
    model: nn.Module, images: Tensor, frames: Frames, radii: Sequence[float], rounded: torch.dtype
) -> tuple[float, ...]:
    """Estimate, for each radius, the share of crossings that rounded tangents get wrong, on the first points.

    An error is a unit that is crossed with rounded tangents but not with exact ones, or the reverse; the share is
    relative to the crossings with exact tangents, NaN if there are none.

    Cost: two passes of 1 + P images for each of the `SAMPLED_POINTS` points.
    """
    sample = images[:SAMPLED_POINTS]
    errors, crossed = torch.zeros(2, len(radii), dtype=torch.int64, device=images.device)
    pairs = zip(iter_reaches(model, sample, frames, None), iter_reaches(model, sample, frames, rounded), strict=True)
    for exact, approximate in pairs:
        for (distance, reach), (_, approximate_reach) in zip(
            exact.iter_distances(), approximate.iter_distances(), strict=True
        ):
            for row, radius in enumerate(radii):
                is_crossed = distance < radius * reach
                errors[row] += (is_crossed != (distance < radius * approximate_reach)).sum()
                crossed[row] += is_crossed.sum()
    return tuple((errors / crossed).tolist())
