"""Local complexity by both methods: closed forms, the slow twin, invariances, and no trace left behind."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as module_globals

from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.spline import local_complexity, orthonormal_frame, passes
from tests.reference.lc_nets import MLP, ResidualNet, randomised
from tests.reference.slow_lc import preactivations_of, vertex_count

METHODS = ("vertex", "tangent")
both = pytest.mark.parametrize("method", METHODS)


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _counts(net, images, radius=0.5, directions=4, method="vertex", **options):
    return local_complexity(net, images, radius, directions, method, **options).counts


# --- known answers ---------------------------------------------------------------------------------------------


@both
def test_a_linear_net_has_no_layers_and_no_complexity(method):
    result = local_complexity(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), _draw(5, 4), 9.0, 4, method)
    assert result.counts.shape == (5, 0) and result.layers == ()
    assert result.total.tolist() == [0] * 5
    assert len(result.to_frame()) == 0 and "layers=0" in repr(result)


@both
def test_first_layer_equals_its_closed_form(method):
    for seed in range(60):
        net, images = randomised(MLP((5, 30, 2)), seed), _draw(20, 5, seed=seed)
        radius, directions = 10 ** (seed % 4 - 2.0), seed % 5 + 1
        frame = orthonormal_frame(directions, 5, seed)
        weight, bias = net.layers[0].weight, net.layers[0].bias
        expected = ((images @ weight.T + bias).abs() < radius * (weight @ frame.T).abs().amax(1)).sum(1)
        assert torch.equal(_counts(net, images, radius, directions, method, seed=seed)[:, 0], expected)


@pytest.mark.parametrize(("kind", "shape"), [(MLP, (6,)), (ResidualNet, (2, 12, 12))])
@pytest.mark.parametrize("radius", [0.1, 0.3, 2.0])
def test_vertex_counts_equal_the_slow_twin_to_the_integer(kind, shape, radius):
    net, images = randomised(kind(), 4), _draw(6, *shape)
    frame = orthonormal_frame(4, images[0].numel(), 5)
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
    images = _draw(4, 6).abs() + 1.0  # every first unit is negative, so the second layer is zero everywhere
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


@both
def test_depth_follows_the_arc_cosine_recursion(method):
    """Cho and Saul: the angle between two inputs through wide bias-free ReLU layers; P = 1, v orthogonal to x."""
    width, depth, radius = 500, 4, 8.0
    x = torch.zeros(1, 50, dtype=torch.float64)
    x[0, 0] = 10.0
    frame = torch.eye(50)[1:2]
    sizes = (50, *[width] * depth, 1)
    fractions = []
    for seed in range(6):
        net = randomised(MLP(sizes, bias=False), seed)
        counts = local_complexity(net, x, radius, method="vertex", frame=frame).counts[0] / width
        fractions.append(counts)
        if method == "tangent":  # exact for the first layer only: the slope is that of the centre
            tangent = local_complexity(net, x, radius, method="tangent", frame=frame).counts[0, 0] / width
            assert tangent == counts[0]
    theta, predicted = 2 * math.atan(radius / 10.0), []
    for _ in range(depth):
        predicted.append(theta / math.pi)
        theta = math.acos((math.sin(theta) + (math.pi - theta) * math.cos(theta)) / math.pi)
    error = (torch.stack(fractions).mean(0) - torch.tensor(predicted)).abs()
    assert error.max() < 0.03


# --- invariances -----------------------------------------------------------------------------------------------


@both
def test_folding_batch_norm_changes_nothing(method):
    net, images = randomised(nn.Sequential(nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ReLU())), _draw(4, 2, 6, 6)
    folded = nn.Sequential(torch.nn.utils.fuse_conv_bn_eval(net[0], net[1]), nn.ReLU())
    counts = _counts(net, images, method=method)
    assert counts.sum() > 0
    assert torch.equal(counts, _counts(folded, images, method=method))


@both
def test_rescaling_units_rescaling_inputs_and_permuting_units_change_nothing(method):
    net, images = randomised(MLP()), _draw(7, 6)
    expected = _counts(net, images, method=method)
    assert expected.sum(0).min() > 0

    scaled, (first, second) = copy.deepcopy(net), (1, 2)
    scale = torch.linspace(0.2, 5.0, 8, dtype=torch.float64)
    scaled.layers[first].weight.data *= scale[:, None]
    scaled.layers[first].bias.data *= scale
    scaled.layers[second].weight.data /= scale
    assert torch.equal(_counts(scaled, images, method=method), expected)

    zoomed = copy.deepcopy(net)
    zoomed.layers[0].weight.data *= 8.0
    assert torch.equal(_counts(zoomed, images / 8.0, 0.5 / 8.0, method=method), expected)

    shuffled, order = copy.deepcopy(net), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled.layers[first].weight.data = shuffled.layers[first].weight[order].detach()
    shuffled.layers[first].bias.data = shuffled.layers[first].bias[order].detach()
    shuffled.layers[second].weight.data = shuffled.layers[second].weight[:, order].detach()
    assert torch.equal(_counts(shuffled, images, method=method), expected)


@both
def test_rotating_inputs_and_frame_changes_nothing(method):
    net, images, frame = randomised(MLP()), _draw(7, 6), orthonormal_frame(4, 6, 0)
    rotation = orthonormal_frame(6, 6, 9)
    rotated = copy.deepcopy(net)
    rotated.layers[0].weight.data = net.layers[0].weight.data @ rotation.T
    expected = _counts(net, images, method=method, frame=frame)
    assert torch.equal(_counts(rotated, images @ rotation.T, method=method, frame=frame @ rotation.T), expected)


@both
def test_a_convolution_counts_as_its_unrolled_matrix(method):
    conv, images = randomised(nn.Conv2d(2, 3, 3, padding=1)), _draw(4, 2, 5, 5)
    with torch.no_grad():
        bias = conv(torch.zeros(1, 2, 5, 5, dtype=torch.float64)).flatten()
        columns = conv(torch.eye(50, dtype=torch.float64).view(50, 2, 5, 5)).flatten(1) - bias
    unrolled = nn.Linear(50, 75).double()
    unrolled.weight.data, unrolled.bias.data = columns.T.contiguous(), bias
    expected = _counts(nn.Sequential(conv, nn.ReLU()), images, method=method)
    assert torch.equal(_counts(nn.Sequential(nn.Flatten(), unrolled, nn.ReLU()), images, method=method), expected)


@both
@pytest.mark.parametrize("frames", ["shared", "per_point"])
def test_blocks_of_points_and_of_directions_change_nothing(method, frames, monkeypatch):
    net, images = randomised(ResidualNet()), _draw(7, 2, 12, 12)
    whole = local_complexity(net, images, 0.3, 5, method, frames)
    for elements in (1, 288 * 5, 288 * 17):
        monkeypatch.setattr(passes, "_PASS_ELEMENTS", {"cpu": elements})
        parts = local_complexity(net, images, 0.3, 5, method, frames)
        assert torch.equal(parts.counts, whole.counts) and parts.live_units == whole.live_units
    shared, own = (local_complexity(net, images, 0.3, 5, method, name).counts for name in ("shared", "per_point"))
    assert not torch.equal(shared, own)


@both
def test_permuting_the_samples_permutes_the_counts(method):
    net, images = randomised(ResidualNet()), _draw(7, 2, 12, 12)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_counts(net, images[order], method=method), _counts(net, images, method=method)[order])


@both
def test_channels_last_and_views_that_forbid_it_give_the_counts_of_float64(method):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 5)

        def forward(self, x):
            return F.relu(self.head(F.relu(self.conv(x)).view(len(x), -1)))

    for net in (randomised(Viewed()), randomised(ResidualNet())):
        images = _draw(5, 2, 8, 8)
        double = _counts(net, images, 0.05, method=method)
        assert torch.equal(_counts(net.float(), images, 0.05, method=method), double)


@both
def test_wrapped_models_count_as_the_model(method):
    net, images = randomised(ResidualNet()), _draw(3, 2, 12, 12)
    expected = _counts(net, images, method=method)
    assert torch.equal(_counts(nn.DataParallel(net), images, method=method), expected)
    assert torch.equal(_counts(torch.compile(net, backend="eager"), images, method=method), expected)
    part = nn.Sequential(torch.compile(copy.deepcopy(net), backend="eager"))
    assert torch.equal(_counts(part, images, method=method), expected)
    net.compile(backend="eager")
    assert torch.equal(_counts(net, images, method=method), expected)


# --- no trace --------------------------------------------------------------------------------------------------


class _Failing(ResidualNet):
    calls = 0

    def forward(self, x, taps=None):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        out = super().forward(x, taps)
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("on purpose")
        return out


def _state(net, images):
    hooks = [name for name in vars(module_globals) if name.startswith("_global_") and name.endswith("hooks")]
    return {
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # noqa: NPY002
        "flags": [module.training for module in net.modules()],
        "tensors": {name: value.tolist() for name, value in net.state_dict().items()},
        "grads": [(p.requires_grad, p.grad is None or p.grad.tolist()) for p in net.parameters()],
        "strides": [p.stride() for p in net.parameters()],
        "hooks": {name: len(getattr(module_globals, name)) for name in hooks},
        "own hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        "grad mode": torch.is_grad_enabled(),
        "images": images.tolist(),
        "precision": torch.backends.cudnn.conv.fp32_precision,
    }


@both
@pytest.mark.parametrize("kind", [ResidualNet, _Failing])
def test_nothing_is_left_behind_also_after_an_exception(method, kind):
    net, images = randomised(kind()).float().train(), _draw(3, 2, 12, 12).float().requires_grad_()
    net.bn2.eval()
    net.stem.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = _state(net, images)
    if kind is _Failing:
        net.calls = 2
        with pytest.raises(RuntimeError, match="on purpose"):
            local_complexity(net, images, 0.1, 2, method)
    else:
        local_complexity(net, images, 0.1, 2, method)
    after = _state(net, images)
    assert {name for name in before if before[name] != after[name]} == set()
    assert images.grad is None


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
    result = local_complexity(randomised(ResidualNet()), _draw(3, 2, 12, 12), 0.3, 4)
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
        ({"radius": float("inf")}, "`radius` must be > 0"),
        ({"radius": "wide"}, "`radius` must be numbers"),
        ({"method": "hull"}, "vertex, tangent"),
        ({"images": torch.zeros(3, 6, dtype=torch.int64)}, "must be a floating tensor"),
        ({"images": torch.zeros(0, 6)}, "N >= 1"),
        ({"images": torch.tensor([[float("nan")] * 6, [1.0] * 6])}, "1 of 2"),
        ({"images": [[1.0]]}, "got list"),
    ],
)
def test_bad_arguments_are_refused_in_words(options, words):
    arguments = {"images": _draw(3, 6), "directions": 3, **options}
    with pytest.raises(UsageError, match=words):
        local_complexity(MLP(), **arguments)


class _Sequence(nn.Module):
    def forward(self, x):
        return F.relu(x.transpose(0, 1))


@both
@pytest.mark.parametrize(
    ("net", "words"),
    [
        (MLP().bfloat16(), r"torch\.bfloat16.*deepcopy"),
        (nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU()), "statistics"),
        (nn.Sequential(nn.Sigmoid()), "sigmoid"),
        (_Sequence(), "first dimension"),
    ],
)
def test_models_that_cannot_be_measured_say_why(method, net, words):
    with pytest.raises(ModelContractError, match=words):
        local_complexity(net, _draw(3, 6), 0.1, 2, method)


@both
def test_diverged_weights_are_an_error_not_a_count(method):
    net = randomised(MLP())
    net.layers[1].weight.data[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="not finite"):
        local_complexity(net, _draw(3, 6), 0.1, 2, method)


@both
def test_layers_that_depend_on_the_images_are_refused(method, monkeypatch):
    class Moody(nn.Module):
        def forward(self, x):
            return F.relu(x) if x.mean() > 0 else F.leaky_relu(x)

    monkeypatch.setattr(passes, "_PASS_ELEMENTS", {"cpu": 1})
    with pytest.raises(ModelContractError, match="other activations for other images"):
        local_complexity(Moody(), torch.stack([torch.ones(3), -torch.ones(3)]), 0.1, 1, method)
