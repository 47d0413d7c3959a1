"""Shared parts of the counting methods: forward passes in blocks, and the counts of one block of points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from grokkit.device.model_check import run_model
from grokkit.errors import ModelContractError
from grokkit.interrupt import check_interrupt
from grokkit.units import Call, PoolCall, intercept

_PASS_ELEMENTS = {"cpu": 2**18}
_PASS_ELEMENTS_ELSEWHERE = 2**22
_PASS_ROWS = 4096

DATA_DEPENDENT_LAYERS = (
    "the model calls different activations for different images; only a model whose layers do not depend on the data "
    "can be measured"
)


class LayerCount(NamedTuple):
    """Counts of one layer over one block of points.

    Args:
        layer: layer name.
        exact: False for a smooth activation, whose sign is only a proxy.
        counts: int64 (radius, point), crossed pairs of unit and kink.
        live: bool (kink, ...), pairs whose unit is above the kink at some point of the block.
        finite: bool (), whether all values were finite.
        zones: int64 (radius, point), units that reach the convex zone of a smooth activation; None for others.
    """

    layer: str
    exact: bool
    counts: Tensor
    live: Tensor
    finite: Tensor
    zones: Tensor | None


class PoolCount(NamedTuple):
    """Counts of one max-pool over one block of points.

    Args:
        layer: layer name.
        windows: number of windows per image.
        switches: int64 (radius, point), windows in which no single entry is the maximum everywhere.
        signs: int64 (radius, point), windows whose maximum changes sign.
        finite: bool (), whether all values were finite.
    """

    layer: str
    windows: int
    switches: Tensor
    signs: Tensor
    finite: Tensor


class BlockCount(NamedTuple):
    """All counts over one block of points."""

    layers: list[LayerCount]
    pools: list[PoolCount]


class Block(NamedTuple):
    """Points measured together, and the slices of directions measured one after another."""

    points: range
    directions: list[slice]


def split_blocks(points: int, directions: int, images: Tensor, rows_per_direction: int) -> Iterator[Block]:
    """Split points and directions into blocks so that one pass stays in cache (CPU) or in bounded memory."""
    elements = _PASS_ELEMENTS.get(images.device.type, _PASS_ELEMENTS_ELSEWHERE)
    rows = max(1, min(_PASS_ROWS, elements // images.shape[1:].numel()) // rows_per_direction)
    directions_per_pass = min(directions, rows)
    points_per_block = max(1, rows // directions_per_pass)
    slices = [slice(first, first + directions_per_pass) for first in range(0, directions, directions_per_pass)]
    for first in range(0, points, points_per_block):
        check_interrupt()
        yield Block(range(first, min(first + points_per_block, points)), slices)


def forward_with_interception(
    model: nn.Module,
    inputs: Tensor,
    on_call: Callable[[Call], None],
    on_pool: Callable[[PoolCall], None] | None = None,
) -> Tensor:
    """Run one forward pass and report every activation and max-pool call.

    Raises:
        ModelContractError: the model fails, or a reported call or the output does not have the batch as its first
            dimension.
    """
    with intercept(model, on_call, on_pool, batch=len(inputs)):
        return run_model(model, inputs)


def choose_memory_format(model: nn.Module, images: Tensor) -> torch.memory_format:
    """Return channels_last if it is faster (float32 convolutions on a CPU) and the model's `view` calls allow it."""
    if images.device.type != "cpu" or images.dtype != torch.float32 or images.dim() != 4:
        return torch.contiguous_format
    pair = images[:1].repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    try:
        run_model(model, pair)
    except ModelContractError as error:
        if "view size is not compatible" not in str(error):
            raise
        return torch.contiguous_format
    return torch.channels_last


def is_above(z: Tensor, kinks: tuple[float, ...]) -> Tensor:
    """Return bool (kink, ...): which units are above each kink at one point of the block or more."""
    return torch.stack([(z > kink).any(dim=0) for kink in kinks])


def find_live_units(model: nn.Module, centre: Tensor) -> list[Call]:
    """Return the activation calls at the points themselves, with `is_above` in place of the pre-activations."""
    calls: list[Call] = []
    # a copy, because a model may begin with an in-place call; `is_above` now, because the activation may overwrite z
    forward_with_interception(
        model, centre.clone(), lambda call: calls.append(call._replace(z=is_above(call.z, call.kinks)))
    )
    return calls


def check_same_calls(calls: list[Call], layers: list[str]) -> None:
    """Raise ModelContractError if a forward pass does not call the activations that its recorded program has."""
    if len(calls) != len(layers):
        extra = sorted({call.layer for call in calls} ^ set(layers)) or layers
        raise ModelContractError(
            f"{extra[0]!r} computes with a tensor that no call made and that is not of the model's own, so it is not "
            "known whether it depends on the images; register that tensor as a buffer"
        )


def count_per_point(crossed: Tensor) -> Tensor:
    """Return int64 (point,): how many units of a (point, ...) mask are set."""
    return crossed.permute(0, *_memory_order(crossed)).flatten(1).count_nonzero(dim=1)


def _memory_order(rows: Tensor) -> list[int]:
    """Return all dimensions but the first, from the slowest in memory to the fastest."""
    return sorted(range(1, rows.dim()), key=rows.stride, reverse=True)


def reduce_min_max(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the elementwise minimum and maximum over the first dimension."""
    return reduce_in_memory_order(rows, lambda flat: flat.amin(0)), reduce_in_memory_order(
        rows, lambda flat: flat.amax(0)
    )


def reduce_in_memory_order(rows: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """Reduce over the first dimension; on a channels_last tensor this is 40 times as fast as the plain call."""
    order = _memory_order(rows)
    flat = rows.permute(0, *order)
    back = [order.index(dim) for dim in range(1, rows.dim())]
    return reduce(flat.flatten(1)).view(flat.shape[1:]).permute(back)
