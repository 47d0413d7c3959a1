"""ResNet-9: eight convolutions and a linear layer, designed to reach 90 % on CIFAR-10 in minutes."""

from __future__ import annotations

import math

from torch import Tensor, nn

from grokkit.errors import UsageError
from grokkit.models import register
from grokkit.models.parts import InputShape, validate_input, validate_positive


def _make_conv_block(inputs: int, outputs: int, *, pool: bool = False) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class ResNet9(nn.Module):
    """Four convolution blocks with two residual pairs; see `resnet9`."""

    def __init__(self, input_shape: InputShape, classes: int, width: int, head_scale: float) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        self.conv1 = _make_conv_block(channels, width)
        self.conv2 = _make_conv_block(width, 2 * width, pool=True)
        self.res1 = nn.Sequential(_make_conv_block(2 * width, 2 * width), _make_conv_block(2 * width, 2 * width))
        self.conv3 = _make_conv_block(2 * width, 4 * width, pool=True)
        self.conv4 = _make_conv_block(4 * width, 8 * width, pool=True)
        self.res2 = nn.Sequential(_make_conv_block(8 * width, 8 * width), _make_conv_block(8 * width, 8 * width))
        # The whole map after three halvings: 4x4 at 32x32, as published.
        pool = nn.MaxPool2d((height // 8, breadth // 8))
        self.classifier = nn.Sequential(pool, nn.Flatten(), nn.Linear(8 * width, classes))
        self.head_scale = head_scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes)."""
        x = self.conv2(self.conv1(x))
        x = self.res1(x) + x
        x = self.conv4(self.conv3(x))
        x = self.res2(x) + x
        logits: Tensor = self.classifier(x)
        return logits if self.head_scale == 1 else logits * self.head_scale


@register("resnet9")
def resnet9(input_shape: InputShape, classes: int, *, width: int = 64, head_scale: float = 1.0) -> nn.Module:
    """Build the ResNet-9 of the public "90 % in 5 minutes" CIFAR-10 notebooks, in PyTorch's default init.

    Args:
        input_shape: channels, height, width; images of at least 8x8.
        classes: number of logits.
        width: channels of the first block; the later ones have 2, 4 and 8 times as many.
        head_scale: fixed factor on the logits, above 0. Page uses 1/8, and his SGD learning rates assume it.

    Raises:
        UsageError: images below 8x8, sizes that are not ints >= 1, or a factor that is not above 0.

    Cost: 6.57 M parameters and 0.38 GMAC for 3x32x32.
    Source: Jovian notebook 05b-cifar10-resnet, after Page 2018, "How to train your ResNet".
    """
    shape = validate_input("resnet9", input_shape, classes, smallest=8)
    validate_positive("resnet9", "width", [width])
    if not (math.isfinite(head_scale) and head_scale > 0):
        raise UsageError(f"model 'resnet9': `head_scale` must be finite and above 0; got {head_scale}")
    return ResNet9(shape, classes, width, head_scale)
