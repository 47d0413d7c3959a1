"""Policies against hand-listed learning rates and against torch's own schedulers."""

import math

import numpy as np
import pytest
import torch

from grokkit import policies
from grokkit.errors import UsageError
from grokkit.policies import Observation
from grokkit.policies.simulate import simulate

FLOOR = 1e-4


def _optimizer(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def _torch_rates(optimizer, scheduler, total: int) -> list[float]:
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_is_the_base_rate_at_every_update():
    assert simulate(policies.create("constant"), [], 4, base_lr=0.3).rates.tolist() == [0.3] * 4


def test_wsd_rises_holds_and_falls_as_listed_by_hand():
    policy = policies.create("wsd", warmup=0.2, decay_share=0.4, final_scale=FLOOR)
    fall = [FLOOR + (1 - FLOOR) * (1 - math.sqrt(k / 4)) for k in range(4)]
    rates, decisions = simulate(policy, [], 10)
    np.testing.assert_allclose(rates, [0.5, 1, 1, 1, 1, 1, *fall], rtol=1e-14)
    assert decisions == [(6, "decay starts by the clock, 4 updates before the end at 10")]


def test_linear_shape_falls_by_equal_amounts():
    policy = policies.create("wsd", warmup=0, decay_share=1.0, shape="linear", final_scale=FLOOR)
    steps = np.diff(simulate(policy, [], 8).rates)
    np.testing.assert_allclose(steps, -(1 - FLOOR) / 8, rtol=1e-12)


@pytest.mark.parametrize("total", [1, 2, 7, 50])
def test_cosine_gives_torchs_rates(total):
    optimizer = _optimizer(0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=total, eta_min=0.4 * 0.01)
    ours = simulate(policies.create("cosine", final_scale=0.01), [], total, base_lr=0.4).rates
    np.testing.assert_allclose(ours, _torch_rates(optimizer, scheduler, total), rtol=0, atol=1e-12)


def test_cosine_starts_after_its_warmup():
    rates = simulate(policies.create("cosine", warmup=0.5, final_scale=FLOOR), [], 4).rates
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.0, FLOOR + (1 - FLOOR) * 0.5], rtol=1e-14)


@pytest.mark.parametrize("total", [2, 5, 10, 37, 200])
@pytest.mark.parametrize("parameters", [{}, {"pct_start": 0.0}, {"pct_start": 0.6, "div_factor": 5.0}])
def test_one_cycle_gives_torchs_rates(total, parameters):
    if parameters.get("pct_start", 0.3) * total == 1:
        pytest.skip("torch divides by zero where the rise holds exactly one update")
    optimizer = _optimizer(0.7)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.7, total_steps=total, cycle_momentum=False, **parameters
    )
    expected = _torch_rates(optimizer, _Stoppable(scheduler, total), total)
    ours = simulate(policies.create("one_cycle", **parameters), [], total, base_lr=0.7).rates
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


class _Stoppable:
    """OneCycleLR refuses to be asked after its last update."""

    def __init__(self, scheduler, total: int) -> None:
        self.scheduler, self.left = scheduler, total - 1

    def step(self) -> None:
        self.left -= 1
        if self.left >= 0:
            self.scheduler.step()


def test_one_cycle_begins_at_its_peak_where_the_rise_holds_one_update():
    assert simulate(policies.create("one_cycle", pct_start=0.5), [], 2).rates[0] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "parameters",
    [{"patience": 2}, {"patience": 0, "cooldown": 3}, {"factor": 0.5, "threshold": 0.1, "min_scale": 0.1}],
)
def test_plateau_decides_as_torchs_reduce_on_plateau(seed, parameters):
    losses = np.random.default_rng(seed).normal(size=80).cumsum() + 5
    optimizer = _optimizer(0.2)
    floor = parameters.get("min_scale", FLOOR)
    torch_parameters = {key: value for key, value in parameters.items() if key != "min_scale"}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, min_lr=0.2 * floor, eps=0, **{"patience": 10, **torch_parameters}
    )
    expected = [0.2]
    for loss in losses:
        scheduler.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    rates, decisions = simulate(policies.create("plateau", **parameters), list(losses), 81, base_lr=0.2)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    reduced = np.flatnonzero(np.diff(expected) < 0) + 1
    assert [step for step, _ in decisions] == reduced.tolist() and len(reduced)


def test_plateau_ignores_and_counts_readings_that_say_nothing():
    policy = policies.create("plateau", patience=0, reading="loss")
    state = policy.init()
    for news in ({"loss": 1.0}, {"loss": math.nan}, {"loss": math.inf}, {"other": 1.0}, {}):
        scale, state, reason = policy.update(Observation(1, 10, 1.0, news), state)
        assert (scale, reason) == (1.0, None)
    assert (state["ignored"], state["missing"], state["bad"], state["best"]) == (2, 1, 0, 1.0)


# log density at probes after 1, 2, 3, ... updates: first descent, rise from 1.0 to 5.0, fall. The range is 9.
RISE_AND_FALL = [10.0, 4.0, 1.0, 2.0, 3.5, 5.0, 4.8, 4.4, 4.3, 4.2, 4.1, 4.0]


def _lc(**parameters):
    return policies.create("lc_wsd", **{"warmup": 0.0, "min_stable": 0.0, **parameters})


def test_lc_wsd_decays_at_the_hand_computed_step_after_a_rise_and_a_fall():
    # delta = 5 % of 9 = 0.45; below 5.0 - 0.45 = 4.55 from the 8th probe on, so the third such probe is the 10th.
    rates, decisions = simulate(_lc(decay_share=0.2), RISE_AND_FALL, 40)
    fall = [FLOOR + (1 - FLOOR) * (1 - math.sqrt(k / 8)) for k in range(8)]
    np.testing.assert_allclose(rates, [1.0] * 10 + fall + [FLOOR] * 22, rtol=1e-12)
    ((step, reason),) = decisions
    assert step == 10
    assert reason == (
        "log_density peaked: it rose from 1 to 5 and was below that by more than 0.45 at the last 3 of 10 probes "
        "(now 4.2, standard error 0); decay starts 0 updates after the peak; it takes 8 updates"
    )


def test_lc_wsd_takes_the_first_local_minimum_not_the_global_one():
    # After the peak at 5 the signal falls far below its first trough; that trough must stay the reference.
    reason = simulate(_lc(), [2.0, 1.0, 5.0, 0.5, 0.2, 0.1], 40).decisions[0][1]
    assert "rose from 1 to 5" in reason


def test_lc_wsd_does_not_take_the_first_descent_for_a_peak():
    assert "without a peak" in simulate(_lc(), [10.0, 8.0, 6.0, 4.0, 2.0, 1.0, 0.5], 40).decisions[0][1]


def test_lc_wsd_waits_until_min_stable():
    assert simulate(_lc(min_stable=0.275), RISE_AND_FALL, 40).decisions[0][0] == 11


def test_lc_wsd_counts_in_probes_that_arrive_every_few_updates():
    assert simulate(_lc(), RISE_AND_FALL, 100, every=5).decisions[0][0] == 50


def test_lc_wsd_holds_after_the_peak_but_not_past_the_deadline():
    held = simulate(_lc(hold=0.1), RISE_AND_FALL, 40)
    assert [step for step, _ in held.decisions] == [10, 14]
    late = simulate(_lc(hold=0.9), RISE_AND_FALL, 40)
    assert [step for step, _ in late.decisions] == [10, 32] and "deadline" in late.decisions[1][1]


def test_lc_wsd_needs_a_fall_beyond_three_standard_errors():
    news = [{"log_density": value, "log_density_se": 0.2} for value in RISE_AND_FALL]
    # delta = 0.6: below 4.4 from the 9th probe on, so the third is the 11th.
    assert simulate(_lc(), news, 40).decisions[0][0] == 11
    news = [{"log_density": value, "log_density_se": 2.0} for value in RISE_AND_FALL]
    assert "without a peak" in simulate(_lc(), news, 40).decisions[0][1]


def test_lc_wsd_without_a_peak_gives_the_rates_of_wsd():
    for signal in ([], [3.0] * 100, list(np.linspace(0, 5, 100))):
        rates, decisions = simulate(policies.create("lc_wsd"), signal, 100)
        assert rates.tolist() == simulate(policies.create("wsd"), [], 100).rates.tolist()
        assert [step for step, _ in decisions] == [1, 80] and "deadline" in decisions[1][1]


@pytest.mark.parametrize("seed", range(20))
def test_lc_wsd_takes_noise_of_half_its_standard_error_for_neither_a_rise_nor_a_peak(seed):
    noise = np.random.default_rng(seed).normal(scale=0.05, size=200)
    news = [{"log_density": 3 + value, "log_density_se": 0.1} for value in noise]
    assert "without a peak in 160 probes" in simulate(_lc(), news, 200).decisions[0][1]


def test_lc_wsd_never_leaves_the_decay_again():
    signal = [*RISE_AND_FALL, *np.linspace(4, 50, 20)]
    assert simulate(_lc(), signal, 40).rates.tolist() == simulate(_lc(), RISE_AND_FALL, 40).rates.tolist()


def test_lc_wsd_ignores_and_counts_readings_that_say_nothing():
    holes = [value for number in RISE_AND_FALL for value in ({"log_density": math.nan}, {"log_density": number})]
    assert simulate(_lc(), holes, 80).decisions[0][0] == 20
    policy = _lc()
    state = policy.init()
    for news in ({"log_density": math.nan}, {"other": 1.0}, {}):
        state = policy.update(Observation(1, 10, 1.0, news), state).state
    assert (state["ignored"], state["missing"], state["probes"]) == (1, 1, 0)


def test_simulate_delivers_item_i_after_i_plus_one_periods():
    policy = policies.create("plateau", patience=0)
    assert simulate(policy, [1.0, 1.0], 8, every=3).rates.tolist() == pytest.approx([1] * 6 + [0.1] * 2)


@pytest.mark.parametrize("wrong", [{"total_steps": 0}, {"every": 0}, {"base_lr": 0.0}])
def test_simulate_refuses_an_empty_budget(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        simulate(policies.create("constant"), [], **{"total_steps": 5, **wrong})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("wsd", {"warmup": -0.1}),
        ("wsd", {"warmup": 0.6, "decay_share": 0.6}),
        ("wsd", {"shape": "round"}),
        ("wsd", {"final_scale": 0.0}),
        ("cosine", {"final_scale": 0.0}),
        ("cosine", {"warmup": math.nan}),
        ("one_cycle", {"div_factor": 0.5}),
        ("plateau", {"factor": 1.0}),
        ("plateau", {"patience": 1.5}),
        ("plateau", {"min_scale": 0.0}),
        ("plateau", {"reading": ""}),
        ("lc_wsd", {"patience": 0}),
        ("lc_wsd", {"hold": -1}),
        ("lc_wsd", {"reading": 3}),
        ("lc_wsd", {"decay_share": 2}),
    ],
)
def test_a_parameter_out_of_range_is_named_with_what_is_allowed(name, wrong):
    with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`.* must be .*got"):
        policies.create(name, **wrong)
