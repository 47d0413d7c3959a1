"""What a measurement of local complexity returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _Counted:
    """Fields that both results have."""

    counts: Tensor
    layers: tuple[str, ...]
    units: dict[str, int]
    live_units: dict[str, int]
    directions: int
    method: str
    proxy_layers: tuple[str, ...]

    @property
    def total(self) -> Tensor:
        """int64 counts summed over the layers."""
        return self.counts.sum(dim=-1)

    @property
    def exact(self) -> bool:
        """Whether every counted activation is piecewise linear."""
        return not self.proxy_layers

    def _summary(self) -> str:
        proxies = "" if self.exact else f", proxy_layers={len(self.proxy_layers)}"
        return (
            f"points={self.counts.shape[-2]}, layers={len(self.layers)}, units={sum(self.units.values())}, "
            f"live_units={sum(self.live_units.values())}, directions={self.directions}, method={self.method!r}{proxies}"
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LocalComplexity(_Counted):
    """Local complexity of a set of points at one radius.

    Args:
        counts: int64 (point, layer) on the CPU: pairs of unit and kink that are crossed.
        layers: names of the activation calls, in call order.
        units: pairs of unit and kink in each layer: one a unit for ReLU, two for ReLU6, hardtanh and hardswish.
        live_units: how many of these pairs are live: z > kink at one of the measured points (their centres) at
            least. Dead units lower the count without any region having moved.
        directions: P.
        method: "vertex" or "tangent".
        proxy_layers: layers whose activation is smooth (GELU, SiLU), where a sign change is only a proxy.
        radius: in the units of the images.
    """

    radius: float

    @property
    def density(self) -> Tensor:
        """float64 (point,): total / radius; while the radius is small the count is proportional to it."""
        return self.total.double() / self.radius

    def to_frame(self) -> pd.DataFrame:
        """Tidy table: point, layer, count, density, units, live_units."""
        points, layers = self.counts.shape
        counts = self.counts.flatten().numpy()
        return pd.DataFrame(
            {
                "point": np.repeat(np.arange(points), layers),
                "layer": np.tile(np.array(self.layers, dtype=object), points),
                "count": counts,
                "density": counts / self.radius,
                "units": np.tile(np.array([self.units[layer] for layer in self.layers], dtype=np.int64), points),
                "live_units": np.tile(
                    np.array([self.live_units[layer] for layer in self.layers], dtype=np.int64), points
                ),
            }
        )

    def __repr__(self) -> str:
        total = self.total.double().mean().item()
        return (
            f"LocalComplexity({self._summary()}, radius={self.radius:g}, mean total={total:.4g}, "
            f"mean density={total / self.radius:.4g})"
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ComplexitySpectrum(_Counted):
    """Local complexity of a set of points at several radii.

    Args:
        counts: int64 (radius, point, layer) on the CPU.
        radii: in the units of the images, in the order asked for.
        layers, units, live_units, directions, method, proxy_layers: as in `LocalComplexity`.
    """

    radii: tuple[float, ...]

    @property
    def density(self) -> Tensor:
        """float64 (radius, point): total / radius."""
        return self.total.double() / torch.tensor(self.radii, dtype=torch.float64).unsqueeze(1)

    def at(self, index: int) -> LocalComplexity:
        """The measurement at `radii[index]`."""
        return LocalComplexity(
            counts=self.counts[index],
            layers=self.layers,
            units=self.units,
            live_units=self.live_units,
            directions=self.directions,
            method=self.method,
            proxy_layers=self.proxy_layers,
            radius=self.radii[index],
        )

    def to_frame(self) -> pd.DataFrame:
        """Tidy table: radius, point, layer, count, density, units, live_units."""
        tables = []
        for index, radius in enumerate(self.radii):
            table = self.at(index).to_frame()
            table.insert(0, "radius", radius)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def __repr__(self) -> str:
        means = self.total.double().mean(dim=1).tolist()
        shown = ", ".join(f"{radius:g}: {mean:.4g}" for radius, mean in zip(self.radii, means, strict=True))
        return f"ComplexitySpectrum({self._summary()}, mean total at radius {{{shown}}})"
