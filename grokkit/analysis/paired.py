"""Compare two groups of runs with the same seeds, as a ratio over steps."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from grokkit.errors import UsageError


def paired_ratio(rows: pd.DataFrame, over: str, under: str) -> pd.DataFrame:
    """Compute the geometric mean of value(over) / value(under) over seeds, with its paired t interval.

    One ratio per step and probe set.

    Args:
        rows: with columns `run`, `group`, `seed`, `step`, `probe_set` and `value`; pairs share a seed. Steps and sets
            that one of the groups lacks are left out, as is a pair with a value of 0.
        over, under: the groups.

    Returns:
        step, probe_set, value, low, high (95 %; NaN for fewer than 2 pairs), p (two-sided t test of log ratio = 0;
        NaN if all ratios are equal) and n, the number of pairs.

    Raises:
        UsageError: the groups share no seed, or a group has a seed twice.
    """
    from scipy.special import stdtr, stdtrit

    _check_pairs(rows)
    positive = rows[rows["group"].isin((over, under)) & (rows["value"] > 0)]
    wide = positive.pivot(index=["step", "probe_set", "seed"], columns="group", values="value").dropna()
    if over not in wide or under not in wide or wide.empty:
        raise UsageError(f"the groups {over} and {under} share no seed and step; pair them: grokkit train --seed")
    logs = (wide[over] / wide[under]).map(math.log).groupby(["step", "probe_set"])
    statistics = pd.DataFrame({"mean": logs.mean(), "error": logs.sem(), "n": logs.size()})
    half = stdtrit(statistics["n"] - 1, 0.975) * statistics["error"]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(statistics["n"] - 1, -np.abs(statistics["mean"] / statistics["error"]))
    bounds = {"value": statistics["mean"], "low": statistics["mean"] - half, "high": statistics["mean"] + half}
    return statistics[["n"]].assign(p=p, **{name: np.exp(column) for name, column in bounds.items()}).reset_index()


def _check_pairs(rows: pd.DataFrame) -> None:
    """Raise UsageError if a group has several runs of one seed: it is not known then which of them is of a pair."""
    runs = rows[["group", "seed", "run"]].drop_duplicates()
    repeated = runs[runs.duplicated(["group", "seed"], keep=False)]
    for (group, seed), part in repeated.groupby(["group", "seed"], sort=False):
        raise UsageError(
            f"runs are paired by their seed, but {group} has several of seed {seed}: {', '.join(part['run'])}. Leave "
            "out all but one; your own loop states its seed with `gk.record(..., seed=...)`"
        )


def find_separation(ratios: pd.DataFrame) -> int | None:
    """Return the first step from which every interval of one probe set excludes 1; None if the last one does not."""
    excludes_one = (ratios["low"] > 1) | (ratios["high"] < 1)
    separated = ratios["step"][excludes_one.to_numpy()[::-1].cumprod()[::-1].astype(bool)]
    return int(separated.min()) if len(separated) else None
