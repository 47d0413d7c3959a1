"""Discover runs below some folders, group them by config, and return curves and status as incremental JSON updates.

Terms: a tick is the number of a call of `RunBrowser.update`; everything carries the tick of its last change, and a
client's cursor that of its last update. A column is one pixel column of the chart, and the grids are the two divisions
of a chart's steps into columns, one linear and one logarithmic (see `decimate`). A reset discards what was sent before.
"""

from __future__ import annotations

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from grokkit.config.groups import Group, group_of, label_groups, sort_labels, split_common_name
from grokkit.errors import GrokkitError
from grokkit.live.curves import RunGroup, collect_traces, curve_json, window_json
from grokkit.live.follow import Follower, is_bound
from grokkit.live.panels import describe_panels
from grokkit.live.sources import label_sources
from grokkit.trajectory import find_runs, to_path
from grokkit.trajectory.documents import drop_non_finite

DEFAULT_GROUPS = 4
"""Number of groups that are drawn by default."""
DISCOVERY_SECONDS = 2.0
MAX_EVENTS = 200
"""Number of newest events of a run that are sent."""


class RunBrowser:
    """Browser over the runs below some folders. Thread-safe.

    Args:
        roots: run folders, or folders that contain runs; they may be created later.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = list(map(to_path, roots))
        self.followers: dict[str, Follower] = {}
        self.groups: dict[str, RunGroup] = {}
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
            `groups`, `sources` (what labels must add for measures and attributions with several settings), and what is
            new of `runs`, `events`, `maps`, `panels` and `curves`. A curve replaces its points from step `from` on.

        Cost: proportional to what is new since the last call by any client, plus decimating the affected pixel columns.
        """
        with self._lock:
            self._tick += 1
            self._discover()
            shown = self._select_shown(groups)
            if not self._refresh(shown):
                self._rebuild_groups()  # the new run may belong to another group
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
        members: dict[Group, list[Follower]] = {}
        for follower in sorted(self.followers.values(), key=lambda each: (each.run.name, str(each.run.path))):
            members.setdefault(identify_group(follower), []).append(follower)
        labels = label_groups({identity: followers[0].config for identity, followers in members.items()})
        for identity, followers in members.items():
            key = hashlib.sha256("\n".join(identity).encode(errors="backslashreplace")).hexdigest()[:10]
            group = self.groups[key] = before.get(key) or RunGroup(key)
            if group.members and group.members != followers:
                group.reset = self._tick  # the mean is over other runs
            group.members, group.label = followers, labels[identity]
        order = sort_labels(labels.values())
        self.groups = dict(sorted(self.groups.items(), key=lambda item: order.index(item[1].label)))
        _, differences = split_common_name(order)
        for group in self.groups.values():
            group.short = differences[order.index(group.label)]

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

    def _refresh(self, shown: list[str]) -> bool:
        """Read what is new; return False if a folder now contains another run."""
        is_replaced = False
        for key, group in self.groups.items():
            for member in group.members:
                if not member.refresh(self._tick, deep=key in shown):
                    self._reset, is_replaced = self._tick, True
            group.widen_grids(self._tick)
        return not is_replaced

    def _group_json(self, group: RunGroup) -> dict[str, Any]:
        return {
            "key": group.key,
            "label": group.label,
            "short": group.short,
            "steps_per_epoch": group.steps_per_epoch,
            "runs": [member.id for member in group.members],
        }

    def _collect_changes(self, shown: list[str], since: int) -> dict[str, Any]:
        drawn = [member for key in shown for member in self.groups[key].members]
        maps = {
            each.id: [maps.describe() for maps in each.maps.values()] for each in drawn if each.maps_changed > since
        }
        sources = label_sources([each.sources for each in drawn])
        traces = {trace: None for each in drawn for trace in each.series if not is_bound(trace)}
        return {
            "runs": {
                each.id: drop_non_finite(run_json(each)) for each in self.followers.values() if each.changed > since
            },
            "events": {
                each.id: drop_non_finite(each.events[-MAX_EVENTS:]) for each in drawn if each.events_changed > since
            },
            "maps": maps,
            "sources": {key: label for key, label in sources.items() if label},
            "panels": describe_panels(traces),
            "curves": [curve for key in shown for curve in self._curves(self.groups[key], since)],
        }

    def _curves(self, group: RunGroup, since: int) -> Iterator[dict[str, Any]]:
        if group.reset > since:
            since = -1
        if max((member.series_changed for member in group.members), default=-1) <= since:
            return
        for trace, members in collect_traces(group):
            steps = [step for each in members if (step := each.series[trace].changed_since(since)) is not None]
            if steps:
                yield curve_json(group, trace, members, min(steps))


def identify_group(follower: Follower) -> Group:
    """Return the group of a run; a run whose config cannot be read has a group of its own."""
    name = follower.run.name
    return group_of(name, follower.config) if follower.config else Group(name, "")


def run_json(follower: Follower) -> dict[str, Any]:
    """Return the status of one run as JSON values."""
    status = follower.status
    return {
        "id": follower.id,
        "name": follower.run.name,
        "seed": follower.config.get("seed"),
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
