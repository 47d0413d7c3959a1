"""Draw local complexity at data relative to local complexity at noise, along training."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grokkit.figures import register
from grokkit.figures.curves import STEP_LABEL, draw_by_probe_set, select, select_radius, set_log_steps
from grokkit.figures.theme import COLUMN, LINES, get_probe_colour, themed
from grokkit.names import FigureData


@register("migration")
@themed
def migration(data: FigureData, radius: float | None = None) -> Figure:
    """Draw LC(set) / LC(random) against updates; above 1 the net's boundaries are denser at these images than at noise.

    Colour is the probe set, line style the variant. A single run has the band of its readings' own interval
    (Fieller's), seeds of a variant their mean in a band from the lowest to the highest.

    Args:
        data: needs the measure local_complexity_ratio, that is, local complexity with the probe set `random`.
        radius: of the local complexity; None: the middle one of those measured.

    Returns:
        A figure one column wide.

    Raises:
        UsageError: the measure is missing.
    """
    rows, radius = select_radius(select(data, "local_complexity_ratio"), radius)
    sets, variants = list(dict.fromkeys(rows["probe_set"])), list(dict.fromkeys(rows["variant"]))
    figure = Figure(figsize=(COLUMN, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color=get_probe_colour("random", sets), lw=0.8)
    draw_by_probe_set(axes, rows)
    axes.set_ylabel("local complexity, data / noise\n(1: same as at random points)")
    axes.set_xlabel(STEP_LABEL)
    axes.set_title(f"radius {radius:g}", fontsize=7, color="0.35")
    set_log_steps(axes, rows["step"])
    handles = [Line2D([], [], color=get_probe_colour(name, sets), label=name) for name in sets]
    if len(variants) > 1:
        handles += [
            Line2D([], [], color="0.2", linestyle=LINES[i % len(LINES)], label=v) for i, v in enumerate(variants)
        ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure
