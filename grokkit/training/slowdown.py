"""Whether training has become slow: the speed of now against that of the beginning, instruments not counted."""

from __future__ import annotations

import statistics

STEPS, SECONDS = 100, 5.0
"""A stretch of training that is timed lasts at least so many steps and so long: less is noise."""

STRETCHES = 3
"""Of which the median counts, at the beginning and now."""

SLOW = 0.5
"""Share of the first speed below which a run is slow."""


class SlowdownDetector:
    """Speeds of consecutive stretches of training; the first call only starts the clock, behind a run's first steps."""

    def __init__(self) -> None:
        self._from: tuple[int, float] | None = None
        self._first: list[float] = []
        self._last: list[float] = []
        self._told = False

    def check(self, step: int, seconds: float) -> str | None:
        """The sentence to be told once where training goes at less than half of its first speed, else None.

        Args:
            step: updates done; to be called where the host has just waited for the device.
            seconds: of training up to here, without instruments.
        """
        if self._from is None:
            self._from = step, seconds
        steps, taken = step - self._from[0], seconds - self._from[1]
        if steps < STEPS or taken < SECONDS:
            return None
        self._from = step, seconds
        speeds = self._first if len(self._first) < STRETCHES else self._last
        speeds.append(steps / taken)
        del self._last[:-STRETCHES]
        if self._told or len(self._last) < STRETCHES:
            return None
        then, now = statistics.median(self._first), statistics.median(self._last)
        if now >= SLOW * then:
            return None
        self._told = True
        return (
            f"training goes at {now:.3g} steps/s, at the beginning it was {then:.3g}. Usual causes: another process on "
            "the same device, a device that throttles for heat or power, memory that is swapped"
        )
