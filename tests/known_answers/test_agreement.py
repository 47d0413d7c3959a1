"""The two methods against each other and against the published way; numbered as in the list of known answers."""

import pytest
import torch

from grokkit import models
from grokkit.spline import draw_orthonormal_frame, local_complexity
from tests.reference.lc_nets import MLP, draw, randomised
from tests.reference.published_lc import published_counts


@pytest.mark.parametrize(("radius", "share", "tolerance"), [(0.04, 0.02, 0.01), (0.5, 0.3, 0.05)])
def test_case_27_first_order_equals_vertex_while_few_units_are_crossed(radius, share, tolerance):
    net, images = randomised(MLP((20, 200, 200, 200, 3)), 1), draw(128, 20)
    vertex, tangent = (local_complexity(net, images, radius, 10, name) for name in ("vertex", "tangent"))
    assert vertex.total.sum() > 300
    assert share / 4 < vertex.total.double().mean() / 600 < share
    assert abs(int(tangent.total.sum()) - int(vertex.total.sum())) <= tolerance * int(vertex.total.sum())
    assert torch.equal(vertex.counts[:, 0], tangent.counts[:, 0])


def _seeded(name, shape, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.create(name, shape, 10, **options).eval()


NETS = {
    "preact k=4": ("preact_resnet18", (3, 16, 16), {"width": 4, "norm": "none"}),
    "preact k=4 bn": ("preact_resnet18", (3, 16, 16), {"width": 4, "norm": "batch"}),
    "preact k=16": ("preact_resnet18", (3, 8, 8), {"width": 16, "norm": "none"}),
    "preact k=16 bn": ("preact_resnet18", (3, 8, 8), {"width": 16, "norm": "batch"}),
    "mlp": ("mlp", (1, 6, 6), {"widths": (50, 40, 30)}),
    "mlp without bias": ("mlp", (1, 6, 6), {"widths": (50, 40), "bias": False}),
    "mlp of dead paths": ("mlp", (1, 2, 2), {"widths": (3, 3, 3), "bias": False}),
}


@pytest.mark.parametrize("name", NETS)
def test_case_30_vertex_lc_is_the_published_count(name):
    """Same weights, same frame: identical integers, also where whole paths of a bias-free net are exactly zero."""
    kind, shape, options = NETS[name]
    net, images = _seeded(kind, shape, **options), draw(5 if kind == "preact_resnet18" else 40, *shape)
    if options.get("norm") == "batch":
        randomised(net)
    net.double()
    frame = draw_orthonormal_frame(4, images[0].numel(), 2)
    for radius in (0.005, 0.5):
        expected = published_counts(net, images, frame, radius)
        assert torch.equal(local_complexity(net, images, radius, method="vertex", frame=frame).counts, expected)
    assert expected.sum(0).min() > 0
