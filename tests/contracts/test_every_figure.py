"""What every registered figure promises, on made-up runs; a new file in grokkit/figures is tested here."""

import functools
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from grokkit import figures
from grokkit.errors import UsageError
from grokkit.figures.theme import COLUMN, FULL, save_figure
from grokkit.names import TABLE_COLUMNS, FigureData

made_up = runpy.run_path(str(Path(__file__).parents[1] / "test_figures.py"))


def synthetic() -> FigureData:
    """Two variants with a seed in common."""
    return made_up["synthetic"](made_up["PAIR"])


@functools.cache
def drawn(name: str) -> Figure:
    """A figure that tests only look at."""
    return figures.create(name, synthetic())


every_figure = pytest.mark.parametrize("name", figures.names())


@every_figure
def test_it_leaves_settings_pyplot_and_its_data_alone(name):
    data = synthetic()
    table, events, settings = data.table.copy(), data.events.copy(), dict(mpl.rcParams)
    figure = figures.create(name, data)
    assert isinstance(figure, Figure) and dict(mpl.rcParams) == settings and not pyplot.get_fignums()
    pd.testing.assert_frame_equal(data.table, table)
    pd.testing.assert_frame_equal(data.events, events)


@every_figure
def test_it_fits_a_column_or_the_page_and_its_print_is_legible(name):
    figure = drawn(name)
    width, height = figure.get_size_inches()
    assert width in (COLUMN, FULL) and height < 9
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_visible() and text.get_text().strip()]
    assert all(6 <= text.get_fontsize() <= 9 for text in texts)


@every_figure
def test_its_axes_have_labels_with_units_in_brackets(name):
    figure = drawn(name)
    words = [axes.get_ylabel() for axes in figure.axes] + [axes.get_xlabel() for axes in figure.axes]
    words += [text.get_text() for text in figure.texts]
    words += [word for part in (figure, *figure.subfigs) for word in (part.get_supylabel(), part.get_supxlabel())]
    words.append(figure.get_suptitle())
    assert any(axis in word for word in words for axis in ("optimizer updates", "batch size (images)"))
    assert sum("(" in word for word in words) >= 2 or "logits" in words


@pytest.mark.slow
@every_figure
def test_it_saves_to_the_same_bytes_twice(name, tmp_path):
    one = [path.read_bytes() for path in save_figure(drawn(name), tmp_path / "one")]
    two = [path.read_bytes() for path in save_figure(figures.create(name, synthetic()), tmp_path / "two")]
    assert one == two


@every_figure
def test_its_places_are_free_of_the_last_digits_of_the_layout(name):
    figure = drawn(name)
    places = [part.bbox_relative.get_points() for part in figure.subfigs]
    places += [axes.get_position(original=True).get_points() for axes in figure.axes]
    assert all((points == points.round(6)).all() for points in places)


@every_figure
def test_an_empty_table_is_answered_with_a_grokkit_command(name):
    empty = FigureData(pd.DataFrame(columns=list(TABLE_COLUMNS)), {}, pd.DataFrame(columns=["run", "step", "kind"]))
    with pytest.raises(UsageError, match="grokkit"):
        figures.create(name, empty)


def test_figures_import_neither_torch_nor_h5py():
    code = "import sys; from grokkit import figures; figures.names(); assert not {'torch', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
