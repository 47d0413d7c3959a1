"""Count crossings as published: units whose pre-activation changes sign over the vertices x ± r v_p."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.spline.frames import Frames
from grokkit.spline.passes import (
    DATA_DEPENDENT_LAYERS,
    Block,
    BlockCount,
    LayerCount,
    choose_memory_format,
    count_per_point,
    forward_with_interception,
    is_above,
    reduce_min_max,
    split_blocks,
)
from grokkit.spline.pools import VertexPool
from grokkit.units import Call, PoolCall


class _Extremes:
    """Running minimum and maximum of every pre-activation over the vertices processed so far."""

    def __init__(self, points: int) -> None:
        self._points = points
        self.low: dict[str, Tensor] = {}
        self.high: dict[str, Tensor] = {}
        self.calls: dict[str, Call] = {}
        self.pools: dict[str, VertexPool] = {}

    def on_centre(self, call: Call) -> None:
        # an in-place activation may overwrite z, so store the mask now
        self.calls[call.layer] = call._replace(z=is_above(call.z, call.kinks))

    def on_vertices(self, call: Call) -> None:
        low, high = reduce_min_max(torch.unflatten(call.z, 0, (-1, self._points)))
        if call.layer in self.low:
            low, high = torch.minimum(low, self.low[call.layer]), torch.maximum(high, self.high[call.layer])
        self.low[call.layer], self.high[call.layer] = low, high

    def on_pool(self, call: PoolCall) -> None:
        if call.layer not in self.pools:
            self.pools[call.layer] = VertexPool(self._points, call)
        self.pools[call.layer].on_call(call)

    def counts(self) -> Iterator[LayerCount]:
        if self.calls.keys() != self.low.keys():
            raise ModelContractError(DATA_DEPENDENT_LAYERS)
        for layer, call in self.calls.items():
            low, high = self.low[layer], self.high[layer]
            crossed = [count_per_point((low - kink).sign() != (high - kink).sign()) for kink in call.kinks]
            counts = torch.stack(crossed).sum(dim=0).unsqueeze(0)
            finite = (low.isfinite() & high.isfinite()).all()
            zone = call.activation.zone
            zones = None if zone is None else count_per_point((low < zone) & (high > -zone)).unsqueeze(0)
            yield LayerCount(layer, call.activation.exact, counts, call.z, finite, zones)


def count_vertex_crossings(model: nn.Module, images: Tensor, frames: Frames, radius: float) -> Iterator[BlockCount]:
    """Yield, for each block of points, every layer's and pool's count at one radius; 2 P + 1 passes a point."""
    layout = choose_memory_format(model, images)
    for block in split_blocks(len(images), frames.directions, images, rows_per_direction=2):
        extremes = _measure_extremes(model, images, frames, radius, block, layout)
        yield BlockCount(list(extremes.counts()), [pool.count() for pool in extremes.pools.values()])


def _measure_extremes(
    model: nn.Module, images: Tensor, frames: Frames, radius: float, block: Block, layout: torch.memory_format
) -> _Extremes:
    centre = images[block.points.start : block.points.stop].contiguous(memory_format=layout)
    offsets = radius * frames.at(block.points)
    extremes = _Extremes(len(centre))
    forward_with_interception(model, centre.clone(), extremes.on_centre)  # a model may begin with an in-place call
    for part in block.directions:
        vertices = torch.cat([centre + offsets[part], centre - offsets[part]]).flatten(0, 1)
        forward_with_interception(
            model, vertices.contiguous(memory_format=layout), extremes.on_vertices, extremes.on_pool
        )
    return extremes
