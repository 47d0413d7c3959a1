"""The recorder: the one way into a trajectory, for our loop and anyone's."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import tomli_w
import torch
from torch import nn
from torch.optim import Optimizer

from grokkit import measures as measure_room
from grokkit.borrow import device_of, unwrap
from grokkit.errors import Interrupted, TrajectoryError, UsageError
from grokkit.measures import Context, Measure
from grokkit.measures.base import settings_of
from grokkit.measures.loss import loss_function
from grokkit.measures.take import AttributionPlan, name_of, take_any
from grokkit.names import ProbeSet
from grokkit.training.config import Part, RunConfig
from grokkit.training.costs import Costs
from grokkit.training.device import described, environment
from grokkit.training.schedule import as_step, checked, log_spaced
from grokkit.training.signal import Signal
from grokkit.trajectory import Run, resume, run, snapshot, store
from grokkit.trajectory.lock import RunLock
from grokkit.trajectory.log import Log


class Stateful(Protocol):
    """Whatever can be saved in a resume slot: an optimizer, a `PolicyLR`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def record(
    path: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    probes: Mapping[str, ProbeSet],
    measures: Iterable[str | Part | Measure] = ("accuracy", "local_complexity", "weight_norm", "logit_scale"),
    attributions: Iterable[str | Part | AttributionPlan] = (),
    schedule: Iterable[int] | None = None,
    signal: Signal | None = None,
    seed: int = 0,
    loss: str = "cross_entropy",
    total_steps: int | None = None,
    config: RunConfig | Mapping[str, Any] | None = None,
    experiment: str | None = None,
    facts: Mapping[str, Any] | None = None,
    resume: bool = False,
    initial: bool = True,
) -> Recorder:
    """Start a run folder at `path` and record step 0, or go on with the one that is there.

    Args:
        path: the run folder, for example `runs/mine`; must not exist unless `resume`.
        model: any module; its weights and buffers are what snapshots hold. Probe images reach it as pixels in [0, 1]:
            a net that is trained on normalised images is recorded as `gk.Classifier(gk.Normalise(mean, std), net)`,
            which shares its weights.
        optimizer: saved in resume slots and asked for its learning rate; optional.
        probes: probe sets by name, for example from `grokkit.probe_sets(data)`.
        measures: names, parts with options, or measure objects; taken at every step of the schedule.
        attributions: names, parts or plans; taken at the same steps.
        schedule: steps to record, by default `log_spaced()`; 0 is always among them.
        signal: what a policy listens to; None: nothing.
        seed: root of the measures' random streams.
        loss: `cross_entropy` or `mse`, for the measure `loss`.
        total_steps: how long the run is meant to be, for its status; optional.
        config: kept as config.toml, by default the arguments above; `experiment`: source text kept as experiment.py.
        facts: kept in environment.json: what has to be remembered of the data and the arithmetic.
        resume: open an existing folder; call `Recorder.restore` to get the state back.
        initial: record step 0 at once; False where the model's present weights are not those of step 0.

    Returns:
        The recorder: call `.step(step)` after every update and `.close()` at the end, or use it in a `with` block.

    Raises:
        TrajectoryError: the folder exists (or, with `resume`, does not), or another process writes it.
        UsageError: an unknown measure, attribution, loss or probe set.
    """
    path = Path(path)
    loss_function(loss)
    taken, plans = as_measures(measures), as_plans(attributions)
    steps = checked(log_spaced() if schedule is None else schedule)
    if not resume:
        told = config or _described(taken, plans, steps, signal, {"seed": seed, "loss": loss})
        machine = environment(described(device_of(model))) | dict(facts or {})
        _create(path, told, machine, probes, total_steps, experiment)
    context = Context(model, run.open_run(path).probes, loss, seed)
    recorder = Recorder(path, context, optimizer, taken, plans, steps, signal, total_steps)
    if initial and not resume:
        recorder.begin()
    return recorder


class Recorder:
    """Writes a trajectory; made by `record`.

    What is due at a step is decided by the schedule alone, so a resumed run writes the same files as a straight one.
    """

    def __init__(
        self,
        path: Path,
        context: Context,
        optimizer: Optimizer | None,
        measures: list[Measure],
        attributions: list[AttributionPlan],
        schedule: tuple[int, ...],
        signal: Signal | None,
        total_steps: int | None,
    ) -> None:
        self.path = path
        self.schedule = schedule
        self._due = frozenset(schedule)
        self._context, self._optimizer = context, optimizer
        self._measures, self._attributions, self._signal = measures, attributions, signal
        self._total_steps = total_steps
        self._lock = RunLock(path)
        earlier = Run(path)
        self._attempt = earlier.status["attempt"] + 1
        self.costs = Costs(device_of(context.model), earlier.status.get("costs"))
        self._step = -1
        self._metrics, self._events = (Log(path / f"{name}.jsonl", self._attempt) for name in ("metrics", "events"))
        self._open = True
        self._status("running")

    def begin(self) -> None:
        """Record step 0. Where that fails the folder goes again: nothing was learned, and the mended run is to have
        its name."""
        try:
            self.first_readings = self.step(0)
        except BaseException:
            self.close()
            shutil.rmtree(self.path)
            raise

    first_readings: dict[str, float] | None = None
    """The signal at step 0, for a policy that is made after the recorder."""

    def due(self, step: int) -> bool:
        """Whether `step` is on the schedule."""
        return step in self._due

    def step(self, step: int) -> dict[str, float] | None:
        """Write what is due after `step` updates.

        Args:
            step: optimizer updates done so far; must grow from call to call.

        Returns:
            The signal's readings where the signal was due, else None.

        Raises:
            UsageError: `step` does not grow.
            TrajectoryError: a snapshot could not be written.
            Exception: whatever a measure raises at step 0; one that fails later is noted in events.jsonl and the
                run goes on.
        """
        step = as_step(step)
        if not self._open:
            raise UsageError("the recorder is closed; open the run again with gk.record(..., resume=True)")
        if step <= self._step:
            raise UsageError(f"`step` must grow from call to call; got {step} after {self._step}")
        self._step = step
        if step in self._due:
            self._record(step)
        if self._signal is None or not self._signal.due(step):
            return None
        with self.costs.of("signal"):
            readings = self._signal.read(self._context)
        self.log(step, "signal", **readings)
        return readings

    def log(self, step: int, split: str, **values: float) -> None:
        """Append numbers to metrics.jsonl: one row per name, for example `log(step, "batch", loss=0.3)`."""
        for metric, value in values.items():
            self._metrics.append({"step": step, "split": split, "metric": metric, "value": float(value)})

    def event(self, step: int, kind: str, text: str, **fields: Any) -> None:
        """Append a decision or an incident to events.jsonl."""
        self._events.append({"step": step, "kind": kind, "text": text, "time": time.time(), **fields})

    def save(self, step: int, **parts: Stateful) -> None:
        """Put everything that goes on into a resume slot: model, optimizer, `parts` by name, and the random state."""
        with self.costs.of("resume slots"):
            self._metrics.sync()
            self._events.sync()
            state = {
                "model": dict(unwrap(self._context.model).state_dict()),
                "optimizer": self._optimizer.state_dict() if self._optimizer is not None else None,
                "parts": {name: each.state_dict() for name, each in parts.items()},
                "rng": _random_state(device_of(self._context.model)),
            }
            resume.save(self.path / "resume", step, state)
        self._status("running")

    def restore(self, **parts: Stateful) -> int:
        """Load the newest valid slot into model, optimizer and `parts`.

        Returns:
            The step to go on from. 0 where no slot was ever saved: nothing is loaded then, step 0 is recorded again,
            and `first_readings` are there as in a fresh run.

        Raises:
            TrajectoryError: no slot, and the model's weights are not the ones the run began with.
        """
        found = resume.load(self.path / "resume")
        if found is None:
            self.event(0, "restarted", f"attempt {self._attempt} finds no resume slot and starts again")
            self.first_readings = self.step(0)
            return 0
        self._step, state = found
        unwrap(self._context.model).load_state_dict(state["model"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(state["optimizer"])
            _lay_out_as_parameters(self._optimizer)
        for name, each in parts.items():
            each.load_state_dict(state["parts"][name])
        _set_random_state(state["rng"], device_of(self._context.model))
        self.event(self._step, "resumed", f"attempt {self._attempt} goes on from step {self._step}")
        return self._step

    def _record(self, step: int) -> None:
        try:
            with self.costs.of("snapshots"):
                state = unwrap(self._context.model).state_dict()
                snapshot.write(self.path / "snapshots" / store.file_name(step), step, state)
        except TrajectoryError as error:
            if not (self.path / "snapshots" / store.file_name(step)).exists():
                raise
            if step == 0:
                raise TrajectoryError(
                    f"{self.path} began with other weights than the model has now: build the model as then, from the "
                    "same seed"
                ) from error
            # A step repeated after a resume on another machine may differ in the last bits: the first one stays.
            self.event(step, "differs", str(error))
            return
        self._take_all(step)
        self._metrics.sync()
        self._status("running")

    def _take_all(self, step: int) -> None:
        subjects: list[Measure | AttributionPlan] = [*self._measures, *self._attributions]
        for subject in subjects:
            try:
                with self.costs.of(name_of(subject)):
                    take_any(self.path, step, subject, self._context)
            except Exception as error:
                # A paid run is not lost to one of its instruments; at step 0 nothing is lost yet.
                if step == 0:
                    raise
                self.event(step, "measure_failed", f"{type(error).__name__}: {error}")

    def _status(self, state: str, reason: str = "") -> None:
        run.write_status(
            self.path, state=state, step=max(self._step, 0), total_steps=self._total_steps,
            attempt=self._attempt, reason=reason, costs=self.costs.seconds(),
        )  # fmt: skip

    def close(self, state: str = "done", reason: str = "") -> None:
        """Make the logs durable, note in status.json how the run ended, give the lock back; only once."""
        if not self._open:
            return
        self._open = False
        self._metrics.close()
        self._events.close()
        self._status(state, reason)
        self._lock.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Interrupted | KeyboardInterrupt):
            self.close("interrupted", str(error))
        else:
            self.close("failed", f"{type(error).__name__}: {error}")


def _create(
    path: Path,
    config: RunConfig | Mapping[str, Any],
    machine: Mapping[str, Any],
    probes: Mapping[str, ProbeSet],
    total_steps: int | None,
    experiment: str | None,
) -> None:
    text = config.to_toml() if isinstance(config, RunConfig) else tomli_w.dumps(dict(config))
    status = {"state": "starting", "step": 0, "total_steps": total_steps, "attempt": 0}
    run.create(path, config=text, environment=machine, probes=probes.values(), status=status, experiment=experiment)


def _described(
    measures: list[Measure],
    plans: list[AttributionPlan],
    schedule: tuple[int, ...],
    signal: Signal | None,
    rest: dict[str, Any],
) -> dict[str, Any]:
    """What `record` was asked for, as TOML values."""
    listed = [{"name": name_of(each), **settings_of(each)} for each in measures]
    maps = [{"name": plan.method, "images": plan.images, **(plan.parameters or {})} for plan in plans]
    told = {**rest, "schedule": list(schedule), "measures": listed, "attributions": maps}
    return told | ({"signal": dataclasses.asdict(signal)} if signal else {})


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give loaded moments the strides of their parameters: fused optimizers walk through memory side by side, so that a
    channels_last parameter would be paired with the wrong elements of a contiguous moment, without a word."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                laid_out = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype, device=value.device)
                state[name] = laid_out.copy_(value)


def _random_state(device: torch.device) -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}  # noqa: NPY002
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def as_measure(wanted: str | Part | Measure) -> Measure:
    """A measure from its name, a part with options, or itself."""
    if isinstance(wanted, str):
        return measure_room.create(wanted)
    if isinstance(wanted, Part):
        return measure_room.create(wanted.name, **wanted.options)
    return wanted


def as_plan(wanted: str | Part | AttributionPlan) -> AttributionPlan:
    """A plan from a method's name, a part with options, or itself."""
    from grokkit import attribution

    if isinstance(wanted, AttributionPlan):
        return wanted
    name, options = (wanted, {}) if isinstance(wanted, str) else (wanted.name, dict(wanted.options))
    attribution.registry.get(name)
    own = {key: options.pop(key) for key in ("images", "probe_set") if key in options}
    return AttributionPlan(name, **own, parameters=options)


def as_measures(wanted: str | Iterable[str | Part | Measure]) -> list[Measure]:
    """`as_measure` of each; a single name stands for itself."""
    return [as_measure(each) for each in ([wanted] if isinstance(wanted, str) else wanted)]


def as_plans(wanted: str | Iterable[str | Part | AttributionPlan]) -> list[AttributionPlan]:
    """`as_plan` of each; a single name stands for itself."""
    return [as_plan(each) for each in ([wanted] if isinstance(wanted, str) else wanted)]
