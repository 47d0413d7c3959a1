"""Helpers for model builders: argument checks, choice of normalisation, He init."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from torch import nn

from grokkit.errors import UsageError
from grokkit.literals import NormLayer

InputShape = tuple[int, int, int]


def validate_input(name: str, input_shape: Sequence[int], classes: int, *, smallest: int = 1) -> InputShape:
    """Check the arguments that every model builder takes, and return `input_shape` as a tuple.

    Args:
        name: name of the model in error messages.
        input_shape: channels, height, width of one image.
        classes: number of logits, at least 1.
        smallest: smallest height and width, in pixels, that the net supports.

    Returns:
        `input_shape` as a tuple.

    Raises:
        UsageError: an invalid shape, an image that is too small, or no class.
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
            f"model {name!r} downsamples the image to nothing: images must be at least "
            f"{smallest}x{smallest} pixels; got {height}x{width}. Use larger images, or a model such as 'cnn'"
        )
    return channels, height, width


def validate_positive(name: str, option: str, values: Sequence[int]) -> None:
    """Raise a `UsageError` unless all `values` are ints of at least 1."""
    for value in values:
        if not _is_size(value):
            raise UsageError(f"model {name!r}: `{option}` takes ints >= 1; got {value!r}")


def _is_size(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def make_norm(name: str, norm: NormLayer, channels: int) -> nn.Module:
    """Return BatchNorm over `channels` for `norm="batch"`, the identity for `norm="none"`; UsageError otherwise."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    raise UsageError(f"model {name!r}: `norm` must be 'none' or 'batch'; got {norm!r}")


def he_init(net: nn.Module, mode: str) -> None:
    """Initialise all convolutions of `net` as in He et al. 2015, arXiv:1502.01852: normal, gain of ReLU, zero biases.

    Args:
        net: changed in place; other layers are not changed.
        mode: `fan_in` preserves the variance of the forward pass, `fan_out` that of the backward pass.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")  # type: ignore[arg-type]
            if module.bias is not None:
                nn.init.zeros_(module.bias)
