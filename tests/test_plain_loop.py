"""grokkit's loop against a plain PyTorch one, which shares no code with it: the same batches give the same weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import grokkit as gk
from bench.accuracy import grokkit_curve
from bench.accuracy_report import interval
from grokkit.config.run_config import RunConfig, spec
from grokkit.device.select import select_device
from grokkit.recipes import cifar10_in_minutes
from grokkit.training.trainer import build_trainer
from tests.reference import plain_loop
from tests.reference.plain_loop import Cutout, Epoch, Recipe

TOLERANCE = 1e-5
"""Largest difference of a weight in float32: sums in another order, grown over the updates; rates are 1e-2 and more."""

IMAGES, BATCH, EPOCHS = 150, 40, 3  # 4 batches an epoch, the last one of 30

SHARED = {
    "data": spec("digits", size=8, train=IMAGES, test=60),
    # no BatchNorm after biases: their gradients are rounding alone, and Adam makes steps of the full rate out of them
    "model": spec("cnn", channels=(8, 8), strides=(1, 2), hidden=16),
    "batch_size": BATCH,
    "steps": EPOCHS * 4,
    "augment": (),
    "records": 3,
    "measures": (),
    "probes": {"train": 1, "test": 0, "random": 0},
}

TWINS = {
    "cifar10_in_minutes": (
        cifar10_in_minutes.resnet9().replace(**SHARED),
        Recipe("adam", 0.01, 1e-4, "one_cycle", EPOCHS, BATCH, clip_value=0.1),
    ),
    "sgd_triangle": (
        RunConfig(
            experiment="triangle",
            **SHARED,
            optimizer=spec("sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
            policy=spec("wsd", warmup=0.25, decay_share=0.75, shape="linear", final_scale=1e-12),
        ),
        Recipe("sgd", 0.1, 5e-4, "triangle", EPOCHS, BATCH, peak=0.25),
    ),
}


def _grey(images: np.ndarray) -> np.ndarray:
    """(N, 1, H, W) to (N, H, W)."""
    return images[:, 0]


def _plain_twin(config: RunConfig, recipe: Recipe) -> tuple[dict[str, torch.Tensor], list[Epoch]]:
    """Weights and curve of the plain loop from grokkit's initial weights and in grokkit's order."""
    trainer = build_trainer(config, select_device("cpu").torch_device)
    net, dataset, per_epoch = trainer.model.net, trainer.dataset, trainer.batches.steps_per_epoch

    def order(epoch: int) -> list[int]:
        steps = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        return torch.cat([trainer.batches.indices(step) for step in steps]).tolist()

    sets = (_grey(dataset.x_train), dataset.y_train), (_grey(dataset.x_test), dataset.y_test)
    curve = plain_loop.train(net, *sets, recipe, seed=0, order=order)
    return net.state_dict(), curve


def _furthest(weights: dict[str, torch.Tensor], run: gk.open_run) -> float:
    """Largest difference between these weights and those that the run ended with."""
    ours = run.load(run.steps()[-1])
    assert {f"net.{name}" for name in weights} <= ours.keys()
    return max((ours[f"net.{name}"] - value).abs().max().item() for name, value in weights.items())


@pytest.mark.parametrize("name", TWINS)
def test_the_same_batches_give_the_same_weights_and_curve(name: str, tmp_path: Path) -> None:
    config, recipe = TWINS[name]
    run = gk.train(config, runs=tmp_path, device="cpu")
    weights, curve = _plain_twin(config, recipe)
    assert _furthest(weights, run) < TOLERANCE
    metrics = run.metrics.query("metric == 'accuracy' and split == 'test_set'").set_index("step")["value"]
    assert metrics[config.steps] == curve[-1].test_accuracy
    losses = run.metrics.query("metric == 'loss' and split == 'batch'").set_index("step")["value"]
    last = np.average(losses.loc[config.steps - 3 :], weights=[40, 40, 40, 30])
    assert last == pytest.approx(curve[-1].train_loss, abs=1e-5)


@pytest.mark.parametrize("name", TWINS)
def test_the_bench_reads_the_curve_of_a_run_epoch_by_epoch(name: str) -> None:
    config, recipe = TWINS[name]
    _, plain = _plain_twin(config, recipe)
    for ours, theirs in zip(grokkit_curve(config, IMAGES), plain, strict=True):
        assert (ours.epoch, ours.test_accuracy) == (theirs.epoch, theirs.test_accuracy)
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-5)


SPOILT = {
    "cifar10_in_minutes": {
        "lr": 0.0101,
        "weight_decay": 2e-4,
        "clip_value": 0.11,
        "peak": 0.31,
        "cycle_momentum": True,
    },
    "sgd_triangle": {"lr": 0.101, "weight_decay": 6e-4, "peak": 1 / 3, "clip_value": 0.1, "schedule": "one_cycle"},
}


@pytest.mark.parametrize(("name", "changed"), [(name, each) for name, all_ in SPOILT.items() for each in all_])
def test_the_comparison_sees_small_changes_of_a_recipe(name: str, changed: str, tmp_path: Path) -> None:
    config, recipe = TWINS[name]
    run = gk.train(config, runs=tmp_path, device="cpu")
    weights, _ = _plain_twin(config, dataclasses.replace(recipe, **{changed: SPOILT[name][changed]}))
    assert _furthest(weights, run) > 10 * TOLERANCE


def test_the_plain_loop_learns_digits() -> None:
    data = gk.load_data("digits", size=8, train=400, test=200)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    sets = (_grey(data.x_train), data.y_train), (_grey(data.x_test), data.y_test)
    recipe = Recipe("adam", 0.02, 1e-4, "one_cycle", epochs=6, batch_size=32, clip_value=0.1, crop=1, cutout=1)
    curve = plain_loop.train(net, *sets, recipe, seed=0)
    assert [each.epoch for each in curve] == [1, 2, 3, 4, 5, 6]
    assert curve[-1].train_loss < 0.5 * curve[0].train_loss
    assert curve[-1].test_accuracy > 0.8


def test_cutout_blackens_a_clipped_square_around_every_pixel() -> None:
    torch.manual_seed(0)
    holes = {tuple(map(tuple, (Cutout(2)(torch.ones(1, 4, 4))[0] == 0).nonzero().tolist())) for _ in range(400)}
    assert len(holes) == 16 and {len(hole) for hole in holes} == {1, 2, 4}


def test_the_intervals_of_a_difference_are_welchs_and_the_paired_one() -> None:
    ours, plain = pd.Series([0.72, 0.70, 0.74, np.nan]), pd.Series([0.71, 0.69, 0.685, np.nan])
    found = interval(ours, plain)
    # by hand: variances of the means 4/3e-4 and 1.75/3e-4, 3.47 degrees of freedom, t = 2.9524
    assert found["difference"] == pytest.approx(0.025)
    assert found["half"] == pytest.approx(2.9524 * 0.0138444, rel=1e-3)
    assert found["low"] < 0 < found["high"] and found["n"] == found["plain_n"] == 3
    # differences 0.01, 0.01, 0.055: standard deviation 0.045 / sqrt(3), 2 degrees of freedom, t = 4.3027
    assert interval(ours, plain, paired=True)["half"] == pytest.approx(4.3027 * 0.015, rel=1e-3)
