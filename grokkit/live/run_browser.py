"""Discover runs below some folders, group them by seed, and return curves and status as incremental JSON updates.

Terms: a tick is the number of a call of `RunBrowser.update`; everything carries the tick of its last change, and a
client's cursor that of its last update. A column is one pixel column of the chart, and the grids are the two divisions
of a chart's steps into columns, one linear and one logarithmic (see `decimate`). A reset discards what was sent before.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grokkit.config.overrides import flatten
from grokkit.errors import GrokkitError
from grokkit.live.decimate import decimate, decimate_window, first_stale_step, grid_size
from grokkit.live.follow import Follower, is_bound
from grokkit.live.panels import Trace, describe_panels
from grokkit.live.series import Curve, merge_seeds
from grokkit.trajectory import find_runs, to_path
from grokkit.trajectory.documents import drop_non_finite, is_count

DEFAULT_GROUPS = 4
"""Number of groups that are drawn by default."""
DISCOVERY_SECONDS = 2.0
MAX_EVENTS = 200
"""Number of newest events of a run that are sent."""
MAX_LABEL_CHARACTERS = 80
"""Maximum length of a config value in a group's label."""


class SeedGroup:
    """Group of runs that differ only in their seed.

    `size` is the number of steps that its grids span, `reset` the tick from which all its curves have to be sent again.
    """

    def __init__(self, key: str, label: str) -> None:
        self.key, self.label = key, label
        self.members: list[Follower] = []
        self.size, self.reset = 0, -1

    def widen_grids(self, tick: int) -> None:
        """Widen the grids if a run is longer than they are; all curves are then sent again, in new columns."""
        size = max((grid_size(max(each.total_steps or 0, each.step)) for each in self.members), default=grid_size(0))
        if size != self.size:
            self.size, self.reset = size, tick

    @property
    def steps_per_epoch(self) -> float | None:
        """Optimizer updates per epoch; None if the run does not record what is needed."""
        size = self.members[0].config.get("batch_size")
        images = self.members[0].environment.get("data", {}).get("train")
        if not (is_count(size) and is_count(images) and size and images):
            return None
        return float(-(-images // min(size, images)))


class RunBrowser:
    """Browser over the runs below some folders. Thread-safe.

    Args:
        roots: run folders, or folders that contain runs; they may be created later.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = list(map(to_path, roots))
        self.followers: dict[str, Follower] = {}
        self.groups: dict[str, SeedGroup] = {}
        self._boot = uuid.uuid4().hex[:8]
        self._tick, self._reset, self._last_discovery = 0, 0, -DISCOVERY_SECONDS
        self._chosen: list[str] = []
        self._lock = threading.Lock()

    def update(self, cursor: str = "", groups: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what has changed since `cursor`, as JSON values.

        Args:
            cursor: `cursor` of the last update; everything is sent if it is empty or from another server.
            groups: keys of the groups whose curves are requested; None: chosen by the server.

        Returns:
            `cursor`, `reset` (true: the client must discard all earlier updates), `shown` (keys of the groups drawn),
            `groups`, and what is new of `runs`, `events`, `maps`, `panels` and `curves`. A curve replaces its points
            from step `from` on.

        Cost: proportional to what is new since the last call by any client, plus decimating the affected pixel columns.
        """
        with self._lock:
            self._tick += 1
            self._discover()
            shown = self._select_shown(groups)
            self._refresh(shown)
            since = self._parse_cursor(cursor)
            return {
                "cursor": f"{self._boot}-{self._tick}",
                "reset": since < 0,
                "now": time.time(),
                "shown": shown,
                "roots": [str(root) for root in self.roots],
                "groups": [self._group_json(group) for group in self.groups.values()],
                **self._collect_changes(shown, since),
            }

    def get_window(self, key: str, low: int, high: int) -> list[dict[str, Any]]:
        """Return the curves of the group `key` from step `low` to `high`, decimated for a chart of only this window, in
        the form of `update` and from what has been read so far. Empty if the group does not exist."""
        with self._lock:
            group = self.groups.get(key)
            return (
                []
                if group is None
                else [window_json(group, trace, members, low, high) for trace, members in collect_traces(group)]
            )

    def get_follower(self, key: str) -> Follower | None:
        """Return the follower of the run with this id; None if unknown."""
        return self.followers.get(key)

    def _parse_cursor(self, cursor: str) -> int:
        boot, _, tick = cursor.partition("-")
        # Compare the length first: int() raises ValueError for thousands of digits.
        is_known = boot == self._boot and tick.isdecimal() and len(tick) <= len(str(self._tick))
        return int(tick) if is_known and self._reset <= int(tick) <= self._tick else -1

    def _discover(self) -> None:
        if time.monotonic() - self._last_discovery < DISCOVERY_SECONDS:
            return
        self._last_discovery = time.monotonic()
        found = {follower.id: follower for follower in self._find_runs()}
        if found.keys() != self.followers.keys():
            if self.followers.keys() - found.keys():
                self._reset = self._tick
            self.followers = found
            self._rebuild_groups()

    def _find_runs(self) -> Iterator[Follower]:
        known = {follower.run.path: follower for follower in self.followers.values()}
        for root in self.roots:
            try:
                for run in find_runs(root):
                    yield known[run.path] if run.path in known else Follower(run)
            except (GrokkitError, OSError, ValueError):
                continue  # removed in the meantime

    def _rebuild_groups(self) -> None:
        """Assign the runs to groups; existing groups keep their grids."""
        before, self.groups = self.groups, {}
        for follower in sorted(self.followers.values(), key=lambda each: (each.run.name, str(each.run.path))):
            label, key = group_key(follower)
            if key not in self.groups:
                self.groups[key] = before.get(key, SeedGroup(key, label))
                self.groups[key].members = []
            self.groups[key].members.append(follower)
        for label in {group.label for group in self.groups.values()}:
            disambiguate_labels([group for group in self.groups.values() if group.label == label])

    def _select_shown(self, requested: Sequence[str] | None) -> list[str]:
        if requested is not None:
            return [key for key in dict.fromkeys(requested) if key in self.groups]
        self._chosen = [key for key in self._chosen if key in self.groups]
        others = [key for key in self.groups if key not in self._chosen]
        for key in others:
            for member in self.groups[key].members:
                member.refresh(self._tick, deep=False)
        newest = sorted(others, key=lambda key: -max(member.updated for member in self.groups[key].members))
        self._chosen += newest[: max(DEFAULT_GROUPS - len(self._chosen), 0)]
        return [key for key in self.groups if key in self._chosen]

    def _refresh(self, shown: list[str]) -> None:
        for key, group in self.groups.items():
            for member in group.members:
                if not member.refresh(self._tick, deep=key in shown):
                    self._reset = self._tick
            group.widen_grids(self._tick)

    def _group_json(self, group: SeedGroup) -> dict[str, Any]:
        return {
            "key": group.key,
            "label": group.label,
            "steps_per_epoch": group.steps_per_epoch,
            "runs": [member.id for member in group.members],
        }

    def _collect_changes(self, shown: list[str], since: int) -> dict[str, Any]:
        drawn = [member for key in shown for member in self.groups[key].members]
        maps = {
            each.id: [maps.describe() for maps in each.maps.values()] for each in drawn if each.maps_changed > since
        }
        traces = {trace: None for each in drawn for trace in each.series if not is_bound(trace)}
        return {
            "runs": {
                each.id: drop_non_finite(run_json(each)) for each in self.followers.values() if each.changed > since
            },
            "events": {
                each.id: drop_non_finite(each.events[-MAX_EVENTS:]) for each in drawn if each.events_changed > since
            },
            "maps": maps,
            "panels": describe_panels(traces),
            "curves": [curve for key in shown for curve in self._curves(self.groups[key], since)],
        }

    def _curves(self, group: SeedGroup, since: int) -> Iterator[dict[str, Any]]:
        if group.reset > since:
            since = -1
        if max((member.series_changed for member in group.members), default=-1) <= since:
            return
        for trace, members in collect_traces(group):
            steps = [step for each in members if (step := each.series[trace].changed_since(since)) is not None]
            if steps:
                yield curve_json(group, trace, members, min(steps))


def collect_traces(group: SeedGroup) -> Iterator[tuple[Trace, list[Follower]]]:
    """Yield the traces that are drawn of a group, each with the members that have it."""
    for trace in dict.fromkeys(trace for member in group.members for trace in member.series):
        if not is_bound(trace):
            yield trace, [member for member in group.members if trace in member.series]


def curve_json(group: SeedGroup, trace: Trace, members: Sequence[Follower], step: int) -> dict[str, Any]:
    """Return the decimated rows of one curve from the first column that a change at `step` affects."""
    start, needed = first_stale_step(step, group.size)
    curve, count = merge_seeds([member.get_curve(trace, needed) for member in members])
    rows = decimate(curve[0], _get_bounded_values(curve), group.size) & (curve[0] >= start)
    return {**_curve_metadata(group, trace, members), "from": start, **_rows_json(curve, count, rows, len(members))}


def window_json(group: SeedGroup, trace: Trace, members: Sequence[Follower], low: int, high: int) -> dict[str, Any]:
    """Return the rows of one curve from `low` to `high`, decimated for this window."""
    curve, count = merge_seeds([member.get_curve(trace, low) for member in members])
    end = int(np.searchsorted(curve[0], high, side="right"))
    curve, count = (curve[0][:end], curve[1][:end], curve[2][:end], curve[3][:end]), count[:end]
    rows = decimate_window(curve[0], _get_bounded_values(curve), low, high)
    return {
        **_curve_metadata(group, trace, members),
        "from": low,
        "to": high,
        **_rows_json(curve, count, rows, len(members)),
    }


def _curve_metadata(group: SeedGroup, trace: Trace, members: Sequence[Follower]) -> dict[str, Any]:
    return {**trace._asdict(), "group": group.key, "seeds": len(members)}


def _get_bounded_values(curve: Curve) -> tuple[np.ndarray, ...]:
    """Return the values of the curve, with its bounds if it has any."""
    return curve[1:] if np.isfinite(curve[2]).any() else (curve[1],)


def _rows_json(curve: Curve, count: np.ndarray, rows: np.ndarray, seeds: int) -> dict[str, Any]:
    steps, mean, low, high = (column[rows] for column in curve)
    has_bounds = len(_get_bounded_values(curve)) > 1
    points = {
        "x": steps.tolist(),
        "y": finite_json(mean),
        "low": finite_json(low) if has_bounds else None,
        "high": finite_json(high) if has_bounds else None,
    }
    return points | ({"count": count[rows].tolist()} if seeds > 1 else {})


def finite_json(values: np.ndarray) -> list[float | None]:
    """Round values to seven significant digits for JSON, with None for values that are not finite."""
    finite = np.isfinite(values)
    with np.errstate(divide="ignore"):
        digits = 6 - np.floor(np.log10(np.abs(np.where(finite & (values != 0), values, 1.0))))
    digits = digits.clip(-300, 300)
    rounded = np.round(np.where(finite, values, 0.0) * 10.0**digits) / 10.0**digits
    return [value if is_finite else None for value, is_finite in zip(rounded.tolist(), finite.tolist(), strict=True)]


def run_json(follower: Follower) -> dict[str, Any]:
    """Return the status of one run as JSON values."""
    status = follower.status
    return {
        "id": follower.id,
        "name": follower.run.name,
        "seed": follower.config.get("seed", 0),
        "state": follower.state,
        "reason": status.get("reason") or "",
        "step": follower.step,
        "total_steps": follower.total_steps,
        "attempt": status.get("attempt"),
        "updated": follower.updated,
        "ends_at": follower.estimate_end_time(),
        "seconds": follower.seconds,
        "price": status.get("price"),
        "spent": status.get("spent"),
        "costs": dict(follower.costs),
        "device": follower.environment.get("device", ""),
        "problems": list(follower.problems.values()),
        "classes": follower.environment.get("data", {}).get("classes", []),
    }


def group_key(follower: Follower) -> tuple[str, str]:
    """Return the run's name without the seed, and a hash of its config without the seed."""
    label = re.sub(r"-s\d+(-[0-9a-f]+)?$", "", follower.run.name)
    rest = {name: value for name, value in follower.config.items() if name != "seed"}
    content = f"{label} {json.dumps(rest, sort_keys=True, default=str)}"
    return label, hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()[:10]


def disambiguate_labels(groups: Sequence[SeedGroup]) -> None:
    """Append the config values in which they differ to the labels of groups with the same name."""
    if len(groups) < 2:
        return
    flats = [flatten(group.members[0].config) for group in groups]
    differing = sorted(
        name for name in set().union(*flats) if name != "seed" and len({repr(flat.get(name)) for flat in flats}) > 1
    )
    for group, flat in zip(groups, flats, strict=True):
        differences = ", ".join(f"{name} {flat[name]}"[:MAX_LABEL_CHARACTERS] for name in differing[:3] if name in flat)
        group.label = f"{group.label} ({differences or 'others'})"
