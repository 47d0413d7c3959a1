"""Draw a policy's signal, its learning rate, and the reasons for its decisions."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from grokkit.analysis.run_groups import complete_groups
from grokkit.config.groups import sort_labels
from grokkit.figures import register
from grokkit.figures.curves import select
from grokkit.figures.styles import MAX_GROUPS, add_group_legend, check_group_count, group_legend_height
from grokkit.figures.theme import FULL, get_group_colours, themed
from grokkit.names import FigureData

MAX_DECISIONS = 12
"""Maximum number of reasons printed below the panels; the rest are in the runs' events."""
_LINE = 0.118  # inches per line of notes


@register("policy")
@themed
def policy(data: FigureData) -> Figure:
    """Draw learning rate and signal against updates, each decision a numbered line with its reason printed below.

    Every run is a line; a colour is a group of runs that differ only in their seed. A signal with a companion
    `<name>_se` has a band of one standard error on each side, one with `<name>_low` and `<name>_high` a band between
    them; a slope has a line at 0. There is no signal panel for a policy without a signal.

    Args:
        data: needs the measure learning_rate; uses rows with measure or probe_set `signal`, and events of kind
            `policy`.

    Returns:
        A figure as wide as the page.

    Raises:
        UsageError: the learning rate is missing, or there are too many groups.
    """
    rates, signals = select(data, "learning_rate"), _select_signals(complete_groups(data.table))
    groups = sort_labels(rates["group"])
    check_group_count(groups, MAX_GROUPS)
    group_of_run = dict(zip(rates["run"], rates["group"], strict=True))
    decisions = _select_decisions(data.events)
    decisions = decisions.assign(group=decisions["run"].map(group_of_run))
    colours = get_group_colours(groups)
    lines = _format_reasons(decisions)
    note_height = _LINE * (len(lines) + 1) if lines else 0.0
    height = 0.9 + 1.25 * (1 + len(signals)) + note_height + group_legend_height(groups, FULL)
    rect = (0.0, note_height / height, 1.0, 1 - note_height / height)
    figure = Figure(figsize=(FULL, height), layout=ConstrainedLayoutEngine(rect=rect))
    panels = figure.subplots(1 + len(signals), 1, sharex=True, squeeze=False)[:, 0]
    _draw_lines(panels[0], rates, colours)
    panels[0].set_ylabel("learning rate")
    # No offset such as 1e-3 above the axis: the decisions' numbers are there.
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylim(bottom=0)
    for axes, (name, rows) in zip(panels[1:], signals.items(), strict=True):
        _draw_lines(axes, rows, colours)
        if name.endswith("_slope"):
            axes.axhline(0, color="0.5", lw=0.6)
            _limit_range(axes, rows)
        axes.set_ylabel(textwrap.fill(f"{name.replace('_', ' ')} ({rows['unit'].iloc[0] or 'no unit'})", 24))
    panels[-1].set_xlabel("step (optimizer updates)")
    panels[-1].set_xlim(0, max(1.0, float(rates["step"].max())))
    _mark_decisions(panels, decisions, colours)
    figure.align_ylabels(panels)
    if len(colours) > 1:
        add_group_legend(figure, colours, "outside upper left")
    if lines:
        figure.text(
            0.01, note_height / height, "\n".join(lines), va="top", fontsize=6.5, parse_math=False, linespacing=1.25
        )
    return figure


def _select_signals(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each signal by name, with `low` and `high` from its logged bounds."""
    rows = table[(table["measure"] == "signal") | (table["probe_set"] == "signal")]
    parts = {str(name): part for name, part in rows.groupby("measure", sort=False)}
    return {name: _add_bounds(name, part, parts) for name, part in parts.items() if not _is_bound_of(name, parts)}


def _is_bound_of(name: str, parts: dict[str, pd.DataFrame]) -> bool:
    """Return whether this is the standard error, or a bound of the interval, of another signal in `parts`."""
    return any(name.endswith(suffix) and name.removesuffix(suffix) in parts for suffix in ("_se", "_low", "_high"))


def _add_bounds(name: str, part: pd.DataFrame, parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Set `low` and `high` from the logged interval of the signal, or one standard error away."""
    for suffix in ("_se", "_low", "_high"):
        bound = parts.get(f"{name}{suffix}")
        if bound is not None:
            part = part.merge(bound[["run", "step", "value"]], on=["run", "step"], how="left", suffixes=("", suffix))
    if "value_se" in part:
        part = part.assign(low=part["value"] - part["value_se"], high=part["value"] + part["value_se"])
    if "value_low" in part and "value_high" in part:
        part = part.assign(low=part["value_low"], high=part["value_high"])
    return part


def _select_decisions(events: pd.DataFrame) -> pd.DataFrame:
    """Return the policies' events, in order of their step."""
    if "kind" not in events or not (events["kind"] == "policy").any():
        return pd.DataFrame({"run": [], "step": [], "text": []})
    return events[events["kind"] == "policy"].sort_values(["step", "run"], kind="stable", ignore_index=True)


def _draw_lines(axes: Axes, rows: pd.DataFrame, colours: dict[str, str]) -> None:
    for _, part in rows.groupby("run", sort=False):
        part = part.sort_values("step")
        colour = colours.get(str(part["group"].iloc[0]), "0.4")
        axes.plot(part["step"], part["value"].where(np.isfinite(part["value"])), color=colour, lw=1)
        if np.isfinite(part[["low", "high"]]).all(axis=1).any():
            low, high = (part[side].where(np.isfinite(part[side])) for side in ("low", "high"))
            axes.fill_between(part["step"], low, high, color=colour, alpha=0.18, lw=0)


def _limit_range(axes: Axes, rows: pd.DataFrame) -> None:
    """Limit the y-axis to the slopes and the middle of their bands; the first intervals, of two readings, are wider."""
    values = rows["value"][np.isfinite(rows["value"])]
    if len(values):
        limit = 3 * max(float(values.abs().quantile(0.9)), 1e-9)
        axes.set_ylim(max(axes.get_ylim()[0], -limit), min(axes.get_ylim()[1], limit))


def _mark_decisions(panels: np.ndarray, decisions: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw a thin line through all panels per decision and its number above; numbers of near decisions are stacked."""
    spacing = 0.025 * panels[0].get_xlim()[1]
    ends: list[float] = []
    for number, (step, group) in enumerate(zip(decisions["step"], decisions["group"], strict=True), start=1):
        for axes in panels:
            axes.axvline(step, color=colours.get(group, "0.4"), lw=0.6, linestyle=(0, (2, 1.5)), zorder=0)
        level = next((i for i, end in enumerate(ends) if step - end >= spacing), len(ends))
        ends[level : level + 1] = [float(step)]
        panels[0].annotate(
            str(number),
            (step, 1),
            (0, 2 + 7.5 * level),
            xycoords=panels[0].get_xaxis_transform(),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6.5,
            color=colours.get(group, "0.4"),
        )


def _format_reasons(decisions: pd.DataFrame) -> list[str]:
    """Return the numbered and wrapped lines, one entry per decision."""
    has_several_runs = decisions["run"].nunique() > 1
    lines: list[str] = []
    for number, event in enumerate(decisions.head(MAX_DECISIONS).itertuples(), start=1):
        run = f" of {str(event.run).rsplit('/', 1)[-1]}" if has_several_runs else ""
        lines += textwrap.wrap(f"{number}  step {event.step:,}{run}: {event.text}", 128, subsequent_indent="    ")
    if len(decisions) > MAX_DECISIONS:
        lines.append(f"{len(decisions) - MAX_DECISIONS} more decisions are in the runs' events")
    return lines
