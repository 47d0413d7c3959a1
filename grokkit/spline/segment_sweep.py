"""The sweep along segments: a network's program run on knots, layer by layer, refined wherever a unit crosses.

At each activation the units that change side between two neighbouring knots are found, knots are inserted where they
do, and the activation is applied to the refined set. When that set grows beyond what stays in cache it is cut before
it is made, and the parts go on one after the other (depth first), so memory does not grow with the number of pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from grokkit.interrupt import check_interrupt
from grokkit.spline.affine import AffinePiece, Program, apply_nonlinearity, bind_results
from grokkit.spline.envelope import find_switches, index_windows
from grokkit.spline.knots import Crossings, KnotGrid, Refined, find_crossings, refine_grid
from grokkit.spline.tape import Var
from grokkit.units import MAX_POOLS

_PART_BYTES = {"cpu": 2**21}
_PART_BYTES_ELSEWHERE = 2**28
_SMALLEST_PART = 8

Env = dict[int, tuple[KnotGrid, Tensor]]
Seen = Callable[[int, Tensor, tuple[float, ...]], None]


class StopSweep(Exception):
    """The sink wants no more."""


class Sink(Protocol):
    """Takes the finished knots of consecutive parts, in order; a part begins with the knot that the last one ended
    with, unless a segment begins there."""

    def take(self, grid: KnotGrid, outputs: Tensor) -> None: ...


class Sweep:
    """Runs a program over segments.

    Args:
        program: of the network.
        sink: where finished knots go; may raise `StopSweep`.
        see: called with (layer, pre-activations (knot, ...), kinks) before each activation, for every knot that the
            layers before it made.
    """

    def __init__(self, program: Program, sink: Sink, see: Seen | None = None) -> None:
        self._steps = program.steps
        self._output = program.output
        self._sink, self._on_call = sink, see
        numbers = iter(range(len(program.steps)))
        self._layer = [-1 if step.calls else next(numbers) for step in program.steps]

    def run(self, ends: Tensor, first: int = 0) -> None:
        """Sweep the segments between ends (segment, 2, ...), which are numbered from `first`."""
        count = len(ends)
        segment = torch.arange(first, first + count, device=ends.device).repeat_interleave(2)
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, device=ends.device).repeat(count)
        grid = KnotGrid(segment, t, torch.full_like(segment, -1))
        self._continue(0, grid, {0: (grid, ends.flatten(0, 1))})

    def _continue(self, place: int, grid: KnotGrid, env: Env) -> None:
        check_interrupt()
        for at in range(place, len(self._steps)):
            step = self._steps[at]
            if step.calls:
                self._bind(step, grid, env, step.run(partial(_interpolate, grid, env), len(grid)))
                continue
            refined = self._refine(step, at, grid, env)
            parts = list(_split(refined.grid, _choose_part_size(env)))
            for part, rows in parts[:-1]:
                branch = dict(env)
                self._bend(step, part, branch, _within(refined, rows))
                self._continue(at + 1, part, branch)
            grid, rows = parts[-1]
            self._bend(step, grid, env, _within(refined, rows))
        self._sink.take(grid, _interpolate(grid, env, Var(self._output)))

    def _refine(self, step: AffinePiece, at: int, grid: KnotGrid, env: Env) -> Refined:
        """The grid with a knot wherever this activation or max-pool bends."""
        if step.pool:
            found = _pool_crossings(step, grid, env)
        else:
            (var,) = step.node.inputs()
            z = _interpolate(grid, env, var)
            if self._on_call is not None:
                self._on_call(self._layer[at], z, step.kinks)
            found = Crossings(
                *map(torch.cat, zip(*(find_crossings(z, k, grid.bounds_piece) for k in step.kinks), strict=True))
            )
        if not len(found.piece):
            return Refined(grid, found.piece, found.unit)
        return refine_grid(grid, found, self._layer[at])

    def _bend(self, step: AffinePiece, grid: KnotGrid, env: Env, refined: Refined) -> None:
        """Apply the activation or max-pool at the knots of `grid`, with the crossing units exactly on their kink."""

        def on_kink(var: Var) -> Tensor:
            origin, values = env[var.index]
            values = values.clone() if origin is grid else grid.interpolate(values, origin)
            if not step.pool:
                values.flatten(1)[refined.knot, refined.unit] = _find_kinks(step, refined, values)
            return values

        self._bind(step, grid, env, apply_nonlinearity(step.node, on_kink, len(grid)))

    @staticmethod
    def _bind(step: AffinePiece, grid: KnotGrid, env: Env, out: Any) -> None:
        bind_results(step.node.out, out, lambda index, value: env.__setitem__(index, (grid, value)))
        for index in step.freed:
            env.pop(index, None)


def _find_kinks(step: AffinePiece, refined: Refined, values: Tensor) -> Any:
    """The kink that each crossing unit is at: the nearest one of its activation."""
    if len(step.kinks) == 1:
        return step.kinks[0]
    kinks = values.new_tensor(step.kinks)
    here = values.flatten(1)[refined.knot, refined.unit]
    return kinks[(here.unsqueeze(1) - kinks).abs().argmin(dim=1)]


def _interpolate(grid: KnotGrid, env: Env, var: Var) -> Tensor:
    """The variable at the knots of `grid`, interpolated once and kept."""
    origin, values = env[var.index]
    if origin is not grid:
        values = grid.interpolate(values, origin)
        env[var.index] = (grid, values)
    return values


def _pool_crossings(step: AffinePiece, grid: KnotGrid, env: Env) -> Crossings:
    (var,) = step.node.inputs()
    z = _interpolate(grid, env, var)
    index, _ = index_windows(step, z)
    spatial = MAX_POOLS[step.node.func].spatial
    return find_switches(z.reshape(len(z), -1, z.shape[-spatial:].numel()), index, grid.bounds_piece)


def _choose_part_size(env: Env) -> int:
    """Knots of a part whose largest tensor stays in cache."""
    widest = max(values[0].numel() for _, values in env.values())
    device = next(iter(env.values()))[1].device.type
    return max(_SMALLEST_PART, _PART_BYTES.get(device, _PART_BYTES_ELSEWHERE) // (8 * widest))


def _split(grid: KnotGrid, size: int) -> Iterator[tuple[KnotGrid, range]]:
    """The grid, or runs of it of about `size` pieces where it has more than twice as many; neighbours share a
    knot."""
    pieces = len(grid) - 1
    count = 1 if pieces <= 2 * size else -(-pieces // size)
    for part in range(count):
        rows = range(pieces * part // count, pieces * (part + 1) // count + 1)
        yield (grid if count == 1 else grid.slice(rows[0], rows[-1])), rows


def _within(refined: Refined, rows: range) -> Refined:
    """The crossings at these knots, counted from the first."""
    kept = (refined.knot >= rows[0]) & (refined.knot <= rows[-1])
    return Refined(refined.grid, refined.knot[kept] - rows[0], refined.unit[kept])
