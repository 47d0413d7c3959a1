"""Colours and line styles of the curves of several groups of runs and probe sets, with their legends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grokkit.config.groups import sort_labels, split_common_name
from grokkit.errors import UsageError
from grokkit.figures.theme import COLUMN, LINES, PROBE_COLOURS, escape_math, get_group_colours, get_probe_colour

MAX_GROUPS = 24
"""Most groups in one figure: the colours of more could not be told apart."""
LEGEND_ROW = 0.125
"""Inches per row of a legend."""
CHARACTERS_PER_INCH = 17
LABEL_WIDTH = 24
"""Characters of a label that fit beside a panel."""
_NO_PROBE_SET_COLOUR = "black"


class CurveStyles:
    """Styles of a figure's curves: of one group, colour is the probe set; of several, it is the group, and the line
    style is the probe set.

    Args:
        rows: all rows that the figure draws, with the columns `group` and `probe_set`.

    Raises:
        UsageError: more than `MAX_GROUPS` groups.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self.groups = sort_labels(rows["group"])
        check_group_count(self.groups, MAX_GROUPS)
        names = [name for name in dict.fromkeys(rows["probe_set"]) if name]
        self.probe_sets = sorted(names, key=lambda name: [*PROBE_COLOURS, name].index(name))
        self._group_colours = get_group_colours(self.groups)

    def of(self, group: str, probe_set: str = "") -> dict[str, Any]:
        """Return colour and line style of one curve."""
        if len(self.groups) > 1:
            place = self.probe_sets.index(probe_set) if probe_set else 0
            return {"color": self._group_colours[group], "linestyle": LINES[place % len(LINES)]}
        colour = get_probe_colour(probe_set, self.probe_sets) if probe_set else _NO_PROBE_SET_COLOUR
        return {"color": colour, "linestyle": LINES[0]}

    def split(self, rows: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        """Yield the rows of each group and probe set with their style."""
        for (group, probe_set), part in rows.groupby(["group", "probe_set"], sort=False):
            yield self.of(str(group), str(probe_set)), part

    def add_legends(self, figure: Figure, marks: Iterable[Line2D] = ()) -> None:
        """Add a legend of probe sets and `marks` above the panels and, of several groups, one of these below."""
        sets, marks = self._probe_set_handles(), list(marks)
        # A legend fills its columns evenly, so the shorter column is padded with blank entries.
        rows = max(len(sets), len(marks))
        blank = [Line2D([], [], linestyle="none", label=" ")]
        padded = [*sets, *blank * (rows - len(sets)), *marks, *blank * (rows - len(marks))] if marks else sets
        columns = 2 if marks else max(len(sets), 1)
        figure.legend(handles=padded, loc="outside upper left", ncols=columns, labelspacing=0.25)
        if len(self.groups) > 1:
            add_group_legend(figure, self._group_colours, "outside lower left")

    def legend_height(self, width: float = COLUMN) -> float:
        """Return the inches that the legend of groups needs in a figure of this width."""
        return group_legend_height(self.groups, width)

    def _probe_set_handles(self) -> list[Line2D]:
        if len(self.groups) == 1:
            return [
                Line2D([], [], color=get_probe_colour(name, self.probe_sets), label=name) for name in self.probe_sets
            ]
        return [
            Line2D([], [], color="0.2", linestyle=LINES[place % len(LINES)], label=name)
            for place, name in enumerate(self.probe_sets)
        ]


def check_group_count(groups: Sequence[str], maximum: int) -> None:
    """Raise UsageError if a figure cannot draw so many groups."""
    if len(groups) > maximum:
        raise UsageError(
            f"this figure draws at most {maximum} groups of runs (a group: runs that differ only in their seed); got "
            f"{len(groups)}. Draw fewer runs at a time"
        )


def add_group_legend(
    figure: Figure, colours: Mapping[str, str], place: Literal["outside upper left", "outside lower left"]
) -> None:
    """Add a legend of the groups' colours, in as many columns as fit; a name that all share is its title."""
    title, entries = split_common_name(list(colours))
    handles = [
        Line2D([], [], color=colour, label=escape_math(entry))
        for entry, colour in zip(entries, colours.values(), strict=True)
    ]
    columns = count_columns(entries, figure.get_figwidth())
    figure.legend(
        handles=handles,
        loc=place,
        ncols=columns,
        labelspacing=0.25,
        title=escape_math(title) or None,
        alignment="left",
        title_fontsize=7.5,
    )


def group_legend_height(groups: Sequence[str], width: float) -> float:
    """Return the inches that a legend of these groups needs in a figure of this width; none for one group."""
    if len(groups) < 2:
        return 0.0
    title, entries = split_common_name(groups)
    return LEGEND_ROW * (bool(title) - (-len(groups) // count_columns(entries, width))) + 0.05


def wrap_label(label: str) -> str:
    """Return a group's label in lines that fit beside a panel, broken at spaces and after slashes, for matplotlib."""
    return escape_math(textwrap.fill(label.replace("/", "/ "), LABEL_WIDTH).replace("/ ", "/"))


def count_columns(entries: Sequence[str], width: float) -> int:
    """Return how many columns of a legend of these entries fit in a figure of this width."""
    longest = max(map(len, entries)) + 6
    return max(1, min(len(entries), int(width * CHARACTERS_PER_INCH / longest)))
