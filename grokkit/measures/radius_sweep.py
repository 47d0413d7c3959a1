"""Measure local complexity over radii and directions, with the slopes and checks needed to choose a setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grokkit.errors import UsageError
from grokkit.measures import register
from grokkit.measures.base import Context, select_probes, to_tensor, unwrap_normalisation
from grokkit.names import Reading
from grokkit.spline import complexity_spectrum, local_complexity
from grokkit.spline.frames import draw_orthonormal_frame
from grokkit.spline.max_projection import expected_max_projection

N_RADII = 13
Z = 1.96


@register("calibration")
@dataclass(frozen=True)
class RadiusSweep:
    """Mean tangent count per point, layers summed, at many radii and numbers of directions.

    Stored and drawn under the older name `calibration`. The frames are nested: P directions are the first P of the
    largest frame, so the counts at two P are paired.

    For one P (the upper median, 20 by default) there are extra rows, `low` and `high` at value -+ 1.96 standard errors
    over the points, paired (delta method); a row is left out if a count is 0:

    - `calibration_slope`: d log LC / d log r between this radius and the next smaller one, 1 if LC is linear in r;
    - `calibration_vertex`: vertex count / tangent count on the same points and frame.

    Every P has a row `calibration_kappa`: the growth with P expected of gradients without a preferred direction.

    Args:
        radii: in the input space of the net; empty: 13 from 1e-4 to 1 times the typical distance of a probe image
            from the mean one (root mean square), log-spaced, two digits.
        directions: numbers P, capped at the input's size.
        points: images of the probe set that are used, the first ones.
        probe_set: whose images are used.

    Cost: for each P, 1 + P forward passes per point, and 2 P + 1 for each radius at the upper median of P.
    """

    radii: tuple[float, ...] = ()
    directions: tuple[int, ...] = (5, 10, 20, 40)
    points: int = 128
    probe_set: str = "train"

    def __post_init__(self) -> None:
        if self.radii and (len(self.radii) < 2 or not all(np.diff([0.0, *self.radii]) > 0)):
            raise UsageError(f"`radii` must be two or more numbers above 0, ascending; got {list(self.radii)}")
        if not self.directions or not all(np.diff([0, *self.directions]) > 0):
            raise UsageError(
                f"`directions` must be one or more numbers of at least 1, ascending; got {self.directions}"
            )
        if self.points < 2:
            raise UsageError(f"`points` must be at least 2 images for an interval; got {self.points}")

    def __call__(self, context: Context) -> Reading:
        """Run the sweep. Dims (probe_set, directions, radius); unit: units per point in the named input space."""
        (probe,) = select_probes(context, (self.probe_set,), self.points).values()
        net, inputs, space = unwrap_normalisation(context.model, to_tensor(probe, context.model))
        size = inputs[0].numel()
        numbers = tuple(sorted({min(number, size) for number in self.directions}))
        radii = self.radii or default_radii(inputs)
        frame = draw_orthonormal_frame(numbers[-1], size, context.seed)
        counts = np.stack([_count_tangent(net, inputs, radii, frame[:number]) for number in numbers])
        middle = len(numbers) // 2
        vertex = _count_vertex(net, inputs, radii, frame[: numbers[middle]])
        rows = [
            {"measure": "calibration_kappa", "directions": n, "value": expected_max_projection(n, size)}
            for n in numbers
        ]
        rows += [{**row, "directions": numbers[middle]} for row in fit_slopes(counts[middle], radii)]
        rows += [{**row, "directions": numbers[middle]} for row in compare_methods(vertex, counts[middle], radii)]
        common = {"probe_set": self.probe_set, "n": len(inputs), "unit": "1"}
        means, half = counts.mean(-1), Z * counts.std(-1, ddof=1) / np.sqrt(len(inputs))
        return Reading(
            "calibration",
            means[None],
            ("probe_set", "directions", "radius"),
            {"probe_set": (self.probe_set,), "directions": numbers, "radius": radii},
            f"units per point ({space})",
            n=(len(inputs),),
            low=(means - half)[None],
            high=(means + half)[None],
            settings={"companions": [{**common, **row} for row in rows]},
        )


def default_radii(inputs: Tensor) -> tuple[float, ...]:
    """Return 13 radii, log-spaced and rounded to two digits, on the scale of the inputs (N, ...).

    They range from 1e-4 to 1 times the root mean square distance of the inputs from their mean.

    Raises:
        UsageError: all inputs are equal, so that there is no such distance.
    """
    flat = inputs.flatten(1).double()
    spread = float((flat - flat.mean(0)).square().sum(1).mean().sqrt())
    if spread == 0:
        raise UsageError("the probe images are all equal, so there is no scale for the radii; pass them in `radii`")
    return tuple(float(f"{radius:.1e}") for radius in np.geomspace(1e-4, 1, N_RADII) * spread)


def fit_slopes(counts: np.ndarray, radii: tuple[float, ...]) -> list[dict[str, Any]]:
    """Return a row per pair of neighbouring radii, labelled by the larger one, from counts (radius, point)."""
    rows = []
    for index in range(1, len(radii)):
        step = np.log(radii[index] / radii[index - 1])
        ratio = log_ratio(counts[index], counts[index - 1])
        if ratio is not None:
            low, value, high = ((ratio[0] + side * ratio[1]) / step for side in (-1, 0, 1))
            bounds = {"value": value, "low": low, "high": high}
            rows.append({"measure": "calibration_slope", "radius": radii[index], **bounds})
    return rows


def compare_methods(vertex: np.ndarray, tangent: np.ndarray, radii: tuple[float, ...]) -> list[dict[str, Any]]:
    """Return a row per radius, vertex count / tangent count, from counts (radius, point)."""
    rows = []
    for radius, above, below in zip(radii, vertex, tangent, strict=True):
        ratio = log_ratio(above, below)
        if ratio is not None:
            low, value, high = (float(np.exp(ratio[0] + side * ratio[1])) for side in (-1, 0, 1))
            bounds = {"value": value, "low": low, "high": high}
            rows.append({"measure": "calibration_vertex", "radius": radius, **bounds})
    return rows


def log_ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float] | None:
    """Return log(mean above / mean below) and its half-width at 95 %, paired over the points; None if a mean is 0."""
    mean_above, mean_below = above.mean(), below.mean()
    if mean_above == 0 or mean_below == 0:
        return None
    influence = above / mean_above - below / mean_below
    return float(np.log(mean_above / mean_below)), float(Z * influence.std(ddof=1) / np.sqrt(len(influence)))


def _count_tangent(net: nn.Module, inputs: Tensor, radii: tuple[float, ...], frame: Tensor) -> np.ndarray:
    """Return tangent counts (radius, point)."""
    return complexity_spectrum(net, inputs, radii, frame=frame).total.numpy()


def _count_vertex(net: nn.Module, inputs: Tensor, radii: tuple[float, ...], frame: Tensor) -> np.ndarray:
    """Return vertex counts (radius, point)."""
    counts = [local_complexity(net, inputs, radius, method="vertex", frame=frame).total for radius in radii]
    return torch.stack(counts).numpy()
