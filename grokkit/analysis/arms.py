"""The arms of a study of policies: read from the names of its runs, sorted into families, and paired."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

CONTROLS = ("yoked", "shuffled", "sham", "loss", "oui", "random")
"""First words of arms that are controls of a policy, never a baseline it has to beat."""
BEST = "best baseline"
"""The name under which the best baseline of an outcome is compared, whichever arm it is."""
_LC = "lc_"


class Families(NamedTuple):
    """Arms by what they are for, each in the order given.

    Args:
        controls: of every arm `lc_X` the arms `<word>_lc_X`, such as its twin `yoked_lc_X`, and, of the words in
            `CONTROLS`, `<word>_X`.
        others: the arms of no family: baselines, and controls that belong to no single policy.
    """

    controls: dict[str, list[str]]
    others: list[str]

    @property
    def baselines(self) -> list[str]:
        """The others that are no control by their first word (`CONTROLS`)."""
        return [arm for arm in self.others if arm.split("_")[0] not in CONTROLS and arm != BEST]


def parse_arms(runs: pd.Series) -> pd.DataFrame:
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


def group_arms(arms: Iterable[str]) -> Families:
    """Sort the arms of a study by their names; see `Families`."""
    arms = list(dict.fromkeys(arms))
    controls: dict[str, list[str]] = {arm: [] for arm in arms if arm.startswith(_LC)}
    others = []
    for arm in arms:
        if arm in controls:
            continue
        word = arm.split("_")[0]
        ends = {lc: (f"_{lc}", *([lc.removeprefix("lc")] if word in CONTROLS else [])) for lc in controls}
        # The longest: yoked_long_hold is of lc_long_hold, though it ends like one of lc_hold.
        own = max((lc for lc in controls if arm.endswith(ends[lc])), key=len, default=None)
        others.append(arm) if own is None else controls[own].append(arm)
    return Families(controls, others)


def find_best_baselines(rows: pd.DataFrame, larger_is_better: Mapping[str, bool]) -> dict[tuple[str, str, str], str]:
    """The baseline with the best mean of each outcome, by (task, decay, outcome); without one there is no entry.

    It is chosen on the runs that it is then compared on: the best of several is lucky, so the choice speaks against an
    arm that is compared with it, never for it.

    Args:
        rows: as from `grokkit.analysis.outcomes.compute_outcomes`.
        larger_is_better: of each outcome.
    """
    own = rows[rows["arm"].isin(group_arms(rows["arm"]).baselines)]
    found = {}
    for (task, decay, outcome), part in own.groupby(["task", "decay", "outcome"]):
        means = part.groupby("arm")["value"].mean().dropna()
        if len(means):
            best = means.idxmax() if larger_is_better[str(outcome)] else means.idxmin()
            found[str(task), str(decay), str(outcome)] = str(best)
    return found


def add_best_baseline(rows: pd.DataFrame, larger_is_better: Mapping[str, bool]) -> pd.DataFrame:
    """The rows and, once more under the name `BEST`, those of the best baseline of each task, decay and outcome."""
    best = [
        rows[(rows[["task", "decay", "outcome"]] == list(place)).all(axis=1) & (rows["arm"] == arm)].assign(arm=BEST)
        for place, arm in find_best_baselines(rows, larger_is_better).items()
    ]
    return pd.concat([rows, *best], ignore_index=True)


def default_pairs(arms: Iterable[str]) -> list[tuple[str, str]]:
    """Every `lc_` arm against its yoked twin and, where there is a baseline, against the best one
    (`add_best_baseline`).

    Returns: (arm, reference), in the arms' order; empty where no arm is called `lc_` something.
    """
    found = group_arms(arms)
    best = [BEST] if found.baselines else []
    pairs = []
    for arm, controls in found.controls.items():
        twins = [control for control in controls if control.startswith("yoked_")]
        pairs += [(arm, reference) for reference in (*twins, *best)]
    return pairs
