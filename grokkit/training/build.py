"""Turn a config into what a run trains: its dataset, and its model, initialised from a random stream of its own."""

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
from grokkit.measures.profile import measure_cost
from grokkit.models.classifier import Classifier, Normalise, channels_last_is_safe, scale_init
from grokkit.seeding import derive_seed, seeded
from grokkit.trajectory import Run, to_path

INITIAL_IMAGES = 5000
"""Maximum number of training images for a data-dependent initialisation."""


def build_data(config: RunConfig, recorded_path: str | None = None) -> Dataset:
    """Load the dataset that `config` names.

    `recorded_path` is its path when the run began, used if a run is resumed from another working directory.
    """
    name = config.data.name
    if recorded_path is not None and not to_path(name).exists():
        name = recorded_path
    return data.load_data(name, **config.data.options)


def locate_data(config: RunConfig) -> dict[str, str]:
    """Return the absolute path of a dataset that is a file or folder, for `facts`; empty for a registered name."""
    location = data.find_dataset(config.data.name)
    return {"path": str(to_path(location))} if isinstance(location, Path) else {}


def dataset_metadata(dataset: Dataset) -> dict[str, Any]:
    """Describe a dataset for environment.json: enough to rebuild the model and to recognise the data on resume."""
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
    """Build the classifier for data with these facts, initialised from the stream `init` and scaled by `init_scale`.

    Args:
        config: names the model.
        facts: as returned by `dataset_metadata`.
        dataset: source of the images passed to a model's `initialise_from`, if it has that method: at most
            `INITIAL_IMAGES` training images, normalised, drawn from the stream `init/images`. None if weights are
            loaded afterwards.
    """
    normalise = Normalise(facts["mean"], facts["std"])
    with seeded(config.seed, "init"):
        shape = tuple(facts["input_shape"])
        net: Any = models.create(config.model.name, shape, len(facts["classes"]), **config.model.options)
        if dataset is not None and hasattr(net, "initialise_from"):
            rng = np.random.default_rng(derive_seed(config.seed, "init", "images"))
            indices = rng.permutation(len(dataset.x_train))[:INITIAL_IMAGES]
            net.initialise_from(normalise(to_pixels(dataset.x_train[indices])))
    scale_init(net, config.init_scale)
    return Classifier(normalise, net)


def count_macs(model: Classifier, input_shape: Sequence[int]) -> int:
    """Count the multiply-adds (MACs) of the forward pass of one image."""
    return measure_cost(model.net, tuple(input_shape)).macs


def load_config(run: Run) -> RunConfig:
    """Return the config of a run that `grokkit.train` made.

    Names are not looked up and no code of the run is executed; `stored_code.import_unknown` does that.

    Raises:
        UsageError: the run was made by another training loop.
    """
    if not {"experiment", "model", "data"} <= run.config.keys():
        raise UsageError(
            f"{run.path} was recorded by another loop, whose model only its code can build. Measure its snapshots with "
            f"gk.replay_run({str(run.path)!r}, measures=[...], model=model); resume it with gk.record(..., "
            "resume=True) in that loop"
        )
    return RunConfig.from_dict(run.config)


def to_device(model: Classifier, device: torch.device) -> Classifier:
    """Move the model to `device`, in channels_last if that is safe (1.2-1.4 times faster).

    Training and replay both use it, because another memory format changes sums in their last bits.
    """
    if any(isinstance(module, nn.Conv2d) for module in model.modules()) and channels_last_is_safe(model):
        model = model.to(memory_format=torch.channels_last)
    return model.to(device)


def clip_gradients(clip: Spec | None, model: nn.Module) -> None:
    """Clip the gradients in place by value or by norm; do nothing if `clip` is None."""
    if clip is None:
        return
    limit = float(clip.options["limit"])
    if clip.name == "value":
        torch.nn.utils.clip_grad_value_(model.parameters(), limit)
    else:
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)


def validate_clip(clip: Spec | None) -> None:
    """Raise UsageError unless `clip` is None, or `value` or `norm` with a positive `limit`."""
    if clip is None:
        return
    limit = clip.options.get("limit")
    if clip.name not in ("value", "norm") or not isinstance(limit, int | float) or limit <= 0:
        raise UsageError(
            f'`clip` must be spec("value", limit=...) or spec("norm", limit=...) with limit > 0; got {clip}'
        )
