"""Peak memory of both methods: it grows with neither the points nor the directions."""

import sys

import pytest

from tests.reference.peak_memory import peak_above_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]


def _peak(contender, points, directions):
    """k = 64 on 16x16 images: a pass is cut to a number of pixels, so it holds as much as on 32x32 at a quarter of
    the price."""
    return peak_above_model(contender, width=64, side=16, points=points, directions=directions)


@pytest.mark.parametrize("method", ["vertex", "tangent"])
def test_memory_grows_with_neither_points_nor_directions(method):
    peaks = [_peak(method, points, directions) for points, directions in ((32, 10), (64, 10), (64, 40))]
    assert max(peaks) < 1000
    assert max(peaks) < 1.15 * min(peaks) + 20


def test_the_published_way_is_seen_to_grow():
    assert _peak("published", 16, 10) > 1.6 * _peak("published", 8, 10)
