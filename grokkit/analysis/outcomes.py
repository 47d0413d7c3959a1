"""End points of a study of policies, one number per run, from its table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from grokkit.analysis.arms import parse_arms
from grokkit.errors import UsageError

LARGER_IS_BETTER = {"test_accuracy": True, "robust_accuracy": True, "steps_to_robust": False}
"""The outcomes, and of which more is better."""
ATTACK = "pgd-margin"
"""The attack whose accuracy counts: the margin loss still has a gradient where cross-entropy has none left."""
CHARGED_SHARE = 0.1
"""Part of the budget that probes may cost an arm; an arm that ends earlier is unfinished."""
_COLUMNS = ["task", "decay", "arm", "seed", "outcome", "value", "censored"]


def compute_outcomes(
    table: pd.DataFrame,
    thresholds: Mapping[str, float] | None = None,
    epsilons: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Final test accuracy, final robust accuracy, and the steps until robust accuracy first reached a threshold.

    The budget is the last step that any run of the task and decay recorded. An arm whose longest run ends up to
    `CHARGED_SHARE` of it earlier has spent the rest on its probes: that is its end, and its steps are worth budget /
    end. A
    run whose records end before the end of its arm is unfinished: its final numbers are NaN. The first crossing is
    interpolated linearly between recorded steps, also where accuracy falls back later; a finished run that never
    crossed has the budget as its value and is `censored`.

    Args:
        table: with `TABLE_COLUMNS`; of each run the test probe set's accuracy, and its robust accuracy under
            `pgd-margin` where it was taken.
        thresholds: robust accuracy to reach, by task; a task without one has no outcome `steps_to_robust`.
        epsilons: l_inf radius of the attack in pixels, by task; else the middle one of those that every run has.

    Returns:
        task, decay, arm, seed, outcome (`test_accuracy` and `robust_accuracy`, shares of images; `steps_to_robust`,
        optimizer updates, probes included), value and censored; rows for `grokkit.analysis.comparison`.

    Raises:
        UsageError: a run holds a number twice, or an epsilon was not measured.
    """
    clean = _order_rows(table[(table["probe_set"] == "test") & (table["measure"] == "accuracy")])
    robust = select_robust_rows(table, epsilons)
    found = _final(clean, "test_accuracy") + _final(robust, "robust_accuracy") + _crossings(robust, thresholds or {})
    return pd.DataFrame(found, columns=_COLUMNS)


def select_robust_rows(table: pd.DataFrame, epsilons: Mapping[str, float] | None = None) -> pd.DataFrame:
    """The rows of robust accuracy that outcomes are made of, with task, decay and arm; arguments as for
    `outcomes`."""
    rows = table[(table["probe_set"] == "test") & (table["measure"] == "robust_accuracy")]
    return _at_epsilon(_order_rows(rows[rows["attack"] == ATTACK]), epsilons or {})


def find_same_rates(table: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> list[int]:
    """For each pair of arms of one task and decay, the seeds for which both had the same learning rates at all the
    logged steps: where that is every seed, nothing but the names of the two differs."""
    rates = table[table["measure"] == "learning_rate"].sort_values("step")
    rates = rates.assign(arm=parse_arms(rates["run"])["arm"])
    traces = {
        place: tuple(zip(own["step"], own["value"], strict=True)) for place, own in rates.groupby(["arm", "seed"])
    }
    seeds = sorted(set(rates["seed"]))
    return [
        sum((arm, seed) in traces and traces[arm, seed] == traces.get((reference, seed)) for seed in seeds)
        for arm, reference in pairs
    ]


def find_first_crossing(steps: np.ndarray, values: np.ndarray, threshold: float) -> float:
    """The step at which (n,) values first reach the threshold, interpolated linearly; NaN where they never do.

    `steps` rise. Values that are NaN are passed over. The first value being high enough, it is the first step.
    """
    known = ~np.isnan(values)
    steps, values = steps[known].astype(float), values[known]
    reached = np.flatnonzero(values >= threshold)
    if not len(reached):
        return math.nan
    at = int(reached[0])
    if at == 0:
        return float(steps[0])
    share = (threshold - values[at - 1]) / (values[at] - values[at - 1])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


def _order_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in order of steps, with task, decay, arm, the budget of their task and decay, and the arm's end."""
    rows = rows.sort_values(["run", "step"], kind="stable", ignore_index=True)
    rows = rows.join(parse_arms(rows["run"]))
    budget = rows.groupby(["task", "decay"])["step"].transform("max")
    end = rows.groupby(["task", "decay", "arm"])["step"].transform("max")
    return rows.assign(budget=budget, end=end.where(end >= (1 - CHARGED_SHARE) * budget, budget))


def _at_epsilon(rows: pd.DataFrame, epsilons: Mapping[str, float]) -> pd.DataFrame:
    """Of every task the rows of one epsilon."""
    kept = [rows.iloc[:0]]
    for task, own in rows.groupby("task", sort=False):
        known = sorted(set.intersection(*(set(part["epsilon"]) for _, part in own.groupby("run"))))
        if str(task) not in epsilons and not known:
            raise UsageError(f"the runs of {task} share no epsilon of {ATTACK}; attack them alike: grokkit attack RUN")
        chosen = epsilons[str(task)] if str(task) in epsilons else known[(len(known) - 1) // 2]
        near = np.isclose(own["epsilon"].astype(float), chosen, rtol=1e-6)
        if not near.any():
            raise UsageError(
                f"`epsilons` of {task} must be one of {', '.join(f'{e:.6g}' for e in known)}; got {chosen}"
            )
        kept.append(own[near])
    return pd.concat(kept)


def _final(rows: pd.DataFrame, outcome: str) -> list[dict[str, object]]:
    found = []
    for run, own in _group_by_run(rows):
        last = own.iloc[-1]
        value = float(last["value"]) if last["step"] == last["end"] else math.nan
        found.append(run | {"outcome": outcome, "value": value, "censored": False})
    return found


def _crossings(rows: pd.DataFrame, thresholds: Mapping[str, float]) -> list[dict[str, object]]:
    found = []
    for run, own in _group_by_run(rows[rows["task"].isin(list(thresholds))]):
        step = find_first_crossing(own["step"].to_numpy(), own["value"].to_numpy(float), thresholds[str(run["task"])])
        last = own.iloc[-1]
        censored = math.isnan(step) and last["step"] == last["end"] and not math.isnan(last["value"])
        value = float(last["budget"] if censored else step * last["budget"] / last["end"])
        found.append(run | {"outcome": "steps_to_robust", "value": value, "censored": bool(censored)})
    return found


def _group_by_run(rows: pd.DataFrame) -> list[tuple[dict[str, object], pd.DataFrame]]:
    """What each run is, and its rows. Raises UsageError where it holds a step twice."""
    found = []
    for name, own in rows.groupby("run", sort=False):
        if own["step"].duplicated().any():
            raise UsageError(
                f"run {name} holds {own['measure'].iloc[0]} on `test` twice at a step, recorded in several ways; "
                "hand over a table with one measure_id"
            )
        first = own.iloc[0]
        found.append(({key: first[key] for key in ("task", "decay", "arm", "seed")}, own))
    return found
