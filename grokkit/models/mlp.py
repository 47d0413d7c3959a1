"""Multilayer perceptron, used in the digits and MNIST grokking runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from grokkit.models import register
from grokkit.models.parts import InputShape, validate_input, validate_positive


@register("mlp")
def mlp(
    input_shape: InputShape, classes: int, *, widths: Sequence[int] = (128, 128, 128), bias: bool = True
) -> nn.Module:
    """Build an MLP: flatten, then linear layers with ReLU between them, in PyTorch's default init.

    Args:
        input_shape: channels, height, width; any size.
        classes: number of logits.
        widths: units of each hidden layer; empty for a linear classifier.
        bias: whether the linear layers have biases.

    Raises:
        UsageError: a size that is not an int >= 1.
    """
    channels, height, width = validate_input("mlp", input_shape, classes)
    validate_positive("mlp", "widths", widths)
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    features = channels * height * width
    for number, units in enumerate(widths, start=1):
        layers[f"linear{number}"], layers[f"relu{number}"] = nn.Linear(features, units, bias=bias), nn.ReLU()
        features = units
    layers["head"] = nn.Linear(features, classes, bias=bias)
    return nn.Sequential(OrderedDict(layers))
