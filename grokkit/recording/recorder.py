"""The recorder, which `record` makes: it writes what is due, and says how the run stands."""

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
from grokkit.measures import Context, Measure
from grokkit.measures.runner import AttributionSpec, instrument_name, is_stored, run_instrument
from grokkit.recording.attempt import begin_attempt, check_and_recover
from grokkit.recording.budget import CostTracker
from grokkit.recording.signal import LocalComplexitySignal, Signal
from grokkit.recording.state import Stateful, collect_state, load_state
from grokkit.recording.timers import Timers
from grokkit.trajectory import Run, manifest, resume, run, snapshot, store
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.log import Log
from grokkit.trajectory.recover import quarantine_if_wrong, quarantined_states
from grokkit.trajectory.writer import Writer

HEARTBEAT_SECONDS = 20.0
"""Longest time between two states in status.json while steps are taken."""


class Recorder:
    """Writes a trajectory; made by `record`.

    What is due at a step is decided by the schedule alone, so a resumed run writes the same files as a straight one.

    Snapshots and slots are copied at once and written by a thread; an error of the disk is raised by the next call
    that writes, and by `close`. What status.json says of a running run is on the disk.

    It belongs to the process that opened it: in a forked one every call that writes raises UsageError, and `close`
    only forgets. One that nobody holds any more closes itself, as interrupted.
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
        self._signal = None if signal is None else LocalComplexitySignal.of_run(signal, context)
        self._total_steps = total_steps
        earlier = Run(path)
        self._attempt = earlier.status.get("attempt", 0) + 1
        self._changed, put_aside = check_and_recover(path, earlier.status)
        self.costs = Timers(device_of(context.model), earlier.status.get("costs"))
        self._cost_tracker = CostTracker.resume(earlier.status, price)
        self._step = -1
        self._first: dict[str, float] | None = None
        self._metrics, self._events = (Log(path / f"{name}.jsonl", self._attempt) for name in ("metrics", "events"))
        self._writer, self._slots = Writer(), resume.ResumeStore(path / "resume")
        self._unrestored = self._slots.has_any() or bool(quarantined_states(path))
        self._open = True
        for sentence in put_aside:
            self._quarantine(0, sentence)

    def announce(self) -> None:
        """Say in manifest and status.json that the run is being written; once, by whoever made the recorder."""
        if self._attempt > 1:
            manifest.add_resumed(self.path, self._attempt)
        self._submit()

    def begin(self) -> None:
        """Record step 0. Where that fails the folder goes again, if it is still this recorder's: nothing was learned,
        and the mended run is to have its name. Where it is interrupted the folder stays, to be resumed."""
        try:
            self._first = self.step(0)
            self._writer.wait()
        except (StopRequested, KeyboardInterrupt):
            self.close("interrupted", "stopped while step 0 was recorded")
            raise
        except BaseException:
            self.withdraw()
            raise

    def withdraw(self) -> None:
        """Stop writing and remove the run, unless another writer has it by now."""
        self._lock.check_process()
        self._open = False
        for finish in (self._writer.close, self._metrics.close, self._events.close):
            with suppress(Exception):  # of the disk; what failed first is raised by whoever withdraws
                finish()
        self._lock.remove_folder()

    _open = False
    """Whether it writes; not before all of it is there."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> str:
        raise UsageError(f"the recorder of {self.path} can be neither copied nor sent elsewhere: it holds a lock")

    def __del__(self) -> None:
        if self._open:
            with suppress(Exception):
                self.close("interrupted", "its recorder was dropped without being closed")

    listener: Callable[[int, str, str], None] | None = None
    """Hears of every event: step, kind, text."""

    unfinished = False
    """Whether the restored state was saved amid the measures of its step: `step` is to be called with it again."""

    def due(self, step: int) -> bool:
        """Whether `step` is on the schedule."""
        return step in self._due

    def signal_due(self, step: int) -> bool:
        """Whether the signal is read at `step`."""
        return self._signal is not None and self._signal.due(step)

    def step(self, step: int) -> dict[str, float] | None:
        """Write what is due after `step` updates; called after every update, whether something is due or not.

        Args:
            step: optimizer updates done so far; must grow from call to call.

        Returns:
            The signal's readings where it was due, else None; those of step 0 come with the first call after it.

        Raises:
            UsageError: `step` does not grow, or a saved state was not restored.
            TrajectoryError: a snapshot could not be written, this one or the one before.
            Stopped: a stop was asked for amid the measures (`grokkit.interrupt`).
            Exception: whatever a measure raises at step 0; one that fails later is noted in events.jsonl and the
                run goes on.
        """
        step = as_step(step)
        self._lock.check_process()
        if not self._open:
            raise UsageError("the recorder is closed; open the run again with gk.record(..., resume=True)")
        if self._unrestored:
            raise UsageError(f"{self.path} holds a saved state: call `restore` before the first step")
        if step <= self._step:
            raise UsageError(f"`step` must grow from call to call; got {step} after {self._step}")
        self._report_modifications()
        self._step = step
        if step in self._due:
            self._record(step)
        elif time.monotonic() - self._told > HEARTBEAT_SECONDS and not self._writer.busy:
            self._submit()
        if self._signal is None or not self.signal_due(step):
            return self.first_readings()
        with self.costs.section("signal"):
            readings = self._signal.read(step)
        self.log(step, "signal", **readings)
        self._first = None  # the newer ones stand for them
        return readings

    def first_readings(self) -> dict[str, float] | None:
        """The signal at step 0 where `step` has not returned it yet; once, then None."""
        first, self._first = self._first, None
        return first

    def log(self, step: int, split: str, **values: float) -> None:
        """Append numbers to metrics.jsonl: one row per name, for example `log(step, "batch", loss=0.3)`."""
        step = as_step(step)
        self._lock.check_process()
        for metric, value in values.items():
            self._metrics.append({"step": step, "split": split, "metric": metric, "value": float(value)})

    def event(self, step: int, kind: str, text: str, **fields: Any) -> None:
        """Append a decision or an incident to events.jsonl."""
        step = as_step(step)
        self._lock.check_process()
        self._events.append({"step": step, "kind": kind, "text": text, "time": time.time(), **fields})
        if self.listener is not None:
            self.listener(step, kind, text)

    @property
    def spent(self) -> float | None:
        """Dollars over all attempts that had a price; None where none had one."""
        return self._cost_tracker.after(self.costs.total())

    def save(self, step: int, *, unfinished: bool = False, **parts: Stateful) -> None:
        """Put everything that goes on into a resume slot: model, optimizer, `parts` by name, and the random
        state.

        It is on the disk when the next call that writes, or `close`, returns.

        Args:
            step: updates done.
            unfinished: not all that is due at this step is recorded yet; `restore` tells.
            parts: whatever else has a state.
        """
        self._lock.check_process()
        with self.costs.section("resume slots"):
            state = collect_state(self._context.model, self._optimizer, parts) | {"unfinished": unfinished}
            if self._signal is not None:
                state["signal"] = self._signal.state_dict()
            slot = resume.stage(step, state, self._writer.staging)
            self._submit(partial(self._slots.save, slot, check=self._lock.check))

    @property
    def save_seconds(self) -> float:
        """That the slots of this attempt took the writing thread."""
        return self._slots.seconds

    def restore(self, **parts: Stateful) -> int:
        """Load the newest valid slot into model, optimizer and `parts`.

        Returns:
            The step to go on from. 0 where no slot was ever saved: nothing is loaded, step 0 is recorded as at first.

        Raises:
            TrajectoryError: no slot, and the model's weights are not the ones the run began with; or states that were
                damaged and put aside, over which it is not begun again.
            UsageError: the slot is of another model or optimizer, or of other parts; nothing is loaded then.
        """
        self._lock.check_process()
        found = self._slots.load()
        if found is None and (lost := quarantined_states(self.path)):
            raise TrajectoryError(
                f"no resume state of {self.path} is whole: {', '.join(each.name for each in lost)} were put aside. The "
                f"run is not begun again over them; to start it at step 0, remove them from {lost[0].parent}"
            )
        now = begin_attempt(self._context.model)
        self._report_modifications()
        if found is None:
            self._unrestored = False
            text = f"attempt {self._attempt} finds no resume slot and starts again"
            self.event(0, "restarted", text, **now)
            self._first = self.step(0)
            return 0
        step, state = found
        if self._signal is not None:
            self._signal.load_state_dict(state.get("signal", {}))
        load_state(state, self._context.model, self._optimizer, parts)
        self.unfinished, self._unrestored = bool(state.get("unfinished", False)), False
        self._step = step - self.unfinished
        self.event(step, "resumed", f"attempt {self._attempt} goes on from step {step}", **now)
        self._submit()
        return step

    def _record(self, step: int) -> None:
        path = self.path / "snapshots" / store.step_file_name(step)
        with self.costs.section("snapshots"):
            state = unwrap(self._context.model).state_dict()
            if path.exists() and (said := quarantine_if_wrong(self.path, path, "snapshot")):
                self._quarantine(step, said)
            if not path.exists():
                self.add_snapshot(step, state)
            elif not self._is_repeated(path, step, state):
                return
            if not self._measures and not self._attributions:
                return
            self._writer.wait()  # no reading is there before the weights that it was taken of
        self._run_instruments(step)
        self._submit()

    def add_snapshot(self, step: int, state: Mapping[str, torch.Tensor]) -> None:
        """Write weights and buffers, as they are now; also those that the model does not have, as imported ones."""
        self._lock.check_process()
        path = self.path / "snapshots" / store.step_file_name(as_step(step))
        packed = self._writer.staging.stage(state)
        self._submit(partial(_write_snapshot, path, step, packed, run=self.path, check=self._lock.check))

    def _is_repeated(self, path: Path, step: int, state: Mapping[str, torch.Tensor]) -> bool:
        """Whether the snapshot that is there holds this state; one of a resumed run may differ in the last bits, where
        the machine is another: the first one stays."""
        if snapshot.has_state(path, state):
            return True
        if step == 0:
            raise TrajectoryError(
                f"{self.path} began with other weights than the model has now: build the model as then, from the "
                "same seed"
            )
        self.event(step, "differs", f"{path} holds other weights than the run has now at step {step}; it stays")
        return False

    def _run_instruments(self, step: int) -> None:
        subjects: list[Measure | AttributionSpec] = [*self._measures, *self._attributions]
        for subject in subjects:
            check_interrupt(grace=0)
            try:
                with self.costs.section(instrument_name(subject)):
                    if not is_stored(self.path, step, subject, self._context, partial(self._quarantine, step)):
                        run_instrument(self.path, step, subject, self._context)
            except Exception as error:
                # a paid run is not lost to an instrument; at step 0 nothing is lost, and a disk that fails fails again
                if step == 0 or isinstance(error, TrajectoryError):
                    raise
                self.event(
                    step, "measure_failed", f"{instrument_name(subject)} failed: {type(error).__name__}: {error}"
                )

    def _quarantine(self, step: int, sentence: str) -> None:
        warnings.warn(sentence, stacklevel=2)
        self.event(step, "quarantined", sentence)

    def _report_modifications(self) -> None:
        """Say once what an earlier attempt did not leave so: to the listener, or as a warning where there is none."""
        for sentence in self._changed:
            if self.listener is None:
                warnings.warn(sentence, stacklevel=3)
            self.event(max(self._step, 0), "changed", sentence)
        self._changed = []

    def _submit(self, write: Callable[[], object] = lambda: None) -> None:
        """Have the thread `write`, make the logs durable and say in status.json how the run stands."""
        fields, self._told = self._fields("running"), time.monotonic()
        # Not of the recorder: one that nobody else holds is to be closed by the thread that drops it.
        lock, logs, path = self._lock, (self._metrics, self._events), self.path

        def job() -> None:
            lock.check()
            write()
            for log in logs:
                log.sync()
            run.write_status(path, **fields, manifest=manifest.sync_manifest(path))

        self._writer.submit(job)

    def _fields(self, state: str, reason: str = "") -> dict[str, Any]:
        costs = self.costs.seconds()
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
            "spent": self._cost_tracker.after(seconds),
        }

    def close(self, state: str = "done", reason: str = "") -> None:
        """Wait for what is being written, make the logs durable, note in status.json how the run ended, give the lock
        back; only once.

        Raises:
            TrajectoryError: the disk failed, now or before; the run then ends as failed. Or another writer has taken
                the run over, whose status.json stays.
        """
        if not self._open:
            return
        self._open = False
        if self._lock.is_forked:  # the process is a fork: the run goes on without it
            self._lock.close()
            return
        failure: BaseException | None = None
        try:
            try:
                self._writer.close()
            except Exception as error:
                failure = error
            if state == "done":
                failure = failure or self._writer.failure
            if failure is not None:
                before = f"; before: {reason}" if reason else ""
                state, reason = "failed", f"{type(failure).__name__}: {failure}{before}"
            for log in (self._metrics, self._events):
                try:
                    log.close()
                except TrajectoryError as error:  # the reason is to stand in the status all the same
                    failure = failure or error
                    state, reason = "failed", f"{type(failure).__name__}: {failure}"
            self._lock.check()
            manifest.add_end(
                self.path, "failed" if self._writer.failure else state
            )  # a line may have failed to be written
            run.write_status(self.path, **self._fields(state, reason), manifest=manifest.sync_manifest(self.path))
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


def _write_snapshot(path: Path, step: int, packed: snapshot.Packed, *, run: Path, check: Callable[[], None]) -> None:
    digest = snapshot.write_packed(path, step, packed, check=check)
    manifest.add_file(run, path, "snapshot", step, digest)
