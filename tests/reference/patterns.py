"""What a net does at points, seen from outside: the sign of each pre-activation, the winner of each live window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RELUS = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.leaky_relu)

POOLS = (F.max_pool1d, F.max_pool2d, F.adaptive_max_pool2d)


class _Patterns(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in RELUS:
            self.seen.append((args[0] > 0).flatten(1).to(torch.int64))
        elif func in POOLS:
            value, winner = func(*args, **{**kwargs, "return_indices": True})
            # the first of equal entries; a window without a value above 0 is dead
            self.seen.append(torch.where(value > 0, winner, -1).flatten(1))
        return func(*args, **kwargs)


def patterns(net: nn.Module, points: Tensor) -> Tensor:
    """int64 (point, unit or window)."""
    rows = []
    for part in points.split(256):
        with torch.no_grad(), _Patterns() as mode:
            net(part.clone())
        rows.append(torch.cat(mode.seen, dim=1))
    return torch.cat(rows)


def along(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points a + t (b - a)."""
    return torch.lerp(a, b, t.view(-1, *(1,) * a.dim()))
