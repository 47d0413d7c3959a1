"""What several families share: the check of what a builder is given, the choice of normalisation, He init."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from torch import nn

from grokkit.errors import UsageError

InputShape = tuple[int, int, int]


def validate_input(name: str, input_shape: Sequence[int], classes: int, *, smallest: int = 1) -> InputShape:
    """Check what every builder is given.

    Args:
        name: the model, for the error.
        input_shape: channels, height, width of one image.
        classes: number of logits, at least 1.
        smallest: least height and width, in pixels, that the net can take.

    Returns:
        `input_shape` as a tuple.

    Raises:
        UsageError: not such a shape, too small an image, or no class.
    """
    validate_positive(name, "classes", [classes])
    shape = tuple(input_shape)
    if len(shape) != 3 or not all(_is_size(size) for size in shape):
        raise UsageError(
            f"model {name!r}: `input_shape` must be (channels, height, width), each an int >= 1; got {shape}"
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise UsageError(
            f"model {name!r} halves the image until nothing is left of it: images must be at least "
            f"{smallest}x{smallest} pixels; got {height}x{width}. Take larger images, or a model such as 'cnn'"
        )
    return channels, height, width


def validate_positive(name: str, option: str, values: Sequence[int]) -> None:
    """Raise a `UsageError` unless every one of `values` is an int of at least 1."""
    for value in values:
        if not _is_size(value):
            raise UsageError(f"model {name!r}: `{option}` takes ints >= 1; got {value!r}")


def _is_size(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def make_norm(name: str, norm: str, channels: int) -> nn.Module:
    """BatchNorm over `channels` for `norm="batch"`, the identity for `norm="none"`, a `UsageError` otherwise."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise UsageError(f"model {name!r}: `norm` must be 'none' or 'batch'; got {norm!r}")


def he_init(net: nn.Module, mode: str) -> None:
    """Draw all convolutions of `net` as in He et al. 2015, arXiv:1502.01852: normal, gain of ReLU, zero biases.

    Args:
        net: changed in place; other layers stay as they are.
        mode: `fan_in` keeps the variance of the forward pass, `fan_out` that of the backward pass.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)
