"""The first-order count: units with |z| < r max_p |J v_p|; one pass of 1 + P images a point gives every radius."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.dual import tangents_in
from grokkit.spline.frames import Frames
from grokkit.spline.passes import LayerCount, above, blocks, extremes, memory_format, run
from grokkit.spline.rules import Dual
from grokkit.units import Call

_COMPARED = 2**18
"""Numbers compared at once: many radii of a small layer in one go, one radius of a large layer within the cache."""


class Reach:
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
        self.jacobian_squares = like.new_zeros(points, dtype=torch.float64)

    def see(self, call: Call) -> None:
        if not isinstance(call.z, Dual):
            raise ModelContractError(
                f"the input of {call.activation.name} in {call.layer!r} came without derivatives: it does not depend "
                'on the images, or went through code that hides its operations; use method="vertex"'
            )
        low, high = extremes(call.z.tangent)
        reach = torch.maximum(high, -low).to(call.z.primal.dtype)
        known = self.reach.get(call.layer)
        self.reach[call.layer] = reach if known is None else torch.maximum(known, reach)
        if call.layer not in self.calls:
            self.calls[call.layer] = call._replace(z=call.z.primal.clone())

    def see_output(self, output: Tensor) -> None:
        if isinstance(output, Dual):
            self.jacobian_squares += output.tangent.flatten(2).double().square().sum(dim=(0, 2))
        else:
            self.jacobian_squares.fill_(torch.nan)

    def counts(self, radii: Sequence[float]) -> Iterator[LayerCount]:
        for layer, call in self.calls.items():
            reach = self.reach[layer]
            counts = torch.stack([_crossings((call.z - kink).abs(), reach, radii) for kink in call.kinks]).sum(dim=0)
            finite = torch.stack([*call.z.aminmax(), reach.amax()]).isfinite().all()
            yield LayerCount(layer, call.activation.exact, counts, above(call.z, call.kinks), finite)

    def distances(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(|z - kink|, reach), both (point, unit), for every kink of every layer."""
        for layer, call in self.calls.items():
            for kink in call.kinks:
                yield (call.z - kink).abs().flatten(1), self.reach[layer].flatten(1)


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


def reaches(model: nn.Module, images: Tensor, frames: Frames, tangents: torch.dtype | None) -> Iterator[Reach]:
    """For each block of points, what one pass of 1 + P images a point says; tangents stored in `tangents`."""
    layout = memory_format(model, images)
    for block in blocks(len(images), frames.directions, images, rows_per_direction=1):
        centre = images[block.points.start : block.points.stop].contiguous(memory_format=layout)
        directions = frames.at(block.points).expand(-1, *centre.shape)
        reach = Reach(len(centre), centre)
        for part in block.directions:
            with tangents_in(tangents):
                # copies, because a model may begin with an in-place call
                reach.see_output(run(model, Dual(centre.clone(), directions[part].clone()), reach.see))
        yield reach


def tangent_counts(
    model: nn.Module,
    images: Tensor,
    frames: Frames,
    radii: Sequence[float],
    tangents: torch.dtype | None = None,
    see: Callable[[Reach], None] = lambda reach: None,
) -> Iterator[list[LayerCount]]:
    """For each block of points, every layer's count at every radius; `see` is shown all that the pass found."""
    for reach in reaches(model, images, frames, tangents):
        see(reach)
        yield list(reach.counts(radii))
