"""Judge what grokkit says of a network against an account of its own: `bench.zoo_trace` and the network's output."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import grokkit as gk
from bench.zoo_trace import Kinks, Op, Pooled, Structure, trace_kinks, trace_structure
from grokkit.errors import GrokkitError

RADIUS = 0.3
DIRECTIONS = 2
FUNCTIONS = ("vertex", "tangent", "ray", "segment")

_STEP = 1e-6
"""Step of the central differences."""
_TANGENT_TOLERANCE = 1e-4
"""Relative error of the central differences that is allowed for: units closer to the radius than this are ties."""
_ON_KINK = 1e-12
"""Distance to a kink, relative to the largest pre-activation, below which float64 does not know the side."""
_SAMPLES = 65
_CHANGES = range(8, 120)
"""Numbers of changes between the ends of the segment that is scanned for every one."""
_RAY_PIECES = 2000
_DEEPEST = 6
"""How often an interval is divided in 16 to find two changes of one unit between two samples."""


@dataclass
class Verdict:
    """What a function says of a network, and whether it is so.

    Args:
        verdict: exact, partial, refused or wrong.
        why: what is wrong, or the message that refuses.
        facts: numbers beside it.
    """

    verdict: str
    why: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


class LayerTruth(NamedTuple):
    """What the kernels say of one activation call: vertex count, bounds of the tangent count, and ties of the vertex
    count (units on their kink to rounding)."""

    path: str
    name: str
    units: int
    vertex: int
    ties: int
    tangent: tuple[int, int]


class PoolTruth(NamedTuple):
    """What the kernels say of one max-pool: windows, switches and sign changes at the vertices, bounds to first order."""

    path: str
    windows: int
    switches: int
    signs: int
    tangent: tuple[int, int]


def judge(model: nn.Module, image: Tensor, other: Tensor, seed: int = 0) -> dict[str, Any]:
    """Judge all functions on one network, in float64.

    Args:
        model: in eval mode and float64.
        image, other: two unlike images, without a batch dimension; the first is measured.
        seed: of the directions.
    """
    structure = trace_structure(model, torch.stack([image, other]))
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(image.numel(), DIRECTIONS, generator=generator, dtype=torch.float64))[0].T
    directions = frame.reshape(DIRECTIONS, *image.shape)
    is_piecewise_affine = not structure.smooth
    layers, pools = count_kernels(model, image, directions, structure)
    record: dict[str, Any] = {
        "kind": "piecewise affine" if is_piecewise_affine else "other",
        "smooth": sorted({op.name for op in structure.smooth}),
        "first_smooth": str(structure.smooth[0]) if structure.smooth else "",
        "calls": len(layers),
        "units": sum(layer.units for layer in layers),
        "vertex_total": sum(layer.vertex for layer in layers),
    }
    verdicts: dict[str, Verdict] = {}
    for method in ("vertex", "tangent"):
        verdicts[method] = judge_count(model, image, frame, method, structure, layers, pools)
    line = choose_line(model, image, directions[0], structure, record["vertex_total"])
    record["half_length"] = float(line[1].sub(line[0]).norm() / 2)
    scan = Scan(model, line, structure)
    scan.sample(np.linspace(0.0, 1.0, _SAMPLES))
    record["bends"] = find_unexplained_bend(scan) if scan.is_readable else {}
    if is_piecewise_affine:
        verdicts["segment"] = judge_segment(model, line, scan)
        verdicts["ray"] = judge_ray(model, line, scan, layers)
    else:
        verdicts["segment"] = judge_refusal(lambda: gk.partition_segment(model, *line, max_pieces=10), structure)
        verdicts["ray"] = judge_refusal(lambda: _measure(model, image, frame[:1], "ray", 1e-6), structure)
    check_affinity(record, verdicts)
    for name in FUNCTIONS:
        record[name] = {"verdict": verdicts[name].verdict, "why": verdicts[name].why, **verdicts[name].facts}
    return record


def _measure(model: nn.Module, image: Tensor, frame: Tensor, method: Any, radius: float) -> gk.LocalComplexity:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gk.local_complexity(model, image.unsqueeze(0), radius, method=method, frame=frame)


# ---------------------------------------------------------------------------------------------------------------------
# counts at the vertices and to first order


def count_kernels(
    model: nn.Module, image: Tensor, directions: Tensor, structure: Structure
) -> tuple[list[LayerTruth], list[PoolTruth]]:
    """Count every kernel's crossings between the vertices, and to first order by central differences."""
    count = len(directions)
    steps = [RADIUS * directions, -RADIUS * directions, _STEP * directions, -_STEP * directions]
    rows = torch.cat([image.unsqueeze(0), *(image + step for step in steps)])
    vertices, ahead, behind = (
        slice(1, 1 + 2 * count),
        slice(1 + 2 * count, 1 + 3 * count),
        slice(1 + 3 * count, 1 + 4 * count),
    )
    layers: list[LayerTruth] = []
    pools: list[PoolTruth] = []

    def on_kinks(call: Kinks) -> None:
        vertex = ties = low = high = 0
        for gap in call.gaps:
            corners = gap[vertices]
            smallest, largest = corners.amin(0), corners.amax(0)
            vertex += int((smallest.sign() != largest.sign()).sum())
            nearest = corners.abs().amin(0)
            ties += int(((nearest < _ON_KINK * call.scale) & (corners.abs().amax(0) > 0)).sum())
            reach = RADIUS * ((gap[ahead] - gap[behind]) / (2 * _STEP)).abs().amax(0)
            least, most = _bracket(gap[0].abs(), reach, call.scale)
            low, high = low + least, high + most
        layers.append(LayerTruth(call.path, call.name, call.units, vertex, ties, (low, high)))

    def on_pool(call: Pooled) -> None:
        pools.append(_count_pool(call, vertices, ahead, behind))

    trace_kinks(model, rows, structure.depends, on_kinks, on_pool)
    return layers, pools


def _bracket(distance: Tensor, reach: Tensor, scale: float) -> tuple[int, int]:
    """Count the units that are surely within reach, and those that may be."""
    # a unit that no direction moves, up to rounding, is on a dead path
    slack = _TANGENT_TOLERANCE * reach + RADIUS * 1e-15 * scale / _STEP
    sure = distance < reach - slack
    may = (distance < reach + slack) & (reach > RADIUS * 1e-15 * scale / _STEP)
    return int(sure.sum()), int((sure | may).sum())


def _windows(call: Pooled) -> Any:
    """Yield, for each position in a window, the entries of all windows (rows, channels, windows...), -inf outside."""
    kernel, stride, padding, dilation = _pool_arguments(call)
    z, sizes = call.z, call.pooled.shape[-2:]
    pads: list[int] = []
    for axis in (1, 0):
        needed = (sizes[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1
        pads += [padding[axis], max(0, needed - z.shape[-2 + axis] - padding[axis])]
    padded = nn.functional.pad(z, pads, value=-torch.inf)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilation[0], j * dilation[1]
            yield padded[
                ...,
                top : top + (sizes[0] - 1) * stride[0] + 1 : stride[0],
                left : left + (sizes[1] - 1) * stride[1] + 1 : stride[1],
            ]


def _pool_arguments(call: Pooled) -> list[tuple[int, int]]:
    defaults: list[Any] = [None, [], 0, 1]
    given = [*call.arguments[:4], *defaults[len(call.arguments[:4]) :]]
    pairs = [tuple(value) * (2 // len(value)) if isinstance(value, list | tuple) and value else value for value in given]
    pairs = [(value, value) if isinstance(value, int) else value for value in pairs]
    return [pair or pairs[0] for pair in pairs]


def _count_pool(call: Pooled, vertices: slice, ahead: slice, behind: slice) -> PoolTruth:
    if call.name != "max_pool2d_with_indices" or call.z.dim() != 4:
        return PoolTruth(call.path, -1, -1, -1, (-1, -1))
    alive = call.pooled > 0
    centre_flat, winners = call.z.flatten(2), call.winners[0].flatten(1)

    def slopes_of(rows: Tensor) -> Tensor:
        return (rows[ahead] - rows[behind]) / (2 * _STEP)

    winner_slopes = slopes_of(centre_flat.gather(2, winners.expand(len(call.z), *winners.shape)).reshape_as(call.pooled))
    holds = torch.zeros_like(alive[0])
    switched = [torch.zeros_like(alive[0]), torch.zeros_like(alive[0])]
    scale = float(call.z.abs().max())
    noise = RADIUS * 1e-15 * scale / _STEP
    for entry in _windows(call):
        holds |= ((entry >= call.pooled) | ~alive)[vertices].all(0)
        reach = RADIUS * (slopes_of(entry) - winner_slopes).abs().amax(0)
        gap = call.pooled[0] - entry[0]
        for at, slack in enumerate((-1.0, 1.0)):
            limit = reach + slack * (_TANGENT_TOLERANCE * reach + noise)
            switched[at] |= (entry[0] > 0) & (reach > noise) & (gap < limit)
    corners = alive[vertices]
    return PoolTruth(
        call.path,
        holds.numel(),
        int((~holds).sum()),
        int((corners.any(0) & ~corners.all(0)).sum()),
        (int(switched[0].sum()), int(switched[1].sum())),
    )


def judge_count(
    model: nn.Module,
    image: Tensor,
    frame: Tensor,
    method: str,
    structure: Structure,
    layers: Sequence[LayerTruth],
    pools: Sequence[PoolTruth],
) -> Verdict:
    """Judge the method "vertex" or "tangent"."""
    try:
        result = _measure(model, image, frame, method, RADIUS)
    except GrokkitError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("wrong", f"raises {type(error).__name__}: {error}")
    faults, extra = _match_layers(result, layers, method)
    faults += _match_pools(result, pools, method)
    unexplained, false_names = compare_names(result.uncounted, structure, extra)
    if unexplained:
        faults.append(f"bends and is neither counted nor named: {'; '.join(unexplained[:4])} ({len(unexplained)} in all)")
    if false_names:
        faults.append(f"named and does not bend: {'; '.join(false_names[:4])} ({len(false_names)} in all)")
    facts: dict[str, Any] = {
        "total": int(result.total),
        "uncounted": len(result.uncounted),
        "share": result.counted_share,
        "share_of_kernels": compute_share(structure),
        "proxies": len(result.proxy_layers),
        "names": list(result.uncounted[:3]),
    }
    if method == "tangent":
        facts["ties"] = sum(layer.tangent[1] - layer.tangent[0] for layer in layers)
    if bool(result.uncounted) != (result.counted_share < 1):
        faults.append(f"names {len(result.uncounted)} calls, with a counted share of {result.counted_share}")
    if faults:
        return Verdict("wrong", "; ".join(faults), facts)
    bent = any(op.name in ("hardswish", "gelu", "silu") for op in structure.ops)
    return Verdict("partial" if result.uncounted or bent else "exact", "", facts)


def _match_layers(
    result: gk.LocalComplexity, layers: Sequence[LayerTruth], method: str
) -> tuple[list[str], list[LayerTruth]]:
    """Return faults, and the kernels that have no layer in the result."""
    faults: list[str] = []
    extra: list[LayerTruth] = []
    names = list(result.layers)
    counts = result.counts[0].tolist()
    position = 0
    for layer in layers:
        if position == len(names) or not is_owner(layer.path, names[position]):
            extra.append(layer)
            continue
        name, count = names[position], counts[position]
        if result.units[name] != layer.units:
            extra.append(layer)
            continue
        position += 1
        low, high = (layer.vertex - layer.ties, layer.vertex + layer.ties) if method == "vertex" else layer.tangent
        if not low <= count <= high:
            faults.append(f"{name} counts {count} instead of {_format_range(low, high)}")
    if position < len(names):
        faults.append(f"the layer {names[position]} ({result.units[names[position]]} units) matches no kernel")
    return faults, extra


def _match_pools(result: gk.LocalComplexity, pools: Sequence[PoolTruth], method: str) -> list[str]:
    if len(result.pools) != len(pools):
        return [f"has {len(result.pools)} max-pools instead of {len(pools)}"]
    faults = []
    for at, (name, pool) in enumerate(zip(result.pools, pools, strict=True)):
        if pool.windows < 0:
            continue
        switches, signs = int(result.switches[0, at]), int(result.pool_signs[0, at])
        low, high = (pool.switches, pool.switches) if method == "vertex" else pool.tangent
        if not low <= switches <= high:
            faults.append(f"{name} switches {switches} times instead of {_format_range(low, high)}")
        if method == "vertex" and signs != pool.signs:
            faults.append(f"{name} changes {signs} signs instead of {pool.signs}")
    return faults


def _format_range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


# ---------------------------------------------------------------------------------------------------------------------
# names


def is_owner(path: str, name: str) -> bool:
    """Return whether a call named `name` is made by the module at `path`."""
    base = re.sub(r"( \(an input\))?(#\d+)?$", "", name)
    prefix = f"{path}." if path else ""
    return base == path or (base.startswith(prefix) and "." not in base[len(prefix) :])


def compare_names(
    uncounted: Sequence[str], structure: Structure, extra: Sequence[LayerTruth]
) -> tuple[list[str], list[str]]:
    """Return the bending kernels in modules that are not named, and the names in which no kernel bends."""
    paths = {op.path for op in structure.unseen}
    products = {op.path for op in structure.ops if op.counted and op.bends}
    unexplained = [str(op) for op in structure.unseen if not any(is_owner(op.path, name) for name in uncounted)]
    unexplained += [
        f"{layer.name} in {layer.path!r}"
        for layer in extra
        if not any(is_owner(layer.path, name) for name in uncounted)
    ]
    false = [name for name in uncounted if not any(is_owner(path, name) for path in paths | products)]
    return unexplained, false


def compute_share(structure: Structure) -> float:
    """Return the share of the values that counted kernels return, of those that all bending kernels return."""
    counted = sum(op.size for op in structure.ops if op.counted)
    unseen = sum(op.size for op in structure.unseen)
    return counted / (counted + unseen) if counted + unseen else 1.0


def judge_refusal(call: Callable[[], Any], structure: Structure) -> Verdict:
    """Judge a function that has to refuse, and to name the first call that is not piecewise affine."""
    first = structure.smooth[0]
    try:
        call()
    except GrokkitError as error:
        names = re.findall(r"'([^']*)'", str(error))
        facts = {"first": str(first), "names_first": any(is_owner(first.path, name) for name in names)}
        if not facts["names_first"]:
            return Verdict("wrong", f"refuses, but not for {first}: {error}", facts)
        return Verdict("refused", str(error), facts)
    except Exception as error:
        return Verdict("wrong", f"raises {type(error).__name__}: {error}")
    return Verdict("wrong", f"does not refuse, although {first} bends")


# ---------------------------------------------------------------------------------------------------------------------
# lines


class Change(NamedTuple):
    """A unit that crosses its kink between two samples, or a window whose winner changes: where, by interpolation."""

    t: float
    unit: tuple[int, int, int]


class Scan:
    """Samples of a network along a line, and the changes between neighbours.

    Args:
        model: the network.
        line: its ends.
        structure: its kernels.
    """

    def __init__(self, model: nn.Module, line: tuple[Tensor, Tensor], structure: Structure) -> None:
        self._model, self._line, self._structure = model, line, structure
        self.ts = np.zeros(0)
        self.outputs = torch.zeros(0)
        self.changes: list[list[Change]] = []
        self.crossed: dict[tuple[int, int], set[int]] = {}
        self.calls: list[tuple[str, int]] = []
        self.is_readable = True

    def sample(self, ts: np.ndarray) -> None:
        """Sample at these positions, and forget others; what was crossed is kept."""
        rows_at_once = max(4, min(33, 2**19 // self._line[0].numel()))
        self.ts, self.changes, outputs = ts, [[] for _ in ts[1:]], []
        for first in range(0, len(ts) - 1, rows_at_once - 1):
            part = ts[first : first + rows_at_once]
            out = self._run(part, first)
            outputs.append(out if first == 0 else out[1:])
        self.outputs = torch.cat(outputs).flatten(1)
        self.changes = [_merge(changes) for changes in self.changes]

    def _run(self, ts: np.ndarray, first: int) -> Tensor:
        a, b = self._line
        weights = torch.from_numpy(ts).view(-1, *(1,) * a.dim())
        number = iter(range(10**9))

        def on_kinks(call: Kinks) -> None:
            index = next(number)
            if index == len(self.calls):
                self.calls.append((call.path, call.units))
            zero = _ON_KINK * call.scale
            for kink, gap in enumerate(call.gaps):
                if not gap.shape[1]:
                    self.is_readable = False
                    continue
                side = gap.sign().masked_fill_(gap.abs() <= zero, 0)
                row, unit = (side[1:] != side[:-1]).nonzero(as_tuple=True)
                self.crossed.setdefault((index, kink), set()).update(unit.tolist())
                start, end = gap[row, unit], gap[row + 1, unit]
                is_crossing = side[row, unit] * side[row + 1, unit] < 0
                self._add(ts, first, row, start / (start - end), unit, is_crossing, (index, kink))

        def on_pool(call: Pooled) -> None:
            index = next(number)
            if index == len(self.calls):
                self.calls.append((call.path, -1))
            if call.winners.dtype != torch.int64:
                return
            z, winners, top = call.z.flatten(2), call.winners.flatten(2), call.pooled.flatten(2)
            start = top[:-1] - z[:-1].gather(2, winners[1:])
            end = z[1:].gather(2, winners[:-1]) - top[1:]
            zero = _ON_KINK * float(z.abs().max())
            is_switch = (winners[1:] != winners[:-1]) & (start > zero) & (end < -zero)
            row, channel, window = is_switch.nonzero(as_tuple=True)
            start, end = start[row, channel, window], end[row, channel, window]
            unit = channel * winners.shape[2] + window
            self._add(ts, first, row, start / (start - end), unit, torch.ones_like(row, dtype=torch.bool), (index, -1))

        return trace_kinks(self._model, torch.lerp(a, b, weights), self._structure.depends, on_kinks, on_pool)

    def _add(
        self,
        ts: np.ndarray,
        first: int,
        row: Tensor,
        position: Tensor,
        unit: Tensor,
        chosen: Tensor,
        call: tuple[int, int],
    ) -> None:
        for at, share, number in zip(row[chosen].tolist(), position[chosen].tolist(), unit[chosen].tolist(), strict=True):
            t = ts[at] + share * (ts[at + 1] - ts[at])
            self.changes[first + at].append(Change(t, (*call, number)))


def _merge(changes: list[Change]) -> list[Change]:
    """Merge changes at one place: of a unit that is read twice, or of one entry in several windows."""
    merged: list[Change] = []
    for change in sorted(changes):
        if not merged or change.t - merged[-1].t > 1e-11:
            merged.append(change)
    return merged


def choose_line(
    model: nn.Module, image: Tensor, direction: Tensor, structure: Structure, total: int
) -> tuple[Tensor, Tensor]:
    """Choose the ends of a line through the image with so few changes that every one can be found."""

    def count(half: float) -> int:
        scan = Scan(model, (image - half * direction, image + half * direction), structure)
        scan.sample(np.array([0.0, 1.0]))
        return len(scan.changes[0])

    half = RADIUS * min(1.0, 30 / max(total, 1))
    for _ in range(12):
        changes = count(half)
        if changes in _CHANGES:
            break
        if changes > _CHANGES.stop:
            half *= max(0.05, 40 / changes)
        else:
            half *= 3
            if half > 30 * RADIUS:
                break
    return image - half * direction, image + half * direction


def judge_segment(model: nn.Module, line: tuple[Tensor, Tensor], scan: Scan) -> Verdict:
    """Judge the breakpoints of `partition_segment` and its outputs at them."""
    try:
        result = gk.partition_segment(model, *line, max_pieces=_RAY_PIECES)
    except GrokkitError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("wrong", f"raises {type(error).__name__}: {error}")
    breakpoints = result.breakpoints
    facts: dict[str, Any] = {"breakpoints": len(breakpoints)}
    if not result.complete:
        return Verdict("wrong", f"has more than {_RAY_PIECES} pieces, and {sum(map(len, scan.changes))} changes were seen")
    knots, outputs = result.knots[0], result.outputs[0]
    between = np.stack([np.interp(scan.ts, knots, column) for column in outputs.T], axis=1)
    size = max(float(np.abs(outputs).max()), 1e-300)
    facts["output_error"] = float(np.abs(between - scan.outputs.numpy()).max()) / size
    faults = _compare_intervals(scan, breakpoints, facts)
    if facts["output_error"] > 1e-9:
        faults.append(f"the outputs between the knots are off by {facts['output_error']:.2g}")
    return Verdict("wrong" if faults else "exact", "; ".join(faults), facts)


def _compare_intervals(scan: Scan, breakpoints: np.ndarray, facts: dict[str, Any]) -> list[str]:
    """Compare the numbers of changes and breakpoints between neighbouring samples; divide intervals that differ."""
    finer = Scan(scan._model, scan._line, scan._structure)
    finer.crossed, finer.calls = scan.crossed, scan.calls
    open_intervals = _find_differences(scan, breakpoints)
    facts["changes"] = sum(map(len, scan.changes))
    facts["divided"] = len(open_intervals)
    for _ in range(_DEEPEST):
        still_open = []
        for start, end, _, _ in open_intervals:
            finer.sample(np.linspace(start, end, 17))
            still_open += _find_differences(finer, breakpoints)
        open_intervals = still_open
    return [
        f"{found} breakpoints instead of {seen} in [{start:.12g}, {end:.12g}]"
        for start, end, seen, found in open_intervals[:4]
    ]


def _find_differences(scan: Scan, breakpoints: np.ndarray) -> list[tuple[float, float, int, int]]:
    edges = np.searchsorted(breakpoints, scan.ts)
    return [
        (scan.ts[at], scan.ts[at + 1], len(changes), int(edges[at + 1] - edges[at]))
        for at, changes in enumerate(scan.changes)
        if len(changes) != edges[at + 1] - edges[at]
    ]


def judge_ray(model: nn.Module, line: tuple[Tensor, Tensor], scan: Scan, layers: Sequence[LayerTruth]) -> Verdict:
    """Judge the method "ray" along the line, after `judge_segment` has divided the scan where it had to."""
    centre, half = (line[0] + line[1]) / 2, (line[1] - line[0]).flatten() / 2
    radius = float(half.norm())
    try:
        result = _measure(model, centre, (half / radius).unsqueeze(0), "ray", radius)
    except GrokkitError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("wrong", f"raises {type(error).__name__}: {error}")
    expected: dict[int, int] = {}
    for (call, kink), units in scan.crossed.items():
        if kink >= 0:
            expected[call] = expected.get(call, 0) + len(units)
    calls = [at for at, (_, units) in enumerate(scan.calls) if units >= 0]
    facts = {"total": int(result.total), "seen": sum(expected.values())}
    if len(calls) != len(result.layers):
        return Verdict("wrong", f"has {len(result.layers)} layers instead of {len(calls)}", facts)
    faults = [
        f"{name} counts {count} instead of {expected.get(call, 0)}"
        for name, count, call in zip(result.layers, result.counts[0].tolist(), calls, strict=True)
        if count != expected.get(call, 0)
    ]
    return Verdict("wrong" if faults else "exact", "; ".join(faults[:4]), facts)


# ---------------------------------------------------------------------------------------------------------------------
# affinity


def find_unexplained_bend(scan: Scan) -> dict[str, Any]:
    """Fit a line and a parabola to the output along the longest run of samples between which no counted unit changes.

    A parabola removes one more degree of freedom of rounding errors, but most of a bend: `gain` is the ratio of the
    residuals' squares, about 1 if the output is straight.
    """
    best, start = (0, 0), 0
    for at, changes in enumerate([*scan.changes, [Change(1.0, (0, 0, 0))]]):
        if changes:
            best, start = max(best, (at - start, start)), at + 1
    length, start = best
    if length < 4:
        return {"samples": length + 1}
    rows = scan.outputs[start : start + length + 1]
    rows = rows - rows.mean(0)
    x = torch.linspace(-1, 1, length + 1, dtype=torch.float64)
    straight, curved = (_residual(rows, x, degree) for degree in (1, 2))
    size = float(scan.outputs.abs().max())
    gain = float(straight.square().sum() / curved.square().sum().clamp_min(1e-300)) if straight.any() else 1.0
    return {
        "samples": length + 1,
        "gain": gain,
        "off": float(straight.abs().max()) / max(size, 1e-300),
        "moved": float((rows[-1] - rows[0]).abs().max()) / max(size, 1e-300),
    }


def _residual(rows: Tensor, x: Tensor, degree: int) -> Tensor:
    basis = torch.linalg.qr(torch.stack([x**power for power in range(degree + 1)], dim=1))[0]
    return rows - basis @ (basis.T @ rows)


def check_affinity(record: dict[str, Any], verdicts: dict[str, Verdict]) -> None:
    """Change the verdicts that the output of the network contradicts."""
    gain, samples = record["bends"].get("gain"), record["bends"].get("samples", 0)
    if gain is None:
        return
    is_bent = gain > 3 * max(1.0, (samples - 2) / max(samples - 3, 1)) and record["bends"]["off"] > 1e-15
    record["bends"]["seen"] = is_bent
    for name, verdict in verdicts.items():
        if verdict.verdict == "exact" and is_bent:
            verdict.verdict = "wrong"
            verdict.why = f"{name} is called exact, but the output bends where no counted unit changes: gain {gain:.3g}"
