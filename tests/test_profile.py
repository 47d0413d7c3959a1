"""Profiles of what is more than a chain of layers: attention, ensembles, quantised nets, what is not counted."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.errors import ModelContractError
from grokkit.measures.profile import measure_cost, profile
from grokkit.models.receptive_field import FieldTracker
from grokkit.spline import local_complexity

TOKENS, WIDTH = 64, 48
ATTENTION = 4 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH  # Q, K, V and output projections; Q K^T and attention V


class Wrap(nn.Module):
    """A function of a module and an image as a net."""

    def __init__(self, inner: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.run = inner, run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.inner, x)


def attend(with_weights: bool) -> nn.Module:
    attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
    return Wrap(attention, lambda inner, x: torch.relu(inner(x, x, x, need_weights=with_weights)[0]).mean(1))


def attend_by_function(net: nn.Module, x: Tensor) -> Tensor:
    query, key, value = net[0](x).view(len(x), TOKENS, 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(len(x), TOKENS, WIDTH)
    return torch.relu(net[1](mixed)).mean(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("net", "values"),
    [
        (attend(False), TOKENS * WIDTH),
        (attend(True), TOKENS * WIDTH + TOKENS**2),
        (Wrap(nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)), attend_by_function), TOKENS * WIDTH),
    ],
    ids=["fused", "weights", "function"],
)
def test_attention_costs_its_projections_and_both_of_its_products(net: nn.Module, values: int, device: str) -> None:
    assert ATTENTION == 983_040
    seen = profile(copy.deepcopy(net).to(device), (TOKENS, WIDTH))
    assert seen.macs == ATTENTION == sum(layer.macs for layer in seen.layers)
    assert seen.counted_units == {"relu": TOKENS * WIDTH} and not seen.refused
    assert len(seen.uncounted) == 1 and "attention" in seen.uncounted[0]
    assert seen.counted_share == TOKENS * WIDTH / (TOKENS * WIDTH + values)
    share = f"{seen.counted_share:.1%} of the nonlinear values; not counted: {seen.uncounted[0]}"
    assert f"counted units    3,072 in 1 layers, {share}" in str(seen)


def test_attention_with_fewer_keys_than_queries_costs_a_product_for_every_query() -> None:
    def run(inner: nn.Module, x: Tensor) -> Tensor:
        query, key = inner(x).view(len(x), TOKENS, 8, 6).transpose(1, 2), x.view(len(x), TOKENS, 8, 6)[:, :, :2]
        key = key.transpose(1, 2)
        return F.scaled_dot_product_attention(query, key, key, enable_gqa=True).flatten(1)

    net = Wrap(nn.Linear(WIDTH, WIDTH), run)
    assert measure_cost(net, (TOKENS, WIDTH)).macs == TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_recurrent_net_costs_its_matrix_products_at_every_step(device: str) -> None:
    lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
    net = Wrap(lstm, lambda inner, x: inner(x)[0].mean(1)).to(device)
    first, second = 5 * 2 * 64 * (8 + 16), 5 * 2 * 64 * (32 + 16)
    assert measure_cost(net, (5, 8)).macs == first + second


class Ensemble(nn.Module):
    """Three nets of one shape, run as one by `torch.vmap`."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        stacked, _ = torch.func.stack_module_state([build() for _ in range(3)])
        self.names = list(stacked)
        self.stacked = nn.ParameterList(nn.Parameter(value.detach()) for value in stacked.values())
        self.one = [build().to("meta")]  # a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        def run(weights: dict[str, Tensor], images: Tensor) -> Tensor:
            return torch.func.functional_call(self.one[0], weights, (images,))

        weights = dict(zip(self.names, self.stacked, strict=True))
        return torch.vmap(run, in_dims=(0, None))(weights, x).mean(0)


def build_member() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 80), nn.ReLU(), nn.Linear(80, 4))


def build_conv_member() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten())


@pytest.mark.parametrize(
    ("build", "shape", "units", "parameters", "macs"),
    [
        (build_member, (12,), 80, 13 * 80 + 81 * 4, 12 * 80 + 80 * 4),
        (build_conv_member, (2, 8, 8), 4 * 64, 4 * 19, 4 * 18 * 64),
    ],
)
def test_an_ensemble_under_vmap_is_profiled_with_all_its_members(
    build: Callable[[], nn.Module], shape: tuple[int, ...], units: int, parameters: int, macs: int
) -> None:
    seen = profile(Ensemble(build), shape)
    assert (seen.parameters, seen.macs) == (3 * parameters, 3 * macs)
    assert sum(seen.counted_units.values()) == 3 * units and not seen.refused and seen.counted_share == 1


def test_the_layers_of_an_ensemble_own_the_parameters_of_all_members() -> None:
    net = Ensemble(build_member)
    net.template = net.one[0].to_empty(device="cpu")
    layers = {layer.name: layer for layer in profile(net, (12,)).layers}
    assert layers["template.0"].parameters == 3 * 13 * 80 and layers["template.0"].macs == 3 * 12 * 80
    assert layers["template.2"].parameters == 3 * 81 * 4


def test_a_quantised_net_is_refused_with_what_to_do() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is moving this module to another package
        quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ModelContractError, match=r"'0' .*the float model from which it was made"):
        profile(quantised, (6,))
    assert profile(net, (6,)).parameters == 7 * 5 + 6 * 2


class ClassToken(nn.Module):
    """A token that is a parameter, the same for every image, passed to a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.linear = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        token = self.token.expand(len(x), -1, -1)
        return torch.relu(self.linear(token) + self.linear(x)).mean(1)


def test_a_parameter_that_is_expanded_into_a_submodule_is_profiled() -> None:
    seen = profile(ClassToken(), (3, 8))
    assert (seen.parameters, seen.macs, seen.counted_units) == (8 + 72, 4 * 64, {"relu": 24})


def tanh_net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def batch_statistics_net() -> nn.Module:
    norm = nn.BatchNorm1d(1, track_running_stats=False)
    return nn.Sequential(nn.Linear(6, 5), nn.Unflatten(1, (1, 5)), norm, nn.ReLU())


class TwoOutputs(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(super().forward(x)), x


REFUSED = {
    "tanh": (tanh_net, "no nonlinear call of the model is counted"),
    "batch statistics": (batch_statistics_net, "track_running_stats=True"),
    "half": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU()).bfloat16(), "need float32 or float64"),
    "two outputs": (lambda: TwoOutputs(6, 5), "it returned a tuple"),
    "decides": (
        lambda: Wrap(nn.Linear(6, 5), lambda inner, x: inner(x).relu() if x.sum() > -9 else inner(x)),
        "Python value",
    ),
}


@pytest.mark.parametrize(("build", "words"), REFUSED.values(), ids=REFUSED)
def test_a_net_that_local_complexity_refuses_is_profiled_with_the_same_words(
    build: Callable[[], nn.Module], words: str
) -> None:
    net = build()
    with pytest.raises(ModelContractError, match=words) as error:
        local_complexity(net, torch.rand(2, 6), directions=1)
    seen = profile(net, (6,))
    assert seen.refused == str(error.value) and f"not counted: {seen.refused}" in str(seen)
    assert (seen.counted_units, seen.uncounted, seen.counted_share) == ({}, (), 0.0)
    assert seen.parameters == sum(parameter.numel() for parameter in net.parameters()) and seen.macs >= 30


def test_a_net_that_mixes_its_batch_is_refused_except_on_meta_where_only_kinds_are_known() -> None:
    net = Wrap(nn.Linear(6, 5), lambda inner, x: F.leaky_relu(inner(x - x.mean(0))))
    assert "mixes the images of a batch" in profile(net, (6,)).refused
    assert not profile(net.to("meta"), (6,)).refused
    assert "no nonlinear call" in profile(tanh_net().to("meta"), (6,)).refused


def gated_net() -> nn.Module:
    gates = [nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(3)]
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), *gates, nn.Linear(8, 2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_local_complexity_does_not_count_is_listed_with_the_share_of_what_it_does(device: str) -> None:
    found = local_complexity(gated_net(), torch.rand(2, 6), directions=1)
    seen = profile(gated_net().to(device), (6,))
    assert seen.uncounted == found.uncounted == ("1.layer_norm", "3.1", "4.1", "5.1")
    assert seen.counted_units == found.units == {"2": 8} and seen.counted_share == found.counted_share == 1 / 5
    assert "8 in 1 layers, 20.0% of the nonlinear values; not counted: 1.layer_norm, 3.1, 4.1 and 1 more" in str(seen)


def test_a_constant_is_no_image_on_meta_where_no_tensor_has_an_address() -> None:
    scale = torch.ones(5, device="meta")
    net = Wrap(nn.Linear(6, 5), lambda inner, x: torch.relu(inner(x) * scale)).to("meta")
    assert profile(net, (6,)).uncounted == ()


ATEN = torch.ops.aten
WEIGHT = torch.ones(1, 1, 3, 3)


def convolve(x: Tensor) -> Tensor:
    return F.conv2d(x, WEIGHT, padding=1)


def write_wider_half(x: Tensor) -> Tensor:
    out = torch.cat([x, x], dim=1)
    out[:, 1:] = convolve(convolve(x))
    return out


def write_every_other(x: Tensor) -> Tensor:
    out = convolve(x)
    out[:, :, ::2, ::2] = F.max_pool2d(x, 2)
    return out


@pytest.mark.parametrize(
    ("run", "pixels"),
    [
        (lambda x: torch.conv2d(x, WEIGHT, None, 2), 3 + 2 * 2),
        (lambda x: ATEN.conv2d(x, WEIGHT, None, [2, 2]), 3 + 2 * 2),
        (lambda x: ATEN.conv2d.default(x, WEIGHT, None, [1, 1], [0, 0], [3, 3]), 7 + 2),
        (lambda x: ATEN.conv2d.padding(x, WEIGHT, None, [1, 1], "same"), 3 + 2),
        (lambda x: F.max_pool2d(x, 2), 2 + 2 * 2),
        (lambda x: torch.max_pool2d(x, 2, 1), 2 + 2),
        (lambda x: ATEN.max_pool2d(x, [2, 2]), 2 + 2 * 2),
        (lambda x: ATEN.max_pool2d.default(x, [2, 2], [1, 1], [0, 0], [2, 2]), 3 + 2),
        (lambda x: ATEN.max_pool2d_with_indices(x, [3, 3])[0], 3 + 2 * 3),
        (lambda x: F.max_pool2d_with_indices(x, 3)[0], 3 + 2 * 3),
        (lambda x: F.avg_pool2d(x, 3, 1), 3 + 2),
        (lambda x: ATEN.avg_pool2d(x, [3, 3], [1, 1]), 3 + 2),
        (lambda x: ATEN.avg_pool2d.default(x, [3, 3]), 3 + 2 * 3),
        (lambda x: F.pad(convolve(x), (1, 1, 1, 1)), 3 + 2),
        (lambda x: ATEN.pad(convolve(x), [1, 1, 1, 1]), 3 + 2),
        (lambda x: torch.constant_pad_nd(convolve(x), (1, 1, 1, 1)), 3 + 2),
        (lambda x: ATEN.constant_pad_nd.default(convolve(x), [1, 1, 1, 1]), 3 + 2),
        (lambda x: ATEN.reflection_pad2d(convolve(x), [1, 1, 1, 1]), 3 + 2),
        (lambda x: ATEN.replication_pad2d.default(convolve(x), [1, 1, 1, 1]), 3 + 2),
        (lambda x: ATEN._pad_circular(convolve(x), [1, 1, 1, 1]), 3 + 2),
        (lambda x: convolve(x).relu_(), 3 + 2),
        (lambda x: ATEN.relu_(convolve(x)), 3 + 2),
        (lambda x: F.dropout(convolve(x), training=False, inplace=True).mul_(2), 3 + 2),
        (lambda x: ATEN.add_.Tensor(x.clone(), convolve(x)), 3 + 2),
        (lambda x: write_wider_half(x)[:, :1], 5 + 2),
    ],
)
def test_receptive_field_under_every_name_of_an_operation(run: Callable[[Tensor], Tensor], pixels: int) -> None:
    assert find_field(lambda x: convolve(run(x))) == pixels


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x @ torch.ones(16, 16),
        lambda x: F.linear(x, torch.ones(16, 16)),
        lambda x: torch.fft.fft2(x).real,
        lambda x: F.grid_sample(x, torch.zeros(1, 16, 16, 2), align_corners=False),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        lambda x: F.conv_transpose2d(x, WEIGHT, padding=1),
        write_every_other,
    ],
)
def test_receptive_field_is_none_behind_what_mixes_the_places_of_an_image(run: Callable[[Tensor], Tensor]) -> None:
    assert find_field(convolve) == 3
    assert find_field(lambda x: convolve(run(x))) is None


def find_field(run: Callable[[Tensor], Tensor]) -> int | None:
    image = torch.zeros(1, 1, 16, 16)
    tracker = FieldTracker(image)
    with torch.no_grad(), tracker:
        run(image)
    return tracker.largest


@pytest.mark.parametrize(
    "move",
    [lambda z: z.cumsum(-1), lambda z: z.flip(-1), lambda z: z.roll(3, 2), lambda z: z.sort(-1)[0], lambda z: z.mT],
)
def test_a_field_behind_values_that_move_is_not_known(move: Callable[[Tensor], Tensor]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(move(self.first(x))).relu()

    assert profile(Net(), (1, 11, 11)).receptive_field is None


def test_a_field_in_front_of_a_transposed_convolution_is_not_that_of_the_net() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 3, padding=1))
    assert profile(net, (1, 11, 11)).receptive_field is None and profile(net[:2], (1, 11, 11)).receptive_field == 3
