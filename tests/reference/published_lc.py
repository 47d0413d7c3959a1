"""Local complexity as published: hook the inputs of the ReLUs, keep every activation, compare the signs afterwards.

Written from the definition of Humayun, Balestriero and Baraniuk (arXiv:2402.15555, figure 4): the 2 P vertices
x ± r v_p of each point go through the net together, and a unit counts where its sign, -1, 0 or 1, is not that of
vertex 0 at every vertex. Works for nets whose ReLUs are modules that are called once and not in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def hull(images: Tensor, frame: Tensor, radius: float) -> Tensor:
    """The vertices x ± r v_p of every point: (N, ...) and (P, D) to (N, 2 P, ...)."""
    steps = radius * frame.to(images.dtype).reshape(1, len(frame), *images.shape[1:])
    return torch.cat([images.unsqueeze(1) + steps, images.unsqueeze(1) - steps], dim=1)


def published_counts(model: nn.Module, images: Tensor, frame: Tensor, radius: float) -> Tensor:
    """Crossings, int64 (point, layer), by one forward pass of all 2 P N vertices with every activation kept."""
    kept: list[Tensor] = []
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    hooks = [relu.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0].detach())) for relu in relus]
    vertices = hull(images, frame, radius)
    try:
        with torch.no_grad():
            model.eval()(vertices.flatten(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    counts = []
    for z in kept:
        signs = torch.sign(z.reshape(*vertices.shape[:2], -1))
        counts.append((signs != signs[:, :1]).any(dim=1).sum(dim=1))
    return torch.stack(counts, dim=1)
