"""Local complexity the slow and obvious way: one point, one unit, one vertex or direction after the other.

A net tells its own pre-activations (`taps`), so nothing here relies on the interception of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Taps = list[Tensor]
Preactivations = Callable[[Tensor], tuple[Tensor, ...]]


def preactivations_of(net: Callable[[Tensor, Taps], Tensor]) -> Preactivations:
    """x (1, ...) -> every tensor that enters an activation, in call order."""

    def preactivations(x: Tensor) -> tuple[Tensor, ...]:
        taps: Taps = []
        net(x.clone(), taps)
        return tuple(taps)

    return preactivations


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def vertex_count(
    preactivations: Preactivations, x: Tensor, frame: Tensor, radius: float, kinks: Sequence[float] = (0.0,)
) -> list[int]:
    """One point x (...): crossings in each layer, by comparing the signs at the 2 P vertices."""
    vertices = [x + sign * radius * v.reshape(x.shape) for v in frame for sign in (1.0, -1.0)]
    seen = [[z.flatten().tolist() for z in preactivations(vertex.unsqueeze(0))] for vertex in vertices]
    counts = []
    for layer in range(len(seen[0])):
        count = 0
        for unit in range(len(seen[0][layer])):
            for kink in kinks:
                signs = {_sign(values[layer][unit] - kink) for values in seen}
                count += len(signs) > 1
        counts.append(count)
    return counts


def tangents(preactivations: Preactivations, x: Tensor, frame: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
    """For each layer: its z and its derivative along every direction, by `torch.func.jvp`."""
    along = []
    for v in frame:
        point = x.unsqueeze(0)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no forward-mode derivative
            values, slopes = torch.func.jvp(preactivations, (point,), (v.reshape(point.shape),))
        along.append(slopes)
    return [(z, [slopes[layer] for slopes in along]) for layer, z in enumerate(values)]


def tangent_count(
    preactivations: Preactivations, x: Tensor, frame: Tensor, radius: float, kinks: Sequence[float] = (0.0,)
) -> list[int]:
    """One point x (...): units with |z - kink| < r max_p |J v_p| in each layer."""
    counts = []
    for z, slopes in tangents(preactivations, x, frame):
        count = 0
        rows = [slope.flatten().tolist() for slope in slopes]
        for unit, value in enumerate(z.flatten().tolist()):
            reach = max(abs(row[unit]) for row in rows)
            for kink in kinks:
                count += abs(value - kink) < radius * reach
        counts.append(count)
    return counts
