"""Detect that training has become slow: its current speed against the initial one, time in instruments excluded."""

from __future__ import annotations

import statistics

MIN_STEPS, MIN_SECONDS = 100, 5.0
"""A timed window of training has at least this many steps and seconds; shorter ones are noise."""

MEDIAN_OF = 3
"""Number of windows whose median speed is compared."""

SLOW_RATIO = 0.5
"""A run is slow below this share of its initial speed."""


class SlowdownDetector:
    """Speeds of consecutive windows of training; the first call only starts the clock, after a run's first steps."""

    def __init__(self) -> None:
        self._window_start: tuple[int, float] | None = None
        self._first_speeds: list[float] = []
        self._recent_speeds: list[float] = []
        self._reported = False

    def check(self, step: int, seconds: float) -> str | None:
        """Return a message, once per run, if training runs at less than half of its initial speed, else None.

        Args:
            step: updates done; call this when the host has just synchronised with the device.
            seconds: of training so far, without instruments.
        """
        if self._window_start is None:
            self._window_start = step, seconds
        steps, elapsed = step - self._window_start[0], seconds - self._window_start[1]
        if steps < MIN_STEPS or elapsed < MIN_SECONDS:
            return None
        self._window_start = step, seconds
        speeds = self._first_speeds if len(self._first_speeds) < MEDIAN_OF else self._recent_speeds
        speeds.append(steps / elapsed)
        del self._recent_speeds[:-MEDIAN_OF]
        if self._reported or len(self._recent_speeds) < MEDIAN_OF:
            return None
        initial, current = statistics.median(self._first_speeds), statistics.median(self._recent_speeds)
        if current >= SLOW_RATIO * initial:
            return None
        self._reported = True
        return (
            f"Training slowed from {initial:.3g} to {current:.3g} steps/s. Usual causes: another process on the same "
            "device, thermal or power throttling, swapped memory"
        )
