"""Where the windows of a max-pool find their entries, whatever its stride, padding, dilation or size of output."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.units import Pool


class _Axis(NamedTuple):
    """One pooled dimension: zeros in front and behind, and for each place in a window where it finds its entries."""

    front: int
    behind: int
    places: tuple[slice | Tensor, ...]


class Windows:
    """The entries of every window of one max-pool call.

    Args:
        pool: what is called.
        z, pooled: its input and output; only their shapes count.
        arguments: as in `PoolCall`.
    """

    def __init__(self, pool: Pool, z: Tensor, pooled: Tensor, arguments: tuple[tuple[int, ...], ...] | None) -> None:
        self._axes: list[_Axis] = []
        sizes, outs = z.shape[-pool.spatial :], pooled.shape[-pool.spatial :]
        for axis, (size, out) in enumerate(zip(sizes, outs, strict=True)):
            if arguments is not None:
                self._axes.append(_regular(size, out, *(values[axis] for values in arguments)))
            elif size % out == 0:
                self._axes.append(_regular(size, out, size // out, size // out, 0, 1))
            else:
                self._axes.append(_adaptive(size, out, z.device))

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
