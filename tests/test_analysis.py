"""From runs to one table and back from its written form."""

import numpy as np
import pandas as pd
import pytest

import grokkit as gk
from grokkit.analysis.tables import read_table
from grokkit.errors import DataError
from grokkit.names import TABLE_COLUMNS
from tests.runs import SMALL


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list:
    root = tmp_path_factory.mktemp("runs")
    return [gk.train(SMALL.replace(seed=seed), runs=root, device="cpu") for seed in (0, 1)]


def test_the_table_holds_every_number_of_every_reading(runs) -> None:
    frame = gk.table(runs)
    assert tuple(frame.columns) == TABLE_COLUMNS and set(frame.seed) == {0, 1}
    for run in runs:
        own = frame[frame.run == run.name]
        live = own[own.measure == "live_units"]
        assert len(own) == len(run.metrics) + len(live) + sum(r.values.size for _, _, r in run.readings())
        assert len(live) == len(run.steps()) * 3 * 2 and live.value.between(0, 12).all()
    identity = next(name for name in runs[0].measures() if name.startswith("local_complexity"))
    reading = runs[0].reading(identity, 11)
    rows = frame[(frame.run == runs[0].name) & (frame.measure_id == identity) & (frame.step == 11)]
    cell = rows[(rows.probe_set == "test") & (rows.layer == "total") & np.isclose(rows.radius, 0.5)]
    assert cell.value.item() == reading.values[1, 1, -1] and cell.n.item() == 8 and cell.low.item() <= cell.value.item()


def test_a_written_table_reads_back_as_it_was(runs, tmp_path) -> None:
    frame = gk.table(runs)
    frame.to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path / "table.csv"), frame, check_dtype=True)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="is not a table: its columns must be run, seed"):
        read_table(tmp_path / "other.csv")
    with pytest.raises(DataError, match="cannot be read as a table"):
        gk.figure_data([tmp_path / "none.csv"])


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
