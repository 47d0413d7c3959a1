"""ResNet 20 and 56: the thin CIFAR nets of the ResNet paper, with shortcuts that have no parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.models import register
from grokkit.models.parts import InputShape, check_input, check_positive, he_init


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut of option A: every second pixel, missing channels filled with zeros."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.missing = width - inputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.missing == 0:
            return x
        before = self.missing // 2
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, before, self.missing - before))


class ThinResNet(nn.Module):
    """3x3 stem, three stages of `blocks` residual blocks each, global average pool, linear layer."""

    def __init__(self, blocks: int, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        stages, inputs = [], width
        for stage in range(3):
            outputs = width * 2**stage
            first = Block(inputs, outputs, 1 if stage == 0 else 2)
            stages.append(nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1))))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stages(x)
        return self.linear(self.pool(x).flatten(1))


def _build(name: str, blocks: int, input_shape: InputShape, classes: int, width: int) -> nn.Module:
    channels, _, _ = check_input(name, input_shape, classes)
    check_positive(name, "width", [width])
    net = ThinResNet(blocks, channels, classes, width)
    he_init(net, "fan_out")
    return net


@register("resnet20")
def resnet20(input_shape: InputShape, classes: int, *, width: int = 16) -> nn.Module:
    """ResNet-20 of the CIFAR section of the paper, in He's fan-out init.

    Args:
        input_shape: channels, height, width; any size.
        classes: number of logits.
        width: channels of the first stage; each later stage doubles them.

    Raises:
        UsageError: a size that is not an int >= 1.

    Cost: 0.27 M parameters and 0.04 GMAC for 3x32x32.
    Source: He et al. 2016, arXiv:1512.03385, section 4.2.
    """
    return _build("resnet20", 3, input_shape, classes, width)


@register("resnet56")
def resnet56(input_shape: InputShape, classes: int, *, width: int = 16) -> nn.Module:
    """ResNet-56 of the CIFAR section of the paper; arguments, errors and source as `resnet20`.

    Cost: 0.85 M parameters and 0.13 GMAC for 3x32x32.
    """
    return _build("resnet56", 9, input_shape, classes, width)
