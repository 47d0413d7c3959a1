"""From runs to one table and back from its written form."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch

import grokkit as gk
from grokkit.analysis.csv_text import write_csv
from grokkit.analysis.derived_rows import fieller_ratio
from grokkit.analysis.tables import _set_dtypes, read_table
from grokkit.errors import DataError
from grokkit.names import TABLE_COLUMNS
from tests import live_runs
from tests.runs import SMALL

BESIDE = ("live_units", "dead_share", "local_complexity_ratio")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list:
    root = tmp_path_factory.mktemp("runs")
    return [gk.train(SMALL.replace(seed=seed), runs=root, device="cpu") for seed in (0, 1)]


def test_the_table_holds_every_number_of_every_reading(runs) -> None:
    frame = gk.table(runs)
    assert tuple(frame.columns) == TABLE_COLUMNS and set(frame.seed) == {0, 1}
    for run in runs:
        own = frame[frame.run == run.name]
        live, beside = own[own.measure == "live_units"], own[own.measure.isin(BESIDE)]
        assert len(own) == len(run.metrics) + len(beside) + sum(r.values.size for _, _, r in run.readings())
        assert len(live) == len(run.steps()) * 3 * 2 and live.value.between(0, 12).all()
        assert (own[own.measure == "local_complexity"].directions == 4).all()
        assert own[~own.measure.isin(("local_complexity", "local_complexity_ratio"))].directions.isna().all()
    identity = next(name for name in runs[0].measures() if name.startswith("local_complexity"))
    reading = runs[0].reading(identity, 11)
    rows = frame[(frame.run == runs[0].name) & (frame.measure_id == identity) & (frame.step == 11)]
    rows = rows[rows.measure == "local_complexity"]
    cell = rows[(rows.probe_set == "test") & (rows.layer == "total") & np.isclose(rows.radius, 0.5)]
    assert cell.value.item() == reading.values[1, 1, -1] and cell.n.item() == 8 and cell.low.item() <= cell.value.item()


def test_a_net_without_activations_has_a_table(tmp_path) -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))
    with gk.record(tmp_path / "linear", net, probes={each.name: each for each in live_runs.PROBES}):
        pass
    frame = gk.table(tmp_path / "linear")
    assert {"accuracy", "local_complexity"} <= set(frame.measure) and "dead_share" not in set(frame.measure)


def test_dead_shares_stand_beside_every_local_complexity(runs) -> None:
    frame = gk.table(runs[0])
    live, dead = (frame[frame.measure == name] for name in ("live_units", "dead_share"))
    assert len(dead) == len(live) * 3 // 2 and (dead.n == 8).all() and set(dead.unit) == {"share of units"}
    both = dead.merge(live, on=["step", "probe_set", "layer"], suffixes=("", "_live"))
    assert len(both) == len(live) and np.array_equal(both.value, 1 - both.value_live / 12)
    total = dead[dead.layer == "total"].set_index(["step", "probe_set"]).value
    for place, own in live.groupby(["step", "probe_set"]):
        assert total[place] == 1 - own.value.sum() / 24


def test_complexity_is_set_against_noise_at_every_radius(runs) -> None:
    frame = gk.table(runs[0])
    lc = frame.query("measure == 'local_complexity' and layer == 'total'").set_index(["step", "probe_set", "radius"])
    against = frame[frame.measure == "local_complexity_ratio"]
    assert (
        set(against.probe_set) == {"train", "test"} and set(against.unit) == {"1"} and (against.directions == 4).all()
    )
    assert len(against) == 2 * (lc.xs("random", level=1).value > 0).sum() > 0
    for row in against.itertuples():
        top, bottom = lc.loc[(row.step, row.probe_set, row.radius)], lc.loc[(row.step, "random", row.radius)]
        assert row.value == top.value / bottom.value
        assert np.isnan(row.low) or row.low <= row.value <= row.high


def _mean(values: np.ndarray) -> dict[str, float]:
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return {"value": values.mean(), "low": values.mean() - half, "high": values.mean() + half}


def test_the_interval_of_a_quotient_is_fiellers() -> None:
    exact = {"value": 2.0, "low": 2.0, "high": 2.0}
    spread = {"value": 6.0, "low": 5.0, "high": 7.0}
    assert fieller_ratio(spread, exact) == (3.0, 2.5, 3.5)
    value, low, high = fieller_ratio(exact, spread)
    assert (value, low, high) == pytest.approx((1 / 3, 2 / 7, 2 / 5)), "the inverse of the bottom's interval"
    a, b = {"value": 3.0, "low": 2.6, "high": 3.4}, {"value": 5.0, "low": 4.0, "high": 6.0}
    for bound in fieller_ratio(a, b)[1:]:
        assert (3 - bound * 5) ** 2 == pytest.approx(0.4**2 + bound**2 * 1.0**2), "its defining equation"
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert fieller_ratio(nothing, spread) == (0.0, 0.0, 0.0)
    wide, unknown = {"value": 1.0, "low": -0.1, "high": 2.1}, {"value": 1.0, "low": np.nan, "high": np.nan}
    for top, bottom in ((spread, wide), (unknown, spread), (spread, unknown)):
        assert np.isnan(fieller_ratio(top, bottom)[1:]).all()


def test_the_interval_of_a_quotient_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        _, low, high = fieller_ratio(_mean(rng.poisson(6, 60)), _mean(rng.poisson(3, 60)))
        held.append(low <= 2 <= high)
    assert 0.935 < np.mean(held) < 0.965


def test_a_written_table_reads_back_as_it_was(runs, tmp_path) -> None:
    frame = gk.table(runs)
    write_csv(frame, tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), frame, check_dtype=True)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="is not a table: its columns must be run, seed"):
        read_table(tmp_path / "other.csv")
    with pytest.raises(DataError, match="cannot be read as a table"):
        gk.figure_data([tmp_path / "none.csv"])


CELLS = [
    "=1+1",
    "+a",
    "-5",
    "@x",
    "\ta",
    "\rb",
    "'=x",
    "''-",
    "'abc",
    "NA",
    "nan",
    "",
    "007",
    "1e5",
    "None",
    "True",
    " =1",
    "a\nb",
    "a\r\nb",
    'q"q',
    "a,b",
    "ü",
    "a=1",
    "'",
]
"""Text that a spreadsheet, or whoever reads a table, could take for something else."""


@pytest.mark.parametrize("cells", [CELLS, [cell for cell in CELLS if "\r" not in cell]])
def test_text_that_a_spreadsheet_would_run_is_quoted_and_comes_back_as_it_was(tmp_path, cells) -> None:
    rows = [{"run": text, "layer": text, "measure": text, "step": n, "value": -n / 7} for n, text in enumerate(cells)]
    frame = gk.table([]).reindex(range(len(cells))).assign(**pd.DataFrame(rows)).pipe(_set_dtypes)
    write_csv(frame, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert not [row["layer"] for row in written if row["layer"][:1] in ("=", "+", "-", "@", "\t", "\r")]
    assert [float(row["value"]) for row in written] == frame["value"].tolist(), "numbers stay as they are"
    assert [row["layer"] for row in written if row["run"].startswith("'=")] == ["'=1+1"]
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), frame, check_dtype=True, check_exact=True)


def test_names_of_columns_are_quoted_too(tmp_path) -> None:
    write_csv(pd.DataFrame({"=a": [-1.5], "b": ["é"]}), tmp_path / "other.csv")
    assert (tmp_path / "other.csv").read_text() == "'=a,b\n-1.5,é\n"


def test_figure_data_brings_maps_images_and_events(runs) -> None:
    data = gk.figure_data(runs)
    values, steps = data.arrays["attributions/saliency/values"], data.arrays["attributions/saliency/steps"]
    assert values.shape == (len(runs[0].steps()), 2, 1, 8, 8) and steps.tolist() == runs[0].steps()
    assert data.arrays["attributions/saliency/images"].shape == (2, 1, 8, 8)
    assert set(data.events.kind) == {"policy"} and set(data.events.run) == {run.name for run in runs}


def test_no_runs_make_an_empty_table() -> None:
    frame = gk.table([])
    assert frame.empty and tuple(frame.columns) == TABLE_COLUMNS
    assert gk.figure_data([]).table.empty
