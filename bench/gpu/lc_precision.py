"""Local complexity of a trained net in every arithmetic that a GPU has, as grokkit counts it and as published."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable, Iterator

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bench.gpu.common import test_images, tf32, trained_model
from bench.gpu.results import ROOT, Row, Rows, Setting
from grokkit.device.preserved_state import strict_precision
from grokkit.figures.theme import FULL, themed
from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity

# by path, because on some machines another package is called `tests`
published_counts = runpy.run_path(str(ROOT / "tests" / "reference" / "published_lc.py"))["published_counts"]
RADII = (0.005, 0.05, 0.5)
SCALE = (0.5, 1, 2, 5, 10, 20)
"""Ratios named on the axis of the figure."""
STEPS = 500
"""Updates of the net that is counted."""

EXACT = ("float32, grokkit", "float32, published code", "float32")
"""Arithmetics that must count as float64 does, but for what `agrees` allows."""

Way = Callable[[], list[Tensor]]
"""Counts (point, layer) at each of `RADII`."""


def lc_by_precision(setting: Setting) -> Iterator[Row]:
    """Mean count per point of a trained net in every arithmetic, by vertices and by tangents; the first rows of a
    method are float64's, which the others are compared with."""
    points, directions = (4, 3) if setting.small else (64, 20)
    net, images = trained_model(setting, STEPS)[0].net, test_images(setting, points)
    frame = draw_orthonormal_frame(directions, images[0].numel()).to(images)
    exact: dict[tuple[str, float], Tensor] = {}
    for (method, arithmetic), count in {**vertex_ways(net, images, frame), **tangent_ways(net, images, frame)}.items():
        for radius, counts in zip(RADII, count(), strict=True):
            totals = counts.sum(-1).double().cpu()
            reference = exact.setdefault((method, radius), totals)
            row = {
                "method": method,
                "arithmetic": arithmetic,
                "radius": radius,
                "mean": totals.mean().item(),
                "over_float64": (totals.mean() / reference.mean()).item() if reference.any() else None,
                "over_vertex": (totals.mean() / exact["vertex", radius].mean()).item() if reference.any() else None,
                "points_that_differ": (totals != reference).double().mean().item(),
                "mean_difference": (totals - reference).abs().mean().item(),
                "points": points,
                "directions": directions,
            }
            if arithmetic in EXACT:
                row["passes"] = agrees(totals, reference)
            yield row


def agrees(counts: Tensor, reference: Tensor) -> bool:
    """Whether all counts together are apart by no more than 0.2 % of the units counted, or by two units."""
    apart = (counts.double() - reference.double()).abs().sum().item()
    return bool(apart <= max(2.0, 0.002 * reference.double().sum().item()))


def vertex_ways(net: nn.Module, images: Tensor, frame: Tensor) -> dict[tuple[str, str], Way]:
    """Counts at the vertices: grokkit's, and the published code's in the arithmetic that surrounds it."""

    def ours(model: nn.Module, x: Tensor) -> list[Tensor]:
        return [local_complexity(model, x, r, method="vertex", frame=frame.to(x)).counts for r in RADII]

    def published() -> list[Tensor]:
        return [published_counts(net, images, frame, radius) for radius in RADII]

    def in_tf32() -> list[Tensor]:
        with tf32():
            return published()

    def in_bfloat16() -> list[Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16):
            return published()

    def strictly() -> list[Tensor]:
        with strict_precision():
            return published()

    return {
        ("vertex", "float64"): lambda: ours(copy.deepcopy(net).double(), images.double()),
        ("vertex", "float32, grokkit"): lambda: ours(net, images),
        ("vertex", "float32, published code"): strictly,
        ("vertex", "torch's defaults, published code"): published,
        ("vertex", "TF32, published code"): in_tf32,
        ("vertex", "bfloat16, published code"): in_bfloat16,
    }


def tangent_ways(net: nn.Module, images: Tensor, frame: Tensor) -> dict[tuple[str, str], Way]:
    """Counts by tangents: in float64, in float32, and with tangents rounded to bfloat16, which a caller may ask for."""

    def spectrum(model: nn.Module, x: Tensor, tangents: str) -> list[Tensor]:
        return list(complexity_spectrum(model, x, RADII, frame=frame.to(x), tangents=tangents, quantiles=()).counts)

    return {
        ("tangent", "float64"): lambda: spectrum(copy.deepcopy(net).double(), images.double(), "exact"),
        ("tangent", "float32"): lambda: spectrum(net, images, "exact"),
        ("tangent", "bfloat16 tangents"): lambda: spectrum(net, images, "bfloat16"),
    }


def lines(rows: Rows) -> list[str]:
    """For the summary: count over that in float64, at each radius."""
    told = []
    for method, arithmetic in dict.fromkeys((row["method"], row["arithmetic"]) for row in rows):
        found = {row["radius"]: row for row in rows if (row["method"], row["arithmetic"]) == (method, arithmetic)}
        values = (f"r={radius:g}: {shown(row, arithmetic)}" for radius, row in found.items())
        told.append(f"LC {method:7} {arithmetic:33} {'  '.join(values)}")
    return told


def shown(row: Row, arithmetic: str) -> str:
    if arithmetic == "float64":
        return f"{row['mean']:.2f} units"
    return "no count" if row["over_float64"] is None else f"x {row['over_float64']:.3f}"


@themed
def inflation(rows: Rows) -> Figure:
    """Count over the float64 count, by arithmetic and radius."""
    others = [row for row in rows if row["arithmetic"] != "float64" and row["over_float64"]]
    names = list(dict.fromkeys(f"{row['method']}: {row['arithmetic']}" for row in others))
    figure = Figure(figsize=(0.8 * FULL, 0.28 * len(names) + 0.9), layout="constrained")
    axes = figure.subplots()
    for place, radius in enumerate(RADII):
        at = {f"{row['method']}: {row['arithmetic']}": row["over_float64"] for row in others if row["radius"] == radius}
        ys = [names.index(name) + 0.16 * (place - 1) for name in at]
        axes.plot(list(at.values()), ys, "osD"[place], ms=4, label=f"r = {radius:g}")
    axes.axvline(1.0, color="0.5", lw=0.6)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="local complexity / that in float64", xscale="log")
    axes.set_xticks(SCALE, labels=[f"{ratio:g}" for ratio in SCALE])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.legend()
    return figure
