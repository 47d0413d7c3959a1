"""Count local complexity along rays: units that change sign anywhere on a segment x - r v_p .. x + r v_p."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from grokkit.spline.affine import Program, build_program
from grokkit.spline.frames import Frames
from grokkit.spline.knots import ZERO, KnotGrid
from grokkit.spline.passes import BlockCount, LayerCount, check_same_calls, count_per_point, find_live_units
from grokkit.spline.segment_sweep import Sweep


class _Range:
    """A sink that keeps the smallest and largest pre-activation of every unit over all knots of one point's rays."""

    def __init__(self) -> None:
        self.low: dict[int, Tensor] = {}
        self.high: dict[int, Tensor] = {}

    def on_call(self, layer: int, z: Tensor, kinks: tuple[float, ...]) -> None:
        low, high = z.amin(dim=0), z.amax(dim=0)
        if layer in self.low:
            low, high = torch.minimum(low, self.low[layer]), torch.maximum(high, self.high[layer])
        self.low[layer], self.high[layer] = low, high

    def consume(self, grid: KnotGrid, outputs: Tensor) -> None:
        """Ignore the network's output at the knots."""

    def has_crossed(self, layer: int, kink: float) -> Tensor:
        """Return bool (1, ...): which units cross a kink."""
        # between two knots a pre-activation is affine, so its range is the range over the knots
        low, high = self.low[layer], self.high[layer]
        zero = ZERO * torch.maximum(low.abs().max(), high.abs().max())
        return (_find_side(low - kink, zero) != _find_side(high - kink, zero)).unsqueeze(0)


def _find_side(gap: Tensor, zero: Tensor) -> Tensor:
    return gap.sign().masked_fill(gap.abs() <= zero, 0.0)


def count_ray_crossings(model: nn.Module, images: Tensor, frames: Frames, radius: float) -> Iterator[BlockCount]:
    """Yield, for each point, every layer's count at one radius.

    Cost: for each point one float64 pass of 2 P images, and of every breakpoint.
    """
    program = build_program(model, images)
    for point in range(len(images)):
        yield BlockCount(
            _count_layers(
                program, model, images[point : point + 1], radius * frames.at(range(point, point + 1)).double()
            ),
            [],
        )


def _count_layers(program: Program, model: nn.Module, centre: Tensor, offsets: Tensor) -> list[LayerCount]:
    centres = find_live_units(model, centre)
    extremes = _Range()
    ends = torch.cat([centre.double() - offsets, centre.double() + offsets], dim=1)
    Sweep(program, extremes, extremes.on_call).run(ends)
    layer_indices = [index for index, step in enumerate(program.nonlinear_steps) if not step.is_pool]
    check_same_calls(centres, [program.layers[index] for index in layer_indices])
    counts = []
    for index, call in zip(layer_indices, centres, strict=True):
        crossed = torch.stack([count_per_point(extremes.has_crossed(index, kink)) for kink in call.kinks]).sum(dim=0)
        finite = (extremes.low[index].isfinite() & extremes.high[index].isfinite()).all()
        counts.append(LayerCount(call.layer, call.activation.exact, crossed.unsqueeze(0), call.z, finite, None))
    return counts
