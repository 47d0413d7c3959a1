"""Draw paired comparisons as panels of points and intervals, with p and verdict beside each."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

ROW = 0.15
"""Inches per comparison."""
_SMALL = 6.5  # font size of the text beside the panels, in points
_P_OFFSET, _VERDICT_OFFSET = 5, 30  # offsets of p and the verdict from a panel's right edge, in points


def draw_forest(figure: SubFigure, comparisons: pd.DataFrame, titles: Mapping[str, str]) -> None:
    """Draw a panel per outcome and a row per comparison.

    A point is the mean difference over pairs, the thin line its 95 % BCa interval, the thick one its 90 % t interval,
    the shade the margin of equivalence on both sides of 0. Holm's p and the verdict are printed on the right: `small`
    means that the difference is also within the margin; the number of pairs is given in brackets if it is below the
    largest.

    Args:
        figure: in which the panels are made.
        comparisons: of one task and decay, from `grokkit.analysis.comparison.compare_all`.
        titles: of each outcome, with its unit.
    """
    pairs = list(dict.fromkeys(zip(comparisons["arm"], comparisons["reference"], strict=True)))
    panels = figure.subplots(1, comparisons["outcome"].nunique(), sharey=True, squeeze=False)[0]
    for axes, (outcome, group) in zip(panels, comparisons.groupby("outcome", sort=False), strict=True):
        margin = float(group["margin"].iloc[0])
        if margin > 0:
            axes.axvspan(-margin, margin, color="0.9", lw=0, zorder=0)
        axes.axvline(0, color="0.5", lw=0.6, zorder=1)
        for row in group.to_dict("records"):
            _draw_row(axes, row, pairs.index((row["arm"], row["reference"])), int(comparisons["n"].max()))
        axes.set_title(titles[str(outcome)], fontsize=7, pad=11)
        axes.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}".replace("-", "−")))
        for offset, heading in ((_P_OFFSET, "p"), (_VERDICT_OFFSET, "verdict")):
            _annotate(axes, heading, -0.95, offset, color="0.35")
    panels[0].set_yticks(range(len(pairs)), [f"{arm} − {reference}" for arm, reference in pairs], fontsize=_SMALL)
    panels[0].set_ylim(len(pairs) - 0.4, -0.6)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.supxlabel("mean difference within pairs, arm − reference (in the unit above)", fontsize=7.5)


def _draw_row(axes: Axes, row: Mapping[Hashable, Any], y: int, max_pairs: int) -> None:
    decided = row["verdict"] in ("better", "worse", "equivalent")
    colour = "black" if decided else "0.5"
    axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=0.7, solid_capstyle="butt")
    axes.plot([row["t_low"], row["t_high"]], [y, y], color=colour, lw=1.8, solid_capstyle="butt")
    axes.plot(row["mean"], y, "o", color=colour, ms=3.2, mfc=colour if decided else "white", mew=0.8)
    text = row["verdict"]
    text += ", small" if text in ("better", "worse") and row["within_margin"] else ""
    text += f" ({row['n']})" if row["n"] < max_pairs else ""
    _annotate(axes, _format_p(row["p_holm"]), y, _P_OFFSET, color=colour)
    _annotate(
        axes,
        text,
        y,
        _VERDICT_OFFSET,
        color=colour,
        weight="bold" if text.startswith(("better", "worse")) else "normal",
    )


def _annotate(axes: Axes, text: str, y: float, offset: float, **style: Any) -> None:
    axes.annotate(
        text,
        (1, y),
        (offset, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=_SMALL,
        annotation_clip=False,
        **style,
    )


def _format_p(p: float) -> str:
    if pd.isna(p):
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
