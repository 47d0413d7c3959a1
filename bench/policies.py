"""What listening costs: one reading of the signal over the updates between two of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

import grokkit as gk
from bench.harness import Row, Settings, medians
from grokkit.recording.signal import LocalComplexitySignal, Signal
from grokkit.training.step import TrainStep

GOAL = 0.02
UPDATES = 4
BATCHES = (400, 128)
"""That of the recipe for this net, and a small one."""


def overhead(settings: Settings) -> list[Row]:
    """One reading of the default signal, every 200 updates, over 200 updates of a ResNet-9 of width 16."""
    signal = Signal()
    rows: list[Row] = []
    for batch in BATCHES:
        costs = medians(_contenders(signal, batch), settings)
        reading, update = costs["reading"], costs["updates"] / UPDATES
        goal = GOAL if batch == BATCHES[0] else None
        rows += [
            Row(f"reading / {signal.every} updates of {batch} images", reading / (signal.every * update), "", goal),
            Row(f"an update of {batch} images", update, "CPU-s"),
            Row("a reading", reading, "CPU-s"),
        ]
    return rows


def _contenders(signal: Signal, batch: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(max(batch, signal.points), 3, 32, 32, generator=generator)
    labels = torch.randint(10, (len(images),), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = gk.models.create("resnet9", (3, 32, 32), 10, width=16).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = TrainStep(model, optimizer, F.cross_entropy, batch_size=batch)
    x = images[:batch].contiguous(memory_format=torch.channels_last)
    listener = LocalComplexitySignal(model, images, signal)

    def updates() -> None:
        model.train()
        for _ in range(UPDATES):
            step(x, labels[:batch])

    return {"reading": lambda: listener.read(signal.every), "updates": updates}
