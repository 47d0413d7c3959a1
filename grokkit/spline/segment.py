"""Compute the exact partition of a segment by a network: every breakpoint, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grokkit.device.preserved_state import device_of, dtype_of
from grokkit.errors import UsageError
from grokkit.spline.affine import Program, build_program
from grokkit.spline.knots import KnotGrid
from grokkit.spline.measurement_mode import measurement_mode
from grokkit.spline.segment_sweep import StopSweep, Sweep
from grokkit.spline.uncounted import record_independent

_SEGMENTS_PER_SWEEP = 32
_BEND_TOLERANCE = 1e-12
"""Outputs closer to the chord than this, relative to the largest output, count as straight."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Segments:
    """The exact partition of one segment from a to b, or of several.

    Args:
        knots: float64 arrays, one per segment: 0, the breakpoints, and 1 (or the end of a partial result).
        outputs: float64 arrays (knot, output), the network at those knots; between them it is affine.
        made_by: int64 arrays (knot,): index into `layers` of the layer that makes each breakpoint; -1 at the ends.
        bends: bool arrays (knot,): whether the network's slope changes at the knot. Breakpoints without a bend separate
            activation regions that share one affine map (or maps whose difference is below float64's resolution).
        layers: names of the activations and max-pools, in call order.
        complete: False if `max_pieces` stopped the sweep; the result is then exact up to the last of `knots`, and later
            segments are missing.
        single: whether a and b were single points, so that the properties return values for one segment.
    """

    knots: list[np.ndarray]
    outputs: list[np.ndarray]
    made_by: list[np.ndarray]
    bends: list[np.ndarray]
    layers: tuple[str, ...]
    complete: bool
    single: bool

    @property
    def breakpoints(self) -> Any:
        """Sorted float64 positions in (0, 1) at which a unit crosses its kink or a max-pool changes its winner.

        A list of arrays for several segments.
        """
        return self._unwrap_single([t[layer >= 0] for t, layer in zip(self.knots, self.made_by, strict=True)])

    @property
    def affine_breakpoints(self) -> Any:
        """The breakpoints at which the slope of the network's output changes."""
        return self._unwrap_single([t[bends] for t, bends in zip(self.knots, self.bends, strict=True)])

    @property
    def count(self) -> Any:
        """int: number of activation regions along the segment, breakpoints + 1; a list for several segments."""
        return self._unwrap_single([int((layer >= 0).sum()) + 1 for layer in self.made_by])

    @property
    def affine_count(self) -> Any:
        """int: number of affine regions, neighbours with the same slope merged; a list for several segments."""
        return self._unwrap_single([int(bends.sum()) + 1 for bends in self.bends])

    @property
    def by_layer(self) -> dict[str, int]:
        """Layer -> number of breakpoints over all segments; if several layers share one, it counts for the first."""
        counts = Counter(int(layer) for layers in self.made_by for layer in layers if layer >= 0)
        return {name: counts[index] for index, name in enumerate(self.layers)}

    def _unwrap_single(self, values: list[Any]) -> Any:
        return values[0] if self.single else values

    def __repr__(self) -> str:
        regions, affine = (
            len(self.knots) + sum(int(cuts.sum()) for cuts in group)
            for group in ([layer >= 0 for layer in self.made_by], self.bends)
        )
        partial = "" if self.complete else ", complete=False"
        return f"Segments(segments={len(self.knots)}, regions={regions}, affine_regions={affine}{partial})"


def partition_segment(
    model: nn.Module, a: Tensor, b: Tensor, *, max_pieces: int = 100_000, progress: bool = False
) -> Segments:
    """Find every breakpoint of a network on the straight line from a to b, exactly.

    Layer by layer: between two neighbouring knots everything up to a layer is affine, so its crossings are computed
    from the values at the knots alone and inserted, and the next layer is run on the refined knots. Float64 throughout,
    also for a float32 model, whose weights are converted without change. A crossing counts if |z| > 1e-12 of the
    largest pre-activation at both ends; crossings closer than 1e-12 in t are one breakpoint; dead units and dead
    max-pool windows make none.

    Args:
        model: any module of affine layers, ReLU-like activations (relu, leaky_relu, prelu, relu6, hardtanh, clamp,
            abs), max- and average pools, BatchNorm in eval mode and residual adds; measured in eval mode, unmodified.
        a, b: the ends, floating tensors with the shape of one image (...) or of several (S, ...), in the model's input
            space. With one dimension more than an image of the network, they are the ends of S segments.
        max_pieces: stop after this many pieces, summed over all segments; the result then has complete=False.
        progress: show a progress bar on standard error.

    Returns:
        `Segments`: breakpoints, counts of activation and affine regions, and the network's output at every knot.

    Raises:
        UsageError: the ends differ in shape, are not finite or not floating, or `max_pieces` is below 1.
        ModelContractError: an operation is not piecewise affine (it is named), or the layers depend on the data.
        NumericsError: the model's output is not finite.

    Cost: about one float64 forward pass per knot; memory does not grow with the number of pieces.

    Source: the layer-wise exact line of Sotoudeh and Thakur, "Computing Linear Restrictions of Neural Networks",
    NeurIPS 2019, here for residual nets and with depth-first refinement.
    """
    if isinstance(max_pieces, bool) or not isinstance(max_pieces, int) or max_pieces < 1:
        raise UsageError(f"`max_pieces` must be an int >= 1; got {max_pieces!r}")
    with prepare_segments(model, a, b) as (program, ends, single), _progress_bar(progress) as advance:
        collector = _Collector(len(ends), max_pieces, advance)
        complete = sweep_segments(program, ends, collector)
    return collector.result(tuple(program.layers), complete, single)


def sweep_segments(program: Program, ends: Tensor, sink: Any) -> bool:
    """Sweep all segments in order; return False if the sink stopped the sweep."""
    sweep = Sweep(program, sink)
    try:
        for first in range(0, len(ends), _SEGMENTS_PER_SWEEP):
            sweep.run(ends[first : first + _SEGMENTS_PER_SWEEP], first)
    except StopSweep:
        return False
    return True


@contextmanager
def prepare_segments(
    model: nn.Module, a: Tensor, b: Tensor, batched: bool | None = None
) -> Iterator[tuple[Program, Tensor, bool]]:
    """Yield the model's float64 program, the ends (S, 2, ...) of the segments, and whether it is a single segment.

    Args:
        model: any module; in `measurement_mode` within the block.
        a, b: the ends.
        batched: whether the first dimension of the ends is the batch; None: detect it by running the model.
    """
    _check_ends(a, b)
    with measurement_mode(model) as inner:
        rows = torch.stack([end.detach().to(device_of(inner), torch.float64) for end in (a, b)])
        single = not (_is_batch(inner, rows[0]) if batched is None else batched)
        ends = rows.unsqueeze(0) if single else rows.transpose(0, 1)
        images = ends.flatten(0, 1)[:8].to(dtype_of(inner))
        record_independent(inner, images)
        yield build_program(inner, images), ends, single


def _is_batch(model: nn.Module, images: Tensor) -> bool:
    """Return whether the model takes the first dimension as the batch: it returns one row for one row."""
    if images.dim() < 2:
        return False  # numbers are one image
    try:
        out = model(images[:1].to(dtype_of(model)))
    except Exception:  # whatever a model raises for an image without its batch dimension
        return False
    return not isinstance(out, Tensor) or (out.dim() > 0 and len(out) == 1)


def _check_ends(a: Tensor, b: Tensor) -> None:
    for name, end in (("a", a), ("b", b)):
        if not isinstance(end, Tensor) or not end.is_floating_point() or end.dim() == 0 or end.numel() == 0:
            got = f"{end.dtype} {tuple(end.shape)}" if isinstance(end, Tensor) else type(end).__name__
            raise UsageError(f"`{name}` must be a floating tensor, (...) or (S, ...); got {got}")
        if not end.isfinite().all():
            raise UsageError(f"`{name}` must be finite; it holds NaN or infinity")
    if a.shape != b.shape:
        raise UsageError(f"`a` and `b` must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")


@contextmanager
def _progress_bar(progress: bool) -> Iterator[Callable[[int, float], None]]:
    """Show a progress bar of the share of the segments that is done, if `progress`; yield its update function."""
    if not progress:
        yield lambda pieces, share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.percentage:.0f} %  {task.fields[pieces]} pieces"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, pieces=0)
        yield lambda pieces, share: bar.update(task, completed=share, pieces=f"{pieces:,}")


class _Collector:
    """A sink that collects the parts of a sweep, finds the bends of the output, and stops after `max_pieces`."""

    def __init__(self, segments: int, max_pieces: int, advance: Callable[[int, float], None]) -> None:
        self._segments, self._max_pieces, self._advance = segments, max_pieces, advance
        self._grids: list[KnotGrid] = []
        self._outputs: list[Tensor] = []
        self._pieces = 0

    def consume(self, grid: KnotGrid, outputs: Tensor) -> None:
        """Append one part; raise `StopSweep` after `max_pieces`."""
        repeated = bool(self._grids) and _is_same_knot(self._grids[-1], grid)
        rows = slice(1 if repeated else 0, None)
        self._grids.append(KnotGrid(grid.segment[rows], grid.t[rows], grid.layer[rows]))
        self._outputs.append(outputs.reshape(len(outputs), -1)[rows])
        self._pieces += int(grid.bounds_piece.sum())
        self._advance(self._pieces, (float(grid.segment[-1]) + float(grid.t[-1])) / self._segments)
        if self._pieces >= self._max_pieces and (int(grid.segment[-1]), float(grid.t[-1])) != (self._segments - 1, 1.0):
            raise StopSweep

    def result(self, layers: tuple[str, ...], complete: bool, single: bool) -> Segments:
        """Return the collected parts as `Segments`."""
        segment, t, layer = (
            torch.cat([getattr(grid, name) for grid in self._grids]) for name in ("segment", "t", "layer")
        )
        outputs = torch.cat(self._outputs)
        bends = _find_bends(segment, t, outputs) & (layer >= 0)
        sizes = torch.bincount(segment).tolist()
        each = [[rows.cpu().numpy() for rows in torch.split(column, sizes)] for column in (t, outputs, layer, bends)]
        return Segments(
            knots=each[0],
            outputs=each[1],
            made_by=each[2],
            bends=each[3],
            layers=layers,
            complete=complete,
            single=single,
        )


def _is_same_knot(before: KnotGrid, after: KnotGrid) -> bool:
    return bool(before.segment[-1] == after.segment[0]) and bool(before.t[-1] == after.t[0])


def _find_bends(segment: Tensor, t: Tensor, outputs: Tensor) -> Tensor:
    """Return bool (knot,): whether the outputs at a knot deviate from the chord between its neighbours."""
    bends = torch.zeros_like(t, dtype=torch.bool)
    if len(t) < 3:
        return bends
    share = ((t[1:-1] - t[:-2]) / (t[2:] - t[:-2])).unsqueeze(1)
    chord = torch.lerp(outputs[:-2], outputs[2:], share)
    size = _BEND_TOLERANCE * outputs.abs().amax().clamp_min(torch.finfo(outputs.dtype).tiny)
    bends[1:-1] = ((outputs[1:-1] - chord).abs() > size).any(dim=1) & (segment[2:] == segment[:-2])
    return bends
