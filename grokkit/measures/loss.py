"""Measure the training loss on the probe sets, without regularisation or label smoothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.errors import UsageError
from grokkit.measures import register
from grokkit.measures.base import Context, predict_logits, select_labelled, to_tensor
from grokkit.names import Reading
from grokkit.registry import did_you_mean

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, classes), labels (B,)) to a scalar."""


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the mean cross-entropy in nats; logits (N, classes), labels (N,) int64."""
    return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def mse(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the mean squared difference between raw logits and one-hot labels, over images and classes."""
    classes = logits.shape[1]
    # F.one_hot reads the largest label from the device: it synchronises, and vmap does not support that
    one_hot = labels[:, None] == torch.arange(classes, device=labels.device)
    target = one_hot.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
    return F.mse_loss(logits, target)


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "mse": mse}


def get_loss(name: str) -> Callable[..., Tensor]:
    """Return the loss function registered as `name`; raise UsageError with the nearest match if there is none."""
    if name not in LOSSES:
        raise UsageError(f"unknown loss {name!r}.{did_you_mean(name, list(LOSSES))} Known: {', '.join(LOSSES)}")
    return LOSSES[name]


@register("loss")
@dataclass(frozen=True)
class Loss:
    """Mean loss per image.

    Args:
        probe_sets: sets to measure; those that the run does not have are skipped.

    Cost: one forward pass per image.
    """

    probe_sets: tuple[str, ...] = ("train", "test")

    def __call__(self, context: Context) -> Reading:
        """Measure the loss. Dims (probe_set,); unit: nats for cross-entropy, squared logits for mse."""
        function = get_loss(context.loss)
        probes = select_labelled(context, self.probe_sets)
        values = np.zeros(len(probes))
        for i, probe in enumerate(probes.values()):
            logits = predict_logits(context.model, to_tensor(probe, context.model))
            values[i] = float(function(logits, torch.from_numpy(probe.labels).to(logits.device)))
        unit = "nats" if context.loss == "cross_entropy" else "squared logits"
        counts = tuple(len(probe) for probe in probes.values())
        return Reading("loss", values, ("probe_set",), {"probe_set": tuple(probes)}, unit, n=counts)
