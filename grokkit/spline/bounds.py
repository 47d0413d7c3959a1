"""Certified upper bound of local complexity: count the units that can change sign anywhere in the vertices' hull.

Every value in the hull is c + sum_p e_p d_p + (at most) rho with sum |e_p| <= 1: a centre c, P directions d_p that are
propagated as in the tangent method, and a box of half-width rho that contains the nonlinear remainder of the
activations. Affine layers act on the three exactly (|W| on the box), so the first layer has no slack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.interrupt import check_interrupt
from grokkit.spline.affine import Program, ProgramStep, apply_nonlinearity, bind_results, build_program
from grokkit.spline.affine_rules import MapForm
from grokkit.spline.envelope import index_windows
from grokkit.spline.frames import Frames
from grokkit.spline.passes import BlockCount, LayerCount, check_same_calls, count_per_point, find_live_units
from grokkit.spline.tape import Var
from grokkit.units import Call, list_leaves

ROUNDING_SLACK = 1e-12
"""Widening of every range, relative to its size and its tensor's; float64 rounding errors are smaller."""


class Hull(NamedTuple):
    """Enclosure of all values over the neighbourhood of each point.

    Args:
        centre: (point, ...).
        directions: (P, point, ...).
        box: half-width, (point, ...).
    """

    centre: Tensor
    directions: Tensor
    box: Tensor

    def range(self) -> tuple[Tensor, Tensor]:
        """Compute certified lower and upper bounds of every value; equal if the value does not change."""
        reach = self.directions.abs().amax(dim=0) + self.box
        sizes = self.centre.abs()
        largest = sizes.masked_fill_(sizes.isinf(), 0.0).amax()  # padding of a max-pool is infinite
        slack = torch.where(reach > 0, ROUNDING_SLACK * (reach + largest), 0.0)
        return self.centre - reach - slack, self.centre + reach + slack


def bound_crossings(model: nn.Module, images: Tensor, frames: Frames, radius: float) -> Iterator[BlockCount]:
    """Yield, for each point, an upper bound of every layer's count at one radius; 2 + P float64 passes a point."""
    program = build_program(model, images)
    for point in range(len(images)):
        check_interrupt()
        centre = images[point : point + 1]
        centres = find_live_units(model, centre)
        check_same_calls(centres, [step.node.layer for step in program.nonlinear_steps if not step.is_pool])
        offsets = radius * frames.at(range(point, point + 1)).double()
        hulls = _iter_hulls(program, Hull(centre.double(), offsets, torch.zeros_like(centre, dtype=torch.float64)))
        yield BlockCount([_count_layer(call, hull) for call, hull in zip(centres, hulls, strict=True)], [])


def _count_layer(call: Call, hull: Hull) -> LayerCount:
    low, high = hull.range()
    crossed = [count_per_point((low <= kink) & (high >= kink) & (low < high)) for kink in call.kinks]
    finite = (low.isfinite() & high.isfinite()).all()
    return LayerCount(
        call.layer, call.activation.exact, torch.stack(crossed).sum(dim=0).unsqueeze(0), call.z, finite, None
    )


def _iter_hulls(program: Program, hull: Hull) -> Iterator[Hull]:
    """Yield the hull of every activation's input, in call order."""
    env = {0: hull}
    for step in program.steps:
        if step.calls:
            _bound_affine(step, env)
        elif step.is_pool:
            bind_results(step.node.out, _bound_pool(step, env[step.node.inputs()[0].index]), env.__setitem__)
        else:
            preactivations = env[step.node.inputs()[0].index]
            yield preactivations
            bind_results(step.node.out, _bound_activation(step, preactivations), env.__setitem__)
        for index in step.freed:
            env.pop(index, None)


def _bound_affine(step: ProgramStep, env: dict[int, Hull]) -> None:
    points = len(next(iter(env.values())).centre)
    count = len(next(iter(env.values())).directions)

    def run_form(form: MapForm) -> Any:
        def values(var: Var) -> Tensor:
            hull = env[var.index]
            inputs = {"value": hull.centre, "linear": hull.directions.flatten(0, 1), "magnitude": hull.box}
            return inputs[form]

        return step.run(values, points * count if form == "linear" else points, form)

    centre, directions, box = (list_leaves(run_form(form)) for form in ("value", "linear", "magnitude"))
    hulls = [Hull(c, d.unflatten(0, (count, points)), b) for c, d, b in zip(centre, directions, box, strict=True)]
    for var, hull in zip(step.node.outputs(), hulls, strict=True):
        env[var.index] = hull


def _bound_activation(step: ProgramStep, hull: Hull) -> Hull:
    """Bound an activation f by its chord over the range, plus a box for the deviation of f from the chord."""
    low, high = hull.range()

    def f(z: Tensor) -> Tensor:
        values: Tensor = apply_nonlinearity(step.node, lambda _: z.clone(), len(z))
        return values

    width = high - low
    slope = torch.where(width > 0, (f(high) - f(low)) / width.clamp_min(torch.finfo(width.dtype).tiny), 0.0)
    corners = [low, high, *(low.clamp_min(kink).minimum(high) for kink in step.kinks)]
    rest = torch.stack([f(corner) - slope * corner for corner in corners])
    lowest, highest = rest.amin(dim=0), rest.amax(dim=0)
    centre = slope * hull.centre + (lowest + highest) / 2
    return Hull(centre, hull.directions * slope, hull.box * slope.abs() + (highest - lowest) / 2)


def _bound_pool(step: ProgramStep, hull: Hull) -> Hull:
    """Bound a max-pool: a window with a certain winner takes that entry's hull, others the box of their range."""
    low, high = hull.range()
    index, shape = index_windows(step, low)
    spatial = len(shape)

    def entries(values: Tensor, filler: float) -> Tensor:
        return F.pad(values.flatten(-spatial), (0, 1), value=filler)[..., index]

    lows, highs = entries(low, -torch.inf), entries(high, -torch.inf)
    max_low, winner = lows.max(dim=-1, keepdim=True)
    max_high = highs.amax(dim=-1)
    runner_up = highs.scatter(-1, winner, -torch.inf).amax(dim=-1)
    certain = max_low.squeeze(-1) >= runner_up

    def select_winner(values: Tensor) -> Tensor:
        position = winner.expand(*values.shape[:-spatial], *winner.shape[-2:])
        return entries(values, 0.0).gather(-1, position).squeeze(-1)

    middle, half = (max_high + max_low.squeeze(-1)) / 2, (max_high - max_low.squeeze(-1)) / 2
    centre = torch.where(certain, select_winner(hull.centre), middle)
    directions = torch.stack([select_winner(direction) for direction in hull.directions]) * certain
    box = torch.where(certain, select_winner(hull.box), half)
    return Hull(*(torch.unflatten(values, -1, shape) for values in (centre, directions, box)))
