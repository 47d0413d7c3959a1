"""The arms of a study of policies: read from the names of its runs, sorted into families, and paired."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

CONTROLS = ("yoked", "shuffled", "sham", "loss", "oui", "random")
"""First words of arms that are controls of a policy, never a baseline it has to beat."""
_LC = "lc_"


class Families(NamedTuple):
    """Arms by what they are for, each in the order given.

    Args:
        controls: of every arm `lc_X` the arms `<word>_X` and `<word>_lc_X`, such as its twin `yoked_X`.
        others: the arms of no family: baselines, and controls that belong to no single policy.
    """

    controls: dict[str, list[str]]
    others: list[str]

    @property
    def baselines(self) -> list[str]:
        """The others that are no control by their first word (`CONTROLS`)."""
        return [arm for arm in self.others if arm.split("_")[0] not in CONTROLS]


def arms_of(runs: pd.Series) -> pd.DataFrame:
    """Columns task, decay and arm, with the index of `runs`, from their names.

    `study/digits-coupled-lc_hold-s0-ab12cd34` -> digits, coupled, lc_hold. Of a shorter variant the last part is the
    arm, and what it does not name is empty; a task without a name is the study: `demo/wsd-s0-ab12cd34` -> demo, , wsd.
    """
    names = runs.astype(str).drop_duplicates()
    variants = names.str.replace(r"-s\d+(-[0-9a-z]+)?$", "", regex=True)
    known = dict(zip(names, map(_split, variants), strict=True))
    return pd.DataFrame([known[run] for run in runs.astype(str)], columns=["task", "decay", "arm"], index=runs.index)


def _split(variant: str) -> tuple[str, str, str]:
    study, _, own = variant.rpartition("/")
    *place, arm = own.rsplit("-", 2)
    return (place[0] if place else study, place[1] if len(place) > 1 else "", arm)


def families(arms: Iterable[str]) -> Families:
    """Sort the arms of a study by their names; see `Families`."""
    arms = list(dict.fromkeys(arms))
    controls: dict[str, list[str]] = {arm: [] for arm in arms if arm.startswith(_LC)}
    others = []
    for arm in arms:
        if arm in controls:
            continue
        # The longest: yoked_long_hold is of lc_long_hold, though it ends like one of lc_hold.
        own = max((lc for lc in controls if arm.endswith(lc.removeprefix("lc"))), key=len, default=None)
        others.append(arm) if own is None else controls[own].append(arm)
    return Families(controls, others)


def usual_pairs(rows: pd.DataFrame, outcome: str = "test_accuracy") -> list[tuple[str, str]]:
    """Every `lc_` arm against its yoked twin and against the best baseline, where they are there.

    The best baseline is the one with the highest mean of `outcome`, chosen on the same runs: the best of several is
    lucky, so this speaks against the arm, never for it. A study that knows its pairs in advance hands them over.

    Args:
        rows: as from `grokkit.analysis.outcomes.outcomes`.
        outcome: one of which more is better.

    Returns:
        (arm, reference), in the arms' order; empty where no arm is called `lc_` something.
    """
    found = families(rows["arm"])
    own = rows[(rows["outcome"] == outcome) & rows["arm"].isin(found.baselines)]
    means = own.groupby("arm")["value"].mean().dropna()
    best = [str(means.idxmax())] if len(means) else []
    pairs = []
    for arm, controls in found.controls.items():
        twins = [control for control in controls if control.startswith("yoked_")]
        pairs += [(arm, reference) for reference in (*twins, *best)]
    return pairs
