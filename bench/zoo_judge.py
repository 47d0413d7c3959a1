"""Judge what grokkit says of a network against an account of its own: `bench.zoo_trace` and the network's output."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import grokkit as gk
from bench.zoo_counts import FINER, FLOAT64, ROUNDED, LayerTruth, PoolTruth, count_by_derivatives, count_kernels
from bench.zoo_lines import (
    RADIUS,
    Scan,
    Verdict,
    choose_line,
    find_unexplained_bend,
    judge_ray,
    judge_segment,
    measure_complexity,
)
from bench.zoo_trace import Op, Structure, trace_structure
from grokkit.errors import GrokkitError

DIRECTIONS = 2
FUNCTIONS = ("vertex", "tangent", "ray", "segment")

_SHARE_TOLERANCE = 0.01

_SAMPLES = {"piecewise affine": 65, "other": 17}
_CHANGES = {"piecewise affine": range(8, 120), "other": range(9)}
"""Numbers of changes between the ends of the line that is scanned."""


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
    precision = ROUNDED if structure.is_rounded else FLOAT64
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
    for precision in () if structure.is_rounded else FINER:
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
