"""Draw curves against training: select rows of the table, average the seeds of a group, and the figure `phases`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter

from grokkit.analysis.run_groups import complete_groups
from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.styles import CurveStyles
from grokkit.figures.theme import COLUMN, MARKERS, themed
from grokkit.names import FigureData, format_epsilon

WAYS_TO_MEASURE = {
    "local_complexity": "add it with `grokkit lc RUN`",
    "local_complexity_ratio": "add it with `grokkit lc RUN`, if the run has random points",
    "calibration": "add it with `grokkit choose-radius RUN`",
    "robust_accuracy": "add it with `grokkit attack RUN`",
    "range_test_loss": "it is in the table that `grokkit lr-find EXPERIMENT` writes beside this figure",
    "loop_images_per_s": "it is in the table that `grokkit bench throughput` writes beside this figure",
    "learning_rate": "`grokkit train` logs it, or your own loop with `recorder.log(step, 'batch', learning_rate=...)`",
}
_KEYS = ["run", "step", "probe_set", "layer", "radius", "epsilon", "attack"]


def select(data: FigureData, measure: str, probe_sets: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows of one measure in the recording that is drawn (`select_recording`), with their `group`.

    Raises:
        UsageError: there are none (the message names the command that adds them), a run has two values under one
            measure_id, or the runs have different units.
    """
    rows = select_recording(require_rows(data, measure, probe_sets))
    units = [unit for unit in dict.fromkeys(rows["unit"]) if isinstance(unit, str) and unit]
    if len(units) > 1:
        raise UsageError(
            f"the runs have {measure} in different units, which one axis cannot show: {'; '.join(units)}. Draw them "
            "separately"
        )
    return rows


def require_rows(data: FigureData, measure: str, probe_sets: Sequence[str] | None = None) -> pd.DataFrame:
    """Return all recordings of one measure. Raise UsageError if there are none, with the command that adds them."""
    table = complete_groups(data.table)
    rows = table[table["measure"] == measure].copy()
    for column in ("probe_set", "layer", "attack"):
        rows[column] = rows[column].astype(object).where(rows[column].notna(), "")
    if probe_sets is not None:
        rows = rows[rows["probe_set"].isin(probe_sets)]
    if rows.empty:
        on_sets = f" on {' or '.join(probe_sets)}" if probe_sets is not None else ""
        way = WAYS_TO_MEASURE.get(measure, f"add it with `grokkit.replay_run(RUN, measures=[{measure!r}])`")
        raise UsageError(f"the table has no {measure}{on_sets}, which this figure draws; {way}")
    return rows


def select_recording(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, of each curve that a run has several recordings of, the one with settings that most runs of its group
    share, then the one with the most steps, then the most images.

    Recordings differ by parameters or points; curves that mix them would jump at the end of one. A warning names those
    that are drawn, and another the groups whose runs have no settings in common.
    """
    curve = [key for key in _KEYS if key != "step"]
    settings = [*(key for key in curve if key != "run"), "group", "images", "directions"]
    recordings = rows.groupby([*curve, "group", "measure_id"], dropna=False, as_index=False).agg(
        steps=("step", "nunique"), images=("n", "max"), directions=("directions", "max")
    )
    shared = recordings.groupby(settings, dropna=False)["run"].transform("nunique")
    order = ["shared", "steps", "images", "measure_id"]
    chosen = recordings.assign(shared=shared).sort_values(order, ascending=False, kind="stable").drop_duplicates(curve)
    if len(chosen) < len(recordings):
        rows = rows.merge(chosen[[*curve, "measure_id"]], on=[*curve, "measure_id"])
        warnings.warn(
            f"{rows['measure'].iloc[0]} was recorded with several settings; of each run the one that most seeds share "
            f"is drawn, then the one with the most steps and images: {', '.join(sorted(set(chosen['measure_id'])))}. "
            "To draw another, pass a table with only its measure_id",
            stacklevel=4,
        )
    _check_repeated(rows)
    _warn_of_mixed_seeds(chosen, str(rows["measure"].iloc[0]))
    return rows


def _check_repeated(rows: pd.DataFrame) -> None:
    if (twice := rows[rows.duplicated(_KEYS)]).shape[0]:
        raise UsageError(
            f"run {twice['run'].iloc[0]} has {twice['measure'].iloc[0]} at step {twice['step'].iloc[0]} twice under "
            "one measure_id: the run and a table with its rows were given, or the measure has dims that are not columns"
        )


def _warn_of_mixed_seeds(chosen: pd.DataFrame, measure: str) -> None:
    by_curve = chosen.groupby([key for key in _KEYS if key not in ("run", "step")] + ["group"], dropna=False)
    mixed = chosen[(by_curve["images"].transform("nunique") > 1) | (by_curve["directions"].transform("nunique") > 1)]
    for group in dict.fromkeys(mixed["group"]):
        images = sorted(set(mixed["images"][mixed["group"] == group]))
        warnings.warn(
            f"{measure} of the seeds of {group} was taken with different settings (images: "
            f"{', '.join(str(count) for count in images)}); their mean mixes them. Measure all of them alike",
            stacklevel=5,
        )


def select_radius(rows: pd.DataFrame, radius: float | None) -> tuple[pd.DataFrame, float]:
    """Return the rows of one radius, and that radius: `radius`, else the middle one of those that every run has."""
    common = set.intersection(*(set(part["radius"]) for _, part in rows.groupby("run")))
    known = sorted(common)
    if not known:
        raise UsageError("the runs share no radius of local_complexity; draw them separately")
    chosen = known[(len(known) - 1) // 2] if radius is None else radius
    matches = np.isclose(rows["radius"].astype(float), chosen, rtol=1e-9)
    if not matches.any():
        raise UsageError(f"`radius` must be one of {', '.join(f'{r:g}' for r in known)}; got {radius}")
    return rows[matches], chosen


def sum_layers(rows: pd.DataFrame, power: int = 1) -> pd.DataFrame:
    """Return one row per run, step and probe set, summed over layers.

    Of a run with the layer `total` that is used, else the sum of the layers (`power` 2: root of the sum of squares).
    """
    total = rows[rows["layer"] == "total"]
    layers = rows[~rows["run"].isin(total["run"])]
    if layers.empty:
        return total
    groups = layers.assign(value=layers["value"] ** power).groupby(
        ["run", "seed", "group", "step", "probe_set", "unit"], sort=False, dropna=False
    )
    summed = groups["value"].sum(min_count=1).reset_index()
    summed = summed.assign(value=summed["value"] ** (1 / power), low=math.nan, high=math.nan)
    return summed if total.empty else pd.concat([total, summed], ignore_index=True)


def average_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns step, value, low, high, averaged over runs.

    One run: its values and their own interval. Several: mean, minimum and maximum at the steps that all of them have
    (a mean over ever fewer seeds would jump).

    Raises:
        UsageError: a run has two values at a step, the rows are of several groups, or the runs share no step.
    """
    if rows["group"].nunique() > 1:
        raise UsageError(f"only seeds of one group can be averaged; got {', '.join(sorted(set(rows['group'])))}")
    if (twice := rows[rows.duplicated(["run", "step"])]).shape[0]:
        first = twice.iloc[0]
        raise UsageError(f"run {first['run']} has two values at step {first['step']} of what is drawn as one curve")
    if rows["run"].nunique() == 1:
        return rows.sort_values("step")[["step", "value", "low", "high"]]
    table = rows.pivot(index="step", columns="run", values="value").sort_index().dropna()
    if table.empty:
        raise UsageError(f"the runs {', '.join(table.columns)} share no recorded step; draw them separately")
    columns = {"value": table.mean(axis=1), "low": table.min(axis=1), "high": table.max(axis=1)}
    return pd.DataFrame(columns).reset_index()


def draw_band(axes: Axes, rows: pd.DataFrame, **style: Any) -> Line2D:
    """Draw one line with its band from the rows of one group; infinite values leave a gap."""
    curve = average_seeds(rows)
    curve = curve.assign(value=curve["value"].where(np.isfinite(curve["value"])))
    (line,) = axes.plot(curve["step"], curve["value"], **style)
    if curve[["low", "high"]].notna().all(axis=1).any():
        axes.fill_between(curve["step"], curve["low"], curve["high"], color=line.get_color(), alpha=0.18, lw=0)
    return line


def set_log_steps(axes: Axes, steps: pd.Series) -> None:
    """Set a logarithmic axis of updates with step 0 left of the first power of ten."""
    positive = steps[steps > 0]
    first = 10 ** math.floor(math.log10(positive.min())) if len(positive) else 1
    last = max(float(steps.max()), first)
    axes.set_xscale("symlog", linthresh=first, linscale=0.5)
    axes.set_xlim(-0.15 * first, last * 1.12)
    powers = [10**k for k in range(round(math.log10(first)), math.floor(math.log10(last)) + 1)]
    axes.xaxis.set_major_locator(FixedLocator([0, *powers]))
    axes.xaxis.set_minor_locator(FixedLocator([m * p for p in powers for m in range(2, 10) if m * p <= last]))
    axes.xaxis.set_major_formatter(FuncFormatter(_format_power))


def _format_power(value: float, _position: int | None = None) -> str:
    return f"{value:g}" if value < 100 else f"$10^{{{round(math.log10(value))}}}$"


STEP_LABEL = "step (optimizer updates, log scale)"


@register("phases")
@themed
def phases(data: FigureData, radius: float | None = None) -> Figure:
    """Draw accuracy, robust accuracy, local complexity and the size of weights and logits on one axis of updates.

    Runs that differ only in their seed are a group, drawn as their mean in a band from the lowest to the highest; a
    single run has the band of its readings' own interval. Of one group, colour is the probe set; of several, colour is
    the group and line style the probe set. Of several attacks the lowest accuracy is drawn thick, each attack thin.

    Args:
        data: needs the measures accuracy and local_complexity; robust_accuracy, weight_norm and logit_scale are drawn
            if they were measured.
        radius: of the local complexity; None: the middle one of those measured.

    Returns:
        A figure one column wide.

    Raises:
        UsageError: a measure is missing (the message names the command that adds it), or there are too many groups.
    """
    accuracy = select(data, "accuracy", ("train", "test"))
    complexity, radius = select_radius(select(data, "local_complexity"), radius)
    styles = CurveStyles(pd.concat([accuracy, complexity]))
    measures = set(data.table["measure"])
    sizes = [name for name in ("weight_norm", "logit_scale") if name in measures]
    heights = [1.35, 1.35, *(0.8 for _ in sizes)]
    height = 0.75 + 0.97 * sum(heights) + styles.legend_height()
    figure = Figure(figsize=(COLUMN, height), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    draw_by_probe_set(panels[0], accuracy, styles)
    robust = select(data, "robust_accuracy") if "robust_accuracy" in measures else None
    marks = [] if robust is None else _draw_robust(panels[0], robust, styles)
    panels[0].set(ylabel="accuracy\n(share of images)", ylim=(-0.02, 1.02))
    _draw_complexity(panels[1], complexity, radius, styles)
    for panel, name in zip(panels[2:], sizes, strict=True):
        _draw_size(panel, select(data, name), name, styles)
    panels[-1].set_xlabel(STEP_LABEL)
    set_log_steps(panels[-1], pd.concat([accuracy["step"], complexity["step"]]))
    figure.align_ylabels(panels)
    styles.add_legends(figure, marks)
    return figure


def _draw_complexity(axes: Axes, rows: pd.DataFrame, radius: float, styles: CurveStyles) -> None:
    draw_by_probe_set(axes, sum_layers(rows), styles)
    unit, _, space = str(rows["unit"].iloc[0]).partition(" (")
    axes.set_ylabel(f"local complexity\n({unit})")
    axes.set_title(f"radius {radius:g}{' in ' if space else ''}{space.rstrip(')')}", fontsize=7, color="0.35")


def _draw_size(axes: Axes, rows: pd.DataFrame, measure: str, styles: CurveStyles) -> None:
    if measure == "weight_norm":
        rows = sum_layers(rows, power=2)
    draw_by_probe_set(axes, rows, styles)
    axes.set_ylabel("weights\n(L2 norm)" if measure == "weight_norm" else "logit scale\n(logits)")


def draw_by_probe_set(axes: Axes, rows: pd.DataFrame, styles: CurveStyles) -> None:
    """Draw a line per group and probe set."""
    for style, part in styles.split(rows):
        draw_band(axes, part, **style)


def _draw_robust(axes: Axes, rows: pd.DataFrame, styles: CurveStyles) -> list[Line2D]:
    """Draw each attack thin and their minimum thick with a marker per epsilon; return the legend's handles."""
    epsilons = sorted(set(rows["epsilon"]))
    for style, part in styles.split(rows):
        for epsilon, attacked in part.groupby("epsilon"):
            for _, attack in attacked.groupby("attack", sort=False):
                curve = average_seeds(attack)
                axes.plot(curve["step"], curve["value"], lw=0.5, alpha=0.7, **style)
            lowest = attacked.groupby(["group", "run", "step"], as_index=False)["value"].min()
            marker = MARKERS[epsilons.index(epsilon) % len(MARKERS)]
            draw_band(axes, lowest.assign(low=math.nan, high=math.nan), marker=marker, mew=0, lw=0.9, **style)
    count = rows["attack"].nunique()
    suffix = f", lowest of {count} attacks" if count > 1 else f", {rows['attack'].iloc[0]}"
    handles = [
        Line2D(
            [], [], color="0.2", marker=marker, mew=0, lw=0.9, label=f"attacked, ε = {format_epsilon(epsilon)}{suffix}"
        )
        for epsilon, marker in zip(epsilons, MARKERS * len(epsilons), strict=False)
    ]
    return [*handles, Line2D([], [], color="0.2", lw=0.5, label="each attack")] if count > 1 else handles
