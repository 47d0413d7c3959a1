"""Published settings, as science has them on record, and that they go where they should."""

import pytest
import torch

import grokkit as gk
from grokkit.errors import UnknownNameError, UsageError


def test_the_published_values() -> None:
    cifar, mnist = gk.preset("humayun2024"), gk.preset("humayun2024_mnist")
    assert (cifar.radii, cifar.directions, cifar.points, cifar.method) == ((0.005,), 20, 1024, "vertex")
    assert (mnist.radii, mnist.directions, mnist.points) == ((0.05, 0.1, 0.5, 1.0, 5.0), 25, 1000)
    assert mnist.dtype == "float64" and "2402.15555" in mnist.source


def test_a_preset_sets_a_call_and_a_measure() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(30, 9), torch.nn.ReLU())
    result = gk.local_complexity(net, torch.zeros(2, 30), **gk.preset("humayun2024").options())
    assert (result.radius, result.directions, result.method) == (0.005, 20, "vertex")
    assert gk.preset("humayun2024_mnist").options(0.5)["radius"] == 0.5
    measure = gk.measures.create("local_complexity", **gk.preset("humayun2024_mnist").measure())
    assert measure.radii == (0.05, 0.1, 0.5, 1.0, 5.0) and measure.points == 1000 and measure.method == "vertex"


def test_wrong_names_and_radii_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'humayun2024'"):
        gk.preset("humayun24")
    with pytest.raises(UsageError, match="one of the preset's"):
        gk.preset("humayun2024_mnist").options()
    with pytest.raises(UsageError, match=r"got 0\.1"):
        gk.preset("humayun2024").options(0.1)
