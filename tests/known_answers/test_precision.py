"""Case 31, the precision gate: strict float32 counts as float64 does, and nothing else is ever counted."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from grokkit import models
from grokkit.device import model_check, preserved_state
from grokkit.errors import ModelContractError
from grokkit.spline import local_complexity
from grokkit.spline.dual import Dual
from tests.reference.lc_nets import draw

both = pytest.mark.parametrize("method", ["vertex", "tangent"])
RADIUS = 0.005


def _seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def _mixed_net():
    body = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(256, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU())


@pytest.mark.slow
@both
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_case_31_strict_float32_differs_from_float64_by_less_than_a_thousandth(norm, method):
    net = _seeded(lambda: models.create("preact_resnet18", (3, 32, 32), 10, width=16, norm=norm))
    images = draw(24, 3, 32, 32).float()
    single = local_complexity(net, images, 0.05, 10, method).counts
    double = local_complexity(net.double(), images, 0.05, 10, method).counts
    assert double.sum() > 4000
    assert (single - double).abs().sum() < 0.001 * double.sum()


@both
def test_case_31_autocast_changes_no_count(method, monkeypatch):
    net, images = _seeded(_mixed_net), draw(20, 3, 8, 8).float()
    expected = local_complexity(net, images, RADIUS, 5, method).counts
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(local_complexity(net, images, RADIUS, 5, method).counts, expected)
        monkeypatch.setattr(model_check, "WithoutAutocast", nullcontext)
        monkeypatch.setattr(preserved_state, "strict_precision", nullcontext)  # what it would be without the guard
        with pytest.raises(ModelContractError, match="computes in bfloat16, whose rounding counts as crossings"):
            local_complexity(net, images, RADIUS, 5, method)


class _Watched(nn.Sequential):
    """Writes down the precision that every kind of product has while it runs."""

    def forward(self, x):
        cudnn, cuda, mkldnn = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
        self.seen = {knob.fp32_precision for knob in (cudnn.conv, cuda.matmul, mkldnn.conv, mkldnn.matmul)}
        self.seen |= {torch.get_float32_matmul_precision(), cudnn.allow_tf32, cuda.matmul.allow_tf32}
        return super().forward(x)


@both
def test_case_31_tf32_is_off_while_measuring_and_on_again_afterwards(method):
    net, images = _Watched(_seeded(_mixed_net)), draw(20, 3, 8, 8).float()
    expected = local_complexity(net, images, RADIUS, 5, method).counts
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        assert torch.equal(local_complexity(net, images, RADIUS, 5, method).counts, expected)
        assert net.seen == {"ieee", "highest", False}
        assert torch.backends.cudnn.allow_tf32 is True and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_case_31_a_model_in_half_precision_is_refused_with_the_reason_and_the_way_out(method, dtype):
    net = _mixed_net()
    net[2].to(dtype)  # one layer is enough
    with pytest.raises(ModelContractError, match=rf"rounding counts as crossings; '2\.weight' is {dtype}.*float\(\)"):
        local_complexity(net, draw(2, 3, 8, 8), RADIUS, 2, method)


def _tf32(x):
    """Rounded to the 10 bits of mantissa that TF32 keeps of float32's 23, by Veltkamp's splitting (Dekker 1971)."""
    high = (2**13 + 1) * x
    return high - (high - x)


class _TF32Convolution(nn.Conv2d):
    """What a convolution on TF32 tensor cores does to a value; of a `Dual`, only to its tangents."""

    def forward(self, x):
        weight = _tf32(self.weight)
        if not isinstance(x, Dual):
            return F.conv2d(_tf32(x), weight, self.bias, self.stride, self.padding)
        tangent = F.conv2d(_tf32(x.tangent.flatten(0, 1)), weight, None, self.stride, self.padding)
        return Dual(super().forward(x.primal), tangent.unflatten(0, x.tangent.shape[:2]))


def _conv_net(convolution):
    net = [convolution(3, 32, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        net += [convolution(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*net)


def test_case_31_tf32_inflates_the_vertex_count_and_rounded_tangents_hardly_move_theirs():
    images = draw(32, 3, 16, 16).float()
    nets = [_seeded(lambda kind=kind: _conv_net(kind)) for kind in (nn.Conv2d, _TF32Convolution)]
    vertex, inflated = (int(local_complexity(net, images, RADIUS, 10).total.sum()) for net in nets)
    tangent, rounded = (int(local_complexity(net, images, RADIUS, 10, "tangent").total.sum()) for net in nets)
    assert min(vertex, tangent) > 200
    assert inflated > 1.5 * vertex
    assert abs(rounded - tangent) < 0.01 * tangent
