"""Two variants of a study, run with the same seeds: what they differ by, and how surely."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from grokkit.errors import UsageError


def paired_ratio(rows: pd.DataFrame, over: str, under: str) -> pd.DataFrame:
    """Geometric mean over seeds of value(over) / value(under) at each step and probe set, with its paired t interval.

    Args:
        rows: with columns `variant`, `seed`, `step`, `probe_set` and `value`, one row for each of them; pairs share a
            seed. Steps and sets that one of the variants lacks are left out, as is a pair with a value of 0.
        over, under: the variants.

    Returns:
        step, probe_set, value, low, high (95 %; NaN for fewer than 2 pairs), p (two-sided t test of log ratio = 0; NaN
        where all ratios are equal) and n, the number of pairs.

    Raises:
        UsageError: the variants share no seed.
    """
    from scipy.special import stdtr, stdtrit

    both = rows[rows["variant"].isin((over, under)) & (rows["value"] > 0)]
    wide = both.pivot(index=["step", "probe_set", "seed"], columns="variant", values="value").dropna()
    if over not in wide or under not in wide or wide.empty:
        raise UsageError(f"the variants {over} and {under} share no seed and step; pair them: grokkit train --seed")
    logs = (wide[over] / wide[under]).map(math.log).groupby(["step", "probe_set"])
    found = pd.DataFrame({"mean": logs.mean(), "error": logs.sem(), "n": logs.size()})
    half = stdtrit(found["n"] - 1, 0.975) * found["error"]
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(found["n"] - 1, -np.abs(found["mean"] / found["error"]))
    bounds = {"value": found["mean"], "low": found["mean"] - half, "high": found["mean"] + half}
    return found[["n"]].assign(p=p, **{name: np.exp(column) for name, column in bounds.items()}).reset_index()


def find_separation(ratios: pd.DataFrame) -> int | None:
    """The first step from which on every interval excludes 1, of one probe set; None where the last one does not."""
    clear = (ratios["low"] > 1) | (ratios["high"] < 1)
    kept = ratios["step"][clear.to_numpy()[::-1].cumprod()[::-1].astype(bool)]
    return int(kept.min()) if len(kept) else None
