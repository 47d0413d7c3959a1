"""Training loops as one writes them by hand, without a trainer: what grokkit's own is measured against."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from grokkit import models
from grokkit.data.resident import Batches

LENET = "lenet"
"""Registered here and for benchmarks alone."""


@models.register(LENET)
def lenet(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """LeNet-5 with ReLU and max-pool for 32x32 images: 62,006 parameters and 0.65 MMAC in colour.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    """
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 6, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )


def train_on(model: nn.Module, optimizer: Optimizer, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """The loop of every tutorial: one update per batch, nothing logged."""
    for x, y in batches:
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def resident(batches: Batches, steps: int) -> Iterable[tuple[Tensor, Tensor]]:
    """The first `steps` resident batches."""
    return (batches.at(step) for step in range(1, steps + 1))


def sgd(model: nn.Module, *, fused: bool) -> Optimizer:
    """SGD with Nesterov momentum, as in the recipes; a rate so small that random labels do no harm."""
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused)
