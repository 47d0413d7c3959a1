"""Curves of groups of runs as JSON values, decimated, and over several runs with their mean, minimum and maximum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from grokkit.live.decimate import decimate, decimate_window, first_stale_step, grid_size
from grokkit.live.follow import Follower, is_bound
from grokkit.live.panels import Trace
from grokkit.live.series import Curve, merge_runs
from grokkit.trajectory.documents import is_count

MAX_DIGITS = 290
"""Values with more digits before or after the point are not rounded: powers of ten end there."""


class RunGroup:
    """Group of runs that differ only in their seed.

    `short` is what of its label differs from those of the other groups, `size` the number of steps that its grids span,
    `reset` the tick from which all its curves have to be sent again.
    """

    def __init__(self, key: str) -> None:
        self.key, self.label, self.short = key, "", ""
        self.members: list[Follower] = []
        self.size, self.reset = 0, -1

    def widen_grids(self, tick: int) -> None:
        """Widen the grids if a run is longer than they are; all curves are then sent again, in new columns."""
        size = max((grid_size(max(each.total_steps or 0, each.step)) for each in self.members), default=grid_size(0))
        if size != self.size:
            self.size, self.reset = size, tick

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer updates per epoch; None if the runs do not record what is needed, or differ in it."""
        numbers = {_count_steps_per_epoch(member) for member in self.members}
        return numbers.pop() if len(numbers) == 1 else None


def _count_steps_per_epoch(member: Follower) -> float | None:
    size, images = member.config.get("batch_size"), member.environment.get("data", {}).get("train")
    if not (is_count(size) and is_count(images) and size and images):
        return None
    return float(-(-images // min(size, images)))


def collect_traces(group: RunGroup) -> Iterator[tuple[Trace, list[Follower]]]:
    """Yield the traces that are drawn of a group, each with the members that have it."""
    for trace in dict.fromkeys(trace for member in group.members for trace in member.series):
        if not is_bound(trace):
            yield trace, [member for member in group.members if trace in member.series]


def curve_json(group: RunGroup, trace: Trace, members: Sequence[Follower], step: int) -> dict[str, Any]:
    """Return the decimated rows of one curve from the first column that a change at `step` affects."""
    # The row before the change was the last one or, of several runs, the last that its run counted for.
    before = min(member.series[trace].find_previous(step, finite=len(members) > 1) for member in members)
    start, needed = first_stale_step(before, group.size)
    curve, count = merge_runs([member.get_curve(trace, needed) for member in members])
    rows = decimate(curve[0], _get_bounded_values(curve), group.size) & (curve[0] >= start)
    return {**_curve_metadata(group, trace, members), "from": start, **_rows_json(curve, count, rows, len(members))}


def window_json(group: RunGroup, trace: Trace, members: Sequence[Follower], low: int, high: int) -> dict[str, Any]:
    """Return the rows of one curve from `low` to `high`, decimated for this window."""
    curve, count = merge_runs([member.get_curve(trace, low) for member in members])
    end = int(np.searchsorted(curve[0], high, side="right"))
    curve, count = (curve[0][:end], curve[1][:end], curve[2][:end], curve[3][:end]), count[:end]
    rows = decimate_window(curve[0], _get_bounded_values(curve), low, high)
    return {
        **_curve_metadata(group, trace, members),
        "from": low,
        "to": high,
        **_rows_json(curve, count, rows, len(members)),
    }


def _curve_metadata(group: RunGroup, trace: Trace, members: Sequence[Follower]) -> dict[str, Any]:
    return {**trace._asdict(), "group": group.key, "runs": len(members)}


def _get_bounded_values(curve: Curve) -> tuple[np.ndarray, ...]:
    """Return the values of the curve, with its bounds if it has any."""
    return curve[1:] if np.isfinite(curve[2]).any() else (curve[1],)


def _rows_json(curve: Curve, count: np.ndarray, rows: np.ndarray, runs: int) -> dict[str, Any]:
    steps, mean, low, high = (column[rows] for column in curve)
    has_bounds = len(_get_bounded_values(curve)) > 1
    points = {
        "x": steps.tolist(),
        "y": finite_json(mean),
        "low": finite_json(low) if has_bounds else None,
        "high": finite_json(high) if has_bounds else None,
    }
    return points | ({"count": count[rows].tolist()} if runs > 1 else {})


def finite_json(values: np.ndarray) -> list[float | None]:
    """Round values to seven significant digits for JSON, with None for values that are not finite."""
    finite = np.isfinite(values)
    with np.errstate(divide="ignore"):
        digits = 6 - np.floor(np.log10(np.abs(np.where(finite & (values != 0), values, 1.0))))
    is_scalable = np.abs(digits) < MAX_DIGITS
    digits = np.where(is_scalable, digits, 0.0)
    rounded = np.round(np.where(finite, values, 0.0) * 10.0**digits) / 10.0**digits
    rounded = np.where(is_scalable, rounded, values) + 0.0  # -0.0 becomes 0.0
    return [value if is_finite else None for value, is_finite in zip(rounded.tolist(), finite.tolist(), strict=True)]
