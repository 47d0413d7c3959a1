"""The picture of docs/local-complexity.md: `python docs/local_complexity.py [FOLDER]` writes it there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import grokkit as gk
from grokkit.figures.theme import FULL, PALETTE, theme, themed

POINT, RADIUS = torch.tensor([[0.35, 0.2]], dtype=torch.float64), 0.45


def trained() -> nn.Sequential:
    """A net of 2 x 16 ReLUs that tells two interleaved half circles apart; one seed, 400 steps of Adam."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        angle, noise = torch.rand(400) * torch.pi, 0.1 * torch.randn(400, 2)
        side = torch.arange(400) % 2
        x = torch.stack([angle.cos() + side - 0.5, angle.sin() * (1 - 2 * side) + 0.5 * side - 0.25], 1) + noise
        net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(400):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), side).backward()
            optimizer.step()
    return net.double()


@themed
def picture(net: nn.Sequential) -> Figure:
    """The partition around a point, a walk along one ray, and the four counts against the radius."""
    figure = Figure(figsize=(FULL, 2.35), layout="constrained")
    plane, ray, counts = figure.subplots(1, 3, width_ratios=(1.05, 1, 1))
    frame = torch.eye(2, dtype=torch.float64)
    _partition(plane, net, frame)
    _walk(ray, net, frame)
    _counts(counts, net, frame)
    return figure


def _zeros(net: nn.Sequential, grid: Tensor) -> list[Tensor]:
    """Pre-activations of both layers on a grid (side, side, 2)."""
    with torch.no_grad():
        return [net[:1](grid), net[:3](grid)]


def _partition(axes: Any, net: nn.Sequential, frame: Tensor) -> None:
    side = torch.linspace(-1.0, 1.0, 400, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), dim=-1) + POINT
    for z, colour in zip(_zeros(net, grid), PALETTE, strict=False):
        for unit in range(z.shape[-1]):
            values = z[..., unit].numpy()
            if (values > 0).any() and (values < 0).any():
                axes.contour(*grid.unbind(-1), values, levels=[0.0], colors=colour, linewidths=0.7)
    corners = POINT + RADIUS * torch.cat([frame, -frame])[[0, 1, 2, 3, 0]]
    axes.fill(*corners.T, color="0.5", alpha=0.25, lw=0)
    axes.plot(*corners.T, "o", color="black", ms=3)
    axes.plot(*POINT.T, "x", color="black", ms=4)
    found = gk.local_complexity(net, POINT, RADIUS, method="vertex", frame=frame)
    axes.set(aspect="equal", xticks=[], yticks=[], title=f"crossed: {found.counts.tolist()[0]} of 16 + 16 units")
    axes.set_xlabel("layer 1 (blue) and layer 2 (orange)\nneighbourhood of ×, P = 2")


def _walk(axes: Any, net: nn.Sequential, frame: Tensor) -> None:
    """The network's output along one ray, with every breakpoint of the exact partition."""
    a, b = POINT[0] - 2 * RADIUS * frame[0], POINT[0] + 2 * RADIUS * frame[0]
    found = gk.partition_segment(net, a, b)
    place = 2 * RADIUS * (2 * found.knots[0] - 1)
    axes.plot(place, found.outputs[0][:, 1] - found.outputs[0][:, 0], color="black", lw=1.0)
    for x, layer in zip(place, found.made_by[0], strict=True):
        if layer >= 0:
            axes.axvline(x, color=PALETTE[layer], lw=0.7)
    axes.axvspan(-RADIUS, RADIUS, color="0.5", alpha=0.25, lw=0)
    axes.set(xlabel="distance from × along $v_1$", ylabel="logit difference")
    axes.set_title(f"{found.count} regions on this segment")


def _counts(axes: Any, net: nn.Sequential, frame: Tensor) -> None:
    radii = np.geomspace(0.02, 1.0, 40)
    styles = {"bound": ":", "ray": "-", "vertex": "--", "tangent": "-."}
    for colour, (method, style) in zip(PALETTE[2:], styles.items(), strict=False):
        total = [gk.local_complexity(net, POINT, r, method=method, frame=frame).total.item() for r in radii]
        axes.step(radii, total, style, where="mid", color=colour, label=method, lw=1.0)
    axes.axvline(RADIUS, color="0.5", lw=0.6)
    axes.set(xscale="log", xlabel="radius r", ylabel="local complexity (units)", title="four ways to count")
    axes.legend()


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent)
    with theme():
        picture(trained()).savefig(folder / "local_complexity.png")
