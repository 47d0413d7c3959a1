"""The exact partition of a segment against an oracle that only ever looks at the network from outside."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokkit as gk
from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.spline import partition_segment, segment_sweep
from tests.reference.lc_nets import MLP, ResidualNet, randomised
from tests.reference.patterns import along, patterns


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Pools(nn.Module):
    """VGG-like, with every way to pool: overlapping, padded, dilated, ceil_mode, of raw pre-activations, average."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 8, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1, bias=bias)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3, bias=bias)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.conv1(x)), 3, 2, 1)
        x = F.max_pool2d(F.relu(self.bn(self.conv2(x)), inplace=True), 2, stride=1, dilation=2)
        x = F.adaptive_max_pool2d(F.avg_pool2d(F.relu(self.conv3(x)), 2, ceil_mode=True), 2)
        return self.head(F.max_pool1d(x.flatten(2), 3, 2, ceil_mode=True).mean(2))


class Net(nn.Module):
    def __init__(self, body) -> None:
        super().__init__()
        self.first, self.body, self.last = nn.Linear(6, 6), body, nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.body(self.first(x)))


NETS = {
    "mlp": (lambda: randomised(MLP((6, 40, 30, 20, 3)), 1), (6,)),
    "residual": (lambda: randomised(ResidualNet(), 2), (2, 12, 12)),
    "pools": (lambda: randomised(Pools(), 3), (2, 12, 12)),
    "preact": (lambda: randomised(gk.models.create("preact_resnet18", (2, 8, 8), 3, width=2), 4), (2, 8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_no_unit_changes_inside_a_piece_and_one_does_at_every_breakpoint(name):
    make, shape = NETS[name]
    net, a, b = make(), _draw(*shape), _draw(*shape, seed=2)
    found = partition_segment(net, a, b)
    assert found.complete and found.count > 20
    knots = torch.from_numpy(found.knots[0])
    length = knots.diff()
    inner, mid, outer = (patterns(net, along(a, b, knots[:-1] + s * length)) for s in (0.02, 0.5, 0.98))
    assert torch.equal(inner, mid) and torch.equal(mid, outer)
    assert (mid[1:] != mid[:-1]).any(dim=1).all()
    outputs = net(along(a, b, knots)).detach().numpy()
    assert np.abs(found.outputs[0] - outputs).max() < 1e-12 * np.abs(outputs).max()


@pytest.mark.parametrize("name", NETS)
def test_a_fine_grid_sees_a_change_just_where_there_are_breakpoints(name):
    make, shape = NETS[name]
    net, a, b = make(), _draw(*shape), _draw(*shape, seed=2)
    grid = torch.linspace(0, 1, 3001, dtype=torch.float64)
    seen = patterns(net, along(a, b, grid))
    changed = (seen[1:] != seen[:-1]).any(dim=1).numpy()
    holds = np.histogram(partition_segment(net, a, b).breakpoints, bins=grid.numpy())[0] > 0
    # a cell with breakpoints may end as it began (a unit that goes out and back), never the other way round
    assert not (changed & ~holds).any()
    assert (holds & ~changed).sum() <= 0.01 * holds.sum()


@pytest.mark.parametrize("name", NETS)
def test_the_network_is_affine_on_merged_pieces_and_bends_between_them(name):
    make, shape = NETS[name]
    net, a, b = make(), _draw(*shape), _draw(*shape, seed=2)
    found = partition_segment(net, a, b)
    ends = torch.tensor([0.0, *found.affine_breakpoints, 1.0], dtype=torch.float64)
    first, middle, last = (net(along(a, b, t)).detach() for t in (ends[:-1], (ends[:-1] + ends[1:]) / 2, ends[1:]))
    assert ((first + last) / 2 - middle).abs().max() < 1e-11 * middle.abs().max()
    assert found.affine_count == len(found.affine_breakpoints) + 1 <= found.count
    assert set(found.affine_breakpoints) <= set(found.breakpoints)


@pytest.mark.parametrize("bytes_", [1, 20_000, 200_000])
def test_how_the_sweep_is_cut_changes_nothing(bytes_, monkeypatch):
    net, a, b = randomised(ResidualNet(), 2), _draw(3, 2, 12, 12), _draw(3, 2, 12, 12, seed=2)
    whole = partition_segment(net, a, b)
    monkeypatch.setattr(segment_sweep, "_PART_BYTES", {"cpu": bytes_})
    monkeypatch.setattr(segment_sweep, "_SMALLEST_PART", 2)
    parts = partition_segment(net, a, b)
    assert parts.count == whole.count and parts.by_layer == whole.by_layer
    for one, other in zip(whole.knots, parts.knots, strict=True):
        assert np.abs(one - other).max() < 1e-13


def test_how_the_sweep_is_cut_changes_no_count_along_rays(monkeypatch):
    net, x = randomised(MLP((6, 40, 30, 20, 3)), 1), _draw(2, 6)
    whole = gk.local_complexity(net, x, 1.0, 3, "ray").counts
    monkeypatch.setattr(segment_sweep, "_PART_BYTES", {"cpu": 1})
    monkeypatch.setattr(segment_sweep, "_SMALLEST_PART", 2)
    assert whole.sum() > 20 and torch.equal(gk.local_complexity(net, x, 1.0, 3, "ray").counts, whole)


@pytest.mark.parametrize(("kind", "shape", "count"), [(MLP, (6,), 70), (Pools, (2, 12, 12), 4)])
def test_several_segments_are_each_their_own(kind, shape, count):
    net, a, b = randomised(kind(), 3), _draw(count, *shape), _draw(count, *shape, seed=2)
    together = partition_segment(net, a, b)
    assert len(together.count) == count
    assert all((knots[0], knots[-1]) == (0.0, 1.0) for knots in together.knots)
    for segment in {0, 31, 32, count - 1} & set(range(count)):
        alone = partition_segment(net, a[segment], b[segment])
        assert alone.count == together.count[segment]
        assert np.abs(alone.breakpoints - together.breakpoints[segment]).max(initial=0) < 1e-13


def test_a_float32_model_is_cut_exactly_and_left_as_it_was():
    net, a, b = randomised(ResidualNet(), 2).float().train(), _draw(2, 12, 12), _draw(2, 12, 12, seed=2)
    state = copy.deepcopy(net.state_dict())
    found = partition_segment(net.to(memory_format=torch.channels_last), a.float(), b.float())
    exact = partition_segment(copy.deepcopy(net).double(), a.float().double(), b.float().double())
    assert found.count == exact.count and np.array_equal(found.breakpoints, exact.breakpoints)
    assert net.training and all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_the_cap_gives_a_labelled_part_that_is_exact(monkeypatch):
    monkeypatch.setattr(segment_sweep, "_PART_BYTES", {"cpu": 20_000})
    net, a, b = randomised(ResidualNet(), 2), _draw(3, 2, 12, 12), _draw(3, 2, 12, 12, seed=2)
    whole = partition_segment(net, a, b)
    part = partition_segment(net, a, b, max_pieces=whole.count[0] + 5)
    assert whole.complete and not part.complete and "complete=False" in repr(part)
    for one, other in zip(whole.knots, part.knots, strict=False):
        assert np.abs(one[: len(other)] - other).max() < 1e-13
    assert len(part.knots) == 2 and part.knots[1][-1] < 1.0


def test_the_cap_stops_at_its_very_piece_and_a_partition_that_just_fits_is_complete(monkeypatch):
    monkeypatch.setattr(segment_sweep, "_PART_BYTES", {"cpu": 20_000})
    net, a, b = randomised(ResidualNet(), 2), _draw(2, 12, 12), _draw(2, 12, 12, seed=2)

    def pieces(cap):
        return len(partition_segment(net, a, b, max_pieces=cap).knots[0]) - 1

    first = pieces(1)
    assert pieces(first) == first < pieces(first + 1)
    whole = partition_segment(net, a, b).count
    assert partition_segment(net, a, b, max_pieces=whole).complete
    assert not partition_segment(net, a, b, max_pieces=first).complete


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: torch.add(x, other=x.flip(1), alpha=2.0), lambda x: x + 2.0 * x.flip(1)),
        (lambda x: torch.sub(input=x, other=1.0, alpha=0.5), lambda x: x - 0.5),
        (lambda x: torch.rsub(x, 1.0, alpha=2.0), lambda x: 1.0 - 2.0 * x),
        (lambda x: torch.mul(x, other=-3.0), lambda x: -3.0 * x),
        (lambda x: torch.div(x, other=-3.0), lambda x: x / -3.0),
        (lambda x: torch.cat([x, torch.zeros_like(x[:, :2])], 1)[:, :6], lambda x: x),
        (lambda x: x + x.new_ones(len(x), 6), lambda x: x + 1.0),
        (lambda x: x.view(x.size(0), 2, -1).flatten(1), lambda x: x),
    ],
)
def test_however_an_affine_step_is_written_the_partition_and_the_bound_are_the_same(one, other):
    a, b = 3 * _draw(6), -3 * _draw(6)
    nets = [randomised(Net(lambda x, body=body: torch.relu(body(x)))) for body in (one, other)]
    first, second = (partition_segment(net, a, b) for net in nets)
    assert first.count > 1 and np.abs(first.breakpoints - second.breakpoints).max() < 1e-13
    bounds = [gk.local_complexity(net, torch.stack([a, b]), 1.0, 3, "bound").counts for net in nets]
    assert bounds[0].sum() > 0 and torch.equal(*bounds)


@pytest.mark.parametrize("method", ["ray", "bound"])
def test_diverged_weights_are_an_error_of_numbers(method):
    net = MLP().double()
    net.layers[0].weight.data[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="its weights have diverged"):
        partition_segment(net, _draw(6), _draw(6, seed=2))
    with pytest.raises(NumericsError, match="have diverged"):
        gk.local_complexity(net, _draw(3, 6), 0.1, 2, method)


# --- ties ------------------------------------------------------------------------------------------------------


def test_a_bias_free_net_has_one_piece_away_from_zero_and_two_through_it():
    net, x = randomised(Pools(bias=False)), _draw(2, 12, 12)
    net.bn = nn.Identity()
    assert partition_segment(net, torch.zeros_like(x), x).count == 1
    through = partition_segment(net, -x, x)
    assert through.count == 2 and through.breakpoints[0] == pytest.approx(0.5, abs=1e-12)


def test_blocky_images_where_many_units_cross_at_once():
    net = randomised(Pools(), 3)
    a, b = (_draw(2, 3, 3, seed=seed).repeat_interleave(4, 1).repeat_interleave(4, 2) for seed in (1, 2))
    found = partition_segment(net, a, b)
    knots = torch.from_numpy(found.knots[0])
    assert knots.diff().min() >= 1e-12
    inner, outer = (patterns(net, along(a, b, knots[:-1] + s * knots.diff())) for s in (0.02, 0.98))
    assert torch.equal(inner, outer)
    mid = patterns(net, along(a, b, (knots[:-1] + knots[1:]) / 2))
    assert (mid[1:] != mid[:-1]).any(dim=1).all()


@pytest.mark.parametrize("relu_first", [True, False])
def test_padding_of_minus_infinity_is_that_of_the_max_pool(relu_first):
    def make(pool):
        torch.manual_seed(0)
        relu = [nn.ReLU()] if relu_first else []
        layers = (nn.Conv2d(2, 4, 3), *relu, pool, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
        return nn.Sequential(*layers).double()

    class Padded(nn.Module):
        def forward(self, x):
            return F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, 2)

    a, b = 3 * _draw(2, 9, 9), 3 * _draw(2, 9, 9, seed=2)
    result, twin = (partition_segment(make(pool), a, b) for pool in (Padded(), nn.MaxPool2d(3, 2, 1)))
    assert sum(result.by_layer.values()) > 40
    np.testing.assert_allclose(result.breakpoints, twin.breakpoints, atol=1e-12)
    np.testing.assert_allclose(result.outputs[0], twin.outputs[0], atol=1e-12)
    for method in ("ray", "bound"):
        counts = [
            gk.local_complexity(make(pool), torch.stack([a, b]), 0.5, 3, method).counts
            for pool in (Padded(), nn.MaxPool2d(3, 2, 1))
        ]
        assert torch.equal(*counts)


# --- what is refused --------------------------------------------------------------------------------------------


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.numpy() ** 2)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (F.gelu, r"`gelu` in 'gelu' is not piecewise affine"),
        (F.hardswish, "`hardswish`.*is not piecewise affine"),
        (lambda x: torch.softmax(x, 1), "`softmax`.*is not piecewise affine"),
        (lambda x: x * x, "multiplies two tensors that both depend"),
        (lambda x: torch.div(1, x), "divides by a tensor that depends"),
        (lambda x: F.dropout(x), "random"),
        (lambda x: x - x.mean(0, keepdim=True), "has no row for each image"),
        (
            lambda x: x.reshape(-1, 2, 3).transpose(0, 1).tanh().transpose(0, 1).flatten(1).relu(),
            "`tanh`.*not piecewise affine",
        ),
        (lambda x: x * len(x) if len(x) > 2 else -x, "different operations for different batches of images"),
        (lambda x: _Hidden.apply(x), "`numpy`.*hands values to code that is not seen"),
        (lambda x: x + torch.from_numpy(x.detach().numpy() ** 2), "`numpy`.*hands values to code that is not seen"),
        (lambda x: x * x.tolist()[0][0], "computes with the number .* for one batch"),
    ],
)
def test_what_is_not_piecewise_affine_is_named(body, words):
    with pytest.raises(ModelContractError, match=words):
        partition_segment(Net(body).double(), _draw(6), _draw(6, seed=2))


def test_an_alias_that_was_overwritten_is_refused_and_one_that_is_not_read_again_is_not():
    def stale(x):
        y = x.view(-1, 6)
        y.relu_()
        return x + y

    def fresh(x):
        y = x.view(-1, 6)
        return y.relu_() + 1.0

    with pytest.raises(ModelContractError, match="overwritten in place"):
        partition_segment(Net(stale).double(), _draw(6), _draw(6, seed=2))
    assert partition_segment(randomised(Net(fresh)), _draw(6), _draw(6, seed=2)).count > 1


@pytest.mark.parametrize(
    ("ends", "options", "words"),
    [
        ((_draw(6), _draw(5)), {}, "must have one shape"),
        ((_draw(6), torch.full((6,), torch.nan)), {}, "`b` must be finite"),
        ((torch.ones(6, dtype=torch.int64), _draw(6)), {}, "`a` must be a floating tensor"),
        ((_draw(6), _draw(6, seed=2)), {"max_pieces": 0}, "`max_pieces` must be an int >= 1; got 0"),
    ],
)
def test_bad_arguments_are_refused_in_words(ends, options, words):
    with pytest.raises(UsageError, match=words):
        partition_segment(MLP().double(), *ends, **options)


def test_the_progress_bar_ends(capsys):
    found = partition_segment(randomised(MLP()), _draw(6), _draw(6, seed=2), progress=True)
    assert found.complete and capsys.readouterr().out == ""
