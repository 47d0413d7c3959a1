"""Scan a network along a line for every change of a unit or max-pool, and judge exact partitions by what was seen."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import grokkit as gk
from bench.zoo_trace import Kinks, Pooled, Structure, find_scale, trace_kinks
from grokkit.errors import GrokkitError

RADIUS = 0.3
ON_KINK = 1e-12
"""Distance to a kink, relative to the largest pre-activation, below which float64 does not know the side."""

_PIECES = 2000
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


def measure_complexity(
    model: nn.Module, image: Tensor, frame: Tensor, method: Any, radius: float
) -> gk.LocalComplexity:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gk.local_complexity(model, image.unsqueeze(0), radius, method=method, frame=frame)


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
            zero = ON_KINK * call.scale
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
            zero = ON_KINK * find_scale(z)
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
        for at, share, number in zip(
            row[chosen].tolist(), position[chosen].tolist(), unit[chosen].tolist(), strict=True
        ):
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
    model: nn.Module, image: Tensor, direction: Tensor, structure: Structure, total: int, wanted: range
) -> tuple[Tensor, Tensor]:
    """Choose the ends of a line through the image between which a wanted number of changes is seen.

    Args:
        model, structure: the network.
        image: the middle of the line.
        direction: of length 1.
        total: vertex count, from which the length is guessed.
        wanted: numbers of changes; the line is as short as they ask, and at most 60 radii long.
    """
    half = RADIUS * min(1.0, (wanted.start + wanted.stop) / 4 / max(total, 1))
    for _ in range(12):
        scan = Scan(model, (image - half * direction, image + half * direction), structure)
        scan.sample(np.array([0.0, 1.0]))
        changes = len(scan.changes[0])
        if changes in wanted:
            break
        half *= max(0.05, wanted.stop / 3 / changes) if changes >= wanted.stop else 3
        if half > 30 * RADIUS:
            break
    return image - half * direction, image + half * direction


def judge_segment(model: nn.Module, line: tuple[Tensor, Tensor], scan: Scan) -> Verdict:
    """Judge the breakpoints of `partition_segment` and its outputs at them."""
    try:
        result = gk.partition_segment(model, *line, max_pieces=_PIECES)
    except GrokkitError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("wrong", f"raises {type(error).__name__}: {error}")
    breakpoints = result.breakpoints
    facts: dict[str, Any] = {"breakpoints": len(breakpoints)}
    if not result.complete:
        return Verdict("wrong", f"has more than {_PIECES} pieces, and {sum(map(len, scan.changes))} changes were seen")
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


def judge_ray(model: nn.Module, line: tuple[Tensor, Tensor], scan: Scan) -> Verdict:
    """Judge the method "ray" along the line, after `judge_segment` has divided the scan where it had to."""
    centre, half = (line[0] + line[1]) / 2, (line[1] - line[0]).flatten() / 2
    radius = float(half.norm())
    try:
        result = measure_complexity(model, centre, (half / radius).unsqueeze(0), "ray", radius)
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
    fitted: Tensor = basis @ (basis.T @ rows)
    return rows - fitted
