"""Paired ratios: known answers, the interval against SciPy's own test, and how often it holds."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from grokkit.analysis.paired import find_separation, paired_ratio
from grokkit.errors import UsageError


def rows_of(over: np.ndarray, under: np.ndarray) -> pd.DataFrame:
    """Tables of (seed, step) values as rows of one probe set."""
    parts = [
        {"run": f"{name}-s{seed}", "group": name, "seed": seed, "step": step, "probe_set": "train", "value": value}
        for name, table in (("a", over), ("b", under))
        for (seed, step), value in np.ndenumerate(table)
    ]
    return pd.DataFrame(parts)


def test_the_mean_and_the_interval_are_those_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    over, under = rng.lognormal(0.3, 0.2, (5, 3)), rng.lognormal(0, 0.2, (5, 3))
    found = paired_ratio(rows_of(over, under), "a", "b")
    assert found.step.tolist() == [0, 1, 2] and (found.n == 5).all()
    for step, row in enumerate(found.itertuples()):
        test = stats.ttest_rel(np.log(over[:, step]), np.log(under[:, step]))
        interval = test.confidence_interval(0.95)
        assert (np.log(row.low), np.log(row.high)) == pytest.approx((interval.low, interval.high))
        assert row.p == pytest.approx(test.pvalue)
        assert row.value == pytest.approx(stats.gmean(over[:, step] / under[:, step]))


def test_a_common_factor_is_found_exactly_and_equal_arms_are_one() -> None:
    under = np.array([[1.0, 2.0], [3.0, 5.0]])
    found = paired_ratio(rows_of(under * [1.0, 0.5], under), "a", "b")
    assert found.value.tolist() == [1.0, 0.5] and found.low.tolist() == found.high.tolist() == [1.0, 0.5]


def test_what_has_no_partner_is_left_out() -> None:
    rows = rows_of(np.ones((3, 2)), np.ones((3, 2)))
    rows.loc[0, "value"] = 0.0
    found = paired_ratio(rows[~((rows.group == "b") & (rows.seed == 1))], "a", "b")
    assert found.n.tolist() == [1, 2] and np.isnan(found.low[0])


def test_apart_from_is_the_start_of_the_last_unbroken_stretch() -> None:
    def told(low: list[float], high: list[float]) -> int | None:
        return find_separation(pd.DataFrame({"step": [0, 5, 9], "low": low, "high": high}))

    assert told([0.9, 1.1, 1.2], [1.1, 1.3, 1.4]) == 5
    assert told([0.5, 0.9, 0.5], [0.6, 1.1, 0.7]) == 9, "an interval over 1 ends the stretch before it"
    assert told([0.5, 0.5, 0.9], [0.6, 0.6, 1.1]) is None
    assert told([np.nan] * 3, [np.nan] * 3) is None


def test_a_seed_that_a_group_has_twice_is_refused() -> None:
    rows = rows_of(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(UsageError, match=r"a has several of seed 0: a-s0, copy\. Leave out all but one"):
        paired_ratio(pd.concat([rows, rows[(rows.group == "a") & (rows.seed == 0)].assign(run="copy")]), "a", "b")
