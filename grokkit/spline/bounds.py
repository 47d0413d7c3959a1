"""Certified upper bound of local complexity: which units can change sign anywhere in the hull of the vertices.

Every value in the hull is c + sum_p e_p d_p + (at most) rho with sum |e_p| <= 1: a centre, P directions that are
carried through as in the tangent method, and a box that takes in what an activation bends away. Affine layers act on
the three exactly (|W| on the box), so the first layer has no slack at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.interrupt import check_interrupt
from grokkit.spline.affine import AffinePiece, Facet, Program, apply_nonlinearity, bind_results, build_program
from grokkit.spline.envelope import index_windows
from grokkit.spline.frames import Frames
from grokkit.spline.passes import BlockCount, LayerCount, count_per_point, find_live_units
from grokkit.spline.rule_table import leaves
from grokkit.spline.tape import Var
from grokkit.units import Call

ROUNDING_SLACK = 1e-12
"""Widening of every range, relative to its size and its tensor's: float64 errs by less."""


class Hull(NamedTuple):
    """All values over the neighbourhood of each point: centre (point, ...), directions (P, point, ...) and box
    (point, ...)."""

    centre: Tensor
    directions: Tensor
    box: Tensor

    def range(self) -> tuple[Tensor, Tensor]:
        """Certified lower and upper bound of every value; equal where the value does not move."""
        reach = self.directions.abs().amax(dim=0) + self.box
        slack = torch.where(reach > 0, ROUNDING_SLACK * (reach + self.centre.abs().amax()), 0.0)
        return self.centre - reach - slack, self.centre + reach + slack


def bound_counts(model: nn.Module, images: Tensor, frames: Frames, radius: float) -> Iterator[BlockCount]:
    """For each point, every layer's bound at one radius; 2 + P float64 passes a point."""
    net = build_program(model, images)
    for point in range(len(images)):
        check_interrupt()
        centre = images[point : point + 1]
        centres = find_live_units(model, centre)
        offsets = radius * frames.at(range(point, point + 1)).double()
        hulls = _iter_hulls(net, Hull(centre.double(), offsets, torch.zeros_like(centre, dtype=torch.float64)))
        yield BlockCount([_count(call, hull) for call, hull in zip(centres, hulls, strict=True)], [])


def _count(call: Call, hull: Hull) -> LayerCount:
    low, high = hull.range()
    met = [count_per_point((low <= kink) & (high >= kink) & (low < high)) for kink in call.kinks]
    finite = (low.isfinite() & high.isfinite()).all()
    return LayerCount(call.layer, call.activation.exact, torch.stack(met).sum(dim=0).unsqueeze(0), call.z, finite, None)


def _iter_hulls(net: Program, hull: Hull) -> Iterator[Hull]:
    """The hull of every activation's input, in call order."""
    env = {0: hull}
    for step in net.steps:
        if step.calls:
            _bound_affine(step, env)
        elif step.pool:
            bind_results(step.node.out, _bound_pool(step, env[step.node.inputs()[0].index]), env.__setitem__)
        else:
            before = env[step.node.inputs()[0].index]
            yield before
            bind_results(step.node.out, _bound_activation(step, before), env.__setitem__)
        for index in step.freed:
            env.pop(index, None)


def _bound_affine(step: AffinePiece, env: dict[int, Hull]) -> None:
    points = len(next(iter(env.values())).centre)
    count = len(next(iter(env.values())).directions)

    def face(part: Facet) -> Any:
        def values(var: Var) -> Tensor:
            hull = env[var.index]
            whole = {"value": hull.centre, "linear": hull.directions.flatten(0, 1), "magnitude": hull.box}
            return whole[part]

        return step.run(values, points * count if part == "linear" else points, part)

    centre, directions, box = (leaves(face(part)) for part in ("value", "linear", "magnitude"))
    hulls = [Hull(c, d.unflatten(0, (count, points)), b) for c, d, b in zip(centre, directions, box, strict=True)]
    for var, hull in zip(step.node.outputs(), hulls, strict=True):
        env[var.index] = hull


def _bound_activation(step: AffinePiece, before: Hull) -> Hull:
    """An activation f: its chord's slope over the range, plus a box for what f leaves of the chord."""
    low, high = before.range()

    def f(z: Tensor) -> Tensor:
        return apply_nonlinearity(step.node, lambda _: z.clone(), len(z))

    width = high - low
    slope = torch.where(width > 0, (f(high) - f(low)) / width.clamp_min(torch.finfo(width.dtype).tiny), 0.0)
    corners = [low, high, *(low.clamp_min(kink).minimum(high) for kink in step.kinks)]
    rest = torch.stack([f(corner) - slope * corner for corner in corners])
    lowest, highest = rest.amin(dim=0), rest.amax(dim=0)
    centre = slope * before.centre + (lowest + highest) / 2
    return Hull(centre, before.directions * slope, before.box * slope.abs() + (highest - lowest) / 2)


def _bound_pool(step: AffinePiece, before: Hull) -> Hull:
    """A window with one certain winner passes it on; any other becomes the box of its range."""
    low, high = before.range()
    index, shape = index_windows(step, low)
    spatial = len(shape)

    def entries(values: Tensor, filler: float) -> Tensor:
        return F.pad(values.flatten(-spatial), (0, 1), value=filler)[..., index]

    lows, highs = entries(low, -torch.inf), entries(high, -torch.inf)
    least, winner = lows.max(dim=-1, keepdim=True)
    most = highs.amax(dim=-1)
    others = highs.scatter(-1, winner, -torch.inf).amax(dim=-1)
    certain = least.squeeze(-1) >= others

    def of_winner(values: Tensor) -> Tensor:
        chosen = winner.expand(*values.shape[:-spatial], *winner.shape[-2:])
        return entries(values, 0.0).gather(-1, chosen).squeeze(-1)

    middle, half = (most + least.squeeze(-1)) / 2, (most - least.squeeze(-1)) / 2
    centre = torch.where(certain, of_winner(before.centre), middle)
    directions = torch.stack([of_winner(direction) for direction in before.directions]) * certain
    box = torch.where(certain, of_winner(before.box), half)
    return Hull(*(values.unflatten(-1, shape) for values in (centre, directions, box)))
