"""A run as the loop works with it: all that a config names, built on a device, and the recorder that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from grokkit import policies
from grokkit.config.run_config import RunConfig
from grokkit.data.base import Dataset
from grokkit.data.probes import probe_sets
from grokkit.data.resident import Batches
from grokkit.device.precision import resolve_precision
from grokkit.device.select import describe_device
from grokkit.measures.loss import get_loss
from grokkit.models.classifier import Classifier
from grokkit.optim.build import build_optimizer
from grokkit.optim.policy_lr import PolicyLR
from grokkit.recording.record import record
from grokkit.recording.recorder import Recorder
from grokkit.recording.signal import Signal, check_listener
from grokkit.training.build import (
    build_data,
    build_model,
    clip_gradients,
    dataset_metadata,
    locate_data,
    to_device,
    validate_clip,
)
from grokkit.training.evaluation import Split
from grokkit.training.meter import Meter
from grokkit.training.ranks import NullRecorder, Ranks
from grokkit.training.slowdown import SlowdownDetector
from grokkit.training.step import TrainStep
from grokkit.trust import add_trusted

RecorderLike = Recorder | NullRecorder
"""What a loop has: the recorder, or in all but the first process of a team what stands in its place."""


@dataclass
class Trainer:
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
    ranks: Ranks
    slowdown: SlowdownDetector = field(default_factory=SlowdownDetector)


def build_trainer(
    config: RunConfig,
    device: torch.device,
    beside: Trainer | None = None,
    team: Ranks | None = None,
    recorded: str | None = None,
) -> Trainer:
    """Data, model, optimizer, policy and batches for `config` on `device`; `beside`: a job on the same data, which are
    shared with it; `ranks`: of the processes that train it together; `recorded`: as of `build_data`."""
    team = team or Ranks()
    validate_clip(config.clip)
    dataset = build_data(config, recorded) if beside is None else beside.dataset
    model = to_device(build_model(config, dataset_metadata(dataset), dataset), device)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    chosen = policies.create(config.policy.name, **config.policy.options)
    # The team tells all ranks the same; where it is of one, other ranks of a process group train nets of their own.
    policy = PolicyLR(optimizer, chosen, config.steps, broadcast=False)
    optimizer.step()  # without gradients: says that updates come first, also where float16 skips the first one
    images = dataset.x_train if beside is None else beside.batches.images
    labels = dataset.y_train if beside is None else beside.batches.labels
    batches = Batches(images, labels, config.batch_size, seed=config.seed, device=device, augment=config.augment)
    precision = resolve_precision(config.precision, device)
    execution = team.validate(len(images), batches.batch_size, config.execution)
    team.seed_rank(config.seed)
    loss = partial(get_loss(config.loss), label_smoothing=config.label_smoothing)
    update = TrainStep(
        team.wrap(model),
        optimizer,
        team.loss(loss),
        batch_size=batches.batch_size,
        clip=partial(clip_gradients, config.clip, model),
        precision=precision,
        execution=execution,
    )
    test_set, validation = _held_out(dataset, device) if beside is None else (beside.test_set, beside.validation)
    return Trainer(
        config,
        dataset,
        model,
        optimizer,
        policy,
        batches,
        update,
        team.meter(device),
        test_set,
        validation,
        device,
        precision,
        team,
    )


def _held_out(dataset: Dataset, device: torch.device) -> tuple[Split, Split | None]:
    """Test and validation split on the device."""
    validation = None
    if dataset.x_val is not None and dataset.y_val is not None:
        validation = _on(device, dataset.x_val, dataset.y_val)
    return _on(device, dataset.x_test, dataset.y_test), validation


def _on(device: torch.device, images: np.ndarray, labels: np.ndarray) -> Split:
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def attach_recorder(
    trainer: Trainer,
    path: Path,
    experiment: str | None,
    resumed: bool = False,
    facts: Mapping[str, Any] | None = None,
    price: float | None = None,
    overwrite: bool = False,
) -> RecorderLike:
    """The recorder that `trainer`'s config asks for; `facts` go into environment.json above those of every run. In a
    team the first process has it."""
    config = trainer.config
    schedule, signal = config.schedule, Signal.of(config.signal)
    check_listener(trainer.policy.policy, signal, trainer.validation is not None)
    if trainer.ranks.rank:
        if experiment is not None and not resumed:
            add_trusted(experiment)  # this process may be on a machine whose user has a list of its own
        trainer.ranks.barrier()
        return NullRecorder(path, trainer.model, trainer.optimizer, schedule, signal)
    recorder = record(
        path,
        trainer.model,
        trainer.optimizer,
        probes=probe_sets(trainer.dataset, **config.probes),
        measures=config.measures,
        attributions=config.attributions,
        schedule=schedule,
        signal=signal,
        seed=config.seed,
        loss=config.loss,
        total_steps=config.steps,
        config=config,
        experiment=experiment,
        facts={**_facts(trainer), **(facts or {})},
        resume=resumed,
        price=price,
        overwrite=overwrite,
    )
    trainer.ranks.barrier()
    return recorder


def _facts(trainer: Trainer) -> dict[str, Any]:
    """What environment.json says of this run's data and arithmetic."""
    precision = describe_device(trainer.device, precision=trainer.precision).precision
    data = dataset_metadata(trainer.dataset) | locate_data(trainer.config)
    return {"data": data, "device": describe_hardware(trainer), "precision": precision}


def describe_hardware(trainer: Trainer) -> str:
    """Device, precision and execution in words."""
    processes = f", {trainer.ranks.size} processes" if trainer.ranks.size > 1 else ""
    device = describe_device(trainer.device, precision=trainer.precision).description
    return f"{device}, {trainer.update.execution} steps{processes}"
