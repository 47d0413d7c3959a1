"""The models against counts, costs and fields that are known in closed form, printed in papers, or computed twice."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from grokkit import models
from grokkit.errors import UsageError
from grokkit.measures.profile import Profile, profile
from grokkit.models.classifier import Classifier, Normalise, channels_last_is_safe, scale_init
from grokkit.seeding import make_generator, seeded

CIFAR = (3, 32, 32)
IMAGENET = (3, 224, 224)


def on_meta(build: Callable[..., nn.Module], *arguments: object, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build(*arguments, **options)


def cifar_profile(name: str, **options: object) -> Profile:
    return profile(on_meta(models.create, name, CIFAR, 10, **options), CIFAR)


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_three_3x3_convolutions_see_as_far_as_one_7x7_with_27_instead_of_49_weights(channels: int) -> None:
    three = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(3)))
    one = nn.Conv2d(channels, channels, 7, padding=3, bias=False)
    few, many = profile(three, (channels, 16, 16)), profile(one, (channels, 16, 16))
    assert few.parameters == 27 * channels**2 and many.parameters == 49 * channels**2
    assert few.receptive_field == many.receptive_field == 7
    assert few.macs == 27 * channels**2 * 256 and many.macs == 49 * channels**2 * 256


def test_torchvision_resnet34_takes_a_fifth_of_the_multiply_adds_of_vgg19_at_224() -> None:
    resnet, vgg = (
        profile(on_meta(build), IMAGENET) for build in (torchvision.models.resnet34, torchvision.models.vgg19)
    )
    assert (round(resnet.macs / 1e9, 3), round(vgg.macs / 1e9, 3)) == (3.664, 19.632)
    assert round(100 * resnet.macs / vgg.macs, 1) == 18.7


def test_at_32x32_the_order_is_reversed() -> None:
    assert round(cifar_profile("resnet34").macs / cifar_profile("vgg19_bn").macs, 1) == 2.9


@pytest.mark.parametrize(
    ("name", "millions", "forward", "both"),
    [
        ("resnet9", 6.57, 0.759, 2.272),
        ("resnet18", 11.17, 1.111, 3.329),
        ("resnet34", 21.28, 2.319, 6.953),
        ("resnet50", 23.52, 2.596, 7.783),
        ("vgg11_bn", 9.23, 0.306, 0.913),
        ("vgg13_bn", 9.41, 0.457, 1.366),
        ("vgg16_bn", 14.72, 0.626, 1.876),
        ("vgg19_bn", 20.04, 0.796, 2.385),
    ],
)
def test_cost_table(name: str, millions: float, forward: float, both: float) -> None:
    net = on_meta(models.create, name, CIFAR, 10)
    cost = profile(net, CIFAR)
    with FlopCounterMode(display=False) as training:
        net(torch.zeros(2, *CIFAR, device="meta")).sum().backward()
    # The table cuts the millions off at the second decimal (6.575 M stands as 6.57) and rounds the GFLOP.
    assert cost.parameters // 10_000 == round(100 * millions)
    assert round(cost.flops / 1e9, 3) == forward
    assert round(training.get_total_flops() / 2 / 1e9, 3) == both


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("resnet20", {}, 269_722),
        ("resnet56", {}, 853_018),
        ("resnet9", {}, 6_575_370),
        ("nin", {}, 966_986),
        ("cnn", {"hidden": 0}, 35_802),
        ("cnn", {"hidden": 0, "norm": "batch"}, 35_802 - 160 + 2 * 160),
        ("preact_resnet18", {"width": 4, "norm": "none"}, 44_022),
        ("mlp", {"widths": (200, 100)}, 3072 * 200 + 200 + 200 * 100 + 100 + 100 * 10 + 10),
        ("mlp", {"widths": (), "bias": False}, 30_720),
    ],
)
def test_parameter_counts(name: str, options: dict[str, object], count: int) -> None:
    assert cifar_profile(name, **options).parameters == count


def test_resnet9_can_fix_a_factor_on_its_logits() -> None:
    images = torch.randn(2, *CIFAR, generator=make_generator(0, "images"))
    made = []
    for options in ({}, {"head_scale": 0.125}):
        with seeded(0), torch.no_grad():
            made.append(models.create("resnet9", CIFAR, 10, width=4, **options).eval()(images))
    assert torch.equal(made[0] / 8, made[1])
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="`head_scale` must be finite and above 0"):
            models.create("resnet9", CIFAR, 10, head_scale=wrong)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_preact_resnet18_of_width_16_has_137216_counted_units_in_16_layers(norm: str) -> None:
    counted = cifar_profile("preact_resnet18", width=16, norm=norm).counted_units
    assert sum(counted.values()) == 137_216 and len(counted) == 16
    assert all(".relu" in layer for layer in counted)


def test_relu6_counts_each_of_its_two_kinks() -> None:
    assert profile(nn.Sequential(nn.ReLU6()), (2, 3, 3)).counted_units == {"0": 36}


def twin_outputs(ours: nn.Module, theirs: nn.Module) -> tuple[Tensor, Tensor]:
    """Both nets with the weights of `theirs`, matched by order, on the same images."""
    values = list(theirs.state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    images = torch.randn(2, *CIFAR, generator=make_generator(0, "images"))
    with torch.no_grad():
        return ours.eval()(images), theirs.eval()(images)


@pytest.mark.parametrize("name", ["vgg11", "vgg13_bn", "vgg16", "vgg19_bn"])
def test_vgg_convolutions_are_torchvisions(name: str) -> None:
    with seeded(0):
        theirs = on_meta(getattr(torchvision.models, name)).features.to_empty(device="cpu")
        for module in theirs.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        ours = models.create(name, CIFAR, 10)[:-1]
    ours_out, theirs_out = twin_outputs(ours, nn.Sequential(theirs, nn.Flatten()))
    assert ours_out.shape == (2, 512) and ours_out.abs().sum() > 0
    assert torch.equal(ours_out, theirs_out)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_resnets_are_torchvisions_with_another_stem(name: str) -> None:
    with seeded(0):
        theirs = getattr(torchvision.models, name)(num_classes=10)
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        ours = models.create(name, CIFAR, 10)
    torch.testing.assert_close(*twin_outputs(ours, theirs))


def preact_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    weights = net.state_dict()
    x = F.conv2d(x, weights["conv1.weight"], padding=1)
    for stage in range(4):
        for block in range(2):
            path = f"stages.{stage}.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            out = F.relu(x)
            if stride == 2:
                x = F.conv2d(out, weights[f"{path}.shortcut.weight"], stride=2)
            out = F.conv2d(out, weights[f"{path}.conv1.weight"], stride=stride, padding=1)
            x = x + F.conv2d(F.relu(out), weights[f"{path}.conv2.weight"], padding=1)
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


def test_preact_resnet18_without_norm_is_what_its_docstring_says() -> None:
    with seeded(0):
        net = models.create("preact_resnet18", CIFAR, 10, width=4, norm="none")
    images = torch.randn(2, *CIFAR, generator=make_generator(0, "images"))
    with torch.no_grad():
        torch.testing.assert_close(net(images), preact_by_hand(net, images))


def test_option_a_shortcut_thins_the_image_and_fills_the_channels_with_zeros() -> None:
    block = models.create("resnet20", CIFAR, 10, width=4).stages[1][0].eval()
    nn.init.zeros_(block.bn2.weight)  # silences the branch, so that the shortcut alone is left
    x = torch.rand(1, 4, 6, 6, generator=make_generator(0, "x"))
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == 0 and out[:, 6:].abs().sum() == 0


def test_resnet9_with_silent_pairs_is_its_four_blocks() -> None:
    net = models.create("resnet9", CIFAR, 10, width=8).eval()
    images = torch.randn(2, *CIFAR, generator=make_generator(0, "images"))
    chain = nn.Sequential(net.conv1, net.conv2, net.conv3, net.conv4, net.classifier)
    assert not torch.equal(net(images), chain(images))
    for pair in (net.res1, net.res2):
        nn.init.zeros_(pair[1][1].weight)  # the second BatchNorm of the pair; its bias is zero at the start
    assert torch.equal(net(images), chain(images)) and net(images).std(dim=0).min() > 0


@pytest.mark.parametrize(("name", "smallest"), [("vgg11", 16), ("vgg19_bn", 16), ("resnet9", 8)])
def test_too_small_images_are_refused_with_the_smallest_size(name: str, smallest: int) -> None:
    with pytest.raises(UsageError, match=f"{smallest}x{smallest} pixels; got {smallest - 1}x28"):
        models.create(name, (1, smallest - 1, 28), 10)
    net = models.create(name, (1, smallest, smallest), 10, width=8).eval()
    assert net(torch.zeros(1, 1, smallest, smallest)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mlp", {"widths": (8, 0)}, "`widths` takes ints >= 1; got 0"),
        ("cnn", {"channels": (8, 8), "strides": (1,)}, "one number per convolution; got 2 and 1"),
        ("cnn", {"norm": "layer"}, "`norm` must be 'none' or 'batch'; got 'layer'"),
        ("nin", {"dropout": 1.0}, "below 1; got 1.0"),
        ("resnet18", {"width": True}, "`width` takes ints >= 1; got True"),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        models.create(name, CIFAR, 10, **options)


@pytest.mark.parametrize("shape", [(3, 32), (3, 0, 32), (3, 32.0, 32)])
def test_wrong_input_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="channels, height, width"):
        models.create("mlp", shape, 10)


def feature_spread(net: nn.Module) -> float:
    """Standard deviation over images of the last features, relative to their mean."""
    images = torch.randn(16, *CIFAR, generator=make_generator(0, "images"))
    with torch.no_grad():
        features = net[:-1](images)
    return float(features.std(dim=0).mean() / features.mean())


@pytest.mark.parametrize(("name", "default"), [("vgg11", 2e-2), ("vgg13", 3e-3), ("vgg16", 2e-4), ("vgg19", 1e-5)])
def test_vgg_features_tell_images_apart_at_every_depth_only_with_he_init(name: str, default: float) -> None:
    with seeded(0):
        net = models.create(name, CIFAR, 10, width=16)
        assert feature_spread(net) > 0.05
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
        assert feature_spread(net) < default


def test_scale_init_multiplies_every_parameter_and_no_buffer() -> None:
    with seeded(0):
        net = models.create("cnn", (1, 8, 8), 10, norm="batch")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    scale_init(net, 3.0)
    trained = dict(net.named_parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, 3 * before[name] if name in trained else before[name])
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            scale_init(net, wrong)


def test_classifier_normalises_each_channel_and_trains_only_the_net() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    whole = Classifier(Normalise([0.25, 0.5, 0.0], [0.5, 0.25, 1.0]), net)
    pixels = torch.rand(2, 3, 2, 2, generator=make_generator(0, "pixels"))
    expected = torch.stack([(pixels[:, 0] - 0.25) / 0.5, (pixels[:, 1] - 0.5) / 0.25, pixels[:, 2]], dim=1)
    assert torch.equal(whole.normalise(pixels), expected)
    assert torch.equal(whole(pixels), net(expected))
    assert [name for name, _ in whole.named_parameters()] == ["net.1.weight", "net.1.bias"]
    assert whole.state_dict()["normalise.std"].shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    ("mean", "std"), [([0.5], [0.0]), ([0.5], [0.2, 0.2]), ([], []), ([float("nan")], [1.0]), ([0.0], [float("inf")])]
)
def test_normalise_refuses_numbers_that_cannot_normalise(mean: list[float], std: list[float]) -> None:
    with pytest.raises(UsageError, match="`mean`"):
        Normalise(mean, std)


def test_channels_last_is_unsafe_for_strided_1x1_convolutions_below_8_channels() -> None:
    assert not channels_last_is_safe(models.create("preact_resnet18", CIFAR, 10, width=4))
    assert channels_last_is_safe(models.create("preact_resnet18", CIFAR, 10, width=8))
    assert not channels_last_is_safe(nn.Sequential(nn.Conv2d(7, 8, 1, stride=(1, 2))))
    assert channels_last_is_safe(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(4, 8, 1)))


def field_by_gradient(net: nn.Module, side: int) -> int:
    """The pixels that the centre of the output depends on, found by running the net with weights of one."""
    pixels = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    net = net.double().eval()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    out = net(pixels)
    out[..., out.shape[-2] // 2, out.shape[-1] // 2].sum().backward()
    touched = pixels.grad[0, 0] != 0
    return int(max(touched.any(0).sum(), touched.any(1).sum()))


class Residual(nn.Module):
    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x).add_(self.shortcut(x)))


def conv(kernel: int | tuple[int, int] = 3, **options: int | str) -> nn.Conv2d:
    return nn.Conv2d(1, 1, kernel, bias=False, **options)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(conv(5, stride=2), nn.AvgPool2d(3, stride=2), conv(3), nn.ReLU(), conv(1)),
        nn.Sequential(conv(3, dilation=3), nn.AvgPool2d(2), conv((1, 5)), conv((2, 3), stride=(2, 1))),
        nn.Sequential(conv(3, padding=1, padding_mode="reflect"), conv(3, padding="same")),
        nn.Sequential(nn.ZeroPad2d(2), conv(4, stride=3), conv(2)),
        nn.Sequential(Residual(conv(1), conv(7, padding=3)), Residual(conv(3, padding=1), nn.Identity()), conv(3)),
        nn.Sequential(Residual(conv(3, stride=2, padding=1), conv(1, stride=2)), conv(3, padding=1)),
        models.create("cnn", (1, 32, 32), 10)[:10],
        nn.Sequential(*list(models.create("resnet20", (1, 32, 32), 10, width=1).children())[:-2]),
        nn.Sequential(*list(models.create("preact_resnet18", (1, 32, 32), 10, width=1).children())[:-2]),
    ],
)
def test_receptive_field_is_what_the_gradient_reaches(net: nn.Module) -> None:
    assert profile(net, (1, 161, 161)).receptive_field == field_by_gradient(net, 161)


def test_receptive_field_counts_max_pools() -> None:
    net = nn.Sequential(conv(3), nn.MaxPool2d(3, 2), conv(3), nn.MaxPool2d(2), conv(3))
    assert profile(net, (1, 64, 64)).receptive_field == 3 + 2 + 4 + 2 + 8


class FunctionalPools(nn.Module):
    """Pools that leave their stride out, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = conv(3), conv(3), conv(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.first(x), 2)
        return self.third(F.avg_pool2d(self.second(x), kernel_size=(3, 3)))


def test_receptive_field_of_pools_without_a_stride_moves_by_the_kernel() -> None:
    assert profile(FunctionalPools(), (1, 64, 64)).receptive_field == 3 + 1 + 2 * 2 + 2 * 2 + 2 * 6


@pytest.mark.parametrize(("name", "pixels"), [("vgg16", 196), ("resnet18", 435), ("resnet50", 427)])
def test_receptive_fields_of_torchvisions_nets(name: str, pixels: int) -> None:
    assert profile(on_meta(getattr(torchvision.models, name)), (3, 64, 64)).receptive_field == pixels


def test_receptive_field_is_none_where_there_is_none_or_it_cannot_be_followed() -> None:
    assert cifar_profile("mlp").receptive_field is None
    assert profile(nn.Sequential(conv(3), nn.Upsample(scale_factor=2), conv(3)), (1, 16, 16)).receptive_field is None
    gates = nn.Sequential(conv(3), nn.AdaptiveAvgPool2d(1), conv(1))
    assert profile(gates, (1, 16, 16)).receptive_field == 3


class Shared(nn.Module):
    """One linear layer and one activation, called twice, and a matrix product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.scale = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.linear(self.relu(self.linear(x)))) @ self.scale


def test_reused_modules_are_called_twice_and_owned_once() -> None:
    seen = profile(Shared(), (4,))
    rows = {row["layer"]: (row["parameters"], row["macs"]) for row in seen.to_rows()}
    assert rows == {"linear": (20, 16), "relu": (0, 0), "linear#2": (0, 16), "relu#2": (0, 0), "(root)": (16, 16)}
    assert (seen.parameters, seen.macs, seen.flops) == (36, 48, 96)
    assert seen.counted_units == {"relu": 4, "relu#2": 4}


def test_layers_add_up_to_the_whole_and_are_printed() -> None:
    seen = profile(models.create("resnet18", CIFAR, 10, width=8), CIFAR)
    assert sum(layer.macs for layer in seen.layers) == seen.macs
    assert sum(layer.parameters for layer in seen.layers) == seen.parameters
    text = str(seen)
    assert all(layer.name in text for layer in seen.layers)
    assert f"{seen.macs:,} MAC = {2 * seen.macs:,} FLOP" in text and "109 pixels" in text


def test_a_net_with_uncounted_activations_is_profiled_and_says_which() -> None:
    seen = profile(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), (3,))
    assert seen.macs == 6 and seen.counted_units == {} and "`tanh`" in seen.refused
    assert "not counted" in str(seen)


def test_profile_leaves_no_trace() -> None:
    net = models.create("cnn", CIFAR, 10, norm="batch").train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    profile(net, CIFAR)
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks
