"""Learning-rate policies of one task against each other: what they did, what came of it, and what may be claimed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from grokkit.analysis.arms import (
    BEST,
    CONTROLS,
    Families,
    add_best_baseline,
    default_pairs,
    find_best_baselines,
    group_arms,
    parse_arms,
)
from grokkit.analysis.comparison import ALPHA, compare_all
from grokkit.analysis.outcomes import ATTACK, LARGER_IS_BETTER, compute_outcomes, select_robust_rows
from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.curves import average_seeds, draw_band, format_epsilon, select
from grokkit.figures.forest import ROW, draw_forest
from grokkit.figures.theme import FULL, LINES, PALETTE, themed
from grokkit.names import TABLE_COLUMNS, FigureData

LIMITS = {"arms called lc_": 5, "pairs": 20}
"""What one page can hold."""
_LABELS = {
    "learning_rate": "learning rate",
    "log_density": "LC signal\n(log density)",
    "robust_accuracy": "robust accuracy\n(share of images)",
    "accuracy": "test accuracy\n(share of images)",
}
_BEHIND: Any = {"color": "0.75", "lw": 0.6}
_REFERENCE: Any = {"color": "0.2", "lw": 0.8, "linestyle": (0, (1, 1))}
_LEADER: Any = {"arrowstyle": "-", "shrinkB": 1, "relpos": (0, 0.5)}
_PANEL, _LINE = 1.0, 0.118  # inches of a row of curves and of a line of small print
_GREYS = ("0.0", "0.35", "0.55")
_LABEL = 7.0  # points from one direct label to the next


@register("policies")
@themed
def policies(
    data: FigureData,
    pairs: Sequence[tuple[str, str]] | None = None,
    margins: Mapping[tuple[str, str], float] | None = None,
    thresholds: Mapping[str, float] | None = None,
    epsilons: Mapping[str, float] | None = None,
) -> Figure:
    """Learning rate, signal and accuracies of every arm, and below them the paired differences with their verdicts.

    A column per arm `lc_X` holds it and its controls (`yoked_X`, ...) in colour, before all other arms in grey; the
    last column holds those, each with its name. Lines are means over seeds, bands of the coloured ones go from the
    lowest to the highest. Below: see `grokkit.figures.forest` and, for the words, `grokkit.analysis.comparison`.

    Args:
        data: runs of one task and decay, named `<study>/<task>-<decay>-<arm>-s<seed>-<hash>`; needs the measures
            learning_rate and accuracy on the test probe set; takes the signal log_density and robust_accuracy.
        pairs: (arm, reference) to compare; None: every `lc_X` with `yoked_X` and with the baseline that is best in the
            outcome. Few are best: at 10 pairs of seeds and more than 25 comparisons (pairs times outcomes) no p can be
            below 5 %.
        margins: of equivalence, by (task, outcome); outcomes as in `grokkit.analysis.outcomes`.
        thresholds: robust accuracy to reach, by task; without one there is no outcome `steps_to_robust`.
        epsilons: radius of the attack in pixels, by task; else the middle one measured.

    Returns:
        A figure as wide as the page.

    Raises:
        UsageError: a measure is missing, the runs are of several tasks or decays, or there are more arms or pairs than
            a page holds.
    """
    chosen = _select_rows(data)
    task, decay = _only_task(chosen["learning_rate"])
    measured = pd.concat([rows for name, rows in chosen.items() if name.endswith("accuracy")])[list(TABLE_COLUMNS)]
    ends, goal = compute_outcomes(measured, thresholds, epsilons), (thresholds or {}).get(task)
    best = {outcome: arm for (_, _, outcome), arm in find_best_baselines(ends, LARGER_IS_BETTER).items()}
    if "robust_accuracy" in chosen:
        chosen["robust_accuracy"] = select_robust_rows(measured, epsilons)
    found = group_arms(sorted(set(parse_arms(chosen["learning_rate"]["run"])["arm"])))
    pairs = default_pairs(ends["arm"]) if pairs is None else list(pairs)
    _check_room(found, pairs)
    told = (
        compare_all(add_best_baseline(ends, LARGER_IS_BETTER), pairs, LARGER_IS_BETTER, margins)
        if pairs
        else pd.DataFrame()
    )
    notes = _notes(told, ends, best if BEST in {reference for _, reference in pairs} else {})
    lines = textwrap.wrap(" ".join([*filter(None, (f"{task} {decay}".strip() + ".", *notes))]), 134)
    heights = [0.65 + _PANEL * len(chosen), *([0.75 + ROW * len(pairs)] if pairs else [])]
    below = _LINE * (len(lines) + 0.5)
    total = sum(heights) + below
    rect = (0.0, below / total, 1.0, 1 - below / total)
    figure = Figure(figsize=(FULL, total), layout=ConstrainedLayoutEngine(rect=rect))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    titles = _titles(chosen, goal)
    shown = best.get("robust_accuracy", best.get("test_accuracy", ""))
    drawn = [(arm, shown if reference == BEST else reference) for arm, reference in pairs]
    _curves(parts[0], chosen, found, drawn, goal)
    if pairs:
        draw_forest(parts[1], told, titles)
    figure.text(0.01, below / total, "\n".join(lines), va="top", fontsize=6.5, linespacing=1.25)
    return figure


def _select_rows(data: FigureData) -> dict[str, pd.DataFrame]:
    """The rows to draw by measure, from the top panel to the lowest; a measure that may be missing is left out."""
    found = {"learning_rate": select(data, "learning_rate")}
    signal = data.table[data.table["probe_set"] == "signal"]
    if (signal["measure"] == "log_density").any():
        found["log_density"] = select(data, "log_density", ("signal",))
    if (data.table["attack"] == ATTACK).any():
        found["robust_accuracy"] = select(data, "robust_accuracy", ("test",))
    return found | {"accuracy": select(data, "accuracy", ("test",))}


def _only_task(rows: pd.DataFrame) -> tuple[str, str]:
    places = sorted(set(parse_arms(rows["run"])[["task", "decay"]].itertuples(index=False, name=None)))
    if len(places) > 1:
        words = ["-".join(filter(None, place)) for place in places]
        raise UsageError(
            f"`policies` draws the runs of one task and decay; the table holds {', '.join(words)}. Hand over those of "
            f"one: grokkit figure policies 'runs/STUDY/{words[0]}-*'"
        )
    return places[0]


def _check_room(found: Families, pairs: Sequence[tuple[str, str]]) -> None:
    for what, came in (("arms called lc_", len(found.controls)), ("pairs", len(pairs))):
        if came > LIMITS[what]:
            raise UsageError(f"`policies` has room for {LIMITS[what]} {what}; got {came}. Draw fewer runs or `pairs`")


def _titles(chosen: Mapping[str, pd.DataFrame], goal: float | None) -> dict[str, str]:
    """Of each outcome, in two lines with the unit."""
    titles = {"test_accuracy": "test accuracy at the end\n(share of images, more is better)"}
    if "robust_accuracy" in chosen:
        attacked = f"ε = {format_epsilon(float(chosen['robust_accuracy']['epsilon'].iloc[0]))}"
        titles["robust_accuracy"] = f"robust accuracy at the end, {attacked}\n(share of images, more is better)"
    return titles | {"steps_to_robust": f"steps to robust accuracy {goal}\n(optimizer updates, less is better)"}


def _notes(told: pd.DataFrame, ends: pd.DataFrame, best: Mapping[str, str]) -> list[str]:
    """The sentences below the figure; `best`: baseline by outcome, where arms are compared with it."""
    seeds = ends["seed"].nunique()
    notes = [
        f"Lines: mean over {seeds} seeds; bands (arms in colour): lowest to highest." if seeds > 1 else "One seed."
    ]
    if told.empty:
        return [*notes, "Nothing is compared: no arm is called lc_ something, and no `pairs` were given."]
    tested, most = int(told["p"].notna().sum()), int(told["n"].max())
    notes.append(
        f"Below: mean over {most} pairs of one seed (a number in brackets: over so many), thin its 95 % BCa interval, "
        "thick its 90 % t interval, which decides on equivalence."
    )
    if best:
        named = ", ".join(f"{arm} ({outcome.replace('_', ' ')})" for outcome, arm in best.items())
        notes.append(f"Best baseline, chosen on these runs: {named}.")
    if tested:
        notes.append(f"p: exact signed-rank test, Holm over {tested} comparisons.")
    least = tested * 2.0 ** (1 - most)
    if least >= ALPHA:
        notes.append(
            f"So many comparisons of so few pairs cannot all be sure: their smallest p is {min(least, 1.0):.2f}."
        )
    shaded = "Shaded: the margin of equivalence; small: also within it." if told["margin"].notna().any() else ""
    steps = ends[ends["outcome"] == "steps_to_robust"]
    never = int(steps["censored"].sum())
    notes.append(
        f"{never} of {len(steps)} runs never reached the robust accuracy asked for and count with the whole budget."
        if never
        else ""
    )
    return [*notes, shaded]


def _curves(
    figure: SubFigure,
    chosen: Mapping[str, pd.DataFrame],
    found: Families,
    pairs: Sequence[tuple[str, str]],
    goal: float | None,
) -> None:
    """A row of panels per measure, a column per family and one for the other arms."""
    columns = [*found.controls, *(["other arms"] if found.others else [])]
    panels = figure.subplots(len(chosen), len(columns), sharex=True, sharey="row", squeeze=False)
    colours = _colours(found)
    for row, (measure, rows) in zip(panels, chosen.items(), strict=True):
        arms = {str(arm): own for arm, own in rows.groupby(parse_arms(rows["run"])["arm"], sort=False)}
        for axes, column in zip(row, columns, strict=True):
            if goal is not None and measure == "robust_accuracy":
                axes.axhline(goal, color="0.5", lw=0.5, linestyle=(0, (1, 2)), zorder=0)
            if column in found.controls:
                _family(axes, arms, column, found, pairs, colours)
        row[0].set_ylabel(_LABELS[measure], fontsize=7)
        row[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        row[0].yaxis.set_major_locator(MaxNLocator(4))
        if found.others:
            _others(row[-1], arms, found.others, 1 + 0.035 * len(columns))
    for axes, column in zip(panels[0], columns, strict=True):
        axes.set_title(column)
    panels[0, 0].set_xlim(0, max(1.0, *(float(rows["step"].max()) for rows in chosen.values())))
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(3))
    panels[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.supxlabel("step (optimizer updates)", fontsize=7.5)
    figure.align_ylabels(panels[:, 0])
    if found.controls:
        handles = [
            Line2D([], [], color=colour, linestyle=line, label=f"{word}_") for word, (colour, line) in colours.items()
        ]
        handles.append(Line2D([], [], label="baseline it is compared with", **_REFERENCE))
        handles.append(Line2D([], [], label="other arms", **_BEHIND))
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def _colours(found: Families) -> dict[str, tuple[str, Any]]:
    """Colour and line of an `lc_` arm and of each first word among the controls."""
    words = {arm.split("_")[0] for own in found.controls.values() for arm in own}
    known = [*(word for word in CONTROLS if word in words), *sorted(words - set(CONTROLS))]
    return {word: (PALETTE[i % len(PALETTE)], LINES[i % len(LINES)]) for i, word in enumerate(["lc", *known])}


def _family(
    axes: Axes,
    arms: Mapping[str, pd.DataFrame],
    arm: str,
    found: Families,
    pairs: Sequence[tuple[str, str]],
    colours: Mapping[str, tuple[str, Any]],
) -> None:
    """An arm and its controls in colour, before the others."""
    references = {reference for over, reference in pairs if over == arm}
    for other in sorted(found.others, key=references.__contains__):
        if other in arms:
            curve = average_seeds(arms[other])
            axes.plot(curve["step"], curve["value"], **(_REFERENCE if other in references else _BEHIND))
    for own in (arm, *found.controls[arm]):
        colour, line = colours[own.split("_")[0]]
        if own in arms:
            draw_band(axes, arms[own], color=colour, linestyle=line)


def _others(axes: Axes, arms: Mapping[str, pd.DataFrame], names: Sequence[str], right: float) -> None:
    """The arms of no family, each with its name at its end, `right` in widths of the panel; the name's leader goes on
    in the line's style."""
    ends = []
    if not set(names) & set(arms):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="0.5", fontsize=6.5)
    for i, name in enumerate(names):
        style = {"color": _GREYS[i % len(_GREYS)], "linestyle": LINES[i % len(LINES)], "lw": 0.9}
        if name in arms:
            curve = average_seeds(arms[name])
            axes.plot(curve["step"], curve["value"], **style)
            ends.append((float(curve["value"].iloc[-1]), float(curve["step"].iloc[-1]), name, style))
    low, high = axes.get_ylim()
    ends.sort(key=lambda end: end[0])
    heights = _spread([(end[0] - low) / (high - low) for end in ends], _LABEL / (72 * 0.8 * _PANEL))
    for (value, step, name, style), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (step, value),
            (right, height),
            textcoords="axes fraction",
            va="center",
            fontsize=6.5,
            color=style["color"],
            annotation_clip=False,
            arrowprops={**_LEADER, **style},
        )


def _spread(places: list[float], gap: float) -> list[float]:
    """Rising places moved apart by at least `gap`, kept below 1 where they fit."""
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(places))):
        places[i] = min(places[i], top)
        top = places[i] - gap
    return places
