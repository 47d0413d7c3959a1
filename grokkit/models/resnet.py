"""ResNet 18, 34 and 50 with the CIFAR stem: a 3x3 convolution of stride 1 and no max-pool.

Built in contiguous format. On a CPU, channels_last needs `width` >= 8 (see `classifier.channels_last_is_safe`).
"""

from __future__ import annotations

from torch import Tensor, nn

from grokkit.models import register
from grokkit.models.parts import InputShape, validate_input, validate_positive


def make_projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Make the shortcut of option B: the identity if shapes agree, else a strided 1x1 convolution with BatchNorm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = self.make_shortcut(inputs, width, stride)
        self.relu2 = nn.ReLU()

    def make_shortcut(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Return the module of the shortcut path."""
        return make_projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: Tensor = self.relu2(out + self.shortcut(x))
        return result


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the 3x3 one has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = make_projection(inputs, 4 * width, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, 4 width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        result: Tensor = self.relu3(out + self.shortcut(x))
        return result


class ResNet(nn.Module):
    """3x3 stem, one stage of residual blocks per entry of `blocks`, global average pool, linear layer."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        channels: int,
        classes: int,
        width: int,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            layers = []
            for stride in strides:
                layers.append(block(inputs, outputs, stride))
                inputs = outputs * block.expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stages(x)
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


def _build(
    name: str,
    block: type[BasicBlock] | type[Bottleneck],
    blocks: tuple[int, ...],
    input_shape: InputShape,
    classes: int,
    width: int,
) -> nn.Module:
    channels, _, _ = validate_input(name, input_shape, classes)
    validate_positive(name, "width", [width])
    return ResNet(block, blocks, channels, classes, width)


@register("resnet18")
def resnet18(input_shape: InputShape, classes: int, *, width: int = 64) -> nn.Module:
    """Build ResNet-18 with the CIFAR stem, in PyTorch's default init.

    This is not torchvision's net, which costs a fifteenth of this one at 32x32 and is less accurate.

    Args:
        input_shape: channels, height, width; any size.
        classes: number of logits.
        width: channels of the first stage; doubled in each later stage.

    Raises:
        UsageError: a size that is not an int >= 1.

    Cost: 11.17 M parameters and 0.56 GMAC for 3x32x32.
    Source: He et al. 2016, arXiv:1512.03385; the stem as in common CIFAR implementations.
    """
    return _build("resnet18", BasicBlock, (2, 2, 2, 2), input_shape, classes, width)


@register("resnet34")
def resnet34(input_shape: InputShape, classes: int, *, width: int = 64) -> nn.Module:
    """Build ResNet-34 with the CIFAR stem; arguments, errors and source as in `resnet18`.

    Cost: 21.28 M parameters and 1.16 GMAC for 3x32x32.
    """
    return _build("resnet34", BasicBlock, (3, 4, 6, 3), input_shape, classes, width)


@register("resnet50")
def resnet50(input_shape: InputShape, classes: int, *, width: int = 64) -> nn.Module:
    """Build ResNet-50 with the CIFAR stem; arguments, errors, source as in `resnet18`; block outputs have 4x channels.

    Cost: 23.52 M parameters and 1.30 GMAC for 3x32x32.
    """
    return _build("resnet50", Bottleneck, (3, 4, 6, 3), input_shape, classes, width)
