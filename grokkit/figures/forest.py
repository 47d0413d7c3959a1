"""Paired comparisons as panels of points and intervals, with p and verdict beside each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from matplotlib.ticker import FuncFormatter, MaxNLocator

ROW = 0.15
"""Inches of one comparison."""
_SMALL = 6.5  # points of what stands beside the panels
_P, _WORD = 5, 30  # points right of a panel where p and the verdict start


def draw_forest(figure: SubFigure, told: pd.DataFrame, titles: Mapping[str, str]) -> None:
    """A panel per outcome and a row per comparison.

    A point is the mean difference over pairs, the thin line its 95 % BCa interval, the thick one its 90 % t interval,
    the shade the margin of equivalence on both sides of 0. Right of it stand Holm's p and the verdict; `small` means
    that the difference is within the margin as well, a number of pairs stands there where it is below the largest.

    Args:
        figure: takes the panels.
        told: of one task and decay, from `grokkit.analysis.comparison.compare_all`.
        titles: of each outcome, with its unit.
    """
    pairs = list(dict.fromkeys(zip(told["arm"], told["reference"], strict=True)))
    panels = figure.subplots(1, told["outcome"].nunique(), sharey=True, squeeze=False)[0]
    for axes, (outcome, own) in zip(panels, told.groupby("outcome", sort=False), strict=True):
        margin = float(own["margin"].iloc[0])
        if margin > 0:
            axes.axvspan(-margin, margin, color="0.9", lw=0, zorder=0)
        axes.axvline(0, color="0.5", lw=0.6, zorder=1)
        for row in own.to_dict("records"):
            _row(axes, row, pairs.index((row["arm"], row["reference"])), int(told["n"].max()))
        axes.set_title(titles[str(outcome)], fontsize=7, pad=11)
        axes.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}".replace("-", "−")))
        for offset, head in ((_P, "p"), (_WORD, "verdict")):
            _annotate(axes, head, -0.95, offset, color="0.35")
    panels[0].set_yticks(range(len(pairs)), [f"{arm} − {reference}" for arm, reference in pairs], fontsize=_SMALL)
    panels[0].set_ylim(len(pairs) - 0.4, -0.6)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    figure.supxlabel("mean difference within pairs, arm − reference (in the unit above)", fontsize=7.5)


def _row(axes: Axes, row: dict, place: int, most: int) -> None:
    sure = row["verdict"] in ("better", "worse", "equivalent")
    colour = "black" if sure else "0.5"
    axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=0.7, solid_capstyle="butt")
    axes.plot([row["t_low"], row["t_high"]], [place, place], color=colour, lw=1.8, solid_capstyle="butt")
    axes.plot(row["mean"], place, "o", color=colour, ms=3.2, mfc=colour if sure else "white", mew=0.8)
    word = row["verdict"]
    word += ", small" if word in ("better", "worse") and row["within_margin"] else ""
    word += f" ({row['n']})" if row["n"] < most else ""
    _annotate(axes, _number(row["p_holm"]), place, _P, color=colour)
    _annotate(
        axes, word, place, _WORD, color=colour, weight="bold" if word.startswith(("better", "worse")) else "normal"
    )


def _annotate(axes: Axes, text: str, place: float, offset: float, **style: Any) -> None:
    axes.annotate(
        text,
        (1, place),
        (offset, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        va="center",
        fontsize=_SMALL,
        annotation_clip=False,
        **style,
    )


def _number(p: float) -> str:
    if pd.isna(p):
        return "–"
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
