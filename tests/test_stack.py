"""Nets in a stack against the same nets one after the other: gradients, clipping, statistics, updates, state."""

import copy

import pytest
import torch
from torch import Tensor, nn

from grokkit import models
from grokkit.config.run_config import spec
from grokkit.device.precision import Autocast
from grokkit.ensemble.stack import Stack, StackedUpdate
from grokkit.measures.loss import get_loss
from grokkit.models.classifier import Classifier, Normalise, scale_init
from grokkit.optim.build import build_optimizer
from grokkit.training.build import clip_gradients

NETS = 4


class Thing(nn.Module):
    """A user's own net: statistics, a frozen part, a tied weight, a number that is learned, a functional activation."""

    def __init__(self) -> None:
        super().__init__()
        # a bias here would have the gradient 0 but for rounding, and Adam would enlarge that
        self.first, self.norm = nn.Linear(64, 12, bias=False), nn.BatchNorm1d(12)
        self.twice = nn.Linear(12, 12)
        self.again = self.twice
        self.frozen = nn.Linear(12, 12).requires_grad_(False)
        self.tied = nn.Linear(12, 12)
        self.tied.bias = self.twice.bias
        self.warmth = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x.flatten(1))))
        x = torch.relu(self.tied(torch.relu(self.again(torch.relu(self.twice(x))))))
        return self.head(self.frozen(x)) * self.warmth


def nets(kind: str, scale: float = 1.0) -> list[nn.Module]:
    """`NETS` nets of one kind, initialised from the seeds 0, 1, ..."""
    made = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(NETS):
            torch.manual_seed(seed)
            net = Thing() if kind == "own" else models.create("mlp", (1, 8, 8), 10, widths=(24, 16), bias=kind == "mlp")
            if kind == "gelu":
                net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.GELU(), nn.Linear(12, 10))
            if kind == "classifier":
                net = Classifier(Normalise((0.3,), (0.4,)), net)
            scale_init(net, scale)
            made.append(net)
    return made


def batches(step: int, size: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.rand(NETS, size, 1, 8, 8, generator=generator)
    return x, torch.randint(10, (NETS, size), generator=generator)


def loss_of(name: str, smoothing: float = 0.0):
    return lambda logits, labels: get_loss(name)(logits, labels, smoothing)


def close(ours: Tensor, theirs: Tensor, size: float = 1.0) -> None:
    """Equal within 1e-5 of the largest entry, or of `size` where all are smaller."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * max(size, float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["mlp", "classifier", "own"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize(("scale", "smoothing"), [(1.0, 0.0), (3.0, 0.0), (1.0, 0.2)])
def test_gradients_losses_and_logits_are_those_of_each_net_alone(kind, loss, scale, smoothing) -> None:
    alone = nets(kind, scale)
    stack = Stack(copy.deepcopy(alone), loss_of(loss, smoothing))
    x, y = batches(1)
    losses, logits = stack.backward(x, y)
    assert not losses.requires_grad and not logits.requires_grad
    for place, net in enumerate(alone):
        own = net(x[place])
        value = loss_of(loss, smoothing)(own, y[place])
        value.backward()
        close(logits[place], own.detach())
        close(losses[place], value.detach())
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        assert gradients.keys() == stack.parameters.keys()
        size = max(1.0, *(float(gradient.abs().max()) for gradient in gradients.values()))
        for name, gradient in gradients.items():
            assert gradient.abs().max() > 0, name
            close(stack.parameters[name].grad[place], gradient, size)
        for name, buffer in net.named_buffers():
            close(dict(stack.models[place].named_buffers())[name].double(), buffer.double())


@pytest.mark.parametrize("kind", ["mlp", "gelu"])
def test_the_products_of_a_stack_run_in_the_precision_of_a_net_alone(kind: str) -> None:
    alone = nets(kind)
    stack = Stack(copy.deepcopy(alone), loss_of("mse"), "bfloat16")
    x, y = batches(1)
    losses, logits = stack.backward(x, y)
    assert logits.dtype == torch.float32
    for place, net in enumerate(alone):
        own = Autocast(net, "bfloat16")(x[place])
        value = loss_of("mse")(own, y[place])
        value.backward()
        assert torch.allclose(logits[place], own, atol=0.02) and torch.allclose(losses[place], value, rtol=0.02)
        assert not torch.allclose(own, net(x[place]), atol=1e-5), "bfloat16 is seen"
        for name, stacked in stack.parameters.items():
            theirs = net.get_parameter(name).grad
            assert stacked.grad.dtype == torch.float32 and stacked.grad.stride() == stacked.stride()
            assert (stacked.grad[place] - theirs).abs().max() <= 0.05 * max(0.1, float(theirs.abs().max())), name


def test_the_nets_are_views_of_the_stack() -> None:
    alone = nets("own")
    stack = Stack(copy.deepcopy(alone), loss_of("mse"))
    for place, (model, net) in enumerate(zip(stack.models, alone, strict=True)):
        for name, value in net.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), "stacking changes no number"
        for name, stacked in stack.parameters.items():
            assert model.get_parameter(name).data_ptr() == stacked[place].data_ptr()
        assert model.twice is model.again
    stack.backward(*batches(1))
    with torch.no_grad():
        for stacked in stack.parameters.values():
            stacked.add_(1)
    assert torch.equal(stack.models[2].head.weight, alone[2].head.weight + 1)
    assert stack.models[3].norm.num_batches_tracked == 1


@pytest.mark.parametrize("clip", [None, spec("value", limit=0.01), spec("norm", limit=0.1)])
def test_gradients_are_clipped_net_by_net(clip) -> None:
    alone = nets("own")
    scale_init(alone[1], 0.1)  # its norm is to lie below the limit, so that it shows whether norms are mixed
    stack = Stack(copy.deepcopy(alone), loss_of("mse"))
    x, y = batches(1)
    stack.backward(x, y)
    stack.clip(clip)
    norms = []
    for place, net in enumerate(alone):
        loss_of("mse")(net(x[place]), y[place]).backward()
        norms.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]).norm())
        clip_gradients(clip, net)
        for name, stacked in stack.parameters.items():
            assert torch.allclose(stacked.grad[place], net.get_parameter(name).grad, rtol=1e-4, atol=1e-7), name
    assert min(norms) < 0.1 < max(norms)


OPTIMIZERS = {
    "sgd": spec("sgd", lr=0.05),
    "momentum": spec("sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": spec("adam", lr=0.01, betas=(0.9, 0.99), amsgrad=True),
    "adamw": spec("adamw", lr=0.01, weight_decay=0.3),
    "slow": spec("adamw", lr=0.01, fused=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("parts_at", [None, 1, 3])
def test_updates_and_their_state_are_those_of_each_net_alone(name: str, parts_at: int | None) -> None:
    """`parts_at`: from this step on the nets have different rates, as a policy that listens to readings gives them."""
    chosen, loss = OPTIMIZERS[name], loss_of("cross_entropy")
    alone = nets("own")
    stacked = copy.deepcopy(alone)
    theirs = [build_optimizer(chosen, net.parameters()) for net in alone]
    own = [build_optimizer(chosen, net.parameters()) for net in stacked]
    stack = Stack(stacked, loss)
    update = StackedUpdate(stack, chosen, own)
    for step in range(1, 6):
        scales = [1.0 / (1 + place) if parts_at is not None and step >= parts_at else 1.0 for place in range(NETS)]
        for optimizers in (theirs, own):
            for optimizer, scale in zip(optimizers, scales, strict=True):
                optimizer.param_groups[0]["lr"] = chosen.options["lr"] * scale
        x, y = batches(step, size=20 if step < 5 else 7)
        stack.backward(x, y)
        update.step(scales, range(NETS))
        for place, net in enumerate(alone):
            theirs[place].zero_grad()
            loss(net(x[place]), y[place]).backward()
            theirs[place].step()
    for place, net in enumerate(alone):
        for key, value in net.state_dict().items():
            assert torch.allclose(stack.models[place].state_dict()[key].double(), value.double(), atol=2e-5), key
        mine, other = own[place].state_dict(), theirs[place].state_dict()
        assert mine["param_groups"] == other["param_groups"] and mine["state"].keys() == other["state"].keys()
        for number, state in other["state"].items():
            assert mine["state"][number].keys() == state.keys()
            for key, value in state.items():
                assert torch.allclose(mine["state"][number][key], value, atol=2e-5), (key, number)


def test_a_net_that_is_lost_leaves_the_others_alone() -> None:
    chosen, loss = spec("adamw", lr=0.01), loss_of("mse")
    stacks = [Stack(nets("own"), loss) for _ in range(2)]
    updates = [
        StackedUpdate(stack, chosen, [build_optimizer(chosen, net.parameters()) for net in stack.models])
        for stack in stacks
    ]
    with torch.no_grad():
        stacks[1].models[1].head.weight.fill_(float("nan"))
    for step in range(1, 4):
        for stack, update in zip(stacks, updates, strict=True):
            losses, _ = stack.backward(*batches(step))
            stack.clip(spec("norm", limit=0.1))
            update.step([1.0] * NETS, range(NETS))
    assert losses.isfinite().tolist() == [True, False, True, True]
    for place in (0, 2, 3):
        for whole, hurt in zip(stacks[0].models[place].parameters(), stacks[1].models[place].parameters(), strict=True):
            assert torch.equal(whole, hurt)
