"""The first-order count: units with |z| < r max_p |J v_p|; one pass of 1 + P images a point gives every radius."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.frames import Frames
from grokkit.spline.passes import LayerCount, above, blocks, extremes, memory_format, per_point, run
from grokkit.spline.rules import Dual
from grokkit.units import Call


class _Reach:
    """How far every pre-activation moves along the directions seen so far, per unit of radius."""

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.reach: dict[str, Tensor] = {}

    def see(self, call: Call) -> None:
        if not isinstance(call.z, Dual):
            raise ModelContractError(
                f"the input of {call.activation.name} in {call.layer!r} came without derivatives: it does not depend "
                'on the images, or went through code that hides its operations; use method="vertex"'
            )
        low, high = extremes(call.z.tangent)
        reach = torch.maximum(high, -low)
        known = self.reach.get(call.layer)
        self.reach[call.layer] = reach if known is None else torch.maximum(known, reach)
        if call.layer not in self.calls:
            self.calls[call.layer] = call._replace(z=call.z.primal.clone())

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
            yield LayerCount(layer, call.activation.exact, counts, above(call.z, call.kinks), finite)


def tangent_counts(
    model: nn.Module, images: Tensor, frames: Frames, radii: Sequence[float]
) -> Iterator[list[LayerCount]]:
    """For each block of points, every layer's count at every radius; one forward pass and P tangents a point."""
    layout = memory_format(model, images)
    for block in blocks(len(images), frames.directions, images, rows_per_direction=1):
        centre = images[block.points.start : block.points.stop].contiguous(memory_format=layout)
        directions = frames.at(block.points).expand(-1, *centre.shape)
        reach = _Reach()
        for part in block.directions:
            # copies, because a model may begin with an in-place call
            run(model, Dual(centre.clone(), directions[part].clone()), reach.see)
        yield list(reach.counts(radii))
