"""A small convolutional net: large enough to show all training phases, small enough for a CPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from grokkit.errors import UsageError
from grokkit.literals import NormLayer
from grokkit.models import register
from grokkit.models.parts import InputShape, make_norm, validate_input, validate_positive


@register("cnn")
def cnn(
    input_shape: InputShape,
    classes: int,
    *,
    channels: Sequence[int] = (16, 16, 32, 32, 64),
    strides: Sequence[int] = (2, 1, 2, 1, 2),
    hidden: int = 64,
    norm: NormLayer = "none",
) -> nn.Module:
    """Build 3x3 convolutions with ReLU, global average pool, hidden and output linear layer, in PyTorch's default init.

    Args:
        input_shape: channels, height, width; any size.
        classes: number of logits.
        channels: output channels of each convolution.
        strides: stride of each convolution, as many as `channels`.
        hidden: units of the hidden linear layer; 0 omits it.
        norm: `none` (convolutions have biases) or `batch` (BatchNorm instead of biases).

    Raises:
        UsageError: sizes that are not ints >= 1, lists of different lengths, or an unknown `norm`.
    """
    depth, _, _ = validate_input("cnn", input_shape, classes)
    validate_positive("cnn", "channels", channels)
    validate_positive("cnn", "strides", strides)
    if len(channels) != len(strides):
        raise UsageError(
            f"model 'cnn': `channels` and `strides` need one number per convolution; "
            f"got {len(channels)} and {len(strides)}"
        )
    layers: dict[str, nn.Module] = {}
    for number, (out, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        layers[f"conv{number}"] = nn.Conv2d(depth, out, 3, stride, padding=1, bias=norm == "none")
        if norm != "none":
            layers[f"norm{number}"] = make_norm("cnn", norm, out)
        layers[f"relu{number}"] = nn.ReLU()
        depth = out
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    if hidden != 0:
        validate_positive("cnn", "hidden", [hidden])
        layers |= {"hidden": nn.Linear(depth, hidden), "relu_hidden": nn.ReLU()}
        depth = hidden
    layers["head"] = nn.Linear(depth, classes)
    return nn.Sequential(OrderedDict(layers))
