"""A PolicyLR that listens, alone and among torch's schedulers, resumed at each of 200 steps: the rates to the bit."""

import io
import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from grokkit import policies
from grokkit.optim.policy_lr import PolicyLR

STEPS = 200


def news(step: int) -> dict[str, float] | None:
    """A log density that rises until step 60 and falls from there, every third step, with a hole."""
    if step % 3 or step in (30, 33):
        return None
    return {"log_density": 2.0 - abs(step - 60) / 30 + 0.01 * math.sin(step), "log_density_se": 0.02}


def listening(optimizer: Optimizer) -> PolicyLR:
    """Its decay begins soon after the peak and takes 40 updates."""
    policy = policies.create("lc_wsd", warmup=0.05, decay_share=0.2, hold=0.05, min_stable=0.0)
    return PolicyLR(optimizer, policy, STEPS)


def sequence(*members: Callable, milestones: tuple[int, ...]) -> Callable:
    return lambda o: lr_scheduler.SequentialLR(o, [member(o) for member in members], list(milestones))


def chain(*members: Callable) -> Callable:
    def made(o: Optimizer):
        chained = lr_scheduler.ChainedScheduler([member(o) for member in members], optimizer=o)
        o.step()  # torch warns of any chain that begins a sequence before the first update
        return chained

    return made


def linear(o):
    return lr_scheduler.LinearLR(o, 0.1, total_iters=25)


def exponential(o):
    return lr_scheduler.ExponentialLR(o, 0.99)


def annealing(o):
    return lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=1e-5)


def by_lambda(o):
    return lr_scheduler.LambdaLR(o, lambda done: 1 / (1 + done))


def by_factor(o):
    return lr_scheduler.MultiplicativeLR(o, lambda done: 0.98 if done % 2 else 1.0)


def averaging(o):
    return SWALR(o, swa_lr=0.004, anneal_epochs=7)


ARRANGEMENTS: dict[str, Callable] = {
    "alone": listening,
    "chained before": chain(listening, exponential),
    "chained after": chain(linear, listening),
    "chained amid": chain(annealing, listening, by_factor),
    "first": sequence(listening, exponential, milestones=(150,)),
    "first of three": sequence(listening, annealing, by_lambda, milestones=(120, 160)),
    "amid": sequence(linear, listening, averaging, milestones=(25, 180)),
    "last": sequence(by_lambda, exponential, listening, milestones=(5, 12)),
    "a chain first": sequence(chain(listening, exponential), by_lambda, milestones=(150,)),
}


def optimizer_of(kind: str) -> Optimizer:
    """Groups with other rates: numbers, or tensors beside numbers; or AdamW with a kept decay."""
    rates: list[float | torch.Tensor] = [0.1, 0.03, 0.007]
    if kind == "tensors":
        rates[0], rates[2] = torch.tensor(0.1), torch.tensor(0.007, dtype=torch.float64)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    if kind == "fixed_decay":
        return AdamW([{**group, "fixed_decay": True} for group in groups], lr=0.1, weight_decay=0.3)
    return SGD(groups, lr=0.1)


def listeners(scheduler) -> list[PolicyLR]:
    """The policies in a scheduler, at any depth."""
    if isinstance(scheduler, PolicyLR):
        return [scheduler]
    return [found for each in getattr(scheduler, "_schedulers", []) for found in listeners(each)]


def saved(*things) -> bytes:
    file = io.BytesIO()
    torch.save([each.state_dict() for each in things], file)
    return file.getvalue()


def followed(optimizer, scheduler, start: int = 0, end: int = STEPS) -> tuple[list[list[float]], list[bytes]]:
    """Rates and kept decays of all groups at the updates from `start` to `end`, and the state before each of them."""
    path, states = [], []
    for step in range(start, end):
        if start == 0:
            states.append(saved(optimizer, scheduler))
        optimizer.step()
        path.append([float(g[key]) for g in optimizer.param_groups for key in ("lr", "weight_decay")])
        for each in listeners(scheduler):
            each.observe(news(step + 1))
        scheduler.step()
    return path, states


@pytest.mark.parametrize("kind", ["numbers", "tensors", "fixed_decay"])
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_run_resumed_at_any_step_has_the_rates_of_one_that_was_not(name: str, kind: str) -> None:
    optimizer = optimizer_of(kind)
    scheduler = ARRANGEMENTS[name](optimizer)
    path, states = followed(optimizer, scheduler)
    (listener,) = listeners(scheduler)
    decisions = listener.decisions
    assert any("peak" in each["reason"] for each in decisions), "what was planted is found"
    assert listener.scale < 0.01, "the decay falls into the run"
    for stop, state in enumerate(states):
        optimizer = optimizer_of(kind)
        scheduler = ARRANGEMENTS[name](optimizer)
        mine, theirs = torch.load(io.BytesIO(state), weights_only=True)
        # in half of the cases the other way round, which is as good
        for each, loaded in ((optimizer, mine), (scheduler, theirs))[:: 1 if stop % 2 else -1]:
            each.load_state_dict(loaded)
        end = STEPS if stop % 20 == 0 else min(stop + 8, STEPS)
        assert followed(optimizer, scheduler, stop, end)[0] == path[stop:end], stop
        assert end < STEPS or listeners(scheduler)[0].decisions == decisions


@pytest.mark.parametrize("kind", ["numbers", "tensors", "fixed_decay"])
@pytest.mark.parametrize("name", ["alone", "chained before"])
def test_a_scheduler_that_is_built_after_the_optimizer_was_loaded_does_not_break_its_rates(name, kind: str) -> None:
    optimizer = optimizer_of(kind)
    path, states = followed(optimizer, ARRANGEMENTS[name](optimizer))
    for stop in (1, 4, 50, 130):
        optimizer = optimizer_of(kind)
        mine, theirs = torch.load(io.BytesIO(states[stop]), weights_only=True)
        optimizer.load_state_dict(mine)
        scheduler = ARRANGEMENTS[name](optimizer)
        scheduler.load_state_dict(theirs)
        assert followed(optimizer, scheduler, stop)[0] == path[stop:], stop


@pytest.mark.parametrize("steps", [0, 1])
def test_a_rate_that_was_set_by_hand_stays_when_a_state_is_loaded(steps: int) -> None:
    optimizer = optimizer_of("numbers")
    scheduler = listening(optimizer)
    state, made = scheduler.state_dict(), scheduler.get_last_lr()[0]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    by_hand = made if steps else 0.5
    optimizer.param_groups[0]["lr"] = by_hand
    scheduler.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == by_hand
