"""Measure accuracy on the probe sets: correct / total, over all samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from grokkit.measures import register
from grokkit.measures.base import Context, predict_logits, select_labelled, to_tensor, wilson_interval
from grokkit.names import Reading


@register("accuracy")
@dataclass(frozen=True)
class Accuracy:
    """Share of images whose largest logit is at their label, with its 95 % Wilson interval.

    Args:
        probe_sets: sets to measure; those that the run does not have are skipped.

    Cost: one forward pass per image.
    """

    probe_sets: tuple[str, ...] = ("train", "test")

    def __call__(self, context: Context) -> Reading:
        """Measure the accuracy. Dims (probe_set,); unit: share of images."""
        probes = select_labelled(context, self.probe_sets)
        correct = np.zeros(len(probes))
        for i, probe in enumerate(probes.values()):
            predictions = predict_logits(context.model, to_tensor(probe, context.model)).argmax(1).cpu()
            correct[i] = int((predictions == torch.from_numpy(probe.labels)).sum())
        totals = np.array([len(probe) for probe in probes.values()])
        low, high = wilson_interval(correct, totals)
        return Reading(
            "accuracy",
            correct / totals,
            ("probe_set",),
            {"probe_set": tuple(probes)},
            "share of images",
            n=tuple(int(count) for count in totals),
            low=low,
            high=high,
        )
