"""What is neither linear nor counted: named where it mixes, refused where it decides."""

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
    assert (
        tuple(name.replace("__truediv__", "div").replace("__matmul__", "matmul") for name in found.uncounted) == named
    )
    assert f"uncounted={len(named)}" in repr(found)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (lambda x: torch.threshold(x, 0.0, 0.0), "threshold"),
        (torch.celu, "celu"),
        (lambda x: torch.ops.aten.relu(x), "relu"),
        (lambda x: torch.ops.aten.silu(x), "silu"),
        (lambda x: F.glu(x.repeat(1, 2)), "glu"),
    ],
)
def test_an_activation_by_a_name_that_is_not_intercepted_is_refused(body, name):
    with pytest.raises(ModelContractError, match=f"the activation `{name}` in"):
        _measured(body)


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
        lambda x: x * 2 + x if (x > 100).any() else x,
        nn.BatchNorm1d(6),
        lambda x: F.max_pool1d(x.unsqueeze(1), 1).squeeze(1),
        lambda x: torch.maximum(x, x.flip(1)),
        lambda x: x + torch.zeros_like(x),
        lambda x: torch.mul(x, other=2.0),
    ],
)
def test_what_is_linear_or_counted_is_not_named(body):
    assert _measured(body).uncounted == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda x: torch.where(x > 0, x, 0.1 * x), "`where`"),
        (lambda x: x * (x > 0), "`mul`"),
        (lambda x: x.masked_fill(x < 0, 0.0), "`masked_fill`"),
        (lambda x: x * (x > 0).double(), "`double`"),
        (lambda x: x.gather(1, x.argsort(1)), "`gather`"),
    ],
)
@pytest.mark.parametrize("measure", [local_complexity, lambda net, x: complexity_spectrum(net, x, [0.1], 2)])
def test_what_decides_is_refused(body, words, measure):
    with pytest.raises(ModelContractError, match=f"mask or an index that depends on the image, in {words}"):
        measure(
            Net(body).double(),
            torch.randn(4, 6, dtype=torch.float64),
            *([0.1, 2] if measure is local_complexity else []),
        )
