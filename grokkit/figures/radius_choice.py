"""Draw in which range local complexity is linear in the radius, and how it grows with the number of directions."""

from __future__ import annotations

import warnings
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from grokkit.analysis.radius_choice import TOLERANCE, RadiusChoice, choose_radius, compare_with_kappa, middle_directions
from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.curves import require_rows
from grokkit.figures.theme import FULL, escape_math, themed
from grokkit.names import FigureData

MAX_RUNS = 4
"""What fits on one page."""
MAX_LISTED = 8
"""Maximum number of snapshots in the legend; of more, evenly spaced ones are listed."""
MAX_HALF_WIDTH = 0.25
"""Slopes whose interval is wider than this on each side carry no information and would hide the others."""


@register("calibration")
@themed
def calibration(data: FigureData) -> Figure:
    """Draw density against radius, its slope against radius, and growth with the number of directions; a row per run.

    Left: LC / r at the upper middle P, flat while LC is linear in r; each snapshot's linear range is drawn thick, the
    range from the first of them to the recommended radius is shaded; crosses are the vertex count. Middle: slopes
    between neighbouring radii with their 95 % intervals, and the band in which they count as 1. Right: LC at P over
    LC at the largest P, as counted (grey) and divided by kappa (P, D): flat if kappa explains the growth.

    Args:
        data: needs the measure calibration.

    Returns:
        A figure as wide as the page.

    Raises:
        UsageError: the measure is missing, or there are more runs than fit on a page.
    """
    parts = [part for _, part in _select_recordings(data).groupby("run", sort=False)]
    if len(parts) > MAX_RUNS:
        raise UsageError(f"`calibration` draws at most {MAX_RUNS} runs; got {len(parts)}. Draw fewer at a time")
    figure = Figure(figsize=(FULL, 0.6 + 1.95 * len(parts)), layout="constrained")
    grid = figure.subplots(len(parts), 3, squeeze=False, width_ratios=(1.1, 1.1, 0.8))
    points = [f"{int(rows['n'].max())} {rows['probe_set'].iloc[0]} points" for rows in parts]
    shared = f"{points[0]}; " if len(set(points)) == 1 else ""
    figure.suptitle(f"{shared}colour: snapshot at step (optimizer updates)", x=0.01, ha="left")
    for panels, rows, own_points in zip(grid, parts, points, strict=True):
        choice, steps = choose_radius(rows), sorted(set(rows["step"]))
        colours = dict(zip(steps, mpl.colormaps["viridis"](np.linspace(0, 0.9, len(steps))), strict=True))
        _draw_density(panels[0], rows, choice, colours)
        _draw_slopes(panels[1], rows, choice, colours)
        _draw_growth(panels[2], rows, choice, colours)
        _add_legend(panels[2], colours)
        if len(parts) > 1:
            panels[0].set_title(
                f"{escape_math(str(rows['run'].iloc[0]))}{'' if shared else f', {own_points}'}", fontsize=6.5
            )
    return figure


def _select_recordings(data: FigureData) -> pd.DataFrame:
    """Return, for each run, the recording with the most steps, then the most images, with its derived rows."""
    counts = require_rows(data, "calibration")
    recordings = counts.groupby(["run", "measure_id"], as_index=False).agg(
        steps=("step", "nunique"), images=("n", "max")
    )
    ranked = recordings.sort_values(["run", "steps", "images", "measure_id"], ascending=[True, False, False, True])
    chosen = ranked.drop_duplicates("run")
    if len(recordings) > len(chosen):
        ids = ", ".join(chosen["measure_id"])
        warnings.warn(f"calibration was recorded with several settings; drawing {ids}", stacklevel=4)
    rows = data.table[data.table["measure"].str.startswith("calibration")]
    return rows.merge(chosen[["run", "measure_id"]], on=["run", "measure_id"])


def _draw_density(axes: Axes, rows: pd.DataFrame, choice: RadiusChoice, colours: dict[int, Any]) -> None:
    directions = middle_directions(rows)
    counts = rows[(rows["measure"] == "calibration") & (rows["directions"] == directions)]
    vertex = rows[rows["measure"] == "calibration_vertex"].set_index(["step", "radius"])["value"]
    for snapshot in choice.snapshots:
        curve = counts[(counts["step"] == snapshot.step) & (counts["value"] > 0)].sort_values("radius")
        radius, density, colour = curve["radius"], curve["value"] / curve["radius"], colours[snapshot.step]
        axes.plot(radius, density, color=colour, lw=0.8)
        axes.fill_between(radius, curve["low"] / radius, curve["high"] / radius, color=colour, alpha=0.15, lw=0)
        if snapshot.linear is not None:
            inside = radius.between(*snapshot.linear)
            axes.plot(radius[inside], density[inside], color=colour, lw=2.2, solid_capstyle="butt")
        ratios = vertex.reindex(pd.MultiIndex.from_product([[snapshot.step], radius])).to_numpy()
        axes.plot(radius, density * ratios, "x", color=colour, markersize=2.5, mew=0.6)
    axes.set(yscale="log")
    if not (counts["value"] > 0).any():
        axes.set_ylim(0.1, 1)
        axes.text(0.5, 0.5, "no crossing", transform=axes.transAxes, ha="center")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    unit = str(counts["unit"].iloc[0]).partition(" (")[0]
    axes.set_ylabel(f"local complexity / radius\n({unit}, P = {directions:g})")
    _set_radius_axis(axes, rows, choice)


def _draw_slopes(axes: Axes, rows: pd.DataFrame, choice: RadiusChoice, colours: dict[int, Any]) -> None:
    axes.axhspan(1 - TOLERANCE, 1 + TOLERANCE, color="0.88", lw=0)
    slopes = rows[rows["measure"] == "calibration_slope"]
    slopes = slopes[(slopes["high"] - slopes["low"]) / 2 <= MAX_HALF_WIDTH]
    for step, curve in slopes.groupby("step"):
        curve, colour = curve.sort_values("radius"), colours[int(str(step))]
        axes.errorbar(
            curve["radius"],
            curve["value"],
            [curve["value"] - curve["low"], curve["high"] - curve["value"]],
            color=colour,
            lw=0.8,
            elinewidth=0.6,
            marker="o",
        )
    axes.set_ylim(0.45, 1.3)
    axes.set_ylabel(r"slope $d\,\log\,LC\,/\,d\,\log\,r$" + f"\n(band: 1 ± {TOLERANCE:g})")
    _set_radius_axis(axes, rows, choice)


def _set_radius_axis(axes: Axes, rows: pd.DataFrame, choice: RadiusChoice) -> None:
    """Set a logarithmic axis, shaded from the start of the first linear range to the recommended radius."""
    axes.set(xscale="log", xlabel="radius (input space of the net)")
    axes.set_xlim(0.7 * rows["radius"].min(), 1.4 * rows["radius"].max())
    if choice.radius is not None:
        start = min(snapshot.linear[0] for snapshot in choice.snapshots if snapshot.linear is not None)
        axes.axvspan(start, choice.radius, color="#E69F00", alpha=0.15, lw=0)
        axes.axvline(choice.radius, color="0.2", lw=0.6, linestyle=(0, (2, 1.5)))


def _draw_growth(axes: Axes, rows: pd.DataFrame, choice: RadiusChoice, colours: dict[int, Any]) -> None:
    radii = sorted(set(rows["radius"].dropna()))
    radius = choice.smallest_linear_end or radii[len(radii) // 2]
    counts = rows[(rows["measure"] == "calibration") & (rows["radius"] == radius)]
    uncorrected = counts.pivot(index="step", columns="directions", values="value")
    for table, corrected in (
        (uncorrected.div(uncorrected.iloc[:, -1], axis=0), False),
        (compare_with_kappa(rows, radius), True),
    ):
        for step, values in table.iterrows():
            colour = colours[int(str(step))] if corrected else "0.7"
            axes.plot(values.index, values, color=colour, lw=0.8, marker="o" if corrected else "")
    numbers = sorted(counts["directions"].unique().tolist())
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(numbers))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.set_xlabel("directions P")
    axes.set_ylabel(f"LC(P) / LC({numbers[-1]:g}), r = {radius:g}\n(colour: divided by κ; grey: not)")


def _add_legend(axes: Axes, colours: dict[int, Any]) -> None:
    stride = -(-len(colours) // MAX_LISTED)
    steps = list(colours)[::stride]
    handles = [Line2D([], [], color=colours[step], marker="o", label=f"{step:,}") for step in steps]
    axes.legend(
        handles=handles,
        title="step",
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        title_fontsize=7,
        alignment="left",
    )
