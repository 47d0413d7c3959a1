"""One run followed: its logs by byte offsets, its readings by the names of their files, its state by a time stamp."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from grokkit.errors import GrokkitError, TrajectoryError
from grokkit.live.maps import MapSet
from grokkit.live.panels import ENDS, SIGNALS, STANDARD_ERROR, Trace, TraceRow, metric_trace, reading_traces
from grokkit.live.series import ATTEMPT, VALUE, Curve, Series
from grokkit.trajectory import Run, documents, log, store
from grokkit.trajectory.run import effective_events

Listed = TypeVar("Listed", str, int)

PACE_SECONDS = 900.0
"""How far back the present speed is measured."""
ENDED_STATES = ("done", "failed", "interrupted", "killed", "unreadable")
CHECKS = {"metrics": documents.parse_metric, "events": documents.parse_event}


class Follower:
    """What is known of a run so far; `refresh` reads what is new. Nothing is ever read twice.

    What cannot be read is a sentence in `find_problems`, by what it is about; a run whose status cannot be read has the
    state `unreadable`.

    Args:
        run: the run, opened for reading.
        maps: whether attribution maps are wanted.
    """

    def __init__(self, run: Run, maps: bool = True) -> None:
        self.run, self._rooms = run, ("measures", "attributions") if maps else ("measures",)
        self.id = hashlib.sha256(os.fsencode(run.path.resolve())).hexdigest()[:10]
        self._begin()

    def _begin(self) -> None:
        self.series: dict[Trace, Series] = {}
        self.maps: dict[str, MapSet] = {}
        self.events: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}
        self.state, self.step, self.updated = "starting", 0, 0.0
        self.problems: dict[str, str] = {}
        self.changed = self.events_changed = self.maps_changed = self.series_changed = -1
        self._offsets = {"metrics": 0, "events": 0}
        self._stamps: dict[str, Any] = {}
        self._seen: dict[tuple[str, str, int], int] = {}
        self._damaged = {"metrics": 0, "events": 0}
        self._newest = (0, 0)
        self._every_event: list[dict[str, Any]] = []
        self._pace: deque[tuple[float, int]] = deque()
        self.config, self.environment = self._facts("config"), self._facts("environment")
        self._birth = _get_stamp(self.run.path / "config.toml")

    def _facts(self, name: str) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = getattr(self.run, name)
        except GrokkitError as error:
            self.problems[name] = str(error)
            return {}
        return facts

    def refresh(self, tick: int, deep: bool = True) -> bool:
        """Read what is new and note it under `tick`.

        Args:
            tick: number of this look, higher than at the last one.
            deep: also read curves, events and maps; without, only how the run stands.

        Returns:
            False where another run lies in the folder now, and all is read afresh.
        """
        try:
            same = self._read(tick, deep)
        except Exception as error:  # whatever nobody foresaw in this folder, the other runs go on
            self._tell("run", f"{self.run.path} cannot be followed: {type(error).__name__}: {error}", tick)
            self.state, self.changed = "unreadable", tick
            return True
        self._tell("run", None, tick)
        return same

    def _read(self, tick: int, deep: bool) -> bool:
        same = _get_stamp(self.run.path / "config.toml") == self._birth and not self._shrunk()
        if not same:
            self._begin()
        self._read_status(tick)
        if deep:
            self._read_metrics(tick)
            self._read_events(tick)
            for room in self._rooms:
                self._read_files(room, tick)
        self._observe(tick)
        return same

    def _shrunk(self) -> bool:
        return any(_get_size(self._log(name)) < offset for name, offset in self._offsets.items())

    def _tell(self, about: str, problem: str | None, tick: int) -> None:
        """Note what is wrong, or that nothing is any more."""
        if self.problems.get(about) == problem:
            return
        self.changed = tick
        if problem is None:
            del self.problems[about]
        else:
            self.problems[about] = problem

    def _log(self, name: str) -> Path:
        return self.run.path / f"{name}.jsonl"

    def _read_status(self, tick: int) -> None:
        stamp = _get_stamp(self.run.path / "status.json")
        try:
            if stamp != self._stamps.get("status"):
                self.status = self.run.status
                self._stamps["status"] = stamp
                self.changed = tick
            state = self.run.state if self.status.get("state") in ("starting", "running") else self.status["state"]
        except (GrokkitError, OSError) as error:
            state = "unreadable"
            self._tell("status", str(error), tick)
        else:
            self._tell("status", None, tick)
        if state != self.state:
            self.state, self.changed = state, tick

    def _new_records(self, name: str, tick: int) -> list[dict[str, Any]]:
        path, offset = self._log(name), self._offsets[name]
        records: list[dict[str, Any]] = []
        try:
            documents.refuse_irregular(path)
            if _get_size(path) > offset:
                records, self._offsets[name], damaged = log.read_log_from(path, offset, CHECKS[name])
                self._damaged[name] += damaged
        except TrajectoryError as error:
            self._tell(path.name, str(error), tick)
            return []
        lost = self._damaged[name]
        self._tell(path.name, f"damaged lines of {path} that are left out: {lost}" if lost else None, tick)
        return records

    def _read_metrics(self, tick: int) -> None:
        records = self._new_records("metrics", tick)
        found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            found[record["split"], record["metric"]].append(record)
        for (split, metric), rows in found.items():
            columns = np.full((len(rows), 4), np.nan)
            columns[:, VALUE] = [row["value"] for row in rows]
            columns[:, ATTEMPT] = [row["attempt"] for row in rows]
            steps = [row["step"] for row in rows]
            self._extend(metric_trace(split, metric, str(self.config.get("loss", ""))), steps, columns, tick)
            self._newest = max(self._newest, (rows[-1]["attempt"], steps[-1]))

    def _extend(self, trace: Trace, steps: Any, rows: np.ndarray, tick: int) -> None:
        self.series.setdefault(trace, Series()).extend(steps, rows, tick)
        self.series_changed = tick

    def _read_events(self, tick: int) -> None:
        if new := self._new_records("events", tick):
            self._every_event += new
            self.events, self.events_changed = effective_events(self._every_event), tick

    def _read_files(self, room: str, tick: int) -> None:
        for identity, steps in self._changed_folders(room, tick):
            for step in steps:
                path = self.run.path / room / identity / store.step_file_name(step)
                key = room, identity, step
                if self._seen.get(key) == -1 or self._seen.get(key) == _get_stamp(path)[1]:
                    continue
                try:
                    self._take(room, identity, step, tick)
                    self._seen[key] = -1
                    self._tell(str(path), None, tick)
                except Exception as error:  # a file can be whole and hold anything
                    # Said once, and tried again when the file has changed: a replay makes damaged ones good.
                    self._seen[key] = _get_stamp(path)[1]
                    why = str(error) if isinstance(error, TrajectoryError) else f"{type(error).__name__}: {error}"
                    self._tell(str(path), why if str(path) in why else f"{path} cannot be shown: {why}", tick)

    def _changed_folders(self, room: str, tick: int) -> Iterator[tuple[str, list[int]]]:
        """Identities whose folder has other files than at the last look, with the steps in it."""
        for name in self._listed(store.list_identities, self.run.path / room, tick):
            folder = self.run.path / room / name
            stamp = _get_stamp(folder)
            if self._stamps.get(str(folder)) != stamp:
                self._stamps[str(folder)] = stamp
                yield name, self._listed(store.list_steps, folder, tick)

    def _listed(self, look: Callable[[Path], list[Listed]], folder: Path, tick: int) -> list[Listed]:
        """What is in a folder; nothing, and why, where it cannot be read."""
        found, why = list[Listed](), None
        try:
            found = look(folder)
        except TrajectoryError as error:
            why = str(error)
        self._tell(str(folder), why, tick)
        return found

    def _take(self, room: str, identity: str, step: int, tick: int) -> None:
        if room == "measures":
            for trace, *numbers in _validate_rows(list(reading_traces(self.run.reading(identity, step)))):
                self._extend(trace, [step], np.array([[*numbers, 1.0]]), tick)
        else:
            values, labels, note = self.run.attribution(identity, step)
            maps = self.maps.get(identity) or MapSet(identity, note, labels)
            maps.add(step, values)
            self.maps[identity], self.maps_changed = maps, tick

    def _observe(self, tick: int) -> None:
        """Note where the run is by now, for its pace."""
        attempt, logged = self._newest
        step = max(int(self.status.get("step") or 0), logged if attempt == self.status.get("attempt") else 0)
        now = max(float(self.status.get("updated") or 0.0), _get_stamp(self._log("metrics"))[1] / 1e9)
        if step != self.step or now != self.updated:
            self.step, self.updated, self.changed = step, now, tick
        if self._pace and step < self._pace[-1][1]:
            self._pace.clear()
        if not self._pace or step > self._pace[-1][1]:
            self._pace.append((now, step))
        while len(self._pace) > 2 and now - self._pace[0][0] > PACE_SECONDS:
            self._pace.popleft()

    @property
    def total_steps(self) -> int | None:
        """How long the run is meant to be; None where that is not known."""
        return self.status.get("total_steps")

    @property
    def seconds(self) -> float:
        """Wall seconds of the run over all attempts, as its status says; the sum of its costs in older runs."""
        told = self.status.get("seconds")
        return float(sum(self.costs.values()) if told is None else told)

    @property
    def costs(self) -> Mapping[str, float]:
        """Seconds of training and of each instrument."""
        return self.status.get("costs") or {}

    def ends_at(self) -> float | None:
        """Unix time at which the run will be over at the pace of the last quarter of an hour, or at its mean pace where
        it has not been watched yet; None where that cannot be said."""
        if self.state != "running" or not self.total_steps or not self.step:
            return None
        (then, before), (now, step) = self._pace[0], self._pace[-1]
        pace = (now - then) / (step - before) if step > before and now > then else self.seconds / self.step
        return now + pace * max(self.total_steps - step, 0) if pace > 0 else None

    def points(self, trace: Trace, start: int) -> Curve:
        """Steps, values, lows and highs from `start` on; a logged standard error bounds its number."""
        steps, values, low, high = self.series[trace].since(start)
        if trace.panel not in SIGNALS:
            return steps, values, low, high
        error, below, above = (self._beside(trace, ending, steps, start) for ending in (STANDARD_ERROR, *ENDS))
        if error is not None:
            with np.errstate(invalid="ignore", over="ignore"):  # a signal of -inf has an error of inf
                low, high = values - error, values + error
        elif below is not None and above is not None:
            low, high = below, above
        return steps, values, np.where(np.isfinite(values), low, np.nan), np.where(np.isfinite(values), high, np.nan)

    def _beside(self, trace: Trace, ending: str, steps: np.ndarray, start: int) -> np.ndarray | None:
        """What was logged at `steps` under the signal's name with an ending; NaN where nothing was, None where it never
        is."""
        of = metric_trace("signal", trace.label.replace(" ", "_") + ending, "")
        if of not in self.series:
            return None
        at, values, _, _ = self.series[of].since(start)
        places = np.minimum(np.searchsorted(at, steps), max(len(at) - 1, 0))
        return np.where(at[places] == steps, values[places], np.nan) if len(at) else np.full(len(steps), np.nan)


def _validate_rows(rows: Sequence[TraceRow]) -> Sequence[TraceRow]:
    """The rows of a reading, whose labels are to be text: pages sort them and write them as JSON."""
    for trace, *_ in rows:
        odd = [
            value for name, value in trace._asdict().items() if not isinstance(value, int if name == "order" else str)
        ]
        if odd:
            raise TrajectoryError(f"a label or unit is {odd[0]!r}; expected text")
    return rows


def is_error(trace: Trace) -> bool:
    """Whether a trace bounds another one, and is not drawn by itself."""
    return trace.panel in SIGNALS and trace.label.endswith(tuple(f" {end[1:]}" for end in (STANDARD_ERROR, *ENDS)))


def _get_stamp(path: Path) -> tuple[int, int]:
    """Inode and time of the last change; zeros where there is nothing."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _get_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
