"""Two samples, or one of paired differences: tests, effect sizes, and the correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from grokkit.stats.intervals import TIE_TOLERANCE


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of (n,) differences, exact with ties; zeros are left out (Wilcoxon
    1945) and 1 is returned where nothing else is there.

    Shares of a few hundred images tie often, and `scipy.stats.wilcoxon` is exact without ties or by going through all
    2^n signs; here the sums of ranks are counted instead. Cost: n^3 additions.
    """
    from scipy import stats

    gaps = round_ties(differences)
    gaps = gaps[gaps != 0]
    doubled = np.round(2 * stats.rankdata(np.abs(gaps))).astype(int)  # a tie's mean rank may end in a half
    chance = np.zeros(doubled.sum() + 1)
    chance[0] = 1.0
    for rank in doubled:
        chance[rank:] = (chance[rank:] + chance[:-rank]) / 2
        chance[:rank] /= 2
    positive = int(doubled[gaps > 0].sum())
    tail = min(positive, int(doubled.sum()) - positive)
    return min(1.0, 2 * float(chance[: tail + 1].sum()))


def cliffs_delta(over: np.ndarray, under: np.ndarray) -> float:
    """P(over > under) - P(over < under) of (n,) against (m,) values (Cliff 1993), -1..1; NaN where one has none."""
    return float(np.sign(over[:, None] - under[None, :]).mean()) if len(over) and len(under) else math.nan


def adjust_holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down p-values of one family, (m,), in the order given; a NaN stays NaN and is not of the family.

    The i-th smallest of m is multiplied by m - i + 1, no one is below its predecessor, none over 1 (Holm 1979).
    """
    p = np.asarray(p, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def round_ties(differences: np.ndarray) -> np.ndarray:
    """Differences that are equal but for rounding made equal, so that they tie, and 0 where they are nothing."""
    largest = np.abs(differences).max(initial=0.0)
    return np.round(differences / largest / TIE_TOLERANCE) if largest > 0 else differences
