"""PreActResNet-18, the net of the publication on delayed robustness and local complexity.

Built in contiguous format. On a CPU, channels_last needs `width` >= 8 (see `classifier.channels_last_is_safe`).
"""

from __future__ import annotations

from torch import Tensor, nn

from grokkit.literals import NormLayer
from grokkit.models import register
from grokkit.models.parts import InputShape, make_norm, validate_input, validate_positive

NAME = "preact_resnet18"


class PreActBlock(nn.Module):
    """Normalisation, ReLU, convolution, twice; a 1x1 shortcut, if there is one, starts after the first ReLU."""

    def __init__(self, inputs: int, width: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.bn1 = make_norm(NAME, norm, inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn2 = make_norm(NAME, norm, width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        needs_shortcut = stride != 1 or inputs != width
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if needs_shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, width, H / stride, W / stride)."""
        out = self.relu1(self.bn1(x))
        stream = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        result: Tensor = self.conv2(self.relu2(self.bn2(out))) + stream
        return result


class PreActResNet(nn.Module):
    """3x3 stem, four stages of two blocks, global average pool, linear layer; no ReLU after the last add."""

    def __init__(self, channels: int, classes: int, width: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        stages, inputs = [], width
        for stage in range(4):
            outputs = width * 2**stage
            first = PreActBlock(inputs, outputs, 1 if stage == 0 else 2, norm)
            stages.append(nn.Sequential(first, PreActBlock(outputs, outputs, 1, norm)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes)."""
        x = self.stages(self.conv1(x))
        logits: Tensor = self.linear(self.pool(x).flatten(1))
        return logits


@register(NAME)
def preact_resnet18(input_shape: InputShape, classes: int, *, width: int = 64, norm: NormLayer = "batch") -> nn.Module:
    """Build PreActResNet-18 without conv biases, in PyTorch's default init.

    All 16 ReLUs are inside the blocks. The published grokking runs use `width=16, norm="none"`.

    Args:
        input_shape: channels, height, width; any size.
        classes: number of logits.
        width: channels of the first stage (`k` in the published code); doubled in each later stage.
        norm: `batch` or `none`.

    Raises:
        UsageError: sizes that are not ints >= 1, or an unknown `norm`.

    Cost: 11.17 M parameters and 0.56 GMAC for 3x32x32; at width 16 0.70 M and 0.04 GMAC.
    Source: He et al. 2016, arXiv:1603.05027; Humayun, Balestriero and Baraniuk 2024, arXiv:2402.15555.
    """
    channels, _, _ = validate_input(NAME, input_shape, classes)
    validate_positive(NAME, "width", [width])
    return PreActResNet(channels, classes, width, norm)
