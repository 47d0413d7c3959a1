"""What local complexity costs: the two methods against each other, the plain forward pass and the published way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bench.harness import Ratio, Row, Settings, compared, medians
from grokkit import models
from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity
from tests.reference.peak_memory import peak_above_model
from tests.reference.published_lc import published_counts

POINTS, DIRECTIONS, RADIUS = 32, 20, 0.005
CHUNK = 84
"""Images of one plain forward pass: 4 points with their directions, what the measurement itself keeps in cache."""


def cpu_time(settings: Settings) -> list[Row]:
    """PreActResNet-18, k = 16, no BatchNorm, random weights; 32 random 32x32 images, P = 20, r = 0.005."""
    net, images, frame = _net(), _images(POINTS), draw_orthonormal_frame(DIRECTIONS, 3 * 32 * 32)
    radii = np.geomspace(1e-3, 1.0, 16).tolist()
    contenders = {
        "vertex": lambda: local_complexity(net, images, RADIUS, method="vertex", frame=frame),
        "tangent": lambda: local_complexity(net, images, RADIUS, method="tangent", frame=frame),
        "spectrum of one radius": lambda: complexity_spectrum(net, images, [RADIUS], frame=frame),
        "spectrum of sixteen radii": lambda: complexity_spectrum(net, images, radii, frame=frame),
        "forward of 1 + P images": _forward(net, (1 + DIRECTIONS) * POINTS),
        "forward of 2 P images": _forward(net, 2 * DIRECTIONS * POINTS),
        "published": lambda: published_counts(net, images, frame, RADIUS),
    }
    ratios = [
        Ratio("tangent", "vertex", 0.42),
        Ratio("tangent", "forward of 1 + P images", 1.25),
        Ratio("spectrum of sixteen radii", "spectrum of one radius", 1.1),
        Ratio("vertex", "published", 1.0),
        Ratio("vertex", "forward of 2 P images"),
    ]
    return compared(medians(contenders, settings), ratios, "CPU-s")


def peak_memory(settings: Settings) -> list[Row]:
    """The nets and images of the CPU times: peak above imports, weights and images, each in its own process."""
    peaks = {
        name: peak_above_model(name, width=16, side=32, points=POINTS, directions=DIRECTIONS, threads=settings.threads)
        for name in ("vertex", "tangent", "published")
    }
    return compared(peaks, [Ratio("vertex", "published", 0.2), Ratio("tangent", "published")], "MB")


def peak_memory_wide(settings: Settings) -> list[Row]:
    """PreActResNet-18, k = 64, 32x32 images: growth with points and directions, peak above imports and weights."""
    rows = []
    for method in ("vertex", "tangent"):
        for points, directions in ((32, 10), (64, 10), (64, 40)):
            peak = peak_above_model(
                method, width=64, side=32, points=points, directions=directions, threads=settings.threads
            )
            rows.append(Row(f"{method}, {points} points, P = {directions}", peak, "MB", 1000.0))
    return rows


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.create("preact_resnet18", (3, 32, 32), 10, width=16, norm="none").eval()


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _forward(net: nn.Module, count: int):
    chunks = [part.contiguous(memory_format=torch.channels_last) for part in _images(count).split(CHUNK)]

    @torch.no_grad()
    def run() -> None:
        for chunk in chunks:
            net(chunk)

    return run
