"""Decimate long curves for drawing: keep the recorded rows with the extremes of every pixel column, never averages.

Columns lie on two grids at once, one even in steps and one even in log(1 + step), so that a page can switch its axis
without a request. The grids are fixed by `size`, a power of two above the last step: an appended row changes only its
own column, so a curve is sent again only from there on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

MAX_COLUMNS = 1024
"""Columns of either grid: enough for the widest chart, at two points each."""

GridFunction = Callable[[np.ndarray, int], np.ndarray]


def grid_size(last_step: int) -> int:
    """Return the number of steps that the grids span: the power of two above `last_step`, at least `MAX_COLUMNS`."""
    return int(max(MAX_COLUMNS, 1 << int(last_step).bit_length()))


def linear_grid(steps: np.ndarray, size: int) -> np.ndarray:
    """Return the column of each step on the grid of columns with equally many steps."""
    return np.asarray(steps // (size // MAX_COLUMNS), dtype=np.int64)


def log_grid(steps: np.ndarray, size: int) -> np.ndarray:
    """Return the column of each step on the grid of columns equally wide in log(1 + step)."""
    return np.floor(np.log2(1.0 + steps) * (MAX_COLUMNS / math.log2(size))).astype(np.int64)


GRIDS: tuple[GridFunction, GridFunction] = (linear_grid, log_grid)


def decimate(steps: np.ndarray, curves: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Return a mask of the rows to draw.

    Args:
        steps: (N,) int64, ascending.
        curves: arrays (N,) over these steps, such as a mean and its band; values that are not finite count only if a
            column contains nothing else.
        size: from `grid_size`, above the last step.

    Returns:
        (N,) bool: in every column of either grid the first row at each curve's minimum and at its maximum, and the
        last row of all, whose values are the newest. The operation is idempotent: decimating the kept rows again keeps
        all of them.
    """
    return _mark_extremes([grid(steps, size) for grid in GRIDS], curves)


def decimate_window(steps: np.ndarray, curves: Iterable[np.ndarray], low: int, high: int) -> np.ndarray:
    """Return the mask of `decimate` for steps from `low` to `high`, with `MAX_COLUMNS` columns between these two."""
    grids = []
    for scale in (np.asarray, lambda step: np.log2(1.0 + step)):
        first, last = scale(low), scale(high)
        grids.append(np.floor((scale(steps) - first) * (MAX_COLUMNS / max(last - first, 1e-9))))
    return _mark_extremes(grids, curves)


def _mark_extremes(grids: Sequence[np.ndarray], curves: Iterable[np.ndarray]) -> np.ndarray:
    """Return a mask of the first rows with the lowest and the highest value of each curve in each column, and the last
    row; every grid in `grids` gives the column of each row."""
    mask = np.zeros(len(grids[0]), dtype=bool)
    if not len(mask):
        return mask
    mask[-1] = True
    curves = list(curves)
    for columns in grids:
        starts = np.flatnonzero(np.r_[True, columns[1:] != columns[:-1]])
        for curve in curves:
            for sign in (1.0, -1.0):
                mask[_find_first_minima(np.where(np.isfinite(curve), sign * curve, np.inf), starts)] = True
    return mask


def _find_first_minima(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the index of the first minimum of each segment."""
    counts = np.diff(np.r_[starts, len(values)])
    indices = np.flatnonzero(values == np.repeat(np.minimum.reduceat(values, starts), counts))
    segment = np.searchsorted(starts, indices, side="right")
    return indices[np.r_[True, segment[1:] != segment[:-1]]]


def first_stale_step(step: int, size: int) -> tuple[int, int]:
    """Return which steps a change at `step` affects.

    Returns:
        The first step from which decimated rows may have changed, and the first step whose rows are needed to decimate
        those again.
    """
    changed = min(_find_column_start(grid, step, size) for grid in GRIDS)
    return changed, min(_find_column_start(grid, changed, size) for grid in GRIDS)


def _find_column_start(grid: GridFunction, step: int, size: int) -> int:
    """Return the first step in the column of `step`."""
    column = int(grid(np.array([step]), size)[0])
    low, high = 0, step
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if int(grid(np.array([middle]), size)[0]) >= column else (middle + 1, high)
    return low
