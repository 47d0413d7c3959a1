"""Where a network bends, looked at from outside, and where counted units could explain it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grokkit.units import Call, PoolCall, intercept

RELATIVE = 1e-10
"""Second differences below this share of the values are rounding errors of float64."""
SMALLEST = 1.0
"""Values below this count as this: where values cancel, what is left are rounding errors."""


def find_bends(function: Callable[[Tensor], Tensor], line: Tensor) -> Tensor:
    """bool (T - 2,): whether the values at three neighbouring points of a line (T, ...) are not on one chord."""
    with torch.no_grad():
        values = function(line).flatten(1).double()
    gaps = (values[2:] - 2 * values[1:-1] + values[:-2]).abs()
    size = values.abs().amax().clamp_min(SMALLEST)
    return (~(gaps <= RELATIVE * size)).any(1)


def find_explained(model: nn.Module, line: Tensor) -> Tensor:
    """bool (T - 2,): whether a counted unit changes its side, or a pool its winner, within three points."""
    states: list[Tensor] = []

    def on_call(call: Call) -> None:
        z = call.z.detach().flatten(1)
        states.extend((z - kink).sign() for kink in call.kinks)
        if not call.activation.is_affine:
            states.append(torch.arange(len(z), dtype=torch.float64)[:, None])  # bends everywhere, as is known

    def on_pool(call: PoolCall) -> None:
        if call.arguments is None:
            winners = getattr(F, f"{call.pool.name}_with_indices")(call.z, call.pooled.shape[-call.pool.spatial :])[1]
        else:
            kernel, stride, padding, dilation = call.arguments
            ceil = _rounds_up(call)
            winners = getattr(F, f"{call.pool.name}_with_indices")(call.z, kernel, stride, padding, dilation, ceil)[1]
        states.append(winners.flatten(1).double())

    with torch.no_grad(), intercept(model, on_call, on_pool, len(line)):
        model(line.clone())
    changed = torch.zeros(len(line) - 1, dtype=torch.bool)
    for state in states:
        changed |= (state[1:] != state[:-1]).any(1)
    return changed[1:] | changed[:-1]


def _rounds_up(call: PoolCall) -> bool:
    assert call.arguments is not None
    kernel, stride, padding, dilation = (values[0] for values in call.arguments)
    size = call.z.shape[-call.pool.spatial]
    return call.pooled.shape[-call.pool.spatial] > (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def draw_line(shape: tuple[int, ...], points: int, generator: torch.Generator, half: float = 2.0) -> Tensor:
    """(points, *shape) float64: points at equal distances on a random line through a random centre."""
    centre, direction = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.linspace(-half, half, points, dtype=torch.float64).view(-1, *(1,) * len(shape))
    return centre + t * direction
