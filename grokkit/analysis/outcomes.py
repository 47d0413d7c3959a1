"""Compute the end points of a policy experiment, one number per run, from its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from grokkit.analysis.arms import parse_arms
from grokkit.errors import UsageError

LARGER_IS_BETTER = {"test_accuracy": True, "robust_accuracy": True, "steps_to_robust": False}
"""The outcomes, and whether a larger value is better."""
ATTACK = "pgd-margin"
"""Attack whose accuracy is used: the margin loss still has a gradient when that of cross-entropy vanishes."""
CHARGED_SHARE = 0.1
"""Share of the budget that probes may cost an arm; an arm that ends earlier is unfinished."""
_COLUMNS = ["task", "decay", "arm", "seed", "outcome", "value", "censored"]


def compute_outcomes(
    table: pd.DataFrame,
    thresholds: Mapping[str, float] | None = None,
    epsilons: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Compute final test accuracy, final robust accuracy, and the steps until robust accuracy reaches a threshold.

    The budget is the last step that any run of the task and decay recorded. If the longest run of an arm ends up to
    `CHARGED_SHARE` of the budget earlier, the arm spent the rest on its probes: that step is its end, and its steps
    are scaled by budget / end. A run whose records end before the end of its arm is unfinished: its final numbers are
    NaN. The first crossing is interpolated linearly between recorded steps, even if accuracy drops again later; a
    finished run that never crossed has the budget as its value and is `censored`.

    Args:
        table: with `TABLE_COLUMNS`; for each run the accuracy on the test probe set, and its robust accuracy under
            `pgd-margin` if it was measured.
        thresholds: robust accuracy to reach, by task; a task without one has no outcome `steps_to_robust`.
        epsilons: l_inf radius of the attack in pixels, by task; by default the middle one of those that every run
            has.

    Returns:
        task, decay, arm, seed, outcome (`test_accuracy` and `robust_accuracy`, shares of images; `steps_to_robust`,
        optimizer updates, probes included), value and censored; rows for `grokkit.analysis.comparison`.

    Raises:
        UsageError: a run has two values of one step, or an epsilon was not measured.
    """
    clean = _order_rows(table[(table["probe_set"] == "test") & (table["measure"] == "accuracy")])
    robust = select_robust_rows(table, epsilons)
    outcomes = (
        _compute_final_values(clean, "test_accuracy")
        + _compute_final_values(robust, "robust_accuracy")
        + _compute_steps_to_threshold(robust, thresholds or {})
    )
    return pd.DataFrame(outcomes, columns=_COLUMNS)


def select_robust_rows(table: pd.DataFrame, epsilons: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return the robust-accuracy rows behind the outcomes, with task, decay, arm; arguments: see `compute_outcomes`."""
    rows = table[(table["probe_set"] == "test") & (table["measure"] == "robust_accuracy")]
    return _select_epsilon(_order_rows(rows[rows["attack"] == ATTACK]), epsilons or {})


def find_same_rates(table: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> list[int]:
    """Count, for each pair of arms of one task and decay, the seeds with equal learning rates at all logged steps.

    If that is every seed, the two arms differ in name only.
    """
    rates = table[table["measure"] == "learning_rate"].sort_values("step")
    rates = rates.assign(arm=parse_arms(rates["run"])["arm"])
    traces = {
        key: tuple(zip(group["step"], group["value"], strict=True)) for key, group in rates.groupby(["arm", "seed"])
    }
    seeds = sorted(set(rates["seed"]))
    return [
        sum((arm, seed) in traces and traces[arm, seed] == traces.get((reference, seed)) for seed in seeds)
        for arm, reference in pairs
    ]


def find_first_crossing(steps: np.ndarray, values: np.ndarray, threshold: float) -> float:
    """Return the step at which (n,) values first reach the threshold, interpolated linearly; NaN if they never do.

    `steps` must rise. NaN values are skipped. If the first value is high enough, its step is returned.
    """
    known = ~np.isnan(values)
    steps, values = steps[known].astype(float), values[known]
    reached = np.flatnonzero(values >= threshold)
    if not len(reached):
        return math.nan
    index = int(reached[0])
    if index == 0:
        return float(steps[0])
    share = (threshold - values[index - 1]) / (values[index] - values[index - 1])
    return float(steps[index - 1] + share * (steps[index] - steps[index - 1]))


def _order_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort the rows by run and step and add task, decay, arm, the budget of their task and decay, and the arm's end."""
    rows = rows.sort_values(["run", "step"], kind="stable", ignore_index=True)
    rows = rows.join(parse_arms(rows["run"]))
    budget = rows.groupby(["task", "decay"])["step"].transform("max")
    end = rows.groupby(["task", "decay", "arm"])["step"].transform("max")
    return rows.assign(budget=budget, end=end.where(end >= (1 - CHARGED_SHARE) * budget, budget))


def _select_epsilon(rows: pd.DataFrame, epsilons: Mapping[str, float]) -> pd.DataFrame:
    """Return the rows of one epsilon for every task."""
    selected = [rows.iloc[:0]]
    for task, group in rows.groupby("task", sort=False):
        known = sorted(set.intersection(*(set(part["epsilon"]) for _, part in group.groupby("run"))))
        if str(task) not in epsilons and not known:
            raise UsageError(
                f"the runs of {task} share no epsilon of {ATTACK}; attack all with the same: grokkit attack RUN"
            )
        chosen = epsilons[str(task)] if str(task) in epsilons else known[(len(known) - 1) // 2]
        matches = np.isclose(group["epsilon"].astype(float), chosen, rtol=1e-6)
        if not matches.any():
            raise UsageError(
                f"`epsilons` of {task} must be one of {', '.join(f'{e:.6g}' for e in known)}; got {chosen}"
            )
        selected.append(group[matches])
    return pd.concat(selected)


def _compute_final_values(rows: pd.DataFrame, outcome: str) -> list[dict[str, object]]:
    outcomes = []
    for run, group in _group_by_run(rows):
        last = group.iloc[-1]
        value = float(last["value"]) if last["step"] == last["end"] else math.nan
        outcomes.append(run | {"outcome": outcome, "value": value, "censored": False})
    return outcomes


def _compute_steps_to_threshold(rows: pd.DataFrame, thresholds: Mapping[str, float]) -> list[dict[str, object]]:
    outcomes = []
    for run, group in _group_by_run(rows[rows["task"].isin(list(thresholds))]):
        step = find_first_crossing(
            group["step"].to_numpy(), group["value"].to_numpy(float), thresholds[str(run["task"])]
        )
        last = group.iloc[-1]
        censored = math.isnan(step) and last["step"] == last["end"] and not math.isnan(last["value"])
        value = float(last["budget"] if censored else step * last["budget"] / last["end"])
        outcomes.append(run | {"outcome": "steps_to_robust", "value": value, "censored": bool(censored)})
    return outcomes


def _group_by_run(rows: pd.DataFrame) -> list[tuple[dict[str, object], pd.DataFrame]]:
    """Return the labels and rows of each run. Raise UsageError if a run has a step twice."""
    groups = []
    for name, group in rows.groupby("run", sort=False):
        if group["step"].duplicated().any():
            raise UsageError(
                f"run {name} has {group['measure'].iloc[0]} on `test` twice at a step, recorded with several settings; "
                "pass a table with one measure_id"
            )
        first = group.iloc[0]
        groups.append(({key: first[key] for key in ("task", "decay", "arm", "seed")}, group))
    return groups
