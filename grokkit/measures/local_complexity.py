"""Measure local complexity along the trajectory: crossings per point, per probe set, radius and layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from grokkit.errors import UsageError
from grokkit.measures import register
from grokkit.measures.base import Context, select_probes, to_tensor, unwrap_normalisation
from grokkit.names import Reading
from grokkit.spline import ComplexitySpectrum, LocalComplexity, complexity_spectrum, local_complexity, t_interval

SERIES = ("switches", "pool_signs", "zones")


@register("local_complexity")
@dataclass(frozen=True)
class LocalComplexityMeasure:
    """Mean number of units whose pre-activation changes sign over the neighbourhood of a point.

    The layer `total` is the sum over layers; `low` and `high` are the 95 % t interval of the mean over the points.
    The density is value / radius.

    The reading's settings hold, for each layer, its units and those that are live (active at some point). They also
    hold the means of the other series per probe set, layer and radius: `switches` and `pool_signs` of the max-pools
    (with their `windows`), and `zones` of the smooth activations; and the layers that are not counted, `uncounted`,
    with `counted_share`. For the series see `grokkit.spline.results.LocalComplexity`.

    Args:
        method: `tangent` (one primal and P tangent passes for all radii) or `vertex` (2P passes per radius).
        radii: neighbourhood radii, in the input space of the net.
        directions: orthonormal directions P of the frame, the same at every step.
        points: images of each probe set that are used, the first ones.
        probe_sets: sets to measure; those that the run does not have are skipped.

    Source: Humayun, Balestriero, Baraniuk, arXiv 2402.15555; see `grokkit.local_complexity`.
    """

    method: Literal["vertex", "tangent"] = "tangent"
    radii: tuple[float, ...] = (0.005, 0.05, 0.5)
    directions: int = 20
    points: int = 256
    probe_sets: tuple[str, ...] = ("train", "test", "random")

    def __post_init__(self) -> None:
        if self.method not in ("vertex", "tangent"):
            raise UsageError(f"`method` must be vertex or tangent; got {self.method!r}")
        if not self.radii or not all(radius > 0 for radius in self.radii):
            raise UsageError(f"`radii` must be one or more numbers above 0; got {self.radii}")

    def __call__(self, context: Context) -> Reading:
        """Measure local complexity. Dims (probe_set, radius, layer); unit: units per point in the named input space."""
        probes = select_probes(context, self.probe_sets, self.points)
        means: list[np.ndarray] = []
        intervals: list[list[np.ndarray]] = []
        units: dict[str, int] = {}
        live_units: dict[str, dict[str, int]] = {}
        series_means: dict[str, dict[str, dict[str, list[float]]]] = {series: {} for series in SERIES}
        for name, probe in probes.items():
            net, inputs, space = unwrap_normalisation(context.model, to_tensor(probe, context.model))
            counts, result, results_by_radius = self._count_crossings(net, inputs, context.seed)
            for series, means_of in series_means.items():
                means_of[name] = _mean_counts(results_by_radius, series)
            units, live_units[name] = result.units, result.live_units
            with_total = np.concatenate([counts, counts.sum(2, keepdims=True)], axis=2)
            mean, *interval = t_interval(with_total, axis=1)
            means.append(mean)
            intervals.append(interval)
        low, high = np.stack(intervals, axis=1)
        coords = {"probe_set": tuple(probes), "radius": self.radii, "layer": (*units, "total")}
        return Reading(
            "local_complexity",
            np.stack(means),
            ("probe_set", "radius", "layer"),
            coords,
            f"units per point ({space})",
            n=tuple(len(probe) for probe in probes.values()),
            low=low,
            high=high,
            settings={
                "units": units,
                "live_units": live_units,
                "directions": result.directions,
                "tangents": result.tangents,
                "uncounted": list(result.uncounted),
                "counted_share": result.counted_share,
                "windows": result.windows,
                **series_means,
            },
        )

    def _count_crossings(
        self, net: nn.Module, inputs: Tensor, seed: int
    ) -> tuple[np.ndarray, LocalComplexity | ComplexitySpectrum, list[LocalComplexity]]:
        """Return counts (radius, point, layer), a result with layer and unit names, and the results per radius."""
        # There are no more orthonormal directions than input dimensions; a small input uses all of them.
        directions = min(self.directions, inputs[0].numel())
        if self.method == "tangent":
            spectrum = complexity_spectrum(net, inputs, self.radii, directions, seed=seed, quantiles=())
            return spectrum.counts.numpy(), spectrum, [spectrum.at(index) for index in range(len(self.radii))]
        results = [
            local_complexity(net, inputs, radius, directions, method=self.method, seed=seed) for radius in self.radii
        ]
        return np.stack([result.counts.numpy() for result in results]), results[0], results


def _mean_counts(results: list[LocalComplexity], series: str) -> dict[str, list[float]]:
    """Return layer -> mean count of a point at each radius."""
    tables = [result.to_frame(series).groupby("layer", sort=False)["count"].mean() for result in results]
    return {layer: [float(table[layer]) for table in tables] for layer in tables[0].index}
