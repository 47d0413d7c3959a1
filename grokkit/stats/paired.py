"""Test two samples, or one of paired differences: p-values, effect sizes, and the correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grokkit.stats.intervals import TIE_TOLERANCE


def signed_rank_p(differences: np.ndarray) -> float:
    """Compute the two-sided p of Wilcoxon's signed-rank test of (n,) differences, exact with ties.

    Zeros are left out (Wilcoxon 1945); 1 is returned if nothing else remains.

    Shares of a few hundred images tie often, and `scipy.stats.wilcoxon` is exact only without ties or by enumerating
    all 2^n signs; here the sums of ranks are counted instead. Cost: n^3 additions.
    """
    from scipy import stats

    nonzero = round_ties(differences)
    nonzero = nonzero[nonzero != 0]
    doubled = np.round(2 * stats.rankdata(np.abs(nonzero))).astype(int)  # the mean rank of a tie may be a half-integer
    distribution = np.zeros(doubled.sum() + 1)
    distribution[0] = 1.0
    for rank in doubled:
        distribution[rank:] = (distribution[rank:] + distribution[:-rank]) / 2
        distribution[:rank] /= 2
    positive = int(doubled[nonzero > 0].sum())
    tail = min(positive, int(doubled.sum()) - positive)
    return min(1.0, 2 * float(distribution[: tail + 1].sum()))


def cliffs_delta(over: np.ndarray, under: np.ndarray) -> float:
    """Compute P(over > under) - P(over < under) of (n,) and (m,) values (Cliff 1993), -1..1; NaN if one is empty."""
    return float(np.sign(over[:, None] - under[None, :]).mean()) if len(over) and len(under) else math.nan


def adjust_holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjust the p-values of one family, (m,), by Holm's step-down method, in the order given.

    NaN stays NaN and is not counted. The i-th smallest of m is multiplied by m - i + 1; none is below its
    predecessor, none above 1 (Holm 1979).
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def round_ties(differences: np.ndarray) -> np.ndarray:
    """Round differences so that those equal up to rounding error tie, and those that are only rounding error are 0."""
    largest = np.abs(differences).max(initial=0.0)
    return np.round(differences / largest / TIE_TOLERANCE) if largest > 0 else differences
