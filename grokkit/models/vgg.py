"""VGG 11, 13, 16 and 19 for 32x32 images: convolutions, five max-pools, one linear layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from grokkit.models import register
from grokkit.models.parts import InputShape, he_init, validate_input, validate_positive

CONVOLUTION_COUNTS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> number of convolutions before each of the five max-pools."""
WIDTHS = (1, 2, 4, 8, 8)
"""Channels of each of the five stages, in units of `width`."""


def _build(depth: int, batch_norm: bool, input_shape: InputShape, classes: int, width: int) -> nn.Module:
    name = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
    channels, *side = validate_input(name, input_shape, classes, smallest=16)
    validate_positive(name, "width", [width])
    layers: list[nn.Module] = []
    for stage, (convolutions, factor) in enumerate(zip(CONVOLUTION_COUNTS[depth], WIDTHS, strict=True)):
        for _ in range(convolutions):
            layers.append(nn.Conv2d(channels, factor * width, 3, padding=1))
            layers += [nn.BatchNorm2d(factor * width), nn.ReLU()] if batch_norm else [nn.ReLU()]
            channels = factor * width
        last = stage == len(WIDTHS) - 1
        # The last pool covers the whole remaining map: 2x2 at 32x32, as published, and 1x1 at 28x28.
        layers.append(nn.MaxPool2d(tuple(side)) if last else nn.MaxPool2d(2))
        side = [size // 2 for size in side]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, classes))
    he_init(net, "fan_out")
    return net


def _register_vgg(depth: int, batch_norm: bool) -> Callable[..., nn.Module]:
    @register(f"vgg{depth}_bn" if batch_norm else f"vgg{depth}")
    def vgg(input_shape: InputShape, classes: int, *, width: int = 64) -> nn.Module:
        """Build a VGG with one linear layer after the last pool, in He's fan-out init.

        Without BatchNorm the init is decisive: with PyTorch's default the deeper nets stay at chance accuracy.

        Args:
            input_shape: channels, height, width; images of at least 16x16.
            classes: number of logits.
            width: channels of the first stage; the others have 2, 4, 8, 8 times as many.

        Raises:
            UsageError: images below 16x16, or sizes that are not ints >= 1.

        Cost: 9.23, 9.41, 14.72, 20.04 M parameters and 0.15, 0.23, 0.31, 0.40 GMAC (11, 13, 16, 19) at 32x32.
        Source: Simonyan and Zisserman 2015, arXiv:1409.1556; the small head as in common CIFAR implementations.
        """
        return _build(depth, batch_norm, input_shape, classes, width)

    return vgg


vgg11, vgg13, vgg16, vgg19 = (_register_vgg(depth, batch_norm=False) for depth in CONVOLUTION_COUNTS)
vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn = (_register_vgg(depth, batch_norm=True) for depth in CONVOLUTION_COUNTS)
