"""What must not change a single count, in float64; the numbers are those of the list of known answers."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules import module as module_globals
from torch.nn.utils import fuse_conv_bn_eval

from grokkit import models
from grokkit.errors import ModelContractError
from grokkit.spline import draw_orthonormal_frame, local_complexity, passes
from tests.reference.lc_nets import MLP, ResidualNet, draw, randomised

both = pytest.mark.parametrize("method", ["vertex", "tangent"])


def _counts(net, images, radius=0.5, directions=4, method="vertex", **options):
    return local_complexity(net, images, radius, directions, method, **options).counts


@both
@pytest.mark.parametrize("radius", [0.3, 0.5, 2.0])
def test_case_10_folding_batch_norm_into_the_convolutions_changes_nothing(method, radius):
    net, images = randomised(ResidualNet()), draw(5, 2, 12, 12)
    folded = copy.deepcopy(net)
    for conv, norm in (("stem", "bn1"), ("conv1", "bn2"), ("conv2", "bn3")):
        setattr(folded, conv, fuse_conv_bn_eval(getattr(net, conv), getattr(net, norm)))
        setattr(folded, norm, nn.Identity())
    expected = _counts(net, images, radius, method=method)
    assert expected.sum() > 20
    assert torch.equal(_counts(folded, images, radius, method=method), expected)


@both
@pytest.mark.parametrize("radius", [0.05, 0.5, 2.0])
def test_case_11_rescaling_single_units_changes_nothing(method, radius):
    net, images = randomised(MLP()), draw(40, 6)
    scaled, scale = copy.deepcopy(net), torch.linspace(0.2, 5.0, 8, dtype=torch.float64)
    scaled.layers[1].weight.data *= scale[:, None]
    scaled.layers[1].bias.data *= scale
    scaled.layers[2].weight.data /= scale
    expected = _counts(net, images, radius, method=method)
    assert expected.sum(0).min() > 0
    assert torch.equal(_counts(scaled, images, radius, method=method), expected)


@both
@pytest.mark.parametrize("zoom", [8.0, 0.3])
def test_case_12_rescaling_the_inputs_with_the_radius_changes_nothing(method, zoom):
    net, images = randomised(MLP()), draw(40, 6)
    zoomed = copy.deepcopy(net)
    zoomed.layers[0].weight.data *= zoom
    assert torch.equal(_counts(zoomed, images / zoom, 0.5 / zoom, method=method), _counts(net, images, method=method))


@both
def test_case_13_permuting_units_and_permuting_or_scaling_the_outputs_changes_nothing(method):
    net, images = randomised(MLP()), draw(40, 6)
    expected, order = _counts(net, images, method=method), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    permuted = copy.deepcopy(net)
    permuted.layers[1].weight.data = net.layers[1].weight.data[order]
    permuted.layers[1].bias.data = net.layers[1].bias.data[order]
    permuted.layers[2].weight.data = net.layers[2].weight.data[:, order]
    assert torch.equal(_counts(permuted, images, method=method), expected)
    outputs = copy.deepcopy(net)
    outputs.layers[-1].weight.data = -100.0 * net.layers[-1].weight.data[[2, 0, 1]]
    assert torch.equal(_counts(outputs, images, method=method), expected)


@both
def test_case_14_rotating_the_inputs_with_the_frame_changes_nothing(method):
    net, images, frame = randomised(MLP()), draw(40, 6), draw_orthonormal_frame(4, 6, 0)
    rotation = draw_orthonormal_frame(6, 6, 9)
    rotated = copy.deepcopy(net)
    rotated.layers[0].weight.data = net.layers[0].weight.data @ rotation.T
    expected = _counts(net, images, method=method, frame=frame)
    assert torch.equal(_counts(rotated, images @ rotation.T, method=method, frame=frame @ rotation.T), expected)
    assert not torch.equal(_counts(net, images, method=method, frame=frame @ rotation.T), expected)


@both
def test_case_15_padding_the_input_with_dimensions_of_zero_weight_changes_nothing(method):
    net, images, frame = randomised(ResidualNet()), draw(5, 2, 8, 8), draw_orthonormal_frame(4, 128, 0)
    padded = copy.deepcopy(net)
    padded.stem = nn.Conv2d(5, 4, 3, padding=1)
    padded.stem.weight.data = torch.cat([net.stem.weight.data, torch.zeros(4, 3, 3, 3)], 1)
    padded.stem.bias = net.stem.bias
    wider = torch.cat([images, draw(5, 3, 8, 8, seed=8)], 1)
    embedded = torch.cat([frame, torch.zeros(4, 3 * 64)], 1)
    expected = _counts(net, images, method=method, frame=frame)
    assert expected.sum() > 0
    assert torch.equal(_counts(padded, wider, method=method, frame=embedded), expected)


@both
@pytest.mark.parametrize("stride", [1, 2])
def test_case_16_a_convolution_counts_as_its_unrolled_matrix(method, stride):
    conv, images = randomised(nn.Conv2d(2, 3, 3, stride, padding=1)), draw(4, 2, 5, 5)
    with torch.no_grad():
        bias = conv(torch.zeros(1, 2, 5, 5, dtype=torch.float64)).flatten()
        columns = conv(torch.eye(50, dtype=torch.float64).view(50, 2, 5, 5)).flatten(1) - bias
    unrolled = nn.Linear(50, len(bias)).double()
    unrolled.weight.data, unrolled.bias.data = columns.T.contiguous(), bias
    expected = _counts(nn.Sequential(conv, nn.ReLU()), images, method=method)
    assert expected.sum() > 0
    assert torch.equal(_counts(nn.Sequential(nn.Flatten(), unrolled, nn.ReLU()), images, method=method), expected)


@both
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_case_17_a_residual_block_with_a_zero_branch_counts_as_no_block(method, norm):
    net = randomised(models.create("preact_resnet18", (2, 8, 8), 3, width=4, norm=norm))
    net.stages[1][1].conv2.weight.data.zero_()
    without = copy.deepcopy(net)
    without.stages[1] = nn.Sequential(net.stages[1][0])
    images = draw(4, 2, 8, 8)
    whole, cut = (local_complexity(one, images, 0.5, 4, method) for one in (net, without))
    kept = [index for index, layer in enumerate(whole.layers) if not layer.startswith("stages.1.1")]
    assert len(kept) == len(cut.layers) == 14
    assert cut.counts[:, -1].sum() > 0
    assert torch.equal(whole.counts[:, kept], cut.counts)


@both
def test_case_19_permuting_the_samples_permutes_the_counts(method):
    net, images = randomised(ResidualNet()), draw(7, 2, 12, 12)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    assert torch.equal(_counts(net, images[order], method=method), _counts(net, images, method=method)[order])


@both
@pytest.mark.parametrize("frames", ["shared", "per_point"])
def test_case_19_blocks_of_points_and_of_directions_change_nothing(method, frames, monkeypatch):
    net, images = randomised(ResidualNet()), draw(7, 2, 12, 12)
    whole = local_complexity(net, images, 0.3, 5, method, frames)
    assert whole.counts.sum(1).min() > 0  # every point, those of a ragged last block as well
    for elements in (1, 288 * 5, 288 * 17, 288 * 30):
        monkeypatch.setattr(passes, "_PASS_ELEMENTS", {"cpu": elements})
        parts = local_complexity(net, images, 0.3, 5, method, frames)
        assert torch.equal(parts.counts, whole.counts) and parts.live_units == whole.live_units
    single = [local_complexity(net, image[None], 0.3, 5, method).counts for image in images]
    assert torch.equal(torch.cat(single), whole.counts) == (frames == "shared")


class _Failing(ResidualNet):
    calls = 0

    def forward(self, x, taps=None):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
        out = super().forward(x, taps)
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("on purpose")
        return out


def _state(net, images):
    hooks = [name for name in vars(module_globals) if name.startswith("_global_") and name.endswith("hooks")]
    return {
        "random": (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()),  # noqa: NPY002
        "flags": [module.training for module in net.modules()],
        "tensors": {name: value.tolist() for name, value in net.state_dict().items()},
        "grads": [(p.requires_grad, p.grad is None or p.grad.tolist()) for p in net.parameters()],
        "strides": [p.stride() for p in net.parameters()],
        "hooks": {name: len(getattr(module_globals, name)) for name in hooks},
        "own hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()],
        "grad mode": torch.is_grad_enabled(),
        "images": images.tolist(),
        "precision": torch.backends.cudnn.conv.fp32_precision,
    }


@both
@pytest.mark.parametrize("kind", [ResidualNet, _Failing])
def test_case_20_nothing_is_left_behind_also_after_an_exception(method, kind):
    net, images = randomised(kind()).float().train(), draw(3, 2, 12, 12).float().requires_grad_()
    net.bn2.eval()
    net.stem.weight.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before = _state(net, images)
    if kind is _Failing:
        net.calls = 2
        with pytest.raises(ModelContractError, match="RuntimeError: on purpose"):
            local_complexity(net, images, 0.1, 2, method)
    else:
        local_complexity(net, images, 0.1, 2, method)
    after = _state(net, images)
    assert {name for name in before if before[name] != after[name]} == set()
    assert images.grad is None
