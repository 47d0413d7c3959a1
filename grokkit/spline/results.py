"""What a measurement of local complexity returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from grokkit.errors import UsageError


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
    zones: Tensor
    pools: tuple[str, ...]
    windows: dict[str, int]
    switches: Tensor
    pool_signs: Tensor

    @property
    def total(self) -> Tensor:
        """int64 counts summed over the layers."""
        return self.counts.sum(dim=-1)

    @property
    def exact(self) -> bool:
        """Whether every counted crossing is one of a real kink, where the slope jumps.

        That is so for every activation but the smooth ones. Between its kinks a net with hardswish is still curved,
        as is one with attention or with norms of single images.
        """
        return not self.proxy_layers

    def _summary(self) -> str:
        proxies = "" if self.exact else f", proxy_layers={len(self.proxy_layers)}"
        pools = f", pools={len(self.pools)}" if self.pools else ""
        return (
            f"points={self.counts.shape[-2]}, layers={len(self.layers)}, units={sum(self.units.values())}, "
            f"live_units={sum(self.live_units.values())}, directions={self.directions}, method={self.method!r}"
            f"{proxies}{pools}"
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LocalComplexity(_Counted):
    """Local complexity of a set of points at one radius.

    Args:
        counts: int64 (point, layer) on the CPU: pairs of unit and kink that are crossed.
        layers: names of the activation calls, in call order.
        units: pairs of unit and kink in each layer: one a unit for ReLU, abs and the maximum of two tensors, two for
            ReLU6, hardtanh and hardswish.
        live_units: how many of these pairs are live: z > kink at one of the measured points (their centres) at
            least. Dead units lower the count without any region having moved.
        directions: P.
        method: "vertex" or "tangent".
        proxy_layers: layers whose activation is smooth (GELU, SiLU), where a sign change is only a proxy.
        zones: int64 (point, proxy layer): units whose pre-activation comes into the zone [-a, a] where the activation
            is curved upwards; a is 1.414 for GELU and 2.399 for SiLU, where the second derivative changes sign.
        pools: names of the max-pool calls, in call order; they are no part of `layers`, `counts` or `total`.
        windows: windows of each max-pool in one image.
        switches: int64 (point, pool): windows that no single entry wins all over the neighbourhood, where entries at
            or below 0 are taken as 0. Windows that are 0 throughout are silent, ties are wins.
        pool_signs: int64 (point, pool): windows whose largest pre-activation changes between > 0 and <= 0. With a
            ReLU before or behind the pool, these and the switches are all that the pair of them bends at.
        radius: in the units of the images.
    """

    radius: float

    @property
    def density(self) -> Tensor:
        """float64 (point,): total / radius; while the radius is small the count is proportional to it."""
        return self.total.double() / self.radius

    def to_frame(self, series: str = "units") -> pd.DataFrame:
        """Tidy table: point, layer, count, density, units, and for the activations live_units.

        Args:
            series: "units", the counts of the activations; or "zones", "switches" or "pool_signs", where `layer`
                is the proxy layer or the pool and `units` its units or windows.

        Raises:
            UsageError: another series.
        """
        layers, counts, units = self._series(series)
        points = len(counts)
        table = pd.DataFrame(
            {
                "point": np.repeat(np.arange(points), len(layers)),
                "layer": np.tile(np.array(layers, dtype=object), points),
                "count": counts.flatten().numpy(),
                "density": counts.flatten().numpy() / self.radius,
                "units": np.tile(np.array([units[layer] for layer in layers], dtype=np.int64), points),
            }
        )
        if series == "units":
            table["live_units"] = np.tile(
                np.array([self.live_units[layer] for layer in layers], dtype=np.int64), points
            )
        return table

    def _series(self, name: str) -> tuple[tuple[str, ...], Tensor, dict[str, int]]:
        found = {
            "units": (self.layers, self.counts, self.units),
            "zones": (self.proxy_layers, self.zones, self.units),
            "switches": (self.pools, self.switches, self.windows),
            "pool_signs": (self.pools, self.pool_signs, self.windows),
        }
        if name not in found:
            raise UsageError(f"`series` must be one of {', '.join(found)}; got {name!r}")
        return found[name]

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
        zones, switches, pool_signs: int64 (radius, point, ...), else as in `LocalComplexity`.
        layers, units, live_units, directions, method, proxy_layers, pools, windows: as in `LocalComplexity`.
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
            zones=self.zones[index],
            pools=self.pools,
            windows=self.windows,
            switches=self.switches[index],
            pool_signs=self.pool_signs[index],
            radius=self.radii[index],
        )

    def to_frame(self, series: str = "units") -> pd.DataFrame:
        """Tidy table: the radius, and the columns of `LocalComplexity.to_frame`."""
        tables = []
        for index, radius in enumerate(self.radii):
            table = self.at(index).to_frame(series)
            table.insert(0, "radius", radius)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def __repr__(self) -> str:
        means = self.total.double().mean(dim=1).tolist()
        shown = ", ".join(f"{radius:g}: {mean:.4g}" for radius, mean in zip(self.radii, means, strict=True))
        return f"ComplexitySpectrum({self._summary()}, mean total at radius {{{shown}}})"
