"""What the tangent pass gives beside counts: critical radii, boundary density, Jacobian norm, rounded tangents."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tests.test_tangent_lc as bodies
from grokkit.errors import ModelContractError, UsageError
from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity, passes
from grokkit.spline.max_projection import expected_max_projection
from tests.reference.lc_nets import MLP, ResidualNet, randomised
from tests.reference.slow_lc import preactivations_of, tangents

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- critical radii --------------------------------------------------------------------------------------------


def test_critical_radii_are_order_statistics_of_the_slow_twin() -> None:
    net, images = randomised(ResidualNet()), _draw(3, 2, 12, 12)
    frame = draw_orthonormal_frame(4, 288, 5)
    levels = (0.001, 0.25, 0.5, 1.0)
    found = complexity_spectrum(net, images, [0.1], 4, seed=5, quantiles=levels)
    for point, x in enumerate(images):
        radii = []
        for z, slopes in tangents(preactivations_of(net), x, frame):
            rows = [slope.flatten().tolist() for slope in slopes]
            for unit, value in enumerate(z.flatten().tolist()):
                reach = max(abs(row[unit]) for row in rows)
                radii.append(abs(value) / reach if reach else math.inf)
        radii.sort()
        expected = [radii[math.ceil(level * len(radii)) - 1] for level in levels]
        assert found.critical_radius[:, point].tolist() == pytest.approx(expected, rel=1e-9)
        assert sum(radius < 0.1 for radius in radii) == found.total[0, point]


def test_a_unit_that_nothing_moves_has_an_infinite_critical_radius() -> None:
    net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.ReLU())
    net[0].weight.data = torch.tensor([[-1.0, -1.0]] * 3 + [[-2.0, 0.0]])
    found = complexity_spectrum(net, torch.tensor([[1.0, 1.0]]), [0.1], frame=torch.eye(2), quantiles=(0.125, 0.5, 0.6))
    # units 0-2: 2 / 1, unit 3: 2 / 2; the whole second layer is dead with 0 / 0
    assert found.critical_radius[:, 0].tolist() == [1.0, 2.0, math.inf]


def test_the_quantiles_depend_on_no_block(monkeypatch) -> None:
    net, images = randomised(ResidualNet()), _draw(5, 2, 12, 12)
    whole = complexity_spectrum(net, images, [0.1], 5)
    monkeypatch.setattr(passes, "_PASS_ELEMENTS", {"cpu": 600})
    cut = complexity_spectrum(net, images, [0.1], 5)
    assert torch.allclose(whole.critical_radius, cut.critical_radius, rtol=1e-9)
    assert torch.allclose(whole.jacobian_norm, cut.jacobian_norm, rtol=1e-9)
    assert whole.critical_radius.shape == (4, 5) and whole.critical_radius.dtype == torch.float64


def test_no_quantiles_and_no_layers() -> None:
    assert complexity_spectrum(MLP(), _draw(3, 6), [0.1], 2, quantiles=()).critical_radius.shape == (0, 3)
    linear = complexity_spectrum(nn.Linear(6, 2), _draw(3, 6), [0.1], 2)
    assert linear.critical_radius.isnan().all() and linear.boundary_density.tolist() == [[0.0] * 3]


@pytest.mark.parametrize("levels", [(0.0,), (1.1,), ("half",), 0.5])
def test_levels_out_of_range_are_refused(levels) -> None:
    with pytest.raises(UsageError, match=r"levels in \(0, 1\]"):
        complexity_spectrum(MLP(), _draw(3, 6), [0.1], 2, quantiles=levels)


# --- boundary density ------------------------------------------------------------------------------------------


def test_kappa_in_closed_form_and_by_simulation() -> None:
    """Case 23."""
    assert expected_max_projection(1, 2) == pytest.approx(2 / math.pi)
    assert expected_max_projection(1, 3) == pytest.approx(1 / 2)
    assert expected_max_projection(2, 2) == pytest.approx(2 * math.sqrt(2) / math.pi)
    for directions, size in [(5, 12), (20, 784)]:
        frame = draw_orthonormal_frame(directions, size, 3)
        normals = F.normalize(_draw(20_000, size), dim=1)
        assert (normals @ frame.T).abs().amax(1).mean() == pytest.approx(
            expected_max_projection(directions, size), rel=0.01
        )


@pytest.mark.parametrize("frames", ["shared", "per_point"])
def test_density_of_random_hyperplanes_is_their_closed_form(frames) -> None:
    """Hyperplanes w x + b = 0 with Gaussian b: the density at x is the sum of |w| times b's density at -w x."""
    net = nn.Sequential(nn.Linear(6, 20_000), nn.ReLU(), nn.Linear(20_000, 1)).double()
    scale = 1.5
    net[0].weight.data, net[0].bias.data = _draw(20_000, 6), scale * _draw(20_000, seed=2)
    images = _draw(12, 6, seed=3)
    found = complexity_spectrum(net, images, [0.01, 0.03], 3, frames, quantiles=())
    at = images @ net[0].weight.T / scale
    density = torch.exp(-at.square() / 2) / (scale * math.sqrt(2 * math.pi))
    expected = (net[0].weight.norm(dim=1) * density).sum(1)
    assert (found.boundary_density.mean(1) / expected.mean()).tolist() == pytest.approx([1, 1], rel=0.02)
    ratio = found.line_density / found.boundary_density
    assert ratio.mean().item() == pytest.approx(math.gamma(3) / math.sqrt(math.pi) / math.gamma(3.5))


def test_line_density_is_the_count_of_crossings_on_random_lines() -> None:
    net, images, half = randomised(MLP((5, 40, 40, 2)), 3), _draw(8000, 5), 0.05
    found = complexity_spectrum(net, images, [half], 3, "per_point", quantiles=())
    lines = F.normalize(_draw(8000, 5, seed=9), dim=1)
    steps = torch.linspace(-half, half, 41, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        layers = preactivations_of(net)(images + steps * lines)  # (step, point, unit)
    crossings = sum(((z[1:] > 0) != (z[:-1] > 0)).sum().item() for z in layers)
    assert crossings > 5000
    assert found.line_density.mean().item() == pytest.approx(crossings / (8000 * 2 * half), rel=0.04)


def test_the_callers_own_frame_has_no_density() -> None:
    found = complexity_spectrum(MLP(), _draw(3, 6), [0.1, 0.2], frame=torch.eye(6)[:2])
    assert found.frames == "own" and found.boundary_density.isnan().all() and found.line_density.shape == (2, 3)


# --- the Jacobian ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "shape"), [(MLP, (6,)), (ResidualNet, (2, 4, 4))])
def test_the_jacobian_norm_is_exact_with_all_directions(kind, shape) -> None:
    net, images = randomised(kind()), _draw(4, *shape)
    found = complexity_spectrum(net, images, [0.1], images[0].numel())
    norms = [torch.func.jacrev(lambda x: net(x[None])[0])(x).detach().norm().item() for x in images]
    assert found.jacobian_norm.tolist() == pytest.approx(norms, rel=1e-10)


def test_the_squared_norm_is_unbiased_with_few_directions() -> None:
    net, image = randomised(MLP()), _draw(1, 6)
    exact = complexity_spectrum(net, image, [0.1], 6).jacobian_norm.item()
    squares = complexity_spectrum(net, image.expand(2000, 6), [0.1], 2, "per_point").jacobian_norm.square()
    assert squares.mean().item() == pytest.approx(exact**2, rel=0.05)


def test_an_output_without_derivative_has_no_norm() -> None:
    class Class(MLP):
        def forward(self, x):
            return super().forward(x).argmax(1)

    assert complexity_spectrum(randomised(Class()), _draw(3, 6), [0.1], 2).jacobian_norm.isnan().all()


class _Pair(MLP):
    def forward(self, x):
        return super().forward(x), x


class _Loss(MLP):
    def forward(self, x):
        return super().forward(x).sum()


class _Mean(MLP):
    def forward(self, x):
        return super().forward(x).mean(0)


@pytest.mark.parametrize("method", ["vertex", "tangent"])
@pytest.mark.parametrize(
    ("kind", "came"), [(_Pair, "a tuple"), (_Loss, r"a tensor of shape \(\)"), (_Mean, r"a tensor of shape \(3,\)")]
)
def test_a_model_that_returns_something_else_is_refused(method, kind, came) -> None:
    with pytest.raises(ModelContractError, match=f"must return one tensor.*returned {came}.*Wrap it"):
        local_complexity(kind().double(), _draw(4, 6), 0.1, 2, method)


# --- rounded tangents ------------------------------------------------------------------------------------------


def test_rounded_tangents_round_the_tangents_alone() -> None:
    """Reach 1 + 2^-10 is not a bfloat16: of three crossings one is lost; the points themselves are not rounded."""
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU())
    net[0].weight.data = torch.full((4, 1), 1 + 2**-10)
    net[0].bias.data = torch.tensor([0.0, 0.5 + 2**-12, 1 + 2**-11, 5.0])
    images, frame = torch.zeros(6, 1), torch.eye(1)
    exact = local_complexity(net, images, 1.0, method="tangent", frame=frame)
    rounded = local_complexity(net, images, 1.0, method="tangent", frame=frame, tangents="bfloat16")
    assert exact.total.tolist() == [3] * 6 and exact.tangents == "exact" and exact.tangent_error is None
    assert rounded.total.tolist() == [2] * 6 and rounded.tangent_error == pytest.approx(1 / 3)
    spectrum = complexity_spectrum(net, images, [0.5 + 2**-12, 1.0, 10.0], frame=frame, tangents="bfloat16")
    assert spectrum.counts[:, 0, 0].tolist() == [1, 2, 4]
    assert spectrum.tangent_error == pytest.approx((1 / 2, 1 / 3, 0.0))
    assert spectrum.at(1).tangent_error == spectrum.tangent_error[1] and "bfloat16" in repr(spectrum)


@pytest.mark.parametrize("radius", [0.1, 0.5])
def test_rounded_tangents_differ_little_on_a_net_of_every_kind_of_layer(radius) -> None:
    net, images = randomised(ResidualNet(8)).float(), _draw(60, 2, 12, 12).float()
    exact = local_complexity(net, images, radius, 6, "tangent")
    rounded = local_complexity(net, images, radius, 6, "tangent", tangents="bfloat16")
    assert exact.total.sum() > 200 and exact.live_units == rounded.live_units
    assert (exact.counts - rounded.counts).abs().sum() <= 0.02 * exact.total.sum()
    assert 0 <= rounded.tangent_error < 0.03


REFUSED = {"max_pool_unbatched", "switched", "largest_of_one", "larger_of_two", "subtracted"}
"""No batch in front of a pool, control flow, a maximum over the batch, and two that broadcast an image."""


@pytest.mark.parametrize("name", sorted(bodies.BODIES.keys() - REFUSED))
def test_rounded_tangents_go_through_every_kind_of_operation(name, monkeypatch) -> None:
    monkeypatch.setattr(bodies, "GROWN", bodies.GROWN.float())
    net, images = bodies._Tapped(bodies.BODIES[name]), _draw(1, 2, 4, 4).float()
    exact = complexity_spectrum(net, images, [0.1], 3)
    rounded = complexity_spectrum(net, images, [0.1], 3, tangents="bfloat16")
    assert rounded.jacobian_norm.tolist() == pytest.approx(exact.jacobian_norm.tolist(), rel=0.03)


def test_tangents_that_cannot_be_had_are_refused() -> None:
    with pytest.raises(ModelContractError, match=r"float32 model; this one is torch\.float64"):
        complexity_spectrum(MLP().double(), _draw(3, 6), [0.1], 2, tangents="bfloat16")
    with pytest.raises(UsageError, match="'exact' or 'bfloat16'"):
        complexity_spectrum(MLP(), _draw(3, 6), [0.1], 2, tangents="half")
    with pytest.raises(UsageError, match="applies only to method='tangent'"):
        local_complexity(MLP().float(), _draw(3, 6), 0.1, 2, tangents="bfloat16")


def test_the_points_table_agrees_with_the_fields() -> None:
    found = complexity_spectrum(MLP(), _draw(3, 6), [0.1, 0.2], 2)
    table = found.points_frame()
    assert list(table.columns) == ["point", "quantity", "at", "value"] and len(table) == 3 * (2 + 2 + 4 + 1)
    one = table[(table["quantity"] == "line_density") & (table["at"] == 0.2)]
    assert one.sort_values("point")["value"].tolist() == found.line_density[1].tolist()
    assert "jacobian_norm" in repr(found) and "critical radius" in repr(found)
