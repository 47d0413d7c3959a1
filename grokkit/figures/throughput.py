"""Draw the training speed of a model in images per second, by batch size and input, and what limits each loop."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from grokkit.analysis.bottleneck import LoopBottleneck, find_bottlenecks
from grokkit.figures import register
from grokkit.figures.curves import require_rows
from grokkit.figures.theme import COLUMN, FULL, PALETTE, themed
from grokkit.names import FigureData

BOUND_BY = {"input": "v", "host": "s", "arithmetic": "o"}
"""Marker for each limit of a loop."""
SOURCES = {"resident": PALETTE[0], "DataLoader": PALETTE[1]}


@register("throughput")
@themed
def throughput(data: FigureData) -> Figure:
    """Draw images/s of the training loop against the batch size, a panel per device; both axes are logarithmic.

    Blue: batches from data that stay on the device. Orange: a DataLoader with two workers. Markers show what limits
    the loop. Grey: updates on a ready batch. Dashed: the device's speed if every FLOP ran at its ceiling.

    Args:
        data: the table that `grokkit bench throughput` writes.

    Returns:
        A figure one column wide for one device, as wide as the page for more.

    Raises:
        UsageError: the table has no such measurement.
    """
    rows = require_rows(data, "loop_images_per_s")
    bottlenecks = find_bottlenecks(data.table)
    runs = list(dict.fromkeys(rows["run"]))
    width = COLUMN if len(runs) == 1 else FULL
    figure = Figure(figsize=(width, 0.4 + 2.6 * -(-len(runs) // 2)), layout="constrained")
    panels = figure.subplots(-(-len(runs) // 2), min(2, len(runs)), squeeze=False).flat
    for axes, run in zip(panels, runs, strict=False):
        _draw_panel(axes, data.table[data.table["run"] == run], [loop for loop in bottlenecks if loop.run == run])
    for axes in list(panels)[len(runs) :]:
        axes.set_axis_off()
    lines, marks = _build_handles()
    # Filled by columns: the lines first, then the limits; two columns are the most that fit a column of the page.
    figure.legend(handles=[*lines, *marks], loc="outside lower center", ncols=2 if width == COLUMN else 4)
    return figure


def _draw_panel(axes: Axes, rows: pd.DataFrame, bottlenecks: list[LoopBottleneck]) -> None:
    """Draw one device."""
    sizes = sorted({loop.batch_size for loop in bottlenecks})
    step = rows[(rows["measure"] == "step_images_per_s") & rows["n"].isin(sizes)].sort_values("n")
    axes.plot(step["n"], step["value"], ".-", color="0.6", lw=0.8)
    for source, colour in SOURCES.items():
        loops = sorted((loop for loop in bottlenecks if loop.source == source), key=lambda loop: loop.batch_size)
        axes.plot([loop.batch_size for loop in loops], [loop.images_per_s for loop in loops], color=colour)
        for bound, marker in BOUND_BY.items():
            points = [loop for loop in loops if loop.bound == bound]
            axes.plot(
                [loop.batch_size for loop in points],
                [loop.images_per_s for loop in points],
                marker,
                color=colour,
                ms=3.5,
            )
    single = rows.set_index("measure")["value"]
    axes.axhline(single["ceiling_flop_per_s"] / single["training_flop_per_image"], color="0.2", lw=0.8, ls=(0, (4, 2)))
    axes.set(xscale="log", yscale="log", ylabel="training speed (images/s)")
    axes.set_xlabel("batch size (images)")
    axes.xaxis.set_major_locator(FixedLocator(sizes[:: -(-len(sizes) // 6)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(_wrap_name(str(rows["run"].iloc[0])), fontsize=6.5)


def _wrap_name(run: str) -> str:
    """Put model and data on one line and the device on the next."""
    model, data, device = ([*run.split(", ", 2), "", ""])[:3]
    return f"{model}, {data}\n{device}" if device else run


def _build_handles() -> tuple[list[Line2D], list[Line2D]]:
    lines = [Line2D([], [], color=colour, label=source) for source, colour in SOURCES.items()]
    lines += [
        Line2D([], [], color="0.6", lw=0.8, marker=".", label="step alone"),
        Line2D([], [], color="0.2", lw=0.8, ls=(0, (4, 2)), label="device's ceiling"),
    ]
    marks = [
        Line2D([], [], color="0.3", ls="", marker=mark, ms=3.5, label=f"bound by {bound}")
        for bound, mark in BOUND_BY.items()
    ]
    return lines, marks
