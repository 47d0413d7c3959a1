"""Stage b: what local complexity costs on this device, by method and precision, beside plain forward passes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from bench.gpu.common import SHAPE, test_images
from bench.gpu.results import Results, Rows, Setting, timed
from grokkit import models
from grokkit.borrow import strict_precision
from grokkit.models.profile import profile
from grokkit.spline import complexity_spectrum, local_complexity, orthonormal_frame

TITLE = "what local complexity costs: vertex, tangents in float32 and in bfloat16, plain forward passes"
RADII = np.geomspace(1e-3, 1.0, 16).tolist()
CHUNK = 1024
"""Images of one plain forward pass."""


def measure(results: Results) -> None:
    setting = results.setting
    results.part("ceiling", lambda: ceilings(setting))
    for width in (8,) if setting.small else (16, 64):
        results.part(f"preact_resnet18 k={width}", partial(costs, setting, width, ceiling(results.parts)), needs=30)


def ceiling(parts: dict[str, Rows]) -> dict[str, float]:
    """TFLOP/s of the device by precision, empty where they were not measured."""
    return {row["precision"]: row["tflop_per_s"] for row in parts.get("ceiling", ())}


def headline(parts: dict[str, Rows]) -> Rows:
    """Everything."""
    return [{"part": name, **row} for name, rows in parts.items() for row in rows]


def ceilings(setting: Setting) -> Rows:
    """FLOP/s of a large product, in each precision that measures run in."""
    side = 256 if setting.small else 8192
    rows = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=setting.device, dtype=dtype) for _ in range(2))
        with strict_precision():
            seconds = median(lambda a=a, b=b: a @ b, setting)
        rows.append(
            {"what": f"product of {side}x{side}", "precision": name, "tflop_per_s": 2 * side**3 / seconds / 1e12}
        )
    return rows


def costs(setting: Setting, width: int, ceiling: dict[str, float]) -> Rows:
    """Seconds (median of five after a warm-up) for all points; one radius by vertices, sixteen by tangents. The ceiling
    that they are held against is that of the precision in which most of the arithmetic runs."""
    points, directions = (4, 3) if setting.small else (256, 20)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.create("preact_resnet18", SHAPE, 10, width=width, norm="none").to(setting.device).eval()
    images = test_images(setting, points)
    frame = orthonormal_frame(directions, images[0].numel()).to(images)
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "vertex, one radius": (lambda: local_complexity(net, images, 0.005, frame=frame), 2 * directions + 1),
        "tangent, sixteen radii, float32": (
            lambda: complexity_spectrum(net, images, RADII, frame=frame, tangents="exact"), 1 + directions),
        "tangent, sixteen radii, bfloat16": (
            lambda: complexity_spectrum(net, images, RADII, frame=frame, tangents="bfloat16"), 1 + directions),
        "forward of 1 + P images a point, float32": (partial(forward, net, images, 1 + directions), 1 + directions),
    }  # fmt: skip
    flop = 2 * profile(net, SHAPE).macs * points
    rows = []
    for name, (call, passes) in ways.items():
        seconds = median(call, setting)
        reached = flop * passes / seconds / 1e12
        top = ceiling.get("bfloat16" if "bfloat16" in name else "float32")
        rows.append({
            "what": name, "seconds": seconds, "points": points, "directions": directions,
            "images_per_s": points * passes / seconds, "tflop_per_s": reached,
            "share_of_ceiling": top and reached / top,
        })  # fmt: skip
    return rows


@torch.no_grad()
def forward(net: nn.Module, images: Tensor, times: int) -> None:
    """The net on every image so many times, in strict float32."""
    with strict_precision():
        for part in images.repeat(times, 1, 1, 1).split(CHUNK):
            net(part)


def median(call: Callable[[], object], setting: Setting) -> float:
    """Median seconds of five calls after one."""
    call()
    return statistics.median(timed(call, setting.device) for _ in range(1 if setting.small else 5))
