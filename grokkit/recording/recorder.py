"""The recorder that `record` returns: it writes snapshots, readings and resume states, and updates status.json."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, SupportsIndex

import torch
from torch.optim import Optimizer

from grokkit.config.schedule import as_step
from grokkit.device.preserved_state import device_of, unwrap
from grokkit.errors import Interrupted, TrajectoryError, UsageError
from grokkit.interrupt import StopRequested, check_interrupt
from grokkit.literals import FinalState
from grokkit.measures import Context, Measure
from grokkit.measures.runner import AttributionSpec, instrument_name, is_stored, run_instrument
from grokkit.recording.attempt import check_and_recover, describe_attempt
from grokkit.recording.budget import CostTracker
from grokkit.recording.signal import LocalComplexitySignal, Signal
from grokkit.recording.state import Stateful, collect_state, load_state
from grokkit.recording.timers import Timers
from grokkit.recording.weight_versions import WeightVersions
from grokkit.trajectory import Run, manifest, resume, run, snapshot, store
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.log import Log
from grokkit.trajectory.recover import list_quarantined_states, quarantine_if_invalid
from grokkit.trajectory.writer import Writer

HEARTBEAT_SECONDS = 20.0
"""Longest time between two updates of status.json while steps are taken."""


class Recorder:
    """Writer of a trajectory; created by `record`.

    The schedule alone decides what is written at a step, so a resumed run writes the same files as an uninterrupted
    one. The last step is always recorded: it is on the schedule if the run's length is known, else a clean `close`
    records it.

    Snapshots and resume states are copied at once and written by a background thread; a disk error is raised by the
    next call that writes, and by `close`. Everything that status.json reports for a running run is already on disk.

    It belongs to the process that opened it: in a forked process every call that writes raises UsageError, and `close`
    only releases the file handles. A recorder that is garbage-collected closes itself with state `interrupted`.
    """

    def __init__(
        self,
        path: Path,
        context: Context,
        optimizer: Optimizer | None,
        measures: list[Measure],
        attributions: list[AttributionSpec],
        schedule: tuple[int, ...],
        signal: Signal | None,
        total_steps: int | None,
        price: float | None,
        lock: RunLock,
    ) -> None:
        self.path, self._lock = path, lock
        self.schedule = schedule
        self._due = frozenset(schedule)
        self._context, self._optimizer = context, optimizer
        self._measures, self._attributions = measures, attributions
        self._signal = None if signal is None else LocalComplexitySignal.from_run(signal, context)
        self._total_steps = total_steps
        previous = Run(path)
        self._attempt = previous.status.get("attempt", 0) + 1
        self._modifications, quarantined = check_and_recover(path, previous.status)
        self.timers = Timers(device_of(context.model), previous.status.get("costs"))
        self._cost_tracker = CostTracker.resume(previous.status, price)
        self._step = self._recorded = -1
        self._versions = WeightVersions(context.model)
        self._first: dict[str, float] | None = None
        self._metrics, self._events = (Log(path / f"{name}.jsonl", self._attempt) for name in ("metrics", "events"))
        self._writer, self._resume_states = Writer(), resume.ResumeStore(path / "resume")
        self._unrestored = self._resume_states.has_any() or bool(list_quarantined_states(path))
        self._open = True
        for message in quarantined:
            self._log_quarantine(0, message)

    def mark_running(self) -> None:
        """Record in manifest and status.json that the run is being written; called once, by `record`."""
        if self._attempt > 1:
            manifest.add_resumed(self.path, self._attempt)
        self._submit()

    def begin(self) -> None:
        """Record step 0.

        If that fails, the folder is removed, unless another writer has taken it over: nothing was trained yet, and the
        corrected run needs its name. If it is interrupted, the folder stays and can be resumed.
        """
        try:
            self._first = self.step(0)
            self._writer.wait()
        except (StopRequested, KeyboardInterrupt):
            self.close("interrupted", "interrupted while step 0 was recorded")
            raise
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Stop writing and remove the run folder, unless another writer has taken it over."""
        self._lock.check_process()
        self._open = False
        for finish in (self._writer.close, self._metrics.close, self._events.close):
            with suppress(Exception):  # disk errors; the caller raises the first failure
                finish()
        self._lock.remove_folder()

    _open = False
    """Whether it accepts writes; a class attribute, so that it is defined if `__init__` fails."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> str:
        raise UsageError(f"the recorder of {self.path} cannot be copied or pickled: it holds a lock")

    def __del__(self) -> None:
        if self._open:
            with suppress(Exception):
                self.close("interrupted", "the recorder was garbage-collected without being closed")

    on_event: Callable[[int, str, str], None] | None = None
    """Called for every event with step, kind and text."""

    unfinished = False
    """Whether the restored state was saved before all measures of its step were done: call `step` with it again."""

    def is_due(self, step: int) -> bool:
        """Return whether `step` is on the schedule."""
        return step in self._due

    def is_signal_due(self, step: int) -> bool:
        """Return whether the signal is read at `step`."""
        return self._signal is not None and self._signal.is_due(step)

    def step(self, step: int) -> dict[str, float] | None:
        """Record everything that is due after `step` updates; call it after every update.

        Args:
            step: optimizer updates done so far; must increase from call to call.

        Returns:
            The signal's readings if they are due, else None; those of step 0 are returned by the first call after it.

        Raises:
            UsageError: `step` does not increase, or a saved state was not restored.
            TrajectoryError: a snapshot could not be written, this one or the one before.
            StopRequested: an interrupt arrived during the measures (`grokkit.interrupt`).
            Exception: whatever a measure raises at step 0; a later failure is logged in events.jsonl and the run
                continues.
        """
        step = as_step(step)
        self._lock.check_process()
        if not self._open:
            raise UsageError("the recorder is closed; reopen the run with gk.record(..., resume=True)")
        if self._unrestored:
            raise UsageError(f"{self.path} holds a resume state: call `restore` before the first step")
        if step <= self._step:
            raise UsageError(f"`step` must increase from call to call; got {step} after {self._step}")
        self._report_modifications()
        self._step = step
        if step in self._due:
            self._record(step)
        else:
            self._versions.remember()  # it may be the last step, which `close` records
            if time.monotonic() - self._last_status_time > HEARTBEAT_SECONDS and not self._writer.is_busy:
                self._submit()
        if self._signal is None or not self.is_signal_due(step):
            return self.pop_first_readings()
        with self.timers.section("signal"):
            readings = self._signal.read(step)
        self.log(step, "signal", **readings)
        self._first = None  # superseded by the newer ones
        return readings

    def pop_first_readings(self) -> dict[str, float] | None:
        """Return the readings of step 0 once, unless `step` has returned them already; then None."""
        first, self._first = self._first, None
        return first

    def log(self, step: int, split: str, **values: float) -> None:
        """Append numbers to metrics.jsonl: one row per name, for example `log(step, "batch", loss=0.3)`."""
        step = as_step(step)
        self._lock.check_process()
        for metric, value in values.items():
            self._metrics.append({"step": step, "split": split, "metric": metric, "value": float(value)})

    def event(self, step: int, kind: str, text: str, **fields: Any) -> None:
        """Append an event (a decision or an incident) to events.jsonl."""
        step = as_step(step)
        self._lock.check_process()
        self._events.append({"step": step, "kind": kind, "text": text, "time": time.time(), **fields})
        if self.on_event is not None:
            self.on_event(step, kind, text)

    @property
    def spent(self) -> float | None:
        """The dollars spent over all attempts that had a price; None if none had one."""
        return self._cost_tracker.dollars_after(self.timers.total())

    def save(self, step: int, *, unfinished: bool = False, **parts: Stateful) -> None:
        """Save a resume state: model, optimizer, `parts` by name, signal and random state.

        It is on disk when the next call that writes, or `close`, returns.

        Args:
            step: updates done.
            unfinished: not everything that is due at this step is recorded yet; after `restore` it is the attribute
                `unfinished`.
            parts: other objects with a state, by name.
        """
        self._lock.check_process()
        with self.timers.section("resume slots"):  # key in status.json; elsewhere "resume state"
            state = collect_state(self._context.model, self._optimizer, parts) | {"unfinished": unfinished}
            if self._signal is not None:
                state["signal"] = self._signal.state_dict()
            packed = resume.stage(step, state, self._writer.staging)
            self._submit(partial(self._resume_states.save, packed, check=self._lock.check))

    @property
    def save_seconds(self) -> float:
        """Seconds that the writer thread has spent on resume states in this attempt."""
        return self._resume_states.seconds

    def restore(self, **parts: Stateful) -> int:
        """Load the newest valid resume state into model, optimizer and `parts`.

        Returns:
            The step to resume from. 0 if no resume state was ever saved: nothing is loaded, and step 0 is recorded.

        Raises:
            TrajectoryError: there is no resume state, and the model's weights are not the ones the run began with; or
                the resume states were damaged and quarantined, in which case the run is not restarted.
            UsageError: the resume state belongs to another model or optimizer, or to other parts; nothing is loaded
                then.
        """
        self._lock.check_process()
        loaded = self._resume_states.load()
        if loaded is None and (damaged := list_quarantined_states(self.path)):
            raise TrajectoryError(
                f"no resume state of {self.path} is intact: {', '.join(file.name for file in damaged)} were "
                f"quarantined. The run is not restarted; to restart it at step 0, remove them from {damaged[0].parent}"
            )
        environment = describe_attempt(self._context.model)
        self._report_modifications()
        if loaded is None:
            self._unrestored = False
            text = f"attempt {self._attempt} found no resume state and restarts at step 0"
            self.event(0, "restarted", text, **environment)
            self._first = self.step(0)
            return 0
        step, state = loaded
        if self._signal is not None:
            self._signal.load_state_dict(state.get("signal", {}))
        load_state(state, self._context.model, self._optimizer, parts)
        self.unfinished, self._unrestored = bool(state.get("unfinished", False)), False
        self._step = step - self.unfinished
        if not self.unfinished:
            self._versions.remember()  # the weights are those of this step, which may have been the last
        self.event(step, "resumed", f"attempt {self._attempt} resumes at step {step}", **environment)
        self._submit()
        return step

    def _record(self, step: int) -> None:
        self._recorded = step
        path = self.path / "snapshots" / store.step_file_name(step)
        with self.timers.section("snapshots"):
            state = unwrap(self._context.model).state_dict()
            if path.exists() and (message := quarantine_if_invalid(self.path, path, "snapshot")):
                self._log_quarantine(step, message)
            if not path.exists():
                self.add_snapshot(step, state)
            elif not self._has_same_weights(path, step, state):
                return
            if not self._measures and not self._attributions:
                return
            self._writer.wait()  # a reading must not be on disk before the weights that it was taken from
        self._run_instruments(step)
        self._submit()

    def add_snapshot(self, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Write weights and buffers as the snapshot of `step`; imported ones may be missing from the model."""
        self._lock.check_process()
        path = self.path / "snapshots" / store.step_file_name(as_step(step))
        packed = self._writer.staging.stage(state)
        self._submit(partial(_write_snapshot, path, step, packed, run=self.path, check=self._lock.check))

    def _has_same_weights(self, path: Path, step: int, state: Mapping[str, torch.Tensor]) -> bool:
        """Return whether the existing snapshot holds this state, and log an event if it does not.

        On another machine the weights of a resumed run may differ in the last bits: the existing snapshot is kept.
        """
        if snapshot.has_state(path, state):
            return True
        if step == 0:
            raise TrajectoryError(
                f"{self.path} began with other weights than the model has now: build the model in the same way, "
                "from the same seed"
            )
        self.event(step, "differs", f"{path} holds other weights than the run has now at step {step}; it is kept")
        return False

    def _record_last_step(self) -> None:
        """Record the last step of this attempt, unless it is recorded or its weights are gone."""
        if self._step == self._recorded or self._versions.is_new:
            return
        if self._versions.have_changed():
            text = (
                f"step {self._step}, the last one, is not recorded: the weights were changed after it. Call `close` "
                "before you change them, or give `total_steps`"
            )
            warnings.warn(f"{self.path}: {text}", stacklevel=4)
            self.event(self._step, "not_recorded", text)
            return
        self._record(self._step)

    def _run_instruments(self, step: int) -> None:
        instruments: list[Measure | AttributionSpec] = [*self._measures, *self._attributions]
        for instrument in instruments:
            check_interrupt(grace=0)
            try:
                with self.timers.section(instrument_name(instrument)):
                    if not is_stored(self.path, step, instrument, self._context, partial(self._log_quarantine, step)):
                        run_instrument(self.path, step, instrument, self._context)
            except Exception as error:
                # a failing instrument must not end a run; at step 0 nothing is lost yet, and a disk error would recur
                if step == 0 or isinstance(error, TrajectoryError):
                    raise
                self.event(
                    step, "measure_failed", f"{instrument_name(instrument)} failed: {type(error).__name__}: {error}"
                )

    def _log_quarantine(self, step: int, message: str) -> None:
        warnings.warn(message, stacklevel=2)
        self.event(step, "quarantined", message)

    def _report_modifications(self) -> None:
        """Log once every file that changed since the last attempt; also warn if there is no `on_event`."""
        for message in self._modifications:
            if self.on_event is None:
                warnings.warn(message, stacklevel=3)
            self.event(max(self._step, 0), "changed", message)
        self._modifications = []

    def _submit(self, write: Callable[[], object] = lambda: None) -> None:
        """Have the writer thread call `write`, sync the logs and update status.json."""
        fields, self._last_status_time = self._status_fields("running"), time.monotonic()
        # The job must not reference the recorder: a dropped recorder is closed by the thread that drops it.
        lock, logs, path = self._lock, (self._metrics, self._events), self.path

        def job() -> None:
            lock.check()
            write()
            for log in logs:
                log.sync()
            run.write_status(path, **fields, manifest=manifest.sync_manifest(path))

        self._writer.submit(job)

    def _status_fields(self, state: str, reason: str = "") -> dict[str, Any]:
        costs = self.timers.seconds()
        seconds = sum(costs.values())
        return {
            "state": state,
            "step": max(self._step, 0),
            "total_steps": self._total_steps,
            "attempt": self._attempt,
            "reason": reason,
            "costs": costs,
            "seconds": seconds,
            "price": self._cost_tracker.price,
            "spent": self._cost_tracker.dollars_after(seconds),
        }

    def close(self, state: FinalState = "done", reason: str = "") -> None:
        """Wait for pending writes, sync the logs, store the outcome in status.json and release the lock; idempotent.

        If the run is `done`, the last step is recorded first.

        Raises:
            TrajectoryError: the disk failed, now or before; the run then ends as failed. Or another writer has taken
                the run over; its status.json is kept.
        """
        if not self._open:
            return
        self._open = False
        if self._lock.is_forked:  # this process is a fork: the run continues in its parent
            self._lock.close()
            return
        failure: BaseException | None = None
        try:
            if state == "done":
                self._record_last_step()
        except (StopRequested, KeyboardInterrupt) as stop:
            self._finish("interrupted", "interrupted while the last step was recorded", None)
            raise stop
        except Exception as error:
            failure = error
        self._finish(state, reason, failure)

    def _finish(self, state: FinalState, reason: str, failure: BaseException | None) -> None:
        """Close writer and logs, store the outcome, release the lock; raise the first failure, `failure` or later."""
        try:
            try:
                self._writer.close()
            except Exception as error:
                failure = failure or error
            if state == "done":
                failure = failure or self._writer.failure
            if failure is not None:
                suffix = f"; before: {reason}" if reason else ""
                state, reason = "failed", f"{type(failure).__name__}: {failure}{suffix}"
            for log in (self._metrics, self._events):
                try:
                    log.close()
                except TrajectoryError as error:  # the status must hold the reason nevertheless
                    failure = failure or error
                    state, reason = "failed", f"{type(failure).__name__}: {failure}"
            self._lock.check()
            # "failed" after any failure of the writer, since a line of the manifest may be missing
            manifest.add_end(self.path, "failed" if self._writer.failure else state)
            run.write_status(
                self.path, **self._status_fields(state, reason), manifest=manifest.sync_manifest(self.path)
            )
        finally:
            self._lock.close()
        if failure is not None:
            raise failure

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Interrupted | KeyboardInterrupt | StopRequested):
            self.close("interrupted", str(error))
        else:
            self.close("failed", f"{type(error).__name__}: {error}")


def _write_snapshot(
    path: Path, step: int, packed: snapshot.PackedTensors, *, run: Path, check: Callable[[], None]
) -> None:
    digest = snapshot.write_packed(path, step, packed, check=check)
    manifest.add_file(run, path, "snapshot", step, digest)
