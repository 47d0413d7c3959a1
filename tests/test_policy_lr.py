"""PolicyLR as a torch scheduler: chainable, resumable, silent, and equal to the simulation."""

import copy
import io
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.optim import SGD, lr_scheduler

from grokkit import policies
from grokkit.errors import UsageError
from grokkit.optim.policy_lr import PolicyLR
from grokkit.policies.simulate import simulate
from grokkit.training.trainer import build_trainer
from tests.runs import SMALL

RISE_AND_FALL = [10.0, 4.0, 1.0, 2.0, 3.5, 5.0, 4.8, 4.4, 4.3, 4.2, 4.1, 4.0]


def _optimizer(*rates: float | torch.Tensor) -> SGD:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (0.1,)]
    return SGD(groups, lr=0.1)


def _step(optimizer, scheduler) -> list[float]:
    """One update; the rates it was done with."""
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    optimizer.step()
    scheduler.step()
    return rates


def _follow(optimizer, scheduler, signal, total: int) -> list[float]:
    """The first group's rate at every update, with item i of `signal` delivered after i + 1 updates."""
    rates = []
    for step in range(total):
        if 0 < step <= len(signal):
            scheduler.observe({"log_density": signal[step - 1]})
            scheduler.step()
        elif step:
            scheduler.step()
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
    return rates


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle", "wsd"])
def test_open_loop_rates_are_the_simulated_ones(name):
    optimizer = _optimizer(0.3)
    scheduler = PolicyLR(optimizer, name, total_steps=50)
    expected = simulate(policies.create(name), [], 50, base_lr=0.3).rates
    assert _follow(optimizer, scheduler, [], 50) == pytest.approx(expected.tolist(), rel=1e-12)


def test_closed_loop_rates_and_decisions_are_the_simulated_ones():
    policy = policies.create("lc_wsd", warmup=0.05)
    optimizer = _optimizer(0.3)
    scheduler = PolicyLR(optimizer, policy, total_steps=40)
    rates, decisions = simulate(policy, RISE_AND_FALL, 40, base_lr=0.3)
    assert _follow(optimizer, scheduler, RISE_AND_FALL, 40) == pytest.approx(rates.tolist(), rel=1e-12)
    assert [(d["step"], d["reason"]) for d in scheduler.decisions] == decisions
    assert [d["lr"] for d in scheduler.decisions] == pytest.approx([rates[step] for step, _ in decisions])


def test_a_rate_set_by_hand_is_scaled_on_not_overwritten():
    optimizer = _optimizer(0.1)
    scheduler = PolicyLR(optimizer, "wsd", total_steps=10)
    optimizer.param_groups[0]["lr"] = 0.5
    assert _step(optimizer, scheduler) == [0.5] and optimizer.param_groups[0]["lr"] == 0.5


def test_each_group_keeps_its_own_base_rate():
    optimizer = _optimizer(0.1, 0.02)
    scheduler = PolicyLR(optimizer, "cosine", total_steps=20)
    for _ in range(20):
        one, other = _step(optimizer, scheduler)
        assert one / other == pytest.approx(5.0)


def test_tensor_rates_stay_the_same_object():
    optimizer = _optimizer(torch.tensor(0.1), 0.1)
    rate = optimizer.param_groups[0]["lr"]
    scheduler = PolicyLR(optimizer, "cosine", total_steps=20)
    for _ in range(20):
        tensor, number = _step(optimizer, scheduler)
        assert tensor == pytest.approx(number, rel=1e-5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert isinstance(optimizer.param_groups[1]["lr"], float)


def test_get_lr_outside_of_a_step_is_the_present_rate():
    optimizer = _optimizer(0.1)
    scheduler = PolicyLR(optimizer, "cosine", total_steps=5)
    _step(optimizer, scheduler)
    assert scheduler.get_lr() == scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def test_news_are_kept_until_the_next_step_and_told_once():
    class Listener:
        def init(self):
            return {"heard": []}

        def update(self, observation, state):
            return policies.Decision(1.0, {"heard": [*state["heard"], dict(observation.readings)]})

    optimizer = _optimizer()
    scheduler = PolicyLR(optimizer, Listener(), total_steps=5)
    scheduler.observe({"a": 1})
    scheduler.observe(None)
    scheduler.observe({"a": torch.tensor(2.0), "b": 3})
    _step(optimizer, scheduler)
    _step(optimizer, scheduler)
    assert scheduler.state_dict()["_policy_state"]["heard"] == [{}, {"a": 2.0, "b": 3.0}, {}]


def test_the_clock_counts_updates():
    optimizer = _optimizer()
    scheduler = PolicyLR(optimizer, "cosine", total_steps=5)
    assert (scheduler.updates, scheduler.scale) == (0, 1.0)
    for done in range(1, 8):
        _step(optimizer, scheduler)
        assert scheduler.updates == done
    assert scheduler.scale == pytest.approx(1e-4)


def test_it_takes_over_inside_sequential_lr_with_its_clock_at_zero():
    optimizer = _optimizer(0.1)
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    scheduler = PolicyLR(optimizer, "cosine", total_steps=10)
    sequence = lr_scheduler.SequentialLR(optimizer, [warmup, scheduler], milestones=[4])
    rates = [_step(optimizer, sequence)[0] for _ in range(14)]
    cosine = simulate(policies.create("cosine"), [], 10, base_lr=0.1).rates
    assert rates == pytest.approx([0.01, 0.0325, 0.055, 0.0775, *cosine], rel=1e-12)


def test_it_can_come_first_in_sequential_lr():
    optimizer = _optimizer(0.1)
    scheduler = PolicyLR(optimizer, policies.create("wsd", warmup=0.5, decay_share=0.0), total_steps=4)
    last = lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)
    sequence = lr_scheduler.SequentialLR(optimizer, [scheduler, last], milestones=[4])
    rates = [_step(optimizer, sequence)[0] for _ in range(6)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_a_decision_in_sequential_lr_is_listed_once():
    optimizer = _optimizer(0.1)
    scheduler = PolicyLR(optimizer, policies.create("wsd", decay_share=1.0, warmup=0.0), total_steps=4)
    lr_scheduler.SequentialLR(optimizer, [scheduler, PolicyLR(optimizer, "constant", 4)], milestones=[4])
    assert [d["step"] for d in scheduler.decisions] == [0]


def test_a_decision_at_the_milestone_of_sequential_lr_tells_its_rate():
    optimizer = _optimizer(0.1)
    warmup = lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=3)
    scheduler = PolicyLR(optimizer, policies.create("step", milestones=(0.0, 0.5)), total_steps=4)
    sequence = lr_scheduler.SequentialLR(optimizer, [warmup, scheduler], milestones=[3])
    for _ in range(6):
        _step(optimizer, sequence)
    assert [(each["step"], each["lr"]) for each in scheduler.decisions] == [
        (0, pytest.approx(0.01)),
        (2, pytest.approx(0.001)),
    ]


def test_its_factors_multiply_in_chained_scheduler():
    optimizer = _optimizer(0.1)
    members = [PolicyLR(optimizer, "cosine", total_steps=10), lr_scheduler.ExponentialLR(optimizer, gamma=0.9)]
    chain = lr_scheduler.ChainedScheduler(members, optimizer=optimizer)
    rates = [_step(optimizer, chain)[0] for _ in range(10)]
    cosine = simulate(policies.create("cosine"), [], 10, base_lr=0.1).rates
    assert rates == pytest.approx([rate * 0.9**step for step, rate in enumerate(cosine)], rel=1e-12)


def test_sequential_lr_resumes_it_exactly_at_every_step():
    def build():
        optimizer = _optimizer(0.1)
        members = [lr_scheduler.LinearLR(optimizer, total_iters=3), PolicyLR(optimizer, "cosine", total_steps=9)]
        return optimizer, lr_scheduler.SequentialLR(optimizer, members, milestones=[3])

    optimizer, sequence = build()
    rates, states = [], []
    for _ in range(12):
        states.append(copy.deepcopy((optimizer.state_dict(), sequence.state_dict())))
        rates.append(_step(optimizer, sequence)[0])
    for stop, (optimizer_state, sequence_state) in enumerate(states):
        optimizer, sequence = build()
        optimizer.load_state_dict(optimizer_state)
        sequence.load_state_dict(sequence_state)
        assert [_step(optimizer, sequence)[0] for _ in range(stop, 12)] == rates[stop:]


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_its_state_is_plain_and_loads_with_weights_only(rate):
    optimizer = _optimizer(rate)
    scheduler = PolicyLR(optimizer, "lc_wsd", total_steps=40)
    _follow(optimizer, scheduler, RISE_AND_FALL, 20)
    scheduler.observe({"log_density": 4.0})
    state = scheduler.state_dict()
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == state


def test_the_same_policy_is_described_alike_whatever_its_numbers_are_made_of():
    class Plain:
        def init(self):
            return {}

        def update(self, observation, state):
            return policies.Decision(1.0, state)

    inside = [PolicyLR(_optimizer(), policies.create("clip", policy=Plain()), 5).state_dict() for _ in range(2)]
    assert inside[0]["policy"] == inside[1]["policy"] == "Clip(policy=Plain(), low=0.0001, high=1.0)"
    ours, theirs = (
        PolicyLR(_optimizer(), policies.create("lc_wsd", hold=hold), 5).state_dict() for hold in (0.1, np.float64(0.1))
    )
    assert ours["policy"] == theirs["policy"]


def test_a_saved_state_does_not_change_with_the_scheduler():
    optimizer = _optimizer()
    scheduler = PolicyLR(optimizer, "lc_wsd", total_steps=40)
    state = scheduler.state_dict()
    before = copy.deepcopy(state)
    _follow(optimizer, scheduler, RISE_AND_FALL, 40)
    assert state == before and scheduler.decisions


def test_it_refuses_the_state_of_another_policy_or_budget():
    state = PolicyLR(_optimizer(), "cosine", total_steps=10).state_dict()
    with pytest.raises(UsageError, match=r"policy Cosine\(.*has Constant\(\)"):
        PolicyLR(_optimizer(), "constant", total_steps=10).load_state_dict(state)
    with pytest.raises(UsageError, match="policy"):
        PolicyLR(_optimizer(), policies.create("cosine", warmup=0.1), total_steps=10).load_state_dict(state)
    with pytest.raises(UsageError, match="total_steps 10; this scheduler has 11"):
        PolicyLR(_optimizer(), "cosine", total_steps=11).load_state_dict(state)


def test_a_reading_that_is_not_finite_does_not_move_the_rate():
    optimizer = _optimizer()
    scheduler = PolicyLR(optimizer, policies.create("plateau", patience=0), total_steps=10)
    for value in (1.0, math.nan, math.inf, math.nan):
        scheduler.observe({"train_loss": value})
        _step(optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.1 and scheduler.state_dict()["_policy_state"]["ignored"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"total_steps": 2.5}, "total_steps"),
        ({"last_epoch": 3}, "load_state_dict"),
        ({"policy": 7}, "policy"),
        ({"policy": "cosin"}, "cosine"),
    ],
)
def test_wrong_arguments_are_refused_with_the_way_out(arguments, words):
    with pytest.raises(UsageError, match=words):
        PolicyLR(_optimizer(), **{"policy": "cosine", "total_steps": 10, **arguments})


@pytest.mark.parametrize("epoch", [0, 5, 0.53])
def test_it_cannot_jump_and_stays_where_it_was(epoch):
    optimizer = _optimizer()
    scheduler = PolicyLR(optimizer, "cosine", total_steps=10)
    _step(optimizer, scheduler)
    before = scheduler.state_dict()
    with pytest.raises(UsageError, match=f"jump to epoch {epoch}.*to observe"):
        scheduler.step(epoch)
    assert scheduler.state_dict() == before


@pytest.mark.parametrize("news", [0.53, {"loss": "low"}, {"loss": torch.zeros(2)}, {"loss": None}, ["loss"]])
def test_news_that_are_no_numbers_by_name_are_refused(news):
    with pytest.raises(UsageError, match="readings must be numbers by name"):
        PolicyLR(_optimizer(), "cosine", total_steps=10).observe(news)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_would_spoil_the_rates_is_refused_before_they_change(scale):
    class Broken:
        def init(self):
            return {}

        def update(self, observation, state):
            return policies.Decision(1.0 if observation.step < 2 else scale, state)

    optimizer = _optimizer()
    scheduler = PolicyLR(optimizer, Broken(), total_steps=10)
    _step(optimizer, scheduler)
    with pytest.raises(UsageError, match=rf"Broken\(\) returned {scale!r} after 2 updates"):
        _step(optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_group_whose_rate_is_zero_stays_there_and_the_others_move():
    optimizer = _optimizer(0.0, 0.1)
    scheduler = PolicyLR(optimizer, "cosine", total_steps=20)
    rates = simulate(policies.create("cosine"), [], 20, base_lr=0.1).rates
    for expected in rates:
        assert _step(optimizer, scheduler) == [0.0, pytest.approx(expected)]


@pytest.mark.parametrize("rate", [0.02, torch.tensor(0.02)])
def test_a_group_that_comes_later_follows_by_the_same_factors(rate):
    optimizer = _optimizer(0.1)
    scheduler = PolicyLR(optimizer, "cosine", total_steps=20)
    for _ in range(8):
        _step(optimizer, scheduler)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate})
    share = 0.02 / optimizer.param_groups[0]["lr"]
    for _ in range(12):
        first, late = _step(optimizer, scheduler)
        assert late / first == pytest.approx(share, rel=1e-5)
    assert len(scheduler.get_last_lr()) == 2


def test_a_group_may_come_before_the_milestone_of_sequential_lr():
    optimizer = _optimizer(0.1)
    members = [lr_scheduler.ExponentialLR(optimizer, gamma=0.5), PolicyLR(optimizer, "cosine", total_steps=10)]
    sequence = lr_scheduler.SequentialLR(optimizer, members, milestones=[4])
    _step(optimizer, sequence)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.02})
    rates = [_step(optimizer, sequence) for _ in range(8)]
    assert rates[3] == [0.1, pytest.approx(0.02 * 0.5**2)], "the late group has no base rate but the one it has"
    assert [late / first for first, late in rates[3:]] == pytest.approx([0.2 * 0.5**2] * 5)


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_a_chain_may_come_first_in_sequential_lr(warmup):
    """SequentialLR then puts the rates back and begins again without telling the chain's members."""
    chosen = [policies.create("wsd", warmup=warmup, decay_share=0.0), policies.create("cosine", warmup=warmup)]
    optimizer = _optimizer(0.1)
    chain = lr_scheduler.ChainedScheduler([PolicyLR(optimizer, policy, 10) for policy in chosen], optimizer=optimizer)
    optimizer.step()  # torch warns of any chain that begins a sequence before the first update
    sequence = lr_scheduler.SequentialLR(optimizer, [chain, lr_scheduler.ConstantLR(optimizer, 0.5)], milestones=[10])
    rates = [_step(optimizer, sequence)[0] for _ in range(10)]
    one, other = (simulate(policy, [], 10).rates for policy in chosen)
    assert rates == pytest.approx(0.1 * one * other, rel=1e-12)


def test_a_step_before_the_first_update_is_warned_of_as_by_torch():
    scheduler = PolicyLR(_optimizer(), "cosine", total_steps=10)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        scheduler.step()


def test_a_run_whose_first_update_is_skipped_is_not_warned_of():
    """The loss scaler of float16 skips it where its first factor is too large."""
    trainer = build_trainer(SMALL.replace(measures=(), attributions=()), torch.device("cpu"))
    trainer.policy.step()
    assert trainer.policy.updates == 1


def test_a_decision_tells_the_rate_that_the_group_really_has():
    optimizer = _optimizer(0.1)
    scheduler = PolicyLR(optimizer, policies.create("step", milestones=(0.5,)), total_steps=4)
    optimizer.param_groups[0]["lr"] = 0.5
    for _ in range(2):
        _step(optimizer, scheduler)
    assert [decision["lr"] for decision in scheduler.decisions] == [pytest.approx(0.05)]
    later = PolicyLR(optimizer, policies.create("step", milestones=(0.0,)), total_steps=4)
    assert later.base_lrs == [0.1], "torch's initial_lr"
    assert later.decisions[0]["lr"] == pytest.approx(0.005) == optimizer.param_groups[0]["lr"]


def test_a_name_that_was_never_heard_is_told_at_half_of_the_budget():
    policy = policies.create("guard", policy="lc_hold")
    scheduler = PolicyLR(_optimizer(), policy, total_steps=24)
    with pytest.warns(
        UserWarning, match="Guard has not observed the readings train_loss, .*Observed: log_density, loss$"
    ):
        _told(scheduler, {"loss": 1.0, "log_density": 2.0}, 12)
    resumed = PolicyLR(_optimizer(), policy, total_steps=24)
    _told(resumed, {"loss": 1.0, "log_density": 2.0}, 11)
    state = json.loads(json.dumps(resumed.state_dict()))
    again = PolicyLR(_optimizer(), policy, total_steps=24)
    again.load_state_dict(state)
    with pytest.warns(UserWarning, match="Observed: log_density, loss$"):
        _told(again, {}, 1)
    for news, total in (({}, 24), ({"train_loss": 1.0, "log_density": 2.0}, 24), ({"loss": 1.0}, 9)):
        _told(PolicyLR(_optimizer(), policy, total_steps=total), news, total)  # silence is a choice, and 9 are few


def test_what_is_observed_before_a_step_is_heard_together():
    scheduler = PolicyLR(_optimizer(), policies.create("guard", policy="lc_hold"), total_steps=6)
    for news in ({"train_loss": 3.0}, {"log_density": 2.0}, None, {"train_loss": 1.0}):
        scheduler.observe(news)
    scheduler.optimizer.step()
    scheduler.step()
    state = scheduler.state_dict()["_policy_state"]
    assert state["recent"] == [1.0] and state["inner"]["probes"] == 1


def _told(scheduler: PolicyLR, news: dict[str, float], updates: int) -> None:
    for _ in range(updates):
        scheduler.optimizer.step()
        scheduler.observe(news)
        scheduler.step()


def test_the_description_is_the_same_for_numbers_of_numpy():
    def made(one: float, two: int) -> PolicyLR:
        return PolicyLR(_optimizer(), _Described(one, two), total_steps=np.int64(4))

    made(0.5, 3).load_state_dict(made(np.float64(0.5), np.int64(3)).state_dict())
    assert "one=0.5, two=3)" in made(0.5, 3).state_dict()["policy"]


@dataclass(frozen=True)
class _Described:
    one: float
    two: int

    def init(self):
        return {}

    def update(self, observation, state):
        return policies.Decision(1.0, state)
