"""Long curves thinned to what a screen can show: of every pixel column the rows with the extremes, and only true rows.

Columns lie on two grids at once, one even in steps and one even in log(1 + step), so that a page can switch its axis
without asking. The grids are fixed by `size`, a power of two beyond the last step: a row that is appended
changes no column but its own, and only from there on a curve has to be sent again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

MAX_COLUMNS = 1024
"""Columns of either grid: no chart is wider than these, at two points each."""

GridFunction = Callable[[np.ndarray, int], np.ndarray]


def grid_size(last_step: int) -> int:
    """The power of two above `last_step`, at least `COLUMNS`: what the grids span."""
    return int(max(MAX_COLUMNS, 1 << int(last_step).bit_length()))


def linear_grid(steps: np.ndarray, size: int) -> np.ndarray:
    """The column of each step, all columns equally many steps wide."""
    return np.asarray(steps // (size // MAX_COLUMNS), dtype=np.int64)


def log_grid(steps: np.ndarray, size: int) -> np.ndarray:
    """The column of each step, all columns equally wide in log(1 + step)."""
    return np.floor(np.log2(1.0 + steps) * (MAX_COLUMNS / math.log2(size))).astype(np.int64)


GRIDS: tuple[GridFunction, GridFunction] = (linear_grid, log_grid)


def decimate(steps: np.ndarray, curves: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Which rows to draw.

    Args:
        steps: (N,) int64, ascending.
        curves: arrays (N,) over these steps, such as a mean and its band; what is not finite counts only where a
            column holds nothing else.
        size: from `grid_size`, above the last step.

    Returns:
        (N,) bool: in every column of either grid the first row at each curve's minimum and at its maximum. Thinning
        the kept rows again keeps all of them.
    """
    return _extremes([grid(steps, size) for grid in GRIDS], curves)


def decimate_window(steps: np.ndarray, curves: Iterable[np.ndarray], low: int, high: int) -> np.ndarray:
    """As `decimate`, of steps from `low` to `high` alone, over `COLUMNS` columns between these two on either grid."""
    grids = []
    for place in (np.asarray, lambda step: np.log2(1.0 + step)):
        first, last = place(low), place(high)
        grids.append(np.floor((place(steps) - first) * (MAX_COLUMNS / max(last - first, 1e-9))))
    return _extremes(grids, curves)


def _extremes(grids: Sequence[np.ndarray], curves: Iterable[np.ndarray]) -> np.ndarray:
    """The first rows with the lowest and the highest value of each curve in each column; `grids` are columns by row."""
    mask = np.zeros(len(grids[0]), dtype=bool)
    if not len(mask):
        return mask
    curves = list(curves)
    for columns in grids:
        starts = np.flatnonzero(np.r_[True, columns[1:] != columns[:-1]])
        for curve in curves:
            for sign in (1.0, -1.0):
                mask[_first_lowest(np.where(np.isfinite(curve), sign * curve, np.inf), starts)] = True
    return mask


def _first_lowest(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The first place of the minimum of each segment."""
    counts = np.diff(np.r_[starts, len(values)])
    places = np.flatnonzero(values == np.repeat(np.minimum.reduceat(values, starts), counts))
    segment = np.searchsorted(starts, places, side="right")
    return places[np.r_[True, segment[1:] != segment[:-1]]]


def first_stale_step(step: int, size: int) -> tuple[int, int]:
    """Where a change at `step` reaches.

    Returns:
        The first step from which thinned rows may have changed, and the first step whose rows are needed to thin those
        again.
    """
    changed = min(_column_start(grid, step, size) for grid in GRIDS)
    return changed, min(_column_start(grid, changed, size) for grid in GRIDS)


def _column_start(grid: GridFunction, step: int, size: int) -> int:
    """The first step in the column of `step`."""
    column = int(grid(np.array([step]), size)[0])
    low, high = 0, step
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if int(grid(np.array([middle]), size)[0]) >= column else (middle + 1, high)
    return low
