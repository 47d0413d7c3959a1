"""Max-pool switches by both methods: closed forms, the slow twin on every kind of window, and the two orders."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit.errors import ModelContractError, UsageError
from grokkit.spline import complexity_spectrum, draw_orthonormal_frame, local_complexity, passes
from tests.reference.lc_nets import ResidualNet, randomised
from tests.reference.slow_pools import adaptive, regular, tangent_pool, vertex_pool, windows

# torch.func.jvp loads decompositions that torch itself still writes as scripts
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")

METHODS = ("vertex", "tangent")
TWINS = {"vertex": vertex_pool, "tangent": tangent_pool}
both = pytest.mark.parametrize("method", METHODS)


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Pooled(nn.Module):
    """One linear layer, then a ReLU and a pool in either order, then another layer of units."""

    def __init__(self, layer, pool, relu_first=True, inplace=False):
        super().__init__()
        self.layer, self.pool, self.relu_first = layer, pool, relu_first
        self.relu, self.last = nn.ReLU(inplace), nn.LazyLinear(5)

    def forward(self, x):
        z = self.layer(x)
        pooled = self.pool(self.relu(z)) if self.relu_first else self.relu(self.pool(z))
        return torch.relu(self.last(pooled.flatten(1)))


def _net(layer, pool, shape, **options):
    net = _Pooled(layer, pool, **options).double()
    net(_draw(2, *shape))
    return randomised(net, 3)


# name -> pool, its axes for a map of 9 x 8
POOLS_2D = {
    "plain": (lambda z: F.max_pool2d(z, 2), (2, 2, 0, 1, False)),
    "padded": (nn.MaxPool2d(3, 2, 1), (3, 2, 1, 1, False)),
    "overlapping": (nn.MaxPool2d(3, stride=1), (3, 1, 0, 1, False)),
    "gaps": (lambda z: torch.max_pool2d(z, 2, 3), (2, 3, 0, 1, False)),
    "dilated": (nn.MaxPool2d(3, 2, padding=1, dilation=2), (3, 2, 1, 2, False)),
    "ceiled": (nn.MaxPool2d(2, 2, ceil_mode=True), (2, 2, 0, 1, True)),
    "ceiled_and_padded": (lambda z: F.max_pool2d(z, 3, 2, 1, ceil_mode=True), (3, 2, 1, 1, True)),
    "with_indices": (lambda z: F.max_pool2d(z, 2, return_indices=True)[0], (2, 2, 0, 1, False)),
    "module_with_indices": (lambda z: nn.MaxPool2d(2, return_indices=True)(z)[0], (2, 2, 0, 1, False)),
    "without_stride": (lambda z: torch.max_pool2d(z, [3]), (3, 3, 0, 1, False)),
}


def _assert_twin(net, images, pooled, listed, radius, method, directions=3):
    frame = draw_orthonormal_frame(directions, images[0].numel(), 5)
    result = local_complexity(net, images, radius, directions, method, seed=5)
    with torch.no_grad():
        slow = [TWINS[method](pooled, x, frame, radius, listed) for x in images]
    assert [(int(a), int(b)) for a, b in zip(result.switches[:, 0], result.pool_signs[:, 0], strict=True)] == slow
    assert list(result.windows.values()) == [len(listed)]
    return result


@both
@pytest.mark.parametrize("relu_first", [True, False])
@pytest.mark.parametrize("name", POOLS_2D)
def test_switches_equal_the_slow_twin_to_the_integer(name, relu_first, method):
    pool, axis = POOLS_2D[name]
    net, images = _net(nn.Conv2d(1, 2, 3, padding=1), pool, (1, 9, 8), relu_first=relu_first), _draw(4, 1, 9, 8)
    listed = windows(2, (9, 8), [regular(size, *axis) for size in (9, 8)])
    result = _assert_twin(net, images, net.layer, listed, 1.0, method)
    assert result.switches.sum() > 0 and result.pool_signs.sum() > 0


@both
@pytest.mark.parametrize("out", [(3, 2), (4, 3), (1, 1)])
def test_adaptive_windows_switch_as_their_definition_says(out, method):
    sizes, images = (8, 6), _draw(6, 1, 8, 6)
    net = _net(nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveMaxPool2d(out), (1, 8, 6))
    listed = windows(2, sizes, [adaptive(size, number) for size, number in zip(sizes, out, strict=True)])
    assert _assert_twin(net, images, net.layer, listed, 1.0, method).switches.sum() > 0


@both
def test_one_and_three_dimensions_and_channels_without_a_dimension(method):
    line = _net(nn.Conv1d(2, 3, 3), nn.MaxPool1d(3, 2), (2, 12))
    listed = windows(3, (10,), [regular(10, 3, 2, 0, 1, False)])
    assert _assert_twin(line, _draw(4, 2, 12), line.layer, listed, 0.4, method).switches.sum() > 0

    cube = _net(nn.Conv3d(1, 2, 1), nn.MaxPool3d((1, 2, 2)), (1, 2, 4, 4))
    axes = [regular(2, 1, 1, 0, 1, False), *[regular(4, 2, 2, 0, 1, False)] * 2]
    assert _assert_twin(cube, _draw(4, 1, 2, 4, 4), cube.layer, windows(2, (2, 4, 4), axes), 0.4, method).switches.sum()

    row = _net(nn.Linear(6, 9), lambda z: F.max_pool1d(z, 3), (6,))
    listed = windows(1, (9,), [regular(9, 3, 3, 0, 1, False)])
    assert _assert_twin(row, _draw(9, 6), row.layer, listed, 0.6, method).switches.sum() > 0

    spread = _net(nn.Linear(6, 9), lambda z: F.adaptive_max_pool1d(z, 2, return_indices=True)[0], (6,))
    listed = windows(1, (9,), [adaptive(9, 2)])
    assert _assert_twin(spread, _draw(9, 6), spread.layer, listed, 0.6, method).switches.sum() > 0


@both
def test_one_window_has_a_closed_form(method):
    """Two entries moved one at a time: they switch if both live and closer than the radius, and die on their own."""
    pairs = torch.tensor([[1.0, 1.05], [1.0, 1.2], [-1.0, -1.05], [1.0, -0.05], [0.05, -1.0], [-0.05, -1.0]])
    result = local_complexity(nn.MaxPool1d(2), pairs.view(6, 1, 2), 0.1, 2, method, frame=torch.eye(2))
    assert result.switches.flatten().tolist() == [1, 0, 0, 0, 0, 0]
    assert result.pool_signs.flatten().tolist() == [0, 0, 0, 0, 1, 1]
    assert result.total.tolist() == [0] * 6 and result.layers == ()
    touching = torch.tensor([[1.0, 1.5]]).view(1, 1, 2)
    assert local_complexity(nn.MaxPool1d(2), touching, 0.5, 2, method, frame=torch.eye(2)).switches.tolist() == [[0]]


@both
def test_dead_windows_and_ties_that_stay_are_silent(method):
    together = torch.tensor([[1.0, 1.0]]) / 2**0.5
    images = torch.tensor([[[2.0, 2.0]], [[-1.0, -1.0]], [[0.0, 0.0]]])
    tied = local_complexity(nn.MaxPool1d(2), images, 0.5, 1, method, frame=together)
    assert tied.switches.flatten().tolist() == [0, 0, 0]
    # the tie at exactly 0 is the edge of life: one side of it is dead and the other is not
    assert tied.pool_signs.flatten().tolist() == [0, 0, 1]
    apart = local_complexity(nn.MaxPool1d(2), images[:1], 1e-6, 2, method, frame=torch.eye(2))
    assert apart.switches.tolist() == [[1]]
    dead = nn.Sequential(nn.Conv1d(1, 2, 1), nn.ReLU(), nn.MaxPool1d(2))
    dead[0].weight.data.zero_()
    for bias in (-100.0, 0.0):  # far below the edge, and on it for good
        dead[0].bias.data.fill_(bias)
        silent = local_complexity(dead, images, 0.5, 1, method, frame=together)
        assert silent.switches.sum() == silent.pool_signs.sum() == silent.total.sum() == 0


@both
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("radius", [0.05, 0.5])
def test_case_18_max_pool_and_relu_commute(radius, inplace, method):
    images = _draw(5, 1, 9, 8)
    one, two = (
        local_complexity(
            _net(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3, 2, 1), (1, 9, 8), relu_first=first, inplace=inplace),
            images,
            radius,
            4,
            method,
        )
        for first in (True, False)
    )
    assert one.switches.sum() > 0 and one.pool_signs.sum() > 0
    assert torch.equal(one.switches, two.switches) and torch.equal(one.pool_signs, two.pool_signs)
    # behind a pool the ReLU's units are the windows, and the layer after the pair does not see the order
    assert torch.equal(two.counts[:, 0], two.pool_signs[:, 0])
    assert torch.equal(one.counts[:, 1], two.counts[:, 1])


def test_both_methods_agree_at_a_small_radius():
    net, images = randomised(ResidualNet(8)), _draw(64, 2, 12, 12)
    vertex, tangent = (local_complexity(net, images, 0.02, 4, method) for method in METHODS)
    assert vertex.pools == tangent.pools == ("max_pool2d",) and vertex.windows == {"max_pool2d": 8 * 36}
    assert vertex.switches.sum() > 20
    for one, other in ((vertex.switches, tangent.switches), (vertex.pool_signs, tangent.pool_signs)):
        assert abs(int(one.sum() - other.sum())) <= 0.05 * int(one.sum())


@both
def test_blocks_of_points_and_of_directions_change_nothing(method, monkeypatch):
    net, images = randomised(ResidualNet()), _draw(7, 2, 12, 12)
    whole = local_complexity(net, images, 0.3, 5, method)
    assert whole.switches.sum() > 0
    for elements in (1, 288 * 5, 288 * 17):
        monkeypatch.setattr(passes, "_PASS_ELEMENTS", {"cpu": elements})
        parts = local_complexity(net, images, 0.3, 5, method)
        assert torch.equal(parts.switches, whole.switches) and torch.equal(parts.pool_signs, whole.pool_signs)


@both
def test_float32_in_either_layout_gives_the_switches_of_float64(method):
    net, images = randomised(ResidualNet()), _draw(5, 2, 12, 12)
    double = local_complexity(net, images, 0.05, 4, method)
    single = local_complexity(net.float(), images, 0.05, 4, method)
    assert double.switches.sum() > 0
    assert torch.equal(single.switches, double.switches) and torch.equal(single.pool_signs, double.pool_signs)


def test_the_spectrum_has_the_switches_of_every_radius_and_tables_have_every_series():
    net, images, radii = randomised(ResidualNet()), _draw(4, 2, 12, 12), [0.5, 0.05]
    spectrum = complexity_spectrum(net, images, radii, 4)
    single = [local_complexity(net, images, radius, 4, "tangent") for radius in radii]
    assert torch.equal(spectrum.switches, torch.stack([one.switches for one in single]))
    assert torch.equal(spectrum.pool_signs, torch.stack([one.pool_signs for one in single]))
    table = spectrum.to_frame("switches")
    assert list(table.columns) == ["radius", "point", "layer", "count", "density", "units"]
    assert table["count"].sum() == spectrum.switches.sum() and set(table["units"]) == {144}
    assert single[0].to_frame("pool_signs")["count"].tolist() == single[0].pool_signs.flatten().tolist()
    assert len(single[0].to_frame("zones")) == 0 and "pools=1" in repr(single[0])
    with pytest.raises(UsageError, match="`series` must be one of units, zones, switches, pool_signs; got 'pool'"):
        spectrum.to_frame("pool")


@both
def test_a_pool_of_batch_and_channels_in_one_dimension_is_the_pool_of_each_image(method):
    net = nn.Sequential(nn.Flatten(0, 1), nn.MaxPool2d(2), nn.Unflatten(0, (-1, 2)))
    found, twin = (local_complexity(each, _draw(3, 2, 4, 4), 0.3, 3, method) for each in (net, nn.MaxPool2d(2)))
    assert torch.equal(found.switches, twin.switches) and twin.switches.sum() > 0
    assert list(found.windows.values()) == list(twin.windows.values()) == [8]


class _Swapped(nn.Module):
    def forward(self, x):
        return F.max_pool2d(x.transpose(0, 1), 2).transpose(0, 1)


@both
def test_a_pool_that_hides_the_batch_is_refused(method):
    with pytest.raises(ModelContractError, match="the values of 'max_pool2d' must have the batch as their first"):
        local_complexity(_Swapped(), _draw(3, 2, 4, 4), 0.1, 2, method)


@both
def test_pools_are_numbered_apart_from_activations_and_a_net_without_them_has_none(method):
    class Leaf(nn.Module):
        def forward(self, x):
            return F.relu(F.max_pool1d(F.max_pool1d(x, 2), 2))

    result = local_complexity(nn.Sequential(Leaf()), _draw(2, 3, 8), 0.1, 2, method)
    assert result.pools == ("0", "0#2") and result.layers == ("0",)
    plain = local_complexity(nn.Sequential(nn.ReLU()), _draw(2, 3), 0.1, 2, method)
    assert plain.pools == () and plain.windows == {} and plain.switches.shape == plain.pool_signs.shape == (2, 0)
