"""The small, regular measurement that a policy listens to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grokkit.errors import UsageError
from grokkit.measures.base import Context, chosen, net_and_inputs, tensor_of
from grokkit.registry import nearest
from grokkit.spline import complexity_spectrum


@dataclass(frozen=True)
class Signal:
    """Log density of crossings near fixed training points, on its own cadence.

    `log_density` is log of the mean over points of the median over radii of LC / radius, per live unit;
    `log_density_se` is its standard error over the points (delta method). Points and frames are the same at every
    step, so differences between steps are paired.

    Args:
        every: steps between two readings; 0 is always read.
        points: images of the probe set, the first ones.
        directions: orthonormal directions of the frame.
        radii: neighbourhood radii, in the input space of the net.
        probe_set: whose images.

    Cost: points * (1 + directions) image forwards.
    """

    every: int = 200
    points: int = 128
    directions: int = 10
    radii: tuple[float, ...] = (0.02, 0.05, 0.1)
    probe_set: str = "train"

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or self.every < 1:
            raise UsageError(f"`every` must be at least 1 step; got {self.every!r}")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Signal | None:
        """The signal with these fields; None for none. Raises UsageError for an unknown one, naming the nearest."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise UsageError(f"a signal has no field {name!r}.{nearest(name, known)} It has: {', '.join(known)}")
        return cls(**fields) if fields else None

    def due(self, step: int) -> bool:
        """Whether a reading is taken after `step` updates."""
        return step % self.every == 0

    def read(self, context: Context) -> dict[str, float]:
        """`log_density` and `log_density_se`; a net without any crossing reads as -inf, which policies ignore."""
        (probe,) = chosen(context, (self.probe_set,), self.points).values()
        net, inputs, _ = net_and_inputs(context.model, tensor_of(probe, context.model))
        directions = min(self.directions, inputs[0].numel())
        spectrum = complexity_spectrum(net, inputs, self.radii, directions, seed=context.seed, quantiles=())
        radii = torch.tensor(self.radii, dtype=torch.float64)
        density = np.median((spectrum.counts.sum(2).double() / radii[:, None]).numpy(), axis=0)
        live = max(sum(spectrum.live_units.values()), 1)
        mean = float(density.mean())
        if mean == 0:
            return {"log_density": -np.inf, "log_density_se": np.inf}
        error = float(density.std(ddof=1) / np.sqrt(len(density)) / mean) if len(density) > 1 else np.inf
        return {"log_density": float(np.log(mean / live)), "log_density_se": error}
