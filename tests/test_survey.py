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


def _measured(body):
    torch.manual_seed(0)
    return local_complexity(Net(body).double(), torch.randn(4, 6, dtype=torch.float64), 0.5, 3, "vertex")


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
