"""The first-order count: units with |z| < r max_p |J v_p|; one pass of 1 + P images a point gives every radius."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.dual import store_tangents_in
from grokkit.spline.frames import Frames
from grokkit.spline.passes import (
    BlockCount,
    LayerCount,
    PoolCount,
    choose_memory_format,
    count_per_point,
    forward_with_interception,
    is_above,
    split_blocks,
)
from grokkit.spline.pools import TangentPool, max_magnitude
from grokkit.spline.rules import Dual
from grokkit.units import Call, PoolCall

_COMPARED = 2**18
"""Numbers compared at once: many radii of a small layer in one go, one radius of a large layer within the cache."""


class TangentReach:
    """How far every pre-activation moves along the directions seen so far, per unit of radius.

    Args:
        points: how many points the block has.
        like: a tensor of the points' device and dtype.

    `jacobian_squares` (point,) is the sum over the directions of |J v_p|^2, J the Jacobian of the model's output;
    NaN where the output came without derivatives.
    """

    def __init__(self, points: int, like: Tensor) -> None:
        self.calls: dict[str, Call] = {}
        self.reach: dict[str, Tensor] = {}
        self.pools: dict[str, TangentPool] = {}
        self.jacobian_squares = like.new_zeros(points, dtype=torch.float64)

    def on_call(self, call: Call) -> None:
        z = _require_dual(call.z, call.activation.name, call.layer)
        reach = max_magnitude(z.tangent, z.primal)
        known = self.reach.get(call.layer)
        self.reach[call.layer] = reach if known is None else torch.maximum(known, reach)
        if call.layer not in self.calls:
            self.calls[call.layer] = call._replace(z=z.primal.clone())

    def on_pool(self, call: PoolCall) -> None:
        z, pooled = (_require_dual(x, call.pool.name, call.layer) for x in (call.z, call.pooled))
        if call.layer not in self.pools:
            self.pools[call.layer] = TangentPool(call, pooled)
        self.pools[call.layer].on_call(z, pooled)

    def on_output(self, output: Tensor) -> None:
        if isinstance(output, Dual):
            self.jacobian_squares += output.tangent.flatten(2).double().square().sum(dim=(0, 2))
        else:
            self.jacobian_squares.fill_(torch.nan)

    def counts(self, radii: Sequence[float]) -> Iterator[LayerCount]:
        for layer, call in self.calls.items():
            reach = self.reach[layer]
            counts = torch.stack([_crossings((call.z - kink).abs(), reach, radii) for kink in call.kinks]).sum(dim=0)
            finite = torch.stack([*call.z.aminmax(), reach.amax()]).isfinite().all()
            zone, zones = call.activation.zone, None
            if zone is not None:
                zones = torch.stack([count_per_point(call.z.abs() < zone + radius * reach) for radius in radii])
            yield LayerCount(layer, call.activation.exact, counts, is_above(call.z, call.kinks), finite, zones)

    def pool_counts(self, radii: Sequence[float]) -> Iterator[PoolCount]:
        for pool in self.pools.values():
            made = () if pool.source is None else (self.calls[pool.source].z, self.reach[pool.source])
            yield pool.count(radii, *made)

    def distances(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(|z - kink|, reach), both (point, unit), for every kink of every layer."""
        for layer, call in self.calls.items():
            for kink in call.kinks:
                yield (call.z - kink).abs().flatten(1), self.reach[layer].flatten(1)


def _require_dual(z: Tensor, name: str, layer: str) -> Dual:
    if not isinstance(z, Dual):
        raise ModelContractError(
            f"the input of {name} in {layer!r} came without derivatives: it does not depend on the images, or went "
            'through code that hides its operations; use method="vertex"'
        )
    return z


def _crossings(distance: Tensor, reach: Tensor, radii: Sequence[float]) -> Tensor:
    """int64 (radius, point): units whose kink is nearer than they reach, both given as (point, ...)."""
    counts = []
    for group in reach.new_tensor(radii).split(max(1, _COMPARED // reach.numel())):
        reached = group.view(-1, *(1,) * reach.dim()) * reach
        # strict: a dead path of a bias-free net has both sides zero and is no crossing; a mask of floats is written
        # and summed twice as fast as one of bools, and is exact below 2^24 units
        mask = torch.lt(distance, reached, out=reached)
        counts.append(mask.sum(dim=tuple(range(2, mask.dim()))) if mask.dim() > 2 else mask)
    return torch.cat(counts).long()


def iter_reaches(
    model: nn.Module, images: Tensor, frames: Frames, tangents: torch.dtype | None
) -> Iterator[TangentReach]:
    """For each block of points, what one pass of 1 + P images a point says; tangents stored in `tangents`."""
    layout = choose_memory_format(model, images)
    for block in split_blocks(len(images), frames.directions, images, rows_per_direction=1):
        centre = images[block.points.start : block.points.stop].contiguous(memory_format=layout)
        directions = frames.at(block.points).expand(-1, *centre.shape)
        reach = TangentReach(len(centre), centre)
        for part in block.directions:
            with store_tangents_in(tangents):
                # copies, because a model may begin with an in-place call
                inputs = Dual(centre.clone(), directions[part].clone())
                reach.on_output(forward_with_interception(model, inputs, reach.on_call, reach.on_pool))
        yield reach


def tangent_counts(
    model: nn.Module,
    images: Tensor,
    frames: Frames,
    radii: Sequence[float],
    tangents: torch.dtype | None = None,
    see: Callable[[TangentReach], None] = lambda reach: None,
) -> Iterator[BlockCount]:
    """For each block of points, every count at every radius; `on_call` is shown all that the pass found."""
    for reach in iter_reaches(model, images, frames, tangents):
        see(reach)
        yield BlockCount(list(reach.counts(radii)), list(reach.pool_counts(radii)))
