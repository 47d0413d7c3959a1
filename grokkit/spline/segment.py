"""The exact partition that a network makes of a segment: every breakpoint, in float64."""

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

_TOGETHER = 32
_STRAIGHT = 1e-12
"""Outputs this close to the chord, relative to the largest output of the part, do not bend."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Segments:
    """The exact partition of one segment from a to b, or of several.

    Args:
        knots: float64 arrays, one per segment: 0, the breakpoints, and 1 (or where a partial result ends).
        outputs: float64 arrays (knot, output), the network at those knots; between them it is affine.
        made_by: int64 arrays (knot,): index into `layers` of the layer that makes each breakpoint; -1 at the ends.
        bends: bool arrays (knot,): whether the network's slope changes there. Breakpoints that do not bend separate
            activation regions that share one affine map (or maps whose difference is below float64's resolution).
        layers: names of the activations and max-pools, in call order.
        complete: False where `max_pieces` stopped the sweep: then the last of `knots` says how far it is exact, and
            segments behind it are missing.
        single: whether a and b were single points, so that the properties speak of one segment.
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
        """float64 in (0, 1), sorted: where a unit crosses its kink or a max-pool changes its winner; a list of arrays
        for several segments."""
        return self._each([t[made >= 0] for t, made in zip(self.knots, self.made_by, strict=True)])

    @property
    def affine_breakpoints(self) -> Any:
        """The breakpoints at which the network's own slope changes."""
        return self._each([t[bends] for t, bends in zip(self.knots, self.bends, strict=True)])

    @property
    def count(self) -> Any:
        """int: activation regions met, breakpoints + 1; a list for several segments."""
        return self._each([int((made >= 0).sum()) + 1 for made in self.made_by])

    @property
    def affine_count(self) -> Any:
        """int: affine regions met, after neighbours with the same slope are merged; a list for several segments."""
        return self._each([int(bends.sum()) + 1 for bends in self.bends])

    @property
    def by_layer(self) -> dict[str, int]:
        """Breakpoints that each layer makes, over all segments; where several layers bend at once, the first has it."""
        made = Counter(int(layer) for one in self.made_by for layer in one if layer >= 0)
        return {name: made[index] for index, name in enumerate(self.layers)}

    def _each(self, values: list[Any]) -> Any:
        return values[0] if self.single else values

    def __repr__(self) -> str:
        regions, affine = (
            len(self.knots) + sum(int(cuts.sum()) for cuts in group)
            for group in ([made >= 0 for made in self.made_by], self.bends)
        )
        partial = "" if self.complete else ", complete=False"
        return f"Segments(segments={len(self.knots)}, regions={regions}, affine_regions={affine}{partial})"


def partition_segment(
    model: nn.Module, a: Tensor, b: Tensor, *, max_pieces: int = 100_000, progress: bool = False
) -> Segments:
    """Every breakpoint of a network on the straight line from a to b, exactly.

    Layer by layer: between two neighbouring knots everything up to a layer is affine, so its crossings are found from
    the values at the knots alone, inserted, and the next layer is run on the refined knots. Float64 throughout, also
    for a float32 model, whose weights are read as they are. A crossing counts where |z| > 1e-12 of the largest
    pre-activation at both ends; crossings closer than 1e-12 in t are one breakpoint; dead units and dead max-pool
    windows make none.

    Args:
        model: any module of affine layers, ReLU-like activations (relu, leaky_relu, prelu, relu6, hardtanh, clamp,
            abs), max- and average pools, BatchNorm in eval mode and residual adds; measured in eval mode, unmodified.
        a, b: the ends, floating tensors of one image's shape (...) or of several (S, ...), in the model's input
            space. One more dimension than the network takes in an image means several segments: pass (S, ...) for S.
        max_pieces: stop behind this many pieces, all segments together; the result says that it is partial.
        progress: show a bar on standard error.

    Returns:
        `Segments`: breakpoints, counts of activation and affine regions, and the network's output at every knot.

    Raises:
        UsageError: ends of other shapes, not finite or not floating, or `max_pieces` below 1.
        ModelContractError: an operation that is not piecewise affine (it is named), or layers that depend on the data.
        NumericsError: the model's output is not finite.

    Cost: about one float64 forward pass per knot; memory does not grow with the number of pieces.

    Source: the layer-wise exact line of Sotoudeh and Thakur, "Computing Linear Restrictions of Neural Networks",
    NeurIPS 2019, here for residual nets and with depth-first refinement.
    """
    if isinstance(max_pieces, bool) or not isinstance(max_pieces, int) or max_pieces < 1:
        raise UsageError(f"`max_pieces` must be an int >= 1; got {max_pieces!r}")
    with prepare_segments(model, a, b) as (net, ends, single), _progress_bar(progress) as advance:
        gathered = _Collector(len(ends), max_pieces, advance)
        complete = sweep_segments(net, ends, gathered)
    return gathered.result(tuple(net.layers), complete, single)


def sweep_segments(net: Program, ends: Tensor, sink: Any) -> bool:
    """Sweep all segments in order; False where the sink had enough."""
    sweep = Sweep(net, sink)
    try:
        for first in range(0, len(ends), _TOGETHER):
            sweep.run(ends[first : first + _TOGETHER], first)
    except StopSweep:
        return False
    return True


@contextmanager
def prepare_segments(
    model: nn.Module, a: Tensor, b: Tensor, batched: bool | None = None
) -> Iterator[tuple[Program, Tensor, bool]]:
    """The model's float64 program and the ends (S, 2, ...) of the segments.

    Args:
        model: any module.
        a, b: the ends; they hold several segments where `batched`.
        batched: None: where the model takes their first dimension for the batch.
    """
    _check_ends(a, b)
    with measurement_mode(model) as inner:
        rows = torch.stack([end.detach().to(device_of(inner), torch.float64) for end in (a, b)])
        single = not (_is_batch(inner, rows[0]) if batched is None else batched)
        ends = rows.unsqueeze(0) if single else rows.transpose(0, 1)
        yield build_program(inner, ends.flatten(0, 1)[:8].to(dtype_of(inner))), ends, single


def _is_batch(model: nn.Module, images: Tensor) -> bool:
    """Whether the model takes the first dimension for the batch: it answers one row for one row."""
    try:
        out = model(images[:1].to(dtype_of(model)))
    except Exception:  # whatever a model raises for an image without its batch dimension
        return False
    return isinstance(out, Tensor) and out.dim() > 1 and len(out) == 1


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
    """A bar of the share of the segments that is done; nothing where it is not wanted."""
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
    """Takes the parts of a sweep, tells where the output bends, and stops at the cap."""

    def __init__(self, segments: int, cap: int, advance: Callable[[int, float], None]) -> None:
        self._segments, self._cap, self._advance = segments, cap, advance
        self._grids: list[KnotGrid] = []
        self._outputs: list[Tensor] = []
        self._pieces = 0

    def take(self, grid: KnotGrid, outputs: Tensor) -> None:
        repeated = bool(self._grids) and _same_knot(self._grids[-1], grid)
        rows = slice(1 if repeated else 0, None)
        self._grids.append(KnotGrid(grid.segment[rows], grid.t[rows], grid.layer[rows]))
        self._outputs.append(outputs.flatten(1)[rows])
        self._pieces += int(grid.bounds_piece.sum())
        self._advance(self._pieces, (float(grid.segment[-1]) + float(grid.t[-1])) / self._segments)
        if self._pieces >= self._cap and (int(grid.segment[-1]), float(grid.t[-1])) != (self._segments - 1, 1.0):
            raise StopSweep

    def result(self, layers: tuple[str, ...], complete: bool, single: bool) -> Segments:
        segment, t, made = (
            torch.cat([getattr(grid, name) for grid in self._grids]) for name in ("segment", "t", "layer")
        )
        outputs = torch.cat(self._outputs)
        bends = _find_bends(segment, t, outputs) & (made >= 0)
        sizes = torch.bincount(segment).tolist()
        each = [[rows.cpu().numpy() for rows in column.split(sizes)] for column in (t, outputs, made, bends)]
        return Segments(
            knots=each[0],
            outputs=each[1],
            made_by=each[2],
            bends=each[3],
            layers=layers,
            complete=complete,
            single=single,
        )


def _same_knot(before: KnotGrid, after: KnotGrid) -> bool:
    return bool(before.segment[-1] == after.segment[0]) and bool(before.t[-1] == after.t[0])


def _find_bends(segment: Tensor, t: Tensor, outputs: Tensor) -> Tensor:
    """bool (knot,): whether the outputs at a knot leave the chord between its neighbours."""
    bends = torch.zeros_like(t, dtype=torch.bool)
    if len(t) < 3:
        return bends
    share = ((t[1:-1] - t[:-2]) / (t[2:] - t[:-2])).unsqueeze(1)
    chord = torch.lerp(outputs[:-2], outputs[2:], share)
    size = _STRAIGHT * outputs.abs().amax().clamp_min(torch.finfo(outputs.dtype).tiny)
    bends[1:-1] = ((outputs[1:-1] - chord).abs() > size).any(dim=1) & (segment[2:] == segment[:-2])
    return bends
