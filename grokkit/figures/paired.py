"""Draw the difference in local complexity between two variants of an experiment, paired by seed."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from grokkit.analysis.paired import find_separation, paired_ratio
from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.curves import STEP_LABEL, draw_band, select, select_radius, set_log_steps, sum_layers
from grokkit.figures.theme import COLUMN, FULL, LINES, get_probe_colour, themed
from grokkit.names import FigureData


@register("paired")
@themed
def paired(data: FigureData, radius: float | None = None) -> Figure:
    """Draw the local complexity of two variants, and below it their ratio over pairs of one seed.

    Above: the variants' mean over seeds in a band from the lowest to the highest. Below: the geometric mean of the
    ratio with its paired 95 % t interval and each pair as a thin line; a vertical line marks the step from which the
    interval excludes 1. The variant that is later by name is divided by the earlier.

    Args:
        data: needs the measure local_complexity of two variants with seeds in common.
        radius: of the local complexity; None: the middle one of those measured.

    Returns:
        A figure as wide as the page, a column per probe set; one column wide for one set.

    Raises:
        UsageError: the measure is missing, there are not two variants, or they share no seed.
    """
    rows, radius = select_radius(select(data, "local_complexity"), radius)
    rows = sum_layers(rows)
    variants = sorted(set(rows["variant"]))
    if len(variants) != 2:
        raise UsageError(
            "`paired` draws two variants, such as the runs of `grokkit train negative_control`; got "
            f"{len(variants)}: {', '.join(variants)}"
        )
    ratios = paired_ratio(rows, variants[1], variants[0])
    sets = list(dict.fromkeys(rows["probe_set"]))
    figure = Figure(figsize=(FULL if len(sets) > 1 else COLUMN, 3.1), layout="constrained")
    panels = figure.subplots(2, len(sets), sharex=True, sharey="row", squeeze=False)
    for (above, below), name in zip(panels.T, sets, strict=True):
        set_rows, colour = rows[rows["probe_set"] == name], get_probe_colour(name, sets)
        for variant, line in zip(variants, LINES, strict=False):
            draw_band(above, set_rows[set_rows["variant"] == variant], color=colour, linestyle=line)
        _draw_ratio(below, set_rows, ratios[ratios["probe_set"] == name], variants, colour)
        above.set_title(f"{name} points")
    unit, _, space = str(rows["unit"].iloc[0]).partition(" (")
    short = [variant.rsplit("/", 1)[-1].replace("_", " ") for variant in variants]
    panels[0, 0].set_ylabel(f"local complexity\n({unit})")
    panels[0, 0].set_ylim(bottom=0)
    panels[1, 0].set_ylabel(f"{short[1]} /\n{short[0]}")
    _set_ratio_axis(panels[1, 0])
    set_log_steps(panels[0, 0], rows["step"])
    figure.supxlabel(STEP_LABEL, fontsize=7.5)
    figure.align_ylabels(panels[:, 0])
    _add_legend(figure, short, int(ratios["n"].max()), f"radius {radius:g}{' in ' if space else ''}{space.rstrip(')')}")
    return figure


def _draw_ratio(axes: Axes, rows: pd.DataFrame, ratios: pd.DataFrame, variants: list[str], colour: str) -> None:
    axes.axhline(1, color="0.5", lw=0.6)
    wide = rows.pivot(index=["seed", "step"], columns="variant", values="value").dropna()
    for _, ratio in (wide[variants[1]] / wide[variants[0]]).groupby("seed"):
        axes.plot(ratio.index.get_level_values("step"), ratio, color=colour, lw=0.4, alpha=0.6)
    axes.plot(ratios["step"], ratios["value"], color=colour)
    axes.fill_between(ratios["step"], ratios["low"], ratios["high"], color=colour, alpha=0.18, lw=0)
    start = find_separation(ratios)
    if start is not None:
        axes.axvline(start, color="0.2", lw=0.6, linestyle=(0, (2, 1.5)))
        axes.annotate(
            f"interval excludes 1\nfrom step {start:,}",
            (start, 0.03),
            (-3, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=6.5,
        )


def _set_ratio_axis(axes: Axes) -> None:
    """Set a logarithmic axis, on which half and twice are equally far from 1, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.8), max(high, 1.25))


def _add_legend(figure: Figure, short: list[str], pairs: int, description: str) -> None:
    handles = [
        Line2D([], [], color="0.2", linestyle=line, label=name) for name, line in zip(short, LINES, strict=False)
    ]
    handles.append(Line2D([], [], lw=0.4, color="0.2", label="each pair (one seed)"))
    interval = f"mean of {pairs} pairs with its 95 % interval" if pairs > 1 else "1 pair, no interval"
    title = f"{description}; below: ratio, {interval}"
    figure.legend(handles=handles, loc="outside upper left", ncols=3, title=title, alignment="left", title_fontsize=7.5)
