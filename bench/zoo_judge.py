"""Judge what grokkit says of a network against an account of its own: `bench.zoo_trace` and the network's output."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import grokkit as gk
from bench.zoo_lines import (
    ON_KINK,
    RADIUS,
    Scan,
    Verdict,
    choose_line,
    find_unexplained_bend,
    judge_ray,
    judge_segment,
    measure_complexity,
)
from bench.zoo_trace import Kinks, Op, Pooled, Structure, find_scale, trace_kinks, trace_structure
from grokkit.errors import GrokkitError

DIRECTIONS = 2
FUNCTIONS = ("vertex", "tangent", "ray", "segment")

_SHARE_TOLERANCE = 0.01

_SAMPLES = {"piecewise affine": 65, "other": 17}
_CHANGES = {"piecewise affine": range(8, 120), "other": range(9)}
"""Numbers of changes between the ends of the line that is scanned."""


class Precision(NamedTuple):
    """What rounding leaves of a count.

    Args:
        rounding: relative rounding errors of a pre-activation.
        tie: distance to a kink, relative to the largest pre-activation, below which the side is not known.
        step: of the central differences.
        tangent: relative error of the central differences: units closer to the radius than this are ties.
    """

    rounding: float
    tie: float
    step: float
    tangent: float


_FLOAT64 = Precision(1e-15, ON_KINK, 1e-6, 1e-4)
_FINER = tuple(Precision(1e-15, ON_KINK, step, 1e-3) for step in (1e-7, 1e-8, 1e-9, 1e-10))
"""Tried in turn where the counts differ: a unit that changes within a step changes the differences of all behind it."""
_ROUNDED = Precision(1e-7, 1e-5, 1e-2, 0.05)
"""Of a float64 model that computes in float32 in places."""


class LayerTruth(NamedTuple):
    """What the kernels say of one activation call: vertex count, bounds of the tangent count, and ties of the vertex
    count (units on their kink to rounding)."""

    path: str
    function: str
    name: str
    units: int
    vertex: int
    ties: int
    tangent: tuple[int, int]


class PoolTruth(NamedTuple):
    """What the kernels say of one max-pool: windows, switches and sign changes at the vertices, switches to first
    order."""

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
    precision = _ROUNDED if structure.is_rounded else _FLOAT64
    layers, pools = count_kernels(model, image, directions, structure, precision)
    kind = "piecewise affine" if is_piecewise_affine else "other"
    record: dict[str, Any] = {
        "kind": kind,
        "rounds_to_float32": structure.is_rounded,
        "smooth": sorted({op.name for op in structure.smooth}),
        "first_smooth": str(structure.smooth[0]) if structure.smooth else "",
        "calls": len(layers),
        "units": sum(layer.units for layer in layers),
        "vertex_total": sum(layer.vertex for layer in layers),
    }
    verdicts: dict[str, Verdict] = {}
    for method in ("vertex", "tangent"):
        verdicts[method] = judge_count(model, image, frame, method, structure, layers, pools)
    for precision in () if structure.is_rounded else _FINER:
        if verdicts["tangent"].verdict == "wrong":
            finer = count_kernels(model, image, directions, structure, precision)
            verdicts["tangent"] = judge_count(model, image, frame, "tangent", structure, *finer)
    if verdicts["tangent"].verdict == "wrong" and (exact := count_by_derivatives(model, image, directions, layers)):
        verdicts["tangent"] = judge_count(model, image, frame, "tangent", structure, exact, pools)
    line = choose_line(model, image, directions[0], structure, record["vertex_total"], _CHANGES[kind])
    record["half_length"] = float(line[1].sub(line[0]).norm() / 2)
    scan = Scan(model, line, structure)
    scan.sample(np.linspace(0.0, 1.0, _SAMPLES[kind]))
    record["bends"] = find_unexplained_bend(scan) if scan.is_readable else {}
    if is_piecewise_affine:
        verdicts["segment"] = judge_segment(model, line, scan)
        verdicts["ray"] = judge_ray(model, line, scan)
    else:
        verdicts["segment"] = judge_refusal(
            lambda: gk.partition_segment(model, *line, max_pieces=10), structure, Names(model)
        )
        verdicts["ray"] = judge_refusal(
            lambda: measure_complexity(model, image, frame[:1], "ray", 1e-6), structure, Names(model)
        )
    check_affinity(record, verdicts)
    for name in FUNCTIONS:
        record[name] = {"verdict": verdicts[name].verdict, "why": verdicts[name].why, **verdicts[name].facts}
    return record


def count_by_derivatives(
    model: nn.Module, image: Tensor, directions: Tensor, layers: list[LayerTruth]
) -> list[LayerTruth]:
    """Count to first order by torch's forward-mode derivatives, for a net all of whose counted calls are ReLU modules.

    Where units lie so close to their kinks that they change within every step, differences say nothing. Empty for
    other nets.
    """
    seen: list[tuple[str, Tensor, Tensor]] = []
    reaches: list[Tensor] = []

    def on_call(path: str, inputs: tuple[Tensor, ...]) -> None:
        value, tangent = forward_ad.unpack_dual(inputs[0])
        seen.append((path, value.abs().clone(), tangent.abs().clone()))

    handles = [
        module.register_forward_pre_hook(lambda _, inputs, path=path: on_call(path, inputs))
        for path, module in model.named_modules()
        if isinstance(module, nn.ReLU)
    ]
    try:
        for direction in directions:
            seen.clear()
            with forward_ad.dual_level():
                model(forward_ad.make_dual(image.unsqueeze(0), direction.unsqueeze(0)))
            moved = [tangent for _, _, tangent in seen]
            reaches = [torch.maximum(*pair) for pair in zip(reaches, moved, strict=True)] if reaches else moved
    finally:
        for handle in handles:
            handle.remove()
    if [path for path, _, _ in seen] != [layer.path for layer in layers]:
        return []
    counts = [int((value < RADIUS * reach).sum()) for (_, value, _), reach in zip(seen, reaches, strict=True)]
    return [layer._replace(tangent=(count, count)) for layer, count in zip(layers, counts, strict=True)]


def count_kernels(
    model: nn.Module, image: Tensor, directions: Tensor, structure: Structure, precision: Precision
) -> tuple[list[LayerTruth], list[PoolTruth]]:
    """Count every kernel's crossings between the vertices, and to first order by central differences."""
    count = len(directions)
    steps = [scale * directions for scale in (RADIUS, -RADIUS, precision.step, -precision.step)]
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
            ties += int(((nearest < precision.tie * call.scale) & (corners.abs().amax(0) > 0)).sum())
            reach = RADIUS * ((gap[ahead] - gap[behind]) / (2 * precision.step)).abs().amax(0)
            least, most = _bracket(gap[0].abs(), reach, call.scale, precision)
            low, high = low + least, high + most
        layers.append(LayerTruth(call.path, call.function, call.name, call.units, vertex, ties, (low, high)))

    def on_pool(call: Pooled) -> None:
        pools.append(_count_pool(call, vertices, ahead, behind, precision))

    trace_kinks(model, rows, structure.depends, on_kinks, on_pool)
    return layers, pools


def _bracket(distance: Tensor, reach: Tensor, scale: float, precision: Precision) -> tuple[int, int]:
    """Count the units that are surely within reach, and those that may be."""
    # a unit that no direction moves, up to rounding, is on a dead path
    noise = RADIUS * precision.rounding * scale / precision.step
    slack = precision.tangent * reach + noise
    sure = distance < reach - slack
    may = (distance < reach + slack) & (reach > noise)
    return int(sure.sum()), int((sure | may).sum())


def _windows(call: Pooled) -> Iterator[Tensor]:
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
    pairs = [
        tuple(value) * (2 // len(value)) if isinstance(value, list | tuple) and value else value for value in given
    ]
    pairs = [(value, value) if isinstance(value, int) else value for value in pairs]
    return [pair or pairs[0] for pair in pairs]


def _count_pool(call: Pooled, vertices: slice, ahead: slice, behind: slice, precision: Precision) -> PoolTruth:
    if call.name != "max_pool2d_with_indices" or call.z.dim() != 4:
        return PoolTruth(call.path, -1, -1, -1, (-1, -1))
    alive = call.pooled > 0
    centre_flat, winners = call.z.flatten(2), call.winners[0].flatten(1)

    def slopes_of(rows: Tensor) -> Tensor:
        return (rows[ahead] - rows[behind]) / (2 * precision.step)

    winner_slopes = slopes_of(
        centre_flat.gather(2, winners.expand(len(call.z), *winners.shape)).reshape_as(call.pooled)
    )
    holds = torch.zeros_like(alive[0])
    switched = [torch.zeros_like(alive[0]), torch.zeros_like(alive[0])]
    noise = RADIUS * precision.rounding * find_scale(call.z) / precision.step
    for entry in _windows(call):
        holds |= ((entry >= call.pooled) | ~alive)[vertices].all(0)
        reach = RADIUS * (slopes_of(entry) - winner_slopes).abs().amax(0)
        gap = call.pooled[0] - entry[0]
        for at, slack in enumerate((-1.0, 1.0)):
            limit = reach + slack * (precision.tangent * reach + noise)
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
        result = measure_complexity(model, image, frame, method, RADIUS)
    except GrokkitError as error:
        return Verdict("refused", str(error))
    except Exception as error:
        return Verdict("wrong", f"raises {type(error).__name__}: {error}")
    names = Names(model)
    faults, extra = _match_layers(result, layers, method, names)
    faults += _match_pools(result, pools, method)
    unexplained, false_names = compare_names(result.uncounted, structure, extra, names)
    if unexplained:
        faults.append(
            f"bends and is neither counted nor named: {'; '.join(unexplained[:4])} ({len(unexplained)} in all)"
        )
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
    if abs(result.counted_share - facts["share_of_kernels"]) > _SHARE_TOLERANCE:
        faults.append(f"has a counted share of {result.counted_share} instead of {facts['share_of_kernels']}")
    if faults:
        return Verdict("wrong", "; ".join(faults), facts)
    bent = any(op.name in ("hardswish", "gelu", "silu") for op in structure.ops)
    return Verdict("partial" if result.uncounted or bent else "exact", "", facts)


def _match_layers(
    result: gk.LocalComplexity, layers: Sequence[LayerTruth], method: str, owners: Names
) -> tuple[list[str], list[LayerTruth]]:
    """Return faults, and the kernels that have no layer in the result."""
    faults: list[str] = []
    extra: list[LayerTruth] = []
    names = list(result.layers)
    counts = result.counts[0].tolist()
    position = 0
    for layer in layers:
        if position == len(names) or owners.split(names[position])[0] != layer.path:
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


class Names:
    """Whether a call that grokkit names is one that a kernel belongs to.

    Args:
        model: the network, whose modules' paths are names, alone or before that of a function.
    """

    def __init__(self, model: nn.Module) -> None:
        self._leaves = {path for path, module in model.named_modules() if next(module.children(), None) is None}

    def split(self, name: str) -> tuple[str, str]:
        """Return the path and the function that a name consists of; "" for the function of an activation module."""
        base = re.sub(r"#\d+$", "", name)
        if base in self._leaves:
            return base, ""
        path, _, function = base.rpartition(".")
        return path, function

    def has_kernel(self, name: str, path: str, function: str, kernel: str) -> bool:
        """Return whether the kernel is called by the function and in the module that a name says."""
        module, called = self.split(name)
        if module != path:
            return False
        words = [word.strip("_") for word in (function, kernel)]
        return not called or " (an input)" in called or any(called.strip("_") in word for word in words)


def compare_names(
    uncounted: Sequence[str], structure: Structure, extra: Sequence[LayerTruth], names: Names
) -> tuple[list[str], list[str]]:
    """Return the bending kernels whose calls are not named, and the names of calls in which no kernel bends."""
    products = [op for op in structure.ops if op.counted and op.bends]
    kernels: list[Op | LayerTruth] = [*structure.unseen, *extra]
    unexplained = [
        f"{op.name} in {op.path or 'the model'!r}"
        for op in kernels
        if not any(names.has_kernel(name, op.path, op.function, op.name) for name in uncounted)
    ]
    false = [
        name
        for name in uncounted
        if not any(names.has_kernel(name, op.path, op.function, op.name) for op in (*structure.unseen, *products))
    ]
    return unexplained, false


def compute_share(structure: Structure) -> float:
    """Return the share of the values that counted calls return, of those that all calls with a bending kernel do."""
    unseen = {op.call for op in structure.unseen}
    counted = {op.call for op in structure.ops} - unseen
    values, others = (sum(structure.sizes[call] for call in calls) for calls in (counted, unseen))
    return values / (values + others) if values + others else 1.0


def judge_refusal(call: Callable[[], Any], structure: Structure, names: Names) -> Verdict:
    """Judge a function that has to refuse, and to name the first call that is not piecewise affine."""
    first = structure.smooth[0]
    try:
        call()
    except GrokkitError as error:
        quoted = re.findall(r"'([^']*)'", str(error))
        facts = {"first": str(first)}
        if not any(names.has_kernel(name, first.path, first.function, first.name) for name in quoted):
            return Verdict("wrong", f"refuses, but not for {first}: {error}", facts)
        return Verdict("refused", str(error), facts)
    except Exception as error:
        return Verdict("wrong", f"raises {type(error).__name__}: {error}")
    return Verdict("wrong", f"does not refuse, although {first} bends")


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
