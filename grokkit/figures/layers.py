"""Draw local complexity layer by layer along training."""

from __future__ import annotations

from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure

from grokkit.config.groups import sort_labels
from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.curves import STEP_LABEL, draw_band, select, select_radius, set_log_steps
from grokkit.figures.styles import check_group_count, wrap_label
from grokkit.figures.theme import COLUMN, FULL, themed
from grokkit.names import FigureData

MAX_ROWS = 5
"""What fits on one page."""
MAX_NAMED_LAYERS = 12
"""Maximum number of layers named at the colour bar; of more, evenly spaced ones are."""


@register("layers")
@themed
def layers(data: FigureData, radius: float | None = None, scale: Literal["linear", "log"] = "linear") -> Figure:
    """Draw one line per layer, coloured by depth; a panel per probe set and group, all on the same axes.

    Counts are as measured, not normalised: a wider layer has more units to count. Seeds of a group are drawn as
    their mean in a band from the lowest to the highest.

    Args:
        data: needs the measure local_complexity with a row per layer, in order of depth.
        radius: None: the middle one of those measured.
        scale: of the counts; `log` if layers differ by orders of magnitude (counts of 0 leave a gap).

    Returns:
        A figure as wide as the page, or one column wide if there is one probe set.

    Raises:
        UsageError: the measure or its layers are missing, there are more groups than fit on a page, or `scale` is
            neither `linear` nor `log`.
    """
    if scale not in ("linear", "log"):
        raise UsageError(f"`scale` must be linear or log; got {scale!r}")
    rows, radius = select_radius(select(data, "local_complexity"), radius)
    rows = rows[~rows["layer"].isin(("total", ""))]
    if rows.empty:
        raise UsageError("the table has no layers of local_complexity; add them with `grokkit lc RUN`")
    names, sets = list(dict.fromkeys(rows["layer"])), list(dict.fromkeys(rows["probe_set"]))
    groups = sort_labels(rows["group"])
    check_group_count(groups, MAX_ROWS)
    figure = Figure(figsize=(FULL if len(sets) > 1 else COLUMN, 0.7 + 1.4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), len(sets), sharex=True, sharey=True, squeeze=False)
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, len(names)))
    unit, _, space = str(rows["unit"].iloc[0]).partition(" (")
    for row, group in zip(panels, groups, strict=True):
        for axes, probe_set in zip(row, sets, strict=True):
            part = rows[(rows["group"] == group) & (rows["probe_set"] == probe_set)]
            _draw_panel(axes, part, names, colours)
        name = "local complexity" if len(groups) == 1 else wrap_label(group)
        row[0].set_ylabel(f"{name}\n({unit})")
    for axes, probe_set in zip(panels[0], sets, strict=True):
        axes.set_title(f"{probe_set} points")
    # The axes are shared, so this sets all panels. After the last line: setting the bottom also stops autoscaling.
    panels[0, 0].set_yscale("log", nonpositive="mask") if scale == "log" else panels[0, 0].set_ylim(bottom=0)
    set_log_steps(panels[0, 0], rows["step"])
    description = f"radius {radius:g}{' in ' if space else ''}{space.rstrip(')')}"
    figure.suptitle(f"local complexity of each layer, {description}", x=0.01, ha="left")
    figure.supxlabel(STEP_LABEL, fontsize=7.5)
    _add_depth_bar(figure, panels, names, colours)
    return figure


def _draw_panel(axes: Axes, rows: pd.DataFrame, names: list[str], colours: np.ndarray) -> None:
    for name, group in rows.groupby("layer", sort=False):
        # The interval of each layer of a single run would hide its neighbours.
        curve = group if group["run"].nunique() > 1 else group.assign(low=np.nan, high=np.nan)
        draw_band(axes, curve, color=colours[names.index(str(name))], label=name)


def _add_depth_bar(figure: Figure, panels: np.ndarray, names: list[str], colours: np.ndarray) -> None:
    """Add a bar with the colour of each layer, the input's side at the top."""
    norm = BoundaryNorm(np.arange(-0.5, len(names)), len(names))
    stride = 1 if len(names) <= MAX_NAMED_LAYERS else -(-len(names) // MAX_NAMED_LAYERS)
    ticks = list(range(0, len(names), stride))
    bar: Any = figure.colorbar(
        ScalarMappable(norm, ListedColormap(colours)), ax=panels, ticks=ticks, pad=0.02, aspect=35, drawedges=False
    )
    bar.ax.set_yticks(ticks, [names[tick] for tick in ticks])
    bar.ax.invert_yaxis()
    bar.ax.tick_params(length=0)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label("layer, from input to output")
