"""LC-hold and the LC-velocity servo as state machines: every learning rate below was listed by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from grokkit import policies
from grokkit.errors import UsageError
from grokkit.policies.peak import PeakRule
from grokkit.policies.simulate import simulate

FLOOR = 1e-4
UP = [1.0, 2.0, 3.0, 4.0, 5.0, 4.5, 4.0]
"""One a step, from step 1 on: with patience 2 and a twentieth of the range, 0.2, the peak is declared at step 7."""
FAST = {"warmup": 0.0, "min_stable": 0.0, "patience": 2}


def _probes(later, side: str) -> list[dict[str, float]]:
    """The rise and the peak, then (reading, slope) of each probe in MIGRATE."""
    return [{"log_density": value} for value in UP] + [
        {"log_density": value, f"log_density_slope{side}": slope} for value, slope in later
    ]


def _anneal(level: float, length: int, total: int) -> list[float]:
    return [level * (FLOOR + (1 - FLOOR) * (1 - k / length)) for k in range(total)]


HELD = [
    (3.8, -0.1),  # step 8: surely falling
    (3.6, 0.1),
    (3.5, 0.2),  # 9, 10: twice not: halved
    (3.5, 0.3),  # 11: cooldown
    (3.4, 0.1),
    (3.9, 0.1),  # 12: once not; 13: rose by 0.5 from 3.4: given back
    (3.9, 0.1),  # 14: cooldown
    (3.9, 0.0),
    (3.9, 0.1),  # 15, 16: an upper end of 0 is not below it: halved for the second and last time
    (3.9, 0.1),
    (3.9, 0.1),
    (3.9, 0.1),
    (9.0, 0.1),
    (9.0, 0.1),  # cooldown; no third time; a second rise gives nothing
]


def test_lc_hold_halves_gives_back_once_and_anneals_from_where_it_is():
    policy = policies.create("lc_hold", **FAST, flat=2, cooldown=1, most=2)
    rates, decisions = simulate(policy, _probes(HELD, "_high"), 40)
    expected = [1.0] * 10 + [0.5] * 3 + [1.0] * 3 + [0.5] * 16 + _anneal(0.5, 8, 8)
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    assert [step for step, _ in decisions] == [7, 10, 13, 16, 32]
    assert "log_density peaked: it rose from 1 to 5" in decisions[0][1]
    assert decisions[1][1] == (
        "log_density did not fall significantly at 2 probes in a row (upper end of its slope 0.2 per unit of log "
        "step): level 0.5, lowered 1 of at most 2 times"
    )
    assert "rose from 3.4 to 3.9, by more than 0.2: one reduction is undone, level 1" in decisions[2][1]
    assert "the last fall starts at the deadline, 8 updates before the end at 40, at 0.5 of the base" in decisions[4][1]


@pytest.mark.parametrize("name", ["lc_wsd", "lc_hold", "lc_servo"])
def test_no_peak_is_declared_in_the_warmup_so_that_the_rate_never_jumps(name):
    policy = policies.create(name, warmup=0.5, min_stable=0.0, patience=1)
    rates, decisions = simulate(policy, _probes([(3.0, -1.0)] * 30, ""), 40)
    np.testing.assert_allclose(rates[:20], (np.arange(20) + 1) / 20)
    assert decisions[0][0] == 20 and "peaked" in decisions[0][1]


HALVED = [(3.5, 0.1), (3.4, 0.1)]
"""Steps 8 and 9 with `flat=2`: halved at 9, where the reading is 3.4; `delta` is 0.2, a twentieth of 1 to 5."""


@pytest.mark.parametrize(
    ("later", "given_back"),
    [
        ([(3.55, -0.1), (3.61, -0.1)], [11]),  # by 0.15, then by 0.21 from the lowest since the move
        ([(3.0, -0.1), (3.15, -0.1), (3.25, -0.1)], [12]),  # the lowest is that after the move
        ([(3.5, -0.1)] * 4, []),
    ],
)
def test_lc_hold_gives_back_after_a_rise_above_the_lowest_since_the_move(later, given_back):
    policy = policies.create("lc_hold", **FAST, flat=2, cooldown=0)
    decisions = simulate(policy, _probes([*HALVED, *later], "_high"), 60).decisions
    assert [step for step, text in decisions if "is undone" in text] == given_back


def test_lc_hold_forgets_the_lowest_before_a_move():
    # a low of 3.0 at step 8, halved at 9 at a reading of 3.3: 3.45 is not yet a rise, 3.55 is
    policy = policies.create("lc_hold", **FAST, flat=2, cooldown=0)
    told = simulate(policy, _probes([(3.0, 0.1), (3.3, 0.1), (3.45, -0.1), (3.55, -0.1)], "_high"), 60).decisions
    assert [step for step, text in told if "is undone" in text] == [11]


def test_lc_hold_gives_nothing_back_that_it_did_not_take():
    rising = [(3.0, -0.1), (3.9, -0.1), (4.8, -0.1)]
    assert simulate(policies.create("lc_hold", **FAST), _probes(rising, "_high"), 40).rates[:32].tolist() == [1.0] * 32


def test_lc_hold_keeps_the_rate_while_the_fall_is_sure():
    falling = [(4 - k / 10, -0.01) for k in range(20)]
    rates = simulate(policies.create("lc_hold", **FAST, flat=1), _probes(falling, "_high"), 40).rates
    np.testing.assert_allclose(rates, [1.0] * 32 + _anneal(1.0, 8, 8), rtol=1e-12)


def test_lc_hold_counts_probes_in_a_row():
    mixed = [(3.0, 0.1), (3.0, -0.1)] * 8
    policy = policies.create("lc_hold", **FAST, flat=2, cooldown=0)
    assert simulate(policy, _probes(mixed, "_high"), 30).rates[:24].tolist() == [1.0] * 24


@pytest.mark.parametrize(("name", "side"), [("lc_hold", "_high"), ("lc_servo", "")])
def test_a_missing_slope_decides_nothing_and_is_counted(name, side):
    policy = policies.create(name, **FAST)
    lost = [{"log_density": 3.0}, {"log_density": 3.0, f"log_density_slope{side}": math.nan}] * 8
    rates, decisions = simulate(policy, [*_probes([], side), *lost], 30)
    assert rates[:24].tolist() == [1.0] * 24 and [step for step, _ in decisions] == [7, 24]
    state = policy.init()
    for step, news in enumerate([*_probes([], side), *lost], start=1):
        state = policy.update(policies.Observation(step, 100, 1.0, news), state).state
    assert state["unsloped"] == 16


STEERED = [
    (3.0, -1.0),
    (3.0, -2.0),
    (3.0, -9.0),  # steps 8 to 10: the target is the median speed, 2
    (3.0, -1.0),  # 11: half the speed, e = 1/2
    (3.0, -1.9),  # 12: e = 1/20, in the dead band
    (3.0, -10.0),  # 13: e = -4, taken as -1
    (3.0, 5.0),  # 14: rising, e = 7/2, taken as 1
]


def test_lc_servo_multiplies_by_exp_of_the_error():
    policy = policies.create("lc_servo", **FAST, aim=3, max_scale=2.0)
    rates, decisions = simulate(policy, _probes(STEERED, ""), 40)
    levels = [1.0] * 11 + [math.exp(0.05)] * 2 + [math.exp(-0.05)] + [math.exp(0.05)] * 18
    np.testing.assert_allclose(rates, levels + _anneal(math.exp(0.05), 8, 8), rtol=1e-12)
    assert [step for step, _ in decisions] == [7, 10, 11, 13, 14, 32]
    assert decisions[1][1] == "log_density falls by 2 per unit of log step, the median of 3 probes: this is the target"
    assert decisions[2][1] == "log_density falls by 1 per unit of log step, slower than 2: level 1 to 1.05"


def test_lc_servo_stays_between_its_bounds():
    policy = policies.create("lc_servo", **FAST, aim=1, min_scale=0.8)
    rates = simulate(policy, _probes([(3.0, -1.0)] + [(3.0, -9.0)] * 5 + [(3.0, 9.0)] * 9, ""), 60).rates
    expected = (
        [1.0] * 9
        + [max(0.8, math.exp(-0.1 * k)) for k in range(1, 6)]
        + [min(1.0, 0.8 * math.exp(0.1 * k)) for k in range(1, 10)]
    )
    np.testing.assert_allclose(rates[:23], expected, rtol=1e-12)


def test_lc_servo_without_a_fall_to_hold_keeps_the_rate():
    policy = policies.create("lc_servo", **FAST, aim=1)
    rates, decisions = simulate(policy, _probes([(3.0, 0.0)] + [(3.0, -9.0)] * 9, ""), 40)
    assert rates[:32].tolist() == [1.0] * 32 and "not above 0, so the rate is kept" in decisions[1][1]


@pytest.mark.parametrize(("name", "twin"), [("lc_hold", "linear"), ("lc_servo", "linear"), ("lc_wsd", "1-sqrt")])
def test_a_rising_a_flat_and_a_silent_signal_reach_the_deadline(name, twin):
    """As with BatchNorm, where the fall may be absent: the rates are those of the schedule without a signal."""
    schedule = simulate(policies.create("wsd", shape=twin), [], 200).rates.tolist()
    noise = np.random.default_rng(0).normal(scale=0.05, size=200)
    for values in ([], np.linspace(0, 5, 200), np.full(200, 3.0), 3 + noise):
        news = [
            {"log_density": v, "log_density_se": 0.1, "log_density_slope": 0.3, "log_density_slope_high": 0.5}
            for v in values
        ]
        rates, decisions = simulate(policies.create(name), news, 200)
        assert rates.tolist() == schedule
        assert [step for step, _ in decisions] == [2, 160] and "without a" in decisions[1][1]


@pytest.mark.parametrize("name", ["lc_hold", "lc_servo", "lc_wsd"])
def test_a_planted_rise_and_fall_is_declared_at_the_hand_computed_step(name):
    # Probes every 10 updates: delta is a twentieth of the range up to then, 0.2; 4.5, 4.0 and 3.5 at 60, 70 and 80.
    news = [1.0, 2.0, 3.0, 4.0, 5.0, 4.5, 4.0, 3.5]
    decisions = simulate(policies.create(name), news, 400, every=10).decisions
    assert [step for step, _ in decisions][:2] == [4, 80] and "peaked" in decisions[1][1]


@pytest.mark.parametrize("name", ["lc_hold", "lc_servo", "lc_wsd"])
def test_probes_below_the_peak_count_in_a_row(name):
    # twice below the peak and back within delta of it, again and again: patience is 3
    news = [1.0, 2.0, 3.0, 4.0, 5.0, *[4.0, 4.0, 4.9] * 5]
    decisions = simulate(policies.create(name), news, 400, every=10).decisions
    assert [step for step, _ in decisions] == [4, 320]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("lc_hold", {"flat": 0}),
        ("lc_hold", {"factor": 1e-3}),
        ("lc_hold", {"most": 101}),
        ("lc_hold", {"cooldown": -1}),
        ("lc_hold", {"patience": 0}),
        ("lc_hold", {"decay_share": 2}),
        ("lc_servo", {"gain": 0.2}),
        ("lc_servo", {"deadband": -0.1}),
        ("lc_servo", {"aim": 0}),
        ("lc_servo", {"min_scale": 0.0}),
        ("lc_servo", {"max_scale": 0.5}),
        ("step", {"milestones": (0.5, 1.5)}),
        ("step", {"milestones": (0.5, 0.2)}),
        ("step", {"milestones": 0.5}),
        ("step", {"milestones": (0.1,) * 21}),
        ("step", {"factor": 0}),
        ("greedy", {"factor": 1.0}),
        ("greedy", {"patience": -1}),
        ("greedy", {"window": 0}),
        ("greedy", {"max_scale": 0.1}),
        ("greedy", {"reading": ""}),
        ("greedy", {"threshold": -1}),
    ],
)
def test_a_parameter_out_of_range_is_named_with_what_is_allowed(name, wrong):
    with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`.* must be .*got"):
        policies.create(name, **wrong)


STANDARD_ERROR = 0.035
"""Of the log density over the 128 points of the default signal, in a net of this size on these images."""
BATCHNORM = Path(__file__).resolve().parents[1] / "artifacts" / "cifar10_small" / "table.csv"


@pytest.mark.parametrize("name", ["lc_hold", "lc_servo", "lc_wsd"])
def test_on_what_nets_with_batchnorm_were_seen_to_do_each_policy_is_its_deadline_schedule(name):
    rows = pd.read_csv(BATCHNORM).query("measure == 'local_complexity' and layer == 'total' and probe_set == 'train'")
    rows = rows[rows["run"].str.contains("/batchnorm-s") & (rows["radius"] == 0.05)].sort_values("step")
    assert rows["run"].nunique() == 3
    for _, run in rows.groupby("run"):
        trend = np.gradient(np.log(run["value"]), np.log1p(run["step"]))
        told = zip(run["step"], np.log(run["value"]), trend, strict=True)
        news = [
            (
                max(1, step),
                {
                    "log_density": value,
                    "log_density_se": STANDARD_ERROR,
                    "log_density_slope": t,
                    "log_density_slope_high": t + 0.05,
                },
            )
            for step, value, t in told
        ]
        policy = policies.create("yoked", policy={"name": name, "shape": "linear"}, news=news)
        rates, decisions = simulate(policy, [], 8000)
        assert rates.tolist() == simulate(policies.create("wsd", shape="linear"), [], 8000).rates.tolist()
        assert "without a peak in" in decisions[-1][1] and decisions[-1][0] == 6400


def test_a_planted_signal_has_the_shape_that_was_planted():
    # trough 1 at the 2nd reading, peak 3 at the 4th; with an error of 0.1 a change is 0.3
    news = [(k, {"log_density": value, "log_density_se": 0.1}) for k, value in enumerate([2, 1, 2, 3, 2, 1.5, 0, 1])]
    found = PeakRule().extent(news, 10)
    assert found == {"rise": pytest.approx(2 / 0.3), "fall": pytest.approx(3 / 0.3), "declared": 0.6}
    assert math.isnan(PeakRule().extent(news[:5], 10)["declared"])
    assert PeakRule().extent([], 10)["rise"] == 0.0
