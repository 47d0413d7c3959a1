"""Intervals by hand and by simulation: over points, and over points and frames at once."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from grokkit.errors import UsageError
from grokkit.seeding import make_generator
from grokkit.spline import complexity_interval, draw_orthonormal_frame, local_complexity, t_interval
from grokkit.stats.two_way import fit_two_way
from tests.reference.lc_nets import MLP, randomised


def _draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_over_points_by_hand() -> None:
    mean, low, high = t_interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2 and high - mean == pytest.approx(4.302653 / math.sqrt(3)) and mean - low == high - mean
    result = local_complexity(randomised(MLP()), _draw(9, 6), 0.5, 4)
    totals = result.total.double().numpy()
    assert result.interval(0.9) == pytest.approx(tuple(float(one) for one in t_interval(totals, 0.9)))
    single = local_complexity(randomised(MLP()), _draw(1, 6), 0.5, 4).interval()
    assert single.mean >= 0 and math.isnan(single.low) and math.isnan(single.high)
    with pytest.raises(UsageError, match="`level` must be a confidence level"):
        result.interval(95)


def test_dead_units_are_shared_out_by_hand() -> None:
    points = torch.tensor([[1.0, -1.0, -0.01, -1.0], [-1.0, -1.0, -0.01, 2.0]])
    result = local_complexity(nn.Sequential(nn.ReLU(), nn.ReLU6()), points, 0.1, 3)
    # of 4 units two are never above 0; of 8 pairs of the ReLU6 those two at 0 and all four at 6
    assert result.dead_share == {"0": 0.5, "1": 0.75, "total": pytest.approx(8 / 12)}
    assert "dead_share=0.667" in repr(result)
    assert math.isnan(local_complexity(nn.Linear(4, 2), points, 0.1, 3).dead_share["total"])


def test_two_way_by_hand() -> None:
    found = fit_two_way(np.array([[1.0, 2.0], [3.0, 6.0]]))
    # mean squares: points 4, frames 9, residual 1, one degree of freedom each
    assert found.mean == 3 and found.error == pytest.approx(math.sqrt(12 / 4))
    assert found.freedom == pytest.approx(144 / (16 + 81 + 1))
    assert (found.points, found.frames, found.residual) == pytest.approx((1.5, 4.0, 1.0))


def test_two_way_with_a_negative_component_keeps_the_largest_mean_square() -> None:
    found = fit_two_way(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert found.error == pytest.approx(math.sqrt(1 / 4)) and found.freedom == 1
    assert (found.points, found.frames, found.residual) == (0, 0, 1)
    still = fit_two_way(np.ones((3, 4)))
    assert still.error == 0 and still.residual == 0


@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5), (0.3, 2.0, 1.0)])
def test_the_two_way_interval_covers_as_often_as_it_says(spread) -> None:
    points, frames, draws, random = 12, 8, 1500, np.random.default_rng(0)
    a, b, e = spread
    hits = 0
    components = np.zeros(3)
    for _ in range(draws):
        table = a * random.normal(size=(1, points)) + b * random.normal(size=(frames, 1))
        found = fit_two_way(table + e * random.normal(size=(frames, points)))
        hits += abs(found.mean) <= stats.t.ppf(0.975, found.freedom) * found.error
        components += (found.points, found.frames, found.residual)
    assert 0.935 < hits / draws < 0.975
    assert components / draws == pytest.approx(np.square(spread), rel=0.15, abs=0.02)


def test_frames_and_points_are_told_apart_and_frames_are_reproducible() -> None:
    net, images = randomised(MLP()), _draw(6, 6)
    few = complexity_interval(net, images, 0.5, 3, frames=2, seed=4)
    more = complexity_interval(net, images, 0.5, 3, frames=4, seed=4)
    assert torch.equal(few.totals, more.totals[:2])
    frame = draw_orthonormal_frame(3, 6, make_generator(4, "interval frame", 1))
    assert torch.equal(more.totals[1], local_complexity(net, images, 0.5, method="tangent", frame=frame).total)
    assert more.mean == more.totals.double().mean() and more.low < more.mean < more.high
    assert sum(more.shares.values()) == pytest.approx(1)
    assert "frames=4, points=6" in repr(more) and "95%" in repr(more)


def test_where_the_frame_matters_the_interval_is_wider_than_that_over_points() -> None:
    """All hyperplanes are parallel: how many are met depends on the frame far more than on the point."""
    net = nn.Sequential(nn.Linear(8, 4000), nn.ReLU()).double()
    net[0].weight.data = torch.eye(8, dtype=torch.float64)[:1].expand(4000, 8).clone()
    net[0].bias.data = torch.linspace(-10, 10, 4000, dtype=torch.float64)
    images = 0.1 * _draw(20, 8)
    crossed = complexity_interval(net, images, 0.5, 2, frames=6)
    assert crossed.shares["frames"] > 0.9
    one_way = local_complexity(net, images, 0.5, 2).interval()
    assert crossed.high - crossed.low > 5 * (one_way.high - one_way.low)


def test_bad_arguments_are_refused() -> None:
    net, images = MLP().double(), _draw(3, 6)
    for options, words in [
        ({"frames": 1}, "`frames` must be an int of at least 2"),
        ({"level": 1.0}, "`level`"),
        ({"images": images[:1]}, "N >= 2"),
        ({"images": [1.0, 2.0]}, "got list"),
        ({"directions": 7}, r"1\.\.6"),
    ]:
        with pytest.raises(UsageError, match=words):
            complexity_interval(**{"model": net, "images": images, "directions": 2, **options})
