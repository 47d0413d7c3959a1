"""The whole that a run trains: a net behind its normalisation, and what is done to a net before training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grokkit.errors import UsageError


class Normalise(nn.Module):
    """Take pixels to the space the net sees: (pixels - mean) / std, per channel; saved with the net, not trained.

    Args:
        mean: one number per channel, in pixels (0..1).
        std: one number per channel, in pixels, above 0.

    Raises:
        UsageError: different lengths, none at all, or a `std` that is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise UsageError(f"`mean` and `std` need one number per channel each; got {len(mean)} and {len(std)}")
        if not all(math.isfinite(m) for m in mean) or not all(math.isfinite(s) and s > 0 for s in std):
            raise UsageError(
                f"`mean` must be finite and `std` above 0 in every channel; got mean {list(mean)}, std {list(std)}"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) pixels in [0, 1] to (N, C, H, W) in the net's input space."""
        # In place: the pages of a second new tensor cost a CPU as much as the arithmetic.
        return (pixels - self.mean).div_(self.std)

    def extra_repr(self) -> str:
        """The numbers, for `print(model)`."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class Classifier(nn.Module):
    """A net that is fed pixels in [0, 1]: attacks see the whole, local complexity is taken in the space of `net`.

    Args:
        normalise: pixels to net input; any module.
        net: net input (N, C, H, W) to logits (N, classes).
    """

    def __init__(self, normalise: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) pixels in [0, 1] to (N, classes) logits."""
        return self.net(self.normalise(pixels))


@torch.no_grad()
def scale_init(module: nn.Module, factor: float) -> None:
    """Multiply all parameters in place, biases too: the large initialisation of grokking runs.

    Args:
        module: freshly built; changed in place.
        factor: finite and above 0; 1 changes nothing.

    Raises:
        UsageError: another factor.

    Source: Liu et al. 2023, Omnigrok, arXiv:2210.01117.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise UsageError(f"`factor` must be finite and above 0; got {factor}")
    for parameter in module.parameters():
        parameter.mul_(factor)


def channels_last_is_safe(model: nn.Module) -> bool:
    """Whether `model` may be trained in channels_last on a CPU.

    False if any convolution is 1x1, strided and has fewer than 8 input channels: the backward pass of such a one
    ends in a segmentation fault (seen with torch 2.15, AVX2), which no exception can catch.
    """
    return not any(
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and max(module.stride) > 1
        and module.in_channels < 8
        for module in model.modules()
    )
