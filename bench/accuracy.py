"""`python -m bench.accuracy`: short real runs of two recipes, by grokkit's loop and a plain PyTorch one, side by side.

One JSON file per run; runs that are there are skipped, so that the command can be stopped and given again. When all are
there it writes the table, the verdict and the figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import nn

from bench.accuracy_report import SAME_START, WORDS, write
from bench.harness import cpu_name, cpu_seconds
from grokkit import data, models
from grokkit.config.run_config import RunConfig, spec
from grokkit.data import Dataset
from grokkit.recipes import cifar10_in_minutes
from grokkit.training import loop, trainer
from grokkit.training.build import build_model
from tests.reference import plain_loop
from tests.reference.plain_loop import Epoch, Recipe

PLAIN = {
    "adam_one_cycle": Recipe(
        "adam",
        lr=0.01,
        weight_decay=1e-4,
        schedule="one_cycle",
        epochs=8,
        batch_size=400,
        clip_value=0.1,
        crop=4,
        flip=True,
    ),
    "sgd_triangle": Recipe(
        "sgd",
        lr=0.1,
        weight_decay=5e-4,
        schedule="triangle",
        epochs=8,
        batch_size=128,
        peak=5 / 24,
        crop=4,
        flip=True,
        cutout=8,
    ),
}
"""The recipes in the words of the plain loop: the 8 epochs of the public notebooks, and Page's 24 epochs of batches of
512 at 0.4, shortened to 8; its batch and its rate are a quarter, so that a part of the images makes enough updates."""

ARMS = [
    *itertools.product(PLAIN, ("plain", "grokkit")),
    ("adam_one_cycle", "plain_momentum"),  # torch's default moves Adam's first beta as well
    ("sgd_triangle", SAME_START),  # added when the two loops' own draws of weights ended apart
]


@dataclasses.dataclass(frozen=True)
class Choices:
    """What all runs share."""

    model: str
    width: int
    train: int
    test: int
    threads: int


def grokkit_config(recipe: str, choices: Choices, source: Path, seed: int) -> RunConfig:
    """The recipe in the words of grokkit; nothing is measured but the test set at the end of each epoch."""
    shared = {
        "data": spec(str(source), train=choices.train, test=choices.test),
        "model": spec(choices.model, width=choices.width),
        "seed": seed,
        "measures": (),
        "probes": {"train": 1, "test": 0, "random": 0},
    }
    steps = {name: plain.epochs * -(-choices.train // plain.batch_size) for name, plain in PLAIN.items()}
    config = cifar10_in_minutes.resnet9().replace(**shared, steps=steps["adam_one_cycle"])
    if recipe == "adam_one_cycle":
        return config
    return config.replace(
        optimizer=spec("sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        policy=spec("wsd", warmup=5 / 24, decay_share=19 / 24, shape="linear"),
        clip=None,
        batch_size=128,
        steps=steps["sgd_triangle"],
        augment=("crop4", "flip", "cutout8"),
    )


def grokkit_curve(config: RunConfig, images: int, start: nn.Module | None = None) -> list[Epoch]:
    """Train by grokkit in a folder that goes again, from the weights of the net `start` where one is given."""
    per_epoch = -(-images // config.batch_size)
    ends = list(range(per_epoch, config.steps + 1, per_epoch))
    with tempfile.TemporaryDirectory() as runs, started_from(start):
        metrics = loop.train(config.replace(records=tuple(ends)), runs=runs, device="cpu").metrics
    test = metrics.query("split == 'test_set' and metric == 'accuracy'").set_index("step")["value"]
    batches = metrics.query("split == 'batch' and metric == 'loss'").set_index("step")["value"]
    return [Epoch(k + 1, _mean_loss(batches, k, per_epoch, images, config), test[end]) for k, end in enumerate(ends)]


def _mean_loss(losses: pd.Series, epoch: int, per_epoch: int, images: int, config: RunConfig) -> float:
    """Mean over the epoch's images of the means that were logged, each since the one before."""
    steps = losses.index.to_numpy()
    seen = steps // per_epoch * images + steps % per_epoch * config.batch_size
    inside = (steps > epoch * per_epoch) & (steps <= (epoch + 1) * per_epoch)
    return float(np.average(losses.to_numpy()[inside], weights=np.diff(seen, prepend=0)[inside]))


@contextmanager
def started_from(net: nn.Module | None) -> Iterator[None]:
    """Runs begin with the weights of `net`; None: with their own."""

    def built(*arguments: Any) -> nn.Module:
        model = build_model(*arguments)
        if net is not None:
            model.net.load_state_dict(net.state_dict())
        return model

    with patch.object(trainer, "build_model", built):
        yield


def plain_net(choices: Choices, dataset: Dataset, seed: int) -> nn.Module:
    """The net in PyTorch's default init."""
    torch.manual_seed(seed)
    return models.create(choices.model, dataset.input_shape, len(dataset.classes), width=choices.width)


def plain_curve(recipe: Recipe, net: nn.Module, dataset: Dataset, seed: int) -> list[Epoch]:
    """Train by the plain loop, in PyTorch's default memory format."""
    sets = [
        (x.transpose(0, 2, 3, 1).copy(), y)
        for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test))
    ]
    return plain_loop.train(net, *sets, recipe, seed=seed)


def run_arm(recipe: str, arm: str, seed: int, choices: Choices, source: Path) -> dict[str, Any]:
    """One run: what it was, its curve and what it cost."""
    plain = dataclasses.replace(PLAIN[recipe], cycle_momentum=arm == "plain_momentum")
    config = grokkit_config(recipe, choices, source, seed)
    dataset = data.load_data(str(source), train=choices.train, test=choices.test)
    start, wall = cpu_seconds(), time.monotonic()
    net = plain_net(choices, dataset, seed)
    if arm.startswith("grokkit"):
        curve = grokkit_curve(config, choices.train, net if arm == SAME_START else None)
        told = config.replace(data=spec(source.name, train=choices.train, test=choices.test)).to_dict()
    else:
        curve, told = plain_curve(plain, net, dataset, seed), dataclasses.asdict(plain)
    return {
        "recipe": recipe,
        "arm": arm,
        "seed": seed,
        "choices": dataclasses.asdict(choices),
        "config": told,
        "data": dataset.hash,
        "images": plain.epochs * choices.train,
        "cpu_seconds": cpu_seconds() - start,
        "wall_seconds": time.monotonic() - wall,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "curve": [dataclasses.asdict(epoch) for epoch in curve],
    }


def stored(path: Path, choices: Choices) -> bool:
    """Whether this run is there; one of another size is an error."""
    if not path.exists():
        return False
    found = json.loads(path.read_text())["choices"]
    if found != dataclasses.asdict(choices):
        raise SystemExit(
            f"{path} was run with {found}, now {dataclasses.asdict(choices)} is asked for; choose another --out"
        )
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="an .npz file with x_train y_train x_test y_test")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs, the table and the figure")
    parser.add_argument("--model", default="resnet9", help="one that takes `width`")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--train", type=int, default=10_000, help="images of each split that are kept, by class")
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipes", nargs="+", default=[], help="only these: " + ", ".join(PLAIN))
    parser.add_argument("--arms", nargs="+", default=[], help="only these: " + ", ".join(WORDS))
    options = parser.parse_args()
    choices = Choices(options.model, options.width, options.train, options.test, options.threads)
    torch.set_num_threads(choices.threads)
    folder = options.out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (recipe, arm) in itertools.product(options.seeds, ARMS):
        path = folder / f"{recipe}-{arm}-s{seed}.json"
        left_out = arm not in (options.arms or WORDS) or recipe not in (options.recipes or PLAIN)
        if left_out or stored(path, choices):
            continue
        found = run_arm(recipe, arm, seed, choices, options.data)
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{path.stem}: {found['curve'][-1]['test_accuracy']:.4f}, {found['cpu_seconds']:.0f} CPU-s", flush=True)
    write(options.out)


if __name__ == "__main__":
    main()
