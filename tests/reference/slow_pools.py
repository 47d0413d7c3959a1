"""Max-pool switches the slow and obvious way: one point, one window, Python floats.

A net tells the pre-activations that its pools see, before any ReLU; the windows are listed from the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import ceil, floor

import torch
from torch import Tensor

Window = list[int]
Pooled = Callable[[Tensor], Tensor]


def regular(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> list[Window]:
    """The places along one dimension that each window covers, padding left out."""
    steps = (size + 2 * padding - dilation * (kernel - 1) - 1) / stride
    starts = [index * stride - padding for index in range((ceil if ceil_mode else floor)(steps) + 1)]
    # a window may hang over the end, not begin behind it
    starts = [start for start in starts if not ceil_mode or start < size]
    return [
        [start + place * dilation for place in range(kernel) if 0 <= start + place * dilation < size]
        for start in starts
    ]


def adaptive(size: int, out: int) -> list[Window]:
    return [list(range(floor(index * size / out), ceil((index + 1) * size / out))) for index in range(out)]


def windows(channels: int, sizes: tuple[int, ...], axes: list[list[Window]]) -> list[Window]:
    """Flat places (channel, *sizes) of every window, in the order of the pooled output."""
    listed = []
    for channel in range(channels):
        for axis in product(*axes):
            places = []
            for place in product(*axis):
                flat = channel
                for size, index in zip(sizes, place, strict=True):
                    flat = flat * size + index
                places.append(flat)
            listed.append(places)
    return listed


def vertex_pool(pooled: Pooled, x: Tensor, frame: Tensor, radius: float, listed: list[Window]) -> tuple[int, int]:
    """One point x (...): (switches, changes of sign) over its vertices."""
    vertices = [x + sign * radius * v.reshape(x.shape) for v in frame for sign in (1.0, -1.0)]
    seen = [[max(value, 0.0) for value in pooled(vertex.unsqueeze(0)).flatten().tolist()] for vertex in vertices]
    switches = signs = 0
    for window in listed:
        tops = [max(values[place] for place in window) for values in seen]
        always = [all(values[place] == top for values, top in zip(seen, tops, strict=True)) for place in window]
        switches += not any(always)
        signs += len({top > 0 for top in tops}) > 1
    return switches, signs


def tangent_pool(pooled: Pooled, x: Tensor, frame: Tensor, radius: float, listed: list[Window]) -> tuple[int, int]:
    """One point x (...): (switches, changes of sign) to first order, by `torch.func.jvp`."""
    point = x.unsqueeze(0)
    slopes = []
    for v in frame:
        value, slope = torch.func.jvp(pooled, (point,), (v.reshape(point.shape),))
        slopes.append(slope.flatten().tolist())
    values = value.flatten().tolist()
    switches = signs = 0
    for window in listed:
        winner = max(window, key=lambda place: values[place])
        top = values[winner]
        signs += abs(top) < radius * max(abs(row[winner]) for row in slopes)
        met = False
        for place in window:
            reach = max(abs(row[winner] - row[place]) for row in slopes)
            met |= values[place] > 0 and top - values[place] < radius * reach
        switches += top > 0 and met
    return switches, signs
