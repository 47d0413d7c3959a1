"""Local complexity along the rays themselves: units that change sign anywhere on a segment x - r v_p .. x + r v_p."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from grokkit.spline.affine import Program, build_program
from grokkit.spline.frames import Frames
from grokkit.spline.knots import ZERO, KnotGrid
from grokkit.spline.passes import BlockCount, LayerCount, count_per_point, find_live_units
from grokkit.spline.segment_sweep import Sweep


class _Range:
    """Smallest and largest pre-activation of every unit over all knots of one point's rays."""

    def __init__(self) -> None:
        self.low: dict[int, Tensor] = {}
        self.high: dict[int, Tensor] = {}

    def on_call(self, layer: int, z: Tensor, kinks: tuple[float, ...]) -> None:
        low, high = z.amin(dim=0), z.amax(dim=0)
        if layer in self.low:
            low, high = torch.minimum(low, self.low[layer]), torch.maximum(high, self.high[layer])
        self.low[layer], self.high[layer] = low, high

    def take(self, grid: KnotGrid, outputs: Tensor) -> None:
        """The network's output at the knots is not needed."""

    def has_crossed(self, layer: int, kink: float) -> Tensor:
        """bool (1, ...): between two knots a pre-activation is affine, so its range is that over the knots."""
        low, high = self.low[layer], self.high[layer]
        zero = ZERO * torch.maximum(low.abs().max(), high.abs().max())
        return (_side(low - kink, zero) != _side(high - kink, zero)).unsqueeze(0)


def _side(gap: Tensor, zero: Tensor) -> Tensor:
    return gap.sign().masked_fill(gap.abs() <= zero, 0.0)


def ray_counts(model: nn.Module, images: Tensor, frames: Frames, radius: float) -> Iterator[BlockCount]:
    """For each point, every layer's count at one radius; one float64 pass of 2 P images a point and of each knot."""
    net = build_program(model, images)
    for point in range(len(images)):
        yield BlockCount(
            _of_point(net, model, images[point : point + 1], radius * frames.at(range(point, point + 1)).double()), []
        )


def _of_point(net: Program, model: nn.Module, centre: Tensor, offsets: Tensor) -> list[LayerCount]:
    centres = find_live_units(model, centre)
    found = _Range()
    ends = torch.cat([centre.double() - offsets, centre.double() + offsets], dim=1)
    Sweep(net, found, found.on_call).run(ends)
    numbers = [index for index, step in enumerate(net.nonlinear_steps) if not step.pool]
    counts = []
    for index, call in zip(numbers, centres, strict=True):
        crossed = torch.stack([count_per_point(found.has_crossed(index, kink)) for kink in call.kinks]).sum(dim=0)
        finite = (found.low[index].isfinite() & found.high[index].isfinite()).all()
        counts.append(LayerCount(call.layer, call.activation.exact, crossed.unsqueeze(0), call.z, finite, None))
    return counts
