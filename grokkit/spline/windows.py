"""Index the entries of max-pool windows, for any stride, padding, dilation or adaptive output size."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.operations import Pool


class _Axis(NamedTuple):
    """One pooled dimension: padding before and after, and for each position in a window the entries of all windows."""

    before: int
    after: int
    positions: tuple[slice | Tensor, ...]


class Windows:
    """The entries of every window of one max-pool call.

    Args:
        pool: the kind of max-pooling.
        z, pooled: its input and output; only their shapes and device are used.
        arguments: as in `PoolCall`.
    """

    def __init__(self, pool: Pool, z: Tensor, pooled: Tensor, arguments: tuple[tuple[int, ...], ...] | None) -> None:
        self._axes: list[_Axis] = []
        sizes, outs = z.shape[-pool.spatial :], pooled.shape[-pool.spatial :]
        for axis, (size, out) in enumerate(zip(sizes, outs, strict=True)):
            if arguments is not None:
                self._axes.append(_make_regular_axis(size, out, *(values[axis] for values in arguments)))
            elif size % out == 0:
                self._axes.append(_make_regular_axis(size, out, size // out, size // out, 0, 1))
            else:
                self._axes.append(_make_adaptive_axis(size, out, z.device))

    def iter_entries(self, x: Tensor, outside: float = 0.0) -> Iterator[Tensor]:
        """Yield one tensor (..., *windows) for each position in a window; `outside` is the value of the padding."""
        pads = [pad for axis in reversed(self._axes) for pad in (axis.before, axis.after)]
        if any(pads):
            x = F.pad(x, pads, value=outside)
        for positions in product(*(axis.positions for axis in self._axes)):
            entry = x
            for axis, position in enumerate(positions):
                entry = entry[(..., position, *(slice(None),) * (len(positions) - 1 - axis))]
            yield entry


def _make_regular_axis(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> _Axis:
    length = (out - 1) * stride + 1
    after = length + (kernel - 1) * dilation - size - padding
    starts = range(0, kernel * dilation, dilation)
    return _Axis(padding, max(0, after), tuple(slice(start, start + length, stride) for start in starts))


def _make_adaptive_axis(size: int, out: int, device: torch.device) -> _Axis:
    index = torch.arange(out, device=device)
    first, last = index * size // out, -(-(index + 1) * size // out)
    width = int((last - first).max())
    positions = (first + position for position in range(width))
    return _Axis(0, 1, tuple(torch.where(position < last, position, size) for position in positions))
