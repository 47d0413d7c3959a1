"""ResNet 20 and 56: the thin CIFAR nets of the ResNet paper, with parameter-free shortcuts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.models import register
from grokkit.models.parts import InputShape, he_init, validate_input, validate_positive
from grokkit.models.resnet import BasicBlock, ResNet


class PaddedShortcut(nn.Module):
    """Shortcut of option A: every `stride`-th pixel, missing channels filled with zeros, no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.missing = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        if self.stride == 1 and self.missing == 0:
            return x
        before = self.missing // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))


class ThinBlock(BasicBlock):
    """Basic block with a shortcut of option A."""

    def make_shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Return a shortcut without parameters."""
        return PaddedShortcut(inputs, outputs, stride)


def _build(name: str, blocks: int, input_shape: InputShape, classes: int, width: int) -> nn.Module:
    channels, _, _ = validate_input(name, input_shape, classes)
    validate_positive(name, "width", [width])
    net = ResNet(ThinBlock, (blocks,) * 3, channels, classes, width)
    he_init(net, "fan_out")
    return net


@register("resnet20")
def resnet20(input_shape: InputShape, classes: int, *, width: int = 16) -> nn.Module:
    """Build ResNet-20 of the CIFAR section of the paper, in He's fan-out init.

    Args:
        input_shape: channels, height, width; any size.
        classes: number of logits.
        width: channels of the first stage; doubled in each later stage.

    Raises:
        UsageError: a size that is not an int >= 1.

    Cost: 0.27 M parameters and 0.04 GMAC for 3x32x32.
    Source: He et al. 2016, arXiv:1512.03385, section 4.2.
    """
    return _build("resnet20", 3, input_shape, classes, width)


@register("resnet56")
def resnet56(input_shape: InputShape, classes: int, *, width: int = 16) -> nn.Module:
    """Build ResNet-56 of the CIFAR section of the paper; arguments, errors and source as in `resnet20`.

    Cost: 0.85 M parameters and 0.13 GMAC for 3x32x32.
    """
    return _build("resnet56", 9, input_shape, classes, width)
