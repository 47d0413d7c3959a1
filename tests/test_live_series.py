"""Curves of a live view: what is kept of them, what is sent of them, and how seeds become a band. Known answers."""

import numpy as np
import pytest

from grokkit.live.decimate import (
    MAX_COLUMNS,
    decimate,
    decimate_window,
    first_stale_step,
    grid_size,
    linear_grid,
    log_grid,
)
from grokkit.live.series import Series, merge_runs


def rows(values, attempt=1):
    values = np.asarray(values, dtype=float)
    nothing = np.full(len(values), np.nan)
    return np.column_stack([values, nothing, nothing, np.full(len(values), attempt)])


def contents(series: Series) -> dict[int, float]:
    steps, values, _, _ = series.rows_from(0)
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


@pytest.mark.parametrize(("last", "size"), [(0, 1024), (1023, 1024), (1024, 2048), (2047, 2048), (200_000, 262_144)])
def test_a_grid_spans_the_power_of_two_above_the_last_step(last: int, size: int) -> None:
    assert grid_size(last) == size
    for grid in (linear_grid, log_grid):
        columns = grid(np.arange(size), size)
        assert columns[0] == 0 and columns.max() <= MAX_COLUMNS and (np.diff(columns) >= 0).all()


def test_of_a_column_the_first_minimum_and_the_first_maximum_stay() -> None:
    steps = np.arange(100_000, 100_008)  # one column of either grid: 128 steps wide, and 1.2 % of the step
    assert len(set(linear_grid(steps, 131_072))) == len(set(log_grid(steps, 131_072))) == 1
    values = np.array([3.0, 1.0, 5.0, 1.0, 5.0, 2.0, np.inf, np.nan])
    assert np.flatnonzero(decimate(steps, [values], 131_072)).tolist() == [1, 2, 7]
    low = np.array([2.0, 1, 1, 1, 1, -1, 1, 1])
    assert np.flatnonzero(decimate(steps, [values, low], 131_072)).tolist() == [0, 1, 2, 5, 7]
    assert np.flatnonzero(decimate(steps, [np.full(8, np.nan)], 131_072)).tolist() == [0, 7], "a gap stays a gap"
    assert decimate(np.array([], dtype=int), [np.array([])], 1024).tolist() == []


def test_every_minimum_and_maximum_survives_in_order_and_thinning_again_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    steps = np.sort(rng.choice(400_000, 60_000, replace=False))
    curves = [rng.standard_normal(60_000), rng.standard_cauchy(60_000)]
    curves[0][rng.random(60_000) < 0.1] = np.nan
    size = grid_size(int(steps[-1]))
    mask = decimate(steps, curves, size)
    assert 2 * MAX_COLUMNS < mask.sum() < 8 * (MAX_COLUMNS + 1)
    for grid in (linear_grid, log_grid):
        columns = grid(steps, size)
        for column in range(MAX_COLUMNS + 1):
            inside = columns == column
            for curve in curves:
                whole, left = curve[inside], curve[inside & mask]
                if np.isfinite(whole).any():
                    assert np.nanmin(whole) == np.nanmin(left) and np.nanmax(whole) == np.nanmax(left)
    assert (np.diff(steps[mask]) > 0).all()
    assert decimate(steps[mask], [curve[mask] for curve in curves], size).all()


def test_a_window_shows_every_row_where_a_chart_has_a_column_for_each() -> None:
    steps = np.arange(70_000, 70_000 + MAX_COLUMNS)
    values = np.random.default_rng(0).standard_normal(MAX_COLUMNS)
    assert decimate_window(steps, [values], 70_000, 70_000 + MAX_COLUMNS).all()
    assert decimate(steps, [values], 131_072).sum() < MAX_COLUMNS / 10
    assert (
        decimate_window(steps[:1], [values[:1]], 70_000, 70_000).all()
        and decimate_window(steps[:0], [values[:0]], 3, 5).size == 0
    )


def test_a_window_keeps_the_extremes_of_its_own_columns() -> None:
    low, high = 1 << 16, (1 << 16) + 64 * MAX_COLUMNS  # 64 steps a column
    steps = np.arange(low, high)
    values = np.zeros(len(steps))
    values[64 * 5 + 7], values[64 * 5 + 30] = 2.0, -2.0
    found = steps[decimate_window(steps, [values], low, high)]
    assert {low + 64 * 5 + 7, low + 64 * 5 + 30} <= set(found) and len(found) <= 4 * (MAX_COLUMNS + 1)


def test_what_is_sent_piece_by_piece_is_what_would_have_been_sent_at_once() -> None:
    rng = np.random.default_rng(1)
    series, size, seen = Series(), grid_size(50_000), -1
    page = np.empty((2, 0))
    for tick in range(1, 61):
        first = int(rng.integers(0, 48_000)) if tick % 7 == 0 else (series.last[0] + 1 if len(series) else 0)
        steps = np.arange(first, min(first + int(rng.integers(1, 2000)), 50_000))
        series.extend(steps, rows(rng.standard_normal(len(steps)), attempt=tick), tick)
        since = series.changed_since(seen)
        if rng.random() < 0.6 and since is not None:
            changed, needed = first_stale_step(series.find_previous(since), size)
            x, y, _, _ = series.rows_from(needed)
            mask = decimate(x, [y], size) & (x >= changed)
            page = np.hstack([page[:, page[0] < changed], [x[mask], y[mask]]])
            seen = tick
            x, y, _, _ = series.rows_from(0)
            mask = decimate(x, [y], size)
            assert np.array_equal(page, [x[mask], y[mask]])


def test_an_appended_row_reaches_back_by_one_column_only() -> None:
    changed, needed = first_stale_step(200_000, grid_size(200_000))
    assert 200_000 * 0.97 < needed <= changed <= 200_000
    assert first_stale_step(0, 1024) == (0, 0)


def test_of_a_repeated_step_the_newest_attempt_counts_whichever_comes_last() -> None:
    series = Series()
    series.extend([0, 10, 20, 30], rows([0, 1, 2, 3]), 1)
    series.extend([20, 30, 40], rows([22, 33, 44], attempt=2), 2)
    assert contents(series) == {0: 0, 10: 1, 20: 22, 30: 33, 40: 44}
    series.extend([20, 10], rows([-1, -1]), 3)
    assert contents(series) == {0: 0, 10: -1, 20: 22, 30: 33, 40: 44}, "of equal attempts the later line counts"
    series.extend([5, 5], rows([6, 7], attempt=2), 4)
    assert contents(series)[5] == 7 and series.last == (40, 44)


def test_the_journal_says_from_where_on_a_series_has_changed() -> None:
    series = Series()
    assert series.changed_since(-1) is None
    series.extend([0, 10], rows([0, 0]), 1)
    series.extend([20], rows([0]), 2)
    series.extend([30], rows([0]), 5)
    assert [series.changed_since(tick) for tick in (0, 1, 2, 4, 5)] == [0, 20, 30, 30, None]
    series.extend([10], rows([0], attempt=2), 6)
    assert [series.changed_since(tick) for tick in (0, 1, 2, 5, 6)] == [0, 10, 10, 10, None]


def test_many_rows_one_by_one_are_all_there() -> None:
    series = Series()
    for step in range(1000):
        series.extend([step], rows([2.0 * step]), step)
    assert contents(series) == {step: 2.0 * step for step in range(1000)}


NAN = np.nan


def curve(steps, values):
    return np.array(steps), np.array(values, dtype=float), np.full(len(steps), NAN), np.full(len(steps), NAN)


def test_runs_become_mean_minimum_and_maximum() -> None:
    (steps, mean, low, high), count = merge_runs([curve([0, 1], [1, 4]), curve([0, 1], [2, 3]), curve([], [])])
    assert steps.tolist() == [0, 1] and count.tolist() == [2, 2]
    np.testing.assert_array_equal([mean, low, high], [[1.5, 3.5], [1, 3], [2, 4]])
    alone = np.array([3]), np.array([0.5]), np.array([0.4]), np.array([0.6])
    found, count = merge_runs([alone])
    assert [part.tolist() for part in found] == [[3], [0.5], [0.4], [0.6]] and count.tolist() == [1]
    assert merge_runs([curve([], []), curve([], [])])[0][0].tolist() == []
    assert merge_runs([curve([0], [1e308])] * 3)[0][1] == pytest.approx(1e308)


def test_a_mean_is_over_the_same_runs_until_one_of_them_ends() -> None:
    members = [curve([0, 1, 2, 3, 4], [1, 99, 2, 3, 4]), curve([0, 2, 3], [3, 6, 5]), curve([0, 2], [5, 1])]
    (steps, mean, low, high), count = merge_runs(members)
    assert steps.tolist() == [0, 2, 3, 4] and count.tolist() == [3, 3, 2, 1], "at step 1 two runs have no value"
    np.testing.assert_allclose([mean, low, high], [[3, 3, 4, 4], [1, 1, 3, 4], [5, 6, 5, 4]])


def test_a_value_that_is_not_finite_is_a_gap_and_ends_its_run_if_no_other_follows() -> None:
    members = [curve([0, 1, 2, 3], [-np.inf, 1, NAN, NAN]), curve([0, 1, 2, 3], [1, 3, 5, np.inf])]
    (steps, mean, low, high), count = merge_runs(members)
    assert steps.tolist() == [0, 1, 2, 3] and count.tolist() == [0, 2, 1, 0]
    np.testing.assert_array_equal([mean, low, high], [[NAN, 2, 5, NAN], [NAN, 1, 5, NAN], [NAN, 3, 5, NAN]])


def test_the_newest_row_is_kept_though_it_is_no_extreme() -> None:
    steps = np.arange(100_000, 100_008)  # of one column
    values = np.array([3.0, 1.0, 5.0, 2.0, 2.0, 2.0, 2.0, 4.0])
    assert np.flatnonzero(decimate(steps, [values], 131_072)).tolist() == [1, 2, 7]
    assert decimate_window(steps, [values], 0, 131_072)[-1]
