"""The tangent carrier against `torch.func.jvp`, one point and one unit at a time, and on nets of every make."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit.errors import ModelContractError, UsageError
from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity
from grokkit.spline.passes import forward_with_interception
from grokkit.spline.rules import Dual
from tests.reference.lc_nets import MLP, ResidualNet, draw, randomised
from tests.reference.slow_lc import preactivations_of, tangent_count, tangents

NETS = {"mlp": (MLP, (6,)), "residual": (ResidualNet, (2, 12, 12))}


def _carried(net, images, frame):
    """Name -> (z, tangents) of every call, as the carrier has them."""
    seen = {}
    tangent = frame.reshape(-1, 1, *images.shape[1:]).expand(-1, *images.shape)
    with torch.no_grad():
        forward_with_interception(
            net,
            Dual(images.clone(), tangent.clone()),
            lambda call: seen.update({call.layer: (call.z.primal.clone(), call.z.tangent.clone())}),
        )
    return seen


def _assert_carried_equals_jvp(net, images, frame):
    reference = [tangents(preactivations_of(net), x, frame) for x in images]
    seen = list(_carried(net, images, frame).values())[-len(reference[0]) :]  # a body's own calls come first
    assert len(seen) == len(reference[0]) > 0
    for layer, (z, tangent) in enumerate(seen):
        for point in range(len(images)):
            value, slopes = reference[point][layer]
            assert (z[point] - value[0]).abs().max() < 1e-10
            assert (tangent[:, point] - torch.stack(slopes)[:, 0]).abs().max() < 1e-10


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("radius", [0.05, 0.3, 2.0])
def test_counts_equal_the_slow_twin_to_the_integer(name, radius):
    kind, shape = NETS[name]
    net, images = randomised(kind()), draw(3, *shape)
    frame = draw_orthonormal_frame(4, images[0].numel(), 5)
    counts = local_complexity(net, images, radius, 4, "tangent", seed=5).counts
    slow = [tangent_count(preactivations_of(net), x, frame, radius) for x in images]
    assert counts.tolist() == slow
    assert counts.sum() > 0


@pytest.mark.parametrize("name", NETS)
def test_values_and_tangents_equal_jvp(name):
    kind, shape = NETS[name]
    net, images = randomised(kind(), 3), draw(3, *shape)
    _assert_carried_equals_jvp(net, images, draw_orthonormal_frame(5, images[0].numel(), 2))


class _Tapped(nn.Module):
    """`body` up to one pre-activation."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x, taps=None):
        z = self.body(x)
        if taps is not None:
            taps.append(z.clone())
        return F.relu(z)


def _in_place_on_a_view(x):
    y = x * 1.5
    F.relu(y[:, :1].flatten(2)[:, 0], inplace=False)
    y.view(len(y), -1).mul_(2.0)
    half = y[:, 1:]
    half += 1.0
    half.unfold(2, 2, 2)[..., 0].exp_()
    return y


def _rectified_in_place(x):
    y = x * 1.5
    F.relu(y[:, :1], inplace=True)
    return y


def _assigned(x):
    y = x.clone()
    y[:, 0, ::2] = x[:, 1, ::2] ** 2
    y[:, 1] = 3.0
    return y


GROWN = torch.linspace(-1, 1, 32, dtype=torch.float64).view(2, 1, 4, 4)
BODIES = {
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "group_norm": lambda x: F.group_norm(x, 1),
    "softmax_gate": lambda x: x * x.softmax(-1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "matmul_of_two": lambda x: x @ x.transpose(-1, -2),
    "constant_first": lambda x: torch.mul(torch.tensor(2.0, dtype=x.dtype), x) + 3.0 / (x * x + 2.0),
    "broadcast_sum": lambda x: x.mean((2, 3), keepdim=True) - x + GROWN[:1],
    "grown_sum": lambda x: x[:, :, 0].mean(1).unsqueeze(1).unsqueeze(1) + GROWN[:1],
    "subtracted": lambda x: torch.sub(x, x.flip(3), alpha=2.0) - torch.sub(1.0 - x, x.sum(), alpha=0.1),
    "stacked": lambda x: torch.stack([x[:, 0], torch.ones_like(x[:, 1]), x[:, 1]], 1),
    "split": lambda x: x.chunk(2, 1)[0] * 2 - x.unbind(1)[1].unsqueeze(1),
    "padded": lambda x: F.pad(x, (1, 2, 0, 1), value=0.7),
    "reflected": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "reflected_operator": lambda x: torch.ops.aten.reflection_pad2d(x, [1, 1, 1, 1]),
    "resized": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "pooled": lambda x: F.adaptive_avg_pool2d(x, (3, 2)) + F.adaptive_max_pool2d(x, (3, 2)),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 3, 2, padding=1, dilation=1, ceil_mode=True),
    "max_pool_unbatched": lambda x: F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, (len(x), -1)),
    "max_pool_with_indices": lambda x: (
        F.max_pool2d(x, 2, return_indices=True)[0] + torch.max_pool2d(x, 3, 1, 1)[..., ::2, ::2]
    ),
    "adaptive_max_pool_with_indices": lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0],
    "max_pool_of_rows": lambda x: torch.adaptive_max_pool1d(F.max_pool1d(x.flatten(1), 2), 3)[0],
    "max_pool_3d": lambda x: F.max_pool3d(x.unsqueeze(1), (1, 2, 3), (1, 1, 2), (0, 1, 1)),
    "folded": lambda x: x.abs() - torch.abs(x.flip(3) * 2).sqrt() + abs(x.transpose(2, 3)),
    "larger_of_two": lambda x: torch.maximum(x, x.flip(3)) - torch.fmin(x, GROWN[:1]) + torch.max(GROWN[:1], x.mean(1)),
    "largest_of_one": lambda x: x * torch.max(x, 2, keepdim=True).values + x.min() - torch.min(x, other=x.flip(2) * 2),
    "conv_transpose": lambda x: F.conv_transpose2d(x, GROWN.expand(2, 3, 4, 4), torch.ones(3).to(GROWN), stride=2),
    "conv_1d": lambda x: F.conv1d(x.flatten(2), GROWN.reshape(2, 2, 8), None, 2),
    "swapped": lambda x: x.permute(0, 2, 3, 1).contiguous().transpose(1, 2).reshape(len(x), -1),
    "activations": lambda x: F.gelu(x) + F.hardswish(x) + F.silu(x) + F.leaky_relu(x, 0.3) + F.hardtanh(x, -0.3, 0.4),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2, 0.7], dtype=x.dtype)),
    "view_in_place": _in_place_on_a_view,
    "rectified_in_place": _rectified_in_place,
    "assigned": _assigned,
    "masked": lambda x: torch.where(x > 0.2, x * x, x).masked_fill(x < -1, 0.0).clamp(max=1.5),
    "switched": lambda x: x * 2 if x.argmax() >= 0 and x.shape[1] == 2 else x,
}


@pytest.mark.parametrize("name", BODIES)
def test_every_kind_of_operation_carries_exact_tangents(name):
    net, images = _Tapped(BODIES[name]), draw(1, 2, 4, 4)
    _assert_carried_equals_jvp(net, images, draw_orthonormal_frame(3, 32, 0))


def test_detaching_does_not_flatten_the_function():
    images, frame = draw(1, 2, 4, 4), draw_orthonormal_frame(3, 32, 0)
    (whole,) = _carried(_Tapped(lambda x: x * x), images, frame).values()
    (cut,) = _carried(_Tapped(lambda x: x.detach() * x.data), images, frame).values()
    assert torch.allclose(whole[1], cut[1], rtol=0, atol=1e-12)


def test_a_preactivation_without_derivatives_is_refused_not_counted_as_zero():
    with pytest.raises(ModelContractError, match='method="vertex"'):
        local_complexity(_Tapped(lambda x: _Hidden.apply(x)), draw(2, 3), 0.1, 2, "tangent")


class _Hidden(torch.autograd.Function):
    """Leaves torch's sight."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.numpy() * 2)


def test_an_operation_without_forward_derivative_is_named_with_the_way_out():
    net = _Tapped(lambda x: torch.cdist(x.unsqueeze(1), x.unsqueeze(1) * 2 + 1, p=3.0).flatten(1))
    with pytest.raises(ModelContractError, match=r"`cdist` has no forward-mode derivative.*method=\"vertex\""):
        local_complexity(net, draw(2, 3), 0.1, 2, "tangent")
    assert local_complexity(net, draw(2, 3), 0.1, 2, "vertex").counts.shape == (2, 1)


def test_writing_into_a_plain_tensor_is_refused():
    def write(x):
        y = torch.zeros(x.shape, dtype=x.dtype)
        y[:, 1] = x[:, 0]
        return y

    with pytest.raises(ModelContractError, match="into a plain tensor"):
        local_complexity(_Tapped(write), draw(2, 3), 0.1, 2, "tangent")


def test_dropout_left_on_is_refused():
    with pytest.raises(ModelContractError, match="is random"):
        local_complexity(_Tapped(lambda x: F.dropout(x)), draw(2, 3), 0.1, 2, "tangent")


def test_spectrum_gives_the_count_of_every_radius():
    net, images = randomised(ResidualNet()), draw(5, 2, 12, 12)
    radii = [1.0, 0.01, 0.2]
    spectrum = complexity_spectrum(net, images, radii, 6, seed=2)
    single = [local_complexity(net, images, radius, 6, "tangent", seed=2) for radius in radii]
    assert torch.equal(spectrum.counts, torch.stack([one.counts for one in single]))
    assert torch.equal(spectrum.density, torch.stack([one.density for one in single]))
    assert spectrum.live_units == single[0].live_units and spectrum.layers == single[0].layers
    frame = spectrum.to_frame()
    assert len(frame) == spectrum.counts.numel()
    assert frame["count"].sum() == spectrum.counts.sum()
    assert set(frame["radius"]) == set(radii)
    assert "0.01" in repr(spectrum)


@pytest.mark.parametrize("radii", [[], [0.1, -1.0], [float("nan")], 3.0, ["a"]])
def test_bad_radii_are_refused(radii):
    with pytest.raises(UsageError, match="`radii`"):
        complexity_spectrum(MLP(), draw(2, 6), radii)


def _vgg11_bn():
    """torchvision's features under a head of its own make, but 500 times narrower."""
    vgg = pytest.importorskip("torchvision").models.vgg
    head = [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(25088, 8), nn.ReLU(True), nn.Dropout(), nn.Linear(8, 4)]
    return nn.Sequential(vgg.make_layers(vgg.cfgs["A"], batch_norm=True), *head)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn"])
def test_torchvision_nets_unmodified(name):
    torchvision = pytest.importorskip("torchvision")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = (torchvision.models.resnet18(num_classes=4) if name == "resnet18" else _vgg11_bn()).double()
    images = draw(1, 3, 32, 32)
    vertex = local_complexity(net, images, 1e-4, 2, "vertex")
    tangent = local_complexity(net, images, 1e-4, 2, "tangent")
    wide = (
        local_complexity(net, images, 0.02, 2, "vertex").total - local_complexity(net, images, 0.02, 2, "tangent").total
    )
    assert vertex.layers == tangent.layers and vertex.live_units == tangent.live_units
    assert torch.equal(vertex.counts, tangent.counts)
    assert abs(int(wide)) <= 2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "pool", [nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(3), nn.AvgPool2d(2), nn.Upsample(scale_factor=2)]
)
def test_pooling_in_either_layout_gives_the_counts_of_the_vertices(layout, pool) -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), pool, nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Flatten())
    model = body.to(memory_format=layout)
    images = torch.randn(6, 3, 12, 12)
    vertex = local_complexity(model, images, 0.01, directions=6, method="vertex")
    tangent = local_complexity(model, images, 0.01, directions=6, method="tangent")
    assert vertex.counts.sum() > 0
    assert (vertex.counts - tangent.counts).abs().sum() <= 0.05 * vertex.counts.sum() + 1


@pytest.mark.parametrize(
    "clamp",
    [
        lambda z: z.clamp(min=0),
        lambda z: torch.clamp(z, 0),
        lambda z: z.clamp_min(0),
        lambda z: z.clip(0.0),
        lambda z: z.clone().clamp_(min=0),
        lambda z: -(-z).clamp_max(0),
    ],
)
@pytest.mark.parametrize("method", ["vertex", "tangent"])
def test_a_clamp_at_zero_is_counted_as_the_relu_it_is(clamp, method) -> None:
    class Net(nn.Module):
        def __init__(self, activation) -> None:
            super().__init__()
            self.first, self.second, self.activation = nn.Linear(5, 9), nn.Linear(9, 7), activation

        def forward(self, x):
            return self.activation(self.second(self.activation(self.first(x))))

    torch.manual_seed(0)
    reference = Net(torch.relu).double()
    net = Net(clamp).double()
    net.load_state_dict(reference.state_dict())
    images = torch.randn(8, 5, dtype=torch.float64)
    expected = local_complexity(reference, images, 0.5, 4, method).counts
    assert expected.sum() > 0 and torch.equal(local_complexity(net, images, 0.5, 4, method).counts, expected)


@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
@pytest.mark.parametrize(("low", "high"), [(-0.3, None), (None, 0.4), (-0.3, 0.4)])
def test_a_clamp_by_tensors_of_bounds_counts_as_one_by_numbers(low, high, method) -> None:
    class Net(nn.Module):
        def __init__(self, tensors):
            super().__init__()
            self.bounds = [
                bound if bound is None or not tensors else torch.full((3,), bound, dtype=torch.float64)
                for bound in (low, high)
            ]

        def forward(self, x):
            return x.clamp(*self.bounds)

    images = draw(20, 3)
    numbers, tensors = (local_complexity(Net(kind), images, 0.1, 2, method) for kind in (False, True))
    assert torch.equal(numbers.counts, tensors.counts)
    assert numbers.counts.sum() > 2
    assert numbers.layers == tensors.layers == ("clamp",)
