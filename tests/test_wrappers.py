"""Policies around policies, and the controls: rates listed by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from grokkit import policies
from grokkit.errors import UnknownNameError, UsageError
from grokkit.policies import Observation
from grokkit.policies.simulate import simulate

RISE_AND_FALL = [10.0, 4.0, 1.0, 2.0, 3.5, 5.0, 4.8, 4.4, 4.3, 4.2, 4.1, 4.0]
TRIGGER = {"name": "lc_wsd", "warmup": 0.0, "min_stable": 0.0}


def _steps(*milestones: float, factor: float = 0.1):
    return policies.create("step", milestones=milestones, factor=factor)


def test_a_wrapper_takes_a_policy_a_name_or_a_mapping():
    made = [policies.create("clip", policy=inner) for inner in (policies.create("wsd"), "wsd", {"name": "wsd"})]
    assert made[0] == made[1] == made[2]
    nested = policies.create("clip", policy={"name": "warmup", "policy": {"name": "wsd", "shape": "linear"}})
    assert nested.policy.policy.shape == "linear" and nested.reading is None
    assert policies.create("clip", policy="lc_hold").reading == "log_density"
    for wrong in (3, policies.Policy, {"shape": "linear"}, None):
        with pytest.raises(UsageError, match="`policy` must be"):
            policies.create("clip", policy=wrong)
    with pytest.raises(UnknownNameError, match="Did you mean 'rate_limit'"):
        policies.create("rate_limits", policy="wsd")
    assert not set(policies.names()) & set(policies.wrapper_names())


def test_clip_bounds_the_scale():
    rates = simulate(policies.create("clip", policy=_steps(0.2, 0.4), low=0.05, high=0.5), [], 10).rates
    np.testing.assert_allclose(rates, [0.5] * 2 + [0.1] * 2 + [0.05] * 6)


def test_warmup_multiplies_the_scale_and_the_inner_clock_runs_along():
    rates = simulate(policies.create("warmup", policy=_steps(0.3), share=0.4), [], 10).rates
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 0.1] + [0.1] * 6)


def test_rate_limit_follows_at_its_speed_in_both_directions():
    rates = simulate(policies.create("rate_limit", policy=_steps(0.2), factor=2.0), [], 10).rates
    np.testing.assert_allclose(rates, [1, 1, 0.5, 0.25, 0.125, 0.1, 0.1, 0.1, 0.1, 0.1])
    greedy = {"name": "greedy", "patience": 0, "factor": 0.1}
    up = simulate(policies.create("rate_limit", policy=greedy, factor=2.0), [{"train_loss": 3.0}], 6).rates
    np.testing.assert_allclose(up, [1, 2, 4, 8, 10, 10])


def test_guard_lowers_the_rate_and_leaves_the_policy_in_the_dark():
    policy = policies.create("guard", policy={"name": "plateau", "patience": 0}, freeze=2, factor=3.0)
    # three readings for a median, an explosion, two frozen ones that the plateau does not hear of, then it hears again
    losses = [1.0, 0.9, 0.8, 2.71, 5.0, 5.0, 0.7, 0.75]
    rates, decisions = simulate(policy, [{"train_loss": loss} for loss in losses], 9)
    np.testing.assert_allclose(rates, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.05])
    assert [step for step, _ in decisions] == [4, 8]
    assert "train_loss is 2.71, more than 3 times the median 0.9" in decisions[0][1]


def test_guard_answers_a_loss_that_is_not_finite_at_once_and_has_a_floor():
    policy = policies.create("guard", policy="constant", freeze=0, min_scale=0.3)
    rates, decisions = simulate(policy, [{"train_loss": math.nan}, {"train_loss": math.inf}, {"other": 1.0}], 5)
    assert rates.tolist() == [1, 0.5, 0.3, 0.3, 0.3] and "train_loss is nan, not finite" in decisions[0][1]


@pytest.mark.parametrize("losses", [[-2.0] * 6, [0.0, 0.0, 0.0, 1e-9, 1.0]])
def test_guard_makes_nothing_of_a_median_that_is_not_positive(losses):
    policy = policies.create("guard", policy="constant")
    assert simulate(policy, [{"train_loss": loss} for loss in losses], 8).rates.tolist() == [1.0] * 8


def test_guard_takes_the_median_of_its_window_alone():
    # the last three have the median 2.5: 7.0 is no explosion, 8.0 is one; all nine would have the median 1
    losses = [*[1.0] * 5, *[2.5] * 3, 7.0, 8.0]
    policy = policies.create("guard", policy="constant", window=3, factor=3.0)
    rates, decisions = simulate(policy, [{"train_loss": loss} for loss in losses], 12)
    assert [step for step, _ in decisions] == [10] and rates.tolist() == [1.0] * 10 + [0.5] * 2


def test_guard_takes_no_median_of_fewer_than_three():
    policy = policies.create("guard", policy="constant")
    assert simulate(policy, [{"train_loss": loss} for loss in (1.0, 9.0, 1.0)], 4).rates.tolist() == [1.0] * 4


def test_dry_run_logs_what_would_be_done_and_does_the_other_thing():
    policy = policies.create("dry_run", policy=_steps(0.5), instead={"name": "wsd", "warmup": 0.0, "shape": "linear"})
    rates, decisions = simulate(policy, [], 10)
    assert rates.tolist() == simulate(policies.create("wsd", warmup=0.0, shape="linear"), [], 10).rates.tolist()
    assert decisions[0] == (5, "dry run, it would take 0.1 of the base rate: milestone at 5 updates: scale 0.1")
    assert decisions[1][0] == 8 and decisions[1][1].startswith("decay starts by the clock")


def test_yoked_has_the_rates_of_the_run_whose_news_it_is_told():
    donor = simulate(policies.as_policy(TRIGGER), RISE_AND_FALL, 40, every=3)
    news = [(3 * (place + 1), {"log_density": value}) for place, value in enumerate(RISE_AND_FALL)]
    yoked = policies.create("yoked", policy=TRIGGER, news=news)
    for own in ([], [100.0 * step for step in range(40)]):
        found = simulate(yoked, own, 40)
        assert found.rates.tolist() == donor.rates.tolist() and found.decisions == donor.decisions


def test_dry_run_keeps_the_state_of_the_policy_that_sets_the_rate():
    plateau = {"name": "plateau", "patience": 1}
    losses = [{"train_loss": 1.0}] * 8
    policy = policies.create("dry_run", policy="constant", instead=plateau)
    rates = simulate(policy, losses, 9).rates.tolist()
    assert rates == simulate(policies.as_policy(plateau), losses, 9).rates.tolist() and rates[-1] < 1


def test_yoked_tells_news_of_skipped_steps_at_the_next_one():
    news = [(1, {"log_density": 1.0, "log_density_se": 0.5}), (2, {"log_density": 2.0})]
    yoked = policies.create("yoked", policy=TRIGGER, news=news)
    state = yoked.update(Observation(5, 10, 1.0, {}), yoked.init()).state
    assert state["told"] == 2 and state["inner"]["last"] == 2.0 and state["inner"]["error"] == 0.5


def test_shuffled_tells_the_same_values_in_another_order_at_the_same_steps():
    news = [(step, {"log_density": value}) for step, value in enumerate(RISE_AND_FALL, start=1)]
    orders = [policies.create("shuffled", policy=TRIGGER, news=news, seed=seed).history for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    for order in orders:
        assert [step for step, _ in order] == [step for step, _ in news]
        assert sorted(told["log_density"] for _, told in order) == sorted(RISE_AND_FALL) != RISE_AND_FALL
    assert orders[0] != tuple(news)


def test_sham_hears_nothing():
    sham = policies.create("sham", policy=TRIGGER)
    assert (
        simulate(sham, RISE_AND_FALL, 40).rates.tolist() == simulate(policies.as_policy(TRIGGER), [], 40).rates.tolist()
    )


def test_a_twin_is_the_same_policy_with_another_reading():
    twin = policies.as_policy({**TRIGGER, "reading": "log_loss"})
    heard = [{"log_loss": value, "log_density": 0.0} for value in RISE_AND_FALL]
    same = simulate(policies.as_policy(TRIGGER), RISE_AND_FALL, 40)
    assert simulate(twin, heard, 40).rates.tolist() == same.rates.tolist()


def test_step_gives_the_rates_of_torch():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 8], gamma=0.1)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    np.testing.assert_allclose(simulate(_steps(0.5, 0.8), [], 10, base_lr=0.3).rates, rates, rtol=1e-12)


GREEDY = {"patience": 1, "factor": 0.5, "min_scale": 0.25, "max_scale": 4.0}


@pytest.mark.parametrize(
    ("options", "losses", "expected"),
    [
        ({}, [5, 4, 3, 2, 1], [1, 1, 2, 2, 4, 4]),
        ({}, [5, 6, 6, 6, 6, 6, 6], [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]),
        ({}, [5, 4, 9, 3, 9, 2], [1, 1, 2, 2, 2, 2, 2]),
        ({"cooldown": 1}, [5, 6, 6, 6, 6, 6], [1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
        ({"warmup": 2}, [5, 4, 3, 2, 1, 0], [1, 1, 2, 2, 2, 2, 4]),
        ({"window": 2}, [4, 4, 2, 4, 0, 0], [1, 1, 1, 1, 1, 1, 2]),
        ({"threshold": 1.5}, [5, 4, 3, 2], [1, 1, 1, 1, 1]),
        ({}, [7, 6, 5, 4, 3, 2, 1, 0], [1, 1, 2, 2, 4, 4, 4, 4, 4]),
        ({"cooldown": 1, "patience": 2}, [5, 6, 6, 6, 4, 3, 2, 1], [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 1]),
    ],
)
def test_greedy_moves_both_ways(options, losses, expected):
    policy = policies.create("greedy", **(GREEDY | options))
    rates = simulate(policy, [{"train_loss": float(loss)} for loss in losses], len(losses) + 1).rates
    assert rates.tolist() == expected


def test_news_of_another_form_or_order_are_refused():
    for wrong in ([1.0], [(1, 2.0)], [(1.5, {"a": 1.0})], [(1, {"a": "b"})], None, 3):
        with pytest.raises(UsageError, match="`news` must hold pairs"):
            policies.create("yoked", policy="lc_wsd", news=wrong)
    with pytest.raises(UsageError, match="order of their steps"):
        policies.create("yoked", policy="lc_wsd", news=[(2, {"a": 1.0}), (1, {"a": 1.0})])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("clip", {"low": 0.0}),
        ("clip", {"high": 0.0}),
        ("warmup", {"share": 2}),
        ("rate_limit", {"factor": 0.5}),
        ("guard", {"loss": ""}),
        ("guard", {"factor": 0.5}),
        ("guard", {"window": 2}),
        ("guard", {"shrink": 1.0}),
        ("guard", {"freeze": -1}),
        ("guard", {"min_scale": 0.0}),
        ("shuffled", {"seed": -1, "news": [(1, {"a": 1.0})]}),
    ],
)
def test_a_parameter_out_of_range_is_named_with_what_is_allowed(name, wrong):
    with pytest.raises(UsageError, match=f"`{next(iter(wrong))}` must be .*got"):
        policies.create(name, policy="wsd", **wrong)


def test_what_is_listened_to_is_known_through_wrappers():
    news = [(1, {"log_density": 1.0})]
    for policy, names in [
        ("cosine", set()),
        ("plateau", {"train_loss"}),
        ({"name": "lc_wsd", "reading": "log_oui"}, {"log_oui"}),
        ({"name": "clip", "policy": {"name": "warmup", "policy": "lc_hold"}}, {"log_density"}),
        ({"name": "guard", "policy": "lc_hold"}, {"log_density", "train_loss"}),
        ({"name": "dry_run", "policy": "lc_hold", "instead": "greedy"}, {"log_density", "train_loss"}),
        ({"name": "sham", "policy": "lc_hold"}, set()),
        ({"name": "yoked", "policy": "lc_hold", "news": news}, set()),
    ]:
        assert policies.get_followed_readings(policies.as_policy(policy)) == names


@pytest.mark.parametrize(
    ("has", "names"),
    [
        ({"readings": ("a", "b")}, {"a", "b"}),
        ({"readings": {"a"}, "reading": "b"}, {"a"}),
        ({"readings": 8}, set()),
        ({"readings": "ab"}, {"ab"}),
        ({"reading": None}, set()),
        ({}, set()),
    ],
)
def test_attributes_of_another_meaning_are_no_readings(has, names):
    assert policies.get_followed_readings(SimpleNamespace(**has)) == names


def test_numbers_alone_stand_for_the_one_reading_that_is_followed():
    guard = {"name": "guard", "policy": "constant", "freeze": 0}
    assert simulate(guard, [1.0, 1.0, 1.0, 9.0], np.int64(6)).rates.tolist() == [1, 1, 1, 1, 0.5, 0.5]
    assert simulate("cosine", [1.0], 4).rates.tolist() == simulate("cosine", [], 4).rates.tolist()
    with pytest.raises(
        UsageError, match=r"follows log_density, train_loss: pass mappings from name to number; got 1\.0"
    ):
        simulate(SimpleNamespace(**vars_of("guard", "lc_hold")), [1.0], 4)
    for wrong in (True, 0, "4"):
        with pytest.raises(UsageError, match="`total_steps` must be an int >= 1"):
            simulate("wsd", [], wrong)


def vars_of(wrapper: str, policy: str) -> dict:
    """A wrapper's methods and readings without the one name that it follows first."""
    made = policies.create(wrapper, policy=policy)
    return {"init": made.init, "update": made.update, "readings": made.readings}


@pytest.mark.parametrize("name", ["yoked", "shuffled"])
def test_a_twin_that_is_told_nothing_is_refused(name):
    with pytest.raises(UsageError, match=r"`news` is empty; .* is `sham`"):
        policies.create(name, policy="lc_hold", news=[])


@pytest.mark.parametrize("name", ["lc_wsd", "lc_hold", "lc_servo"])
def test_nothing_is_decided_after_the_last_update(name):
    policy = policies.create(name, warmup=0.0, decay_share=0.0)
    state = policy.init()
    for step in range(4):
        scale, state, reason = policy.update(Observation(step, 3, 1.0), state)
        assert (scale, reason) == (1.0, None)
    later = policies.create("step", milestones=(1.0,))
    assert later.update(Observation(3, 3, 1.0), {}).reason is None
    assert simulate("wsd", [], 3).rates[0] == 1.0
    with pytest.raises(UsageError, match=r"`total_steps` must be an int >= 1 \(optimizer updates\); got 10\.5"):
        simulate("wsd", [], 10.5)
