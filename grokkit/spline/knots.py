"""Knots along segments: where a piecewise linear function of t bends, found between neighbours and inserted.

Between two neighbouring knots everything that was computed so far is affine in t, so a value there is a linear
interpolation and a unit crosses its kink at most once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ZERO = 1e-12
"""A value this small, relative to the largest of its tensor, counts as exactly on the kink: rounding leaves 1e-15."""
MERGE = 1e-12
"""Crossings closer than this in t (0 to 1) are one breakpoint; true gaps of 4e-11 were seen."""


class KnotGrid:
    """Sorted knots of one segment or of several, one after the other.

    Args:
        segment: int64 (knot,), the segment's number.
        t: float64 (knot,), place in it, 0 to 1.
        layer: int64 (knot,), the layer that made the knot; -1 for ends.
        parent: the coarser grid that this one refines, and
        left: int64 (knot,), the knot of it at or before each knot.
    """

    def __init__(
        self, segment: Tensor, t: Tensor, layer: Tensor, parent: KnotGrid | None = None, left: Tensor | None = None
    ) -> None:
        self.segment, self.t, self.layer, self.parent, self.left = segment, t, layer, parent, left

    def __len__(self) -> int:
        return len(self.t)

    @property
    def bounds_piece(self) -> Tensor:
        """bool (knot - 1,): whether a knot and the next one bound a piece."""
        return self.segment[1:] == self.segment[:-1]

    def slice(self, first: int, last: int) -> KnotGrid:
        """The knots first..last, both included, of a refinement."""
        rows = slice(first, last + 1)
        left = None if self.left is None else self.left[rows]
        return KnotGrid(self.segment[rows], self.t[rows], self.layer[rows], self.parent, left)

    def interpolate(self, values: Tensor, origin: KnotGrid) -> Tensor:
        """Values at the knots of `origin`, a coarser grid, as values at these knots; a new tensor."""
        assert self.left is not None and self.parent is not None
        left, above = self.left, self.parent
        while above is not origin:
            assert above.left is not None and above.parent is not None
            left, above = above.left[left], above.parent
        start = origin.t[left]
        inside = self.t > start
        right = left + inside
        weight = torch.where(inside, (self.t - start) / (origin.t[right] - start), 0.0)
        between = inside.nonzero().squeeze(1)
        result = values.index_select(0, left)
        if len(between):
            shape = (-1, *(1,) * (values.dim() - 1))
            ends = values.index_select(0, right[between])
            result.index_copy_(0, between, torch.lerp(result[between], ends, weight[between].view(shape)))
        return result


class Crossings(NamedTuple):
    """Where units cross: the piece (its left knot), the place in [0, 1] of the piece, the unit's flat index."""

    piece: Tensor
    place: Tensor
    unit: Tensor


def find_crossings(z: Tensor, kink: float, joined: Tensor) -> Crossings:
    """Units of z (knot, ...) that are on different sides of `kink` at the two ends of a piece, on neither end on it."""
    rows = z.flatten(1)
    above = rows > kink
    piece, unit = _differences(above)
    kept = joined[piece]
    piece, unit = piece[kept], unit[kept]
    start, end = rows[piece, unit] - kink, rows[piece + 1, unit] - kink
    zero = zero_tolerance(rows)
    real = (start.abs() > zero) & (end.abs() > zero)
    start, end = start[real], end[real]
    return Crossings(piece[real], start / (start - end), unit[real])


def zero_tolerance(values: Tensor) -> Tensor:
    """The size below which values (knot, ...) count as zero. Both ends are looked at: without biases everything is 0 at
    the origin, where a path often begins, and of a size beside which rounding is nothing at its end."""
    return ZERO * torch.maximum(values[0].abs().max(), values[-1].abs().max())


def _differences(above: Tensor) -> tuple[Tensor, Tensor]:
    """Places (row, column) where a row of a boolean matrix differs from the next; compared eight columns at once."""
    width = above.shape[1]
    if width % 8:
        row, column = (above[1:] ^ above[:-1]).nonzero(as_tuple=True)
        return row, column
    words = above.view(torch.int64)
    row, word = (words[1:] ^ words[:-1]).nonzero(as_tuple=True)
    byte = torch.arange(8, device=above.device)
    columns = word.unsqueeze(1) * 8 + byte
    rows = row.unsqueeze(1).expand_as(columns)
    differs = above[rows, columns] ^ above[rows + 1, columns]
    return rows[differs], columns[differs]


class Refined(NamedTuple):
    """A grid with the crossings inserted, and the knot at which each crossing's unit is on its kink."""

    grid: KnotGrid
    knot: Tensor
    unit: Tensor


def refine_grid(grid: KnotGrid, found: Crossings, layer: int) -> Refined:
    """Insert crossings as knots; those closer than `MERGE` share one, also with an end of their piece."""
    start, end = grid.t[found.piece], grid.t[found.piece + 1]
    t = torch.lerp(start, end, found.place)
    order = t.argsort(stable=True)
    order = order[found.piece[order].argsort(stable=True)]
    piece, t, start, end = found.piece[order], t[order], start[order], end[order]
    at_left, at_right = t - start < MERGE, end - t < MERGE
    inner = ~(at_left | at_right)
    new = _first_of_cluster(piece[inner], t[inner])
    at, where = piece[inner][new], t[inner][new]
    before = torch.zeros(len(grid) + 1, dtype=torch.int64, device=t.device).index_add_(0, at + 1, torch.ones_like(at))
    old = torch.arange(len(grid), device=t.device) + before.cumsum(0)[:-1]
    fresh = at + 1 + torch.arange(len(at), device=t.device)
    knot = torch.where(at_right, old[piece + 1], old[piece])
    knot[inner] = fresh[new.cumsum(0) - 1]
    return Refined(_insert(grid, old, fresh, at, where, layer), knot, found.unit[order])


def _first_of_cluster(piece: Tensor, t: Tensor) -> Tensor:
    first = torch.ones_like(piece, dtype=torch.bool)
    first[1:] = (piece[1:] != piece[:-1]) | (t[1:] - t[:-1] >= MERGE)
    return first


def _insert(grid: KnotGrid, old: Tensor, fresh: Tensor, at: Tensor, where: Tensor, layer: int) -> KnotGrid:
    size = len(old) + len(fresh)
    segment, made, left = (torch.empty(size, dtype=torch.int64, device=at.device) for _ in range(3))
    t = torch.empty(size, dtype=torch.float64, device=at.device)
    segment[old], segment[fresh] = grid.segment, grid.segment[at]
    made[old], made[fresh] = grid.layer, layer
    left[old], left[fresh] = torch.arange(len(old), device=at.device), at
    t[old], t[fresh] = grid.t, where
    return KnotGrid(segment, t, made, grid, left)
