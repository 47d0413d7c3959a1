"""Knots along segments: find the breakpoints of a piecewise linear function of t between knots and insert them.

Between two neighbouring knots every value computed so far is affine in t, so values are interpolated linearly and a
unit crosses its kink at most once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ZERO = 1e-12
"""Values below this, relative to the largest of their tensor, count as exactly on the kink; rounding leaves 1e-15."""
MERGE = 1e-12
"""Crossings closer than this in t (0 to 1) are merged into one breakpoint; true gaps of 4e-11 were observed."""


class KnotGrid:
    """Sorted knots of one or more consecutive segments.

    Args:
        segment: int64 (knot,), index of the segment.
        t: float64 (knot,), position in the segment, 0 to 1.
        layer: int64 (knot,), the layer whose crossing is at the knot; -1 for ends.
        parent: the coarser grid that this one refines.
        left: int64 (knot,), the parent's knot at or before each knot.
    """

    def __init__(
        self, segment: Tensor, t: Tensor, layer: Tensor, parent: KnotGrid | None = None, left: Tensor | None = None
    ) -> None:
        self.segment, self.t, self.layer, self.parent, self.left = segment, t, layer, parent, left

    def __len__(self) -> int:
        return len(self.t)

    @property
    def bounds_piece(self) -> Tensor:
        """bool (knot - 1,): whether a knot and the next one are the ends of one piece."""
        return self.segment[1:] == self.segment[:-1]

    def slice(self, first: int, last: int) -> KnotGrid:
        """Return the grid of the knots first..last, both included."""
        rows = slice(first, last + 1)
        left = torch.arange(first, last + 1, device=self.t.device)
        return KnotGrid(self.segment[rows], self.t[rows], self.layer[rows], self, left)

    def interpolate(self, values: Tensor, origin: KnotGrid) -> Tensor:
        """Interpolate values at the knots of `origin`, a coarser grid, to these knots; returns a new tensor."""
        assert self.left is not None and self.parent is not None
        left, ancestor = self.left, self.parent
        while ancestor is not origin:
            assert ancestor.left is not None and ancestor.parent is not None
            left, ancestor = ancestor.left[left], ancestor.parent
        start = origin.t[left]
        inside = self.t > start
        right = left + inside
        weight = torch.where(inside, (self.t - start) / (origin.t[right] - start), 0.0)
        between = inside.nonzero().squeeze(1)
        result = values.index_select(0, left)
        if len(between):
            shape = (-1, *(1,) * (values.dim() - 1))
            starts, ends = result[between], values.index_select(0, right[between])
            mixed = torch.lerp(starts, ends, weight[between].view(shape))
            if values[0].isinf().any():  # padding of a max-pool, which is the same at every knot
                mixed = torch.where(starts == ends, ends, mixed)
            result.index_copy_(0, between, mixed)
        return result


class Crossings(NamedTuple):
    """Crossings of units: the piece (its left knot), the position in [0, 1] of the piece, the unit's flat index."""

    piece: Tensor
    position: Tensor
    unit: Tensor


def find_crossings(z: Tensor, kink: float, is_piece: Tensor) -> Crossings:
    """Find the units of z (knot, ...) on different sides of `kink` at the two ends of a piece, and at neither on it."""
    rows = z.flatten(1)
    above = rows > kink
    piece, unit = _find_differences(above)
    is_inside = is_piece[piece]
    piece, unit = piece[is_inside], unit[is_inside]
    start, end = rows[piece, unit] - kink, rows[piece + 1, unit] - kink
    zero = compute_zero_tolerance(rows)
    is_crossing = (start.abs() > zero) & (end.abs() > zero)
    start, end = start[is_crossing], end[is_crossing]
    return Crossings(piece[is_crossing], start / (start - end), unit[is_crossing])


def compute_zero_tolerance(values: Tensor) -> Tensor:
    """Return the magnitude below which values (knot, ...) count as zero."""
    # from both ends: without biases all values are 0 at the origin, where a path often begins, but not at its end
    sizes = values[[0, -1]].abs()
    return ZERO * sizes.masked_fill_(sizes.isinf(), 0.0).max()  # padding of a max-pool is infinite


def _find_differences(above: Tensor) -> tuple[Tensor, Tensor]:
    """Find (row, column) at which a row of a boolean matrix differs from the next; compares eight columns at once."""
    width = above.shape[1]
    if width % 8:
        row, column = (above[1:] ^ above[:-1]).nonzero(as_tuple=True)
        return row, column
    packed = above.view(torch.int64)
    row, group = (packed[1:] ^ packed[:-1]).nonzero(as_tuple=True)
    byte = torch.arange(8, device=above.device)
    columns = group.unsqueeze(1) * 8 + byte
    rows = row.unsqueeze(1).expand_as(columns)
    differs = above[rows, columns] ^ above[rows + 1, columns]
    return rows[differs], columns[differs]


class RefinedGrid(NamedTuple):
    """A grid with the crossings inserted, and for each crossing its knot and its unit."""

    grid: KnotGrid
    knot: Tensor
    unit: Tensor


def refine_grid(grid: KnotGrid, crossings: Crossings, layer: int) -> RefinedGrid:
    """Insert crossings as knots; crossings closer than `MERGE` to each other or to an end of their piece share one."""
    start, end = grid.t[crossings.piece], grid.t[crossings.piece + 1]
    t = torch.lerp(start, end, crossings.position)
    order = t.argsort(stable=True)
    order = order[crossings.piece[order].argsort(stable=True)]
    piece, t, start, end = crossings.piece[order], t[order], start[order], end[order]
    at_left, at_right = t - start < MERGE, end - t < MERGE
    inner = ~(at_left | at_right)
    is_new = _find_cluster_starts(piece[inner], t[inner])
    left, new_t = piece[inner][is_new], t[inner][is_new]
    added = torch.zeros(len(grid) + 1, dtype=torch.int64, device=t.device).index_add_(
        0, left + 1, torch.ones_like(left)
    )
    old_rows = torch.arange(len(grid), device=t.device) + added.cumsum(0)[:-1]
    new_rows = left + 1 + torch.arange(len(left), device=t.device)
    knot = torch.where(at_right, old_rows[piece + 1], old_rows[piece])
    knot[inner] = new_rows[is_new.cumsum(0) - 1]
    return RefinedGrid(_insert(grid, old_rows, new_rows, left, new_t, layer), knot, crossings.unit[order])


def _find_cluster_starts(piece: Tensor, t: Tensor) -> Tensor:
    is_start = torch.ones_like(piece, dtype=torch.bool)
    is_start[1:] = (piece[1:] != piece[:-1]) | (t[1:] - t[:-1] >= MERGE)
    return is_start


def _insert(
    grid: KnotGrid, old_rows: Tensor, new_rows: Tensor, new_left: Tensor, new_t: Tensor, layer: int
) -> KnotGrid:
    size = len(old_rows) + len(new_rows)
    segment, layers, left = (torch.empty(size, dtype=torch.int64, device=new_left.device) for _ in range(3))
    t = torch.empty(size, dtype=torch.float64, device=new_left.device)
    segment[old_rows], segment[new_rows] = grid.segment, grid.segment[new_left]
    layers[old_rows], layers[new_rows] = grid.layer, layer
    left[old_rows], left[new_rows] = torch.arange(len(old_rows), device=new_left.device), new_left
    t[old_rows], t[new_rows] = grid.t, new_t
    return KnotGrid(segment, t, layers, grid, left)
