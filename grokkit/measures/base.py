"""Measure protocol, its context, and the steps that several measures share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from grokkit.device.model_check import run_classifier
from grokkit.device.preserved_state import device_of, dtype_of, preserved_state, unwrap
from grokkit.errors import UsageError
from grokkit.interrupt import check_interrupt
from grokkit.literals import LossName
from grokkit.models.classifier import Classifier
from grokkit.names import ProbeSet, Reading

BATCH_SIZE = 512
"""Images per forward pass; affects memory only, no reading depends on it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """Inputs of a measure.

    Args:
        model: the network, fed pixels in [0, 1] if it is a `Classifier`.
        probes: the stored probe sets by name.
        loss: `cross_entropy` or `mse`, as trained.
        seed: root of the measures' random streams; the same at every step, so frames and starts are common.
    """

    model: nn.Module
    probes: Mapping[str, ProbeSet]
    loss: LossName = "cross_entropy"
    seed: int = 0


@runtime_checkable
class Measure(Protocol):
    """A frozen dataclass of parameters; calling it must not change the model or any random state."""

    def __call__(self, context: Context) -> Reading: ...


def get_settings(measure: Measure) -> dict[str, Any]:
    """Return the measure's parameters as JSON values; they are part of the identity of its readings."""
    if not dataclasses.is_dataclass(measure) or isinstance(measure, type):
        raise UsageError(f"a measure must be an instance of a frozen dataclass; got {measure!r}")
    return dataclasses.asdict(measure)


def select_probes(context: Context, names: Sequence[str], points: int | None = None) -> dict[str, ProbeSet]:
    """Return the probe sets `names` that the run has, cut to their first `points` images.

    Raises:
        UsageError: the run has none of them.
    """
    if points is not None and points < 1:
        raise UsageError(f"a measure needs at least 1 image of each probe set; got {points}")
    selected = {name: context.probes[name] for name in names if name in context.probes}
    if not selected:
        raise UsageError(
            f"no probe set among {list(names)}; this run has {list(context.probes)}. Pass others in `probe_sets`, or "
            "choose other measures"
        )
    if points is None:
        return selected
    return {
        name: dataclasses.replace(p, images=p.images[:points], labels=p.labels[:points], indices=p.indices[:points])
        for name, p in selected.items()
    }


def to_tensor(probe: ProbeSet, model: nn.Module) -> Tensor:
    """Return the images on the model's device and in its dtype; uint8 becomes pixels in [0, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(probe.images)).to(device_of(model), dtype_of(model))
    return images / 255 if probe.images.dtype == np.uint8 else images


def unwrap_normalisation(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, str]:
    """Return the net, its input for these images, and the name of that input space.

    A `Classifier` is measured after its normalisation, any other module on exactly the tensor it is given.
    """
    model = unwrap(model)
    if isinstance(model, Classifier):
        with torch.no_grad():
            return model.net, model.normalise(images), "normalised input space"
    return model, images, "input space as given"


def select_labelled(context: Context, names: Sequence[str], points: int | None = None) -> dict[str, ProbeSet]:
    """Return probe sets as `select_probes` does; raise UsageError if one has no labels (`random`)."""
    probes = select_probes(context, names, points)
    for name, probe in probes.items():
        if (probe.labels < 0).any():
            raise UsageError(f"the images of probe set {name!r} have no labels; choose others in `probe_sets`")
    return probes


def predict_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Compute the logits (N, classes) of all images, the last partial batch included.

    Runs in eval mode with strict precision and no gradients.
    """
    logits = []
    with preserved_state(model) as inner, torch.no_grad():
        for batch in torch.split(images, BATCH_SIZE):
            check_interrupt()
            logits.append(run_classifier(inner, batch))
    return torch.cat(logits)


def wilson_interval(correct: np.ndarray, seen: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the 95 % Wilson interval of a proportion (Wilson 1927), valid also at 0 and 1."""
    z = 1.959963984540054
    proportion, spread = correct / seen, z * z / seen
    centre = (proportion + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(proportion * (1 - proportion) / seen + spread / (4 * seen))
    return centre - half, centre + half
