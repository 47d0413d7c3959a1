"""What training costs: augmentation, input pipelines, the trainer around a hand-written loop, fused optimizers."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import grokkit as gk
from bench.harness import Ratio, Row, Settings, compared, costs, medians
from bench.loops import LENET, resident, sgd, train_on
from grokkit import models
from grokkit.data.resident import Batches
from grokkit.diagnostics.loader import PerSample, crop_and_flip, make_plain_loader
from grokkit.models.classifier import Classifier, Normalise
from grokkit.training.build import to_device

SHAPE, CLASSES = (3, 32, 32), 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH = 256
AUGMENT = ("crop4", "flip")
NETS: dict[str, tuple[str, dict[str, int], int, int, float]] = {
    # model, options, batch size, batches a call, goal: DataLoader over resident in CPU-seconds
    "LeNet": (LENET, {}, BATCH, 20, 3.5),
    "ResNet-9, width 8": ("resnet9", {"width": 8}, BATCH, 8, 2.0),
    "ResNet-9, width 16": ("resnet9", {"width": 16}, BATCH, 5, 1.4),
    "ResNet-9, width 64": ("resnet9", {"width": 64}, 64, 2, 1.0),
}
SHORT, LONG = 20, 100
"""Steps of the two runs whose difference is the trainer's cost per step, without start-up."""


def augmentation(settings: Settings) -> list[Row]:
    """Crop 4, flip, to float, normalise: a resident batch of 256 against PIL images one by one; random 32x32 images."""
    images, labels = _data(50_000)
    normalise = Normalise(MEAN, STD)
    rows = []
    for border, word in (("reflect", "crop4"), ("constant", "crop4:constant")):
        batches = Batches(images, labels, BATCH, seed=0, augment=(word, "flip"))
        samples = PerSample(images, labels, crop_and_flip(SHAPE[1:], (MEAN, STD), border))
        costs_of = medians(
            {
                "resident": lambda batches=batches: _drain(normalise(x) for x, _ in resident(batches, 20)),
                "PIL": lambda samples=samples: _drain(_stacked(samples, start) for start in range(0, 4 * BATCH, BATCH)),
            },
            settings,
        )
        ours, theirs = costs_of["resident"] / 20 / BATCH, costs_of["PIL"] / 4 / BATCH
        rows += [
            Row(f"border {border}: resident / PIL per sample", ours / theirs, "", 1 / 15),
            Row(f"border {border}: resident, an image", 1e6 * ours, "CPU-us", 25.0),
            Row(f"border {border}: PIL, an image", 1e6 * theirs, "CPU-us"),
        ]
    return rows


def _stacked(samples: PerSample, start: int) -> Tensor:
    return torch.stack([samples[i][0] for i in range(start, start + BATCH)])


def _drain(batches: Iterable[Tensor]) -> None:
    """Make every batch and let it go: kept ones would cost the pages of fresh memory."""
    deque(batches, maxlen=0)


def pipelines(settings: Settings) -> list[Row]:
    """Training on resident batches, channels_last, fused SGD, against a DataLoader with 2 workers and PIL; crop and
    flip, SGD with Nesterov momentum. Worker processes are counted."""
    rows = []
    for name, (model, options, batch, count, goal) in NETS.items():
        found = costs(_pipelines(model, options, batch, count), settings)
        ours, theirs = found["resident"], found["DataLoader"]
        rows += [
            Row(f"{name}: resident / DataLoader(2 workers)", ours.cpu / theirs.cpu, "", 1 / goal),
            Row(f"{name}: resident / DataLoader(2 workers), on the clock", ours.wall / theirs.wall),
            Row(f"{name}: resident, an image", 1e6 * ours.cpu / batch / count, "CPU-us"),
            Row(f"{name}: DataLoader, an image", 1e6 * theirs.cpu / batch / count, "CPU-us"),
        ]
    return rows


def _pipelines(model: str, options: dict[str, int], batch: int, count: int) -> dict[str, Callable[[], None]]:
    images, labels = _data(batch * count)
    batches = Batches(images, labels, batch, seed=0, augment=AUGMENT)
    loader = make_plain_loader(PerSample(images, labels, crop_and_flip(SHAPE[1:], (MEAN, STD))), batch)
    ours, plain = _classifier(model, options), _net(model, options)
    fused, default = sgd(ours, fused=True), sgd(plain, fused=False)
    return {
        "resident": lambda: train_on(ours, fused, resident(batches, count)),
        "DataLoader": lambda: train_on(plain, default, loader),
    }


def trainer(settings: Settings) -> list[Row]:
    """`gk.train` on a LeNet, batch 256, against a hand-written loop over the same resident batches; a run of 100 steps
    less one of 20. No measures, two recorded steps, a line of metrics every step."""
    images, labels = _data(20 * BATCH)
    batches = Batches(images, labels, BATCH, seed=0, augment=AUGMENT)
    model = _classifier(LENET, {})
    optimizer = sgd(model, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "random.npz"
        np.savez(data, x_train=images, y_train=labels, x_test=255 - images[:BATCH], y_test=labels[:BATCH])
        found = medians(
            {
                "long": lambda: _train(data, LONG),
                "short": lambda: _train(data, SHORT),
                "by hand": lambda: train_on(model, optimizer, resident(batches, LONG - SHORT)),
            },
            settings,
        )
    steps = LONG - SHORT
    per_step = {"gk.train": (found["long"] - found["short"]) / steps, "by hand": found["by hand"] / steps}
    rows = compared(
        {name: 1000 * cost for name, cost in per_step.items()}, [Ratio("gk.train", "by hand", 1.05)], "CPU-ms a step"
    )
    start = found["short"] - SHORT * per_step["gk.train"]
    return [*rows, Row("gk.train: start, two snapshots and the end of a run", start, "CPU-s")]


def _train(data: Path, steps: int) -> None:
    config = gk.RunConfig(
        experiment="bench",
        data=gk.spec(str(data)),
        model=gk.spec(LENET),
        optimizer=gk.spec("sgd", lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4),
        batch_size=BATCH,
        steps=steps,
        augment=AUGMENT,
        records=1,
        probes={"train": 8, "test": 8, "random": 8},
    )
    with tempfile.TemporaryDirectory() as runs:
        gk.train(config, runs=runs, device="cpu")


def optimizers(settings: Settings) -> list[Row]:
    """Ten updates of ResNet-9's 6.6 M parameters by Adam."""
    return compared(
        medians({kind: _updates(kind) for kind in ("fused", "foreach")}, settings),
        [Ratio("fused", "foreach", 0.5)],
        "CPU-s",
    )


def _updates(kind: str) -> Callable[[], None]:
    net = _net("resnet9", {})
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, **{kind: True})

    def run() -> None:
        for _ in range(10):
            optimizer.step()

    return run


def _data(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8), rng.integers(0, CLASSES, count)


def _net(model: str, options: dict[str, int]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.create(model, SHAPE, CLASSES, **options)


def _classifier(model: str, options: dict[str, int]) -> Classifier:
    return to_device(Classifier(Normalise(MEAN, STD), _net(model, options)), torch.device("cpu"))
