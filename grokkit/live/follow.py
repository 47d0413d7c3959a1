"""Follow one run incrementally: logs by byte offset, readings by file name, status by time stamp."""

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
from grokkit.live.panels import (
    BOUND_SUFFIXES,
    SIGNAL_PANELS,
    STANDARD_ERROR_SUFFIX,
    Trace,
    TraceRow,
    make_source,
    metric_trace,
    reading_traces,
)
from grokkit.live.series import ATTEMPT, VALUE, Curve, Series
from grokkit.live.sources import Source
from grokkit.names import Reading
from grokkit.trajectory import Run, documents, log, store

Entry = TypeVar("Entry", str, int)

SPEED_WINDOW_SECONDS = 900.0
"""Length of the window over which the current speed is measured."""
ENDED_STATES = ("done", "failed", "interrupted", "killed", "unreadable")
RECORD_PARSERS = {"metrics": documents.parse_metric, "events": documents.parse_event}


class Follower:
    """State of a run as read so far; `refresh` reads what is new, and nothing is read twice.

    Errors are collected in `problems`, by file or subject; a run whose status cannot be read has the state
    `unreadable`.

    Args:
        run: the run, opened for reading.
        maps: whether to read attribution maps.
    """

    def __init__(self, run: Run, maps: bool = True) -> None:
        self.run, self._folders = run, ("measures", "attributions") if maps else ("measures",)
        self.id = hashlib.sha256(os.fsencode(run.path.resolve())).hexdigest()[:10]
        self._reset()

    def _reset(self) -> None:
        self.series: dict[Trace, Series] = {}
        self.maps: dict[str, MapSet] = {}
        self.sources: dict[str, Source] = {}
        self.events: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}
        self.state, self.step, self.updated = "starting", 0, 0.0
        self.problems: dict[str, str] = {}
        self.changed = self.events_changed = self.maps_changed = self.series_changed = -1
        self._offsets = {"metrics": 0, "events": 0}
        self._stamps: dict[str, Any] = {}
        self._file_stamps: dict[tuple[str, str, int], int] = {}
        self._damaged = {"metrics": 0, "events": 0}
        self._newest = (0, 0)
        self._identities: dict[str, dict[str, str]] = defaultdict(dict)  # by source and identity
        self._all_events: list[dict[str, Any]] = []
        self._progress: deque[tuple[float, int]] = deque()
        self.config, self.environment = self._read_metadata("config"), self._read_metadata("environment")
        self._config_stamp = _get_stamp(self.run.path / "config.toml")

    def _read_metadata(self, name: str) -> dict[str, Any]:
        try:
            metadata: dict[str, Any] = getattr(self.run, name)
        except GrokkitError as error:
            self.problems[name] = str(error)
            return {}
        return metadata

    def refresh(self, tick: int, deep: bool = True) -> bool:
        """Read what is new and mark it as changed at `tick`.

        Args:
            tick: number of this refresh, higher than that of the last one.
            deep: also read curves, events and maps; otherwise only the status.

        Returns:
            False if the folder now contains another run, so that everything was read again.
        """
        try:
            is_same_run = self._read(tick, deep)
        except Exception as error:  # an unforeseen error in this folder must not end the view of other runs
            self._set_problem("run", f"{self.run.path} cannot be followed: {type(error).__name__}: {error}", tick)
            self.state, self.changed = "unreadable", tick
            return True
        self._set_problem("run", None, tick)
        return is_same_run

    def _read(self, tick: int, deep: bool) -> bool:
        is_same_run = _get_stamp(self.run.path / "config.toml") == self._config_stamp and not self._has_shrunk()
        if not is_same_run:
            self._reset()
        self._read_status(tick)
        if deep:
            self._read_metrics(tick)
            self._read_events(tick)
            for kind in self._folders:
                self._read_files(kind, tick)
        self._update_progress(tick)
        return is_same_run

    def _has_shrunk(self) -> bool:
        return any(_get_size(self._log_path(name)) < offset for name, offset in self._offsets.items())

    def _set_problem(self, subject: str, problem: str | None, tick: int) -> None:
        """Record the problem of a subject, or clear it if `problem` is None."""
        if self.problems.get(subject) == problem:
            return
        self.changed = tick
        if problem is None:
            del self.problems[subject]
        else:
            self.problems[subject] = problem

    def _log_path(self, name: str) -> Path:
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
            self._set_problem("status", str(error), tick)
        else:
            self._set_problem("status", None, tick)
        if state != self.state:
            self.state, self.changed = state, tick

    def _read_new_records(self, name: str, tick: int) -> list[dict[str, Any]]:
        path, offset = self._log_path(name), self._offsets[name]
        records: list[dict[str, Any]] = []
        try:
            documents.require_regular_file(path)
            if _get_size(path) > offset:
                records, self._offsets[name], damaged = log.read_log_from(path, offset, RECORD_PARSERS[name])
                self._damaged[name] += damaged
        except TrajectoryError as error:
            self._set_problem(path.name, str(error), tick)
            return []
        damaged_lines = self._damaged[name]
        self._set_problem(
            path.name, f"damaged lines of {path}, skipped: {damaged_lines}" if damaged_lines else None, tick
        )
        return records

    def _read_metrics(self, tick: int) -> None:
        records = self._read_new_records("metrics", tick)
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for record in records:
            groups[record["split"], record["metric"]].append(record)
        for (split, metric), rows in groups.items():
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
        if new := self._read_new_records("events", tick):
            self._all_events += new
            self.events, self.events_changed = log.effective_events(self._all_events), tick

    def _read_files(self, kind: str, tick: int) -> None:
        for identity, steps in self._list_changed_folders(kind, tick):
            for step in steps:
                path = self.run.path / kind / identity / store.step_file_name(step)
                key = kind, identity, step
                if self._file_stamps.get(key) == -1 or self._file_stamps.get(key) == _get_stamp(path)[1]:
                    continue
                try:
                    self._read_result(kind, identity, step, tick)
                    self._file_stamps[key] = -1
                    self._set_problem(str(path), None, tick)
                except Exception as error:  # a file with a valid digest may still have any content
                    # Reported once, and read again when the file has changed: a replay repairs damaged files.
                    self._file_stamps[key] = _get_stamp(path)[1]
                    reason = str(error) if isinstance(error, TrajectoryError) else f"{type(error).__name__}: {error}"
                    self._set_problem(
                        str(path), reason if str(path) in reason else f"{path} cannot be shown: {reason}", tick
                    )

    def _list_changed_folders(self, kind: str, tick: int) -> Iterator[tuple[str, list[int]]]:
        """Yield the identities whose folder has changed since the last refresh, with the steps in it."""
        for name in self._list_folder(store.list_identities, self.run.path / kind, tick):
            folder = self.run.path / kind / name
            stamp = _get_stamp(folder)
            if self._stamps.get(str(folder)) != stamp:
                self._stamps[str(folder)] = stamp
                yield name, self._list_folder(store.list_steps, folder, tick)

    def _list_folder(self, list_entries: Callable[[Path], list[Entry]], folder: Path, tick: int) -> list[Entry]:
        """Return the entries of a folder; if it cannot be read, record the problem and return an empty list."""
        entries, reason = list[Entry](), None
        try:
            entries = list_entries(folder)
        except TrajectoryError as error:
            reason = str(error)
        self._set_problem(str(folder), reason, tick)
        return entries

    def _read_result(self, kind: str, identity: str, step: int, tick: int) -> None:
        if kind == "measures":
            reading = self.run.reading(identity, step)
            rows = _validate_rows(list(reading_traces(reading)))
            source = self._register_reading(identity, reading)
            for trace, *numbers in rows:
                self._extend(trace._replace(source=source), [step], np.array([[*numbers, 1.0]]), tick)
        else:
            values, labels, metadata = self.run.attribution(identity, step)
            maps = self.maps.get(identity) or MapSet(identity, metadata, labels)
            maps.add_step(step, values)
            self.maps[identity], self.maps_changed = maps, tick
            self.sources[identity] = Source(maps.method, maps.parameters)

    def _register_reading(self, identity: str, reading: Reading) -> str:
        """Return the source of a reading: its measure with its parameters and, if this run has several with the same
        ones (they differ in probe images or random stream), its identity."""
        source, parameters = make_source(reading), reading.settings.get("parameters", {})
        parameters = parameters if isinstance(parameters, dict) else {"parameters": parameters}
        identities = self._identities[source]
        identities.setdefault(identity, f"{source} {identity}" if identities else source)
        for known, key in identities.items():
            self.sources[key] = Source(
                str(reading.measure), {**parameters, "reading": known} if len(identities) > 1 else parameters
            )
        return identities[identity]

    def _update_progress(self, tick: int) -> None:
        """Update the current step and the window over which the speed is measured."""
        attempt, logged = self._newest
        step = max(int(self.status.get("step") or 0), logged if attempt == self.status.get("attempt") else 0)
        now = max(float(self.status.get("updated") or 0.0), _get_stamp(self._log_path("metrics"))[1] / 1e9)
        if step != self.step or now != self.updated:
            self.step, self.updated, self.changed = step, now, tick
        if self._progress and step < self._progress[-1][1]:
            self._progress.clear()
        if not self._progress or step > self._progress[-1][1]:
            self._progress.append((now, step))
        while len(self._progress) > 2 and now - self._progress[0][0] > SPEED_WINDOW_SECONDS:
            self._progress.popleft()

    @property
    def total_steps(self) -> int | None:
        """Planned number of steps; None if unknown."""
        return self.status.get("total_steps")

    @property
    def seconds(self) -> float:
        """Wall seconds of the run over all attempts, from its status; the sum of its costs in older runs."""
        seconds = self.status.get("seconds")
        return float(sum(self.costs.values()) if seconds is None else seconds)

    @property
    def costs(self) -> Mapping[str, float]:
        """Seconds of training and of each instrument."""
        return self.status.get("costs") or {}

    def estimate_end_time(self) -> float | None:
        """Return the Unix time at which the run will end, at its speed over the last quarter of an hour, or at its mean
        speed if it has not been followed yet; None if unknown."""
        if self.state != "running" or not self.total_steps or not self.step:
            return None
        (start, start_step), (now, step) = self._progress[0], self._progress[-1]
        seconds_per_step = (
            (now - start) / (step - start_step) if step > start_step and now > start else self.seconds / self.step
        )
        return now + seconds_per_step * max(self.total_steps - step, 0) if seconds_per_step > 0 else None

    def get_curve(self, trace: Trace, start: int) -> Curve:
        """Return steps, values, lows and highs from `start` on; a signal is bounded by its logged standard error or
        interval."""
        steps, values, low, high = self.series[trace].rows_from(start)
        if trace.panel not in SIGNAL_PANELS:
            return steps, values, low, high
        error, below, above = (
            self._get_logged_bound(trace, suffix, steps, start) for suffix in (STANDARD_ERROR_SUFFIX, *BOUND_SUFFIXES)
        )
        if error is not None:
            with np.errstate(invalid="ignore", over="ignore"):  # a signal of -inf has an error of inf
                low, high = values - error, values + error
        elif below is not None and above is not None:
            low, high = below, above
        return steps, values, np.where(np.isfinite(values), low, np.nan), np.where(np.isfinite(values), high, np.nan)

    def _get_logged_bound(self, trace: Trace, suffix: str, steps: np.ndarray, start: int) -> np.ndarray | None:
        """Return the values logged at `steps` under the signal's name with `suffix`: NaN at steps without one,
        None if there are none."""
        bound = metric_trace("signal", trace.label.replace(" ", "_") + suffix, "")
        if bound not in self.series:
            return None
        logged_steps, values, _, _ = self.series[bound].rows_from(start)
        indices = np.minimum(np.searchsorted(logged_steps, steps), max(len(logged_steps) - 1, 0))
        return (
            np.where(logged_steps[indices] == steps, values[indices], np.nan)
            if len(logged_steps)
            else np.full(len(steps), np.nan)
        )


def _validate_rows(rows: Sequence[TraceRow]) -> Sequence[TraceRow]:
    """Return the rows of a reading if their labels are text, else raise TrajectoryError: the page sorts the labels and
    writes them as JSON."""
    for trace, *_ in rows:
        invalid = [
            value for name, value in trace._asdict().items() if not isinstance(value, int if name == "order" else str)
        ]
        if invalid:
            raise TrajectoryError(f"a label or unit is {invalid[0]!r}; expected text")
    return rows


def is_bound(trace: Trace) -> bool:
    """Return whether a trace is only the bound of another one and not drawn by itself."""
    return trace.panel in SIGNAL_PANELS and trace.label.endswith(
        tuple(f" {suffix[1:]}" for suffix in (STANDARD_ERROR_SUFFIX, *BOUND_SUFFIXES))
    )


def _get_stamp(path: Path) -> tuple[int, int]:
    """Return inode and modification time in ns; zeros if the path does not exist."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def _get_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
