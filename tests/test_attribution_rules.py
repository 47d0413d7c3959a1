"""Guided backpropagation and DeepLIFT against slow twins: second readers, reused activations, precision, arguments."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit.attributions import attribute
from grokkit.errors import ModelContractError, UsageError


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class _Sum(nn.Module):
    """A function of the pixels followed by a linear layer with weights 1, beside one with weights 2."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        total = self.function(x).flatten(1).sum(1, keepdim=True)
        return torch.cat([total, 2 * total], 1)


def _row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


def test_guided_backprop_acts_on_the_gradient_of_the_relu_alone():
    image = _row(1, 2, -1)
    for function, expected in [
        (lambda z: F.relu(z) - 2 * z, (-1, -1, -2)),
        (lambda z: 3 * z - F.relu(z), (3, 3, 3)),
        (lambda z: F.relu(z) - 2 * F.relu(z), (1, 1, 0)),
    ]:
        found = attribute(_Sum(function), image, 0, "guided_backprop").values
        assert found.flatten().tolist() == list(expected)


def test_deep_lift_keeps_the_gradient_of_a_second_reader():
    image = _row(1, 2, -1)
    shifted = lambda z: z + 0.5  # noqa: E731
    for function, expected in [
        (lambda z: F.relu(shifted(z)) - 2 * shifted(z), (-1, -2, 2 - 0.5)),
        (lambda z: F.relu(z) - 2 * z, (-1, -2, 2)),
    ]:
        found = attribute(_Sum(function), image, 0, "deep_lift")
        assert found.values.flatten().tolist() == pytest.approx(list(expected))
        assert found.checks["complete"] and found.checks["without_rule"] == []


class _RandomGraph(nn.Module):
    """A random graph: each value is an activation, a linear map or a sum of earlier ones, which have many readers."""

    def __init__(self, seed: int, activations) -> None:
        super().__init__()
        self.activations = nn.ModuleList(activations)
        self.linear = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        for number, parameter in enumerate(self.linear.parameters()):
            parameter.data = _draw(100 * seed + number, *parameter.shape) / 2
        rng = random.Random(seed)
        self.plan = [
            (rng.choice(("act", "act", "add", "linear")), rng.randrange(3), rng.randrange(k + 1), rng.randrange(k + 1))
            for k in range(12)
        ]

    def forward(self, x):
        values = [x.flatten(1)]
        for kind, which, first, second in self.plan:
            if kind == "act":
                values.append(self.act(which, values[first]))
            elif kind == "linear":
                values.append(self.linear[which](values[first]))
            else:
                values.append(values[first] - 0.5 * values[second])
        return torch.stack(values).sum(0)

    def act(self, which, value):
        return self.activations[which % len(self.activations)](value)


class _GuidedByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        ctx.save_for_backward(value)
        return value.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (value,) = ctx.saved_tensors
        return torch.where((value > 0) & (gradient > 0), gradient, 0)


@pytest.mark.parametrize("seed", range(8))
def test_guided_backprop_of_random_graphs_is_that_of_relus_written_by_hand(seed):
    net = _RandomGraph(seed, [nn.ReLU(), nn.ReLU()])
    images = _draw(seed, 3, 1, 2, 3).requires_grad_()
    net.act = lambda which, value: _GuidedByHand.apply(value)
    (expected,) = torch.autograd.grad(net(images)[:, 2].sum(), images)
    del net.act
    found = attribute(net.eval(), images.detach(), 2, "guided_backprop").values
    torch.testing.assert_close(found, expected)


def _rescaled_by_hand(net: _RandomGraph, image: torch.Tensor, target: int) -> torch.Tensor:
    """Attribute the affine net whose activations are replaced by their secants between the image and black."""
    inputs: list[torch.Tensor] = []
    activation = net.act

    def keep(which, value):
        inputs.append(value.detach())
        return activation(which, value)

    net.act = keep
    net(image), net(0 * image)
    half = len(inputs) // 2
    secants = list(zip(inputs[:half], inputs[half:], strict=True))
    count = iter(range(half))

    def at_secant(which, value):
        here, there = secants[next(count)]
        rise = activation(which, here) - activation(which, there)
        slope = torch.where(here == there, 0.0, rise / (here - there))
        return activation(which, here) + slope * (value - here)

    net.act = at_secant
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x)[0, target], image)
    del net.act
    return jacobian * image


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU6(),
    nn.LeakyReLU(0.3),
    nn.PReLU(init=0.2),
    nn.ELU(1.5),
    nn.CELU(0.7),
    nn.SELU(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Hardtanh(-0.5, 2.0),
    nn.Softplus(beta=2, threshold=5),
    nn.Softsign(),
    nn.Sigmoid(),
    nn.LogSigmoid(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Softshrink(0.2),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda module: type(module).__name__)
def test_deep_lift_of_random_graphs_is_that_of_their_secants_also_where_one_module_is_called_often(activation):
    for seed in range(4):
        net = _RandomGraph(seed, [activation]).double().eval()
        image = _draw(seed, 1, 1, 2, 3).double()
        expected = _rescaled_by_hand(net, image, 4)
        found = attribute(net, image, 4, "deep_lift")
        torch.testing.assert_close(found.values, expected.float())
        assert found.checks["complete"] and found.checks["without_rule"] == []
        assert found.checks["completeness_gap"].abs().max() < 1e-6


FORMS = {
    "leaky_relu": [
        nn.LeakyReLU(0.3),
        nn.LeakyReLU(0.3, inplace=True),
        lambda z: F.leaky_relu(z, 0.3),
        lambda z: F.leaky_relu(z, negative_slope=0.3, inplace=True),
        lambda z: F.leaky_relu_(z, 0.3),
    ],
    "elu": [nn.ELU(1.5), lambda z: F.elu(z, 1.5), lambda z: F.elu(input=z, alpha=1.5, inplace=True)],
    "sigmoid": [nn.Sigmoid(), torch.sigmoid, F.sigmoid, lambda z: z.sigmoid(), lambda z: z.sigmoid_()],
    "tanh": [nn.Tanh(), torch.tanh, F.tanh, lambda z: z.tanh(), torch.tanh_],
    "softplus": [nn.Softplus(2, 5), lambda z: F.softplus(z, 2, 5), lambda z: F.softplus(z, beta=2, threshold=5)],
    "clamp": [nn.Hardtanh(-0.5, 0.5), lambda z: z.clamp(-0.5, 0.5), lambda z: torch.clamp(z, min=-0.5, max=0.5)],
    "prelu": [nn.PReLU(init=0.2), lambda z: F.prelu(z, torch.tensor([0.2])), lambda z: z.prelu(torch.tensor([0.2]))],
    "silu": [nn.SiLU(), F.silu, lambda z: F.silu(z, inplace=True)],
    "gelu": [nn.GELU(), F.gelu],
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_in_which_an_activation_is_called_does_not_matter_to_deep_lift(name):
    class Twice(nn.Module):
        def __init__(self, activation):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            for number, parameter in enumerate(self.parameters()):
                parameter.data = _draw(number, *parameter.shape)
            self.activation = activation

        def forward(self, x):
            return self.activation(self.second(self.activation(self.first(x.flatten(1)))))

    images = _draw(5, 3, 1, 2, 3)
    first, *others = [attribute(Twice(form), images, 1, "deep_lift") for form in FORMS[name]]
    assert first.checks["complete"] and first.values.abs().max() > 0
    for other in others:
        torch.testing.assert_close(other.values, first.values)
        assert other.checks["without_rule"] == []


@pytest.mark.filterwarnings("ignore:.*Setting forward, backward hooks")
def test_deep_lift_is_captums_where_no_activation_has_a_second_reader():
    from captum.attr import DeepLift

    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(6, 3))
    for number, parameter in enumerate(net.parameters()):
        parameter.data = _draw(number, *parameter.shape)
    net, images = net.double(), _draw(9, 4, 1, 4, 5).double()
    expected = DeepLift(net).attribute(images.clone().requires_grad_(), torch.zeros_like(images), 2).float()
    torch.testing.assert_close(attribute(net, images, 2, "deep_lift").values, expected.detach())


def test_deep_lift_pairs_an_image_with_its_baseline_where_the_batch_is_not_the_first_dimension():
    class Sequence(nn.Module):
        """Puts the pixels first, as a transformer may, and squashes a parameter too."""

        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(2, 4), nn.Parameter(torch.tensor(0.3))
            for number, parameter in enumerate(self.linear.parameters()):
                parameter.data = _draw(number, *parameter.shape)

        def forward(self, x):
            pixels = x.flatten(2).permute(2, 0, 1)
            return torch.relu(self.linear(pixels)).sum(0) * torch.sigmoid(self.scale)

    images = _draw(3, 4, 2, 2, 3)
    whole = attribute(Sequence(), images, 1, "deep_lift")
    assert whole.checks["complete"] and whole.checks["without_rule"] == []
    alone = torch.cat([attribute(Sequence(), image[None], 1, "deep_lift").values for image in images])
    torch.testing.assert_close(whole.values, alone)


@pytest.mark.parametrize("method", ["guided_backprop", "deep_lift"])
def test_arguments_that_are_not_given_keep_their_defaults(method):
    class Optional(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, mask=None, scale=2.0, *more, flip: bool = False, **rest):
            x = x.mul_(scale)
            if mask is not None:
                x = x * mask
            x = x.flip(-1) if flip or more or rest else x
            return self.net(x)

    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for number, parameter in enumerate(net.parameters()):
        parameter.data = _draw(number, *parameter.shape)
    images = _draw(7, 3, 1, 2, 3)
    plain = attribute(net, 2 * images, 1, method).values
    found = attribute(Optional(net), images, 1, method).values
    torch.testing.assert_close(found, 2 * plain if method == "guided_backprop" else plain)


def test_the_constants_of_a_forward_pass_stay_off_the_model():
    class Constant(nn.Module):
        def forward(self, x):
            return F.relu(x.flatten(1) * torch.tensor([1.0, -2.0, 3.0]))

    net = Constant()
    before = sorted(vars(net))
    assert attribute(net, _row(1, 2, 3), 0, "deep_lift").checks["complete"]
    assert sorted(vars(net)) == before


def test_a_gate_that_image_and_baseline_hardly_change_has_its_own_slope_in_deep_lift():
    """The sum of the values was right whatever the slope of the gate: only the shares of the pixels were wrong."""

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights, self.act = nn.Parameter(torch.tensor([0.5, -0.5, 3e-7])), nn.Sigmoid()

        def forward(self, x):
            gate = self.act((x.flatten(1) * self.weights).sum(1, keepdim=True) + 0.7)
            return torch.cat([gate, 2 * gate], 1)

    image = _row(0.6, 0.6, 0.8)
    slope = torch.sigmoid(torch.tensor(0.7)) * torch.sigmoid(torch.tensor(-0.7))
    expected = slope * torch.tensor([0.3, -0.3, 2.4e-7])
    found = attribute(Gate(), image, 0, "deep_lift")
    torch.testing.assert_close(found.values.flatten(), expected, rtol=1e-5, atol=0)
    assert found.checks["complete"]


def test_deep_lift_of_a_float32_net_is_that_of_its_float64_copy_also_at_a_kink():
    class Kink(nn.Module):
        """The pre-activation is a small positive number; summed in float32 it is not."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2, bias=False)
            self.linear.weight.data = torch.tensor([[1.0, 1e-9, -1.0], [1.0, 1.0, 1.0]])

        def forward(self, x):
            return F.relu(self.linear(x.flatten(1)))

    image = _row(1, 1, 1)
    for baseline in ("black", "mean"):
        single = attribute(Kink(), image, 0, "deep_lift", baseline=baseline)
        double = attribute(Kink().double(), image.double(), 0, "deep_lift", baseline=baseline)
        assert torch.equal(single.values, double.values)
        assert single.checks["complete"] and single.checks["precision"] == "float64"
        assert single.settings["precision"] == "float32"
    assert attribute(Kink(), image, 0, "deep_lift").values.flatten().tolist() == pytest.approx([1, 1e-9, -1])


def test_a_net_that_names_float32_itself_is_computed_in_float32_and_says_so():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x):
            return F.relu(self.linear(x.flatten(1).float()))

    found = attribute(Casts(), _row(1, 2, -1), 0, "deep_lift")
    assert found.checks["precision"] == "float32"
    assert found.checks["complete"]


def test_deep_lift_names_what_has_no_rule():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.gate = nn.LayerNorm(6), nn.Linear(6, 6)
            with torch.no_grad():
                self.gate.weight.copy_(_draw(0, 6, 6))

        def forward(self, x):
            x = self.norm(x.flatten(1))
            x = x * torch.sigmoid(self.gate(x))
            return F.gelu(torch.sin(x)) * torch.tensor([1.0, 2, 3, 4, 5, 6]) + F.softmax(x, -1)

    checks = attribute(Attention(), _draw(4, 2, 1, 2, 3), 0, "deep_lift").checks
    assert checks["without_rule"] == ["LayerNorm", "mul", "sin", "softmax"]
    assert not checks["complete"]


def test_a_bound_that_depends_on_the_image_is_a_second_input_without_a_rule():
    found = attribute(_Sum(lambda z: torch.clamp(z, max=z) + z.clamp(min=2 - z)), _row(1.5, 3, -1), 0, "deep_lift")
    assert found.checks["without_rule"] == ["clamp"]
    assert not found.checks["complete"]


class _Gated(nn.Module):
    """A squeeze-and-excitation gate, an unused branch, a convolution behind the pooling: as mobile nets have them."""

    def __init__(self, *, stride: int = 1) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 5, 3, stride=stride, padding=1)
        self.squeeze, self.head, self.auxiliary = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 6, 1), nn.Conv2d(5, 2, 1)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = _draw(number, *parameter.shape) / 3

    def forward(self, x):
        x = F.relu(self.last(F.relu(self.first(x))), inplace=True)
        x = x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))
        self.kept = self.auxiliary(x)
        return self.head(x.mean((2, 3), keepdim=True)).flatten(1)


def test_grad_cam_shows_the_last_convolution_that_has_a_map_and_reaches_the_logits():
    images = _draw(1, 2, 3, 8, 8)
    found = attribute(_Gated(), images, 1, "grad_cam")
    assert found.settings["layer"] == "last"
    assert (found.values.amax((2, 3)) - found.values.amin((2, 3))).min() > 0
    assert attribute(_Gated(stride=2), images[..., :2, :2], 1, "grad_cam").settings["layer"] == "first"
    with pytest.raises(
        ModelContractError, match=r"'head' gives \(1, 6, 1, 1\), one value for the whole image.*`layer="
    ):
        attribute(_Gated(), images[..., :1, :1], 1, "grad_cam")


def test_grad_cam_refuses_a_layer_that_shows_nothing():
    images = _draw(1, 2, 3, 8, 8)
    with pytest.raises(ModelContractError, match=r"'squeeze' gives \(1, 5, 1, 1\), one value for the whole image"):
        attribute(_Gated(), images, 1, "grad_cam", layer="squeeze")
    with pytest.raises(ModelContractError, match="'auxiliary' has an output that does not reach the logits"):
        attribute(_Gated(), images, 1, "grad_cam", layer="auxiliary")


@pytest.mark.parametrize("layer", [None, "conv"])
def test_grad_cam_shows_the_last_call_of_a_convolution_that_is_called_twice(layer):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)
            for number, parameter in enumerate(self.parameters()):
                parameter.data = _draw(number, *parameter.shape)

        def forward(self, x):
            return self.head(F.relu(self.conv(F.relu(self.conv(x)))).mean((2, 3)))

    net, images = Twice(), _draw(2, 3, 3, 5, 5)
    second = net.conv(F.relu(net.conv(images)))
    (gradient,) = torch.autograd.grad(net.head(F.relu(second).mean((2, 3)))[:, 1].sum(), second)
    expected = F.relu((gradient.mean((2, 3), keepdim=True) * second).sum(1, keepdim=True)).detach()
    torch.testing.assert_close(attribute(net, images, 1, "grad_cam", layer=layer).values, expected)


@pytest.mark.parametrize("target", ["1", b"1", 1j, 1.0, True, [None], [1, 2], {}, object()])
def test_a_target_of_another_type_is_refused_with_what_came(target):
    with pytest.raises(UsageError, match=r"`target` must be None, one class in 0..1 or a tensor of 1 of them; got"):
        attribute(_Sum(F.relu), _row(1, 2, 3), target, "saliency")


def test_a_prelu_is_computed_in_float64_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(64, 3)).eval()
    images = _draw(0, 2, 3, 6, 6)
    found = attribute(net, images, 1, "deep_lift")
    assert found.checks["precision"] == "float64" and found.checks["complete"]
    expected = attribute(net.double(), images.double(), 1, "deep_lift").values
    assert torch.equal(found.values, expected)


class _Sliced(nn.Module):
    """Runs a slice of its layers, which is a new Sequential in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x):
        return self.layers[3:](self.layers[:3](x))


@pytest.mark.parametrize("method", ["guided_backprop", "deep_lift"])
def test_a_slice_of_a_sequential_is_followed(method):
    torch.manual_seed(0)
    net, images = _Sliced().eval(), _draw(0, 2, 3, 6, 6)
    found = attribute(net, images, 1, method).values
    assert torch.equal(found, attribute(net.layers, images, 1, method).values)


class _ReadsAgain(nn.Module):
    """Reads the input of an in-place ReLU again, which does not matter to a black image: the bias is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)
        nn.init.ones_(self.conv.bias)

    def forward(self, x):
        value = self.conv(x)
        return self.head((F.relu_(value) + 2 * value).flatten(1))


@pytest.mark.parametrize("method", ["guided_backprop", "deep_lift"])
def test_another_function_is_refused_also_where_it_agrees_on_the_first_image(method):
    torch.manual_seed(0)
    images = _draw(0, 2, 3, 6, 6)
    images[0] = 0
    with pytest.raises(ModelContractError, match="computes something else"):
        attribute(_ReadsAgain().eval(), images, 1, method)
