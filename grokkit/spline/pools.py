"""Max-pool switches: windows that no single entry wins all over a neighbourhood, and pooled units that change sign.

Entries at or below 0 are taken as 0, because a ReLU before or behind the pool cuts them off; the two orders then have
the same switches and the same signs. Padding, taken as 0 too, wins only where all entries do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grokkit.spline.dual import Dual
from grokkit.spline.passes import PoolCount, count_per_point, extremes, reduce_in_memory_order
from grokkit.spline.windows import Windows
from grokkit.units import PoolCall


class VertexPool:
    """One call over the vertices: which entries have won everywhere so far, and the range of the pooled maxima."""

    def __init__(self, points: int, call: PoolCall) -> None:
        self._points = points
        self._layer = call.layer
        self._windows = Windows(call.pool, call.z, call.pooled, call.arguments)
        self._always: list[Tensor] = []
        self._finite = torch.ones((), dtype=torch.bool, device=call.z.device)

    def on_call(self, call: PoolCall) -> None:
        low, high = extremes(self._rows(call.pooled))
        # of the vertices: is the window dead at all, alive at all, and this entry a winner at all of them?
        always = [high <= 0, low > 0]
        bar = torch.where(call.pooled > 0, call.pooled, -torch.inf)
        lead = torch.empty_like(bar)
        for entry in self._windows.entries(call.z):
            torch.sub(entry, bar, out=lead)
            always.append(reduce_in_memory_order(self._rows(lead), _lowest) >= 0)
        self._always = [a & b for a, b in zip(always, self._always, strict=True)] if self._always else always
        self._finite &= (low.isfinite() & high.isfinite()).all()

    def _rows(self, vertices: Tensor) -> Tensor:
        return vertices.unflatten(0, (-1, self._points))

    def count(self) -> PoolCount:
        dead, alive, *wins = self._always
        switches, signs = count_per_point(~torch.stack(wins).any(0)), count_per_point(~(dead | alive))
        return PoolCount(self._layer, dead[0].numel(), switches.unsqueeze(0), signs.unsqueeze(0), self._finite)


class TangentPool:
    """One call to first order: the smallest radius at which a living challenger meets the centre's winner."""

    def __init__(self, call: PoolCall, pooled: Dual) -> None:
        self.source = call.source
        self._layer = call.layer
        self._windows = Windows(call.pool, call.z, call.pooled, call.arguments)
        # copied, because an activation may follow in place
        self._top = pooled.primal.clone()
        self._critical = torch.full_like(self._top, torch.inf)
        self._reach = torch.zeros_like(self._top)

    def on_call(self, z: Dual, pooled: Dual) -> None:
        """Directions seen before keep what they have found, so that memory grows with neither P nor the radii."""
        top, slopes = pooled.primal, pooled.tangent.flatten(0, 1)
        apart = torch.empty_like(slopes)
        values, tangents = self._windows.entries(z.primal), self._windows.entries(z.tangent.flatten(0, 1))
        for value, tangent in zip(values, tangents, strict=True):
            torch.sub(tangent, slopes, out=apart).abs_()
            reach = reduce_in_memory_order(apart.unflatten(0, (-1, len(top))), _highest).to(top.dtype)
            # the winner itself, and its twins, have neither gap nor reach
            met = torch.where((value > 0) & (reach > 0), (top - value) / reach, torch.inf)
            self._critical = torch.minimum(self._critical, met)
        if self.source is None:
            self._reach = torch.maximum(self._reach, max_magnitude(pooled.tangent, top))

    def count(self, radii: Sequence[float], z: Tensor | None = None, reach: Tensor | None = None) -> PoolCount:
        """Counts at every radius.

        Args:
            radii: at which to count.
            z, reach: pre-activations and their reach in the layer `source`, where there is one.
        """
        top, far = (self._top, self._reach) if z is None or reach is None else self._winners(z, reach)
        switches = torch.stack([count_per_point(self._critical < radius) for radius in radii])
        signs = torch.stack([count_per_point(top.abs() < radius * far) for radius in radii])
        finite = (self._top.isfinite() & self._reach.isfinite()).all()
        return PoolCount(self._layer, top[0].numel(), switches, signs, finite)

    def _winners(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Of each window the largest pre-activation and its reach; where that is below 0 a ReLU has erased both."""
        top = torch.full_like(self._top, -torch.inf)
        far = torch.zeros_like(top)
        for entry, size in zip(self._windows.entries(z, -torch.inf), self._windows.entries(reach), strict=True):
            far = torch.where(entry > top, size, far)
            top = torch.maximum(entry, top)
        return top, far


def _lowest(flat: Tensor) -> Tensor:
    return flat.amin(0)


def _highest(flat: Tensor) -> Tensor:
    return flat.amax(0)


def max_magnitude(tangents: Tensor, like: Tensor) -> Tensor:
    """Elementwise largest size over the first dimension, in the dtype of `like`."""
    low, high = extremes(tangents)
    return torch.maximum(high, -low).to(like.dtype)
