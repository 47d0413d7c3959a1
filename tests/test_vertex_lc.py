"""Local complexity by both methods: the slow twin, kinks, layouts, wrappers, results and refusals."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.spline import draw_orthonormal_frame, local_complexity, passes
from tests.reference.lc_nets import MLP, ResidualNet, draw, randomised
from tests.reference.slow_lc import preactivations_of, vertex_count

METHODS = ("vertex", "tangent")
both = pytest.mark.parametrize("method", METHODS)


def _counts(net, images, radius=0.5, directions=4, method="vertex", **options):
    return local_complexity(net, images, radius, directions, method, **options).counts


# --- known answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "shape"), [(MLP, (6,)), (ResidualNet, (2, 12, 12))])
@pytest.mark.parametrize("radius", [0.1, 0.3, 2.0])
def test_vertex_counts_equal_the_slow_twin_to_the_integer(kind, shape, radius):
    net, images = randomised(kind(), 4), draw(6, *shape)
    frame = draw_orthonormal_frame(4, images[0].numel(), 5)
    counts = _counts(net, images, radius, seed=5)
    assert counts.sum() > 0
    with torch.no_grad():
        assert counts.tolist() == [vertex_count(preactivations_of(net), x, frame, radius) for x in images]


@both
def test_every_kink_is_counted(method):
    points = torch.tensor([[-3.0], [-1.0], [0.0], [1.0], [2.0], [3.0], [6.0]], dtype=torch.float64)

    def crossed(activation):
        result = local_complexity(activation, points, 0.1, 1, method)
        return points[result.counts[:, 0] == 1, 0].tolist(), sum(result.units.values()), result.exact

    assert crossed(nn.ReLU6()) == ([0, 6], 2, True)
    assert crossed(nn.Hardtanh(-1.0, 2.0)) == ([-1, 2], 2, True)
    assert crossed(nn.Hardswish()) == ([-3, 3], 2, True)
    assert crossed(nn.LeakyReLU(0.1)) == ([0], 1, True)
    assert crossed(nn.GELU()) == ([0], 1, False)
    wide = local_complexity(nn.Hardtanh(-1.0, 2.0), points[2:3], 5.0, 1, method)
    assert wide.counts.tolist() == [[2]]


@both
def test_dead_paths_at_exactly_zero_are_not_counted(method):
    net = randomised(MLP((6, 10, 8, 3), bias=False))
    net.layers[0].weight.data.abs_().neg_()
    images = draw(4, 6).abs() + 1.0  # every first unit is negative, so the second layer is zero everywhere
    result = local_complexity(net, images, 1e-3, 4, method)
    assert result.counts.sum() == 0
    assert list(result.live_units.values()) == [0, 0] and list(result.units.values()) == [10, 8]


@both
def test_live_units_are_those_above_the_kink_at_a_point(method):
    net = nn.Sequential(nn.ReLU())
    points = torch.tensor([[1.0, -1.0, -0.01], [-1.0, -1.0, -0.01]])
    result = local_complexity(net, points, 0.1, 3, method)
    assert result.live_units == {"0": 1}
    assert result.total.tolist() == [1, 1]
    assert result.density.tolist() == [10.0, 10.0]


# --- invariances -----------------------------------------------------------------------------------------------


@both
def test_channels_last_and_views_that_forbid_it_give_the_counts_of_float64(method):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 5)

        def forward(self, x):
            return F.relu(self.head(F.relu(self.conv(x)).view(len(x), -1)))

    for net in (randomised(Viewed()), randomised(ResidualNet())):
        images = draw(5, 2, 8, 8)
        double = _counts(net, images, 0.05, method=method)
        assert torch.equal(_counts(net.float(), images, 0.05, method=method), double)


@both
def test_wrapped_models_count_as_the_model(method):
    net, images = randomised(ResidualNet()), draw(3, 2, 12, 12)
    expected = _counts(net, images, method=method)
    assert torch.equal(_counts(nn.DataParallel(net), images, method=method), expected)
    assert torch.equal(_counts(torch.compile(net, backend="eager"), images, method=method), expected)
    part = nn.Sequential(torch.compile(copy.deepcopy(net), backend="eager"))
    assert torch.equal(_counts(part, images, method=method), expected)
    net.compile(backend="eager")
    assert torch.equal(_counts(net, images, method=method), expected)


@both
def test_weights_and_images_made_in_inference_mode_count_as_others(method):
    expected = _counts(randomised(ResidualNet()), draw(3, 2, 12, 12), method=method)
    with torch.inference_mode():
        net, images = randomised(ResidualNet()), draw(3, 2, 12, 12)
        assert net.stem.weight.is_inference() and net.bn1.running_mean.is_inference()
        assert torch.equal(_counts(net, images, method=method), expected)
    assert torch.equal(_counts(net, images, method=method), expected)


@both
def test_odd_builds_count_as_the_plain_net(method):
    """Parametrised weights, a net called within a checkpoint, images that are not contiguous."""
    net, images = randomised(MLP()), draw(6, 7).T
    expected = _counts(net, images.contiguous(), method=method)
    assert torch.equal(_counts(net, images, method=method), expected)
    checkpointed = _Around(net, lambda call, x: checkpoint(call, x, use_reentrant=False))
    assert torch.equal(_counts(checkpointed, images, method=method), expected)
    functional = _Around(net, lambda call, x: torch.func.functional_call(call, dict(call.named_parameters()), (x,)))
    assert torch.equal(_counts(functional, images, method=method), expected)
    weighted = copy.deepcopy(net)
    weight_norm(weighted.layers[1])
    assert torch.equal(_counts(weighted, images, method=method), expected)


class _Around(nn.Module):
    def __init__(self, net, call):
        super().__init__()
        self.net, self.call = net, call

    def forward(self, x):
        return self.call(self.net, x)


# --- no trace --------------------------------------------------------------------------------------------------


@both
def test_a_model_that_begins_in_place_leaves_the_images_and_the_frame_alone(method):
    images = torch.tensor([[-0.05, 1.0], [0.05, -1.0]], dtype=torch.float64)
    net, frame, kept = (
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 1)).double(),
        torch.eye(2).double(),
        images.clone(),
    )
    assert _counts(net, images, 0.1, method=method, frame=frame).tolist() == [[1], [1]]
    for image in images:  # a single point's directions would be the frame itself
        assert _counts(net, image[None], 0.1, method=method, frame=frame).tolist() == [[1]]
    assert torch.equal(images, kept) and torch.equal(frame, torch.eye(2).double())


# --- results and refusals --------------------------------------------------------------------------------------


def test_the_tidy_table_agrees_with_the_counts():
    result = local_complexity(randomised(ResidualNet()), draw(3, 2, 12, 12), 0.3, 4)
    assert result.counts.dtype == torch.int64
    assert len(result.layers) == len(set(result.layers)) == 5
    table = result.to_frame()
    assert list(table.columns) == ["point", "layer", "count", "density", "units", "live_units"]
    assert table.groupby("point")["count"].sum().tolist() == result.total.tolist()
    assert np.allclose(table.groupby("point")["density"].sum(), result.density)
    assert dict(zip(table["layer"], table["units"], strict=True)) == result.units
    assert f"units={sum(result.units.values())}" in repr(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radius": 0.0}, "`radius` must be > 0"),
        ({"radius": -0.1}, r"`radius` must be > 0 and finite; got \[-0\.1\]"),
        ({"radius": float("inf")}, "`radius` must be > 0"),
        ({"radius": "wide"}, "`radius` must be numbers"),
        ({"method": "hull"}, "vertex, tangent"),
        ({"images": torch.zeros(3, 6, dtype=torch.int64)}, "must be a floating tensor"),
        ({"images": torch.zeros(0, 6)}, "N >= 1"),
        ({"images": torch.tensor([[float("nan")] * 6, [1.0] * 6])}, "1 of 2"),
        ({"images": torch.tensor([[float("inf")] * 6, [1.0] * 6])}, "must be finite; 1 of 2 hold NaN or infinity"),
        ({"images": [[1.0]]}, "got list"),
        ({"model": torch.relu}, r"`model` must be a torch\.nn\.Module; got builtin"),
    ],
)
def test_bad_arguments_are_refused_in_words(options, words):
    arguments = {"model": MLP(), "images": draw(3, 6), "directions": 3, **options}
    with pytest.raises(UsageError, match=words):
        local_complexity(**arguments)


class _Sequence(nn.Module):
    def forward(self, x):
        return F.relu(x.transpose(0, 1))


@both
@pytest.mark.parametrize(
    ("net", "words"),
    [
        (nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU()), "statistics"),
        (nn.Sequential(nn.Sigmoid()), "no nonlinear call of the model is counted.*sigmoid"),
        (_Sequence(), "first dimension"),
    ],
)
def test_models_that_cannot_be_measured_say_why(method, net, words):
    with pytest.raises(ModelContractError, match=words):
        local_complexity(net, draw(3, 6), 0.1, 2, method)


@both
def test_diverged_weights_are_an_error_not_a_count(method):
    net = randomised(MLP())
    net.layers[1].weight.data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="not finite"):
        local_complexity(net, draw(3, 6), 0.1, 2, method)


@both
def test_layers_that_depend_on_the_images_are_refused(method, monkeypatch):
    class Moody(nn.Module):
        def forward(self, x):
            return F.relu(x) if x.mean() > 0 else F.leaky_relu(x)

    monkeypatch.setattr(passes, "_PASS_ELEMENTS", {"cpu": 1})
    with pytest.raises(ModelContractError, match=r"`__bool__` in .* turns a value that depends on the images"):
        local_complexity(Moody(), torch.stack([torch.ones(3), -torch.ones(3)]), 0.1, 1, method)
