"""From a config to the things it names: data, model, optimizer; each from its own random stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from grokkit import data, models
from grokkit.config.run_config import RunConfig, Spec
from grokkit.data.base import Dataset
from grokkit.data.resident import to_pixels
from grokkit.errors import UsageError
from grokkit.models.classifier import Classifier, Normalise, channels_last_is_safe, scale_init
from grokkit.models.profile import profile
from grokkit.seeding import seeded, stream
from grokkit.trajectory import Run, to_path

INITIAL_IMAGES = 5000
"""Training images, at most, that a data-dependent initialisation sees."""


def build_data(config: RunConfig, recorded: str | None = None) -> Dataset:
    """The dataset that the config names; `recorded`: where it lay when the run began, for a run that is gone on with
    from another working folder."""
    name = config.data.name
    if recorded is not None and not to_path(name).exists():
        name = recorded
    return data.load(name, **config.data.options)


def locate_data(config: RunConfig) -> dict[str, str]:
    """The absolute path of data that are a file or a folder, for `facts`; nothing where they have a name."""
    found = data.find_dataset(config.data.name)
    return {"path": str(to_path(found))} if isinstance(found, Path) else {}


def dataset_metadata(dataset: Dataset) -> dict[str, Any]:
    """What a run has to remember of its data: enough to build its model again, and to know the data again."""
    held_out = {} if dataset.y_val is None else {"validation": len(dataset.y_val)}
    return {
        "name": dataset.name,
        "hash": dataset.hash,
        "train": len(dataset.y_train),
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        **held_out,
    }


def build_model(config: RunConfig, facts: Mapping[str, Any], dataset: Dataset | None = None) -> Classifier:
    """The classifier for data with these facts, initialised from the stream `init` and scaled by `init_scale`.

    Args:
        config: names the model.
        facts: as `dataset_metadata` gives them.
        dataset: whose training images a net with a method `initialise_from` is shown, normalised and at most
            `INITIAL_IMAGES` of them, drawn from the stream `init/images`; None where weights are loaded afterwards.
    """
    normalise = Normalise(facts["mean"], facts["std"])
    with seeded(config.seed, "init"):
        shape = tuple(facts["input_shape"])
        net = models.create(config.model.name, shape, len(facts["classes"]), **config.model.options)
        if dataset is not None and hasattr(net, "initialise_from"):
            rng = np.random.default_rng(stream(config.seed, "init", "images"))
            chosen = rng.permutation(len(dataset.x_train))[:INITIAL_IMAGES]
            net.initialise_from(normalise(to_pixels(dataset.x_train[chosen])))
    scale_init(net, config.init_scale)
    return Classifier(normalise, net)


def count_macs(model: Classifier, input_shape: Sequence[int]) -> int:
    """Multiply-adds of one image's forward pass through the net."""
    return profile(model.net, tuple(input_shape)).macs


def load_config(run: Run) -> RunConfig:
    """The config of a run that `grokkit.train` made. Its names are not looked up, and no code of the run is executed;
    `stored_code.import_unknown` does that.

    Raises:
        UsageError: another loop made the run.
    """
    if not {"experiment", "model", "data"} <= run.config.keys():
        raise UsageError(
            f"{run.path} was not made by grokkit.train: pass its architecture as `model`, or go on with "
            "gk.record(..., resume=True) in the loop that made it"
        )
    return RunConfig.from_dict(run.config)


def to_device(model: Classifier, device: torch.device) -> Classifier:
    """The model on `device`, in channels_last where that is safe (1.2-1.4 times faster); live and replay both use it,
    because another memory format changes sums in their last bits."""
    if any(isinstance(module, nn.Conv2d) for module in model.modules()) and channels_last_is_safe(model):
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def clip_gradients(chosen: Spec | None, model: nn.Module) -> None:
    """Clip the gradients in place by value or by norm; None leaves them."""
    if chosen is None:
        return
    limit = float(chosen.options["limit"])
    if chosen.name == "value":
        torch.nn.utils.clip_grad_value_(model.parameters(), limit)
    else:
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)


def validate_clip(chosen: Spec | None) -> None:
    """Raise UsageError unless `clip` is None, or `value` or `norm` with a positive `limit`."""
    if chosen is None:
        return
    limit = chosen.options.get("limit")
    if chosen.name not in ("value", "norm") or not isinstance(limit, int | float) or limit <= 0:
        raise UsageError(
            f'`clip` must be spec("value", limit=...) or spec("norm", limit=...) with limit > 0; got {chosen}'
        )
