"""Stage b: what local complexity costs on this device, by method and precision, beside plain forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bench.gpu.common import SHAPE, ceilings, median, seeded_net, test_images
from bench.gpu.results import Results, Row, Rows, Setting
from grokkit.device.preserved_state import strict_precision
from grokkit.figures.theme import FULL, PALETTE, save_figure, themed
from grokkit.measures.profile import profile
from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity

TITLE = "what local complexity costs: vertex, tangents in float32 and in bfloat16, plain forward passes"
RADII = np.geomspace(1e-3, 1.0, 16).tolist()
CHUNK = 1024
"""Images of one plain forward pass."""
NETS = {
    "preact_resnet18, k = 16, no norm": ("preact_resnet18", {"width": 16, "norm": "none"}),
    "preact_resnet18, k = 64, no norm": ("preact_resnet18", {"width": 64, "norm": "none"}),
    "resnet18": ("resnet18", {}),
}


def measure(results: Results) -> None:
    setting = results.setting
    results.part("ceiling", partial(ceilings, setting))
    tops = {row["precision"]: row["tflop_per_s"] for row in results.parts.get("ceiling", [])}
    for name in list(NETS)[:1] if setting.small else NETS:
        results.part(name, partial(costs, setting, name, tops), needs=30)
    results.measured_last()
    if costed(results.parts):
        save_figure(bars(results.parts), setting.out / "lc_cost")


def costs(setting: Setting, name: str, tops: dict[str, float]) -> Iterator[Row]:
    """Seconds (median of five after a warm-up) for all points; one radius by vertices, sixteen by tangents. The ceiling
    that they are held against is that of the precision in which most of the arithmetic runs."""
    points, directions = (4, 3) if setting.small else (256, 20)
    model, options = NETS[name]
    net = seeded_net(model, **(options | {"width": 8} if setting.small else options)).to(setting.device).eval()
    images = test_images(setting, points)
    frame = draw_orthonormal_frame(directions, images[0].numel()).to(images)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "forward of 1 + P images a point, float32": (partial(forward, net, images, 1 + directions), 1 + directions),
        "tangent, 16 radii, bfloat16": (
            lambda: complexity_spectrum(net, images, RADII, frame=frame, tangents="bfloat16"),
            1 + directions,
        ),
        "tangent, 16 radii, float32": (
            lambda: complexity_spectrum(net, images, RADII, frame=frame, tangents="exact"),
            1 + directions,
        ),
        "vertex, one radius, float32": (lambda: local_complexity(net, images, 0.005, frame=frame), 2 * directions + 1),
    }
    flop = 2 * profile(net, SHAPE).macs * points
    for way, (call, passes) in ways.items():
        seconds = median(call, setting)
        reached, top = flop * passes / seconds / 1e12, tops.get(way.rpartition(", ")[2])
        yield {
            "what": way,
            "seconds": seconds,
            "points": points,
            "directions": directions,
            "images_per_s": points * passes / seconds,
            "tflop_per_s": reached,
            "share_of_ceiling": top and reached / top,
        }


@torch.no_grad()
def forward(net: nn.Module, images: Tensor, times: int) -> None:
    """The net on every image so many times, in strict float32."""
    with strict_precision():
        for part in images.repeat(times, 1, 1, 1).split(CHUNK):
            net(part)


def costed(parts: dict[str, Rows]) -> dict[str, Rows]:
    return {name: rows for name, rows in parts.items() if name in NETS and rows}


def lines(parts: dict[str, Rows]) -> list[str]:
    """For the summary."""
    found = parts.get("ceiling", [])
    told = [f"{row['what']}, {row['precision']}: {row['tflop_per_s']:.1f} TFLOP/s" for row in found]
    for name, rows in costed(parts).items():
        for row in rows:
            share = f", {100 * row['share_of_ceiling']:.0f} % of the ceiling" if row["share_of_ceiling"] else ""
            told.append(f"{name}, {row['points']} points: {row['what']}: {row['seconds']:.4f} s{share}")
    return told


@themed
def bars(parts: dict[str, Rows]) -> Figure:
    """Seconds by net and way."""
    found = [
        (f"{name}: {row['what']}", row["seconds"], place)
        for name, rows in costed(parts).items()
        for place, row in enumerate(rows)
    ]
    figure = Figure(figsize=(FULL, 0.19 * len(found) + 0.7), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        range(len(found)),
        [seconds for _, seconds, _ in found],
        height=0.7,
        color=[PALETTE[place] for _, _, place in found],
    )
    points = max(row["points"] for rows in costed(parts).values() for row in rows)
    axes.set(yticks=range(len(found)), yticklabels=[name for name, _, _ in found], xlabel=f"seconds, {points} points")
    axes.invert_yaxis()
    return figure
