"""Results of local complexity measurements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from grokkit.errors import UsageError
from grokkit.literals import CountingMethod
from grokkit.spline.max_projection import expected_max_projection
from grokkit.stats.intervals import Interval, t_interval


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _ComplexityFields:
    """Fields shared by both results."""

    counts: Tensor
    layers: tuple[str, ...]
    units: dict[str, int]
    live_units: dict[str, int]
    directions: int
    method: CountingMethod
    proxy_layers: tuple[str, ...]
    frames: str
    tangents: str | None
    zones: Tensor
    pools: tuple[str, ...]
    windows: dict[str, int]
    switches: Tensor
    pool_signs: Tensor
    uncounted: tuple[str, ...]
    counted_share: float

    @property
    def total(self) -> Tensor:
        """int64 (..., point): counts summed over the layers."""
        return self.counts.sum(dim=-1)

    @property
    def exact(self) -> bool:
        """Whether every counted crossing is of a real kink, at which the slope jumps.

        False only with smooth activations. A network with hardswish, attention or norms of single images can be exact
        and still be nonlinear between its kinks.
        """
        return not self.proxy_layers

    @property
    def dead_share(self) -> dict[str, float]:
        """Layer -> share of its pairs of unit and kink that are not live; "total" is over all layers (NaN for none)."""
        share = {layer: 1 - self.live_units[layer] / self.units[layer] for layer in self.layers}
        units = sum(self.units.values())
        return share | {"total": 1 - sum(self.live_units.values()) / units if units else float("nan")}

    def _format_summary(self) -> str:
        proxies = "" if self.exact else f", proxy_layers={len(self.proxy_layers)}"
        rounded = "" if self.tangents in (None, "exact") else f", tangents={self.tangents!r}"
        pools = f", pools={len(self.pools)}" if self.pools else ""
        if self.uncounted:
            pools += f", uncounted={len(self.uncounted)}, counted_share={self.counted_share:.3g}"
        return (
            f"points={self.counts.shape[-2]}, layers={len(self.layers)}, units={sum(self.units.values())}, "
            f"live_units={sum(self.live_units.values())}, dead_share={self.dead_share['total']:.3g}, "
            f"directions={self.directions}, method={self.method!r}{rounded}{proxies}{pools}"
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class LocalComplexity(_ComplexityFields):
    """Local complexity of a set of points at one radius: the fields below, and what the properties derive from them.

    Args:
        counts: int64 (point, layer) on the CPU: pairs of unit and kink that are crossed.
        layers: names of the activation calls, in call order.
        units: layer -> its pairs of unit and kink: one a unit for ReLU, abs and the maximum of two tensors, two for
            ReLU6, hardtanh and hardswish.
        live_units: layer -> those of its pairs that are live: z > kink at one or more of the measured points. Dead
            units lower the count although no region boundary moved.
        directions: number P of directions.
        method: "vertex", "tangent", "ray" or "bound".
        proxy_layers: layers whose activation is smooth (GELU, SiLU), so that a sign change is only a proxy.
        frames: "shared", "per_point", or "own" for a `frame` passed by the caller.
        tangents: precision of the tangents, "exact" or "bfloat16"; None for the other methods.
        zones: int64 (point, proxy layer): units whose pre-activation enters the zone [-a, a] in which the activation
            is convex; a is 1.414 for GELU and 2.399 for SiLU, at which the second derivative changes sign.
        pools: names of the max-pool calls, in call order; they are not included in `layers`, `counts` or `total`.
            Empty for the methods "ray" and "bound", which count only units.
        windows: max-pool -> its windows in one image.
        switches: int64 (point, pool): windows in which no single entry is the maximum all over the neighbourhood;
            entries at or below 0 are treated as 0. Windows that are 0 everywhere are not counted; a tie is a win.
        pool_signs: int64 (point, pool): windows whose largest pre-activation changes between > 0 and <= 0. With a
            ReLU before or after the pool, these and the switches are all the breakpoints of the pair.
        uncounted: module paths of nonlinear calls that are not counted: smooth functions, attention, norms of single
            images, products of two tensors that depend on the image, values selected by a comparison, code that is not
            seen. If there are any, the count is partial: it says nothing about how these calls bend the input space.
        counted_share: values that the counted calls return, as a share of those that all nonlinear calls return, for
            one image; 1 if nothing is uncounted.
        radius: in the units of the images.
        tangent_error: share of the crossings that rounded tangents get wrong, on the first points; None if nothing
            was rounded, NaN if nothing was crossed.
    """

    radius: float
    tangent_error: float | None

    @property
    def density(self) -> Tensor:
        """float64 (point,): total / radius; for small radii the count is proportional to the radius."""
        return self.total.double() / self.radius

    def interval(self, level: float = 0.95) -> Interval:
        """Compute the mean total over the points with Student's t interval (mean, low, high); NaN bounds for one point.

        With frames="per_point" the interval covers other points and other frames. With one shared frame it covers only
        other points measured along the same directions; see `complexity_interval` for both.

        Raises:
            UsageError: `level` is not in (0, 1).
        """
        mean, low, high = t_interval(self.total.double().numpy(), level)
        return Interval(float(mean), float(low), float(high))

    def to_frame(self, series: str = "units") -> pd.DataFrame:
        """Return a tidy table: point, layer, count, density, units, and for the activations live_units.

        Args:
            series: "units", the counts of the activations; or "zones", "switches" or "pool_signs", for which `layer`
                is the proxy layer or the pool and `units` its number of units or windows.

        Raises:
            UsageError: unknown series.
        """
        layers, counts, units = self._select_series(series)
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

    def _select_series(self, name: str) -> tuple[tuple[str, ...], Tensor, dict[str, int]]:
        series_by_name = {
            "units": (self.layers, self.counts, self.units),
            "zones": (self.proxy_layers, self.zones, self.units),
            "switches": (self.pools, self.switches, self.windows),
            "pool_signs": (self.pools, self.pool_signs, self.windows),
        }
        if name not in series_by_name:
            raise UsageError(f"`series` must be one of {', '.join(series_by_name)}; got {name!r}")
        return series_by_name[name]

    def __repr__(self) -> str:
        total = self.total.double().mean().item()
        return (
            f"LocalComplexity({self._format_summary()}, radius={self.radius:g}, mean total={total:.4g}, "
            f"mean density={total / self.radius:.4g})"
        )


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ComplexitySpectrum(_ComplexityFields):
    """Local complexity of a set of points at several radii.

    Args:
        counts: int64 (radius, point, layer) on the CPU.
        radii: in the units of the images, in the order passed.
        layers, units, live_units, directions, method, proxy_layers, frames, tangents, pools, windows, uncounted,
            counted_share: as in `LocalComplexity`.
        tangent_error: as in `LocalComplexity`, one per radius, or None.
        quantiles: the levels of `critical_radius`.
        critical_radius: float64 (quantile, point). The critical radius of a unit is |z - kink| / max_p |J v_p|, the
            radius above which it is counted; infinite if no direction changes it (a dead path). Of all units of all
            layers, a share of `quantiles[i]` has one of at most `critical_radius[i]`; exact, an order statistic. The
            same distribution pooled over the points is the spectrum itself: mean total / units at each radius.
        jacobian_norm: float64 (point,), Frobenius norm of the Jacobian J of the model's output by its input, from
            |J|^2 ~ (D / P) sum_p |J v_p|^2: unbiased for uniform frames, exact for P = D; NaN if the output has no
            derivative (used as a measure of sensitivity by Novak et al. 2018, arXiv:1802.08760).
        input_size: size D of one image.
        zones, switches, pool_signs: int64 (radius, point, ...), else as in `LocalComplexity`.
    """

    radii: tuple[float, ...]
    tangent_error: tuple[float, ...] | None
    quantiles: tuple[float, ...]
    critical_radius: Tensor
    jacobian_norm: Tensor
    input_size: int

    @property
    def density(self) -> Tensor:
        """float64 (radius, point): total / radius."""
        return self.total.double() / torch.tensor(self.radii, dtype=torch.float64).unsqueeze(1)

    @property
    def boundary_density(self) -> Tensor:
        """float64 (radius, point): (D - 1)-volume of region boundaries per unit of volume around the point.

        Formula: total / (2 r kappa), kappa = E max_p |<n, v_p>| (`expected_max_projection`). A unit is counted if
        |z| < r |grad z| max_p |<n, v_p>| with n = grad z / |grad z|. If the density p of z at its kink is constant over
        that window, this has probability 2 r kappa p E |grad z|; the sum of p E |grad z| over the units is the boundary
        density of Hanin and Rolnick (2019, arXiv:1901.09021), whose mean over the data Patel and Montufar (2025,
        arXiv:2412.18283) call local complexity. They randomise the biases; a trained network has only one set of
        biases, so average over the points instead, at a radius for which the mean does not depend on the radius.
        Smoothing by Gaussian biases would need a width in the scale of each unit, and would change if a unit is
        rescaled although the function does not; this estimate does not change.

        NaN if the caller passed a `frame`, because kappa holds for uniform frames. Cost: none.
        """
        if self.frames == "own":
            return torch.full_like(self.density, torch.nan)
        return self.density / (2 * expected_max_projection(self.directions, self.input_size))

    @property
    def line_density(self) -> Tensor:
        """float64 (radius, point): expected boundary crossings per unit of length of a random line near the point.

        A line in a uniform direction v crosses a boundary with normal n at the rate |<n, v>|, so this is
        `boundary_density` times E |<n, v>| = Gamma(D / 2) / (sqrt(pi) Gamma((D + 1) / 2)) (Cauchy and Crofton).
        Counting the crossings along each v_p separately estimates the same with more variance, at P times the cost.
        """
        return self.boundary_density * expected_max_projection(1, self.input_size)

    def at(self, index: int) -> LocalComplexity:
        """Return the measurement at `radii[index]`."""
        return LocalComplexity(
            counts=self.counts[index],
            layers=self.layers,
            units=self.units,
            live_units=self.live_units,
            directions=self.directions,
            method=self.method,
            proxy_layers=self.proxy_layers,
            frames=self.frames,
            tangents=self.tangents,
            zones=self.zones[index],
            pools=self.pools,
            windows=self.windows,
            switches=self.switches[index],
            pool_signs=self.pool_signs[index],
            uncounted=self.uncounted,
            counted_share=self.counted_share,
            radius=self.radii[index],
            tangent_error=None if self.tangent_error is None else self.tangent_error[index],
        )

    def to_frame(self, series: str = "units") -> pd.DataFrame:
        """Return a tidy table: the radius, and the columns of `LocalComplexity.to_frame`."""
        tables = []
        for index, radius in enumerate(self.radii):
            table = self.at(index).to_frame(series)
            table.insert(0, "radius", radius)
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def points_frame(self) -> pd.DataFrame:
        """Return a tidy table of the quantities per point: point, quantity, at, value.

        `quantity` is boundary_density or line_density (`at` the radius), critical_radius (`at` the quantile's level) or
        jacobian_norm (`at` NaN).
        """
        single = (np.nan,)
        rows = [
            ("boundary_density", self.radii, self.boundary_density),
            ("line_density", self.radii, self.line_density),
            ("critical_radius", self.quantiles, self.critical_radius),
            ("jacobian_norm", single, self.jacobian_norm.unsqueeze(0)),
        ]
        points = self.counts.shape[1]
        tables = [
            pd.DataFrame(
                {
                    "point": np.tile(np.arange(points), len(places)),
                    "quantity": quantity,
                    "at": np.repeat(np.array(places, dtype=float), points),
                    "value": values.flatten().numpy(),
                }
            )
            for quantity, places, values in rows
        ]
        return pd.concat(tables, ignore_index=True)

    def __repr__(self) -> str:
        means = self.total.double().mean(dim=1).tolist()
        listed = ", ".join(f"{radius:g}: {mean:.4g}" for radius, mean in zip(self.radii, means, strict=True))
        norm = self.jacobian_norm.mean().item()
        return (
            f"ComplexitySpectrum({self._format_summary()}, mean total at radius {{{listed}}}, "
            f"{self._format_radii()}mean jacobian_norm={norm:.4g})"
        )

    def _format_radii(self) -> str:
        if not self.quantiles:
            return ""
        medians = self.critical_radius.median(dim=1).values.tolist()
        listed = ", ".join(f"{level:g}: {radius:.4g}" for level, radius in zip(self.quantiles, medians, strict=True))
        return f"median critical radius at quantile {{{listed}}}, "
