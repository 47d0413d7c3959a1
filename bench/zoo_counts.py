"""Count crossings from torch's kernels: between the vertices, and to first order by differences or derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from bench.zoo_lines import ON_KINK, RADIUS
from bench.zoo_trace import Kinks, Pooled, Structure, find_scale, trace_kinks


class Precision(NamedTuple):
    """What rounding leaves of a count.

    Args:
        rounding: relative rounding errors of a pre-activation.
        tie: distance to a kink, relative to the largest pre-activation, below which the side is not known.
        step: of the central differences.
        tangent: relative error of the central differences: units closer to the radius than this are ties.
    """

    rounding: float
    tie: float
    step: float
    tangent: float


FLOAT64 = Precision(1e-15, ON_KINK, 1e-6, 1e-4)
FINER = tuple(Precision(1e-15, ON_KINK, step, 1e-3) for step in (1e-7, 1e-8, 1e-9, 1e-10))
"""Tried in turn where the counts differ: a unit that changes within a step changes the differences of all behind it."""
ROUNDED = Precision(1e-7, 1e-5, 1e-2, 0.05)
"""Of a float64 model that computes in float32 in places."""


class LayerTruth(NamedTuple):
    """What the kernels say of one activation call: vertex count, bounds of the tangent count, and ties of the vertex
    count (units on their kink to rounding)."""

    path: str
    function: str
    name: str
    units: int
    vertex: int
    ties: int
    tangent: tuple[int, int]


class PoolTruth(NamedTuple):
    """What the kernels say of one max-pool: windows, switches and sign changes at the vertices, switches to first
    order."""

    path: str
    windows: int
    switches: int
    signs: int
    tangent: tuple[int, int]


def count_by_derivatives(
    model: nn.Module, image: Tensor, directions: Tensor, layers: list[LayerTruth]
) -> list[LayerTruth]:
    """Count to first order by torch's forward-mode derivatives, for a net all of whose counted calls are ReLU modules.

    Where units lie so close to their kinks that they change within every step, differences say nothing. Empty for
    other nets.
    """
    seen: list[tuple[str, Tensor, Tensor]] = []
    reaches: list[Tensor] = []

    def on_call(path: str, inputs: tuple[Tensor, ...]) -> None:
        value, tangent = forward_ad.unpack_dual(inputs[0])
        seen.append((path, value.abs().clone(), tangent.abs().clone()))

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, path=path: on_call(path, inputs))
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        for direction in directions:
            seen.clear()
            with forward_ad.dual_level():
                model(forward_ad.make_dual(image.unsqueeze(0), direction.unsqueeze(0)))
            moved = [tangent for _, _, tangent in seen]
            reaches = [torch.maximum(*pair) for pair in zip(reaches, moved, strict=True)] if reaches else moved
    finally:
        for handle in handles:
            handle.remove()
    if [path for path, _, _ in seen] != [layer.path for layer in layers]:
        return []
    counts = [int((value < RADIUS * reach).sum()) for (_, value, _), reach in zip(seen, reaches, strict=True)]
    return [layer._replace(tangent=(count, count)) for layer, count in zip(layers, counts, strict=True)]


def count_kernels(
    model: nn.Module, image: Tensor, directions: Tensor, structure: Structure, precision: Precision
) -> tuple[list[LayerTruth], list[PoolTruth]]:
    """Count every kernel's crossings between the vertices, and to first order by central differences."""
    count = len(directions)
    steps = [scale * directions for scale in (RADIUS, -RADIUS, precision.step, -precision.step)]
    rows = torch.cat([image.unsqueeze(0), *(image + step for step in steps)])
    vertices, ahead, behind = (
        slice(1, 1 + 2 * count),
        slice(1 + 2 * count, 1 + 3 * count),
        slice(1 + 3 * count, 1 + 4 * count),
    )
    layers: list[LayerTruth] = []
    pools: list[PoolTruth] = []

    def on_kinks(call: Kinks) -> None:
        vertex = ties = low = high = 0
        for gap in call.gaps:
            corners = gap[vertices]
            smallest, largest = corners.amin(0), corners.amax(0)
            vertex += int((smallest.sign() != largest.sign()).sum())
            nearest = corners.abs().amin(0)
            ties += int(((nearest < precision.tie * call.scale) & (corners.abs().amax(0) > 0)).sum())
            reach = RADIUS * ((gap[ahead] - gap[behind]) / (2 * precision.step)).abs().amax(0)
            least, most = _bracket(gap[0].abs(), reach, call.scale, precision)
            low, high = low + least, high + most
        layers.append(LayerTruth(call.path, call.function, call.name, call.units, vertex, ties, (low, high)))

    def on_pool(call: Pooled) -> None:
        pools.append(_count_pool(call, vertices, ahead, behind, precision))

    trace_kinks(model, rows, structure.depends, on_kinks, on_pool)
    return layers, pools


def _bracket(distance: Tensor, reach: Tensor, scale: float, precision: Precision) -> tuple[int, int]:
    """Count the units that are surely within reach, and those that may be."""
    # a unit that no direction moves, up to rounding, is on a dead path
    noise = RADIUS * precision.rounding * scale / precision.step
    slack = precision.tangent * reach + noise
    sure = distance < reach - slack
    may = (distance < reach + slack) & (reach > noise)
    return int(sure.sum()), int((sure | may).sum())


def _windows(call: Pooled) -> Iterator[Tensor]:
    """Yield, for each position in a window, the entries of all windows (rows, channels, windows...), -inf outside."""
    kernel, stride, padding, dilation = _pool_arguments(call)
    z, sizes = call.z, call.pooled.shape[-2:]
    pads: list[int] = []
    for axis in (1, 0):
        needed = (sizes[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        pads += [padding[axis], max(0, needed - z.shape[-2 + axis] - padding[axis])]
    padded = nn.functional.pad(z, pads, value=-torch.inf)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            yield padded[
                ...,
                top : top + (sizes[0] - 1) * stride[0] + 1 : stride[0],
                left : left + (sizes[1] - 1) * stride[1] + 1 : stride[1],
            ]


def _pool_arguments(call: Pooled) -> list[tuple[int, int]]:
    defaults: list[Any] = [None, [], 0, 1]
    given = [*call.arguments[:4], *defaults[len(call.arguments[:4]) :]]
    pairs = [
        tuple(value) * (2 // len(value)) if isinstance(value, list | tuple) and value else value for value in given
    ]
    pairs = [(value, value) if isinstance(value, int) else value for value in pairs]
    return [pair or pairs[0] for pair in pairs]


def _count_pool(call: Pooled, vertices: slice, ahead: slice, behind: slice, precision: Precision) -> PoolTruth:
    if call.name != "max_pool2d_with_indices" or call.z.dim() != 4:
        return PoolTruth(call.path, -1, -1, -1, (-1, -1))
    alive = call.pooled > 0
    centre_flat, winners = call.z.flatten(2), call.winners[0].flatten(1)

    def slopes_of(rows: Tensor) -> Tensor:
        return (rows[ahead] - rows[behind]) / (2 * precision.step)

    winner_slopes = slopes_of(
        centre_flat.gather(2, winners.expand(len(call.z), *winners.shape)).reshape_as(call.pooled)
    )
    holds = torch.zeros_like(alive[0])
    switched = [torch.zeros_like(alive[0]), torch.zeros_like(alive[0])]
    noise = RADIUS * precision.rounding * find_scale(call.z) / precision.step
    for entry in _windows(call):
        holds |= ((entry >= call.pooled) | ~alive)[vertices].all(0)
        reach = RADIUS * (slopes_of(entry) - winner_slopes).abs().amax(0)
        gap = call.pooled[0] - entry[0]
        for at, slack in enumerate((-1.0, 1.0)):
            limit = reach + slack * (precision.tangent * reach + noise)
            switched[at] |= (entry[0] > 0) & (reach > noise) & (gap < limit)
    corners = alive[vertices]
    return PoolTruth(
        call.path,
        holds.numel(),
        int((~holds).sum()),
        int((corners.any(0) & ~corners.all(0)).sum()),
        (int(switched[0].sum()), int(switched[1].sum())),
    )
