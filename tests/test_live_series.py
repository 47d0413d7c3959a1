"""Curves of a live view: what is kept of them, what is sent of them, and how seeds become a band. Known answers."""

import numpy as np
import pytest

from grokkit.live.decimate import COLUMNS, even, kept, logarithmic, magnified, size_for, stale_from
from grokkit.live.series import Series, band


def rows(values, attempt=1):
    values = np.asarray(values, dtype=float)
    nothing = np.full(len(values), np.nan)
    return np.column_stack([values, nothing, nothing, np.full(len(values), attempt)])


def contents(series: Series) -> dict[int, float]:
    steps, values, _, _ = series.since(0)
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


@pytest.mark.parametrize(("last", "size"), [(0, 1024), (1023, 1024), (1024, 2048), (2047, 2048), (200_000, 262_144)])
def test_a_grid_spans_the_power_of_two_above_the_last_step(last: int, size: int) -> None:
    assert size_for(last) == size
    for grid in (even, logarithmic):
        columns = grid(np.arange(size), size)
        assert columns[0] == 0 and columns.max() <= COLUMNS and (np.diff(columns) >= 0).all()


def test_of_a_column_the_first_minimum_and_the_first_maximum_stay() -> None:
    steps = np.arange(100_000, 100_008)  # one column of either grid: 128 steps wide, and 1.2 % of the step
    assert len(set(even(steps, 131_072))) == len(set(logarithmic(steps, 131_072))) == 1
    values = np.array([3.0, 1.0, 5.0, 1.0, 5.0, 2.0, np.inf, np.nan])
    assert np.flatnonzero(kept(steps, [values], 131_072)).tolist() == [1, 2]
    low = np.array([2.0, 1, 1, 1, 1, -1, 1, 1])
    assert np.flatnonzero(kept(steps, [values, low], 131_072)).tolist() == [0, 1, 2, 5]
    assert np.flatnonzero(kept(steps, [np.full(8, np.nan)], 131_072)).tolist() == [0], "a gap stays a gap"
    assert kept(np.array([], dtype=int), [np.array([])], 1024).tolist() == []


def test_every_minimum_and_maximum_survives_in_order_and_thinning_again_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    steps = np.sort(rng.choice(400_000, 60_000, replace=False))
    curves = [rng.standard_normal(60_000), rng.standard_cauchy(60_000)]
    curves[0][rng.random(60_000) < 0.1] = np.nan
    size = size_for(int(steps[-1]))
    mask = kept(steps, curves, size)
    assert 2 * COLUMNS < mask.sum() < 8 * (COLUMNS + 1)
    for grid in (even, logarithmic):
        columns = grid(steps, size)
        for column in range(COLUMNS + 1):
            inside = columns == column
            for curve in curves:
                whole, left = curve[inside], curve[inside & mask]
                if np.isfinite(whole).any():
                    assert np.nanmin(whole) == np.nanmin(left) and np.nanmax(whole) == np.nanmax(left)
    assert (np.diff(steps[mask]) > 0).all()
    assert kept(steps[mask], [curve[mask] for curve in curves], size).all()


def test_a_window_shows_every_row_where_a_chart_has_a_column_for_each() -> None:
    steps = np.arange(70_000, 70_000 + COLUMNS)
    values = np.random.default_rng(0).standard_normal(COLUMNS)
    assert magnified(steps, [values], 70_000, 70_000 + COLUMNS).all()
    assert kept(steps, [values], 131_072).sum() < COLUMNS / 10
    assert (
        magnified(steps[:1], [values[:1]], 70_000, 70_000).all() and magnified(steps[:0], [values[:0]], 3, 5).size == 0
    )


def test_a_window_keeps_the_extremes_of_its_own_columns() -> None:
    low, high = 1 << 16, (1 << 16) + 64 * COLUMNS  # 64 steps a column
    steps = np.arange(low, high)
    values = np.zeros(len(steps))
    values[64 * 5 + 7], values[64 * 5 + 30] = 2.0, -2.0
    found = steps[magnified(steps, [values], low, high)]
    assert {low + 64 * 5 + 7, low + 64 * 5 + 30} <= set(found) and len(found) <= 4 * (COLUMNS + 1)


def test_what_is_sent_piece_by_piece_is_what_would_have_been_sent_at_once() -> None:
    rng = np.random.default_rng(1)
    series, size, seen = Series(), size_for(50_000), -1
    page = np.empty((2, 0))
    for tick in range(1, 61):
        first = int(rng.integers(0, 48_000)) if tick % 7 == 0 else (series.last[0] + 1 if len(series) else 0)
        steps = np.arange(first, min(first + int(rng.integers(1, 2000)), 50_000))
        series.extend(steps, rows(rng.standard_normal(len(steps)), attempt=tick), tick)
        since = series.changed_since(seen)
        if rng.random() < 0.6 and since is not None:
            changed, needed = stale_from(since, size)
            x, y, _, _ = series.since(needed)
            mask = kept(x, [y], size) & (x >= changed)
            page = np.hstack([page[:, page[0] < changed], [x[mask], y[mask]]])
            seen = tick
            x, y, _, _ = series.since(0)
            mask = kept(x, [y], size)
            assert np.array_equal(page, [x[mask], y[mask]])


def test_an_appended_row_reaches_back_by_one_column_only() -> None:
    changed, needed = stale_from(200_000, size_for(200_000))
    assert 200_000 * 0.97 < needed <= changed <= 200_000
    assert stale_from(0, 1024) == (0, 0)


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


def test_seeds_become_mean_minimum_and_maximum_of_those_that_have_the_step() -> None:
    nan = np.nan

    def curve(steps, values):
        return np.array(steps), np.array(values, dtype=float), np.full(len(steps), nan), np.full(len(steps), nan)

    (steps, mean, low, high), count = band([curve([0, 1, 2], [-np.inf, 1, 4]), curve([0, 1], [nan, 3]), curve([], [])])
    assert steps.tolist() == [0, 1, 2] and count.tolist() == [0, 2, 1]
    np.testing.assert_array_equal([mean, low, high], [[nan, 2, 4], [nan, 1, 4], [nan, 3, 4]])
    alone = np.array([3]), np.array([0.5]), np.array([0.4]), np.array([0.6])
    found, count = band([alone])
    assert [part.tolist() for part in found] == [[3], [0.5], [0.4], [0.6]] and count.tolist() == [1]
    assert band([curve([], []), curve([], [])])[0][0].tolist() == []
