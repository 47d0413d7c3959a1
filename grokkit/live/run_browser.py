"""Any number of runs as one changing picture: grouped into seeds, thinned, and told piece by piece."""

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
from grokkit.live.follow import Follower, is_error
from grokkit.live.panels import Trace, describe_panels
from grokkit.live.series import Curve, merge_seeds
from grokkit.trajectory import find_runs, to_path
from grokkit.trajectory.documents import drop_non_finite, is_count

SHOWN = 4
"""Groups that are drawn when nobody has chosen."""
DISCOVERY_SECONDS = 2.0
EVENTS = 200
"""Newest events of a run that are told."""
LABEL = 80
"""Characters of a choice in a group's label."""


class SeedGroup:
    """Runs that differ in nothing but their seed."""

    def __init__(self, key: str, label: str) -> None:
        self.key, self.label = key, label
        self.members: list[Follower] = []
        self.size, self.reset = 0, -1

    def widen_grids(self, tick: int) -> None:
        """Widen the grids where a run has outgrown them; everything is then sent again."""
        size = max((grid_size(max(each.total_steps or 0, each.step)) for each in self.members), default=grid_size(0))
        if size != self.size:
            self.size, self.reset = size, tick

    @property
    def steps_per_epoch(self) -> float | None:
        """Updates in which every training image is seen once; None where the run does not say."""
        size = self.members[0].config.get("batch_size")
        images = self.members[0].environment.get("data", {}).get("train")
        if not (is_count(size) and is_count(images) and size and images):
            return None
        return float(-(-images // min(size, images)))


class RunBrowser:
    """The runs below some folders, for `update`. Safe to ask from several threads.

    Args:
        roots: runs, or folders that hold runs; they may appear later.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = list(map(to_path, roots))
        self.followers: dict[str, Follower] = {}
        self.groups: dict[str, SeedGroup] = {}
        self._boot = uuid.uuid4().hex[:8]
        self._tick, self._reset, self._looked = 0, 0, -DISCOVERY_SECONDS
        self._chosen: list[str] = []
        self._lock = threading.Lock()

    def update(self, cursor: str = "", groups: Sequence[str] | None = None) -> dict[str, Any]:
        """What has changed since `cursor`, as JSON values.

        Args:
            cursor: from the last answer; empty, or of another server: everything is told.
            groups: keys of the groups whose curves are wanted; None: the server's choice.

        Returns:
            `cursor`, `reset` (forget what was told before), `shown` (keys of the groups drawn),
            `groups`, and what is new of `runs`, `events`, `maps`, `panels` and `curves`. A curve replaces its points
            from step `from` on.

        Cost: of what is new since the last call by anyone, and of thinning the columns that it touches.
        """
        with self._lock:
            self._tick += 1
            self._discover()
            shown = self._select_shown(groups)
            self._refresh(shown)
            since = self._since(cursor)
            return {
                "cursor": f"{self._boot}-{self._tick}",
                "reset": since < 0,
                "now": time.time(),
                "shown": shown,
                "roots": [str(root) for root in self.roots],
                "groups": [self._group_json(group) for group in self.groups.values()],
                **self._changes(shown, since),
            }

    def window(self, key: str, low: int, high: int) -> list[dict[str, Any]]:
        """The curves of the group `key` from step `low` to `high`, as fine as a chart that shows no more than these can
        draw them; what has been read so far, as `update` tells it. Empty where there is no such group."""
        with self._lock:
            group = self.groups.get(key)
            return (
                []
                if group is None
                else [window_json(group, trace, members, low, high) for trace, members in collect_traces(group)]
            )

    def follower(self, key: str) -> Follower | None:
        """The run with this id, if it is known."""
        return self.followers.get(key)

    def _since(self, cursor: str) -> int:
        boot, _, tick = cursor.partition("-")
        # No number is read that is longer than the one it is compared with: int() refuses thousands of digits.
        known = boot == self._boot and tick.isdecimal() and len(tick) <= len(str(self._tick))
        return int(tick) if known and self._reset <= int(tick) <= self._tick else -1

    def _discover(self) -> None:
        if time.monotonic() - self._looked < DISCOVERY_SECONDS:
            return
        self._looked = time.monotonic()
        found = {follower.id: follower for follower in self._find_runs()}
        if found.keys() != self.followers.keys():
            if self.followers.keys() - found.keys():
                self._reset = self._tick
            self.followers = found
            self._group()

    def _find_runs(self) -> Iterator[Follower]:
        known = {follower.run.path: follower for follower in self.followers.values()}
        for root in self.roots:
            try:
                for run in find_runs(root):
                    yield known[run.path] if run.path in known else Follower(run)
            except (GrokkitError, OSError, ValueError):
                continue  # removed between two looks

    def _group(self) -> None:
        """Sort the runs into groups; known groups keep their grids."""
        before, self.groups = self.groups, {}
        for follower in sorted(self.followers.values(), key=lambda each: (each.run.name, str(each.run.path))):
            label, key = group_key(follower)
            if key not in self.groups:
                self.groups[key] = before.get(key, SeedGroup(key, label))
                self.groups[key].members = []
            self.groups[key].members.append(follower)
        for label in {group.label for group in self.groups.values()}:
            disambiguate_labels([group for group in self.groups.values() if group.label == label])

    def _select_shown(self, wanted: Sequence[str] | None) -> list[str]:
        if wanted is not None:
            return [key for key in dict.fromkeys(wanted) if key in self.groups]
        self._chosen = [key for key in self._chosen if key in self.groups]
        others = [key for key in self.groups if key not in self._chosen]
        for key in others:
            for member in self.groups[key].members:
                member.refresh(self._tick, deep=False)
        newest = sorted(others, key=lambda key: -max(member.updated for member in self.groups[key].members))
        self._chosen += newest[: max(SHOWN - len(self._chosen), 0)]
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

    def _changes(self, shown: list[str], since: int) -> dict[str, Any]:
        drawn = [member for key in shown for member in self.groups[key].members]
        maps = {
            each.id: [maps.describe() for maps in each.maps.values()] for each in drawn if each.maps_changed > since
        }
        traces = {trace: None for each in drawn for trace in each.series if not is_error(trace)}
        return {
            "runs": {
                each.id: drop_non_finite(run_json(each)) for each in self.followers.values() if each.changed > since
            },
            "events": {
                each.id: drop_non_finite(each.events[-EVENTS:]) for each in drawn if each.events_changed > since
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
    """What is drawn of a group, each with the members that have it."""
    for trace in dict.fromkeys(trace for member in group.members for trace in member.series):
        if not is_error(trace):
            yield trace, [member for member in group.members if trace in member.series]


def curve_json(group: SeedGroup, trace: Trace, members: Sequence[Follower], step: int) -> dict[str, Any]:
    """The thinned rows of one curve from the first column that a change at `step` touches."""
    start, needed = first_stale_step(step, group.size)
    curve, count = merge_seeds([member.points(trace, needed) for member in members])
    rows = decimate(curve[0], _line_json(curve), group.size) & (curve[0] >= start)
    return {**_label(group, trace, members), "from": start, **_rows_json(curve, count, rows, len(members))}


def window_json(group: SeedGroup, trace: Trace, members: Sequence[Follower], low: int, high: int) -> dict[str, Any]:
    """The rows of one curve from `low` to `high`, thinned for these alone."""
    curve, count = merge_seeds([member.points(trace, low) for member in members])
    end = int(np.searchsorted(curve[0], high, side="right"))
    curve, count = (curve[0][:end], curve[1][:end], curve[2][:end], curve[3][:end]), count[:end]
    rows = decimate_window(curve[0], _line_json(curve), low, high)
    return {**_label(group, trace, members), "from": low, "to": high, **_rows_json(curve, count, rows, len(members))}


def _label(group: SeedGroup, trace: Trace, members: Sequence[Follower]) -> dict[str, Any]:
    return {**trace._asdict(), "group": group.key, "seeds": len(members)}


def _line_json(curve: Curve) -> tuple[np.ndarray, ...]:
    """The line, and its bounds where it has any."""
    return curve[1:] if np.isfinite(curve[2]).any() else (curve[1],)


def _rows_json(curve: Curve, count: np.ndarray, rows: np.ndarray, seeds: int) -> dict[str, Any]:
    steps, mean, low, high = (part[rows] for part in curve)
    bounded = len(_line_json(curve)) > 1
    told = {
        "x": steps.tolist(),
        "y": finite_json(mean),
        "low": finite_json(low) if bounded else None,
        "high": finite_json(high) if bounded else None,
    }
    return told | ({"count": count[rows].tolist()} if seeds > 1 else {})


def finite_json(values: np.ndarray) -> list[float | None]:
    """Numbers to seven digits; None where one is not finite."""
    finite = np.isfinite(values)
    with np.errstate(divide="ignore"):
        digits = 6 - np.floor(np.log10(np.abs(np.where(finite & (values != 0), values, 1.0))))
    digits = digits.clip(-300, 300)
    rounded = np.round(np.where(finite, values, 0.0) * 10.0**digits) / 10.0**digits
    return [value if good else None for value, good in zip(rounded.tolist(), finite.tolist(), strict=True)]


def run_json(follower: Follower) -> dict[str, Any]:
    """How one run stands."""
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
        "ends_at": follower.ends_at(),
        "seconds": follower.seconds,
        "price": status.get("price"),
        "spent": status.get("spent"),
        "costs": dict(follower.costs),
        "device": follower.environment.get("device", ""),
        "problems": list(follower.problems.values()),
        "classes": follower.environment.get("data", {}).get("classes", []),
    }


def group_key(follower: Follower) -> tuple[str, str]:
    """Name without the seed, and a key of everything but the seed."""
    label = re.sub(r"-s\d+(-[0-9a-f]+)?$", "", follower.run.name)
    rest = {name: value for name, value in follower.config.items() if name != "seed"}
    content = f"{label} {json.dumps(rest, sort_keys=True, default=str)}"
    return label, hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()[:10]


def disambiguate_labels(groups: Sequence[SeedGroup]) -> None:
    """Give groups of one name the choices in which they differ."""
    if len(groups) < 2:
        return
    flats = [flatten(group.members[0].config) for group in groups]
    differing = sorted(
        name for name in set().union(*flats) if name != "seed" and len({repr(flat.get(name)) for flat in flats}) > 1
    )
    for group, flat in zip(groups, flats, strict=True):
        told = ", ".join(f"{name} {flat[name]}"[:LABEL] for name in differing[:3] if name in flat)
        group.label = f"{group.label} ({told or 'others'})"
