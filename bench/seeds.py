"""What many seeds at once cost against one after the other: nets in a stack, step by step as `train` takes them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from bench import loops
from bench.harness import Ratio, Row, Settings, compared, medians
from grokkit import models, policies
from grokkit.config.run_config import spec
from grokkit.data.resident import Batches, stack_batches
from grokkit.ensemble.stack import Stack, StackedUpdate
from grokkit.measures.loss import cross_entropy
from grokkit.optim.build import build_optimizer
from grokkit.optim.policy_lr import PolicyLR
from grokkit.training.meter import Meter, Meters
from grokkit.training.step import TrainStep

OPTIMIZER = spec("adamw", lr=1e-3)
IMAGES = 2048

MLP = ("mlp", {"widths": (200, 200)}, (1, 28, 28), 32)
LENET = (loops.LENET, {}, (3, 32, 32), 32)
RESNET9 = ("resnet9", {"width": 8}, (3, 32, 32), 32)
GOAL = 1 / 1.8


def mlps(settings: Settings) -> list[Row]:
    """An MLP 784-200-200-10 on random images, batch 32, AdamW: whole steps with batches, meter and policy, and the
    gradients alone. CPU-milliseconds of a step of all seeds."""
    return _compare(MLP, 32, 5, settings, GOAL) + _compare(MLP, 8, 20, settings)


def convnets(settings: Settings) -> list[Row]:
    """Why convolutional nets are not stacked: seeds of a LeNet and of a ResNet-9 of width 8, batch 32, for
    information."""
    return _compare(LENET, 8, 4, settings) + _compare(RESNET9, 4, 2, settings)


Net = tuple[str, dict[str, object], tuple[int, int, int], int]


def _compare(chosen: Net, count: int, steps: int, settings: Settings, goal: float | None = None) -> list[Row]:
    """`steps` of `count` seeds, one seed after the other and in a stack."""
    name, options, shape, batch_size = chosen
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = [models.create(name, shape, 10, **options) for _ in range(count)]
        images = torch.randint(256, (IMAGES, *shape), dtype=torch.uint8)
        labels = torch.randint(10, (IMAGES,))
    batches = [Batches(images, labels, batch_size, seed=seed) for seed in range(count)]
    stacked = copy.deepcopy(nets)
    one, all_of_them = f"{name}, {count} seeds: one after the other", f"{name}, {count} seeds: stack"
    contenders = {one: _loop(nets, batches, steps), all_of_them: _stack(stacked, batches, steps)}
    contenders |= {
        f"{each}, gradients": run
        for each, run in zip((one, all_of_them), _gradients(nets, batches, steps), strict=True)
    }
    costs = {key: 1000 * seconds / steps for key, seconds in medians(contenders, settings).items()}
    ratios = [Ratio(all_of_them, one, goal), Ratio(f"{all_of_them}, gradients", f"{one}, gradients")]
    return compared(costs, ratios, "CPU-ms")


def _loop(nets: Sequence[nn.Module], batches: Sequence[Batches], steps: int) -> Callable[[], None]:
    """Every net's own steps, as `training.loop` takes them."""
    lanes = []
    for net, own in zip(nets, batches, strict=True):
        optimizer = build_optimizer(OPTIMIZER, net.parameters())
        step = TrainStep(net, optimizer, cross_entropy, batch_size=own.batch_size)
        lanes.append((own, step, Meter(torch.device("cpu")), _policy(optimizer)))

    def run() -> None:
        for own, update, meter, policy in lanes:
            for step in range(1, 1 + steps):
                x, y = own.at(step)
                loss, logits = update(x, y)
                meter.add(loss, logits, y)
                policy.step()

    return run


def _stack(nets: Sequence[nn.Module], batches: Sequence[Batches], steps: int) -> Callable[[], None]:
    """The steps of all nets together, as `ensemble.vmapped` takes them."""
    own = [build_optimizer(OPTIMIZER, net.parameters()) for net in nets]
    rates = [_policy(optimizer) for optimizer in own]
    stack = Stack(nets, cross_entropy)
    update = StackedUpdate(stack, OPTIMIZER, own)
    meters = Meters([Meter(torch.device("cpu")) for _ in nets])

    def run() -> None:
        for step in range(1, 1 + steps):
            x, y = stack_batches(batches, step)
            losses, logits = stack.backward(x, y)
            update.step([policy.scale for policy in rates], range(len(nets)))
            meters.add(losses, logits, y)
            for policy in rates:
                policy.step()

    return run


def _gradients(
    nets: Sequence[nn.Module], batches: Sequence[Batches], steps: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The gradients of one batch again and again: net by net, and of the stack."""
    x, y = stack_batches(batches, 1)
    stack = Stack(copy.deepcopy(list(nets)), cross_entropy)

    def loop() -> None:
        for net, images, labels in zip(nets, x, y, strict=True):
            for _ in range(steps):
                net.zero_grad()
                cross_entropy(net(images), labels).backward()

    def stacked() -> None:
        for _ in range(steps):
            stack.backward(x, y)

    return loop, stacked


def _policy(optimizer: torch.optim.Optimizer) -> PolicyLR:
    return PolicyLR(optimizer, policies.create("constant"), 10**9)
