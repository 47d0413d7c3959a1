"""Local complexity: how many units change sign around a point, after Humayun, Balestriero and Baraniuk (2024)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grokkit.device.preserved_state import device_of, dtype_of
from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.spline.bounds import bound_counts
from grokkit.spline.frames import Frames, make_frames
from grokkit.spline.measurement_mode import measurement_mode, validate_images
from grokkit.spline.passes import OTHER_LAYERS, BlockCount, LayerCount, PoolCount
from grokkit.spline.ray import ray_counts
from grokkit.spline.results import ComplexitySpectrum, LocalComplexity
from grokkit.spline.spectrum import PointStatistics, choose_tangent_dtype, estimate_tangent_error, validate_quantiles
from grokkit.spline.tangent import tangent_counts
from grokkit.spline.uncounted import find_uncounted
from grokkit.spline.vertex import vertex_counts

_COUNTS = {"vertex": vertex_counts, "ray": ray_counts, "bound": bound_counts}
METHODS = ("vertex", "tangent", "ray", "bound")


def local_complexity(
    model: nn.Module,
    images: Tensor,
    radius: float = 0.005,
    directions: int = 20,
    method: str = "vertex",
    frames: str = "shared",
    seed: int = 0,
    frame: Tensor | None = None,
    tangents: str | None = None,
) -> LocalComplexity:
    """Count, for each point and layer, the units whose pre-activation changes sign over a neighbourhood.

    The neighbourhood of x is the convex hull of its 2 P vertices x ± radius * v_p. "vertex" compares the signs at the
    vertices: exact for the first layer, a lower bound deeper down. "tangent" counts |z| < radius * max_p |J v_p|: the
    same to first order, little moved by rounding. "ray" finds, exactly and in float64, the units that change sign
    anywhere on the segments x ± radius * v_p. "bound" counts every unit that could change sign in the hull: certified,
    and loose with depth and radius. In each layer vertex <= ray <= bound, equal in the first. A unit that is exactly
    zero everywhere is not counted by any.

    Args:
        model: any module that treats each image by itself; measured in eval mode, in strict precision, handed back.
        images: floating tensor (N, ...) in the input space of `model`; moved to its device and dtype.
        radius: > 0, in the units of `images`.
        directions: number P of orthonormal directions, 1..D, where D is the size of one image.
        method: "vertex", "tangent", "ray" or "bound".
        frames: "shared", one frame for all points; "per_point", a frame of its own for the i-th image.
        seed: of the frames; the same directions at every step and on every machine.
        frame: the caller's own orthonormal directions, (P, D); `directions` and `seed` then play no part.
        tangents: of the method "tangent" alone, see `complexity_spectrum`.

    Returns:
        Counts per point and layer with units, live units and density; max-pool switches, curved zones and what is not
        counted stand beside them.

    Raises:
        UsageError: an argument out of range, images that are not finite or not floating.
        ModelContractError: a model in half precision, with a nonlinearity without counting rule, that mixes its batch,
            returns something else than one tensor, has no derivative ("tangent") or is not piecewise affine ("ray",
            "bound").
        NumericsError: pre-activations that are not finite.

    Cost: 2 P + 1 forward passes a point ("vertex"), 1 + P ("tangent"); in float64 2 P and one for every breakpoint on
    the rays ("ray"), or 2 + P ("bound"). Memory grows with neither N nor, but for "bound", P.

    Source: Humayun, Balestriero and Baraniuk, "Deep Networks Always Grok and Here is Why", arXiv:2402.15555.
    """
    if method not in METHODS:
        raise UsageError(f"`method` must be one of {', '.join(METHODS)}; got {method!r}")
    (radius,) = _radii([radius], "radius")
    if method == "tangent":
        spectrum = complexity_spectrum(model, images, [radius], directions, frames, seed, frame, tangents, quantiles=())
        return spectrum.at(0)
    if tangents is not None:
        raise UsageError(f"`tangents` belongs to method='tangent'; got {tangents!r} with method={method!r}")
    with _prepare(model, images, directions, frames, seed, frame) as (inner, points, axes):
        fields = _gather(_COUNTS[method](inner, points, axes, radius), len(points), 1)
        fields |= {name: fields[name][0] for name in ("counts", "zones", "switches", "pool_signs")}
        fields |= {
            "uncounted": find_uncounted(inner, points),
            "frames": _kind(frames, frame),
            "directions": axes.directions,
        }
    return LocalComplexity(**fields, radius=radius, method=method, tangents=None, tangent_error=None)


def complexity_spectrum(
    model: nn.Module,
    images: Tensor,
    radii: Iterable[float],
    directions: int = 20,
    frames: str = "shared",
    seed: int = 0,
    frame: Tensor | None = None,
    tangents: str | None = None,
    quantiles: Iterable[float] = (0.001, 0.01, 0.1, 0.5),
) -> ComplexitySpectrum:
    """Local complexity at every radius in one pass, by the "tangent" method of `local_complexity`.

    The same pass also gives quantiles of the units' critical radii, the density of region boundaries and the norm of
    the model's Jacobian.

    Args:
        radii: one or more radii, each > 0, in the units of `images`.
        model, images, directions, frames, seed, frame: as for `local_complexity`.
        tangents: how derivatives are carried; the points themselves always go through in full float32 or float64.
            "exact": likewise. "bfloat16": rounded, also the weights they meet, for a float32 model; on a GPU that runs
            on the tensor cores, on a CPU it is many times slower. A few crossings differ; `tangent_error`
            says how many did on the first 4 points. None: "bfloat16" for a float32 model on a GPU, else "exact".
        quantiles: levels in (0, 1] at which the critical radii of a point's units are given; () for none.

    Returns:
        Counts per radius, point and layer; at each radius those of `local_complexity(method="tangent")`.

    Raises:
        UsageError, ModelContractError, NumericsError: as `local_complexity`; ModelContractError also for bfloat16
            tangents of a float64 model.

    Cost: 1 + P forward passes a point, one comparison a unit and radius, and one sort of a point's units for the
    quantiles; 2 (1 + P) passes more for each of 4 points where tangents are rounded.
    """
    checked, levels = _radii(radii, "radii"), validate_quantiles(quantiles)
    with _prepare(model, images, directions, frames, seed, frame) as (inner, points, axes):
        dtype = choose_tangent_dtype(tangents, points.dtype, points.device)
        size = points[0].numel()
        gains = PointStatistics(levels, axes.directions, size)
        fields = _gather(tangent_counts(inner, points, axes, checked, dtype, gains.on_call), len(points), len(checked))
        fields["uncounted"] = find_uncounted(inner, points)
        error = None if dtype is None else estimate_tangent_error(inner, points, axes, checked, dtype)
    return ComplexitySpectrum(
        **fields,
        radii=checked,
        method="tangent",
        directions=axes.directions,
        frames=_kind(frames, frame),
        tangents="exact" if dtype is None else "bfloat16",
        tangent_error=error,
        quantiles=levels,
        critical_radius=gains.critical_radius,
        jacobian_norm=gains.jacobian_norm,
        input_size=size,
    )


def _kind(frames: str, frame: Tensor | None) -> str:
    return frames if frame is None else "own"


def _radii(radii: Iterable[float], argument: str) -> tuple[float, ...]:
    try:
        values = tuple(float(radius) for radius in radii)
    except (TypeError, ValueError) as error:
        raise UsageError(f"`{argument}` must be numbers > 0; got {radii!r}") from error
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise UsageError(f"`{argument}` must be > 0 and finite; got {list(values)}")
    return values


@contextmanager
def _prepare(
    model: nn.Module, images: Tensor, directions: int, frames: str, seed: int, frame: Tensor | None
) -> Iterator[tuple[nn.Module, Tensor, Frames]]:
    """The borrowed model, the images where it lives, and the frames."""
    validate_images(images)
    with measurement_mode(model) as inner:
        points = images.detach().to(device_of(inner), dtype_of(inner))
        yield inner, points, make_frames(points, directions, frames, seed, frame)


def _gather(blocks: Iterable[BlockCount], points: int, radii: int) -> dict[str, Any]:
    """The fields of a result that all blocks together give, checked to speak of the same layers and to be finite."""
    counts: list[Tensor] = []
    beside: list[tuple[Tensor, ...]] = []
    live: list[Tensor] = []
    first = BlockCount([], [])
    for index, block in enumerate(blocks):
        if index == 0:
            first, live = block, [one.live for one in block.layers]
        _check_same_layers(block, first)
        _check_finite(block)
        live = [seen | one.live for seen, one in zip(live, block.layers, strict=True)]
        if block.layers:
            counts.append(torch.stack([one.counts for one in block.layers], dim=-1).cpu())
        beside.append(_block_extras(block))
    empty = torch.zeros(radii, points, 0, dtype=torch.int64)
    zones, switches, signs = (
        torch.cat(parts, dim=1) if parts[0].numel() else empty for parts in zip(*beside, strict=True)
    )
    return {
        "counts": torch.cat(counts, dim=1) if first.layers else empty,
        "layers": tuple(one.layer for one in first.layers),
        "units": {one.layer: one.live.numel() for one in first.layers},
        "live_units": {one.layer: int(mask.sum()) for one, mask in zip(first.layers, live, strict=True)},
        "proxy_layers": tuple(one.layer for one in first.layers if not one.exact),
        "zones": zones,
        "pools": tuple(one.layer for one in first.pools),
        "windows": {one.layer: one.windows for one in first.pools},
        "switches": switches,
        "pool_signs": signs,
    }


def _block_extras(block: BlockCount) -> tuple[Tensor, ...]:
    """Zones, switches and signs of one block, each (radius, point, layer)."""
    series = (
        [one.zones for one in block.layers if one.zones is not None],
        [one.switches for one in block.pools],
        [one.signs for one in block.pools],
    )
    return tuple(torch.stack(columns, dim=-1).cpu() if columns else torch.zeros(0) for columns in series)


def _check_same_layers(block: BlockCount, first: BlockCount) -> None:
    def layers(of: BlockCount) -> list[tuple[str, object]]:
        return [(one.layer, one.live.shape) for one in of.layers] + [(one.layer, one.windows) for one in of.pools]

    if layers(block) != layers(first):
        raise ModelContractError(OTHER_LAYERS)


def _check_finite(block: BlockCount) -> None:
    counted: list[LayerCount | PoolCount] = [*block.layers, *block.pools]
    if counted and not torch.stack([one.finite for one in counted]).all():
        layer = next(one.layer for one in counted if not one.finite)
        raise NumericsError(f"the pre-activations of {layer!r} are not finite: the model's weights have diverged")
