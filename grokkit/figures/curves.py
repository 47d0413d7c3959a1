"""Draw curves against training: select rows of the table, average seeds, and the figure `phases`."""

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

from grokkit.errors import UsageError
from grokkit.figures import register
from grokkit.figures.theme import COLUMN, LINES, MARKERS, get_probe_colour, themed
from grokkit.names import FigureData

COMMAND_OF_MEASURE = {
    "local_complexity": "`grokkit lc RUN`",
    "local_complexity_ratio": "`grokkit lc RUN`, if the run has random points",
    "calibration": "`grokkit choose-radius RUN`",
    "robust_accuracy": "`grokkit attack RUN`",
    "range_test_loss": "`grokkit lr-find EXPERIMENT`",
    "learning_rate": "`grokkit train EXPERIMENT`, which logs it",
}
_KEYS = ["run", "step", "probe_set", "layer", "radius", "epsilon", "attack"]


def select(data: FigureData, measure: str, probe_sets: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the rows of one measure, with a column `variant`: the run's name before its seed.

    Raises:
        UsageError: there are none (the message names the command that adds them), or a run has two values under one
            measure_id.
    """
    rows = select_recording(require_rows(data, measure, probe_sets))
    rows["variant"] = parse_variants(rows["run"])
    return rows


def require_rows(data: FigureData, measure: str, probe_sets: Sequence[str] | None = None) -> pd.DataFrame:
    """Return all recordings of one measure. Raise UsageError if there are none, with the command that adds them."""
    rows = data.table[data.table["measure"] == measure].copy()
    for column in ("probe_set", "layer", "attack"):
        rows[column] = rows[column].astype(object).where(rows[column].notna(), "")
    if probe_sets is not None:
        rows = rows[rows["probe_set"].isin(probe_sets)]
    if rows.empty:
        on_sets = f" on {' or '.join(probe_sets)}" if probe_sets is not None else ""
        command = COMMAND_OF_MEASURE.get(measure, f"`grokkit.replay_run(RUN, measures=[{measure!r}])`")
        raise UsageError(f"the table has no {measure}{on_sets}, which this figure draws; add it with {command}")
    return rows


def select_recording(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the recording with the most steps, then the most images, if the same numbers were recorded several times.

    Recordings differ by parameters or points; curves that mix them would jump at the end of one. A warning names the
    one that is used.
    """
    if not rows.duplicated(_KEYS).any():
        return rows
    group = [key for key in _KEYS if key != "step"]
    recordings = rows.groupby([*group, "measure_id"], dropna=False, as_index=False).agg(
        steps=("step", "nunique"), images=("n", "max")
    )
    ranked = recordings.sort_values(["steps", "images", "measure_id"], ascending=False, kind="stable")
    selected = rows.merge(ranked.drop_duplicates(group)[[*group, "measure_id"]], on=[*group, "measure_id"])
    if selected.duplicated(_KEYS).any():
        raise UsageError(f"run {selected['run'].iloc[0]} has {selected['measure'].iloc[0]} twice under one measure_id")
    ids = sorted(set(selected["measure_id"]))
    warnings.warn(
        f"{selected['measure'].iloc[0]} was recorded with several settings; drawing {', '.join(ids)}. "
        "Pass a filtered table to draw another",
        stacklevel=4,
    )
    return selected


def parse_variants(runs: pd.Series) -> pd.Series:
    """Strip seed and hash from run names: `quickstart/default-s0-ab12cd34` -> `quickstart/default`."""
    return runs.astype(str).str.replace(r"-s\d+(-[0-9a-z]+)?$", "", regex=True)


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

    The layer `total` is used if there is one, else the sum of the layers (`power` 2: root of the sum of squares).
    """
    total = rows[rows["layer"] == "total"]
    if len(total):
        return total
    groups = rows.assign(value=rows["value"] ** power).groupby(["run", "variant", "step", "probe_set"], sort=False)
    summed = groups["value"].sum(min_count=1).reset_index()
    return summed.assign(value=summed["value"] ** (1 / power), low=math.nan, high=math.nan)


def average_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns step, value, low, high, averaged over runs.

    One run: its values and their own interval. Several: mean, minimum and maximum at the steps that all of them have
    (a mean over ever fewer seeds would jump).
    """
    if rows["run"].nunique() == 1:
        return rows.sort_values("step")[["step", "value", "low", "high"]]
    table = rows.pivot_table(index="step", columns="run", values="value", sort=True).dropna()
    if table.empty:
        raise UsageError(f"the runs {', '.join(table.columns)} share no recorded step; draw them separately")
    columns = {"value": table.mean(axis=1), "low": table.min(axis=1), "high": table.max(axis=1)}
    return pd.DataFrame(columns).reset_index()


def draw_band(axes: Axes, rows: pd.DataFrame, **style: Any) -> Line2D:
    """Draw one line with its band from the rows of one variant; infinite values leave a gap."""
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

    Colour is the probe set, line style the variant. Seeds of a variant are drawn as their mean in a band from the
    lowest to the highest; a single run has the band of its readings' own interval. Of several attacks the lowest
    accuracy is drawn thick, each attack thin.

    Args:
        data: needs the measures accuracy and local_complexity; robust_accuracy, weight_norm and logit_scale are drawn
            if they were measured.
        radius: of the local complexity; None: the middle one of those measured.

    Returns:
        A figure one column wide.

    Raises:
        UsageError: a measure is missing; the message names the command that adds it.
    """
    accuracy = select(data, "accuracy", ("train", "test"))
    complexity, radius = select_radius(select(data, "local_complexity"), radius)
    measures = set(data.table["measure"])
    sizes = [name for name in ("weight_norm", "logit_scale") if name in measures]
    heights = [1.35, 1.35, *(0.8 for _ in sizes)]
    figure = Figure(figsize=(COLUMN, 0.75 + 0.97 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    draw_by_probe_set(panels[0], accuracy)
    marks = _draw_robust(panels[0], select(data, "robust_accuracy")) if "robust_accuracy" in measures else []
    panels[0].set(ylabel="accuracy\n(share of images)", ylim=(-0.02, 1.02))
    _draw_complexity(panels[1], complexity, radius)
    for panel, name in zip(panels[2:], sizes, strict=True):
        _draw_size(panel, select(data, name), name)
    panels[-1].set_xlabel(STEP_LABEL)
    set_log_steps(panels[-1], pd.concat([accuracy["step"], complexity["step"]]))
    figure.align_ylabels(panels)
    probe_sets = pd.concat([accuracy["probe_set"], complexity["probe_set"]])
    _add_legend(figure, list(dict.fromkeys(probe_sets)), list(dict.fromkeys(accuracy["variant"])), marks)
    return figure


def _draw_complexity(axes: Axes, rows: pd.DataFrame, radius: float) -> None:
    draw_by_probe_set(axes, sum_layers(rows))
    unit, _, space = str(rows["unit"].iloc[0]).partition(" (")
    axes.set_ylabel(f"local complexity\n({unit})")
    axes.set_title(f"radius {radius:g}{' in ' if space else ''}{space.rstrip(')')}", fontsize=7, color="0.35")


def _draw_size(axes: Axes, rows: pd.DataFrame, measure: str) -> None:
    if measure == "logit_scale":
        draw_by_probe_set(axes, rows)
        axes.set_ylabel("logit scale\n(logits)")
        return
    for line, part in _group_by_variant(sum_layers(rows, power=2)):
        draw_band(axes, part, color="black", linestyle=line)
    axes.set_ylabel("weights\n(L2 norm)")


def _group_by_variant(rows: pd.DataFrame) -> list[tuple[Any, pd.DataFrame]]:
    """Return the rows of each variant with its line style, in order of appearance."""
    parts = [part for _, part in rows.groupby("variant", sort=False)]
    return [(LINES[index % len(LINES)], part) for index, part in enumerate(parts)]


def draw_by_probe_set(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw a line per variant and probe set: the style is the variant, the colour the set."""
    names = list(dict.fromkeys(rows["probe_set"]))
    for line, part in _group_by_variant(rows):
        for name, curve in part.groupby("probe_set", sort=False):
            colour = get_probe_colour(str(name), names)
            draw_band(axes, curve, color=colour, linestyle=line)


def _draw_robust(axes: Axes, rows: pd.DataFrame) -> list[Line2D]:
    """Draw each attack thin and their minimum thick with a marker per epsilon; return the legend's handles."""
    names, epsilons = list(dict.fromkeys(rows["probe_set"])), sorted(set(rows["epsilon"]))
    for line, part in _group_by_variant(rows):
        for (name, epsilon), group in part.groupby(["probe_set", "epsilon"], sort=False):
            style = {"color": get_probe_colour(str(name), names), "linestyle": line}
            for _, attack in group.groupby("attack", sort=False):
                curve = average_seeds(attack)
                axes.plot(curve["step"], curve["value"], lw=0.5, alpha=0.7, **style)
            lowest = group.groupby(["run", "step"], as_index=False)["value"].min().assign(low=math.nan, high=math.nan)
            draw_band(axes, lowest, marker=MARKERS[epsilons.index(epsilon) % len(MARKERS)], mew=0, lw=0.9, **style)
    count = rows["attack"].nunique()
    suffix = f", lowest of {count} attacks" if count > 1 else f", {rows['attack'].iloc[0]}"
    handles = [
        Line2D(
            [], [], color="0.2", marker=marker, mew=0, lw=0.9, label=f"attacked, ε = {format_epsilon(epsilon)}{suffix}"
        )
        for epsilon, marker in zip(epsilons, MARKERS * len(epsilons), strict=False)
    ]
    return [*handles, Line2D([], [], color="0.2", lw=0.5, label="each attack")] if count > 1 else handles


def format_epsilon(epsilon: float) -> str:
    """Format an l_inf radius as k/255 if it is a multiple of 1/255."""
    levels = 255 * epsilon
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else f"{epsilon:g}"


def _add_legend(figure: Figure, probe_sets: list[str], variants: list[str], marks: list[Line2D]) -> None:
    """Add a legend above the panels: a column of colours beside a column of line styles and markers."""
    colours = [Line2D([], [], color=get_probe_colour(name, probe_sets), label=name) for name in probe_sets]
    styles = [
        Line2D([], [], color="0.2", linestyle=LINES[index % len(LINES)], label=name)
        for index, name in enumerate(variants)
    ]
    others = [*(styles if len(variants) > 1 else []), *marks]
    # A legend fills its columns evenly, so the shorter column is padded with blank entries.
    rows = max(len(colours), len(others))
    blank = [Line2D([], [], linestyle="none", label=" ")]
    handles = [*colours, *blank * (rows - len(colours)), *others, *blank * (rows - len(others))] if others else colours
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if others else len(colours), labelspacing=0.25)
