"""The trained model: input normalisation followed by a net; scaled initialisation; channels_last check."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from grokkit.errors import UsageError


class Normalise(nn.Module):
    """Normalise pixels to the net's input space: (pixels - mean) / std per channel; buffers, not trained.

    Args:
        mean: one number per channel, in pixels (0..1).
        std: one number per channel, in pixels, above 0.

    Raises:
        UsageError: different lengths, empty sequences, or a `std` that is not above 0.
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
        """Map (N, C, H, W) pixels in [0, 1] to (N, C, H, W) in the net's input space."""
        # In place: on a CPU, allocating a second tensor costs as much as the arithmetic.
        return (pixels - self.mean).div_(self.std)

    def extra_repr(self) -> str:
        """Return mean and std, for `print(model)`."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


class Classifier(nn.Module):
    """A net on pixels in [0, 1]: attacks act on the pixels, local complexity is measured in the input space of `net`.

    Args:
        normalise: maps pixels to net input; any module.
        net: maps net input (N, C, H, W) to logits (N, classes).
    """

    def __init__(self, normalise: nn.Module, net: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise
        self.net = net

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (N, C, H, W) pixels in [0, 1] to (N, classes) logits."""
        logits: Tensor = self.net(self.normalise(pixels))
        return logits


@torch.no_grad()
def scale_init(module: nn.Module, factor: float) -> None:
    """Multiply all parameters, including biases, in place: the large initialisation of grokking runs.

    Args:
        module: newly built; changed in place.
        factor: finite and above 0; 1 changes nothing.

    Raises:
        UsageError: an invalid factor.

    Source: Liu et al. 2023, Omnigrok, arXiv:2210.01117.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise UsageError(f"`factor` must be finite and above 0; got {factor}")
    for parameter in module.parameters():
        parameter.mul_(factor)


def channels_last_is_safe(model: nn.Module) -> bool:
    """Return whether `model` can be trained in channels_last on a CPU.

    False if any convolution is 1x1, strided and has fewer than 8 input channels: its backward
    pass ends in a segmentation fault (seen with torch 2.15, AVX2), which cannot be caught as an exception.
    """
    return not any(
        isinstance(module, nn.Conv2d)
        and tuple(module.kernel_size) == (1, 1)
        and max(module.stride) > 1
        and module.in_channels < 8
        for module in model.modules()
    )
