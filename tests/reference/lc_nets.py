"""Small nets that tell their own pre-activations: `net(x, taps)` appends each one before its activation."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def draw(*shape: int, seed: int = 1) -> Tensor:
    """Standard normal float64 numbers, always the same for one seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _tap(taps: list[Tensor] | None, z: Tensor) -> Tensor:
    if taps is not None:
        taps.append(z.clone())
    return z


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Float64, eval, BatchNorm with statistics that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name == "running_var" or (isinstance(module, nn.BatchNorm2d) and name == "weight"):
                tensor.data = 0.5 + noise.abs()
            else:
                tensor.data = noise / max(1, tensor[0].numel()) ** 0.5
    return net.double().eval()


class MLP(nn.Module):
    def __init__(self, sizes: tuple[int, ...] = (6, 10, 8, 7, 3), bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b, bias) for a, b in pairwise(sizes))

    def forward(self, x: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(_tap(taps, layer(x)))
        return self.layers[-1](x)


class ResidualNet(nn.Module):
    """Convolution, BatchNorm, max-pool, strided shortcut, one re-used in-place ReLU, functional and method calls."""

    def __init__(self, width: int = 4, channels: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(width) for _ in range(3))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2, bias=False)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        x = F.max_pool2d(self.relu(_tap(taps, self.bn1(self.stem(x)))), 3, 2, 1)
        identity = x
        out = self.relu(_tap(taps, self.bn2(self.conv1(x))))
        out = self.bn3(self.conv2(out))
        out += identity
        out = self.relu(_tap(taps, out))
        shared = self.shortcut(out)
        # in place on a tensor that the sum below reads through another name
        trunk = F.leaky_relu(_tap(taps, self.conv3(self.dropout(out))), 0.1)
        trunk = torch.cat([trunk[:, :3] * 2.0, 1.0 - trunk[:, 3:]], 1).add_(shared)
        return self.head(_tap(taps, trunk).relu_().mean((2, 3)))
