"""One curve in memory: rows by step, and a journal that says from which step on it has changed since when."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

VALUE, LOW, HIGH, ATTEMPT = range(4)


class Series:
    """Rows of step, value, low, high, ascending in step; of a repeated step the newest attempt counts."""

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
        """Add rows and note at which tick.

        Args:
            steps: (N,) integers, in the order in which they were written.
            rows: (N, 4) value, low, high (NaN: no bound), attempt.
            tick: number of this change, which never falls.

        Cost: of the new rows alone, where they go on behind the last one; else a sort of all.
        """
        new = np.asarray(steps, dtype=np.int64)
        if not len(new):
            return
        grows = bool((np.diff(new) > 0).all()) and (not self._count or new[0] > self._steps[self._count - 1])
        if grows:
            self._append(new, rows)
        else:
            self._merge(new, rows)
        self._note(tick, int(new.min()))

    def _append(self, steps: np.ndarray, rows: np.ndarray) -> None:
        end = self._count + len(steps)
        if end > len(self._steps):
            room = max(end, 2 * len(self._steps)) - self._count
            self._steps = np.concatenate([self._steps[: self._count], np.empty(room, dtype=np.int64)])
            self._rows = np.concatenate([self._rows[: self._count], np.empty((room, 4))])
        self._steps[self._count : end], self._rows[self._count : end] = steps, rows
        self._count = end

    def _merge(self, steps: np.ndarray, rows: np.ndarray) -> None:
        every = np.concatenate([self._steps[: self._count], steps])
        values = np.concatenate([self._rows[: self._count], rows])
        order = np.lexsort((np.arange(len(every)), values[:, ATTEMPT], every))
        every, values = every[order], values[order]
        newest = np.r_[every[1:] != every[:-1], True]
        self._steps, self._rows = every[newest], values[newest]
        self._count = len(self._steps)

    def _note(self, tick: int, step: int) -> None:
        # Only entries that a later, lower one does not cover are kept: the first one after a tick says all.
        while self._journal and self._journal[-1][1] >= step:
            self._journal.pop()
        self._journal.append((tick, step))

    def changed_since(self, tick: int) -> int | None:
        """The lowest step that has changed after `tick`; None where nothing has."""
        place = bisect.bisect_right(self._journal, (tick, np.inf))
        return self._journal[place][1] if place < len(self._journal) else None

    def since(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Steps, values, lows and highs from `step` on; views that are good until the next `extend`."""
        at = int(np.searchsorted(self._steps[: self._count], step))
        part = self._rows[at : self._count]
        return self._steps[at : self._count], part[:, VALUE], part[:, LOW], part[:, HIGH]


Curve = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def merge_seeds(members: Sequence[Curve]) -> tuple[Curve, np.ndarray]:
    """Several seeds as one curve.

    Args:
        members: steps, values, lows and highs of each.

    Returns:
        Steps, mean, minimum and maximum over the members that have a finite value at a step (a single member keeps its
        own bounds), and how many these are.
    """
    if len(members) == 1:
        return members[0], np.isfinite(members[0][1]).astype(np.int64)
    steps, values = (np.concatenate([member[part] for member in members]) for part in (0, 1))
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    if not len(steps):
        return (steps, values, values, values), steps
    starts = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])
    finite = np.isfinite(values)
    count = np.add.reduceat(finite.astype(np.int64), starts)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = np.add.reduceat(np.where(finite, values, 0.0), starts) / np.where(count, count, np.nan)
    low = np.minimum.reduceat(np.where(finite, values, np.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -np.inf), starts)
    return (steps[starts], mean, np.where(count, low, np.nan), np.where(count, high, np.nan)), count
