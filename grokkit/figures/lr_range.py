"""Draw the loss against the learning rate of range tests, with the rates derived from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from grokkit.analysis.run_groups import complete_groups
from grokkit.config.groups import sort_labels
from grokkit.figures import register
from grokkit.figures.curves import require_rows
from grokkit.figures.styles import check_group_count
from grokkit.figures.theme import COLUMN, FULL, PALETTE, themed
from grokkit.names import FigureData

PREFIX = "range_test_"
MAX_PANELS = 12
"""What fits on one page."""
LOG_AXIS_RATIO = 20.0
"""Ratio of highest to lowest smoothed loss above which the losses have a logarithmic axis."""
CURVE_MARKS = {"steepest": ("o", "steepest"), "suggestion": ("v", "suggested")}
"""Markers on a smoothed curve and their names in the legend; a divergence is a cross at the upper edge."""


@register("lr_range")
@themed
def lr_range(data: FigureData) -> Figure:
    """Draw the loss of each batch against the rate of its update, a panel per group of seeds and a colour per seed.

    Thin: the losses. Thick: their moving average, over the equally averaged rate; it leaves the axis before the thin
    lines do, because one huge loss raises the whole average. The vertical line is the median of the seeds'
    suggestions. The axis ends a little above the losses from before the minimum, so that a diverging curve leaves it;
    losses that span more than a factor of 20 have a logarithmic axis.

    Args:
        data: the table that `grokkit lr-find` writes.

    Returns:
        A figure one column wide for one group, as wide as the page for more.

    Raises:
        UsageError: the table has no range test, or more groups than fit on a page.
    """
    losses = require_rows(data, f"{PREFIX}loss")
    units = dict(zip(losses["group"], losses["unit"], strict=True))
    table = complete_groups(data.table)
    rows = table[table["measure"].str.startswith(PREFIX)]
    groups = sort_labels(rows["group"])
    check_group_count(groups, MAX_PANELS)
    seeds = sorted(set(rows["seed"]))
    colours = {seed: PALETTE[place % len(PALETTE)] for place, seed in enumerate(seeds)}
    columns = min(len(groups), 2 if len(groups) <= 4 else 3)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(COLUMN if columns == 1 else FULL, 0.8 + 1.9 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for place, (axes, name) in enumerate(zip(panels, groups, strict=False)):
        _draw_panel(axes, rows[rows["group"] == name], colours)
        axes.set_title(name)
        axes.tick_params(labelbottom=True)
        if place % columns == 0 or len(set(units.values())) > 1:
            axes.set_ylabel(f"batch loss ({units[name]})")
        if place + columns >= len(groups):
            axes.set_xlabel("learning rate (rising over optimizer updates)")
    rates = rows.loc[rows["measure"] == f"{PREFIX}rate", "value"]
    panels[0].set_xlim(rates.min() / 1.5, max(1.5 * rates.max(), 100 * rates.min()))
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    handles = _build_handles(colours)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3 if columns == 1 else 8))
    return figure


def _draw_panel(axes: Axes, rows: pd.DataFrame, colours: dict[Any, str]) -> None:
    """Draw the sweeps of one group, one per run."""
    sweeps = [_parse_sweep(run_rows) for _, run_rows in rows.groupby("run", sort=False)]
    for seed, series, marks in sweeps:
        colour = colours[seed]
        axes.plot(series["rate"], series["loss"], color=colour, lw=0.5, alpha=0.35)
        axes.plot(series["centre"], series["smoothed"], color=colour, lw=1.3)
        for name, (marker, _) in CURVE_MARKS.items():
            if name in marks:
                height = np.interp(np.log(marks[name]), np.log(series["centre"]), series["smoothed"])
                axes.plot(marks[name], height, marker, color=colour, ms=4, mec="white", mew=0.5, zorder=3)
        if "diverged_at" in marks:
            axes.plot(marks["diverged_at"], 0.97, "x", color=colour, ms=3.5, transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    _set_limits(axes, [series["smoothed"].to_numpy(float) for _, series, _ in sweeps])
    suggestions = [marks["suggestion"] for _, _, marks in sweeps if "suggestion" in marks]
    if suggestions:
        median = float(np.exp(np.median(np.log(suggestions))))
        axes.axvline(median, color="0.2", lw=0.7, ls=(0, (4, 2)), zorder=0)
        axes.annotate(f"{median:.2g} ", (median, 0.04), xycoords=axes.get_xaxis_transform(), ha="right", fontsize=7)


def _parse_sweep(rows: pd.DataFrame) -> tuple[int, pd.DataFrame, dict[str, float]]:
    """Return the seed, the series by update, and the marks of the sweep, from one run's rows."""
    named = rows.assign(measure=rows["measure"].str.removeprefix(PREFIX))
    wide = named.pivot(index="step", columns="measure", values="value").sort_index()
    marks = {name: float(wide[name].dropna().iloc[0]) for name in (*CURVE_MARKS, "diverged_at") if name in wide}
    return int(rows["seed"].iloc[0]), wide[["rate", "loss", "centre", "smoothed"]], marks


def _set_limits(axes: Axes, curves: list[np.ndarray]) -> None:
    """Set limits from a little below the lowest smoothed loss to a little above the highest one before its minimum."""
    finite = [curve[np.isfinite(curve)] for curve in curves]
    descents = [curve[: curve.argmin() + 1] for curve in finite if len(curve)]
    if not descents:
        return
    low, high = min(curve.min() for curve in descents), max(curve.max() for curve in descents)
    if low > 0 and high / low > LOG_AXIS_RATIO:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.6, high * 2.5)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        span = max(high - low, 0.05 * abs(high), 1e-12)
        axes.set_ylim(low - 0.15 * span, high + 0.3 * span)


def _build_handles(colours: dict[Any, str]) -> list[Line2D]:
    """Return handles for the seeds, if each has its own colour, then for the marks."""
    has_own_colours = len(colours) <= len(PALETTE)
    handles = [
        Line2D([], [], color=colour, label=f"seed {seed}") for seed, colour in colours.items() if has_own_colours
    ]
    for marker, label in (*CURVE_MARKS.values(), ("x", "diverged")):
        handles.append(Line2D([], [], color="0.3", ls="", marker=marker, ms=4, label=label))
    return [*handles, Line2D([], [], color="0.2", lw=0.7, ls=(0, (4, 2)), label="median of seeds")]
