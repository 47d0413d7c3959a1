"""Draw local complexity at data relative to local complexity at noise, along training."""

from __future__ import annotations

from matplotlib.figure import Figure

from grokkit.figures import register
from grokkit.figures.curves import STEP_LABEL, draw_by_probe_set, select, select_radius, set_log_steps
from grokkit.figures.styles import CurveStyles
from grokkit.figures.theme import COLUMN, PROBE_COLOURS, themed
from grokkit.names import FigureData


@register("migration")
@themed
def migration(data: FigureData, radius: float | None = None) -> Figure:
    """Draw LC(set) / LC(random) against updates; above 1 the net's boundaries are denser at these images than at noise.

    A single run has the band of its readings' own interval (Fieller's), the seeds of a group their mean in a band from
    the lowest to the highest. Of one group, colour is the probe set; of several, colour is the group and line style
    the probe set.

    Args:
        data: needs the measure local_complexity_ratio, that is, local complexity with the probe set `random`.
        radius: of the local complexity; None: the middle one of those measured.

    Returns:
        A figure one column wide.

    Raises:
        UsageError: the measure is missing.
    """
    rows, radius = select_radius(select(data, "local_complexity_ratio"), radius)
    styles = CurveStyles(rows)
    figure = Figure(figsize=(COLUMN, 2.2 + styles.legend_height()), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color=PROBE_COLOURS["random"], lw=0.8)
    draw_by_probe_set(axes, rows, styles)
    axes.set_ylabel("local complexity, data / noise\n(1: same as at random points)")
    axes.set_xlabel(STEP_LABEL)
    axes.set_title(f"radius {radius:g}", fontsize=7, color="0.35")
    set_log_steps(axes, rows["step"])
    styles.add_legends(figure)
    return figure
