"""What every registered model promises; a new one is picked up by itself."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit import models
from grokkit.errors import UsageError
from grokkit.measures.profile import profile
from grokkit.seeding import make_generator, seeded
from grokkit.spline import local_complexity

DIGITS, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
EVERY = pytest.mark.parametrize("name", models.names())


def small(name: str) -> dict[str, int]:
    """Options that make the net narrow, where it has one for that."""
    return {"width": 8} if "width" in inspect.signature(models.registry.get(name)).parameters else {}


def build(name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10) -> nn.Module:
    with seeded(0):
        return models.create(name, shape, classes, **small(name))


def images(shape: tuple[int, int, int], count: int = 3) -> torch.Tensor:
    return torch.rand(count, *shape, generator=make_generator(0, "images"))


@EVERY
@pytest.mark.parametrize("shape", [DIGITS, MNIST, CIFAR, (2, 33, 40)])
def test_takes_images_of_the_shape_it_was_built_for_or_says_which(name: str, shape: tuple[int, int, int]) -> None:
    try:
        net = build(name, shape, classes=7).eval()
    except UsageError as refusal:
        assert shape == DIGITS and "at least" in str(refusal)
        return
    assert net(images(shape)).shape == (3, 7)
    assert net(images(shape, 1)).shape == (1, 7)


@EVERY
def test_every_parameter_gets_a_finite_gradient(name: str) -> None:
    net = build(name).train()
    with seeded(1):
        F.cross_entropy(net(images(CIFAR)), torch.tensor([0, 1, 2])).backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
    assert any(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@EVERY
def test_eval_draws_nothing_and_repeats_itself(name: str) -> None:
    net = build(name).eval()
    before = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(net(images(CIFAR)), net(images(CIFAR)))
    assert torch.equal(before, torch.get_rng_state())


@EVERY
def test_eval_logits_of_an_image_do_not_depend_on_its_batch(name: str) -> None:
    net, batch = build(name).double().eval(), images(CIFAR).double()
    with torch.no_grad():
        together = net(batch)
        apart = torch.cat([net(image[None]) for image in batch])
    torch.testing.assert_close(together, apart)


@EVERY
def test_the_callers_seed_decides_the_weights(name: str) -> None:
    first, second = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(first[path], second[path]) for path in first)
    with seeded(1):
        other = models.create(name, CIFAR, 10, **small(name)).state_dict()
    assert any(not torch.equal(first[path], other[path]) for path in first)


@EVERY
def test_state_dict_carries_the_whole_net(name: str) -> None:
    net = build(name).train()
    net(images(CIFAR))  # moves the running statistics away from their defaults
    with seeded(1):
        copy = models.create(name, CIFAR, 10, **small(name))
    copy.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net.eval()(images(CIFAR)), copy.eval()(images(CIFAR)))


@EVERY
def test_unknown_options_are_answered_with_the_known_ones(name: str) -> None:
    known = list(inspect.signature(models.registry.get(name)).parameters)
    with pytest.raises(UsageError, match=f"unknown parameter 'depht'.*It takes: {', '.join(known)}"):
        models.create(name, CIFAR, 10, depht=3)


@EVERY
def test_options_have_defaults_and_can_only_be_named(name: str) -> None:
    shape, classes, *options = inspect.signature(models.registry.get(name)).parameters.values()
    assert (shape.name, classes.name) == ("input_shape", "classes")
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)


@EVERY
def test_all_its_activations_can_be_counted(name: str) -> None:
    seen = profile(build(name), CIFAR)
    assert seen.counted_units and not seen.refused


@EVERY
def test_both_methods_count_its_units_and_switches_alike(name: str) -> None:
    net, batch = build(name).double(), images(CIFAR, 1).double()
    vertex, tangent = (local_complexity(net, batch, 3e-3, 2, method) for method in ("vertex", "tangent"))
    assert vertex.layers == tangent.layers and vertex.pools == tangent.pools
    assert vertex.units == tangent.units == profile(net, CIFAR).counted_units
    for series in ("units", "switches", "pool_signs"):
        one, other = (result.to_frame(series)["count"].sum() for result in (vertex, tangent))
        assert abs(one - other) <= 1 + 0.03 * one, series
