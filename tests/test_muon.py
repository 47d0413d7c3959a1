"""Muon against a slow twin by singular values and torch's SGD, under a policy, and without a look at the device."""

import copy

import pytest
import torch
from torch import nn

import grokkit as gk
from grokkit.config.run_config import spec
from grokkit.errors import UsageError
from grokkit.optim import muon
from grokkit.optim.build import build_optimizer
from grokkit.optim.muon import Muon, orthogonalize

SHAPES = [(64, 576), (256, 64), (10, 10), (1, 27)]


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_singular_values(matrix):
    """What the rounds do to every singular value, done to every singular value, in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(3):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_newton_schulz_equals_its_polynomial_on_the_singular_values(shape):
    matrix = normal(*shape)
    made = orthogonalize(matrix)
    assert made.dtype == matrix.dtype and made.shape == matrix.shape
    torch.testing.assert_close(made.double(), by_singular_values(matrix), atol=2e-5, rtol=0)
    torch.testing.assert_close(orthogonalize(1e4 * matrix), made, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(64, 576), (256, 64), (256, 2304)])
def test_singular_values_end_near_one_with_their_vectors_kept(shape):
    matrix = normal(*shape)
    made = orthogonalize(matrix).double()
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.68 and values.max() < 1.21
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert (u.mT @ made @ v.mT).diagonal().min() > 0.68, "the exact orthogonal factor within the stated 0.68..1.21"


def test_an_orthogonal_matrix_stays_a_multiple_of_itself_and_zero_stays_zero():
    q, _ = torch.linalg.qr(normal(16, 16, dtype=torch.float64))
    made = orthogonalize(q)
    assert made.dtype == torch.float64
    factor = (made * q).sum() / 16
    torch.testing.assert_close(made, factor * q, atol=1e-5, rtol=0)
    assert not orthogonalize(torch.zeros(3, 5)).any()


def test_in_bfloat16_the_update_points_the_same_way(monkeypatch):
    matrix = normal(64, 576)
    exact = orthogonalize(matrix)
    monkeypatch.setattr(muon, "_select_dtype", lambda device: torch.bfloat16)
    rounded = orthogonalize(matrix)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.03


class Net(nn.Module):
    """One convolution, one vector, one matrix, one frozen weight."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4, bias=False)
        self.frozen = nn.Parameter(torch.empty(2), requires_grad=False)
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=seed))

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def train(net, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        net(normal(6, 3, 8, 8, seed=step)).square().mean().backward()
        optimizer.step()


def test_a_convolution_takes_the_sources_step():
    net = Net()
    optimizer = Muon(net.parameters(), lr=0.24, momentum=0.6)
    weight, buffer = net.conv.weight.detach().double(), torch.zeros(8, 27, dtype=torch.float64)
    for step in range(3):
        train(net, optimizer, 1, first=step)
        gradient = net.conv.weight.grad.double().flatten(1)
        buffer = 0.6 * buffer + gradient
        weight = weight * (8**0.5 / weight.norm())
        weight = weight - 0.24 * by_singular_values(gradient + 0.6 * buffer).view(weight.shape)
        torch.testing.assert_close(net.conv.weight.double(), weight, atol=1e-5, rtol=0)


def test_vectors_and_matrices_take_the_steps_of_torchs_sgd_and_the_frozen_take_none():
    ours, twin = Net(), Net()
    optimizer = Muon(ours.parameters(), lr=0.0, vector_lr=0.3, matrix_lr=0.02, sgd_momentum=0.85, weight_decay=0.004)
    theirs = torch.optim.SGD(
        [
            {"params": [twin.conv.bias], "lr": 0.3, "weight_decay": 0.004 / 0.3},
            {"params": [twin.head.weight], "lr": 0.02, "weight_decay": 0.004 / 0.02},
        ],
        momentum=0.85,
        nesterov=True,
    )
    with torch.no_grad():  # the convolution's norm is set before its first step
        twin.conv.weight.mul_(8**0.5 / twin.conv.weight.norm())
        ours.conv.weight.copy_(twin.conv.weight)
    train(ours, optimizer, 4)
    train(twin, theirs, 4)
    torch.testing.assert_close(ours.conv.bias, twin.conv.bias)
    torch.testing.assert_close(ours.head.weight, twin.head.weight)
    assert not torch.equal(ours.head.weight, Net().head.weight)
    assert torch.equal(ours.frozen, Net().frozen) and len(optimizer.state) == 3


def test_a_policy_moves_all_rates_by_one_factor():
    optimizer = Muon(Net().parameters(), lr=0.24, vector_lr=106.0, matrix_lr=1340.0)
    policy = gk.PolicyLR(
        optimizer, gk.policies.create("wsd", warmup=0.0, decay_share=1.0, shape="linear", final_scale=1e-6), 4
    )
    for scale in (1.0, 0.75, 0.5, 0.25):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.24 * scale, 106 * scale, 1340 * scale], rel=1e-5)
        optimizer.step()
        policy.step()
    assert [group["kind"] for group in optimizer.param_groups] == ["convolutions", "vectors", "matrices"]
    assert all(group["capturable"] for group in optimizer.param_groups), "a graph may record it"


def test_a_rate_on_the_device_and_a_number_give_the_same_step():
    one, other = Net(), Net()
    first, second = Muon(one.parameters(), lr=0.2), Muon(other.parameters(), lr=0.2)
    for group in second.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    train(one, first, 3)
    train(other, second, 3)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_never_asks_the_device_for_a_value():
    """On the meta device there are none: whatever asked for one would raise."""
    with torch.device("meta"):
        parameters = [nn.Parameter(torch.empty(shape)) for shape in ((8, 3, 3, 3), (40, 2, 3, 3), (8,), (4, 8))]
        optimizer = Muon(parameters, weight_decay=0.004)
        for group in optimizer.param_groups:
            group["lr"] = torch.empty(())
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    optimizer.step()
    with pytest.raises(RuntimeError):
        parameters[0].norm().item()


def test_loaded_state_goes_on_bit_for_bit():
    net = Net()
    optimizer = Muon(net.parameters(), weight_decay=0.001)
    train(net, optimizer, 3)
    copied, held = Net(), copy.deepcopy(optimizer.state_dict())
    copied.load_state_dict(net.state_dict())
    again = Muon(copied.parameters(), weight_decay=0.001)
    again.load_state_dict(held)
    train(net, optimizer, 3, first=3)
    train(copied, again, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), copied.parameters(), strict=True))


def test_it_is_built_by_name_and_refuses_what_it_cannot_take():
    net = Net()
    made = build_optimizer(spec("muon", lr=0.1, matrix_lr=0.5), net.parameters())
    assert isinstance(made, Muon) and [group["lr"] for group in made.param_groups] == [0.1, 0.1, 0.5]
    for options, message in (
        ({"lr": -1.0}, "`lr` must be 0 or more; got -1.0"),
        ({"momentum": 1.0}, r"`momentum` must lie in \[0, 1\)"),
        ({"nesterov": True}, "nesterov"),
    ):
        with pytest.raises(UsageError, match=message):
            build_optimizer(spec("muon", **options), net.parameters())
