"""Max-pool switches: windows that no single entry wins all over a neighbourhood, and pooled units that change sign.

Entries at or below 0 are taken as 0, because a ReLU before or behind the pool cuts them off; the two orders then have
the same switches and the same signs. Padding, taken as 0 too, wins only where all entries do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.spline.dual import Dual
from grokkit.spline.passes import PoolCount, extremes, in_memory_order, per_point
from grokkit.units import PoolCall


class _Axis(NamedTuple):
    """One pooled dimension: zeros in front and behind, and for each place in a window where it finds its entries."""

    front: int
    behind: int
    places: tuple[slice | Tensor, ...]


class Windows:
    """The entries of every window of one max-pool call."""

    def __init__(self, call: PoolCall) -> None:
        spatial = call.pool.spatial
        self._axes: list[_Axis] = []
        for axis, (size, out) in enumerate(zip(call.z.shape[-spatial:], call.pooled.shape[-spatial:], strict=True)):
            if call.arguments is not None:
                self._axes.append(_regular(size, out, *(values[axis] for values in call.arguments)))
            elif size % out == 0:
                self._axes.append(_regular(size, out, size // out, size // out, 0, 1))
            else:
                self._axes.append(_adaptive(size, out, call.z.device))

    def entries(self, x: Tensor, outside: float = 0.0) -> Iterator[Tensor]:
        """One tensor (..., *windows) for each place in a window; `outside` is what padding holds."""
        pads = [pad for axis in reversed(self._axes) for pad in (axis.front, axis.behind)]
        if any(pads):
            x = F.pad(x, pads, value=outside)
        for places in product(*(axis.places for axis in self._axes)):
            entry = x
            for left, place in enumerate(places):
                entry = entry[(..., place, *(slice(None),) * (len(places) - 1 - left))]
            yield entry


def _regular(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> _Axis:
    length = (out - 1) * stride + 1
    behind = length + (kernel - 1) * dilation - size - padding
    starts = range(0, kernel * dilation, dilation)
    return _Axis(padding, max(0, behind), tuple(slice(start, start + length, stride) for start in starts))


def _adaptive(size: int, out: int, device: torch.device) -> _Axis:
    index = torch.arange(out, device=device)
    first, last = index * size // out, -(-(index + 1) * size // out)
    width = int((last - first).max())
    places = (first + place for place in range(width))
    return _Axis(0, 1, tuple(torch.where(place < last, place, size) for place in places))


class VertexPool:
    """One call over the vertices: which entries have won everywhere so far, and the range of the pooled maxima."""

    def __init__(self, points: int, call: PoolCall) -> None:
        self._points = points
        self._layer = call.layer
        self._windows = Windows(call)
        self._always: list[Tensor] = []
        self._finite = torch.ones((), dtype=torch.bool, device=call.z.device)

    def see(self, call: PoolCall) -> None:
        top = call.pooled.clamp_min(0)
        # of the vertices: is the window dead at all, alive at all, and this entry a winner at all of them?
        masks = [top <= 0, top > 0, *(entry == top for entry in self._windows.entries(call.z.clamp_min(0)))]
        always = [self._all(mask) for mask in masks]
        self._always = [a & b for a, b in zip(always, self._always, strict=True)] if self._always else always
        self._finite &= top.isfinite().all()

    def _all(self, mask: Tensor) -> Tensor:
        """Over the vertices of each point; as bytes, because the minimum of those is 20 times as fast as `all`."""
        rows = mask.view(torch.uint8).unflatten(0, (-1, self._points))
        return in_memory_order(rows, lambda flat: flat.amin(0)).view(torch.bool)

    def count(self) -> PoolCount:
        dead, alive, *wins = self._always
        switches, signs = per_point(~torch.stack(wins).any(0)), per_point(~(dead | alive))
        return PoolCount(self._layer, dead[0].numel(), switches.unsqueeze(0), signs.unsqueeze(0), self._finite)


class TangentPool:
    """One call to first order: the smallest radius at which a living challenger meets the centre's winner."""

    def __init__(self, call: PoolCall, pooled: Dual) -> None:
        self.source = call.source
        self._layer = call.layer
        self._windows = Windows(call)
        # copied, because an activation may follow in place
        self._top = pooled.primal.clone()
        self._critical = torch.full_like(self._top, torch.inf)
        self._reach = torch.zeros_like(self._top)

    def see(self, z: Dual, pooled: Dual) -> None:
        """Directions seen before keep what they have found, so that memory grows with neither P nor the radii."""
        top, size = pooled.primal, len(z.tangent)
        slopes = pooled.tangent.flatten(0, 1)
        values, tangents = self._windows.entries(z.primal), self._windows.entries(z.tangent.flatten(0, 1))
        for value, tangent in zip(values, tangents, strict=True):
            reach = largest((tangent - slopes).unflatten(0, (size, -1)), top)
            # the winner itself, and its twins, have neither gap nor reach
            met = torch.where((value > 0) & (reach > 0), (top - value) / reach, torch.inf)
            self._critical = torch.minimum(self._critical, met)
        self._reach = torch.maximum(self._reach, largest(pooled.tangent, top))

    def count(self, radii: Sequence[float], z: Tensor | None = None, reach: Tensor | None = None) -> PoolCount:
        """Counts at every radius.

        Args:
            radii: at which to count.
            z, reach: pre-activations and their reach in the layer `source`, where there is one.
        """
        top, far = (self._top, self._reach) if z is None or reach is None else self._winners(z, reach)
        critical = torch.where(self._top > 0, self._critical, torch.inf)
        switches = torch.stack([per_point(critical < radius) for radius in radii])
        signs = torch.stack([per_point(top.abs() < radius * far) for radius in radii])
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


def largest(tangents: Tensor, like: Tensor) -> Tensor:
    """Elementwise largest size over the first dimension, in the dtype of `like`."""
    low, high = extremes(tangents)
    return torch.maximum(high, -low).to(like.dtype)
