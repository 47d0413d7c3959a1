"""Paired comparisons: answers by hand, slow obvious twins, how often claims are false, and cases at the edge."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from grokkit.analysis.comparison import Comparison, claim, compare, compare_all, paired_differences
from grokkit.errors import UsageError
from grokkit.stats.intervals import bca_interval, t_bounds
from grokkit.stats.paired import adjust_holm, cliffs_delta, signed_rank_p


def rows_of(**arms: list[float] | np.ndarray) -> pd.DataFrame:
    """Values by seed of arms, as rows of one task, decay and outcome."""
    place = {"task": "digits", "decay": "fixed", "outcome": "accuracy"}
    lines = [place | {"arm": arm, "seed": s, "value": v} for arm, values in arms.items() for s, v in enumerate(values)]
    return pd.DataFrame(lines)


def compared(over: list[float] | np.ndarray, under: list[float] | np.ndarray, margin: float = math.nan, **options):
    return compare(paired_differences(rows_of(a=over, b=under), "a", "b"), margin, **options)


def found(n: int = 10, low: float = -1.0, high: float = 1.0, within: bool = False) -> Comparison:
    """A comparison of which only what a verdict looks at matters."""
    return Comparison(n, 0, 0, (low + high) / 2, 0, low, high, low, high, 0.01, 0, 0, within)


def test_holm_of_a_textbook_example() -> None:
    np.testing.assert_allclose(adjust_holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(adjust_holm([0.6, 0.9]), [1, 1])
    assert adjust_holm([]).shape == (0,)


def test_holm_leaves_nan_out_of_the_family() -> None:
    np.testing.assert_allclose(adjust_holm([np.nan, 0.01, 0.04, np.nan]), [np.nan, 0.02, 0.04, np.nan])
    assert np.isnan(adjust_holm([np.nan])).all()


def test_holm_is_its_slow_twin() -> None:
    """Rejected at a level exactly where every smaller p was below level / (those left)."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.uniform(0, 0.1, rng.integers(1, 8))
        for level in (0.01, 0.05, 0.2):
            rejected = np.zeros(len(p), bool)
            for left, index in zip(range(len(p), 0, -1), np.argsort(p), strict=True):
                if p[index] > level / left:
                    break
                rejected[index] = True
            assert ((adjust_holm(p) <= level) == rejected).all()


def test_five_differences_of_one_sign_have_p_one_in_sixteen() -> None:
    result = compared([2, 4, 6, 8, 10], [1, 2, 3, 4, 5], least=5)
    assert result.p == pytest.approx(0.0625)
    assert (result.n, result.mean, result.median, result.dominance) == (5, 3, 3, 1)
    assert math.isnan(compared([2, 4, 6, 8, 10], [1, 2, 3, 4, 5]).p), "fewer than ten pairs are not tested"


def test_signed_ranks_without_ties_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 10, 23):
        gaps = rng.normal(0.3, 1, n)
        assert signed_rank_p(gaps) == pytest.approx(stats.wilcoxon(gaps, method="exact").pvalue)


def test_signed_ranks_with_ties_are_counted_over_all_signs() -> None:
    rng = np.random.default_rng(2)
    for n in (2, 5, 9):
        gaps = rng.integers(-3, 4, n).astype(float)
        kept = gaps[gaps != 0]
        ranks = stats.rankdata(np.abs(kept))
        seen = abs(np.sign(kept) @ ranks)
        sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(kept))]
        assert signed_rank_p(gaps) == pytest.approx(np.mean(np.array(sums) >= seen - 1e-9))


def test_differences_equal_but_for_rounding_tie() -> None:
    gaps = np.array([0.3 - 0.2, 0.2 - 0.1, -(0.4 - 0.3), 0.1, 1e-17])
    assert len(set(np.abs(gaps))) == 4
    assert signed_rank_p(gaps) == signed_rank_p(np.array([1.0, 1, -1, 1])) == pytest.approx(10 / 16)


def test_cliffs_delta_by_hand() -> None:
    assert cliffs_delta(np.array([1, 2, 3]), np.array([2, 3, 4])) == pytest.approx(-5 / 9)
    assert cliffs_delta(np.array([5.0, 6]), np.array([1.0, 2, 3])) == 1
    result = compared([1, 2, 3], [2, 3, 4])
    assert result.cliffs_delta == pytest.approx(-5 / 9) and result.dominance == -1


def test_the_t_interval_is_that_of_scipys_paired_test() -> None:
    rng = np.random.default_rng(3)
    over, under = rng.normal(1, 1, 12), rng.normal(0, 1, 12)
    interval = stats.ttest_rel(over, under).confidence_interval(0.90)
    result = compared(over, under)
    assert (result.t_low, result.t_high) == pytest.approx((interval.low, interval.high))


def test_the_bootstrap_interval_is_scipys_and_the_same_each_time() -> None:
    gaps = np.random.default_rng(4).exponential(1, 15)
    twin = stats.bootstrap((gaps,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(9))
    interval = bca_interval(gaps, 0.95)
    assert interval == bca_interval(gaps, 0.95)
    assert interval == pytest.approx(tuple(twin.confidence_interval), abs=0.03)
    assert interval[1] - gaps.mean() > gaps.mean() - interval[0], "skewed as the data are"


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = {"bca": 0, "few": 0, "t": 0}
    for seed in range(600):
        many, few = rng.gamma(4, 1, 50), rng.normal(4, 1, 10)
        for name, (low, high) in (
            ("bca", bca_interval(many, 0.95, 1000, seed)),
            ("few", bca_interval(few, 0.95, 1000, seed)),
            ("t", t_bounds(few, 0.90)),
        ):
            held[name] += low <= 4 <= high
    assert 0.92 < held["bca"] / 600 < 0.97
    assert 0.86 < held["few"] / 600 < 0.93, "narrow at ten pairs, as the docstring says"
    assert 0.87 < held["t"] / 600 < 0.93


def test_equal_differences_are_a_point_and_equal_arms_have_p_one() -> None:
    shifted = compared([1.1, 2.1, 3.1, 4.1], [1, 2, 3, 4], margin=0.2)
    assert shifted.low == shifted.high == shifted.t_low == shifted.t_high == pytest.approx(0.1)
    assert shifted.within_margin
    same = compared(np.arange(10.0), np.arange(10.0), margin=0.1)
    assert (same.p, same.low, same.high, same.dominance) == (1, 0, 0, 0) and same.within_margin
    assert claim(same, same.p, True) == "equivalent"


def test_one_pair_has_no_interval_and_none_has_nothing() -> None:
    one = compared([2.0], [1.5], margin=9)
    assert (one.n, one.mean) == (1, 0.5) and np.isnan([one.low, one.high, one.t_low, one.t_high, one.p]).all()
    none = compared([np.nan], [1.5], margin=9)
    assert (none.n, none.dropped) == (0, 1) and np.isnan([none.mean, none.median, none.cliffs_delta]).all()
    assert not one.within_margin and not none.within_margin


def test_pairs_share_a_seed_and_nan_is_dropped_and_counted() -> None:
    rows = rows_of(a=[1, 2, np.nan, 4, 5], b=[0, 0, 0, np.nan])
    differences = paired_differences(rows, "a", "b")
    assert differences.seed.tolist() == [0, 1, 2, 3]
    assert differences.difference.tolist()[:2] == [1, 2] and differences.difference.isna().tolist()[2:] == [True] * 2
    result = compare(differences)
    assert (result.n, result.dropped, result.mean) == (2, 2, 1.5)
    (row,) = compare_all(rows, [("a", "b")], {"accuracy": True}).itertuples()
    assert (row.n, row.dropped, row.unpaired) == (2, 2, 1)


def test_pairs_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(6)
    rows = rows_of(a=rng.normal(size=10), b=rng.normal(size=10))
    shuffled = paired_differences(rows.sample(frac=1, random_state=0), "a", "b").set_index("seed").sort_index()
    own = rows.pivot(index="seed", columns="arm", values="value")
    np.testing.assert_array_equal(shuffled.difference, own.a - own.b)


def test_nothing_is_equivalent_that_was_not_seen_to_its_end() -> None:
    rows = rows_of(a=[1000.0] * 10, b=[1000.0] * 10).assign(censored=lambda rows: rows.seed == 3)
    result = compare(paired_differences(rows, "a", "b"), 50)
    assert result.censored == 2 and not result.within_margin
    assert compare(paired_differences(rows.assign(censored=False), "a", "b"), 50).within_margin


def test_equivalence_is_two_one_sided_tests_at_five_per_cent() -> None:
    rng = np.random.default_rng(7)
    told = 0
    for _ in range(100):
        gaps, margin = rng.normal(0.1, 0.5, 12), 0.35
        over = stats.ttest_1samp(gaps, -margin, alternative="greater").pvalue < 0.05
        under = stats.ttest_1samp(gaps, margin, alternative="less").pvalue < 0.05
        within = compared(gaps, np.zeros(12), margin, resamples=100).within_margin
        assert within == (over and under)
        told += within
    assert 10 < told < 90


def test_words_follow_the_first_rule_that_holds() -> None:
    up, down, near = found(low=0.5), found(low=-1, high=-0.5), found(within=True)
    assert claim(up, 0.04, True) == claim(down, 0.04, False) == "better"
    assert claim(up, 0.04, False) == claim(down, 0.04, True) == "worse"
    assert claim(up, 0.05, True) == "undecided", "Holm's p, not the test's own"
    assert claim(found(), 0.001, True) == "undecided", "the interval holds 0"
    assert claim(near, 0.5, True) == "equivalent"
    assert claim(found(low=0.1, high=0.2, within=True), 0.001, True) == "better", "sure, though within the margin"
    assert claim(found(n=9, low=0.5, within=True), 0.001, True) == "not tested"
    assert claim(up, math.nan, True) == "undecided"


def study(rng: np.random.Generator, shifts: dict[str, float], spread: float = 1.0, seeds: int = 10) -> pd.DataFrame:
    """Two tasks and two outcomes of arms that share each seed's luck and differ by these shifts."""
    parts = []
    for task, outcome in itertools.product(("digits", "mnist"), ("accuracy", "steps")):
        luck = rng.normal(0, 3, seeds)
        arms = {arm: luck + shift + rng.normal(0, spread, seeds) for arm, shift in shifts.items()}
        parts.append(rows_of(**arms).assign(task=task, outcome=outcome))
    return pd.concat(parts, ignore_index=True)


BETTER = {"accuracy": True, "steps": False}
MARGINS = {(task, outcome): 0.5 for task in ("digits", "mnist") for outcome in BETTER}


def test_a_planted_shift_is_found_and_a_planted_null_is_equivalent() -> None:
    rng = np.random.default_rng(8)
    rows = study(rng, {"lc": 2.0, "twin": 0.0, "wsd": 0.0}, spread=0.2)
    table = compare_all(rows, [("lc", "wsd"), ("twin", "wsd")], BETTER, MARGINS)
    assert len(table) == 2 * 2 * 2
    words = table.set_index(["arm", "outcome"]).verdict.groupby(level=[0, 1]).agg(set).to_dict()
    assert words == {
        ("lc", "accuracy"): {"better"},
        ("lc", "steps"): {"worse"},
        ("twin", "accuracy"): {"equivalent"},
        ("twin", "steps"): {"equivalent"},
    }
    assert compare_all(rows, [("twin", "wsd")], BETTER).within_margin.sum() == 0, "no margin, no equivalence"


def test_the_family_is_one_task_and_decay_over_all_pairs_and_outcomes() -> None:
    rows = study(np.random.default_rng(9), {"a": 0.8, "b": 0.0, "c": 0.4})
    table = compare_all(rows, [("a", "b"), ("c", "b")], BETTER)
    for _, family in table.groupby(["task", "decay"]):
        assert len(family) == 4
        np.testing.assert_allclose(family.p_holm, adjust_holm(family.p))
    twice = pd.concat([rows, rows.assign(decay="coupled")])
    np.testing.assert_allclose(
        compare_all(twice, [("a", "b")], BETTER).p_holm[:4].to_numpy(),
        compare_all(rows, [("a", "b")], BETTER).p_holm.to_numpy(),
    )


def test_a_claim_is_false_in_a_family_at_most_one_time_in_twenty() -> None:
    """Four comparisons a family, no arm different: better or worse anywhere in it is a false claim."""
    rng, families = np.random.default_rng(10), 250
    parts = [rows_of(**dict(zip("abcdefgh", rng.normal(size=(8, 10)), strict=True))) for _ in range(families)]
    rows = pd.concat([part.assign(task=f"task{i}") for i, part in enumerate(parts)], ignore_index=True)
    table = compare_all(rows, [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")], {"accuracy": True}, resamples=200)
    false = table.verdict.isin(("better", "worse")).groupby(table.task).any()
    bare = (table.p < 0.05).groupby(table.task).any()
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / families)
    assert len(false) == families and false.mean() <= allowed < bare.mean(), "and without Holm it would be more"


def test_pairs_without_a_common_seed_are_there_and_not_tested() -> None:
    rows = rows_of(a=[1, 2], b=[1, 2])
    rows.loc[rows.arm == "b", "seed"] += 5
    (row,) = compare_all(rows, [("a", "b")], {"accuracy": True}).itertuples()
    assert (row.n, row.unpaired, row.verdict) == (0, 4, "not tested")


def test_what_cannot_be_compared_is_refused() -> None:
    rows = rows_of(a=[1, 2], b=[1, 2])
    with pytest.raises(UsageError, match="expected names among a, b; got c"):
        compare_all(rows, [("a", "c")], {"accuracy": True})
    with pytest.raises(UsageError, match="missing: accuracy"):
        compare_all(rows, [("a", "b")], {})
    with pytest.raises(UsageError, match="margin must be a positive number"):
        compare_all(rows, [("a", "b")], {"accuracy": True}, {("digits", "accuracy"): 0.0})
    with pytest.raises(UsageError, match=r"with an outcome among accuracy; got \('digits', 'acuracy'\)"):
        compare_all(rows, [("a", "b")], {"accuracy": True}, {("digits", "acuracy"): 1.0})
    with pytest.raises(UsageError, match=r"seed 0 of a .* has two of accuracy"):
        paired_differences(pd.concat([rows, rows[:1]]), "a", "b")
    with pytest.raises(UsageError, match=r"missing: \['arm'\]"):
        paired_differences(rows.drop(columns="arm"), "a", "b")
