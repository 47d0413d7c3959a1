"""Known answers of exact partitions, ray-exact and certified complexity, and exact Integrated Gradients; numbered as in
the scientific specification (cases 4-6, 8, 9, 18, 25, 26, 28)."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients
from torch import nn

from grokkit.errors import UsageError
from grokkit.spline import exact_integrated_gradients, local_complexity, partition_segment
from tests.reference.lc_nets import MLP, ResidualNet, randomised
from tests.reference.patterns import along, patterns


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _line(low=0.0, high=1.0):
    return torch.tensor([low], dtype=torch.float64), torch.tensor([high], dtype=torch.float64)


class Scalar(nn.Module):
    """A function of one number, written with tensors."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_case_04_the_breakpoints_of_a_sum_of_hinges_are_their_places():
    places = torch.tensor([-3.0, 0.1, 0.25, 0.7, 0.7 + 1e-9, 2.0], dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0, 1.0], dtype=torch.float64)
    net = Scalar(lambda x: (torch.relu(x - places) * weights).sum(1, keepdim=True))
    found = partition_segment(net, *_line())
    assert np.abs(found.breakpoints - places[1:5].numpy()).max() < 1e-15
    assert found.count == found.affine_count == 5


def test_case_04_repeated_and_parallel_kinks_merge_in_affine_but_not_in_activation_regions():
    # two units with one kink are one breakpoint; two that cancel beyond their kinks leave the function straight
    repeated = partition_segment(Scalar(lambda x: torch.relu(x - 0.5) + torch.relu(2 * x - 1)), *_line())
    assert repeated.breakpoints.tolist() == [0.5] and repeated.affine_count == 2
    cancelled = partition_segment(Scalar(lambda x: torch.relu(x - 0.5) - torch.relu(2 * x - 1) / 2), *_line())
    assert cancelled.count == 2 and cancelled.affine_count == 1


def test_case_04_numbers_in_the_code_of_a_network_are_not_rounded():
    offsets = {"0.3": lambda x: x - 0.3, "0.3 by sub": lambda x: torch.sub(x, 0.1, alpha=3), "-0.7": lambda x: 0.7 - x}
    for words, body in offsets.items():
        net = nn.Sequential(nn.Identity(), nn.Linear(1, 1), Scalar(body), nn.ReLU()).double()
        nn.init.ones_(net[1].weight)
        nn.init.zeros_(net[1].bias)
        expected = abs(float(words.split()[0]))
        assert partition_segment(net, *_line()).breakpoints == pytest.approx([expected], abs=1e-15), words


def test_case_04_a_unit_counts_however_small_it_is_beside_the_others():
    found = partition_segment(Scalar(lambda x: torch.relu(torch.cat([x + 1, 1e-9 * (x - 0.5)], 1))), *_line())
    assert found.breakpoints == pytest.approx([0.5], abs=1e-15)


@pytest.mark.parametrize(
    ("activation", "kinks"),
    [
        (F.relu6, (0.0, 6.0)),
        (lambda x: F.hardtanh(x, -0.5, 5.0), (-0.5, 5.0)),
        (lambda x: torch.clamp(x, min=2.0, max=3.0), (2.0, 3.0)),
    ],
)
def test_case_04_an_activation_with_two_kinks_bends_at_both(activation, kinks):
    found = partition_segment(Scalar(activation), *_line(-1.0, 8.0))
    assert found.breakpoints == pytest.approx([(kink + 1) / 9 for kink in kinks], abs=1e-15)
    # one output, and it is exactly on its kink where the unit is
    assert found.outputs[0].ravel().tolist() == [kinks[0], *kinks, kinks[1]]


def test_case_04_every_breakpoint_names_the_layer_that_makes_it():
    # affine steps before and between the activations, so that a layer is not its place among all steps
    net = Scalar(lambda x: torch.relu(2 * F.max_pool1d(torch.relu(x[:, :1] - 0.25).unsqueeze(1), 1).flatten(1) - 1))
    found = partition_segment(net, *_line())
    assert found.breakpoints == pytest.approx([0.25, 0.75], abs=1e-15)
    assert found.made_by[0].tolist() == [-1, 0, 2, -1]
    assert list(found.by_layer.values()) == [1, 0, 1]


def test_case_05_a_sawtooth_of_depth_k_has_two_to_the_k_pieces():
    def tents(x):
        for _ in range(10):
            x = 2 * torch.relu(x) - 4 * torch.relu(x - 0.5)
        return x

    found = partition_segment(Scalar(tents), *_line())
    assert found.affine_count == 1024
    assert np.array_equal(found.affine_breakpoints, np.arange(1, 1024) / 1024)


def test_case_06_a_deep_cancellation_has_two_activation_regions_and_one_affine_region():
    found = partition_segment(Scalar(lambda x: torch.relu(x) - torch.relu(-x) - x), *_line(-1.0, 2.0))
    assert (found.count, found.affine_count) == (2, 1)
    assert found.breakpoints[0] == pytest.approx(1 / 3, abs=1e-15)


HINGES = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def _rounded(others):
    """Hinges, then a unit that keeps away from its kink and one that is 0 but for some 1e-17 of either sign where
    there are knots of the hinges."""

    def body(x):
        hinges = torch.relu(x - HINGES).sum(1, keepdim=True)
        return hinges + torch.relu(torch.cat([others + 0 * x, 0.1 * x + 0.2 * x - 0.3 * x], 1)).sum(1, keepdim=True)

    return Scalar(body)


@pytest.mark.parametrize("others", [-1.0, 1.0], ids=["below their kink", "above it"])
def test_case_06_rounding_makes_no_breakpoints_and_crosses_no_ray(others):
    found = partition_segment(_rounded(others), *_line())
    assert found.breakpoints == pytest.approx(HINGES.numpy(), abs=1e-15)
    middle = torch.tensor([[0.5]], dtype=torch.float64)
    assert local_complexity(_rounded(others), middle, 0.5, 1, "ray").counts.tolist() == [[19, 0]]


@pytest.mark.parametrize("sign", [-1, 1])
def test_case_18_rounding_moves_no_winner_of_a_max_pool(sign):
    # two of three entries are one function, summed in two ways; which is ahead by 1e-17 changes from knot to knot
    def pooled(x):
        hinges = torch.relu(x - HINGES).sum(1, keepdim=True)
        entries = torch.cat([sign * (0.1 * x + 0.2 * x), sign * 0.3 * x, 0 * x - 9], 1)
        return hinges + F.max_pool1d(entries.unsqueeze(1), 3).flatten(1)

    assert partition_segment(Scalar(pooled), *_line()).breakpoints == pytest.approx(HINGES.numpy(), abs=1e-15)


def test_case_18_padding_never_wins_a_window_of_a_max_pool():
    def pooled(x):  # windows [pad, x - 0.3], [x - 0.3, 0.4 - x], [0.4 - x, pad]
        return F.max_pool1d(torch.cat([x - 0.3, 0.4 - x], 1).unsqueeze(1), 2, 1, 1).flatten(1)

    assert partition_segment(Scalar(pooled), *_line()).breakpoints == pytest.approx([0.35], abs=1e-15)


def test_case_08_a_bias_free_net_has_integrated_gradients_equal_to_input_times_gradient():
    net, x = randomised(MLP((6, 10, 8, 3), bias=False)), _draw(5, 6)
    found = exact_integrated_gradients(net, x, 1)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)
    assert found.pieces.tolist() == [1] * 5
    assert (found.values - x * gradient).abs().max() < 1e-15


@pytest.mark.parametrize(("kind", "shape"), [(MLP, (6,)), (ResidualNet, (2, 12, 12))])
def test_case_09_exact_integrated_gradients_are_complete_and_the_limit_of_the_quadrature(kind, shape):
    net, x, baseline = randomised(kind(), 3), _draw(4, *shape), 0.3 * _draw(*shape, seed=5)
    target = torch.tensor([0, 1, 2, 0])
    found = exact_integrated_gradients(net, x, target, baseline)
    assert (found.gap / found.change.abs()).max() < 1e-12
    by_hand = net(x).gather(1, target[:, None])[:, 0] - net(baseline[None]).squeeze(0)[target]
    assert torch.allclose(found.change, by_hand.detach(), rtol=1e-12, atol=0)
    captum = IntegratedGradients(net)
    error = []
    for steps in (20, 2000):
        values = captum.attribute(
            x, baseline.expand_as(x), target, n_steps=steps, method="riemann_middle", internal_batch_size=500
        )
        error.append((values - found.values).abs().max())
    assert error[1] < 2e-3 < 20 * error[0] and error[1] < error[0] / 10
    assert found.pieces.tolist() == partition_segment(net, baseline.expand_as(x), x).count


def test_case_09_a_float32_model_and_one_target_for_all():
    net, x = randomised(MLP(), 3).float(), _draw(3, 6).float()
    found = exact_integrated_gradients(net, x, 2)
    assert found.values.dtype == torch.float64 and (found.gap / found.change.abs()).max() < 1e-12
    with pytest.raises(UsageError, match=r"`target` must be a class in 0\.\.2, or int64 \(3,\) of them.*got 3"):
        exact_integrated_gradients(net, x, 3)
    with pytest.raises(UsageError, match=r"`images` must be a floating tensor \(N, ...\)"):
        exact_integrated_gradients(net, x[0], 0)
    x[1, 2] = torch.nan
    with pytest.raises(UsageError, match="`images` must be finite; 1 of 3"):
        exact_integrated_gradients(net, x, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 0.5}, "`target` must be a class in 0"),
        ({"target": torch.tensor([0, 1])}, r"int64 \(3,\) of them"),
        ({"target": 0, "baseline": torch.zeros(5)}, r"`baseline` must be a tensor \(6,\), or \(3, 6\).*got \(5,\)"),
    ],
)
def test_case_09_bad_arguments_are_refused_in_words(options, words):
    with pytest.raises(UsageError, match=words):
        exact_integrated_gradients(randomised(MLP(), 3), _draw(3, 6), **options)


def test_case_18_max_pool_and_relu_commute_in_the_affine_partition():
    convs = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 3, 3)
    orders = (nn.ReLU(), nn.MaxPool2d(2)), (nn.MaxPool2d(2), nn.ReLU())
    nets = [randomised(nn.Sequential(convs[0], *order, convs[1], nn.Flatten())) for order in orders]
    a, b = _draw(2, 10, 10), _draw(2, 10, 10, seed=2)
    one, two = (partition_segment(net, a, b).affine_breakpoints for net in nets)
    assert len(one) == len(two) > 50 and np.abs(one - two).max() < 1e-13


def test_case_25_breakpoints_on_a_random_line_at_init_grow_linearly_with_the_neurons():
    widths, seeds = (32, 64, 128, 256, 512), range(8)
    means = []
    for width in widths:
        nets = [randomised(MLP((16, width, width, 4)), seed) for seed in seeds]
        ends = [_draw(2, 16, seed=seed) for seed in seeds]
        means.append(np.mean([partition_segment(net, *pair).count - 1 for net, pair in zip(nets, ends, strict=True)]))
    neurons = 2 * np.array(widths)
    assert np.corrcoef(neurons, means)[0, 1] ** 2 > 0.99
    assert means[-1] / means[0] == pytest.approx(widths[-1] / widths[0], rel=0.25)


@pytest.mark.parametrize(("kind", "shape"), [(MLP, (6,)), (ResidualNet, (2, 12, 12))])
def test_case_26_vertex_is_at_most_ray_exact_is_at_most_the_bound_and_all_agree_in_the_first_layer(kind, shape):
    points = loose = folded = 0
    for seed in range(4):
        for radius in (0.1, 0.5, 2.0):
            net, x = randomised(kind(), seed), _draw(5, *shape, seed=seed)
            methods = ("vertex", "ray", "bound")
            vertex, ray, bound = (local_complexity(net, x, radius, 4, name, seed=seed).counts for name in methods)
            assert (vertex <= ray).all() and (ray <= bound).all()
            assert torch.equal(vertex[:, 0], ray[:, 0]) and torch.equal(ray[:, 0], bound[:, 0])
            points += len(x)
            folded += int((ray > vertex).sum())
            loose += int((bound > ray).sum())
    assert loose > 0.1 * points  # the bound is a bound, and not the count itself
    assert folded > 0 or kind is MLP


@pytest.mark.parametrize("method", ["vertex", "ray", "bound"])
@pytest.mark.parametrize("sign", [1, -1])
def test_case_26_a_unit_on_its_kink_at_an_end_counts_and_one_with_two_kinks_counts_twice(method, sign):
    places = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    middle = torch.tensor([[0.5]], dtype=torch.float64)
    touched = Scalar(lambda x: torch.relu(sign * (x - places)))
    assert local_complexity(touched, middle, 0.5, 1, method).counts.tolist() == [[3]]
    twice = Scalar(lambda x: F.hardtanh(sign * (x - 0.5), -0.25, 0.25))
    assert local_complexity(twice, middle, 0.5, 1, method).counts.tolist() == [[2]]


def test_case_26_a_fold_that_the_vertices_miss_is_seen_along_the_ray():
    # z = relu(x) + relu(-x) - 1/2 is above zero at both vertices -1, 1 and below it between them
    net = Scalar(lambda x: torch.relu(torch.relu(x) + torch.relu(-x) - 0.5))
    x = torch.zeros(1, 1, dtype=torch.float64)
    counted = {name: local_complexity(net, x, 1.0, 1, name).counts.tolist() for name in ("vertex", "ray", "bound")}
    assert counted == {"vertex": [[1, 1, 0]], "ray": [[1, 1, 1]], "bound": [[1, 1, 1]]}


def test_case_26_the_bound_of_a_constant_is_no_crossing_and_a_certain_winner_is_passed_on_exactly():
    middle = torch.tensor([[0.5]], dtype=torch.float64)
    resting = Scalar(lambda x: torch.relu(torch.cat([0 * x, x - 0.25], 1)))
    assert local_complexity(resting, middle, 0.5, 1, "bound").counts.tolist() == [[1]]
    # the larger entry is x + 10 everywhere, so what is left behind is 0.5: on one side of its kink
    pooled = Scalar(lambda x: torch.relu(F.max_pool1d(torch.cat([x + 10, x], 1).unsqueeze(1), 2).flatten(1) - x - 9.5))
    assert local_complexity(pooled, middle, 0.5, 1, "bound").counts.tolist() == [[0]]


def test_case_26_the_bound_holds_behind_an_activation_that_falls():
    # |h| behind h = relu(t) - 3 with t in [-1, 1]: h in [-3, -2], |h| in [2, 3], which meets 2.25 and 2.75
    net = Scalar(lambda t: torch.relu(torch.abs(torch.relu(t) - 3) - torch.tensor([2.25, 2.75], dtype=torch.float64)))
    middle = torch.zeros(1, 1, dtype=torch.float64)
    ray, bound = (local_complexity(net, middle, 1.0, 1, method).counts.tolist() for method in ("ray", "bound"))
    assert ray == [[1, 0, 2]] and bound == ray


def test_case_26_the_bound_holds_at_random_points_of_the_hull():
    net, x, radius = randomised(ResidualNet(), 3), _draw(2, 2, 12, 12), 1.0
    frame = torch.linalg.qr(_draw(288, 5, seed=9)).Q.T
    bound = local_complexity(net, x, radius, method="bound", frame=frame)
    weights = torch.distributions.Dirichlet(torch.full((10,), 0.3, dtype=torch.float64)).sample((3000,))
    offsets = (weights[:, :5] - weights[:, 5:]) @ frame * radius
    for point, counts in zip(x, bound.counts, strict=True):
        seen = patterns_of_units(net, point + offsets.view(-1, *point.shape))
        crossed = torch.stack([(layer != layer[:1]).any(0).sum() for layer in seen])
        assert (crossed <= counts).all() and crossed.sum() > 0


def patterns_of_units(net, points):
    taps = []
    with torch.no_grad():
        net(points, taps)
    return [tap.flatten(1) > 0 for tap in taps]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_case_28_a_million_points_and_bisection_find_the_same_pieces(seed):
    net, a, b = randomised(MLP((64, 50, 50, 50, 10)), seed), _draw(64, seed=seed), _draw(64, seed=seed + 10)
    grid = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)
    low = []
    for part in torch.arange(0, 1_000_000, 50_000):
        t = grid[part : part + 50_001]
        seen = patterns(net, along(a, b, t))
        low.append(part + (seen[1:] != seen[:-1]).any(1).nonzero().squeeze(1))
    cells = torch.cat(low)
    start, end = grid[cells], grid[cells + 1]
    before = patterns(net, along(a, b, start))
    for _ in range(25):
        middle = (start + end) / 2
        same = (patterns(net, along(a, b, middle)) == before).all(1)
        start, end = torch.where(same, middle, start), torch.where(same, end, middle)
    found = partition_segment(net, a, b).breakpoints
    assert len(found) == len(cells) > 30
    assert np.abs(found - start.numpy()).max() < 1e-9
