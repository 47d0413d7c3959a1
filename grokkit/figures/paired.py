"""Draw the difference in local complexity between two groups of runs, paired by seed."""

from __future__ import annotations

import textwrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from grokkit.analysis.paired import find_separation, paired_ratio
from grokkit.config.groups import sort_labels, split_common_name
from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.curves import STEP_LABEL, draw_band, select, select_radius, set_log_steps, sum_layers
from grokkit.figures.styles import CHARACTERS_PER_INCH, count_columns, wrap_label
from grokkit.figures.theme import COLUMN, FULL, escape_math, get_group_colours, themed
from grokkit.names import FigureData

_RATIO_COLOUR = "0.2"


@register("paired")
@themed
def paired(data: FigureData, radius: float | None = None) -> Figure:
    """Draw the local complexity of two groups of runs, and below it their ratio over pairs of one seed.

    Above: the groups' mean over seeds in a band from the lowest to the highest. Below: the geometric mean of the
    ratio with its paired 95 % t interval and each pair as a thin line; a vertical line marks the step from which the
    interval excludes 1. The group that is later by name is divided by the earlier.

    Args:
        data: needs the measure local_complexity of two groups with seeds in common.
        radius: of the local complexity; None: the middle one of those measured.

    Returns:
        A figure as wide as the page, a column per probe set; one column wide for one set.

    Raises:
        UsageError: the measure is missing, there are not two groups, or they share no seed.
    """
    rows, radius = select_radius(select(data, "local_complexity"), radius)
    rows = sum_layers(rows)
    groups = sort_labels(rows["group"])
    if len(groups) != 2:
        raise UsageError(
            "`paired` draws two groups of runs that differ only in their seed, such as those of `grokkit train "
            f"negative_control`; got {len(groups)}: {', '.join(groups)}"
        )
    ratios = paired_ratio(rows, groups[1], groups[0])
    sets, colours = list(dict.fromkeys(rows["probe_set"])), get_group_colours(groups)
    figure = Figure(figsize=(FULL if len(sets) > 1 else COLUMN, 3.1), layout="constrained")
    panels = figure.subplots(2, len(sets), sharex=True, sharey="row", squeeze=False)
    for (above, below), name in zip(panels.T, sets, strict=True):
        set_rows = rows[rows["probe_set"] == name]
        for group, colour in colours.items():
            draw_band(above, set_rows[set_rows["group"] == group], color=colour)
        _draw_ratio(below, set_rows, ratios[ratios["probe_set"] == name], groups)
        above.set_title(f"{name} points")
    unit, _, space = str(rows["unit"].iloc[0]).partition(" (")
    common, _ = split_common_name(groups)
    short = _shorten(groups)
    panels[0, 0].set_ylabel(f"local complexity\n({unit})")
    panels[0, 0].set_ylim(bottom=0)
    panels[1, 0].set_ylabel(f"{wrap_label(short[1])} /\n{wrap_label(short[0])}")
    _set_ratio_axis(panels[1, 0])
    set_log_steps(panels[0, 0], rows["step"])
    figure.supxlabel(STEP_LABEL, fontsize=7.5)
    figure.align_ylabels(panels[:, 0])
    _add_legend(
        figure,
        dict(zip(short, colours.values(), strict=True)),
        int(ratios["n"].max()),
        f"{common}{', ' if common else ''}radius {radius:g}{' in ' if space else ''}{space.rstrip(')')}",
    )
    return figure


def _shorten(groups: list[str]) -> list[str]:
    """Return the labels without the name that they share, else without the experiment, if they still differ then."""
    name, differences = split_common_name(groups)
    if name:
        return differences
    short = [group.partition("/")[2].replace("_", " ") or group for group in groups]
    return short if len(set(short)) == len(groups) else groups


def _draw_ratio(axes: Axes, rows: pd.DataFrame, ratios: pd.DataFrame, groups: list[str]) -> None:
    axes.axhline(1, color="0.5", lw=0.6)
    wide = rows.pivot(index=["seed", "step"], columns="group", values="value").dropna()
    for _, ratio in (wide[groups[1]] / wide[groups[0]]).groupby("seed"):
        axes.plot(ratio.index.get_level_values("step"), ratio, color=_RATIO_COLOUR, lw=0.4, alpha=0.6)
    axes.plot(ratios["step"], ratios["value"], color=_RATIO_COLOUR)
    axes.fill_between(ratios["step"], ratios["low"], ratios["high"], color=_RATIO_COLOUR, alpha=0.18, lw=0)
    start = find_separation(ratios)
    if start is not None:
        axes.axvline(start, color="0.2", lw=0.6, linestyle=(0, (2, 1.5)))
        is_early = start**2 < ratios["step"].max()  # left of the middle of a logarithmic axis
        axes.annotate(
            f"interval excludes 1\nfrom step {start:,}",
            (start, 0.03),
            (3 if is_early else -3, 0),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            ha="left" if is_early else "right",
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


def _add_legend(figure: Figure, colours: dict[str, str], pairs: int, description: str) -> None:
    handles = [Line2D([], [], color=colour, label=escape_math(name)) for name, colour in colours.items()]
    handles.append(Line2D([], [], lw=0.4, color=_RATIO_COLOUR, label="each pair (one seed)"))
    interval = f"mean of {pairs} pairs with its 95 % interval" if pairs > 1 else "1 pair, no interval"
    width = figure.get_figwidth()
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=count_columns([*colours, "each pair (one seed)"], width),
        title=escape_math(textwrap.fill(f"{description}; below: ratio, {interval}", int(width * CHARACTERS_PER_INCH))),
        alignment="left",
        title_fontsize=7.5,
    )
