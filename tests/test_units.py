"""What counts as a unit: every call of it, the zone of a smooth activation, and calls that are none or are refused."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import TransformerEncoderLayer

from grokkit import models, operations, units
from grokkit.errors import ModelContractError
from grokkit.seeding import seeded
from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity
from tests.reference.lc_nets import MLP, randomised

both = pytest.mark.parametrize("method", ("vertex", "tangent"))


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Wired(nn.Module):
    """A linear layer, and what `body` makes of its output and of the net's own tensors."""

    def __init__(self, body, inputs=5, outputs=8):
        super().__init__()
        self.first, self.body = nn.Linear(inputs, outputs), body
        self.weight = nn.Parameter(torch.randn(outputs))
        self.register_buffer("level", torch.zeros(outputs))

    def forward(self, x):
        return self.body(self, self.first(x))


def _count(body, images, method, radius=0.5):
    return local_complexity(randomised(_Wired(body), 2), images, radius, 4, method)


# --- absolute values, and maxima and minima of two tensors ------------------------------------------------------

FOLDS = {
    "abs": lambda net, z: z.abs(),
    "torch.abs": lambda net, z: torch.abs(z),
    "builtin": lambda net, z: abs(z),
    "abs_": lambda net, z: z.abs_(),
    "absolute": lambda net, z: torch.absolute(z) + z.absolute_() * 0,
    "max of its negative": lambda net, z: torch.maximum(z, -z),
    "max": lambda net, z: torch.max(z, net.level * 0),
    "reversed": lambda net, z: torch.maximum(0 * net.weight, z),
    "min": lambda net, z: z.min(other=net.level * z),
    "method": lambda net, z: z.maximum(torch.tensor(0.0)),
    "fmin": lambda net, z: torch.fmin(input=z, other=-z * 0),
    "broadcast": lambda net, z: z.fmax(torch.zeros(1, 1, dtype=z.dtype)),
    "minimum": lambda net, z: z.minimum(z * 2),
}


@both
@pytest.mark.parametrize("name", FOLDS)
def test_whatever_folds_at_zero_counts_as_a_relu(name, method):
    images = _draw(12, 5)
    relu, folded = (_count(body, images, method) for body in (lambda net, z: z.relu(), FOLDS[name]))
    assert relu.counts.sum() > 0 and folded.exact
    assert torch.equal(folded.counts[:, 0], relu.counts[:, 0])
    assert next(iter(folded.units.values())) == 8 and folded.live_units[folded.layers[0]] > 0


@both
def test_a_maximum_of_two_layers_has_the_closed_form_of_their_difference(method):
    class Maxout(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 40), nn.Linear(6, 40)

        def forward(self, x):
            return torch.max(self.a(x), self.b(x))

    net, images, frame = randomised(Maxout()), _draw(9, 6), draw_orthonormal_frame(3, 6, 0)
    weight, bias = net.a.weight - net.b.weight, net.a.bias - net.b.bias
    expected = ((images @ weight.T + bias).abs() < 0.3 * (weight @ frame.T).abs().amax(1)).sum(1)
    result = local_complexity(net, images, 0.3, 3, method)
    assert result.layers == ("maximum",) and expected.sum() > 0 and torch.equal(result.counts[:, 0], expected)


@both
def test_maxima_of_one_tensor_of_indices_and_of_masks_are_no_units(method):
    def body(net, z):
        steps = torch.maximum(torch.arange(8), torch.tensor(3)).clamp(max=6).abs()
        assert (torch.maximum(z > 0, z < 1) | torch.max(z > 0, z > 1)).shape == z.shape
        return (
            z[:, steps] + torch.max(z, 1, keepdim=True).values + z.min(dim=1)[0][:, None] + z.flatten(1).max(1, True)[0]
        )

    result = _count(lambda net, z: body(net, z).relu(), _draw(1, 5), method)
    assert result.layers == ("relu",) and result.uncounted == ("max", "min")


def test_complex_numbers_have_no_sign_and_are_named():
    result = _count(lambda net, z: torch.fft.fft(z).abs().relu(), _draw(2, 5), "vertex")
    assert result.layers == ("relu",) and result.uncounted[-1] == "abs"


# --- what the images do not reach -------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("points", [1, 8])
def test_calls_on_the_nets_own_tensors_are_no_units_whatever_their_shape(points, method):
    def body(net, z):
        temperature = torch.maximum(net.weight, net.level).abs() + net.level.clamp(min=0.1)
        made = torch.stack([net.weight * 2, net.level], 0).sigmoid().sum(0)
        made.mul_(net.weight)
        return (z * temperature + F.relu(made) + F.softplus(net.weight)).relu()

    result = _count(body, _draw(points, 5), method)
    assert result.layers == ("relu",) and list(result.units.values()) == [8]


def _written(net, z):
    kept = (net.weight * 0).repeat(len(z), 1)
    kept += z
    return kept.relu()


def test_a_tensor_into_which_the_images_were_written_is_one_of_theirs():
    images = _draw(4, 5)
    expected = _count(lambda net, z: z.relu(), images, "vertex").counts
    assert expected.sum() > 0 and torch.equal(_count(_written, images, "vertex").counts, expected)
    with pytest.raises(ModelContractError, match="into a plain tensor"):
        _count(_written, images, "tangent")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, lambda a, b: nn.RNN(a, b, nonlinearity="relu")])
def test_recurrent_layers_are_named(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = kind(4, 3)
            self.cell.batch_first = True

        def forward(self, x):
            return self.cell(x)[0].relu()

    found = local_complexity(Net(), torch.randn(2, 5, 4), 0.1, 2)
    assert re.fullmatch(r"cell\.(lstm|gru|rnn_tanh|rnn_relu)", found.uncounted[0]) and found.layers == ("relu",)
    assert 0 < found.counted_share <= 0.5


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_net_of_which_nothing_is_counted_is_refused_by_name(kind):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = kind(4, 3)

        def forward(self, x):
            out = self.cell(x)
            return out[0] if isinstance(out, tuple) else out

    with pytest.raises(ModelContractError, match=r"no nonlinear call.*is counted.*`(lstm|gru|rnn_tanh)_cell`"):
        local_complexity(Net(), torch.randn(2, 4), 0.1, 2)


# --- smooth activations -----------------------------------------------------------------------------------------

SMOOTH = {
    "gelu": (nn.GELU(), math.sqrt(2)),
    "gelu, tanh": (nn.GELU(approximate="tanh"), math.sqrt(2)),
    "silu": (nn.SiLU(), operations.SILU_ZONE),
}


def test_the_zones_end_where_the_second_derivative_is_zero():
    assert abs(operations.SILU_ZONE * math.tanh(operations.SILU_ZONE / 2) - 2) < 1e-15
    for function, edge in ((F.gelu, operations.GELU_ZONE), (F.silu, operations.SILU_ZONE)):
        for sign in (1.0, -1.0):
            x = torch.tensor(sign * edge, dtype=torch.float64)
            bent = torch.func.grad(torch.func.grad(function))
            assert abs(bent(x)) < 1e-15 and bent(x * 0.999) > 0 > bent(x * 1.001)


@both
@pytest.mark.parametrize("name", SMOOTH)
def test_zones_count_the_units_that_come_into_the_curved_zone(name, method):
    activation, edge = SMOOTH[name]
    inside = torch.tensor([0.0, edge - 0.01, -edge + 0.3, edge + 0.09, -edge - 0.09], dtype=torch.float64)
    outside = torch.tensor([edge + 0.11, -edge - 0.11, 9.0], dtype=torch.float64)
    result = local_complexity(activation, torch.cat([inside, outside])[:, None], 0.1, 1, method)
    assert result.zones.flatten().tolist() == [1] * 5 + [0] * 3
    assert result.counts.flatten().tolist() == [1] + [0] * 7  # the sign, as before
    assert result.proxy_layers == result.layers and not result.exact


@both
def test_zones_are_those_of_the_layers_with_a_smooth_activation(method):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = MLP((4, 9, 6, 5))

        def forward(self, x):
            one, two, three = self.net.layers
            return F.silu(three(F.gelu(two(torch.relu(one(x)))) * 3))

    net, images = randomised(Mixed()), _draw(6, 4)
    result = local_complexity(net, images, 0.2, 3, method)
    assert result.layers == ("relu", "gelu", "silu") and result.proxy_layers == ("gelu", "silu")
    assert result.zones.dtype == torch.int64 and result.zones.shape == (6, 2)
    assert result.to_frame("zones").groupby("layer")["count"].sum().to_dict() == dict(
        zip(("gelu", "silu"), result.zones.sum(0).tolist(), strict=True)
    )
    if method == "tangent":
        spectrum = complexity_spectrum(net, images, [0.01, 0.2], 3)
        assert torch.equal(spectrum.zones[1], result.zones) and (spectrum.zones[0] <= spectrum.zones[1]).all()


# --- nets from elsewhere ----------------------------------------------------------------------------------------


def _seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double()


def _vgg(name, batch_norm):
    """torchvision's features, 8 times narrower, under a short head."""
    vgg = pytest.importorskip("torchvision").models.vgg
    narrow = [width if width == "M" else width // 8 for width in vgg.cfgs[name]]
    features = vgg.make_layers(narrow, batch_norm)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(True))


def _vision_transformer():
    kind = pytest.importorskip("torchvision").models.vision_transformer.VisionTransformer
    return kind(image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3)


def _swin_v2():
    """Its position biases go through a net of their own, with ReLUs that no image reaches."""
    swin = pytest.importorskip("torchvision").models.swin_transformer
    return swin.SwinTransformer(
        [2, 2],
        8,
        [1, 1],
        [2, 2],
        [2, 2],
        num_classes=3,
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
    )


def _resnet(name):
    return getattr(pytest.importorskip("torchvision").models, name)(num_classes=3)


def _blocks(*depths, units):
    return tuple(
        f"layer{stage}.{block}.relu" + (f"#{unit}" if unit > 1 else "")
        for stage, depth in enumerate(depths, start=1)
        for block in range(depth)
        for unit in range(1, units + 1)
    )


def _relus(name):
    return tuple(path for path, module in _vgg(*name).named_modules() if isinstance(module, nn.ReLU))


def _pools(name):
    return tuple(path for path, module in _vgg(*name).named_modules() if isinstance(module, nn.MaxPool2d))


FOREIGN = {
    "resnet18": (lambda: _resnet("resnet18"), 32, ("relu", *_blocks(2, 2, 2, 2, units=2)), ("maxpool",)),
    "resnet50": (lambda: _resnet("resnet50"), 32, ("relu", *_blocks(3, 4, 6, 3, units=3)), ("maxpool",)),
    "vgg11": (lambda: _vgg("A", False), 32, _relus(("A", False)), _pools(("A", False))),
    "vgg16_bn": (lambda: _vgg("D", True), 32, _relus(("D", True)), _pools(("D", True))),
    "vit": (_vision_transformer, 8, tuple(f"encoder.layers.encoder_layer_{i}.mlp.1" for i in range(2)), ()),
    "swin_v2": (_swin_v2, 8, ("features.1.0.mlp.1", "features.3.0.mlp.1"), ()),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_nets_from_elsewhere_are_counted_alike_by_both_methods_under_their_own_names(name):
    build, size, layers, pools = FOREIGN[name]
    net, images = _seeded(build), _draw(16 if size == 8 else 2, 3, size, size)
    vertex, tangent = (local_complexity(net, images, 0.05, 2, method) for method in ("vertex", "tangent"))
    assert vertex.layers == tangent.layers == layers and vertex.pools == tangent.pools == pools
    assert vertex.units == tangent.units and vertex.live_units == tangent.live_units
    assert vertex.windows == tangent.windows
    assert vertex.total.sum() > 0
    for series in ("units", "switches", "pool_signs", "zones"):
        one, other = (result.to_frame(series)["count"].sum() for result in (vertex, tangent))
        assert abs(one - other) <= 1 + 0.05 * one, series


@both
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_the_fused_path_of_a_transformer_layer_hides_nothing(activation, method):
    layer = _seeded(lambda: TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=activation)).eval()
    images = _draw(3, 5, 8)
    result = local_complexity(layer, images, 0.2, 3, method)
    assert result.layers == (activation,) and list(result.units.values()) == [5 * 16]
    assert result.total.sum() > 0


@both
def test_a_transformer_layer_in_which_images_would_see_each_other_is_refused(method):
    layer = _seeded(lambda: TransformerEncoderLayer(8, 2, 16, batch_first=False))
    with pytest.raises(ModelContractError, match=r"mixes the images.*attention in 'self_attn.* needs batch_first=True"):
        local_complexity(layer, _draw(3, 5, 8), 0.2, 3, method)

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    with pytest.raises(ModelContractError, match=r"values of 'layer\.relu' must have the batch"):
        local_complexity(Turned(), _draw(3, 5, 8), 0.2, 3, method)


# --- strictness -------------------------------------------------------------------------------------------------


def test_dead_paths_of_the_published_net_are_no_crossings():
    """PreActResNet18 without biases or norm: the units that are 0 with slope 0 would triple the count."""
    with seeded(1):
        net = models.create("preact_resnet18", (3, 32, 32), 10, width=4, norm="none").double()
    images, seen = F.interpolate(_draw(4, 3, 4, 4), size=32, mode="bilinear"), {}
    with torch.no_grad(), units.intercept(net.eval(), lambda call: seen.update({call.layer: (call.z == 0).sum()})):
        net(images)
    dead = int(sum(seen.values()))
    vertex, tangent = (local_complexity(net, images, 0.005, 4, method) for method in ("vertex", "tangent"))
    assert dead > 100 and 0 < vertex.total.sum() < dead
    assert torch.equal(vertex.counts, tangent.counts)


@both
def test_each_kink_is_crossed_by_its_own_rule(method):
    """A unit that stays exactly on the kink at -1 does not cross it, and one at -1 says nothing of the kink at 1."""
    net = nn.Sequential(nn.Hardtanh(), nn.Hardtanh())
    points = torch.tensor([[-2.0], [-0.95], [0.95], [2.0]], dtype=torch.float64)
    assert local_complexity(net, points, 0.1, 1, method).counts.tolist() == [[0, 0], [1, 1], [1, 1], [0, 0]]
