"""The net of the CIFAR-10 speed records (airbench): whitened patches, identity init, GELU, fixed scales.

The standard nets use nothing from this module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grokkit.models import register
from grokkit.models.parts import InputShape, validate_input, validate_positive

PATCH = 2
"""Side of the whitened patches in pixels."""

RIDGE = 5e-4
"""Added to the variances before dividing by their roots, so that low-variance directions are not amplified too much."""


class Whitening(nn.Module):
    """A frozen whitening convolution: its outputs are uncorrelated with variance 1 over the patches used in `fit`.

    Every filter occurs with both signs, so that the activation after it loses neither. Only the bias is trained. Until
    `fit` is called the filters are the pixels of the patch, the whitening of uncorrelated pixels.
    """

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = channels * PATCH**2
        self.register_buffer("weight", self._add_negated(torch.eye(size), channels))
        self.bias = nn.Parameter(torch.empty(2 * size))
        bound = size**-0.5
        nn.init.uniform_(self.bias, -bound, bound)  # torch's default for a convolution of this size, as in the source

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 8 C, H - 1, W - 1)."""
        return F.conv2d(x, self.weight, self.bias)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the filters from the eigenvectors of the second moments of all patches of `images`.

        Args:
            images: (N, C, H, W) in the net's input space.

        Cost: about a second for 5,000 images of 32x32; the moments are summed in float64, block by block.
        """
        channels = images.shape[1]
        moments = torch.zeros(channels * PATCH**2, channels * PATCH**2, dtype=torch.float64, device=images.device)
        patches = 0
        for block in torch.split(images, 256):
            rows = F.unfold(block.double(), PATCH).mT.flatten(0, 1)
            moments += rows.mT @ rows
            patches += len(rows)
        variances, directions = torch.linalg.eigh(moments / patches)
        filters = directions.mT / (variances + RIDGE).sqrt()[:, None]
        self.weight.copy_(self._add_negated(filters, channels))

    @staticmethod
    def _add_negated(filters: Tensor, channels: int) -> Tensor:
        return torch.cat([filters, -filters]).view(-1, channels, PATCH, PATCH)


class ShiftNorm(nn.BatchNorm2d):
    """BatchNorm with a trained shift, a fixed scale of 1, and running statistics of the last few batches.

    Its `eps` is torch's default: the source's 1e-12 divides by almost zero if a channel is constant, as with grey
    images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        # A buffer instead of a frozen parameter: every parameter of a net is trained.
        del self.weight
        self.register_buffer("weight", torch.ones(channels), persistent=False)


def make_identity_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Make a 3x3 convolution whose first output channels are its inputs; the other filters have torch's init."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inputs])
    return conv


class ConvGroup(nn.Sequential):
    """Two convolutions, with a max-pool after the first; (N, inputs, H, W) to (N, outputs, H / 2, W / 2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            make_identity_conv(inputs, outputs),
            nn.MaxPool2d(2),
            ShiftNorm(outputs),
            nn.GELU(),
            make_identity_conv(outputs, outputs),
            ShiftNorm(outputs),
            nn.GELU(),
        )


class SpeedNet(nn.Module):
    """Whitening, three groups of two convolutions, max-pool, linear layer; see `speednet`."""

    def __init__(self, input_shape: InputShape, classes: int, width: int) -> None:
        super().__init__()
        channels, *sides = input_shape
        self.whiten = Whitening(channels)
        self.layers = nn.Sequential(
            nn.GELU(),
            ConvGroup(2 * channels * PATCH**2, width),
            ConvGroup(width, 4 * width),
            ConvGroup(4 * width, 4 * width),
            # The whole remaining map: 3x3 at 32x32, as in the source.
            nn.MaxPool2d(tuple((side + 1 - PATCH) // 8 for side in sides)),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.std())

    def initialise_from(self, images: Tensor) -> None:
        """Fit the whitening to the patches of these images, (N, C, H, W) in the net's input space."""
        self.whiten.fit(images)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, classes)."""
        logits: Tensor = self.head(self.layers(self.whiten(x))) / self.head.in_features
        return logits


@register("speednet")
def speednet(input_shape: InputShape, classes: int, *, width: int = 64) -> nn.Module:
    """Build the net of airbench94_muon, designed to reach 94 % on CIFAR-10 in the fewest seconds; not a typical net.

    Its first layer is fitted to training images before the first step (`initialise_from`) and then frozen. GELU is
    not piecewise linear: its units are counted by the sign of their pre-activation, a proxy, and exact partitions
    reject it.

    Args:
        input_shape: channels, height, width; images of at least 9x9.
        classes: number of logits.
        width: channels of the first group; the other two have 4 times as many. The head divides by its number of
            inputs, so that its learning rate scales with the width.

    Raises:
        UsageError: images below 9x9, or sizes that are not ints >= 1.

    Cost: 1.97 M parameters and 0.12 GMAC for 3x32x32.
    Source: KellerJordan/cifar10-airbench, airbench94_muon.py; Jordan 2024, arXiv 2404.00498.
    """
    shape = validate_input("speednet", input_shape, classes, smallest=9)
    validate_positive("speednet", "width", [width])
    return SpeedNet(shape, classes, width)
