"""End points of runs and the arms of a study: answers by hand, a slow twin of the crossing, unfinished runs."""

import math

import numpy as np
import pandas as pd
import pytest

from grokkit.analysis.arms import BEST, add_best_baseline, default_pairs, find_best_baselines, group_arms, parse_arms
from grokkit.analysis.comparison import compare_all
from grokkit.analysis.outcomes import LARGER_IS_BETTER, compute_outcomes, find_first_crossing
from grokkit.errors import UsageError
from grokkit.names import TABLE_COLUMNS


def run_of(name: str, clean: list[float], robust: list[float], epsilon: float = 0.1, every: int = 100) -> pd.DataFrame:
    """The table of a run that recorded these numbers every so many steps, and some that must not be taken."""
    seed = int(name.split("-s")[-1].split("-")[0])
    lines = []
    for i, value in enumerate(clean):
        lines.append({"measure": "accuracy", "probe_set": "test", "step": every * i, "value": value})
        lines.append({"measure": "accuracy", "probe_set": "train", "step": every * i, "value": 0.99})
    for i, value in enumerate(robust):
        common = {"measure": "robust_accuracy", "probe_set": "test", "step": every * i, "epsilon": epsilon}
        lines.append(common | {"attack": "pgd-margin", "value": value})
        lines.append(common | {"attack": "pgd-cross_entropy", "value": 0.98})
    return pd.DataFrame([{"run": name, "seed": seed, **line} for line in lines], columns=list(TABLE_COLUMNS))


def value_of(rows: pd.DataFrame, arm: str, outcome: str) -> float:
    (value,) = rows[(rows.arm == arm) & (rows.outcome == outcome)].value
    return value


def test_names_of_runs_say_task_decay_and_arm() -> None:
    names = ["lr/digits-coupled-lc_hold-s0-ab12cd34", "lr/mnist-fixed-wsd-s12-ab12cd34", "demo/wsd-s0", "a/b-c-s1-d0"]
    table = parse_arms(pd.Series(names, index=[5, 6, 7, 8]))
    assert table.index.tolist() == [5, 6, 7, 8]
    assert table.to_numpy().tolist() == [
        ["digits", "coupled", "lc_hold"],
        ["mnist", "fixed", "wsd"],
        ["demo", "", "wsd"],
        ["b", "", "c"],
    ]


def test_families_are_a_policy_and_its_controls() -> None:
    arms = [
        "wsd",
        "lc_wsd",
        "yoked_wsd",
        "lc_hold",
        "yoked_lc_hold",
        "lc_long_hold",
        "yoked_long_hold",
        "sham",
        "cosine",
        "step_wsd",
        "deaf_lc_wsd",
    ]
    found = group_arms(arms)
    assert found.controls == {
        "lc_wsd": ["yoked_wsd", "deaf_lc_wsd"],
        "lc_hold": ["yoked_lc_hold"],
        "lc_long_hold": ["yoked_long_hold"],
    }
    assert found.others == ["wsd", "sham", "cosine", "step_wsd"]
    assert found.baselines == ["wsd", "cosine", "step_wsd"], "a schedule that ends like a policy is no control of it"


def test_usual_pairs_are_the_twin_and_the_best_baseline() -> None:
    arms = ["lc_hold", "yoked_hold", "shuffled_hold", "wsd", "cosine", "sham"]
    assert default_pairs(arms) == [("lc_hold", "yoked_hold"), ("lc_hold", BEST)]
    assert default_pairs(["wsd", "cosine"]) == [] and default_pairs(["lc_hold"]) == []


def test_the_best_baseline_is_that_of_each_outcome_and_no_control() -> None:
    clean = {"lc_hold": 0.5, "yoked_hold": 0.95, "wsd": 0.7, "cosine": 0.8, "sham": 0.95}
    robust = {"lc_hold": 0.5, "yoked_hold": 0.9, "wsd": 0.4, "cosine": 0.3, "sham": 0.9}
    runs = [run_of(f"lr/digits-fixed-{arm}-s0", [0.0, clean[arm]], [0.0, robust[arm]]) for arm in clean]
    rows = compute_outcomes(pd.concat(runs), {"digits": 0.2})
    best = find_best_baselines(rows, LARGER_IS_BETTER)
    assert best == {
        ("digits", "fixed", "test_accuracy"): "cosine",
        ("digits", "fixed", "robust_accuracy"): "wsd",
        ("digits", "fixed", "steps_to_robust"): "wsd",
    }
    both = add_best_baseline(rows, LARGER_IS_BETTER)
    assert [value_of(both, BEST, outcome) for outcome in LARGER_IS_BETTER] == pytest.approx([0.8, 0.4, 50.0])
    assert len(both) == len(rows) + 3 and find_best_baselines(both, LARGER_IS_BETTER) == best


def test_the_last_step_and_the_first_crossing_count() -> None:
    one = run_of("lr/digits-fixed-wsd-s0-aa", [0.1, 0.8, 0.7], [0.0, 0.4, 0.2])
    other = run_of("lr/digits-fixed-lc_hold-s0-bb", [0.1, 0.9, 0.9], [0.0, 0.1, 0.3])
    rows = compute_outcomes(pd.concat([one, other]), {"digits": 0.2})
    assert value_of(rows, "wsd", "test_accuracy") == 0.7 and value_of(rows, "wsd", "robust_accuracy") == 0.2
    assert value_of(rows, "wsd", "steps_to_robust") == pytest.approx(50)
    assert value_of(rows, "lc_hold", "steps_to_robust") == pytest.approx(150)
    assert not rows.censored.any() and set(rows.outcome) == set(LARGER_IS_BETTER)
    assert set(compute_outcomes(one).outcome) == {"test_accuracy", "robust_accuracy"}, "no threshold, no crossing"


def test_what_is_never_reached_has_the_budget_and_is_censored() -> None:
    rows = compute_outcomes(run_of("lr/digits-fixed-wsd-s0", [0.1] * 4, [0.0, 0.1, 0.1, 0.1]), {"digits": 0.2})
    (line,) = rows[rows.outcome == "steps_to_robust"].itertuples()
    assert line.value == 300 and line.censored


def test_an_unfinished_run_has_no_end_but_keeps_what_it_reached() -> None:
    whole = run_of("lr/digits-fixed-wsd-s0", [0.1] * 4, [0.0, 0.1, 0.1, 0.3])
    early = run_of("lr/digits-fixed-early-s0", [0.1] * 2, [0.0, 0.4])
    never = run_of("lr/digits-fixed-never-s0", [0.1] * 2, [0.0, 0.1])
    lost = run_of("lr/digits-fixed-lost-s0", [0.1] * 4, [0.0, 0.1, 0.1, np.nan])
    rows = compute_outcomes(pd.concat([whole, early, never, lost]), {"digits": 0.2})
    for arm in ("early", "never"):
        assert math.isnan(value_of(rows, arm, "test_accuracy")) and math.isnan(value_of(rows, arm, "robust_accuracy"))
    assert value_of(rows, "early", "steps_to_robust") == pytest.approx(50)
    assert math.isnan(value_of(rows, "never", "steps_to_robust"))
    assert math.isnan(value_of(rows, "lost", "steps_to_robust")), "numbers that are lost are not a failure to reach"
    longer = run_of("lr/mnist-fixed-wsd-s0", [0.1] * 9, [0.1] * 9)
    again = compute_outcomes(pd.concat([whole, longer]), {})
    assert not again.value.isna().any(), "each task has its own budget"


def test_an_arm_that_paid_for_probes_ends_earlier_and_its_steps_are_worth_more() -> None:
    whole = run_of("lr/digits-fixed-wsd-s0", [0.1] * 11, [0.0] * 10 + [0.1])
    paid = [run_of(f"lr/digits-fixed-lc_hold-s{k}", [0.5] * 11, [0.0, 0.4] + [0.4] * 9, every=95) for k in (0, 1)]
    never = run_of("lr/digits-fixed-lc_wsd-s0", [0.5] * 11, [0.0] * 11, every=90)
    stopped = run_of("lr/digits-fixed-lc_hold-s2", [0.5] * 5, [0.0] * 5, every=95)
    rows = compute_outcomes(pd.concat([whole, *paid, never, stopped]), {"digits": 0.2})
    own = rows[(rows.arm == "lc_hold") & (rows.seed < 2)]
    assert own[own.outcome == "test_accuracy"].value.tolist() == [0.5, 0.5]
    assert own[own.outcome == "steps_to_robust"].value.tolist() == pytest.approx([50.0, 50.0]), "47.5 of 950"
    assert value_of(rows, "lc_wsd", "steps_to_robust") == 1000.0, "never reached: the whole budget"
    assert rows[(rows.arm == "lc_hold") & (rows.seed == 2)].value.isna().all(), "unfinished by its own arm's end"


def test_the_crossing_is_its_slow_twin() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        steps = np.sort(rng.choice(200, 6, replace=False))
        values = rng.uniform(0, 1, 6)
        fine = np.linspace(steps[0], steps[-1], 100 * (steps[-1] - steps[0]) + 1)
        above = np.flatnonzero(np.interp(fine, steps, values) >= 0.6 - 1e-12)
        found = find_first_crossing(steps, values, 0.6)
        assert math.isnan(found) if not len(above) else abs(found - fine[above[0]]) <= 0.011


def test_the_crossing_at_the_edges() -> None:
    steps = np.array([10, 20, 30])
    assert find_first_crossing(steps, np.array([0.5, 0.0, 0.9]), 0.5) == 10
    assert find_first_crossing(steps, np.array([0.0, np.nan, 0.8]), 0.4) == 20
    assert math.isnan(find_first_crossing(steps, np.array([0.1, 0.2, np.nan]), 0.4))
    assert math.isnan(find_first_crossing(steps[:0], np.array([]), 0.4))


def test_of_several_epsilons_the_middle_one_or_the_one_asked_for() -> None:
    name = "lr/digits-fixed-wsd-s0"
    parts = [run_of(name, [], [0.0, value], epsilon) for epsilon, value in ((0.1, 0.7), (0.2, 0.5), (0.3, 0.2))]
    table = pd.concat([run_of(name, [0.1, 0.9], []), *parts])
    assert value_of(compute_outcomes(table), "wsd", "robust_accuracy") == 0.5
    assert value_of(compute_outcomes(table, epsilons={"digits": 0.3}), "wsd", "robust_accuracy") == 0.2
    with pytest.raises(UsageError, match=r"of digits must be one of 0.1, 0.2, 0.3; got 0.4"):
        compute_outcomes(table, epsilons={"digits": 0.4})


def test_two_recordings_of_a_number_are_refused() -> None:
    table = run_of("lr/digits-fixed-wsd-s0", [0.1, 0.9], [0.0, 0.5])
    with pytest.raises(UsageError, match="twice at a step"):
        compute_outcomes(pd.concat([table, table]))


def test_outcomes_are_rows_for_comparisons() -> None:
    rng = np.random.default_rng(1)
    parts = []
    for seed in range(10):
        for arm, gain in (("lc_hold", 0.2), ("yoked_hold", 0.0)):
            robust = [0.0, 0.1, 0.4 + gain + 0.05 * rng.random()]
            parts.append(run_of(f"lr/digits-fixed-{arm}-s{seed}-ab", [0.1, 0.5, 0.9], robust))
    rows = compute_outcomes(pd.concat(parts), {"digits": 0.5})
    table = compare_all(rows, [("lc_hold", "yoked_hold")], LARGER_IS_BETTER, {("digits", "test_accuracy"): 0.01})
    words = dict(zip(table.outcome, table.verdict, strict=True))
    assert words == {"test_accuracy": "equivalent", "robust_accuracy": "better", "steps_to_robust": "better"}
    assert dict(zip(table.outcome, table.censored, strict=True))["steps_to_robust"] == 10
