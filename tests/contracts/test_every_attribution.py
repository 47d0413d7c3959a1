"""What every attribution method must keep, whichever they are."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

from grokkit import attributions
from grokkit.errors import ModelContractError, UsageError

METHODS = attributions.names()


class _Net(nn.Module):
    """Convolutions, batch statistics, dropout, a functional and an in-place activation; works in place on its input."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 3)
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(5, 4)
        self.norm.running_mean.fill_(0.1)

    def forward(self, x):
        x = x.sub_(0.1)
        x = nn.functional.relu(self.norm(self.first(x)), inplace=True)
        x = torch.relu_(self.second(x)).mean(dim=(2, 3))
        return self.head(self.drop(x))


def _images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def _fail_under_gradients():
    """Return a hook that raises in the second forward pass with gradients; the first is the check of the model."""
    calls = itertools.count()

    def hook(*_):
        if torch.is_grad_enabled() and next(calls):
            raise RuntimeError("deliberate")

    return hook


def _hooks(model: nn.Module) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [len(getattr(module, kind)) for module in model.modules() for kind in kinds]


def _trace(model: nn.Module) -> tuple:
    """All that a call could have changed, in comparable form."""
    return (
        {name: tensor.tolist() for name, tensor in model.state_dict().items()},
        [(module.training, sorted(vars(module))) for module in model.modules()],
        [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
        _hooks(model),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    )


@pytest.mark.parametrize("method", METHODS)
def test_values_are_float32_maps_on_the_cpu_beside_their_settings(method):
    found = attributions.attribute(_Net(), _images(), 2, method, seed=3)
    assert found.values.shape[0] == 5
    assert found.values.shape[1] in (1, 3)
    assert found.values.shape[2:] == (9, 8)
    assert found.values.dtype == torch.float32
    assert found.values.device.type == "cpu"
    assert not found.values.requires_grad
    assert found.values.abs().sum() > 0
    assert found.settings["method"] == method
    assert found.settings["targets"] == [2] * 5
    assert found.settings["seed"] == 3
    assert found.settings["captum"].startswith("0.9")


@pytest.mark.parametrize("method", METHODS)
def test_values_do_not_depend_on_the_batch_size(method):
    model, images, target = _Net().double(), _images(), torch.tensor([0, 3, 1, 2, 2])
    whole = attributions.attribute(model, images, target, method).values
    for size in (1, 2, 3):
        torch.testing.assert_close(attributions.attribute(model, images, target, method, batch_size=size).values, whole)
    alone = attributions.attribute(model, images[3:4], 2, method).values
    torch.testing.assert_close(alone, whole[3:4])


@pytest.mark.parametrize("method", METHODS)
def test_no_forward_pass_is_larger_than_the_batch_size(method):
    model, sizes = _Net(), []
    model.head.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    attributions.attribute(model, _images(7), 0, method, batch_size=4)
    assert max(sizes) == 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fail", [False, True])
def test_a_call_leaves_no_trace_also_after_an_exception(method, fail):
    model, images = _Net().train(), _images().requires_grad_()
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    model.second.register_forward_hook(_fail_under_gradients() if fail else lambda *_: None)
    before, kept = _trace(model), images.detach().clone()
    if fail:
        with pytest.raises(RuntimeError, match="deliberate"):
            attributions.attribute(model, images, 0, method)
    else:
        with torch.no_grad():
            attributions.attribute(model, images, 0, method)
    assert _trace(model) == before
    assert torch.equal(images.detach(), kept)
    assert images.requires_grad
    assert images.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_it_works_in_inference_mode_and_leaves_the_callers_tensor_alone(method):
    model, images = _Net(), _images()
    expected = attributions.attribute(model, images, 0, method).values
    assert not images.requires_grad
    assert torch.equal(images, _images())
    with torch.inference_mode():
        assert torch.equal(attributions.attribute(model, images.clone(), 0, method).values, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_training_mode_is_explained_in_eval_mode(method):
    model, images = _Net(), _images()
    training = attributions.attribute(model.train(), images, 1, method).values
    assert torch.equal(training, attributions.attribute(model.eval(), images, 1, method).values)


@pytest.mark.parametrize("method", METHODS)
def test_a_wrapped_model_is_explained_as_the_model_itself(method):
    class Compiled(nn.Module):
        """The shape of what `torch.compile` returns; its own forward must not be used."""

        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

        def forward(self, x):
            raise AssertionError("the wrapper was called")

    model, images = _Net(), _images()
    plain = attributions.attribute(model, images, 1, method).values
    assert torch.equal(attributions.attribute(nn.DataParallel(model), images, 1, method).values, plain)
    assert torch.equal(attributions.attribute(Compiled(model), images, 1, method).values, plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_dead_net_gives_maps_of_zeros(method):
    model = _Net()
    nn.init.zeros_(model.head.weight)
    found = attributions.attribute(model, _images(), 0, method)
    assert not found.values.any()
    assert found.checks.get("complete", True)


@pytest.mark.parametrize("method", METHODS)
def test_random_draws_are_common_to_all_calls_with_one_seed(method):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _Net()

        def forward(self, x):
            return self.net(x) * (1 + torch.rand(()) + random.random() + np.random.rand())  # noqa: NPY002

    images = _images()
    try:
        first = attributions.attribute(Noisy(), images, 0, method).values
    except ModelContractError:
        pytest.skip("a method that needs a graph refuses a forward pass that is not the same twice")
    random.seed(5)
    torch.rand(3)
    assert torch.equal(attributions.attribute(Noisy(), images, 0, method).values, first)
    assert not torch.equal(attributions.attribute(Noisy(), images, 0, method, seed=1).values, first)


@pytest.mark.parametrize("method", METHODS)
def test_arguments_that_are_not_given_keep_their_defaults(method):
    class Optional(_Net):
        def forward(self, x, mask=None, scale=1.0, *more, flip=False, **rest):
            x = x.mul_(scale) if mask is None else x * mask
            return super().forward(x.flip(-1) if flip or more or rest else x)

    expected = attributions.attribute(_Net(), _images(), 1, method).values
    torch.testing.assert_close(attributions.attribute(Optional(), _images(), 1, method).values, expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_net_of_reused_activations_is_explained_as_one_with_a_module_for_each_call(method):
    class Residual(nn.Module):
        def __init__(self, activations):
            super().__init__()
            self.convs, self.activations = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)), activations
            for number, parameter in enumerate(self.parameters()):
                parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 3

        def forward(self, x):
            for conv, activation in zip(self.convs, self.activations, strict=True):
                x = activation(x) - conv(activation(x)) + 0.5 * x
            return x.mean((2, 3))

    own, one = nn.ModuleList(nn.ReLU() for _ in range(3)), nn.ReLU()
    expected = attributions.attribute(Residual(own), _images(), 1, method).values
    assert expected.any()
    for activations in (nn.ModuleList([one] * 3), [nn.functional.relu] * 3, [lambda z: z.relu()] * 3):
        torch.testing.assert_close(attributions.attribute(Residual(activations), _images(), 1, method).values, expected)


@pytest.mark.parametrize("method", METHODS)
def test_an_unknown_parameter_is_answered_with_those_the_method_takes(method):
    with pytest.raises(UsageError, match="unknown parameter 'steps_n'"):
        attributions.attribute(_Net(), _images(), 0, method, steps_n=3)
