"""One training loop that can be read aloud. Its trajectory is written by the recorder, like any other loop's."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from grokkit import policies
from grokkit.data.base import Dataset
from grokkit.data.probes import probe_sets
from grokkit.data.resident import Batches, pixels
from grokkit.errors import DataError, Interrupted, NumericsError
from grokkit.measures.base import logits_of
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
from grokkit.training.device import fitting_threads, resolve
from grokkit.training.interrupt import StopRequest
from grokkit.training.lr_scheduler import PolicyLR
from grokkit.training.observers import Observer, Silent
from grokkit.training.recorder import Recorder, record
from grokkit.training.schedule import log_spaced
from grokkit.training.signal import Signal
from grokkit.trajectory import Run, open_run

REPORTS = 200
"""Rows of batch metrics per run; between them and the recorded steps the loop does not wait for the device."""

EVALUATED = 2048
"""Images to evaluate on converted to floats at a time."""

MIRRORING = frozenset({"flip", "altflip"})
"""Augmentations after which a net is also asked about the mirror of every test image, at the end."""

SAVE_SECONDS = 120.0
"""Longest time between two resume slots."""


@dataclass
class Job:
    """All that the loop works with, built from the config alone."""

    config: RunConfig
    dataset: Dataset
    model: Classifier
    optimizer: Optimizer
    policy: PolicyLR
    batches: Batches
    meter: Meter
    test_set: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor] | None


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
    with seeded(config.seed, "training"):
        job = build(config, resolve(device).torch_device)
        if resumed:
            _check_data(job, open_run(path))
        work = macs_of(job.model, job.dataset.input_shape) * job.batches.batch_size
        with fitting_threads(work), StopRequest() as stop, _recorder(job, path, experiment, resumed) as recorder:
            start = recorder.restore(policy=job.policy, meter=job.meter) if resumed else 0
            if start == 0:
                _evaluate(job, recorder, 0)
                job.policy.observe(recorder.first_readings)
            observer.start(f"{path}  on {resolve(device).description}", start, config.steps)
            try:
                _loop(job, recorder, observer, stop, start)
            finally:
                observer.close()
    return open_run(path)


def _check_data(job: Job, run: Run) -> None:
    then, now = run.environment["data"]["hash"], job.dataset.hash
    if then != now:
        raise DataError(f"{run.path} began on other data: {job.dataset.name} had the hash {then}, it has {now} now")


def build(config: RunConfig, device: torch.device) -> Job:
    """Data, model, optimizer, policy and batches for `config` on `device`."""
    checked_clip(config.clip)
    dataset = build_data(config)
    model = placed(build_model(config, facts_of(dataset), dataset), device)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    policy = PolicyLR(optimizer, policies.create(config.policy.name, **config.policy.options), config.steps)
    batches = Batches(
        dataset.x_train, dataset.y_train, config.batch_size, seed=config.seed, device=device, augment=config.augment
    )
    test_set = _on(device, dataset.x_test, dataset.y_test)
    validation = None
    if dataset.x_val is not None and dataset.y_val is not None:
        validation = _on(device, dataset.x_val, dataset.y_val)
    return Job(config, dataset, model, optimizer, policy, batches, Meter(device), test_set, validation)


def _on(device: torch.device, images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def _recorder(job: Job, path: Path, experiment: str | None, resumed: bool) -> Recorder:
    config = job.config
    return record(
        path, job.model, job.optimizer,
        probes=probe_sets(job.dataset, **config.probes), measures=config.measures, attributions=config.attributions,
        schedule=log_spaced(config.records, config.steps), signal=Signal.of(config.signal),
        seed=config.seed, loss=config.loss, total_steps=config.steps, config=config, experiment=experiment,
        facts=facts_of(job.dataset), resume=resumed,
    )  # fmt: skip


def _loop(job: Job, recorder: Recorder, observer: Observer, stop: StopRequest, start: int) -> None:
    config, model, optimizer = job.config, job.model, job.optimizer
    loss_of = loss_function(config.loss)
    report_every = max(1, config.steps // REPORTS)
    saved = time.monotonic()
    told = 0 if start == 0 else len(job.policy.decisions)
    model.train()
    for step in range(start + 1, config.steps + 1):
        x, y = job.batches.at(step)
        logits = model(x)
        loss = loss_of(logits, y, config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        clip_gradients(config.clip, model)
        optimizer.step()
        job.meter.add(loss, logits, y)
        if step % report_every == 0 or step == config.steps:
            _report(job, recorder, observer, step)
        job.policy.observe(recorder.step(step))
        if recorder.due(step):
            _evaluate(job, recorder, step)
        job.policy.step()
        told = _note_decisions(job, recorder, told)
        if stop.asked or time.monotonic() - saved > SAVE_SECONDS or step == config.steps:
            recorder.save(step, policy=job.policy, meter=job.meter)
            saved = time.monotonic()
        if stop.asked and step < config.steps:
            raise Interrupted(
                f"stopped after step {step} of {config.steps}; go on with: grokkit resume {recorder.path}"
            )


def _report(job: Job, recorder: Recorder, observer: Observer, step: int) -> None:
    """Read the meter, check it, log it and tell the policy and the observer."""
    loss, accuracy = job.meter.read()
    if not math.isfinite(loss):
        kept = max(open_run(recorder.path).steps())
        raise NumericsError(
            f"the training loss is {loss} by step {step}; snapshots up to step {kept} are kept (the last ones may "
            "hold such numbers too). "
            "A smaller learning rate, or clip = norm, is the usual remedy"
        )
    rate = float(job.optimizer.param_groups[0]["lr"])
    recorder.log(step, "batch", loss=loss, accuracy=accuracy, learning_rate=rate)
    job.policy.observe({"train_loss": loss})
    observer.report(step, {"loss": loss, "accuracy": accuracy, "lr": rate})


def _evaluate(job: Job, recorder: Recorder, step: int) -> None:
    """Log loss and accuracy on images that were not trained on.

    A validation split is asked at every recorded step and its loss told to the policy; the test set is then left alone
    but for the first and the last step. After the last one, where training mirrored images, the test set is told with
    test-time augmentation too.
    """
    last = step == job.config.steps
    if job.validation is not None:
        told = _tell(job, job.validation)
        recorder.log(step, "validation", **told)
        job.policy.observe({"validation_loss": told["loss"]})
    if job.validation is None or step == 0 or last:
        mirrored = last and not MIRRORING.isdisjoint(job.config.augment)
        recorder.log(step, "test_set", **_tell(job, job.test_set, mirrored=mirrored))


def _tell(job: Job, split: tuple[Tensor, Tensor], *, mirrored: bool = False) -> dict[str, float]:
    """`loss` and plain `accuracy` on the whole split, correct / seen; where `mirrored` also `accuracy_tta`, by the mean
    of the logits for each image and its mirror."""
    plain, both = Meter(job.meter.device), Meter(job.meter.device)
    for images, labels in zip(*(part.split(EVALUATED) for part in split), strict=True):
        x = pixels(images)
        logits = logits_of(job.model, x)
        loss = loss_function(job.config.loss)(logits, labels)
        plain.add(loss, logits, labels)
        if mirrored:
            both.add(loss, (logits + logits_of(job.model, x.flip(3))) / 2, labels)
    told = dict(zip(("loss", "accuracy"), plain.read(), strict=True))
    return told | ({"accuracy_tta": both.read()[1]} if mirrored else {})


def _note_decisions(job: Job, recorder: Recorder, told: int) -> int:
    """Log the policy's decisions after the first `told`; return how many there are now."""
    for decision in job.policy.decisions[told:]:
        recorder.event(decision["step"], "policy", decision["reason"], lr=decision["lr"])
    return len(job.policy.decisions)


class Meter:
    """Loss and accuracy summed on the device; reading them is the only wait. All samples count, ragged batches too.

    Args:
        device: of the batches.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._seen = 0

    def add(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Count a batch: `loss` is its mean, `logits` (B, classes), `y` (B,)."""
        with torch.no_grad():
            self._sums[0] += loss.detach() * len(y)
            self._sums[1] += (logits.argmax(1) == y).sum()
        self._seen += len(y)

    def read(self) -> tuple[float, float]:
        """Mean loss and accuracy since the last reading; starts anew."""
        loss, correct = (self._sums / max(self._seen, 1)).tolist()
        self._sums.zero_()
        self._seen = 0
        return loss, correct

    def state_dict(self) -> dict[str, Tensor | int]:
        """What has been summed since the last reading."""
        return {"sums": self._sums, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """The inverse of `state_dict`."""
        self._sums.copy_(torch.as_tensor(state["sums"]))
        self._seen = int(state["seen"])
