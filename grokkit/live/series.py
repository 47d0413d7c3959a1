"""One curve in memory: rows sorted by step, and a journal of the steps from which it has changed at each tick."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

VALUE, LOW, HIGH, ATTEMPT = range(4)


class Series:
    """Rows of step, value, low and high, ascending in step; for a repeated step the newest attempt counts."""

    def __init__(self) -> None:
        self._steps = np.empty(64, dtype=np.int64)
        self._rows = np.empty((64, 4))
        self._count = 0
        self._journal: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self._count

    @property
    def last(self) -> tuple[int, float]:
        """Step and value of the newest row."""
        return int(self._steps[self._count - 1]), float(self._rows[self._count - 1, VALUE])

    def extend(self, steps: Sequence[int], rows: np.ndarray, tick: int) -> None:
        """Add rows as a change at `tick`.

        Args:
            steps: (N,) integers, in the order in which they were written.
            rows: (N, 4) value, low, high (NaN: no bound), attempt.
            tick: number of this change, never lower than before.

        Cost: proportional to the new rows if they follow the last one; otherwise all rows are sorted.
        """
        new = np.asarray(steps, dtype=np.int64)
        if not len(new):
            return
        is_appended = bool((np.diff(new) > 0).all()) and (not self._count or new[0] > self._steps[self._count - 1])
        if is_appended:
            self._append(new, rows)
        else:
            self._merge(new, rows)
        self._record_change(tick, int(new.min()))

    def _append(self, steps: np.ndarray, rows: np.ndarray) -> None:
        end = self._count + len(steps)
        if end > len(self._steps):
            capacity = max(end, 2 * len(self._steps)) - self._count
            self._steps = np.concatenate([self._steps[: self._count], np.empty(capacity, dtype=np.int64)])
            self._rows = np.concatenate([self._rows[: self._count], np.empty((capacity, 4))])
        self._steps[self._count : end], self._rows[self._count : end] = steps, rows
        self._count = end

    def _merge(self, steps: np.ndarray, rows: np.ndarray) -> None:
        all_steps = np.concatenate([self._steps[: self._count], steps])
        values = np.concatenate([self._rows[: self._count], rows])
        order = np.lexsort((np.arange(len(all_steps)), values[:, ATTEMPT], all_steps))
        all_steps, values = all_steps[order], values[order]
        newest = np.r_[all_steps[1:] != all_steps[:-1], True]
        self._steps, self._rows = all_steps[newest], values[newest]
        self._count = len(self._steps)

    def _record_change(self, tick: int, step: int) -> None:
        # Drop entries that this lower step covers: then the first entry after a tick is the lowest changed step.
        while self._journal and self._journal[-1][1] >= step:
            self._journal.pop()
        self._journal.append((tick, step))

    def changed_since(self, tick: int) -> int | None:
        """Return the lowest step that has changed after `tick`; None if none has."""
        index = bisect.bisect_right(self._journal, (tick, np.inf))
        return self._journal[index][1] if index < len(self._journal) else None

    def find_previous(self, step: int, finite: bool = False) -> int:
        """Return the last step before `step` that has a row, or, if `finite`, a finite value; 0 if there is none."""
        row = int(np.searchsorted(self._steps[: self._count], step)) - 1
        while finite and row >= 0 and not np.isfinite(self._rows[row, VALUE]):
            row -= 1
        return int(self._steps[row]) if row >= 0 else 0

    def rows_from(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return steps, values, lows and highs from `step` on, as views that are valid until the next `extend`."""
        start = int(np.searchsorted(self._steps[: self._count], step))
        rows = self._rows[start : self._count]
        return self._steps[start : self._count], rows[:, VALUE], rows[:, LOW], rows[:, HIGH]


Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def merge_runs(members: Sequence[Curve]) -> tuple[Curve, np.ndarray]:
    """Merge the curves of the runs of a group into one.

    A mean over changing runs would jump at steps that only some have. So a run counts up to its last finite value, and
    a step only if all runs that still count have recorded it: up to the end of the shortest run these are the steps
    that all have, as in the figures; after it those that all longer runs have, and so on.

    Args:
        members: steps, values, lows and highs of each run.

    Returns:
        Steps, mean, minimum and maximum (a single member keeps its bounds; NaN: a run's value is not finite), and the
        number of runs that each mean is over.
    """
    if len(members) == 1:
        return members[0], np.isfinite(members[0][1]).astype(np.int64)
    ends = [_find_last_finite(steps, values) for steps, values, *_ in members]
    steps, values = (np.concatenate([member[column] for member in members]) for column in (0, 1))
    is_counted = steps <= np.repeat(ends, [len(member[0]) for member in members])
    order = np.argsort(steps, kind="stable")
    steps, values, is_counted = steps[order], values[order], is_counted[order]
    if not len(steps):
        return (steps, values, values, values), steps
    starts = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])
    expected = len(members) - np.searchsorted(np.sort(ends), steps[starts])
    finite = np.add.reduceat(np.isfinite(values).astype(np.int64), starts)
    is_mean = (finite == expected) & (expected > 0)
    mean, low, high = (np.where(is_mean, column, np.nan) for column in _reduce(values, starts, expected))
    keep = np.add.reduceat(is_counted.astype(np.int64), starts) == expected
    return (steps[starts][keep], mean[keep], low[keep], high[keep]), np.where(is_mean, expected, 0)[keep]


def _reduce(values: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, minimum and maximum of the finite values of each segment; the mean is over `counts` of them."""
    finite = np.isfinite(values)
    # Divided first: the sum of large values may overflow.
    shares = np.where(finite, values, 0.0) / np.repeat(np.maximum(counts, 1), np.diff(np.r_[starts, len(values)]))
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    return np.add.reduceat(shares, starts), low, np.maximum.reduceat(np.where(finite, values, -np.inf), starts)


def _find_last_finite(steps: np.ndarray, values: np.ndarray) -> int:
    """Return the last step with a finite value; -1 if there is none."""
    indices = np.flatnonzero(np.isfinite(values))
    return int(steps[indices[-1]]) if len(indices) else -1
