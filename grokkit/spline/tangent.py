"""Count crossings to first order: units with |z| < r max_p |J v_p|, at every radius from 1 + P passes a point."""

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

_COMPARISON_ELEMENTS = 2**18
"""Elements compared at once: many radii of a small layer, or one radius of a large layer, so that they fit in cache."""


class TangentReach:
    """Largest change of every pre-activation along the directions processed so far, per unit of radius.

    Args:
        points: number of points in the block.
        like: a tensor with the device and dtype of the points.

    `jacobian_squares` (point,) is the sum over the directions of |J v_p|^2, J the Jacobian of the model's output;
    NaN if the output has no derivatives.
    """

    def __init__(self, points: int, like: Tensor) -> None:
        self.calls: dict[str, Call] = {}
        self.reach: dict[str, Tensor] = {}
        self.pools: dict[str, TangentPool] = {}
        self.jacobian_squares = like.new_zeros(points, dtype=torch.float64)

    def on_call(self, call: Call) -> None:
        """Update the reach of an activation's pre-activations."""
        z = _require_dual(call.z, call.activation.name, call.layer)
        reach = max_magnitude(z.tangent, z.primal)
        previous = self.reach.get(call.layer)
        self.reach[call.layer] = reach if previous is None else torch.maximum(previous, reach)
        if call.layer not in self.calls:
            self.calls[call.layer] = call._replace(z=z.primal.clone())

    def on_pool(self, call: PoolCall) -> None:
        """Update the critical radii of a max-pool."""
        z, pooled = (_require_dual(x, call.pool.name, call.layer) for x in (call.z, call.pooled))
        if call.layer not in self.pools:
            self.pools[call.layer] = TangentPool(call, pooled)
        self.pools[call.layer].on_call(z, pooled)

    def on_output(self, output: Tensor) -> None:
        """Add the model's output to `jacobian_squares`."""
        if isinstance(output, Dual):
            rows = output.tangent.reshape(*output.tangent.shape[:2], -1)
            self.jacobian_squares += rows.double().square().sum(dim=(0, 2))
        else:
            self.jacobian_squares.fill_(torch.nan)

    def iter_counts(self, radii: Sequence[float]) -> Iterator[LayerCount]:
        """Yield every layer's counts."""
        for layer, call in self.calls.items():
            reach = self.reach[layer]
            counts = torch.stack([_count_crossings((call.z - kink).abs(), reach, radii) for kink in call.kinks]).sum(
                dim=0
            )
            finite = torch.stack([*call.z.aminmax(), reach.amax()]).isfinite().all()
            zone, zones = call.activation.zone, None
            if zone is not None:
                zones = torch.stack([count_per_point(call.z.abs() < zone + radius * reach) for radius in radii])
            yield LayerCount(layer, call.activation.exact, counts, is_above(call.z, call.kinks), finite, zones)

    def iter_pool_counts(self, radii: Sequence[float]) -> Iterator[PoolCount]:
        """Yield every max-pool's counts."""
        for pool in self.pools.values():
            source_values = () if pool.source is None else (self.calls[pool.source].z, self.reach[pool.source])
            yield pool.count(radii, *source_values)

    def iter_distances(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (|z - kink|, reach), both (point, unit), for every kink of every layer."""
        for layer, call in self.calls.items():
            for kink in call.kinks:
                yield (call.z - kink).abs().flatten(1), self.reach[layer].flatten(1)


def _require_dual(z: Tensor, name: str, layer: str) -> Dual:
    if not isinstance(z, Dual):
        raise ModelContractError(
            f"the input of {name} in {layer!r} has no derivatives: it does not depend on the images, or was computed "
            'by code that hides its operations; use method="vertex"'
        )
    return z


def _count_crossings(distance: Tensor, reach: Tensor, radii: Sequence[float]) -> Tensor:
    """Count the units whose distance to the kink is below radius * reach, both (point, ...); int64 (radius, point)."""
    counts = []
    for group in torch.split(reach.new_tensor(radii), max(1, _COMPARISON_ELEMENTS // reach.numel())):
        reached = group.view(-1, *(1,) * reach.dim()) * reach
        # strict inequality: a dead path of a bias-free network has zero on both sides and is not a crossing. A float
        # mask is written and summed twice as fast as a bool mask, and is exact below 2^24 units
        mask = torch.lt(distance, reached, out=reached)
        counts.append(mask.sum(dim=tuple(range(2, mask.dim()))) if mask.dim() > 2 else mask)
    return torch.cat(counts).long()


def iter_reaches(
    model: nn.Module, images: Tensor, frames: Frames, tangents: torch.dtype | None
) -> Iterator[TangentReach]:
    """Yield, for each block of points, the reach from one pass of 1 + P images a point.

    Tangents are stored in the dtype `tangents`; None: in the model's dtype.
    """
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


def count_tangent_crossings(
    model: nn.Module,
    images: Tensor,
    frames: Frames,
    radii: Sequence[float],
    tangents: torch.dtype | None = None,
    on_reach: Callable[[TangentReach], None] = lambda reach: None,
) -> Iterator[BlockCount]:
    """Yield, for each block of points, every count at every radius; `on_reach` receives each block's reach first."""
    for reach in iter_reaches(model, images, frames, tangents):
        on_reach(reach)
        yield BlockCount(list(reach.iter_counts(radii)), list(reach.iter_pool_counts(radii)))
