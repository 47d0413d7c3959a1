"""Network in Network, CIFAR-10 version."""

from __future__ import annotations

from torch import nn

from grokkit.errors import UsageError
from grokkit.models import register
from grokkit.models.parts import InputShape, he_init, validate_input


def _make_mlpconv(inputs: int, kernel: int, widths: tuple[int, int, int]) -> list[nn.Module]:
    first, second, third = widths
    return [
        nn.Conv2d(inputs, first, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.Conv2d(first, second, 1),
        nn.ReLU(),
        nn.Conv2d(second, third, 1),
        nn.ReLU(),
    ]


@register("nin")
def nin(input_shape: InputShape, classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Build three blocks of one spatial and two 1x1 convolutions; the last block's maps are averaged to logits.

    The published net ends in a ReLU on these maps; it is omitted here, because a class whose map is negative
    everywhere would get no gradient. He init (fan-in), without which activations vanish in nine layers without
    BatchNorm.

    Args:
        input_shape: channels, height, width; any size.
        classes: number of logits.
        dropout: dropout probability between the blocks, in 0..1 (excluding 1).

    Raises:
        UsageError: a `dropout` outside that range.

    Cost: 0.97 M parameters and 0.22 GMAC for 3x32x32 and 10 classes.
    Source: Lin, Chen and Yan 2014, arXiv:1312.4400.
    """
    channels, _, _ = validate_input("nin", input_shape, classes)
    if not 0 <= dropout < 1:
        raise UsageError(f"model 'nin': `dropout` must be at least 0 and below 1; got {dropout}")
    net = nn.Sequential(
        *_make_mlpconv(channels, 5, (192, 160, 96)),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.Dropout(dropout),
        *_make_mlpconv(96, 5, (192, 192, 192)),
        nn.AvgPool2d(3, stride=2, padding=1),
        nn.Dropout(dropout),
        *_make_mlpconv(192, 3, (192, 192, classes))[:-1],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    he_init(net, "fan_in")
    return net
