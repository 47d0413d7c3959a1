"""Paper style, colours with a fixed meaning, and saving of figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

COLUMN, FULL = 3.25, 6.75
"""Widths in inches of one column and of the page."""

PROBE_COLOURS = {"train": "#0072B2", "test": "#D55E00", "random": "#707070"}
"""Colour of each probe set in all figures; from the colour-blind safe palette of Okabe and Ito, and grey."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colours in order, for runs and for probe sets with other names."""
LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
"""Line styles in order, one per probe set where colour is the group."""
MARKERS = ("o", "s", "^", "D", "v")
"""Markers in order, one per epsilon."""

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 8,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "savefig.dpi": 300,
    "figure.dpi": 150,
    "savefig.bbox": None,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 2.2,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
    "legend.handletextpad": 0.5,
    "axes.formatter.use_mathtext": True,
    "axes.titlelocation": "left",
    "axes.titlepad": 3.0,
    "image.interpolation": "nearest",
    "svg.hashsalt": "grokkit",
}
"""Matplotlib settings of all figures; the fonts ship with matplotlib, so the same table gives the same bytes anywhere.
"""

Parameters = ParamSpec("Parameters")


@contextmanager
def theme() -> Iterator[None]:
    """Apply the paper style inside the block and restore the caller's settings after it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def themed(draw: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Decorate a figure function so that it runs, and is laid out, in `theme()`."""

    @functools.wraps(draw)
    def wrapped(*arguments: Parameters.args, **options: Parameters.kwargs) -> Figure:
        with theme():
            figure = draw(*arguments, **options)
            figure.draw_without_rendering()
            # The layout is final; saving would compute it again.
            figure.set_layout_engine("none")
            _round_positions(figure)
        return figure

    return wrapped


def _round_positions(figure: Figure) -> None:
    """Round the positions of axes and subfigures, so that rendering is reproducible.

    The last digits of a solved layout depend on memory addresses, and with them a pixel on the edge of a line.
    """
    for subfigure in figure.subfigs:
        subfigure.bbox_relative.set_points(subfigure.bbox_relative.get_points().round(6))
    for axes in figure.axes:
        axes.set_position(Bbox(axes.get_position(original=True).get_points().round(6)))


def get_probe_colour(name: str, names: list[str]) -> str:
    """Return the colour of a probe set; sets with other names use the palette, in order."""
    others = [other for other in names if other not in PROBE_COLOURS]
    return PROBE_COLOURS[name] if name in PROBE_COLOURS else PALETTE[(2 + others.index(name)) % len(PALETTE)]


def get_group_colours(groups: Sequence[str]) -> dict[str, str]:
    """Return a colour for each group of runs, different for each: the palette, or, for more groups than it has, a
    spectrum in their order."""
    if len(groups) <= len(PALETTE):
        return dict(zip(groups, PALETTE, strict=False))
    spectrum = mpl.colormaps["turbo"](np.linspace(0.04, 0.96, len(groups)))
    return {group: to_hex(colour) for group, colour in zip(groups, spectrum, strict=True)}


def escape_math(text: str) -> str:
    """Escape dollar signs, so that matplotlib draws them rather than a formula between them."""
    return text.replace("$", r"\$")


def hide_ticks(axes: Axes) -> None:
    """Hide ticks and frame, for images."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write `stem`.pdf (TrueType fonts) and `stem`.png (300 dots per inch); the same figure gives the same bytes.

    Args:
        figure: any matplotlib figure.
        stem: path without a suffix; its folder is created.

    Returns:
        The two paths.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    metadata: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "png": {}}
    paths = []
    with theme():
        for suffix, fields in metadata.items():
            # Not with_suffix: a stem such as lc-r0.05 contains a dot.
            paths.append(stem.parent / f"{stem.name}.{suffix}")
            figure.savefig(paths[-1], metadata=fields)
    return paths
