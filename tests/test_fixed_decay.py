"""`fixed_decay`: what an update takes away does not follow the schedule. Without gradients the weights are known."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim import ASGD, SGD, Adam, AdamW, RMSprop, lr_scheduler
from torch.optim.swa_utils import SWALR

import grokkit as gk
from grokkit import policies
from grokkit.config.run_config import RunConfig, spec
from grokkit.ensemble.stack import Stack, StackedUpdate
from grokkit.errors import UsageError
from grokkit.optim import decay
from grokkit.optim.build import build_optimizer
from grokkit.optim.policy_lr import PolicyLR
from grokkit.training import step
from tests.runs import SMALL

RATE, DECAY, UPDATES = 0.01, 0.5, 60
KEPT = (1 - RATE * DECAY) ** UPDATES


def weight() -> nn.Parameter:
    """One weight of 1 in double precision, whose gradient is 0."""
    made = nn.Parameter(torch.ones(1, dtype=torch.float64))
    made.grad = torch.zeros_like(made)
    return made


def optimizer_of(kind: type = AdamW, rate: float | torch.Tensor = RATE, **more):
    return kind([{"params": [weight()], "fixed_decay": True, **more}], lr=rate, weight_decay=DECAY)


def decayed(optimizer, scheduler, updates: int = UPDATES, told=None) -> tuple[float, float]:
    """The weight after these updates, and the product of 1 - lr * DECAY over the rates they were done with."""
    (parameter,) = optimizer.param_groups[0]["params"]
    coupled = 1.0
    for done in range(updates):
        coupled *= 1 - float(optimizer.param_groups[0]["lr"]) * DECAY
        optimizer.step()
        if told is not None:
            told(done + 1)
        scheduler.step()
    return parameter.item(), coupled


SCHEDULES = {
    "constant": lambda o: PolicyLR(o, "constant", UPDATES),
    "cosine": lambda o: PolicyLR(o, "cosine", UPDATES),
    "one_cycle": lambda o: PolicyLR(o, "one_cycle", UPDATES),
    "warmup": lambda o: PolicyLR(o, policies.create("wsd", warmup=0.5), UPDATES),
    "before it in a chain": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.93), PolicyLR(o, "cosine", UPDATES)]
    ),
    "after it in a chain": lambda o: lr_scheduler.ChainedScheduler(
        [PolicyLR(o, "cosine", UPDATES), lr_scheduler.ExponentialLR(o, 0.93)]
    ),
    "two in a chain": lambda o: lr_scheduler.ChainedScheduler(
        [PolicyLR(o, "cosine", UPDATES), PolicyLR(o, policies.create("wsd", warmup=0.5), UPDATES)]
    ),
    "first in a sequence": lambda o: lr_scheduler.SequentialLR(
        o, [PolicyLR(o, "cosine", 30), lr_scheduler.LinearLR(o, 0.1, total_iters=30)], [30]
    ),
    "last in a sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=30), PolicyLR(o, "cosine", 30)], [30]
    ),
    "averaging after it": lambda o: lr_scheduler.SequentialLR(
        o, [PolicyLR(o, "cosine", 30), SWALR(o, swa_lr=0.004, anneal_epochs=5)], [30]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_the_decay_of_a_fixed_group_is_that_of_the_base_rate_under_any_schedule(name: str, kind: type) -> None:
    optimizer = optimizer_of(kind)
    left, coupled = decayed(optimizer, SCHEDULES[name](optimizer))
    assert left == pytest.approx(KEPT, rel=1e-14 * UPDATES)
    assert (abs(coupled / KEPT - 1) > 0.01) == (name != "constant"), "the schedule would be seen"


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_decay_of_every_other_group_follows_the_schedule_as_torch_has_it(name: str) -> None:
    optimizer = optimizer_of(fixed_decay=False)
    left, coupled = decayed(optimizer, SCHEDULES[name](optimizer))
    assert left == pytest.approx(coupled, rel=1e-14 * UPDATES)
    assert optimizer.param_groups[0]["weight_decay"] == DECAY


def test_the_decay_is_computed_from_its_base_and_does_not_drift() -> None:
    optimizer = optimizer_of()
    scheduler = PolicyLR(optimizer, policies.create("one_cycle"), 5000)
    for _ in range(5000):
        optimizer.step()
        scheduler.step()
        group = optimizer.param_groups[0]
        assert group["lr"] * group["weight_decay"] == pytest.approx(RATE * DECAY, rel=5e-16)
    assert group["weight_decay"] > 100 and group["initial_weight_decay"] == DECAY


def test_at_the_base_rate_the_decay_is_the_very_number() -> None:
    optimizer = optimizer_of(rate=0.3)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    scheduler = PolicyLR(optimizer, "constant", 10)
    decayed(optimizer, scheduler, 10)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_a_group_that_is_fixed_stands_beside_one_that_is_not() -> None:
    fixed, free = weight(), weight()
    optimizer = AdamW(
        [{"params": [fixed], "fixed_decay": True, "lr": 0.02, "weight_decay": 0.25}, {"params": [free]}],
        lr=RATE,
        weight_decay=DECAY,
    )
    scheduler, coupled = PolicyLR(optimizer, "cosine", UPDATES), 1.0
    for _ in range(UPDATES):
        coupled *= 1 - optimizer.param_groups[1]["lr"] * DECAY
        optimizer.step()
        scheduler.step()
    assert fixed.item() == pytest.approx(KEPT, rel=1e-12) and free.item() == pytest.approx(coupled, rel=1e-12)
    assert "initial_weight_decay" not in optimizer.param_groups[1]


def test_a_rate_that_is_a_tensor_keeps_the_decay_to_its_own_rounding() -> None:
    optimizer = optimizer_of(rate=torch.tensor(RATE))
    rate = optimizer.param_groups[0]["lr"]
    left, coupled = decayed(optimizer, PolicyLR(optimizer, "cosine", UPDATES))
    assert left == pytest.approx(KEPT, rel=1e-6) and coupled > 1.1 * KEPT
    assert optimizer.param_groups[0]["lr"] is rate and type(optimizer.param_groups[0]["weight_decay"]) is float


def test_a_rate_set_by_hand_leaves_the_decay_alone() -> None:
    optimizer = optimizer_of()
    scheduler = PolicyLR(optimizer, "cosine", UPDATES)

    def by_hand(done: int) -> None:
        if done == 20:
            optimizer.param_groups[0]["lr"] = 0.2

    assert decayed(optimizer, scheduler, told=by_hand)[0] == pytest.approx(KEPT, rel=1e-12)
    optimizer.param_groups[0]["lr"] = 0.7  # after the scheduler's last word
    optimizer.step()
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx(KEPT * (1 - RATE * DECAY), rel=1e-12)


def test_at_a_rate_of_zero_nothing_decays_and_the_decay_comes_back() -> None:
    optimizer = optimizer_of()
    off = lr_scheduler.LambdaLR(optimizer, lambda done: 0.0 if 10 <= done < 20 else 1.0)
    chain = lr_scheduler.ChainedScheduler([off, PolicyLR(optimizer, "constant", UPDATES)])
    decayed(optimizer, chain, 15)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.0, DECAY)
    assert group["params"][0].item() == pytest.approx((1 - RATE * DECAY) ** 10, rel=1e-12)


@pytest.mark.parametrize("stop", [0, 1, 17, 59])
def test_a_resumed_run_keeps_the_decay_to_the_bit(stop: int) -> None:
    def build():
        optimizer = optimizer_of()
        return optimizer, PolicyLR(optimizer, policies.create("wsd", warmup=0.3), UPDATES)

    optimizer, scheduler = build()
    decayed(optimizer, scheduler, stop)
    states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    left, (parameter,) = decayed(optimizer, scheduler, UPDATES - stop)[0], optimizer.param_groups[0]["params"]
    again, rescheduled = build()
    again.load_state_dict(states[0])
    rescheduled.load_state_dict(states[1])
    with torch.no_grad():
        again.param_groups[0]["params"][0].fill_((1 - RATE * DECAY) ** stop)
    assert decayed(again, rescheduled, UPDATES - stop)[0] == pytest.approx(left, rel=1e-13)
    mine, theirs = again.param_groups[0], optimizer.param_groups[0]
    assert (mine["lr"], mine["weight_decay"]) == (theirs["lr"], theirs["weight_decay"])
    assert mine["initial_weight_decay"] == DECAY and parameter.grad is not None


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("at", ["before the scheduler's step", "after it"])
def test_a_group_that_comes_later_keeps_the_decay_that_it_came_with(tensor: bool, at: str) -> None:
    optimizer, late, rate = optimizer_of(), weight(), torch.tensor(0.02) if tensor else 0.02
    scheduler = PolicyLR(optimizer, "cosine", 2 * UPDATES)
    decayed(optimizer, scheduler, UPDATES)

    def add(done: int = 10) -> None:
        if done == 10:
            optimizer.add_param_group({"params": [late], "lr": rate, "weight_decay": 0.25, "fixed_decay": True})

    decayed(optimizer, scheduler, 10, told=add if at.startswith("before") else None)
    if at == "after it":
        add()
    decayed(optimizer, scheduler, 40)
    assert late.item() == pytest.approx((1 - RATE * DECAY) ** 40, rel=1e-6 if tensor else 1e-12)


def test_a_loss_scaler_that_skips_updates_skips_their_decay_only() -> None:
    optimizer = optimizer_of()
    (parameter,) = optimizer.param_groups[0]["params"]
    scheduler, scaler = PolicyLR(optimizer, "cosine", UPDATES), torch.amp.GradScaler("cpu")
    for done in range(UPDATES):
        parameter.grad = torch.full_like(parameter, math.inf if done % 4 == 3 else 0.0)
        scaler.scale(torch.zeros(1))
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert parameter.item() == pytest.approx((1 - RATE * DECAY) ** (UPDATES * 3 // 4), rel=1e-12)


def test_a_scheduler_that_overwrites_initial_lr_does_not_move_the_decay() -> None:
    optimizer = optimizer_of(AdamW)
    policy = PolicyLR(optimizer, "constant", 10)
    cycle = lr_scheduler.OneCycleLR(optimizer, max_lr=10 * RATE, total_steps=10, cycle_momentum=False)
    for _ in range(9):
        optimizer.step()
        policy.step()
        cycle.step()
        decay.apply_fixed_decay(optimizer)
        (group,) = optimizer.param_groups
        assert group["lr"] * group["weight_decay"] == pytest.approx(RATE * DECAY)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (Adam, {}, "Adam also scales the decay by other factors. Use AdamW"),
        (RMSprop, {}, "RMSprop also scales the decay"),
        (ASGD, {}, "ASGD also scales the decay"),
        (AdamW, {"fixed_decay": "yes"}, "group 0 must be True or False; got 'yes'"),
        (AdamW, {"fixed_weight_decay": True, "fixed_decay": False}, "Unknown key 'fixed_weight_decay' in parameter"),
        (AdamW, {"fix_decay": True, "fixed_decay": False}, "did you mean 'fixed_decay'"),
    ],
)
def test_a_decay_that_cannot_be_kept_is_refused_in_words(kind: type, more: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PolicyLR(optimizer_of(kind, **more), "cosine", 10)


def test_an_optimizer_without_decay_has_none_to_keep() -> None:
    optimizer = torch.optim.Rprop([{"params": [weight()], "fixed_decay": True}])
    with pytest.raises(UsageError, match="Rprop has no `weight_decay`"):
        PolicyLR(optimizer, "cosine", 10)


def test_a_mark_of_the_users_own_is_no_slip() -> None:
    optimizer = optimizer_of(no_decay=True, lr_decay=1, name="norms")
    PolicyLR(optimizer, "cosine", 10)
    assert "initial_weight_decay" in optimizer.param_groups[0], "and the decay is kept as asked for"


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_a_config_names_it_as_an_option_of_the_optimizer(name: str) -> None:
    chosen = spec(name, lr=0.1, weight_decay=0.3, fixed_decay=True)
    config = SMALL.replace(optimizer=chosen)
    assert RunConfig.from_toml(config.to_toml()).optimizer == chosen
    parameters = list(nn.Linear(3, 2).parameters())
    groups = build_optimizer(chosen, parameters).param_groups
    assert all(group["fixed_decay"] is True for group in groups)
    plain = build_optimizer(spec(name, lr=0.1, weight_decay=0.3), parameters).param_groups
    assert not any("fixed_decay" in group for group in plain)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (spec("sgd", lr=0.1, fixed_decay=True), "default weight decay of SGD is 0: add `weight_decay`"),
        (spec("adam", lr=0.1, weight_decay=0.1, fixed_decay=True), "Use AdamW"),
        (spec("adamw", lr=0.1, fixed_decay=1), "must be True or False; got 1"),
        (spec("adamw", lr=0.1, fix_decay=True), "no option 'fix_decay'. Did you mean 'fixed_decay'"),
    ],
)
def test_a_config_whose_decay_cannot_be_kept_is_refused(chosen, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_optimizer(chosen, [weight()])


def test_a_decay_of_zero_in_a_sweep_is_kept_too() -> None:
    assert build_optimizer(spec("sgd", lr=0.1, weight_decay=0.0, fixed_decay=True), [weight()]).param_groups


def test_muon_keeps_the_decay_of_its_vectors_and_matrices() -> None:
    bias, head = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 3))
    chosen = spec("muon", lr=0.1, sgd_momentum=0.0, vector_lr=0.5, weight_decay=0.01, fixed_decay=True)
    optimizer = build_optimizer(chosen, [bias, head])
    scheduler = PolicyLR(optimizer, "cosine", UPDATES)
    for parameter in (bias, head):
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(UPDATES):
        optimizer.step()
        scheduler.step()
    assert bias.tolist() == pytest.approx([0.99**UPDATES] * 3, rel=1e-5)
    assert head[0].tolist() == pytest.approx([0.99**UPDATES] * 3, rel=1e-5)


def test_momentum_brings_the_decay_of_earlier_updates_to_later_rates() -> None:
    """Why SGD's decay is exact without momentum only: by hand, with the kept share and the buffer of torch."""
    optimizer = optimizer_of(SGD, momentum=0.9)
    scheduler = PolicyLR(optimizer, "cosine", UPDATES)
    expected, buffer = 1.0, 0.0
    for _ in range(UPDATES):
        rate = optimizer.param_groups[0]["lr"]
        buffer = 0.9 * buffer + RATE * DECAY / rate * expected
        expected -= rate * buffer
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["params"][0].item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("parts_at", [None, 4])
def test_a_stack_decays_its_nets_as_nets_alone(parts_at: int | None) -> None:
    """`parts_at`: from this step on the rates of the nets differ, and every net has an optimizer of its own."""
    chosen = spec("adamw", lr=RATE, weight_decay=DECAY, fixed_decay=True)
    nets = [nn.Linear(2, 2).double() for _ in range(3)]
    before = copy.deepcopy([list(net.parameters()) for net in nets])
    optimizers = [build_optimizer(chosen, net.parameters()) for net in nets]
    schedulers = [PolicyLR(each, policies.create("plateau", patience=0), UPDATES) for each in optimizers]
    stack = Stack(nets, lambda logits, y: 0.0 * logits.sum())
    update = StackedUpdate(stack, chosen, optimizers)
    for done in range(1, UPDATES + 1):
        stack.backward(torch.zeros(3, 1, 2).double(), torch.zeros(3, 1).long())
        update.step([each.scale for each in schedulers], range(3))
        for place, each in enumerate(schedulers):
            alike = parts_at is None or done < parts_at
            each.observe({"train_loss": 1.0 + done % 3 if alike or place == 0 else 1.0 / done})
            each.step()
    assert schedulers[0].scale < 0.1 and (parts_at is None) == (schedulers[0].scale == schedulers[2].scale)
    for net, old in zip(nets, before, strict=True):
        for now, then in zip(net.parameters(), old, strict=True):
            assert torch.allclose(now, then * KEPT, rtol=1e-12, atol=0.0)


def test_a_graph_is_refused_and_auto_is_eager(monkeypatch) -> None:
    monkeypatch.setattr(step, "device_of", lambda _: torch.device("cuda"))
    model = nn.Linear(2, 2)
    kept, free = (AdamW([{"params": model.parameters(), "fixed_decay": on}], fused=True) for on in (True, False))
    assert step.TrainStep(model, free, nn.functional.cross_entropy, batch_size=4).execution == "graph"
    assert step.TrainStep(model, kept, nn.functional.cross_entropy, batch_size=4).execution == "eager"
    with pytest.raises(
        UsageError, match="is not possible: with `fixed_decay` the weight decay changes with every rate"
    ):
        step.TrainStep(model, kept, nn.functional.cross_entropy, batch_size=4, execution="graph")


def test_a_run_keeps_its_decay(tmp_path) -> None:
    chosen = spec("adamw", lr=0.01, weight_decay=0.3, fixed_decay=True)
    config = SMALL.replace(optimizer=chosen, policy=spec("cosine"), measures=(), attributions=())
    run = gk.train(config, runs=tmp_path, device="cpu")
    coupled = gk.train(config.replace(optimizer=spec("adamw", lr=0.01, weight_decay=0.3)), runs=tmp_path, device="cpu")
    last, other = run.load(config.steps), coupled.load(config.steps)
    assert any(not torch.equal(last[name], other[name]) for name in last)
