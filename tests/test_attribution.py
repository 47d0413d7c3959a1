"""Attributions against closed forms, by hand, and over the forms in which one net can be written."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit.attributions import attribute, create, names
from grokkit.attributions.prepare import RELUS, insert_rules
from grokkit.attributions.rules import GuidedReLU
from grokkit.errors import ModelContractError, NumericsError, UnknownNameError, UsageError


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _filled(net: nn.Module, *, bias: bool = True) -> nn.Module:
    for number, (name, parameter) in enumerate(net.named_parameters()):
        value = _draw(number, *parameter.shape) / parameter[0].numel() ** 0.5
        parameter.data = value if bias or "bias" not in name else torch.zeros_like(value)
    return net.eval()


def _images(count: int = 4, size: int = 6) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(9))


def _mlp(*, bias: bool = True) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 5))
    return _filled(net, bias=bias)


def _by_hand(net: nn.Module, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Plain input gradient, image by image."""
    gradients = []
    for image, chosen in zip(images, target, strict=True):
        leaf = image[None].clone().requires_grad_()
        net(leaf)[0, chosen].backward()
        gradients.append(leaf.grad[0])
    return torch.stack(gradients)


TARGET = torch.tensor([3, 0, 4, 3])


def test_of_a_linear_net_every_gradient_method_gives_the_weights():
    net, images = _filled(nn.Sequential(nn.Flatten(), nn.Linear(108, 5))), _images()
    weights = net[1].weight.detach()[TARGET].view(4, 3, 6, 6)
    torch.testing.assert_close(attribute(net, images, TARGET, "saliency").values, weights.abs())
    for method in ("input_x_gradient", "integrated_gradients", "deep_lift"):
        torch.testing.assert_close(attribute(net, images, TARGET, method).values, images * weights)
    mean = images.mean(dim=(2, 3), keepdim=True)
    for method in ("integrated_gradients", "deep_lift"):
        found = attribute(net, images, TARGET, method, baseline="mean")
        torch.testing.assert_close(found.values, (images - mean) * weights)
        assert found.checks["complete"]
        assert found.settings["baseline"] == "mean"


@pytest.mark.parametrize("n_steps", [1, 3, 50])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-7)])
def test_of_a_bias_free_net_integrated_gradients_are_input_times_gradient(n_steps, dtype, tolerance):
    net, images = _mlp(bias=False).to(dtype), _images().to(dtype)
    found = attribute(net, images, TARGET, n_steps=n_steps)
    expected = (images * _by_hand(net, images, TARGET)).float()
    torch.testing.assert_close(found.values, expected, atol=tolerance, rtol=tolerance)
    assert found.checks["complete"]


def test_integrated_gradients_are_the_average_gradient_on_the_way_and_the_gap_is_what_is_missing():
    net, images = _mlp().double(), _images().double()
    path = [(k + 0.5) / 500 for k in range(500)]
    whole = torch.stack([torch.stack([image * alpha for alpha in path]) for image in images])
    average = torch.stack(
        [_by_hand(net, points, [chosen] * 500).mean(0) for points, chosen in zip(whole, TARGET, strict=True)]
    )
    found = attribute(net, images, TARGET, n_steps=400, batch_size=37)
    torch.testing.assert_close(found.values, (images * average).float(), atol=2e-3, rtol=0)
    gain = (net(images) - net(0 * images)).detach().gather(1, TARGET[:, None]).squeeze(1)
    torch.testing.assert_close(found.checks["output_difference"], gain)
    gap = found.values.double().flatten(1).sum(1) - gain
    torch.testing.assert_close(found.checks["completeness_gap"], gap, atol=1e-5, rtol=0)
    assert found.checks["complete"]


def test_too_few_steps_are_called_incomplete():
    class Square(nn.Module):
        def forward(self, x):
            return (x**8).flatten(1)[:, :2]

    assert attribute(Square(), _images(), 0, n_steps=20).checks["complete"]
    found = attribute(Square(), _images(), 0, n_steps=1)
    assert not found.checks["complete"]
    assert found.checks["completeness_gap"].abs().max() > 0.1 * found.checks["output_difference"].abs().max()


def test_rounding_alone_is_not_called_incomplete():
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    net[1].weight.data = _draw(0, 2, 108)
    net[1].weight.data -= net[1].weight.data.mean(1, keepdim=True)
    found = attribute(net, torch.full((3, 3, 6, 6), 0.7), 0)
    assert found.checks["complete"]
    assert found.checks["output_difference"].abs().max() < 1e-4 < found.values.abs().max()


class _Conv(nn.Module):
    """One small net in four forms with the same weights: modules, in place, one re-used module, functional."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.second, self.third = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4, 5)
        _filled(self)
        if form == "reused":
            self.act = nn.ReLU()
        elif form != "functional":
            self.acts = nn.ModuleList(nn.ReLU(inplace=form == "inplace") for _ in range(3))

    def relu(self, number: int, x):
        if self.form == "functional":
            return (F.relu, torch.relu, lambda z: z.relu())[number](x)
        return self.act(x) if self.form == "reused" else self.acts[number](x)

    def forward(self, x):
        x = self.relu(0, self.first(x))
        x = self.relu(1, x + self.second(x))
        return self.head(self.relu(2, self.third(x)).mean(dim=(2, 3)))


@pytest.mark.parametrize("form", ["inplace", "reused", "functional"])
@pytest.mark.parametrize("method", names())
def test_the_form_in_which_a_net_is_written_does_not_matter(method, form):
    images = _images()
    expected = attribute(_Conv("modules"), images, TARGET, method).values
    torch.testing.assert_close(attribute(_Conv(form), images, TARGET, method).values, expected)
    assert expected.abs().max() > 0


@pytest.mark.parametrize("form", ["modules", "inplace"])
@pytest.mark.parametrize("layer", [None, "second"])
def test_grad_cam_is_what_one_computes_by_hand(layer, form):
    net, images = _Conv("modules"), _images()
    h1 = F.relu(net.first(images))
    second = net.second(h1)
    third = net.third(F.relu(h1 + second))
    activation = third if layer is None else second
    logits = net.head(F.relu(third).mean(dim=(2, 3)))
    (gradient,) = torch.autograd.grad(logits.gather(1, TARGET[:, None]).sum(), activation)
    small = F.relu((gradient.mean(dim=(2, 3), keepdim=True) * activation).sum(1, keepdim=True)).detach()
    expected = F.interpolate(small, (6, 6), mode="bilinear")
    found = attribute(_Conv(form), images, TARGET, "grad_cam", layer=layer)
    torch.testing.assert_close(found.values, expected)
    assert found.settings["layer"] == (layer or "third")


def test_guided_backprop_drops_negative_gradients_at_every_relu():
    net, images = _mlp(), _images()
    z1 = net[1](images.flatten(1))
    z2 = net[3](z1.relu())
    back = (net[5].weight[TARGET] * (z2 > 0)).relu() @ net[3].weight
    expected = ((back * (z1 > 0)).relu() @ net[1].weight).view_as(images).detach()
    torch.testing.assert_close(attribute(net, images, TARGET, "guided_backprop").values, expected)
    plain = _by_hand(net, images, TARGET)
    assert (expected - plain).abs().max() > 0.01


def test_deep_lift_follows_the_rescale_rule_and_is_complete():
    net, images = _mlp().double(), _images().double()
    z1, r1 = net[1](images.flatten(1)), net[1](0 * images.flatten(1))
    z2, r2 = net[3](z1.relu()), net[3](r1.relu())
    slope1, slope2 = (z1.relu() - r1.relu()) / (z1 - r1), (z2.relu() - r2.relu()) / (z2 - r2)
    expected = ((((net[5].weight[TARGET] * slope2) @ net[3].weight) * slope1) @ net[1].weight).view_as(images) * images
    found = attribute(net, images, TARGET, "deep_lift")
    torch.testing.assert_close(found.values, expected.float().detach())
    assert found.checks["complete"]
    assert found.checks["completeness_gap"].abs().max() < 1e-6


def test_deep_lift_refuses_max_pooling_and_names_the_way_out():
    for pool in (nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2), lambda x: F.adaptive_max_pool2d(x, 2)):

        class Pooled(nn.Module):
            def __init__(self, pool=pool):
                super().__init__()
                self.conv, self.pool = nn.Conv2d(3, 4, 3), pool

            def forward(self, x):
                return self.pool(F.relu(self.conv(x))).flatten(1)

        with pytest.raises(ModelContractError, match=r"pool.*Use integrated_gradients"):
            attribute(Pooled(), _images(), 0, "deep_lift")


def test_deep_lift_says_where_an_activation_has_no_rule():
    class Smooth(nn.Module):
        def forward(self, x):
            return torch.sin(3 * x).flatten(1)

    assert not attribute(Smooth(), _images(), 0, "deep_lift").checks["complete"]


def test_a_net_without_convolutions_is_told_what_grad_cam_needs():
    with pytest.raises(
        ModelContractError, match=r"calls no convolution module.*`layer=...`, or use integrated_gradients"
    ):
        attribute(_mlp(), _images(), 0, "grad_cam")
    with pytest.raises(ModelContractError, match=r"'1' gives \(1, 20\)"):
        attribute(_mlp(), _images(), 0, "grad_cam", layer="1")
    with pytest.raises(UsageError, match=r"no module 'thrid'. Did you mean 'third'\?"):
        attribute(_Conv("modules"), _images(), 0, "grad_cam", layer="thrid")
    idle = _Conv("modules")
    idle.spare = nn.Conv2d(3, 3, 1)
    assert attribute(idle, _images(), 0, "grad_cam").settings["layer"] == "third"
    with pytest.raises(ModelContractError, match="never calls 'spare'"):
        attribute(idle, _images(), 0, "grad_cam", layer="spare")


def test_guided_backprop_of_a_net_without_relu_is_refused():
    with pytest.raises(ModelContractError, match="the model calls none"):
        attribute(nn.Sequential(nn.Flatten(), nn.Linear(108, 5)), _images(), 0, "guided_backprop")


def test_a_graph_that_computes_something_else_or_cannot_be_traced_is_refused():
    class ReadsAgain(nn.Module):
        def forward(self, x):
            z = x - 0.5
            F.relu(z, inplace=True)
            return z.flatten(1)

    class Branches(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else -x.flatten(1)

    class Hides(nn.Module):
        """Calls `relu` inside one of torch's own modules."""

        def __init__(self):
            super().__init__()
            self.block, self.act = nn.TransformerEncoderLayer(6, 1, 8, batch_first=True), nn.ReLU()

        def forward(self, x):
            return self.act(self.block(x[:, 0])).flatten(1)

    with pytest.raises(ModelContractError, match="cannot trace"):
        attribute(Hides().eval(), _images(), 0, "guided_backprop")
    with pytest.raises(ModelContractError, match=r"computes something else .*read again, or random draws"):
        attribute(ReadsAgain(), _images(), 0, "guided_backprop")
    with pytest.raises(ModelContractError, match=r"cannot trace.*integrated_gradients, saliency"):
        attribute(Branches(), _images(), 0, "deep_lift")
    assert attribute(ReadsAgain(), _images(), 0, "saliency").values.any()


def test_preparing_shares_the_weights_and_gives_each_call_its_own_relu():
    net = _Conv("reused")
    prepared = insert_rules(net, _images(1), RELUS, lambda _: GuidedReLU())
    assert prepared.get_submodule("net.first") is net.first
    assert sum(isinstance(module, GuidedReLU) for module in prepared.modules()) == 3
    assert "net.act" not in {node.target for node in prepared.graph.nodes}
    assert sorted(dict(net.named_modules())) == sorted(dict(_Conv("reused").named_modules()))


def test_without_a_target_the_prediction_is_explained_and_recorded():
    net, images = _mlp(), _images()
    predicted = net(images).argmax(1)
    found = attribute(net, images, None, "saliency")
    assert found.settings["target"] == "predicted"
    assert found.settings["targets"] == predicted.tolist()
    assert torch.equal(found.values, attribute(net, images, predicted, "saliency").values)
    assert torch.equal(
        attribute(net, images, 3, "saliency").values, attribute(net, images, torch.tensor([3] * 4), "saliency").values
    )


def test_settings_hold_every_parameter_also_those_left_alone():
    settings = attribute(_mlp(), _images(), 0, n_steps=7).settings
    assert (settings["n_steps"], settings["baseline"], settings["precision"]) == (7, "black", "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": 5}, r"`target` must be None, one class in 0..4 or a tensor of 4 of them; got 5..5"),
        ({"target": -1}, r"got -1..-1"),
        ({"target": torch.tensor([0, 1, 2])}, r"a tensor of 4 of them; got torch.int64 of shape \(3,\)"),
        ({"target": torch.tensor([0.0, 1, 2, 3])}, r"got torch.float32 of shape \(4,\)"),
        ({"images": torch.zeros(3, 6, 6)}, r"\(N, C, H, W\) with N of 1 or more; got torch.float32 \(3, 6, 6\)"),
        ({"images": torch.zeros(0, 3, 6, 6)}, r"got torch.float32 \(0, 3, 6, 6\)"),
        ({"images": torch.zeros(4, 3, 6, 6, dtype=torch.uint8)}, r"got torch.uint8"),
        ({"batch_size": 0}, r"`batch_size` must be at least 1; got 0"),
        ({"n_steps": 0}, r"`n_steps` must be at least 1; got 0"),
        ({"baseline": "blank"}, r"`baseline` must be one of black, mean; got 'blank'. Did you mean 'black'\?"),
    ],
)
def test_arguments_out_of_range_are_refused_with_what_came(change, message):
    arguments = {"images": _images(), "target": 0} | change
    with pytest.raises(UsageError, match=message):
        attribute(_mlp(), **arguments)


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'grad_cam'"):
        attribute(_mlp(), _images(), 0, "gradcam")
    assert create("integrated_gradients", n_steps=3).n_steps == 3


def test_models_that_give_no_usable_number_are_refused():
    class Returns(nn.Module):
        def __init__(self, what):
            super().__init__()
            self.what = what

        def forward(self, x):
            return {"tuple": (x,), "map": x, "nan": x.flatten(1) * float("nan")}[self.what]

    with pytest.raises(ModelContractError, match="it returned a tuple"):
        attribute(Returns("tuple"), _images(), 0)
    with pytest.raises(ModelContractError, match=r"shape \(4, 3, 6, 6\)"):
        attribute(Returns("map"), _images(), 0)
    with pytest.raises(NumericsError, match="not finite"):
        attribute(Returns("nan"), _images(), 0, "saliency")
    with pytest.raises(ModelContractError, match=r"got torch.float16. Pass a `.float\(\)` copy"):
        attribute(_mlp().half(), _images(), 0)


def test_listing_the_methods_does_not_import_captum():
    code = "import sys; from grokkit import attributions; attributions.names(); assert 'captum' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
