"""What the tangents of one pass give besides counts: critical radii, the Jacobian's norm, and the error of rounding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError, UsageError
from grokkit.spline.frames import Frames
from grokkit.spline.tangent import TangentReach, iter_reaches

SAMPLED = 4
"""Points on which rounded tangents are held against exact ones."""


def validate_quantiles(levels: Iterable[float]) -> tuple[float, ...]:
    try:
        values = tuple(float(level) for level in levels)
    except (TypeError, ValueError) as error:
        raise UsageError(f"`quantiles` must be levels in (0, 1]; got {levels!r}") from error
    if not all(0 < value <= 1 for value in values):
        raise UsageError(f"`quantiles` must be levels in (0, 1]; got {list(values)}")
    return values


def choose_tangent_dtype(tangents: str | None, dtype: torch.dtype, device: torch.device) -> torch.dtype | None:
    """In which dtype the tangents of a model in `dtype` are stored; None: exactly, as the model's own numbers.

    Raises:
        UsageError: an unknown word.
        ModelContractError: bfloat16 for a float64 model.
    """
    if tangents not in (None, "exact", "bfloat16"):
        raise UsageError(f"`tangents` must be 'exact', 'bfloat16' or None (the faster one here); got {tangents!r}")
    if tangents == "bfloat16" and dtype != torch.float32:
        raise ModelContractError(f"bfloat16 tangents need a float32 model; this one is {dtype}. Use tangents='exact'")
    quick = tangents is None and dtype == torch.float32 and device.type == "cuda"
    return torch.bfloat16 if tangents == "bfloat16" or quick else None


class PointStatistics:
    """Gathers, block by block, what the pass says of each point; memory grows with the number of points alone."""

    def __init__(self, levels: Sequence[float], directions: int, size: int) -> None:
        self.levels = levels
        self._share = size / directions
        self._radii: list[Tensor] = []
        self._squares: list[Tensor] = []

    def on_call(self, reach: TangentReach) -> None:
        self._squares.append(reach.jacobian_squares.cpu())
        if self.levels:
            self._radii.append(_quantiles(_critical_radii(reach), self.levels).cpu())

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


def _critical_radii(reach: TangentReach) -> Tensor:
    """(point, unit-kink pair): |z - kink| / max_p |J v_p|; infinite where no direction moves the unit."""
    parts = [torch.where(moves > 0, distance / moves, math.inf) for distance, moves in reach.distances()]
    return torch.cat(parts, dim=1) if parts else reach.jacobian_squares.new_empty(len(reach.jacobian_squares), 0)


def _quantiles(rows: Tensor, levels: Sequence[float]) -> Tensor:
    """float64 (quantile, row), exact: the smallest value that a share of at least `level` does not exceed."""
    pairs = rows.shape[1]
    if pairs == 0:
        return torch.full((len(levels), len(rows)), math.nan, dtype=torch.float64)
    places = [max(math.ceil(level * pairs - 1e-9), 1) - 1 for level in levels]
    return _sort_rows(rows)[:, places].T.double()


def _sort_rows(rows: Tensor) -> Tensor:
    if rows.device.type != "cpu":
        return rows.sort(dim=1).values
    # many times as fast as torch's on a CPU
    return torch.from_numpy(np.sort(rows.numpy(), axis=1))


def estimate_tangent_error(
    model: nn.Module, images: Tensor, frames: Frames, radii: Sequence[float], rounded: torch.dtype
) -> tuple[float, ...]:
    """For each radius the share of crossings that rounded tangents get wrong, on the first points (NaN without any).

    Wrong is a unit that is crossed by the one tangents and not by the other; the share is of those crossed by exact
    tangents. Cost: two passes of 1 + P images for each of the `SAMPLED` points.
    """
    few = images[:SAMPLED]
    wrong, all_crossed = torch.zeros(2, len(radii), dtype=torch.int64, device=images.device)
    pairs = zip(iter_reaches(model, few, frames, None), iter_reaches(model, few, frames, rounded), strict=True)
    for exact, approximate in pairs:
        for (distance, reach), (_, other) in zip(exact.distances(), approximate.distances(), strict=True):
            for row, radius in enumerate(radii):
                is_crossed = distance < radius * reach
                wrong[row] += (is_crossed != (distance < radius * other)).sum()
                all_crossed[row] += is_crossed.sum()
    return tuple((wrong / all_crossed).tolist())
