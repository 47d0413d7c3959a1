"""Measure the L2 norm of the weights, per parameter tensor and in total."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grokkit.device.preserved_state import unwrap
from grokkit.measures import register
from grokkit.measures.base import Context
from grokkit.names import Reading


@register("weight_norm")
@dataclass(frozen=True)
class WeightNorm:
    """Euclidean norm of every parameter tensor; the layer `total` is the norm of all of them together.

    Cost: one pass over the weights.
    """

    def __call__(self, context: Context) -> Reading:
        """Measure the norms. Dims (layer,); unit: L2 norm."""
        norms = {name: float(p.detach().double().norm()) for name, p in unwrap(context.model).named_parameters()}
        values = np.array([*norms.values(), float(np.linalg.norm(list(norms.values())))])
        return Reading("weight_norm", values, ("layer",), {"layer": (*norms, "total")}, "L2 norm")
