"""The recipes that ship: their schedules against hand-written triangles, their sizes, and that all of them start."""

from pathlib import Path

import numpy as np
import pytest
import torch

from grokkit import data, policies, recipes
from grokkit.config.run_config import RunConfig, spec
from grokkit.policies.simulate import simulate
from grokkit.training.trainer import build_trainer

ACCURACY = recipes.load_shipped("cifar10_accuracy").variants
TRIANGLES = {
    "resnet9": (0.4, 98, 5, 24),
    "resnet18": (0.2, 100, 5.2, 26),
    "resnet18_80": (0.2, 100, 16, 80),
    "resnet34": (0.2, 100, 40, 200),
    "resnet50": (0.2, 100, 40, 200),
    **{f"vgg{depth}_bn": (0.1, 196, 10, 100) for depth in (11, 13, 16, 19)},
}
"""Variant -> peak rate, batches per epoch, epoch of the peak, epochs."""


def rates_of(config: RunConfig) -> np.ndarray:
    policy = policies.create(config.policy.name, **config.policy.options)
    news: list[dict[str, float]] = [{}] * (config.steps - 1)
    return np.array(simulate(policy, news, total_steps=config.steps).rates) * config.optimizer.options["lr"]


@pytest.mark.parametrize("variant", TRIANGLES)
def test_rates_are_the_triangle_that_one_would_write_by_hand(variant: str) -> None:
    peak, per_epoch, top, epochs = TRIANGLES[variant]
    config = ACCURACY[variant]()
    assert config.steps == per_epoch * epochs and config.optimizer.options["lr"] == peak
    rates = rates_of(config)
    assert len(rates) == config.steps
    by_hand = np.interp(np.arange(config.steps + 1) / per_epoch, [0, top, epochs], [0, peak, 0])
    steepest = peak / (top * per_epoch)
    # A rise counts its updates from 1, a fall from 0.
    np.testing.assert_allclose(rates, by_hand[:-1], atol=1.001 * steepest)
    turn = round(top * per_epoch)
    np.testing.assert_allclose(rates[:turn], by_hand[1 : turn + 1], rtol=1e-9)
    np.testing.assert_allclose(rates[turn:], by_hand[turn:-1], rtol=1e-3, atol=1e-6 * peak)
    assert rates.max() == pytest.approx(peak) and rates[turn] == pytest.approx(peak)
    assert rates[0] == pytest.approx(steepest) and 0 < rates[-1] < 1.01 * peak * (1 / (config.steps - turn) + 1e-6)


def test_the_speed_recipe_decays_in_a_straight_line_from_the_start() -> None:
    config = recipes.load_shipped("cifar10_speed").variants["speednet"]()
    rates = rates_of(config)
    np.testing.assert_allclose(rates, 0.24 * (1 - np.arange(200) / 200), atol=1e-4 * 0.24)


def test_every_variant_is_told_in_the_table_of_its_module() -> None:
    text = recipes.load_shipped("cifar10_accuracy").text
    told = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| ") and "%" in line]
    assert {name.strip(): int(epochs) for name, epochs, _ in told} == {
        name: triangle[3] for name, triangle in TRIANGLES.items()
    }
    assert set(ACCURACY) == set(TRIANGLES) and "Not yet verified" in text


@pytest.mark.parametrize("name", ["cifar10_accuracy", "cifar10_in_minutes", "cifar10_speed"])
def test_instruments_are_few_and_options_known(name: str) -> None:
    for variant, make in recipes.load_shipped(name).variants.items():
        config = make()
        assert config.variant == variant and config.experiment == name and config.records <= 26
        assert RunConfig.from_toml(config.to_toml()).run_name == config.run_name
        assert config.data == spec("cifar10") and {"flip", "altflip"} & set(config.augment)


@pytest.mark.parametrize("name", ["cifar10_accuracy", "cifar10_speed"])
def test_the_experiments_folder_offers_the_same(name: str, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    found, shipped = recipes.find_experiment(name), recipes.load_shipped(name)
    assert found.variants.keys() == shipped.variants.keys()
    assert all(make() == shipped.variants[variant]() for variant, make in found.variants.items())


@pytest.mark.parametrize("name", ["cifar10_accuracy", "cifar10_speed"])
def test_every_variant_starts(name: str, monkeypatch) -> None:
    """On grey noise in the place of CIFAR-10: model, optimizer, policy, augmentation and one batch."""
    noise = data.Dataset(
        "noise",
        *(2 * (np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), np.uint8), np.arange(20) % 10)),
        tuple("0123456789"),
        findings=(),
    )
    monkeypatch.setattr(data, "load_data", lambda *_, **__: noise)
    for make in recipes.load_shipped(name).variants.values():
        config = make()
        model = spec(config.model.name, **config.model.options, width=8)
        trainer = build_trainer(config.replace(model=model), torch.device("cpu"))
        x, _ = trainer.batches.at(1)
        assert trainer.model(x).shape == (20, 10)
