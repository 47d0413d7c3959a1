"""What is neither affine nor counted: named, with the share that is counted; refused where it decides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit.errors import ModelContractError
from grokkit.spline import complexity_spectrum, local_complexity


class Net(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(6, 6), body, nn.Linear(6, 2)

    def forward(self, x):
        return self.last(torch.relu(self.body(self.first(x))))


BOUND = torch.linspace(-1, 1, 6, dtype=torch.float64)


def _measured(body):
    torch.manual_seed(0)
    return local_complexity(Net(body).double(), torch.randn(4, 6, dtype=torch.float64), 0.5, 3, "vertex")


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize(
    ("body", "named"),
    [
        (nn.LayerNorm(6), ("body.layer_norm",)),
        (lambda x: torch.softmax(x, 1) @ torch.ones(6, 6, dtype=x.dtype), ("softmax",)),
        (lambda x: x * x.flip(1), ("mul",)),
        (lambda x: (x.unsqueeze(2) @ x.unsqueeze(1)).sum(2), ("matmul",)),
        (lambda x: x / (1 + x.abs()), ("div",)),
        (lambda x: x.exp(), ("exp",)),
        (lambda x: F.normalize(x), ("normalize",)),
        (lambda x: x.clamp(x.flip(1), BOUND), ("clamp",)),
        (lambda x: BOUND.expand(len(x), 6).clamp(x, BOUND + 1), ("clamp",)),
        (lambda x: x * x.new_tensor(x), ("new_tensor", "mul")),
    ],
)
def test_what_mixes_is_named(body, named):
    found = _measured(body)
    assert found.uncounted == named
    assert f"uncounted={len(named)}" in repr(found)


@pytest.mark.parametrize(
    ("body", "layer"),
    [
        (lambda x: torch.threshold(x, 0.0, 0.0), "threshold"),
        (lambda x: torch.ops.aten.relu(x), "relu"),
        (lambda x: torch.ops.aten.relu.default(x), "relu"),
        (lambda x: torch.ops.aten.clamp_min(x, 0.0), "clamp"),
        (torch.sign, "sign"),
        (lambda x: torch.heaviside(x, torch.zeros((), dtype=x.dtype)), "heaviside"),
        (lambda x: F.softshrink(x, 0.0), "softshrink"),
        (lambda x: x.clamp(min=torch.zeros(6, dtype=x.dtype)), "clamp"),
    ],
)
def test_an_activation_counts_under_every_name_that_it_has(body, layer):
    found, twin = _measured(body), _measured(torch.relu)
    assert (
        found.layers == (layer, "relu#2" if layer == "relu" else "relu")
        and found.uncounted == ()
        and found.counted_share == 1
    )
    if found.layers[0] != "softshrink":  # two kinks at 0
        assert torch.equal(found.counts[:, 0], twin.counts[:, 0]) and found.counts[:, 0].sum() > 0


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (torch.sigmoid, "sigmoid"),
        (torch.special.expit, "expit"),
        (torch.celu, "celu"),
        (lambda x: torch.ops.aten.elu(x), "elu"),
        (lambda x: F.glu(x.repeat(1, 2)), "glu"),
        (lambda x: x * torch.sigmoid(x), "sigmoid"),
    ],
)
def test_a_smooth_gate_is_named_with_its_share(body, name):
    found = _measured(body)
    assert found.uncounted[0] == name and found.layers == ("relu",)
    assert found.counted_share == pytest.approx(1 / (1 + len(found.uncounted)))


@pytest.mark.parametrize("body", [lambda x: x - x.mean(0), lambda x: x - x.mean(0, keepdim=True), torch.rand_like])
def test_a_model_that_mixes_its_batch_or_is_random_is_refused(body):
    with pytest.raises(ModelContractError, match="mixes the images of a batch, or is random"):
        _measured(body)


MASK = torch.tensor([True, False, True, True, False, True])


@pytest.mark.parametrize(
    "body",
    [
        nn.Identity(),
        lambda x: x.masked_fill(MASK, 0.0),
        lambda x: torch.where(MASK, x, 2 * x),
        lambda x: torch.einsum("ni,ij->nj", x, torch.ones(6, 6, dtype=x.dtype)),
        nn.BatchNorm1d(6),
        lambda x: F.max_pool1d(x.unsqueeze(1), 1).squeeze(1),
        lambda x: torch.maximum(x, x.flip(1)),
        lambda x: x + torch.zeros_like(x),
        lambda x: torch.mul(x, other=2.0),
        lambda x: torch.ops.aten.reflection_pad1d(x.unsqueeze(1), [0, 1])[:, 0, 1:],
        lambda x: torch.ops.aten.replication_pad1d(x.unsqueeze(1), [0, 1])[:, 0, 1:],
        lambda x: x.clamp(min=x.flip(1)),
        lambda x: torch.zeros_like(x).copy_(x),
        lambda x: x.new_zeros(1, 6).expand_as(x) * x + x,
        lambda x: x.scatter(1, torch.zeros(len(x), 1, dtype=torch.int64), 0.5),
        lambda x: x.diff(prepend=x[:, :1] * 2),
    ],
)
def test_what_is_linear_or_counted_is_not_named(body):
    assert _measured(body).uncounted == ()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (lambda x: torch.where(x > 0, x, 0.1 * x), "where"),
        (lambda x: x * (x > 0), "mul"),
        (lambda x: x.masked_fill(x < 0, 0.0), "masked_fill"),
        (lambda x: x * (x > 0).double(), "double"),
        (lambda x: x.gather(1, x.argsort(1)), "gather"),
        (lambda x: x.sort(1).values, "sort"),
        (lambda x: x.round(), "round"),
    ],
)
@pytest.mark.parametrize("measure", [local_complexity, lambda net, x: complexity_spectrum(net, x, [0.1], 2)])
def test_what_selects_by_a_comparison_is_named(body, named, measure):
    net, images = Net(body).double(), torch.randn(4, 6, dtype=torch.float64)
    found = measure(net, images, *([0.1, 2] if measure is local_complexity else []))
    assert found.uncounted[0] == named and found.counted_share < 1


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (lambda x: x if x.mean() > 0 else -x, "__bool__"),
        (lambda x: x * 2 + x if (x > 100).any() else x, "__bool__"),
        (lambda x: x / x.abs().max().item(), "item"),
        (lambda x: x * float(x[0, 0]), "__float__"),
        (lambda x: x[:, : 1 + int((x > 0).sum()) % 2].repeat(1, 6)[:, :6], "__int__"),
        (lambda x: x if torch.equal(x, x) else -x, "equal"),
    ],
)
@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
def test_control_flow_on_values_of_the_images_is_refused(body, name, method):
    with pytest.raises(ModelContractError, match=f"`{name}` in .* turns a value that depends on the images"):
        local_complexity(Net(body).double(), torch.randn(4, 6, dtype=torch.float64), 0.1, 2, method)


@pytest.mark.parametrize("method", ["vertex", "ray"])
def test_a_cache_that_the_first_pass_fills_is_no_decision(method):
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.cache = nn.Parameter(torch.randn(3)), None
            self.register_buffer("index", torch.arange(6) % 3)

        def forward(self, x):
            if self.cache is None:
                self.cache = self.table[self.index] * 2
            return x + self.cache

    torch.manual_seed(0)
    net, images = Net(Biased()).double(), torch.randn(4, 6, dtype=torch.float64)
    first = local_complexity(net, images, 0.5, 3, method)
    assert first.total.sum() > 0 and first.uncounted == ()
    assert torch.equal(first.counts, local_complexity(net, images, 0.5, 3, method).counts)


def test_a_guard_against_values_that_are_not_finite_decides_nothing():
    assert _measured(lambda x: x if not torch.isnan(x).any() else x * 0).uncounted == ()


# --- how images lie in a batch ----------------------------------------------------------------------------------------


class Quarters(nn.Module):
    """Cuts each image in four and processes the quarters as images, those of one image one after another, or not."""

    def __init__(self, in_front: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(96, 3)
        self.order = (0, 2, 4, 1, 3, 5) if in_front else (2, 4, 0, 1, 3, 5)

    def forward(self, x):
        count, front = len(x), self.order[0] == 0
        quarters = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(self.order).reshape(4 * count, 2, 4, 4)
        z = F.max_pool2d(torch.relu(self.conv(quarters)), 2)
        z = z if front else z.unflatten(0, (4, count)).transpose(0, 1)
        return self.last(z.reshape(count, 96))


class Stacked(Quarters):
    """The same net with the quarters in a dimension of their own."""

    def forward(self, x):
        quarters = [part for half in x.chunk(2, 2) for part in half.chunk(2, 3)]
        z = torch.relu(torch.stack([self.conv(quarter) for quarter in quarters], 1))
        return self.last(torch.stack([F.max_pool2d(part, 2) for part in z.unbind(1)], 1).flatten(1))


@pytest.mark.parametrize("method", ["vertex", "tangent"])
@pytest.mark.parametrize("points", [1, 5])
def test_parts_of_an_image_that_are_processed_as_images_are_units_of_the_image(method, points):
    images = torch.randn(points, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    nets = Quarters().double(), Stacked().double()
    found, twin = (local_complexity(net, images, 0.3, 3, method) for net in nets)
    assert torch.equal(found.counts, twin.counts) and found.counts.sum() > 0
    assert found.units == twin.units == {"relu": 384} and found.live_units == twin.live_units
    assert found.windows == {"max_pool2d": 96} and torch.equal(found.switches.sum(1), twin.switches.sum(1))


@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
def test_parts_of_several_images_in_turn_are_refused(method):
    with pytest.raises(ModelContractError, match=r"begin with all values of the first image.*\(12, 6, 4, 4\) for 3"):
        local_complexity(Quarters(in_front=False), torch.randn(3, 2, 8, 8), 0.1, 2, method)


def _sorted(x):
    order = x.sum(1).argsort()
    return torch.empty_like(x).index_copy(0, order, torch.relu(x[order]))


@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
@pytest.mark.parametrize("points", [1, 2, 5])
@pytest.mark.parametrize(
    "body",
    [
        lambda x: torch.relu(x.flip(0)).flip(0),
        lambda x: torch.relu(x.roll(1, 0)).roll(-1, 0),
        _sorted,
    ],
)
def test_images_that_change_places_inside_are_refused(body, points, method):
    torch.manual_seed(0)
    images = torch.randn(points, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelContractError, match=r"the values of 'relu' must .* keep the images in their order"):
        local_complexity(Net(body), images, 0.1, 2, method)


@pytest.mark.parametrize(
    "body",
    [
        lambda x: x / x.abs().max(),
        lambda x: x * (x.amin(0) / 7),
        lambda x: x + (x > 100).any() * 1.0,
        lambda x: x[:, (x[:, 0] > 1e9).any().long() :][:, :6],
        lambda x: (x / (x.max() / 255)).round() * (x.max() / 255),
    ],
)
@pytest.mark.parametrize("largest", [0, 1])
def test_what_is_reduced_over_the_batch_is_refused_also_if_no_image_changes_it(body, largest):
    images = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.3])[:, None]
    with pytest.raises(ModelContractError, match="mixes the images of a batch"):
        local_complexity(Net(body), images.roll(largest, 0), 0.1, 2)


def test_what_is_reduced_over_the_batch_to_be_logged_is_not_refused():
    def body(x):
        net.seen = x.detach().max()
        return x

    net = Net(body)
    assert local_complexity(net, torch.randn(3, 6), 0.1, 2).layers == ("relu",)


def test_rows_of_a_larger_tensor_that_the_images_are_written_to_are_images():
    def body(x):
        rows = torch.zeros(64, 6)
        rows[: len(x)] = x
        return rows[: len(x)] * 2

    images = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    net = Net(body)
    found = local_complexity(net, images, 0.3, 3)
    net.body = lambda x: x * 2
    assert torch.equal(found.counts, local_complexity(net, images, 0.3, 3).counts) and found.layers == ("relu",)


class Tokens(nn.Module):
    """Members under `torch.vmap`, on images that are not in front."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 2, 8))

    def forward(self, x):
        tokens = x.flatten(2).permute(2, 0, 1)
        return torch.vmap(lambda weight: torch.relu(tokens @ weight))(self.weights).mean((0, 1))


@pytest.mark.parametrize("points", [1, 4])
def test_images_that_are_not_in_front_under_a_map_over_members_are_refused(points):
    with pytest.raises(ModelContractError, match=r"the values of 'relu' must have the batch as their first"):
        local_complexity(Tokens(), torch.randn(points, 2, 6, 6), 0.3, 3)


def test_a_loop_over_parts_of_the_batch_is_refused_where_it_is_replayed():
    net = Net(lambda x: torch.cat([part * 2 for part in x.split(4)]))
    with pytest.raises(ModelContractError, match="`split` in 'split' takes the images of a batch apart"):
        local_complexity(net, torch.randn(9, 6), 0.1, 2, "ray")
    whole = Net(lambda x: x.split(6, 1)[0] * 2)
    assert local_complexity(whole, torch.randn(9, 6), 0.1, 2, "ray").layers == ("relu",)


class Cached(nn.Module):
    """Computes its constants in the first pass, as the attention biases of some vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table = nn.Linear(6, 6), nn.Parameter(torch.randn(2, 3, generator=torch.Generator()))
        self.cache = None

    def forward(self, x):
        if self.cache is None:
            self.cache = self.table[[0, 1]].flatten() * 2.0
        return torch.relu(self.first(x) + self.cache)


@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
def test_a_cache_that_the_first_pass_fills_is_no_data_dependence(method):
    assert local_complexity(Cached().requires_grad_(False), torch.randn(4, 6), 0.5, 3, method).layers == ("relu",)


class Chaos(nn.Module):
    """Magnifies a rounding error to a visible change, as very deep nets do; it can also mix images, or be random."""

    def __init__(self, spoil=lambda x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(22))
        self.spoil = spoil

    def forward(self, x):
        x = self.spoil(x)
        for layer in self.layers:
            x = torch.sin(9 * layer(x))  # each layer magnifies differences about three times
        return x.abs()


def test_a_rounding_error_that_a_deep_net_magnifies_is_no_mixing_of_images():
    images = torch.randn(3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = local_complexity(Chaos().double(), images, 1e-12, 2)
    assert found.layers == ("abs",) and found.uncounted == ("sin",)
    for spoil in (lambda x: x - 0.01 * x.mean(0), F.dropout, lambda x: x + 1e-3 * torch.rand_like(x)):
        with pytest.raises(ModelContractError, match="mixes the images of a batch, or is random"):
            local_complexity(Chaos(spoil).double(), images, 1e-12, 2)


class Ensemble(nn.Module):
    """Members that are run at once by `torch.vmap`."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)) for _ in range(members))

    def forward(self, x):
        state = torch.func.stack_module_state(list(self.members))

        def call(parameters, buffers, x):
            return torch.func.functional_call(self.members[0], (parameters, buffers), (x,))

        return torch.vmap(call, in_dims=(0, 0, None))(*state, x).mean(0)


@pytest.mark.parametrize("images", [2, 3, 7])
def test_every_member_of_an_ensemble_is_counted(images):
    torch.manual_seed(0)
    net, x = Ensemble(3).double(), torch.randn(images, 6, dtype=torch.float64)
    found = local_complexity(net, x, 0.5, 3, "vertex")
    alone = [local_complexity(member, x, 0.5, 3, "vertex").counts for member in net.members]
    assert found.units == {"members.0.1": 15} and found.uncounted == ()
    assert found.counts.sum() > 0 and torch.equal(found.counts, sum(alone))


@pytest.mark.parametrize("method", ["tangent", "ray", "bound"])
def test_an_ensemble_under_vmap_has_no_other_method(method):
    with pytest.raises(ModelContractError, match='method="vertex"'):
        local_complexity(Ensemble(3).double(), torch.randn(2, 6, dtype=torch.float64), 0.5, 3, method)


class PerImage(nn.Module):
    """A net of four units that is written for one image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        return torch.vmap(lambda image: self.last(torch.relu(self.first(image))))(x)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
def test_a_map_over_the_images_of_a_batch_is_refused_with_the_way_out(images, method):
    x = torch.randn(images, 6, dtype=torch.float64)
    with pytest.raises(ModelContractError, match=r"applies `torch.vmap` to the images.*call the function on the whole"):
        local_complexity(PerImage().double(), x, 0.5, 3, method)


class Constant(nn.Module):
    """A layer, and activations of tensors that no image reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bounds = nn.Linear(6, 6), [torch.full((6,), 0.3, dtype=torch.float64)]

    def forward(self, x):
        made = torch.relu(torch.zeros_like(x)) + torch.ones(len(x), 6, dtype=x.dtype).abs() + self.bounds[0].abs()
        return torch.relu(self.first(x)) + made


@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
def test_what_is_made_from_numbers_or_held_by_a_module_adds_no_units(method):
    torch.manual_seed(0)
    found = local_complexity(Constant().double(), torch.randn(5, 6, dtype=torch.float64), 0.5, 3, method)
    assert found.units == {"relu": 6} and found.counts.sum() > 0


@pytest.mark.parametrize("method", ["vertex", "tangent", "ray", "bound"])
@pytest.mark.parametrize("points", [1, 2, 6])
def test_a_constant_from_outside_the_net_adds_no_units(method, points):
    net, images = Net(lambda x: x + BOUND[None].abs().expand(1, 6)).double(), torch.randn(points, 6).double()
    found = local_complexity(net, images, 0.5, 3, method)
    net.body = lambda x: x + abs(net.bound)
    net.register_buffer("bound", BOUND)
    twin = local_complexity(net, images, 0.5, 3, method)
    assert found.units == twin.units == {"relu": 6} and torch.equal(found.counts, twin.counts)


@pytest.mark.parametrize("method", ["ray", "bound"])
def test_a_lower_bound_above_the_upper_one_gives_the_upper_one(method):
    net = Net(lambda x: x.clamp(BOUND, torch.zeros(6, dtype=x.dtype)) + x).double()
    assert local_complexity(net, torch.randn(3, 6, dtype=torch.float64), 0.5, 3, method).counts.sum() > 0


@pytest.mark.filterwarnings("ignore:To copy construct")
def test_an_operation_without_a_derivative_is_a_contract_error_of_its_name():
    net = Net(lambda x: x[:, :2].as_strided((len(x), 6), (6, 1))).double()
    with pytest.raises(ModelContractError, match=r'`as_strided` has no forward-mode derivative.*method="vertex"'):
        local_complexity(net, torch.randn(3, 6, dtype=torch.float64), 0.5, 3, "tangent")
    copying = Net(lambda x: x * x.new_tensor(x)).double()
    with pytest.raises(ModelContractError, match="`new_tensor` copies a value that depends on the image"):
        local_complexity(copying, torch.randn(3, 6, dtype=torch.float64), 0.5, 3, "tangent")
