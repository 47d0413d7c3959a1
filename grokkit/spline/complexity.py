"""Measure local complexity: the number of units that change sign around a point (Humayun et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from grokkit.device.preserved_state import device_of, dtype_of
from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.literals import CountingMethod, FrameChoice, TangentPrecision
from grokkit.spline.bounds import bound_crossings
from grokkit.spline.frames import Frames, make_frames
from grokkit.spline.measurement_mode import measurement_mode, validate_images
from grokkit.spline.passes import DATA_DEPENDENT_LAYERS, BlockCount, LayerCount, PoolCount
from grokkit.spline.ray import count_ray_crossings
from grokkit.spline.results import ComplexitySpectrum, LocalComplexity
from grokkit.spline.spectrum import PointStatistics, choose_tangent_dtype, estimate_tangent_error, validate_quantiles
from grokkit.spline.tangent import count_tangent_crossings
from grokkit.spline.uncounted import Uncounted, find_uncounted
from grokkit.spline.vertex import count_vertex_crossings
from grokkit.units import known_constants

_COUNTS = {"vertex": count_vertex_crossings, "ray": count_ray_crossings, "bound": bound_crossings}
METHODS: tuple[CountingMethod, ...] = get_args(CountingMethod)


def local_complexity(
    model: nn.Module,
    images: Tensor,
    radius: float = 0.005,
    directions: int = 20,
    method: CountingMethod = "vertex",
    frames: FrameChoice = "shared",
    seed: int = 0,
    frame: Tensor | None = None,
    tangents: TangentPrecision = "exact",
) -> LocalComplexity:
    """Count, for each point and layer, the units whose pre-activation changes sign over a neighbourhood.

    The neighbourhood of x is the convex hull of its 2 P vertices x ± radius * v_p. "vertex" compares the signs at the
    vertices: exact for the first layer, a lower bound for deeper ones. "tangent" counts |z| < radius * max_p |J v_p|:
    equal to first order, and robust to rounding. "ray" finds, exactly and in float64, the units that change sign
    anywhere on the segments x ± radius * v_p. "bound" counts every unit that could change sign in the hull: certified,
    but loose at large depth and radius. In each layer vertex <= ray <= bound, equal in the first. No method counts a
    unit that is exactly zero everywhere.

    Args:
        model: any module that processes each image independently; measured in eval mode and strict precision, and
            restored afterwards.
        images: floating tensor (N, ...) in the input space of `model`; moved to its device and dtype.
        radius: > 0, in the units of `images`.
        directions: number P of orthonormal directions, 1..D, where D is the size of one image.
        method: "vertex", "tangent", "ray" or "bound".
        frames: how directions are drawn: "shared", one frame for all points; "per_point", one for each image.
        seed: seed of the frames; gives the same directions at every step and on every machine.
        frame: your own orthonormal directions (P, D) instead; `directions` and `seed` are then ignored.
        tangents: only for the method "tangent", see `complexity_spectrum`.

    Returns:
        Counts per point and layer, and more: `grokkit.spline.results.LocalComplexity` lists all fields.

    Raises:
        UsageError: an argument is out of range, or the images are not finite or not floating.
        ModelContractError: the model is in half precision, has nonlinear calls of which none is counted, mixes the
            images of a batch, decides by their values, does not return one tensor, has no derivative ("tangent"), or
            is not piecewise affine ("ray", "bound").
        NumericsError: the pre-activations are not finite.

    Cost: 2 P + 1 forward passes a point ("vertex"), 1 + P ("tangent"); in float64, 2 P and one for every breakpoint on
    the rays ("ray"), or 2 + P ("bound"); and five images once. Memory does not grow with N nor, except for "bound",
    with P.

    Source: Humayun, Balestriero and Baraniuk, "Deep Networks Always Grok and Here is Why", arXiv:2402.15555.
    """
    if method not in METHODS:
        raise UsageError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}")
    (radius,) = _validate_radii([radius], "radius")
    if method == "tangent":
        spectrum = complexity_spectrum(model, images, [radius], directions, frames, seed, frame, tangents, quantiles=())
        return spectrum.at(0)
    if tangents != "exact":
        raise UsageError(f"`tangents` applies only to method='tangent'; got {tangents!r} with method={method!r}")
    with _prepare(model, images, directions, frames, seed, frame) as (inner, points, point_frames, uncounted):
        fields = _gather(_COUNTS[method](inner, points, point_frames, radius), len(points), 1)
        fields |= {name: fields[name][0] for name in ("counts", "zones", "switches", "pool_signs")}
        fields |= _describe_setting(uncounted, point_frames, frames, frame)
    return LocalComplexity(**fields, radius=radius, method=method, tangents=None, tangent_error=None)


def complexity_spectrum(
    model: nn.Module,
    images: Tensor,
    radii: Iterable[float],
    directions: int = 20,
    frames: FrameChoice = "shared",
    seed: int = 0,
    frame: Tensor | None = None,
    tangents: TangentPrecision = "exact",
    quantiles: Iterable[float] = (0.001, 0.01, 0.1, 0.5),
) -> ComplexitySpectrum:
    """Measure local complexity at every radius in one pass, by the "tangent" method of `local_complexity`.

    The same pass also gives quantiles of the units' critical radii, the density of region boundaries and the norm of
    the model's Jacobian.

    Args:
        radii: one or more radii, each > 0, in the units of `images`.
        model, images, directions, frames, seed, frame: as for `local_complexity`.
        tangents: precision of the derivatives; the values themselves are always computed in full float32 or float64.
            "exact": the model's precision. "bfloat16", for a float32 model: tangents and the weights they are
            multiplied with are rounded; this uses the tensor cores of a GPU, and is many times slower on a CPU. A few
            crossings differ; `tangent_error` is their share on the first 4 points.
        quantiles: levels in (0, 1] at which the critical radii of a point's units are given; () for none.

    Returns:
        Counts per radius, point and layer; at each radius those of `local_complexity(method="tangent")`.

    Raises:
        UsageError, ModelContractError, NumericsError: as `local_complexity`; ModelContractError also for bfloat16
            tangents of a float64 model.

    Cost: 1 + P forward passes a point, one comparison a unit and radius, and one sort of a point's units for the
    quantiles; with rounded tangents also 2 (1 + P) passes for each of 4 points.
    """
    checked, levels = _validate_radii(radii, "radii"), validate_quantiles(quantiles)
    with _prepare(model, images, directions, frames, seed, frame) as (inner, points, point_frames, uncounted):
        dtype = choose_tangent_dtype(tangents, points.dtype)
        size = points[0].numel()
        statistics = PointStatistics(levels, point_frames.directions, size)
        fields = _gather(
            count_tangent_crossings(inner, points, point_frames, checked, dtype, statistics.add),
            len(points),
            len(checked),
        )
        fields |= _describe_setting(uncounted, point_frames, frames, frame)
        error = None if dtype is None else estimate_tangent_error(inner, points, point_frames, checked, dtype)
    return ComplexitySpectrum(
        **fields,
        radii=checked,
        method="tangent",
        tangents="exact" if dtype is None else "bfloat16",
        tangent_error=error,
        quantiles=levels,
        critical_radius=statistics.critical_radius,
        jacobian_norm=statistics.jacobian_norm,
        input_size=size,
    )


def _describe_setting(
    uncounted: Uncounted, point_frames: Frames, frames: FrameChoice, frame: Tensor | None
) -> dict[str, Any]:
    """Return the fields of a result that say what was not counted, and along which directions."""
    return {
        "uncounted": uncounted.layers,
        "counted_share": uncounted.counted_share,
        "frames": frames if frame is None else "own",
        "directions": point_frames.directions,
    }


def _validate_radii(radii: Iterable[float], argument: str) -> tuple[float, ...]:
    try:
        values = tuple(float(radius) for radius in radii)
    except (TypeError, ValueError) as error:
        raise UsageError(f"`{argument}` must be numbers > 0; got {radii!r}") from error
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise UsageError(f"`{argument}` must be > 0 and finite; got {list(values)}")
    return values


@contextmanager
def _prepare(
    model: nn.Module, images: Tensor, directions: int, frames: FrameChoice, seed: int, frame: Tensor | None
) -> Iterator[tuple[nn.Module, Tensor, Frames, Uncounted]]:
    """Yield the model in `measurement_mode`, the images in its device and dtype, the frames, what is not counted."""
    validate_images(images)
    with measurement_mode(model) as inner:
        points = images.detach().to(device_of(inner), dtype_of(inner))
        point_frames = make_frames(points, directions, frames, seed, frame)
        uncounted = find_uncounted(inner, points)
        with known_constants(uncounted.constants):
            yield inner, points, point_frames, uncounted


def _gather(blocks: Iterable[BlockCount], points: int, radii: int) -> dict[str, Any]:
    """Collect the result's fields from all blocks; raise if their layers differ or a value is not finite."""
    counts: list[Tensor] = []
    extras: list[tuple[Tensor, ...]] = []
    live: list[Tensor] = []
    first = BlockCount([], [])
    for index, block in enumerate(blocks):
        if index == 0:
            first, live = block, [count.live for count in block.layers]
        _check_same_layers(block, first)
        _check_finite(block)
        live = [mask | count.live for mask, count in zip(live, block.layers, strict=True)]
        if block.layers:
            counts.append(torch.stack([count.counts for count in block.layers], dim=-1).cpu())
        extras.append(_stack_extras(block))
    empty = torch.zeros(radii, points, 0, dtype=torch.int64)
    zones, switches, signs = (
        torch.cat(parts, dim=1) if parts[0].numel() else empty for parts in zip(*extras, strict=True)
    )
    return {
        "counts": torch.cat(counts, dim=1) if first.layers else empty,
        "layers": tuple(count.layer for count in first.layers),
        "units": {count.layer: count.live.numel() for count in first.layers},
        "live_units": {count.layer: int(mask.sum()) for count, mask in zip(first.layers, live, strict=True)},
        "proxy_layers": tuple(count.layer for count in first.layers if not count.exact),
        "zones": zones,
        "pools": tuple(pool.layer for pool in first.pools),
        "windows": {pool.layer: pool.windows for pool in first.pools},
        "switches": switches,
        "pool_signs": signs,
    }


def _stack_extras(block: BlockCount) -> tuple[Tensor, ...]:
    """Stack zones, switches and signs of one block, each (radius, point, layer)."""
    series = (
        [count.zones for count in block.layers if count.zones is not None],
        [pool.switches for pool in block.pools],
        [pool.signs for pool in block.pools],
    )
    return tuple(torch.stack(columns, dim=-1).cpu() if columns else torch.zeros(0) for columns in series)


def _check_same_layers(block: BlockCount, first: BlockCount) -> None:
    def list_layers(counted: BlockCount) -> list[tuple[str, object]]:
        return [(count.layer, count.live.shape) for count in counted.layers] + [
            (pool.layer, pool.windows) for pool in counted.pools
        ]

    if list_layers(block) != list_layers(first):
        raise ModelContractError(DATA_DEPENDENT_LAYERS)


def _check_finite(block: BlockCount) -> None:
    counted: list[LayerCount | PoolCount] = [*block.layers, *block.pools]
    if counted and not torch.stack([count.finite for count in counted]).all():
        layer = next(count.layer for count in counted if not count.finite)
        raise NumericsError(f"the pre-activations of {layer!r} are not finite: the model's weights have diverged")
