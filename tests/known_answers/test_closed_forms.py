"""Local complexity against closed forms, in float64; the numbers are those of the list of known answers."""

import math

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn

from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity
from tests.reference.lc_nets import MLP, draw, randomised

both = pytest.mark.parametrize("method", ["vertex", "tangent"])


@both
def test_case_01_a_linear_net_has_no_layers_and_no_complexity(method):
    result = local_complexity(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), draw(5, 4), 9.0, 4, method)
    assert result.counts.shape == (5, 0) and result.layers == ()
    assert result.total.tolist() == [0] * 5
    assert len(result.to_frame()) == 0 and "layers=0" in repr(result)


@both
def test_case_07_first_layer_lc_is_its_closed_form(method):
    """|w x + b| < r max_p |w v_p|, unit by unit: 100,000 of them and not one mismatch."""
    units = 0
    for seed in range(50):
        size = 2 + seed % 9
        net, images = randomised(MLP((size, 100, 2)), seed), draw(20, size, seed=seed)
        radius, directions = 10 ** (seed % 4 - 2.0), seed % size + 1
        frame = draw_orthonormal_frame(directions, size, seed)
        weight, bias = net.layers[0].weight, net.layers[0].bias
        expected = ((images @ weight.T + bias).abs() < radius * (weight @ frame.T).abs().amax(1)).sum(1)
        counts = local_complexity(net, images, radius, directions, method, seed=seed).counts[:, 0]
        assert torch.equal(counts, expected)
        units += len(images) * 100
    assert units == 100_000


def _orthogonal_pair(norm, size=50):
    """One point of this norm, and one direction at a right angle to it."""
    turned = draw_orthonormal_frame(2, size, seed=3)
    return norm * turned[:1], turned[1:]


@both
@pytest.mark.parametrize("radius", [0.1, 2.0, 30.0])
def test_case_21_a_gaussian_unit_is_crossed_with_probability_two_over_pi_arctan_r_over_x(method, radius):
    """P = 1, v orthogonal to x, no bias: w x and w v are independent Gaussians."""
    units = 100_000
    x, frame = _orthogonal_pair(7.0)
    layer = nn.Linear(50, units, bias=False).double()
    layer.weight.data = draw(units, 50, seed=11)
    count = local_complexity(nn.Sequential(layer, nn.ReLU()), x, radius, method=method, frame=frame).total.item()
    expected = 2 / math.pi * math.atan(radius / 7.0)
    assert abs(count / units - expected) < 4 * math.sqrt(expected * (1 - expected) / units)


RADII = (2.0, 8.0, 25.0)


def _fractions(method, width=1000, depth=4, draws=8):
    """Share of units crossed, (radius, layer), in wide bias-free ReLU nets: the mean over draws of the weights."""
    x, frame = _orthogonal_pair(10.0)
    shares = torch.zeros(len(RADII), depth, dtype=torch.float64)
    for seed in range(draws):
        net = randomised(MLP((50, *[width] * depth, 1), bias=False), seed)
        for row, radius in enumerate(RADII):
            shares[row] += local_complexity(net, x, radius, method=method, frame=frame).counts[0] / (width * draws)
    return shares


def test_case_22_vertex_lc_follows_the_arc_cosine_recursion_down_the_layers():
    """Cho and Saul: the angle between the images of x + r v and x - r v, layer after layer."""
    predicted = []
    for radius in RADII:
        theta = 2 * math.atan(radius / 10.0)
        for _ in range(4):
            predicted.append(theta / math.pi)
            theta = math.acos((math.sin(theta) + (math.pi - theta) * math.cos(theta)) / math.pi)
    assert (_fractions("vertex") - torch.tensor(predicted).view(3, 4)).abs().max() < 0.025


def test_case_22_tangent_lc_is_the_same_share_in_every_layer():
    """The gates are those of the centre, so z and J v stay independent Gaussians of norm |x| : |v| at any depth."""
    predicted = torch.tensor([2 / math.pi * math.atan(radius / 10.0) for radius in RADII])
    assert (_fractions("tangent") - predicted.unsqueeze(1)).abs().max() < 0.025


def _kappa(directions, size):
    """E max_p |<n, v_p>| of a random unit vector n: the mean largest of P half-normals over the mean norm of D."""
    t = np.linspace(0.0, 12.0, 20_001)
    largest = np.trapezoid(1.0 - special.erf(t / math.sqrt(2.0)) ** directions, t)
    return largest / (math.sqrt(2.0) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2)))


def test_case_23_kappa_has_its_known_values():
    assert _kappa(1, 3) == pytest.approx(0.5, abs=1e-6)  # a coordinate on the 2-sphere is uniform
    assert _kappa(1, 2) == pytest.approx(2 / math.pi, abs=1e-6)
    assert _kappa(2, 2) == pytest.approx(2 * math.sqrt(2) / math.pi, abs=1e-6)


@pytest.mark.parametrize(("directions", "size"), [(1, 3), (3, 3), (4, 40), (20, 200)])
def test_case_23_random_frames_reach_kappa(directions, size):
    """The largest |<n, v_p>| for one fixed n over many frames, against the integral."""
    reach = torch.stack([draw_orthonormal_frame(directions, size, seed)[:, 0].abs().max() for seed in range(600)])
    assert abs(reach.mean() - _kappa(directions, size)) < 4 * reach.std() / math.sqrt(len(reach))


@both
def test_case_23_lc_of_uniformly_placed_hyperplanes_is_kappa_times_r(method):
    """Unit normals, offsets uniform in ±a: each is met with probability kappa r / a, as long as |x| + r < a."""
    units, size, radius, reach = 20_000, 30, 0.5, 4.0
    layer = nn.Linear(size, units).double()
    layer.weight.data = nn.functional.normalize(draw(units, size, seed=5))
    layer.bias.data = reach * (2 * torch.rand(units, generator=torch.Generator().manual_seed(6)).double() - 1)
    points = nn.functional.normalize(draw(8, size))
    result = local_complexity(nn.Sequential(layer, nn.ReLU()), points, radius, 6, method, "per_point")
    expected = radius * _kappa(6, size) / reach
    assert result.total.double().mean() / units == pytest.approx(expected, rel=0.05)


@both
def test_case_24_lc_is_proportional_to_small_radii(method):
    net, images = randomised(MLP((20, 400, 400, 400, 3)), 2), draw(400, 20)
    radii = [0.02, 0.04, 0.08, 0.16]
    if method == "tangent":
        totals = complexity_spectrum(net, images, radii, 8).total.sum(1)
    else:
        totals = torch.stack([local_complexity(net, images, radius, 8).total.sum() for radius in radii])
    assert totals[0] > 1000
    slope = np.polyfit(np.log(radii), np.log(totals.numpy()), 1)[0]
    assert slope == pytest.approx(1.0, abs=0.03)
