"""Seeds, registries, borrowed models and intercepted activations."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from grokkit.device.preserved_state import device_of, dtype_of, preserved_state, strict_precision, unwrap
from grokkit.errors import ModelContractError, UnknownNameError, UsageError
from grokkit.names import ProbeSet, Reading
from grokkit.registry import Registry
from grokkit.seeding import derive_seed, make_generator, seeded
from grokkit.units import intercept


def test_streams_are_independent_of_each_other_and_fixed_for_ever() -> None:
    assert derive_seed(0, "order", 1) == derive_seed(0, "order", 1) == 4374215849138048446
    assert len({derive_seed(seed, name, i) for seed in range(3) for name in ("a", "b") for i in range(5)}) == 30
    assert torch.equal(torch.rand(3, generator=make_generator(1, "x")), torch.rand(3, generator=make_generator(1, "x")))


def test_seeded_code_is_repeatable_and_leaves_no_trace_even_after_an_error() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    draws = []
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), seeded(3, "init"):
            draws.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002
            raise ZeroDivisionError
    assert draws[0] == draws[1]
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002


def test_a_registry_names_the_nearest_and_the_allowed() -> None:
    found = Registry("shape", "collections")

    @found.register("square")
    def square(side: float = 1.0) -> float:
        return side**2

    assert found.names() == ["square"] and found.create("square", side=3) == 9
    assert found.name_of(square) == "square"
    with pytest.raises(UnknownNameError, match=r"unknown shape 'sqare'. Did you mean 'square'\? Known: square"):
        found.get("sqare")
    with pytest.raises(UsageError, match=r"unknown parameter 'sid' of shape .* Did you mean 'side'\? It takes: side"):
        found.create("square", sid=2)
    with pytest.raises(UsageError, match="already registered"):
        found.register("square")(lambda: None)
    with pytest.raises(UsageError, match="is not registered"):
        found.name_of(test_a_registry_names_the_nearest_and_the_allowed)


def precisions() -> list[str]:
    backends = torch.backends
    knobs = (
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
    )
    return [knob.fp32_precision for knob in knobs]


def test_precision_is_strict_inside_and_the_users_outside() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        before = precisions()
        with pytest.raises(ZeroDivisionError), torch.autocast("cpu", torch.bfloat16), strict_precision():
            assert set(precisions()) == {"ieee"}
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            raise ZeroDivisionError
        assert precisions() == before and "ieee" not in before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_borrowed_model_comes_back_as_it_was() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    inner[1].eval()
    inner[0].weight.requires_grad_(False)
    inner[0].bias.grad = torch.ones(2)
    wrapped = torch.compile(nn.DataParallel(inner), backend="eager")
    assert unwrap(wrapped) is inner
    with pytest.raises(ZeroDivisionError), preserved_state(wrapped) as model:
        assert model is inner and not any(module.training for module in model.modules())
        model[0].weight.requires_grad_(True)
        model[0].bias.grad = None
        raise ZeroDivisionError
    assert [module.training for module in inner.modules()] == [True, True, False, True]
    assert not inner[0].weight.requires_grad and inner[0].bias.grad.tolist() == [1, 1]
    assert device_of(nn.ReLU()).type == "cpu" and dtype_of(inner.double()) == torch.float64


class Counts(nn.Module):
    """Counts its calls in a buffer, in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def test_buffers_come_back_and_a_backward_pass_under_way_is_not_spoiled() -> None:
    model = Counts()
    with preserved_state(model) as inner:
        inner(torch.ones(1))
        assert model.calls == 1
    assert model.calls == 0
    norm = nn.BatchNorm1d(2).eval()
    loss = norm(torch.ones(3, 2)).sum()
    with preserved_state(norm) as inner, torch.no_grad():
        inner(torch.ones(3, 2))
    loss.backward()


class Careless(nn.Module):
    """Trains a batch norm and replaces a buffer in eval mode, too; neither raises a version counter."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("cache", None)
        self.register_buffer("empty", torch.zeros(1).expand(4))
        self.register_buffer("graph", torch.eye(2).to_sparse())

    def forward(self, x):
        x = nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        self.mean, self.cache = self.mean + x.mean(0), x
        return x


def test_buffers_that_are_trained_or_replaced_in_eval_mode_come_back_too() -> None:
    model = Careless()
    buffers = dict(model.named_buffers())
    before = {name: buffer.to_dense().clone() for name, buffer in buffers.items()}
    loss = model.norm(torch.randn(3, 2)).sum()
    before |= {name: buffer.clone() for name, buffer in model.norm.named_buffers("norm")}
    with preserved_state(model) as inner:
        inner(torch.randn(3, 2))
        assert model.cache is not None and not torch.equal(model.norm.running_mean, before["norm.running_mean"])
    assert model.cache is None
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name] and torch.equal(buffer.to_dense(), before[name]), name
    loss.backward()


def test_older_precision_switches_can_be_read_inside_and_are_the_users_outside() -> None:
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
            with strict_precision():
                assert torch.backends.cudnn.allow_tf32 is False and torch.backends.cuda.matmul.allow_tf32 is False
                assert torch.get_float32_matmul_precision() == "highest"
            assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_inherits_the_global_precision_goes_on_inheriting_it() -> None:
    script = (
        "import torch\nfrom grokkit.device.preserved_state import strict_precision\n"
        "torch.backends.fp32_precision = 'tf32'\n"
        "with strict_precision():\n    assert torch.backends.cudnn.conv.fp32_precision == 'ieee'\n"
        "assert torch.backends.cudnn.conv.fp32_precision == 'tf32'\n"
        "torch.backends.fp32_precision = 'ieee'\n"
        "assert torch.backends.cudnn.conv.fp32_precision == 'ieee'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_seeding_before_cuda_starts_leaves_cuda_unseeded() -> None:
    """`torch.manual_seed` would queue the seed for the moment CUDA starts, long after the state was handed back."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA runs already")
    before = torch.cuda._lazy_seed_tracker.get_calls()
    with seeded(0, "init"):
        torch.rand(1)
    assert torch.cuda._lazy_seed_tracker.get_calls() == before


class Awkward(nn.Module):
    """Functional, re-used, in-place and nested activations, in a known order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(3, 3), nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Linear(3, 3), nn.ReLU6(), nn.Linear(3, 3))

    def forward(self, x):
        x = self.act(self.first(x))
        x = F.leaky_relu(self.block(x)) + F.hardtanh(x, -2.0, 3.0)
        return torch.relu(self.act(x).neg())


def test_every_activation_call_is_seen_before_it_happens_in_order() -> None:
    model, calls = Awkward(), []
    x = torch.randn(4, 3)
    with torch.no_grad():
        expected = model.first(x)
        with intercept(model, lambda call: calls.append((call.layer, call.kinks, call.z.clone()))):
            model(x)
    assert [(layer, kinks) for layer, kinks, _ in calls] == [
        ("act", (0.0,)),
        ("block.1", (0.0, 6.0)),
        ("leaky_relu", (0.0,)),
        ("hardtanh", (-2.0, 3.0)),
        ("act#2", (0.0,)),
        ("relu", (0.0,)),
    ]
    assert torch.equal(calls[0][2], expected), "values as they were before the in-place activation"


def test_a_call_on_a_wrong_batch_is_refused_and_nothing_leaks() -> None:
    hooks = torch.nn.modules.module._global_forward_pre_hooks, torch.nn.modules.module._global_forward_hooks
    model, images = nn.Sequential(nn.Flatten(0), nn.ReLU()), torch.ones(1, 3)
    with (
        pytest.raises(ModelContractError, match=r"relu in '1' must have the batch \(2\) as its first"),
        intercept(model, lambda call: None, batch=2),
    ):
        model(images)
    assert [len(each) for each in hooks] == [0, 0]


def test_torchvision_names_follow_the_module_path() -> None:
    names: list[str] = []
    model, images = torchvision.models.resnet18().eval(), torch.zeros(1, 3, 32, 32)
    with torch.no_grad(), intercept(model, lambda call: names.append(call.layer)):
        model(images)
    assert names[:3] == ["relu", "layer1.0.relu", "layer1.0.relu#2"] and len(names) == 17 == len(set(names))


def test_readings_and_probe_sets_check_their_shapes() -> None:
    with pytest.raises(ValueError, match=r"values have shape \(2,\), coords require \(1,\)"):
        Reading("m", np.zeros(2), ("layer",), {"layer": ("a",)}, "1")
    with pytest.raises(ValueError, match="a bound has shape"):
        Reading("m", np.zeros(1), ("layer",), {"layer": ("a",)}, "1", low=np.zeros(3))
    images, labels = np.zeros((2, 1, 1, 1), np.uint8), np.zeros(2, np.int64)
    with pytest.raises(ValueError, match="as many labels and indices as images"):
        ProbeSet("p", images, labels[:1], "here", labels)
    with pytest.raises(ValueError, match="needs uint8 or float32 images; got float64"):
        ProbeSet("p", images.astype(float), labels, "here", labels)
    assert ProbeSet("p", images, labels, "a", labels).hash != ProbeSet("p", images, labels, "b", labels).hash
