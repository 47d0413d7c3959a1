"""Sweep along segments: run a network's program on knots, layer by layer, and insert a knot at every crossing.

At each activation the units that change sides between two neighbouring knots are found, knots are inserted at their
crossings, and the activation is applied to the refined set. If that set would not fit in cache it is split before it
is computed, and the parts continue one after another (depth first), so memory does not grow with the number of pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from grokkit.interrupt import check_interrupt
from grokkit.spline.affine import Program, ProgramStep, apply_nonlinearity, bind_results
from grokkit.spline.envelope import find_switches, index_windows
from grokkit.spline.knots import Crossings, KnotGrid, RefinedGrid, find_crossings, refine_grid
from grokkit.spline.tape import Var

_PART_BYTES = {"cpu": 2**21}
_PART_BYTES_ELSEWHERE = 2**28
_SMALLEST_PART = 8

Env = dict[int, tuple[KnotGrid, Tensor]]
"""Variable -> its values, and the grid at whose knots they are."""
OnCall = Callable[[int, Tensor, tuple[float, ...]], None]


class StopSweep(Exception):
    """Raised by a sink to stop the sweep."""


class Sink(Protocol):
    """Receiver of the finished knots of consecutive parts, in order.

    A part begins with the last knot of the part before it, unless it begins a new segment.
    """

    def consume(self, grid: KnotGrid, outputs: Tensor) -> None:
        """Process the knots of one part and the network's outputs (knot, ...) at them."""
        ...


class Sweep:
    """Sweep of a program along segments.

    Args:
        program: the network's program.
        sink: receives the finished knots; may raise `StopSweep`.
        on_call: called with (layer, pre-activations (knot, ...), kinks) before each activation, for every knot made
            by the layers before it.
    """

    def __init__(self, program: Program, sink: Sink, on_call: OnCall | None = None) -> None:
        self._steps = program.steps
        self._output = program.output
        self._sink, self._on_call = sink, on_call
        layer_numbers = iter(range(len(program.steps)))
        self._layer_index = [-1 if step.calls else next(layer_numbers) for step in program.steps]

    def run(self, ends: Tensor, first: int = 0) -> None:
        """Sweep the segments between ends (segment, 2, ...), which are numbered from `first`."""
        count = len(ends)
        segment = torch.arange(first, first + count, device=ends.device).repeat_interleave(2)
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, device=ends.device).repeat(count)
        grid = KnotGrid(segment, t, torch.full_like(segment, -1))
        self._run_from(0, grid, {0: (grid, ends.flatten(0, 1))})

    def _run_from(self, start: int, grid: KnotGrid, env: Env) -> None:
        check_interrupt()
        for index in range(start, len(self._steps)):
            step = self._steps[index]
            if step.calls:
                self._bind(step, grid, env, step.run(partial(_interpolate, grid, env), len(grid)))
                continue
            refined = self._refine(step, index, grid, env)
            parts = list(_split(refined.grid, _choose_part_size(env)))
            for part, rows in parts[:-1]:
                branch = dict(env)
                self._apply_nonlinear(step, part, branch, _select_crossings(refined, rows))
                self._run_from(index + 1, part, branch)
            grid, rows = parts[-1]
            self._apply_nonlinear(step, grid, env, _select_crossings(refined, rows))
        self._sink.consume(grid, _interpolate(grid, env, Var(self._output)))

    def _refine(self, step: ProgramStep, index: int, grid: KnotGrid, env: Env) -> RefinedGrid:
        """Return the grid with a knot at every breakpoint of this activation or max-pool."""
        if step.is_pool:
            crossings = _find_pool_crossings(step, grid, env)
        else:
            (var,) = step.node.inputs()
            z = _interpolate(grid, env, var)
            if self._on_call is not None:
                self._on_call(self._layer_index[index], z, step.kinks)
            crossings = Crossings(
                *map(torch.cat, zip(*(find_crossings(z, k, grid.bounds_piece) for k in step.kinks), strict=True))
            )
        if not len(crossings.piece):
            return RefinedGrid(grid, crossings.piece, crossings.unit)
        return refine_grid(grid, crossings, self._layer_index[index])

    def _apply_nonlinear(self, step: ProgramStep, grid: KnotGrid, env: Env, refined: RefinedGrid) -> None:
        """Apply the activation or max-pool at the knots of `grid`, with crossing units set exactly on their kink."""

        def on_kink(var: Var) -> Tensor:
            origin, values = env[var.index]
            values = values.clone() if origin is grid else grid.interpolate(values, origin)
            if not step.is_pool:
                values.flatten(1)[refined.knot, refined.unit] = _find_kinks(step, refined, values)
            return values

        self._bind(step, grid, env, apply_nonlinearity(step.node, on_kink, len(grid)))

    @staticmethod
    def _bind(step: ProgramStep, grid: KnotGrid, env: Env, out: Any) -> None:
        bind_results(step.node.out, out, lambda index, value: env.__setitem__(index, (grid, value)))
        for index in step.freed:
            env.pop(index, None)


def _find_kinks(step: ProgramStep, refined: RefinedGrid, values: Tensor) -> Any:
    """Return the kink that each crossing unit crosses: the nearest one of its activation."""
    if len(step.kinks) == 1:
        return step.kinks[0]
    kinks = values.new_tensor(step.kinks)
    values_at_crossings = values.flatten(1)[refined.knot, refined.unit]
    return kinks[(values_at_crossings.unsqueeze(1) - kinks).abs().argmin(dim=1)]


def _interpolate(grid: KnotGrid, env: Env, var: Var) -> Tensor:
    """Return a variable at the knots of `grid`, interpolated once and cached in `env`."""
    origin, values = env[var.index]
    if origin is not grid:
        values = grid.interpolate(values, origin)
        env[var.index] = (grid, values)
    return values


def _find_pool_crossings(step: ProgramStep, grid: KnotGrid, env: Env) -> Crossings:
    (var,) = step.node.inputs()
    z = _interpolate(grid, env, var)
    index, _ = index_windows(step, z)
    spatial = step.pool.spatial
    return find_switches(z.reshape(len(z), -1, z.shape[-spatial:].numel()), index, grid.bounds_piece)


def _choose_part_size(env: Env) -> int:
    """Return the number of knots of a part whose largest tensor stays in cache."""
    widest = max(values[0].numel() for _, values in env.values())
    device = next(iter(env.values()))[1].device.type
    return max(_SMALLEST_PART, _PART_BYTES.get(device, _PART_BYTES_ELSEWHERE) // (8 * widest))


def _split(grid: KnotGrid, size: int) -> Iterator[tuple[KnotGrid, range]]:
    """Yield the grid, split into parts of about `size` pieces if it has more than twice as many.

    Neighbouring parts share a knot.
    """
    pieces = len(grid) - 1
    count = 1 if pieces <= 2 * size else -(-pieces // size)
    for part in range(count):
        rows = range(pieces * part // count, pieces * (part + 1) // count + 1)
        yield (grid if count == 1 else grid.slice(rows[0], rows[-1])), rows


def _select_crossings(refined: RefinedGrid, rows: range) -> RefinedGrid:
    """Return the crossings at these knots, with knots numbered from the first of them."""
    is_inside = (refined.knot >= rows[0]) & (refined.knot <= rows[-1])
    return RefinedGrid(refined.grid, refined.knot[is_inside] - rows[0], refined.unit[is_inside])
