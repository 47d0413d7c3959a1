"""Measure how large the logits are, without which results of cross-entropy attacks cannot be interpreted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grokkit.measures import register
from grokkit.measures.base import Context, predict_logits, select_probes, to_tensor
from grokkit.names import Reading


@register("logit_scale")
@dataclass(frozen=True)
class LogitScale:
    """Mean over images of the largest absolute logit.

    Args:
        probe_sets: sets to measure; those that the run does not have are skipped.

    Cost: one forward pass per image.
    """

    probe_sets: tuple[str, ...] = ("train", "test")

    def __call__(self, context: Context) -> Reading:
        """Measure the logit scale. Dims (probe_set,); unit: logits."""
        probes = select_probes(context, self.probe_sets)
        values = []
        for probe in probes.values():
            logits = predict_logits(context.model, to_tensor(probe, context.model))
            values.append(float(logits.abs().amax(1).double().mean()))
        counts = tuple(len(probe) for probe in probes.values())
        return Reading(
            "logit_scale", np.array(values), ("probe_set",), {"probe_set": tuple(probes)}, "logits", n=counts
        )
