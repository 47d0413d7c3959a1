"""One training loop that can be read aloud. Its trajectory is written by the recorder, like any other loop's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from grokkit import policies
from grokkit.data.base import Dataset
from grokkit.data.probes import probe_sets
from grokkit.data.resident import Batches
from grokkit.errors import DataError, Interrupted, NumericsError
from grokkit.interrupt import Stopped, StopRequest
from grokkit.measures.loss import loss_function
from grokkit.models.classifier import Classifier
from grokkit.seeding import seeded
from grokkit.training.build import (
    build_data,
    build_model,
    build_optimizer,
    checked_clip,
    clip_gradients,
    config_of,
    facts_of,
    macs_of,
    placed,
)
from grokkit.training.config import RunConfig
from grokkit.training.costs import in_words
from grokkit.training.device import described, fitting_threads, resolve
from grokkit.training.evaluation import Split, evaluated
from grokkit.training.lr_scheduler import PolicyLR
from grokkit.training.meter import Meter
from grokkit.training.observers import Observer, Silent
from grokkit.training.precision import resolve_precision
from grokkit.training.recorder import Recorder, record
from grokkit.training.schedule import log_spaced
from grokkit.training.signal import Signal
from grokkit.training.state import Stateful
from grokkit.training.step import TrainStep
from grokkit.training.team import Absent, Team, team_of
from grokkit.trajectory import Run, open_run

REPORTS = 200
"""Rows of batch metrics per run. Each is read one step late, so that the device has work while the host reads."""

MIRRORING = frozenset({"flip", "altflip"})
"""Augmentations after which a net is also asked about the mirror of every test image, at the end."""

SAVE_SECONDS = 30.0
"""Time between two resume slots, unless they would take more than `SAVE_SHARE` of the run."""

SAVE_SHARE = 0.02


Recording = Recorder | Absent
"""What a loop has: the recorder, or in all but the first process of a team what stands in its place."""


@dataclass
class Job:
    """All that the loop works with, built from the config alone."""

    config: RunConfig
    dataset: Dataset
    model: Classifier
    optimizer: Optimizer
    policy: PolicyLR
    batches: Batches
    update: TrainStep
    meter: Meter
    test_set: Split
    validation: Split | None
    device: torch.device
    precision: str
    team: Team


def train(
    config: RunConfig,
    *,
    runs: str | Path = "runs",
    device: str | None = None,
    observer: Observer | None = None,
    experiment: str | None = None,
) -> Run:
    """Train one run from its first step into a new folder below `runs`.

    Args:
        config: every choice of the run.
        runs: root; the folder is `<runs>/<experiment>/<variant>-s<seed>-<config hash>`.
        device: `cpu`, `cuda`, or None for the best usable one.
        observer: company, silent by default.
        experiment: source text of the study, kept in the folder.

    Returns:
        The finished run, opened for reading.

    Raises:
        UsageError, DataError: a choice that does not exist or does not fit; nothing is written then.
        DeviceRefusedError: a GPU that is present but unusable.
        TrajectoryError: the folder exists.
        NumericsError: the loss is not finite; what was recorded before is kept.
        Interrupted: Ctrl-C or SIGTERM; the state is saved, `resume` goes on.
    """
    return _run(config, Path(runs) / config.run_name, device, observer, experiment, resumed=False)


def resume(path: str | Path, *, device: str | None = None, observer: Observer | None = None) -> Run:
    """Go on with an interrupted run from its newest slot; the config comes from the folder. A finished run is returned.

    Raises: as `train`.
    """
    found = open_run(path)
    if found.status["state"] == "done":
        return found
    return _run(config_of(found), Path(path), device, observer, None, resumed=True)


def _run(
    config: RunConfig, path: Path, device: str | None, observer: Observer | None, experiment: str | None, resumed: bool
) -> Run:
    observer = observer or Silent()
    team = team_of(resolve(device).torch_device)
    with seeded(config.seed, "training"):
        job = build(config, team.device(resolve(device).torch_device), team=team)
        if resumed:
            _check_data(job, open_run(path))
        work = macs_of(job.model, job.dataset.input_shape) * job.batches.batch_size
        with (
            fitting_threads(work), StopRequest() as stop, _at_step_0(config, path),
            open_recorder(job, path, experiment, resumed) as recorder,
        ):  # fmt: skip
            start = recorder.restore(**_parts(job)) if resumed else 0
            if start == 0:
                job.policy.observe(team.told(partial(evaluate, job, recorder, 0)))
                job.policy.observe(team.told(lambda: recorder.first_readings))
            observer.start(f"{path}  on {_machine(job)}", start, config.steps)
            try:
                _loop(job, recorder, observer, stop, start)
            finally:
                observer.close(in_words(recorder.costs.seconds()))
    team.barrier()
    return open_run(path)


@contextmanager
def _at_step_0(config: RunConfig, path: Path) -> Iterator[None]:
    """A stop before the first update is told like any other; the run goes on from step 0, what was measured stays."""
    try:
        yield
    except Stopped:
        raise Interrupted(how_to_go_on(0, config, path)) from None


def _check_data(job: Job, run: Run) -> None:
    then, now = run.environment["data"]["hash"], job.dataset.hash
    if then != now:
        raise DataError(f"{run.path} began on other data: {job.dataset.name} had the hash {then}, it has {now} now")


def build(config: RunConfig, device: torch.device, beside: Job | None = None, team: Team | None = None) -> Job:
    """Data, model, optimizer, policy and batches for `config` on `device`; `beside`: a job on the same data, which are
    shared with it; `team`: of the processes that train it together."""
    team = team or Team()
    checked_clip(config.clip)
    dataset = build_data(config) if beside is None else beside.dataset
    model = placed(build_model(config, facts_of(dataset), dataset), device)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    policy = PolicyLR(optimizer, policies.create(config.policy.name, **config.policy.options), config.steps)
    images = dataset.x_train if beside is None else beside.batches.images
    labels = dataset.y_train if beside is None else beside.batches.labels
    batches = Batches(images, labels, config.batch_size, seed=config.seed, device=device, augment=config.augment)
    precision = resolve_precision(config.precision, device)
    execution = team.checked(len(images), batches.batch_size, config.execution)
    team.begin(config.seed)
    loss = partial(loss_function(config.loss), label_smoothing=config.label_smoothing)
    update = TrainStep(
        team.module(model), optimizer, team.loss(loss), batch_size=batches.batch_size,
        clip=partial(clip_gradients, config.clip, model), precision=precision, execution=execution,
    )  # fmt: skip
    test_set, validation = _held_out(dataset, device) if beside is None else (beside.test_set, beside.validation)
    return Job(
        config, dataset, model, optimizer, policy, batches, update, team.meter(device), test_set, validation, device,
        precision, team,
    )  # fmt: skip


def _held_out(dataset: Dataset, device: torch.device) -> tuple[Split, Split | None]:
    """Test and validation split on the device."""
    validation = None
    if dataset.x_val is not None and dataset.y_val is not None:
        validation = _on(device, dataset.x_val, dataset.y_val)
    return _on(device, dataset.x_test, dataset.y_test), validation


def _on(device: torch.device, images: np.ndarray, labels: np.ndarray) -> Split:
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def open_recorder(
    job: Job, path: Path, experiment: str | None, resumed: bool = False, facts: Mapping[str, Any] | None = None
) -> Recording:
    """The recorder that `job`'s config asks for; `facts` go into environment.json above those of every run. In a team
    the first process has it."""
    config = job.config
    schedule, signal = log_spaced(config.records, config.steps), Signal.of(config.signal)
    if job.team.rank:
        job.team.barrier()
        return Absent(path, job.model, job.optimizer, schedule, signal)
    recorder = record(
        path, job.model, job.optimizer,
        probes=probe_sets(job.dataset, **config.probes), measures=config.measures, attributions=config.attributions,
        schedule=schedule, signal=signal, seed=config.seed, loss=config.loss, total_steps=config.steps, config=config,
        experiment=experiment, facts={**_facts(job), **(facts or {})}, resume=resumed,
    )  # fmt: skip
    job.team.barrier()
    return recorder


def _facts(job: Job) -> dict[str, Any]:
    """What environment.json says of this run's data and arithmetic."""
    precision = described(job.device, precision=job.precision).precision
    return {"data": facts_of(job.dataset), "device": _machine(job), "precision": precision}


def _machine(job: Job) -> str:
    """Device, precision and execution in words."""
    processes = f", {job.team.size} processes" if job.team.size > 1 else ""
    return f"{described(job.device, precision=job.precision).description}, {job.update.execution} steps{processes}"


def _loop(job: Job, recorder: Recording, observer: Observer, stop: StopRequest, start: int) -> None:
    config, saves = job.config, SaveTimes()
    told = 0 if start == 0 else len(job.policy.decisions)
    job.model.train()
    if recorder.unfinished:
        told = _recorded(job, recorder, start, told)
    for step in range(start + 1, config.steps + 1):
        x, y = job.team.part(*job.batches.at(step))
        loss, logits = job.update(x, y)
        job.meter.add(loss, logits, y)
        report(job, recorder, observer, step)
        told = _recorded(job, recorder, step, told)
        stopping, saving = job.team.agreed(step, stop.asked, stop.save_asked or saves.due(recorder))
        if stopping or saving or step == config.steps:
            save(job, recorder, step)
            stop.save_asked = False
            saves.done()
        if stopping and step < config.steps:
            raise Interrupted(how_to_go_on(step, config, recorder.path))


class SaveTimes:
    """When the next slot is due: `SAVE_SECONDS` after the last, later where slots would take more than `SAVE_SHARE` of
    the time."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def due(self, *recorders: Recording) -> bool:
        now = time.monotonic()
        if now - self._last <= SAVE_SECONDS:
            return False
        return sum(each.save_seconds for each in recorders) <= SAVE_SHARE * (now - self._began)

    def done(self) -> None:
        self._last = time.monotonic()


def _recorded(job: Job, recorder: Recording, step: int, told: int) -> int:
    """`follow`; where a stop was asked for amid the measures, all is saved so that they go on with the next one."""
    try:
        return follow(job, recorder, step, told)
    except Stopped:
        save(job, recorder, step, unfinished=True)
        raise Interrupted(how_to_go_on(step, job.config, recorder.path)) from None


def report(job: Job, recorder: Recording, observer: Observer, step: int) -> None:
    """What follows the update number `step` before anything is measured: read the meter, log, tell the observer.

    Raises:
        NumericsError: the loss is not finite.
    """
    config = job.config
    _report(job, recorder, observer)
    if step % max(1, config.steps // REPORTS) == 0 or step == config.steps:
        job.meter.take(step)
        recorder.log(step, "batch", learning_rate=_rate(job))
    if step == config.steps:
        _report(job, recorder, observer)


def follow(job: Job, recorder: Recording, step: int, told: int) -> int:
    """Record what is due after `step` updates, evaluate, ask the policy for the next rate.

    Nothing but files and logs has changed where this is stopped, so that it can be called again for the same step.

    Args:
        told: how many of the policy's decisions were logged before; what is returned is to be given at the next step.

    Raises:
        Stopped: a stop was asked for amid the measures.
    """
    due = recorder.due(step) or recorder.signal_due(step)
    for heard in job.team.told(partial(_measured, job, recorder, step), due) or ():
        job.policy.observe(heard)
    job.policy.step()
    return _note_decisions(job, recorder, told)


def _measured(job: Job, recorder: Recording, step: int) -> tuple[dict[str, float] | None, ...]:
    """Record and evaluate what is due; what the policy is to hear of it."""
    return recorder.step(step), evaluate(job, recorder, step) if recorder.due(step) else None


def save(job: Job, recorder: Recording, step: int, unfinished: bool = False) -> None:
    """Put all that `resume` goes on from into a slot."""
    recorder.save(step, unfinished=unfinished, **_parts(job))


def _parts(job: Job) -> dict[str, Stateful]:
    return {"policy": job.policy, "meter": job.meter, "update": job.update, **job.team.parts()}


def how_to_go_on(step: int, config: RunConfig, *paths: Path) -> str:
    """What an interrupted run, or several, say."""
    return f"stopped after step {step} of {config.steps}; go on with: grokkit resume {' '.join(map(str, paths))}"


def _report(job: Job, recorder: Recording, observer: Observer) -> None:
    """Read what the meter has set aside, check it, log it and tell the policy and the observer."""
    taken = job.meter.read()
    if taken is None:
        return
    step, loss, accuracy = taken
    if not math.isfinite(loss):
        kept = max(open_run(recorder.path).steps(), default=0)
        raise NumericsError(
            f"the training loss is {loss} by step {step}; snapshots up to step {kept} are kept (the last ones may "
            "hold such numbers too). "
            "A smaller learning rate, or clip = norm, is the usual remedy"
        )
    recorder.log(step, "batch", loss=loss, accuracy=accuracy)
    job.policy.observe({"train_loss": loss})
    observer.report(step, {"loss": loss, "accuracy": accuracy, "lr": _rate(job)})


def _rate(job: Job) -> float:
    return float(job.optimizer.param_groups[0]["lr"])


def evaluate(job: Job, recorder: Recording, step: int) -> dict[str, float] | None:
    """Log loss and accuracy on images that were not trained on; return what the policy is to hear of it.

    A validation split is asked at every recorded step and its loss told to the policy; the test set is then left alone
    but for the first and the last step. After the last one, where training mirrored images, the test set is told with
    test-time augmentation too.
    """
    last, heard = step == job.config.steps, None
    with recorder.costs.of("evaluation"):
        if job.validation is not None:
            told = evaluated(job.model, job.validation, job.config.loss)
            recorder.log(step, "validation", **told)
            heard = {"validation_loss": told["loss"]}
        if job.validation is None or step == 0 or last:
            mirrored = last and not MIRRORING.isdisjoint(job.config.augment)
            recorder.log(step, "test_set", **evaluated(job.model, job.test_set, job.config.loss, mirrored=mirrored))
    return heard


def _note_decisions(job: Job, recorder: Recording, told: int) -> int:
    """Log the policy's decisions after the first `told`; return how many there are now."""
    for decision in job.policy.decisions[told:]:
        recorder.event(decision["step"], "policy", decision["reason"], lr=decision["lr"])
    return len(job.policy.decisions)
