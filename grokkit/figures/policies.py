"""Draw the learning-rate policies of one task against each other: learning rates, outcomes, and paired comparisons."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
from grokkit.figures.curves import average_seeds, draw_band, select
from grokkit.figures.forest import ROW, draw_forest
from grokkit.figures.theme import FULL, LINES, PALETTE, themed
from grokkit.names import TABLE_COLUMNS, FigureData, format_epsilon

LIMITS = {"lc_ arms": 5, "pairs": 20}
"""What fits on one page."""
_LABELS = {
    "learning_rate": "learning rate",
    "log_density": "LC signal\n(log density)",
    "robust_accuracy": "robust accuracy\n(share of images)",
    "accuracy": "test accuracy\n(share of images)",
}
_BACKGROUND_STYLE: Any = {"color": "0.75", "lw": 0.6}
_REFERENCE_STYLE: Any = {"color": "0.2", "lw": 0.8, "linestyle": (0, (1, 1))}
_LEADER_STYLE: Any = {"arrowstyle": "-", "shrinkB": 1, "relpos": (0, 0.5)}
_PANEL, _LINE = 1.0, 0.118  # inches per row of curves and per line of notes
_GREYS = ("0.0", "0.35", "0.55")
_LABEL_GAP = 7.0  # minimum distance of two labels, in points


@register("policies")
@themed
def policies(
    data: FigureData,
    pairs: Sequence[tuple[str, str]] | None = None,
    margins: Mapping[tuple[str, str], float] | None = None,
    thresholds: Mapping[str, float] | None = None,
    epsilons: Mapping[str, float] | None = None,
) -> Figure:
    """Draw the learning rate, signal and accuracies of every arm, and below them the paired differences with verdicts.

    A column per arm `lc_X` shows it and its controls (`yoked_X`, ...) in colour, in front of all other arms in grey;
    the last column shows those others, each with its name. Lines are means over seeds; bands of the coloured arms
    reach from the lowest to the highest seed. For the comparisons see `grokkit.figures.forest`, for the verdicts
    `grokkit.analysis.comparison`.

    Args:
        data: runs of one task and decay, named `<experiment>/<task>-<decay>-<arm>-s<seed>-<hash>`; needs the measures
            learning_rate and accuracy on the test probe set; optionally the signal log_density and robust_accuracy.
        pairs: (arm, reference) to compare; None: every `lc_X` with `yoked_X` and with the baseline that is best in
            the outcome. Few are better: at 10 pairs of seeds and more than 25 comparisons (pairs times outcomes) no p
            can be below 5 %.
        margins: of equivalence, by (task, outcome); outcomes as in `grokkit.analysis.outcomes`.
        thresholds: robust accuracy to reach, by task; without one there is no outcome `steps_to_robust`.
        epsilons: radius of the attack in pixels, by task; by default the middle one measured.

    Returns:
        A figure as wide as the page.

    Raises:
        UsageError: a measure is missing, the runs are of several tasks or decays, or there are more arms or pairs
            than fit on a page.
    """
    rows_by_measure = _select_rows(data)
    task, decay = _require_one_task(rows_by_measure["learning_rate"])
    rows_by_measure = {measure: _group_by_arm(rows) for measure, rows in rows_by_measure.items()}
    accuracy_rows = pd.concat([rows for name, rows in rows_by_measure.items() if name.endswith("accuracy")])[
        list(TABLE_COLUMNS)
    ]
    outcomes, threshold = compute_outcomes(accuracy_rows, thresholds, epsilons), (thresholds or {}).get(task)
    best = {outcome: arm for (_, _, outcome), arm in find_best_baselines(outcomes, LARGER_IS_BETTER).items()}
    if "robust_accuracy" in rows_by_measure:
        rows_by_measure["robust_accuracy"] = select_robust_rows(accuracy_rows, epsilons)
    families = group_arms(sorted(set(parse_arms(rows_by_measure["learning_rate"]["run"])["arm"])))
    pairs = default_pairs(outcomes["arm"]) if pairs is None else list(pairs)
    _check_limits(families, pairs)
    comparisons = (
        compare_all(add_best_baseline(outcomes, LARGER_IS_BETTER), pairs, LARGER_IS_BETTER, margins)
        if pairs
        else pd.DataFrame()
    )
    notes = _build_notes(comparisons, outcomes, best if BEST in {reference for _, reference in pairs} else {})
    lines = textwrap.wrap(" ".join([*filter(None, (f"{task} {decay}".strip() + ".", *notes))]), 134)
    heights = [0.65 + _PANEL * len(rows_by_measure), *([0.75 + ROW * len(pairs)] if pairs else [])]
    note_height = _LINE * (len(lines) + 0.5)
    total = sum(heights) + note_height
    rect = (0.0, note_height / total, 1.0, 1 - note_height / total)
    figure = Figure(figsize=(FULL, total), layout=ConstrainedLayoutEngine(rect=rect))
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    titles = _build_titles(rows_by_measure, threshold)
    drawn_best = best.get("robust_accuracy", best.get("test_accuracy", ""))
    drawn_pairs = [(arm, drawn_best if reference == BEST else reference) for arm, reference in pairs]
    _draw_curves(parts[0], rows_by_measure, families, drawn_pairs, threshold)
    if pairs:
        draw_forest(parts[1], comparisons, titles)
    figure.text(0.01, note_height / total, "\n".join(lines), va="top", fontsize=6.5, linespacing=1.25)
    return figure


def _select_rows(data: FigureData) -> dict[str, pd.DataFrame]:
    """Return the rows to draw by measure, from top to bottom; missing optional measures are skipped."""
    selected = {"learning_rate": select(data, "learning_rate")}
    signal = data.table[data.table["probe_set"] == "signal"]
    if (signal["measure"] == "log_density").any():
        selected["log_density"] = select(data, "log_density", ("signal",))
    if (data.table["attack"] == ATTACK).any():
        selected["robust_accuracy"] = select(data, "robust_accuracy", ("test",))
    selected["accuracy"] = select(data, "accuracy", ("test",))
    return selected


def _group_by_arm(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the arm as their group: the seeds of a control that replays other runs differ in what they
    replay. Raise UsageError if the runs of an arm differ in more than their seed otherwise."""
    rows = rows.assign(arm=parse_arms(rows["run"])["arm"].to_numpy())
    controls = {arm for arms in group_arms(sorted(set(rows["arm"]))).controls.values() for arm in arms}
    for arm, part in rows.groupby("arm"):
        runs = part[["run", "seed"]].drop_duplicates()
        if (part["group"].nunique() > 1 and arm not in controls) or runs["seed"].duplicated().any():
            raise UsageError(
                f"`policies` averages the runs of an arm, but those of {arm} differ in more than their seed: "
                f"{', '.join(sorted(set(part['run'])))}. Pass those of one configuration"
            )
    return rows.assign(group=rows["arm"]).drop(columns="arm")


def _require_one_task(rows: pd.DataFrame) -> tuple[str, str]:
    tasks = sorted(set(parse_arms(rows["run"])[["task", "decay"]].itertuples(index=False, name=None)))
    if len(tasks) > 1:
        names = ["-".join(filter(None, task)) for task in tasks]
        raise UsageError(
            f"`policies` draws the runs of one task and decay; the table has {', '.join(names)}. Pass those of "
            f"one: grokkit figure policies 'runs/EXPERIMENT/{names[0]}-*'"
        )
    return tasks[0]


def _check_limits(families: Families, pairs: Sequence[tuple[str, str]]) -> None:
    for kind, count in (("lc_ arms", len(families.controls)), ("pairs", len(pairs))):
        if count > LIMITS[kind]:
            raise UsageError(f"`policies` draws at most {LIMITS[kind]} {kind}; got {count}. Draw fewer runs or `pairs`")


def _build_titles(rows_by_measure: Mapping[str, pd.DataFrame], threshold: float | None) -> dict[str, str]:
    """Return the title of each outcome, in two lines with the unit."""
    titles = {"test_accuracy": "final test accuracy\n(share of images, higher is better)"}
    if "robust_accuracy" in rows_by_measure:
        attacked = f"ε = {format_epsilon(float(rows_by_measure['robust_accuracy']['epsilon'].iloc[0]))}"
        titles["robust_accuracy"] = f"final robust accuracy, {attacked}\n(share of images, higher is better)"
    return titles | {"steps_to_robust": f"steps to robust accuracy {threshold}\n(optimizer updates, lower is better)"}


def _build_notes(comparisons: pd.DataFrame, outcomes: pd.DataFrame, best: Mapping[str, str]) -> list[str]:
    """Return the sentences below the figure; `best`: baseline by outcome, if arms are compared with it."""
    seeds = outcomes["seed"].nunique()
    notes = [
        f"Lines: mean over {seeds} seeds; bands (arms in colour): lowest to highest." if seeds > 1 else "One seed."
    ]
    if comparisons.empty:
        return [*notes, "No comparisons: no arm name starts with lc_, and no `pairs` were given."]
    tested, max_pairs = int(comparisons["p"].notna().sum()), int(comparisons["n"].max())
    notes.append(
        f"Below: mean over {max_pairs} pairs of one seed (or the number in brackets), thin its 95 % BCa interval, "
        "thick its 90 % t interval, which decides on equivalence."
    )
    if best:
        baselines = ", ".join(f"{arm} ({outcome.replace('_', ' ')})" for outcome, arm in best.items())
        notes.append(f"Best baseline, chosen on these runs: {baselines}.")
    if tested:
        notes.append(f"p: exact signed-rank test, Holm over {tested} comparisons.")
    smallest_p = tested * 2.0 ** (1 - max_pairs)
    if smallest_p >= ALPHA:
        notes.append(f"Too many comparisons for this number of pairs: their smallest p is {min(smallest_p, 1.0):.2f}.")
    shade_note = (
        "Shaded: margin of equivalence; small: difference also within it."
        if comparisons["margin"].notna().any()
        else ""
    )
    steps = outcomes[outcomes["outcome"] == "steps_to_robust"]
    n_censored = int(steps["censored"].sum())
    notes.append(
        f"{n_censored} of {len(steps)} runs never reached the robust accuracy threshold and count with the full budget."
        if n_censored
        else ""
    )
    return [*notes, shade_note]


def _draw_curves(
    figure: SubFigure,
    rows_by_measure: Mapping[str, pd.DataFrame],
    families: Families,
    pairs: Sequence[tuple[str, str]],
    threshold: float | None,
) -> None:
    """Draw a row of panels per measure, a column per family and one for the other arms."""
    columns = [*families.controls, *(["other arms"] if families.others else [])]
    panels = figure.subplots(len(rows_by_measure), len(columns), sharex=True, sharey="row", squeeze=False)
    colours = _assign_styles(families)
    for row, (measure, rows) in zip(panels, rows_by_measure.items(), strict=True):
        arms = {str(arm): arm_rows for arm, arm_rows in rows.groupby(parse_arms(rows["run"])["arm"], sort=False)}
        for axes, column in zip(row, columns, strict=True):
            if threshold is not None and measure == "robust_accuracy":
                axes.axhline(threshold, color="0.5", lw=0.5, linestyle=(0, (1, 2)), zorder=0)
            if column in families.controls:
                _draw_family(axes, arms, column, families, pairs, colours)
        row[0].set_ylabel(_LABELS[measure], fontsize=7)
        row[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        row[0].yaxis.set_major_locator(MaxNLocator(4))
        if families.others:
            _draw_others(row[-1], arms, families.others, 1 + 0.035 * len(columns))
    for axes, column in zip(panels[0], columns, strict=True):
        axes.set_title(column)
    panels[0, 0].set_xlim(0, max(1.0, *(float(rows["step"].max()) for rows in rows_by_measure.values())))
    panels[0, 0].xaxis.set_major_locator(MaxNLocator(3))
    panels[0, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.supxlabel("step (optimizer updates)", fontsize=7.5)
    figure.align_ylabels(panels[:, 0])
    if families.controls:
        handles = [
            Line2D([], [], color=colour, linestyle=line, label=f"{prefix}_")
            for prefix, (colour, line) in colours.items()
        ]
        handles.append(Line2D([], [], label="reference baseline", **_REFERENCE_STYLE))
        handles.append(Line2D([], [], label="other arms", **_BACKGROUND_STYLE))
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def _assign_styles(families: Families) -> dict[str, tuple[str, Any]]:
    """Return colour and line style of the `lc_` arms and of each prefix among the controls."""
    prefixes = {arm.split("_")[0] for arms in families.controls.values() for arm in arms}
    ordered = [*(prefix for prefix in CONTROLS if prefix in prefixes), *sorted(prefixes - set(CONTROLS))]
    return {prefix: (PALETTE[i % len(PALETTE)], LINES[i % len(LINES)]) for i, prefix in enumerate(["lc", *ordered])}


def _draw_family(
    axes: Axes,
    arms: Mapping[str, pd.DataFrame],
    arm: str,
    families: Families,
    pairs: Sequence[tuple[str, str]],
    colours: Mapping[str, tuple[str, Any]],
) -> None:
    """Draw an arm and its controls in colour, in front of the others."""
    references = {reference for treated, reference in pairs if treated == arm}
    for other in sorted(families.others, key=references.__contains__):
        if other in arms:
            curve = average_seeds(arms[other])
            axes.plot(curve["step"], curve["value"], **(_REFERENCE_STYLE if other in references else _BACKGROUND_STYLE))
    for name in (arm, *families.controls[arm]):
        colour, line = colours[name.split("_")[0]]
        if name in arms:
            draw_band(axes, arms[name], color=colour, linestyle=line)


def _draw_others(axes: Axes, arms: Mapping[str, pd.DataFrame], names: Sequence[str], right: float) -> None:
    """Draw the arms of no family, each labelled at its end.

    `right` is the position of the labels in panel widths; a leader line in the arm's style connects curve and label.
    """
    ends = []
    if not set(names) & set(arms):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="0.5", fontsize=6.5)
    for i, name in enumerate(names):
        style = {"color": _GREYS[i % len(_GREYS)], "linestyle": LINES[i % len(LINES)], "lw": 0.9}
        if name in arms:
            curve = average_seeds(arms[name])
            axes.plot(curve["step"], curve["value"].where(np.isfinite(curve["value"])), **style)
            finite = curve[np.isfinite(curve["value"])]
            ends += [
                (float(value), float(step), name, style) for step, value in finite[["step", "value"]].tail(1).to_numpy()
            ]
    low, high = axes.get_ylim()
    ends.sort(key=lambda end: end[0])
    heights = _spread_labels([(end[0] - low) / (high - low) for end in ends], _LABEL_GAP / (72 * 0.8 * _PANEL))
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
            arrowprops={**_LEADER_STYLE, **style},
        )


def _spread_labels(heights: list[float], gap: float) -> list[float]:
    """Move rising heights apart by at least `gap`, and keep them below 1 if they fit."""
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    top = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], top)
        top = heights[i] - gap
    return heights
