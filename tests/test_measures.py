"""Measures against closed forms and plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit import measures
from grokkit.errors import NumericsError, UsageError
from grokkit.measures import Context
from grokkit.measures.base import wilson_interval
from grokkit.measures.loss import get_loss
from grokkit.measures.runner import AttributionSpec, attribute_and_store, measure_and_store
from grokkit.models.classifier import Classifier, Normalise
from grokkit.names import ProbeSet
from grokkit.spline import local_complexity


def probe(images: torch.Tensor, labels: list[int], name: str = "test") -> ProbeSet:
    count = len(labels)
    return ProbeSet(name, images.numpy().astype(np.float32), np.array(labels), "hand", np.arange(count))


@pytest.fixture
def linear() -> nn.Module:
    """Logits are the two pixels."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(2))
    return net


IMAGES = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.4]]).view(4, 1, 1, 2)


def test_accuracy_counts_by_hand(linear) -> None:
    reading = measures.create("accuracy")(Context(linear, {"test": probe(IMAGES, [0, 1, 1, 0])}))
    assert reading.values.tolist() == [0.75] and reading.n == (4,) and reading.coords["probe_set"] == ("test",)


def test_losses_by_hand(linear) -> None:
    context = Context(linear, {"test": probe(IMAGES[:1], [0])})
    expected = -np.log(np.exp(0.9) / (np.exp(0.9) + np.exp(0.1)))
    assert measures.create("loss")(context).values[0] == pytest.approx(expected, abs=1e-6)
    squared = measures.create("loss")(Context(linear, context.probes, loss="mse"))
    assert squared.values[0] == pytest.approx((0.1**2 + 0.1**2) / 2, abs=1e-6) and squared.unit == "squared logits"


def test_mse_with_smoothing_is_the_mean_over_smoothed_targets() -> None:
    logits, labels = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([2])
    target = torch.tensor([[0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3]])
    assert torch.allclose(get_loss("mse")(logits, labels, 0.1), F.mse_loss(logits, target))


def test_weight_norm_and_logit_scale_by_hand(linear) -> None:
    context = Context(linear, {"test": probe(IMAGES, [0, 0, 0, 0])})
    norm = measures.create("weight_norm")(context)
    assert norm.values == pytest.approx([2**0.5, 2**0.5]) and norm.coords["layer"] == ("1.weight", "total")
    assert measures.create("logit_scale")(context).values[0] == pytest.approx((0.9 + 0.8 + 0.6 + 0.5) / 4)


def test_robust_accuracy_of_a_linear_net_is_its_closed_form(linear) -> None:
    """The margin is x0 - x1, and an l_inf ball of radius e takes 2 e of it."""
    probes = {"test": probe(IMAGES, [0, 1, 0, 0])}
    reading = measures.create("robust_accuracy", epsilons=(0.04, 0.09, 0.2, 0.45), steps=10)(Context(linear, probes))
    margins = np.array([0.8, 0.6, 0.2, 0.1])
    for j, epsilon in enumerate((0.04, 0.09, 0.2, 0.45)):
        assert reading.values[0, j].tolist() == [np.mean(margins > 2 * epsilon)] * 2
    assert reading.coords["attack"] == ("pgd-cross_entropy", "pgd-margin")


@pytest.mark.parametrize("method", ["tangent", "vertex"])
def test_local_complexity_is_measured_behind_the_normalisation(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2))
    model = Classifier(Normalise((0.4,), (0.2,)), net)
    images = torch.rand(12, 1, 4, 4)
    context = Context(model, {"test": probe(images, [0] * 12)}, seed=3)
    reading = measures.create("local_complexity", radii=(0.1, 1.0), directions=5, points=10, method=method)(context)
    for r, radius in enumerate((0.1, 1.0)):
        counts = local_complexity(net, (images[:10] - 0.4) / 0.2, radius, 5, method, seed=3).counts.double().numpy()
        assert reading.values[0, r] == pytest.approx([*counts.mean(0), counts.sum(1).mean()])
        half = 2.262157 * counts.sum(1).std(ddof=1) / 10**0.5  # Student's t with 9 degrees of freedom
        assert reading.high[0, r, -1] - reading.values[0, r, -1] == pytest.approx(half)
    assert reading.unit == "units per point (normalised input space)" and reading.n == (10,)
    assert sum(reading.settings["units"].values()) == 50


@pytest.mark.parametrize("method", ["tangent", "vertex"])
def test_local_complexity_tells_switches_and_zones_beside_the_count(method: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 9), nn.GELU())
    images, radii = torch.rand(6, 1, 6, 6), (0.1, 1.0)
    context = Context(net, {"test": probe(images, [0] * 6)}, seed=3)
    settings = measures.create("local_complexity", radii=radii, directions=5, method=method)(context).settings
    single = [local_complexity(net, images, radius, 5, method, seed=3) for radius in radii]
    assert single[1].switches.sum() > 0 and settings["windows"] == {"2": 16}
    assert settings["switches"] == {"test": {"2": [one.switches.double().mean().item() for one in single]}}
    assert settings["pool_signs"] == {"test": {"2": [one.pool_signs.double().mean().item() for one in single]}}
    assert settings["zones"] == {"test": {"5": [one.zones.sum(1).double().mean().item() for one in single]}}


def test_a_wrapped_classifier_is_measured_in_the_same_space(linear) -> None:
    model = Classifier(Normalise((0.4,), (0.2,)), nn.Sequential(linear, nn.ReLU()))
    context = Context(model, {"test": probe(IMAGES, [0] * 4)})
    wrapped = Context(torch.compile(nn.DataParallel(model), backend="eager"), context.probes)
    measure = measures.create("local_complexity", radii=(0.5,))
    assert measure(wrapped).unit == measure(context).unit == "units per point (normalised input space)"
    assert np.array_equal(measure(wrapped).values, measure(context).values)


def test_a_small_input_is_measured_in_all_its_directions(linear) -> None:
    net = nn.Sequential(linear, nn.ReLU())
    reading = measures.create("local_complexity", directions=20)(Context(net, {"test": probe(IMAGES, [0] * 4)}))
    assert reading.values.shape == (1, 3, 2)


def test_the_wilson_interval_is_the_textbook_one() -> None:
    low, high = wilson_interval(np.array([0, 8, 10]), np.array([10, 10, 10]))
    assert low == pytest.approx([0, 0.4902, 0.7225], abs=1e-4) and high == pytest.approx([0.2775, 0.9433, 1], abs=1e-4)


def test_missing_probe_sets_and_values_that_are_not_finite(linear, tmp_path) -> None:
    context = Context(linear, {"test": probe(IMAGES, [0, 0, 0, 0])})
    with pytest.raises(UsageError, match=r"no probe set among \['nowhere'\]; this run has \['test'\]. Pass others"):
        measures.create("accuracy", probe_sets=("nowhere",))(context)
    with torch.no_grad():
        linear[1].weight.mul_(float("nan"))
    with pytest.raises(NumericsError, match=r"logit_scale-\w+ at step 7: a value is not finite"):
        measure_and_store(tmp_path, 7, measures.create("logit_scale"), context)
    assert not any(tmp_path.rglob("*.h5"))


def test_images_without_labels_are_not_attributed(linear, tmp_path) -> None:
    context = Context(linear, {"random": probe(IMAGES, [-1] * 4, "random")})
    with pytest.raises(UsageError, match="have no labels; choose others"):
        attribute_and_store(tmp_path, 0, AttributionSpec("saliency", probe_set="random"), context)
