"""Check every name and option of a config before anything is built, so that a sweep fails before it starts."""

from __future__ import annotations

import torch

from grokkit import data, models, policies
from grokkit.config.run_config import RunConfig
from grokkit.data import augment
from grokkit.measures.loss import get_loss
from grokkit.optim.build import build_optimizer
from grokkit.recording.instruments import as_attribution_specs, as_measures
from grokkit.recording.signal import Signal
from grokkit.training.build import validate_clip


def validate_options(config: RunConfig) -> None:
    """Check every name and option of `config`; no model is built, no data are read.

    Raises:
        UsageError: an unknown name or option, with the nearest existing one.
        DataError: the data's path does not exist.
    """
    data.check_dataset_options(config.data.name, **config.data.options)
    models.registry.check(config.model.name, config.model.options)
    policies.create(config.policy.name, **config.policy.options)
    build_optimizer(config.optimizer, [torch.zeros(1, requires_grad=True)])
    validate_clip(config.clip)
    get_loss(config.loss)
    augment.parse_augment(config.augment)
    as_measures(config.measures)
    as_attribution_specs(config.attributions)
    Signal.from_fields(config.signal)
