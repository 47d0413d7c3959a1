"""Count max-pool switches (windows whose winner changes over a neighbourhood) and pooled units that change sign.

Entries at or below 0 are treated as 0, because a ReLU before or after the pool cuts them off; both orders then have the
same switches and signs. Padding is also treated as 0, so it wins only if all entries tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grokkit.spline.dual import Dual
from grokkit.spline.passes import PoolCount, count_per_point, reduce_in_memory_order, reduce_min_max
from grokkit.spline.windows import Windows
from grokkit.units import PoolCall


class VertexPool:
    """Switches of one max-pool call over the vertices: which entries won at all of them so far."""

    def __init__(self, points: int, call: PoolCall) -> None:
        self._points = points
        self._layer = call.layer
        self._windows = Windows(call.pool, call.z, call.pooled, call.arguments)
        self._holds_everywhere: list[Tensor] = []
        self._finite = torch.ones((), dtype=torch.bool, device=call.z.device)

    def on_call(self, call: PoolCall) -> None:
        """Include a call on further vertices."""
        low, high = reduce_min_max(self._rows(call.pooled))
        # at all vertices of this call: the window is dead, the window is alive, and then each entry is a winner
        holds_everywhere = [high <= 0, low > 0]
        winner_value = torch.where(call.pooled > 0, call.pooled, -torch.inf)
        margin = torch.empty_like(winner_value)
        for entry in self._windows.iter_entries(call.z):
            torch.sub(entry, winner_value, out=margin)
            holds_everywhere.append(reduce_in_memory_order(self._rows(margin), _reduce_min) >= 0)
        self._holds_everywhere = (
            [a & b for a, b in zip(holds_everywhere, self._holds_everywhere, strict=True)]
            if self._holds_everywhere
            else holds_everywhere
        )
        self._finite &= (low.isfinite() & high.isfinite()).all()

    def _rows(self, vertices: Tensor) -> Tensor:
        return torch.unflatten(vertices, 0, (-1, self._points))

    def count(self) -> PoolCount:
        """Count switches and sign changes over all vertices."""
        dead, alive, *wins = self._holds_everywhere
        switches, signs = count_per_point(~torch.stack(wins).any(0)), count_per_point(~(dead | alive))
        return PoolCount(self._layer, dead[0].numel(), switches.unsqueeze(0), signs.unsqueeze(0), self._finite)


class TangentPool:
    """Switches of one max-pool call to first order.

    Keeps for each window the smallest radius at which another entry above 0 reaches the winner at the centre.
    """

    def __init__(self, call: PoolCall, pooled: Dual) -> None:
        self.source = call.source
        self._layer = call.layer
        self._windows = Windows(call.pool, call.z, call.pooled, call.arguments)
        # copied, because an activation may follow in place
        self._top = pooled.primal.clone()
        self._critical = torch.full_like(self._top, torch.inf)
        self._reach = torch.zeros_like(self._top)

    def on_call(self, z: Dual, pooled: Dual) -> None:
        """Include further directions in the running minimum, so that memory grows neither with P nor with the radii."""
        top, slopes = pooled.primal, pooled.tangent.flatten(0, 1)
        difference = torch.empty_like(slopes)
        values, tangents = self._windows.iter_entries(z.primal), self._windows.iter_entries(z.tangent.flatten(0, 1))
        for value, tangent in zip(values, tangents, strict=True):
            torch.sub(tangent, slopes, out=difference).abs_()
            reach = reduce_in_memory_order(torch.unflatten(difference, 0, (-1, len(top))), _reduce_max).to(top.dtype)
            # the winner itself, and entries equal to it, have zero gap and zero reach
            switch_radius = torch.where((value > 0) & (reach > 0), (top - value) / reach, torch.inf)
            self._critical = torch.minimum(self._critical, switch_radius)
        if self.source is None:
            self._reach = torch.maximum(self._reach, max_magnitude(pooled.tangent, top))

    def count(self, radii: Sequence[float], z: Tensor | None = None, reach: Tensor | None = None) -> PoolCount:
        """Count switches and sign changes at every radius.

        Args:
            radii: the radii.
            z, reach: pre-activations and their reach in the layer `source`; None if there is no such layer.
        """
        top, top_reach = (self._top, self._reach) if z is None or reach is None else self._find_winners(z, reach)
        switches = torch.stack([count_per_point(self._critical < radius) for radius in radii])
        signs = torch.stack([count_per_point(top.abs() < radius * top_reach) for radius in radii])
        finite = (self._top.isfinite() & self._reach.isfinite()).all()
        return PoolCount(self._layer, top[0].numel(), switches, signs, finite)

    def _find_winners(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """Find each window's largest pre-activation and its reach; the ReLU before the pool hides both below 0."""
        top = torch.full_like(self._top, -torch.inf)
        top_reach = torch.zeros_like(top)
        for entry, size in zip(
            self._windows.iter_entries(z, -torch.inf), self._windows.iter_entries(reach), strict=True
        ):
            top_reach = torch.where(entry > top, size, top_reach)
            top = torch.maximum(entry, top)
        return top, top_reach


def _reduce_min(flat: Tensor) -> Tensor:
    return flat.amin(0)


def _reduce_max(flat: Tensor) -> Tensor:
    return flat.amax(0)


def max_magnitude(tangents: Tensor, like: Tensor) -> Tensor:
    """Compute the elementwise largest magnitude over the first dimension, in the dtype of `like`."""
    low, high = reduce_min_max(tangents)
    return torch.maximum(high, -low).to(like.dtype)
