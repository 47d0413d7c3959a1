"""The trainer: data, model, optimizer, policy and batches built from a config on a device, and its recorder."""

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
from grokkit.literals import Precision
from grokkit.measures.loss import get_loss
from grokkit.models.classifier import Classifier
from grokkit.optim.build import build_optimizer
from grokkit.optim.policy_lr import PolicyLR
from grokkit.recording.record import record
from grokkit.recording.recorder import Recorder
from grokkit.recording.signal import Signal, check_policy_readings
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
from grokkit.training.smallest_batch import check_smallest_batch
from grokkit.training.step import TrainStep
from grokkit.trust import add_trusted

RecorderLike = Recorder | NullRecorder
"""The recorder of the loop: a `Recorder` on rank 0, a `NullRecorder` on the other ranks."""


@dataclass
class Trainer:
    """State of one training run, built from its config alone."""

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
    precision: Precision
    ranks: Ranks
    slowdown: SlowdownDetector = field(default_factory=SlowdownDetector)


def build_trainer(
    config: RunConfig,
    device: torch.device,
    data_from: Trainer | None = None,
    ranks: Ranks | None = None,
    recorded_path: str | None = None,
) -> Trainer:
    """Build data, model, optimizer, policy and batches for `config` on `device`.

    Args:
        config: the run's configuration.
        device: of the model and the batches.
        data_from: a trainer on the same data, which are then shared instead of loaded again.
        ranks: the processes that train the run together; by default this one alone.
        recorded_path: as in `build_data`.
    """
    ranks = ranks or Ranks()
    validate_clip(config.clip)
    dataset = build_data(config, recorded_path) if data_from is None else data_from.dataset
    model = to_device(build_model(config, dataset_metadata(dataset), dataset), device)
    optimizer = build_optimizer(config.optimizer, model.parameters())
    inner_policy = policies.create(config.policy.name, **config.policy.options)
    # `on_rank_zero` broadcasts readings; with single-process `Ranks`, other ranks of a process group train other runs.
    policy = PolicyLR(optimizer, inner_policy, config.steps, broadcast=False)
    # Changes nothing (there are no gradients yet); stops PyTorch's warning that scheduler.step() came before
    # optimizer.step(), also if float16 skips the first update.
    optimizer.step()
    batches = _make_batches(config, dataset, device, data_from)
    precision = resolve_precision(config.precision, device)
    execution = ranks.validate(len(batches.images), batches.batch_size, config.execution)
    check_smallest_batch(model, batches, config.steps, ranks.size)
    ranks.seed_rank(config.seed)
    loss = partial(get_loss(config.loss), label_smoothing=config.label_smoothing)
    update = TrainStep(
        ranks.wrap(model),
        optimizer,
        ranks.loss(loss),
        batch_size=batches.batch_size,
        clip=partial(clip_gradients, config.clip, model),
        precision=precision,
        execution=execution,
    )
    test_set, validation = (
        _load_held_out(dataset, device) if data_from is None else (data_from.test_set, data_from.validation)
    )
    return Trainer(
        config,
        dataset,
        model,
        optimizer,
        policy,
        batches,
        update,
        ranks.meter(device),
        test_set,
        validation,
        device,
        precision,
        ranks,
    )


def _make_batches(config: RunConfig, dataset: Dataset, device: torch.device, data_from: Trainer | None) -> Batches:
    images = dataset.x_train if data_from is None else data_from.batches.images
    labels = dataset.y_train if data_from is None else data_from.batches.labels
    return Batches(images, labels, config.batch_size, seed=config.seed, device=device, augment=config.augment)


def _load_held_out(dataset: Dataset, device: torch.device) -> tuple[Split, Split | None]:
    """Move the test and the validation split to the device."""
    validation = None
    if dataset.x_val is not None and dataset.y_val is not None:
        validation = _to_split(device, dataset.x_val, dataset.y_val)
    return _to_split(device, dataset.x_test, dataset.y_test), validation


def _to_split(device: torch.device, images: np.ndarray, labels: np.ndarray) -> Split:
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
    """Create the recorder that `trainer`'s config specifies; a `NullRecorder` on all ranks but 0.

    `facts` are added to environment.json and override those of every run.
    """
    config = trainer.config
    schedule, signal = config.schedule, Signal.from_fields(config.signal)
    check_policy_readings(trainer.policy.policy, signal, trainer.validation is not None)
    if trainer.ranks.rank:
        if experiment is not None and not resumed:
            add_trusted(experiment)  # this process may run on another machine, whose user has a separate list
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
        facts={**_collect_facts(trainer), **(facts or {})},
        resume=resumed,
        price=price,
        overwrite=overwrite,
    )
    for finding in () if resumed else trainer.dataset.findings or ():
        recorder.event(0, "data", finding)
    trainer.ranks.barrier()
    return recorder


def _collect_facts(trainer: Trainer) -> dict[str, Any]:
    """Collect data, device and precision of the run for environment.json."""
    precision = describe_device(trainer.device, precision=trainer.precision).precision
    data = dataset_metadata(trainer.dataset) | locate_data(trainer.config)
    return {"data": data, "device": describe_hardware(trainer), "precision": precision}


def describe_hardware(trainer: Trainer) -> str:
    """Describe device, precision and execution in one line."""
    processes = f", {trainer.ranks.size} processes" if trainer.ranks.size > 1 else ""
    device = describe_device(trainer.device, precision=trainer.precision).description
    return f"{device}, {trainer.update.execution} steps{processes}"
