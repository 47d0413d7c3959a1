"""What an exact partition costs: against the plain float64 forward pass of as many images as it has knots."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.harness import Row, Settings, medians
from grokkit import models
from grokkit.spline import partition_segment
from tests.reference.peak_memory import peak_above_model

NETS = {
    # name: options, share of the line between two random images, goal in milliseconds a piece
    "preact_resnet18": ({"width": 16, "norm": "batch"}, 0.01, 1000 / 150),
    "vgg11_bn": ({"width": 8}, 0.3, 1000 / 1500),
}
BATCHES = (8, 16, 64)


def cpu_time(settings: Settings) -> list[Row]:
    """PreActResNet-18 k = 16 and VGG-11 k = 8, BatchNorm, random weights; a part of the line between two random images.
    The floor is the best of three batch sizes."""
    rows = []
    for name, (options, share, goal) in NETS.items():
        net, a, b = _net(name, options), *_ends(share)
        knots = partition_segment(net, a, b).knots[0]
        images = torch.lerp(a.double(), b.double(), torch.from_numpy(knots).view(-1, 1, 1, 1))
        exact = copy.deepcopy(net).double()
        contenders: dict[str, Callable[[], object]] = {
            "segment": lambda net=net, a=a, b=b: partition_segment(net, a, b)
        }
        contenders |= {f"batch {size}": _forward(exact, images, size) for size in BATCHES}
        costs = medians(contenders, settings)
        floor = min(costs[f"batch {size}"] for size in BATCHES)
        rows += [
            Row(f"{name}: segment / forward of {len(knots)} images", costs["segment"] / floor, "", 1.3),
            Row(f"{name}: a piece", 1000 * costs["segment"] / (len(knots) - 1), "CPU-ms", goal),
        ]
    return rows


def peak_memory(settings: Settings) -> list[Row]:
    """PreActResNet-18, k = 16, no BatchNorm: peak above imports, weights and images, by length of the segment."""
    rows = []
    for thousandths in (10, 40):
        peak = peak_above_model(
            "segment", width=16, side=32, points=2, directions=thousandths, threads=settings.threads
        )
        rows.append(Row(f"{thousandths / 1000:g} of the line between two images", peak, "MB", 300.0))
    return rows


def _net(name: str, options: dict[str, object]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.create(name, (3, 32, 32), 10, **options).eval()


def _ends(share: float) -> tuple[Tensor, Tensor]:
    a, b = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return a, torch.lerp(a, b, share)


def _forward(net: nn.Module, images: Tensor, size: int) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        for part in images.split(size):
            net(part)

    return run
