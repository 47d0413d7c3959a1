"""The first-order count: units with |z| < r max_p |J v_p|; one pass of 1 + P images a point gives every radius."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.frames import Frames
from grokkit.spline.passes import BlockCount, LayerCount, PoolCount, above, blocks, memory_format, per_point, run
from grokkit.spline.pools import TangentPool, largest
from grokkit.spline.rules import Dual
from grokkit.units import Call, PoolCall


class _Reach:
    """How far every pre-activation moves along the directions seen so far, per unit of radius."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.reach: dict[str, Tensor] = {}
        self.pools: dict[str, TangentPool] = {}

    def see(self, call: Call) -> None:
        z = _dual(call.z, call.activation.name, call.layer)
        reach = largest(z.tangent, z.primal)
        known = self.reach.get(call.layer)
        self.reach[call.layer] = reach if known is None else torch.maximum(known, reach)
        if call.layer not in self.calls:
            self.calls[call.layer] = call._replace(z=z.primal.clone())

    def pooled(self, call: PoolCall) -> None:
        z, pooled = (_dual(x, call.pool.name, call.layer) for x in (call.z, call.pooled))
        if call.layer not in self.pools:
            self.pools[call.layer] = TangentPool(call, pooled)
        self.pools[call.layer].see(z, pooled)

    def pool_counts(self, radii: Sequence[float]) -> Iterator[PoolCount]:
        for pool in self.pools.values():
            made = () if pool.source is None else (self.calls[pool.source].z, self.reach[pool.source])
            yield pool.count(radii, *made)

    def counts(self, radii: Sequence[float]) -> Iterator[LayerCount]:
        for layer, call in self.calls.items():
            reach = self.reach[layer]
            counts = torch.zeros(len(radii), len(reach), dtype=torch.int64, device=reach.device)
            for kink in call.kinks:
                distance = (call.z - kink).abs()
                for row, radius in enumerate(radii):
                    # strict: a dead path of a bias-free net has both sides zero and is no crossing
                    counts[row] += per_point(distance < radius * reach)
            finite = (call.z.isfinite() & reach.isfinite()).all()
            zone = call.activation.zone
            zones = None
            if zone is not None:
                zones = torch.stack([per_point(call.z.abs() < zone + radius * reach) for radius in radii])
            yield LayerCount(layer, call.activation.exact, counts, above(call.z, call.kinks), finite, zones)


def _dual(z: Tensor, name: str, layer: str) -> Dual:
    if not isinstance(z, Dual):
        raise ModelContractError(
            f"the input of {name} in {layer!r} came without derivatives: it does not depend on the images, or went "
            'through code that hides its operations; use method="vertex"'
        )
    return z


def tangent_counts(model: nn.Module, images: Tensor, frames: Frames, radii: Sequence[float]) -> Iterator[BlockCount]:
    """For each block of points, every count at every radius; one forward pass and P tangents a point."""
    layout = memory_format(model, images)
    for block in blocks(len(images), frames.directions, images, rows_per_direction=1):
        centre = images[block.points.start : block.points.stop].contiguous(memory_format=layout)
        directions = frames.at(block.points).expand(-1, *centre.shape)
        reach = _Reach()
        for part in block.directions:
            # copies, because a model may begin with an in-place call
            run(model, Dual(centre.clone(), directions[part].clone()), reach.see, reach.pooled)
        yield BlockCount(list(reach.counts(radii)), list(reach.pool_counts(radii)))
