"""Parse the arms of a policy experiment from its run names, group them into families, and pair them for comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

CONTROLS = ("yoked", "shuffled", "sham", "loss", "oui", "random")
"""Name prefixes of arms that are controls of a policy, never a baseline it has to beat."""
BEST = "best baseline"
"""Arm name under which the best baseline of an outcome is compared, whichever arm it is."""
_LC_PREFIX = "lc_"


class Families(NamedTuple):
    """Arms of an experiment grouped by role, each group in the order given.

    Args:
        controls: for every arm `lc_X` its controls: the arms `<prefix>_lc_X`, such as its twin `yoked_lc_X`, and, for
            the prefixes in `CONTROLS`, `<prefix>_X`.
        others: the arms of no family: baselines, and controls that belong to no single policy.
    """

    controls: dict[str, list[str]]
    others: list[str]

    @property
    def baselines(self) -> list[str]:
        """Return the arms of `others` whose prefix is not in `CONTROLS`."""
        return [arm for arm in self.others if arm.split("_")[0] not in CONTROLS and arm != BEST]


def parse_arms(runs: pd.Series) -> pd.DataFrame:
    """Return the columns task, decay and arm parsed from run names, with the index of `runs`.

    `demo/digits-coupled-lc_hold-s0-ab12cd34` -> digits, coupled, lc_hold. If a variant has fewer parts, the last one is
    the arm and the missing ones are empty; without a task it is the name of the experiment: `demo/wsd-s0-ab12cd34` ->
    demo, , wsd.
    """
    names = runs.astype(str).drop_duplicates()
    variants = names.str.replace(r"-s\d+(-[0-9a-z]+)?$", "", regex=True)
    parts = dict(zip(names, map(_split_variant, variants), strict=True))
    return pd.DataFrame([parts[run] for run in runs.astype(str)], columns=["task", "decay", "arm"], index=runs.index)


def _split_variant(variant: str) -> tuple[str, str, str]:
    study, _, label = variant.rpartition("/")
    *prefix, arm = label.rsplit("-", 2)
    return (prefix[0] if prefix else study, prefix[1] if len(prefix) > 1 else "", arm)


def group_arms(arms: Iterable[str]) -> Families:
    """Group the arms of an experiment by their names; see `Families`."""
    arms = list(dict.fromkeys(arms))
    controls: dict[str, list[str]] = {arm: [] for arm in arms if arm.startswith(_LC_PREFIX)}
    others = []
    for arm in arms:
        if arm in controls:
            continue
        prefix = arm.split("_")[0]
        suffixes = {lc: (f"_{lc}", *([lc.removeprefix("lc")] if prefix in CONTROLS else [])) for lc in controls}
        # The longest match: yoked_long_hold belongs to lc_long_hold, though its name also ends in that of lc_hold.
        family = max((lc for lc in controls if arm.endswith(suffixes[lc])), key=len, default=None)
        others.append(arm) if family is None else controls[family].append(arm)
    return Families(controls, others)


def find_best_baselines(rows: pd.DataFrame, larger_is_better: Mapping[str, bool]) -> dict[tuple[str, str, str], str]:
    """Return the baseline with the best mean of each outcome, by (task, decay, outcome); no entry without a baseline.

    The choice is made on the runs that are then compared. The best of several is partly lucky, so this biases the
    comparison against an arm, never in its favour.

    Args:
        rows: as from `grokkit.analysis.outcomes.compute_outcomes`.
        larger_is_better: for each outcome.
    """
    baselines = rows[rows["arm"].isin(group_arms(rows["arm"]).baselines)]
    best = {}
    for (task, decay, outcome), group in baselines.groupby(["task", "decay", "outcome"]):
        means = group.groupby("arm")["value"].mean().dropna()
        if len(means):
            arm = means.idxmax() if larger_is_better[str(outcome)] else means.idxmin()
            best[str(task), str(decay), str(outcome)] = str(arm)
    return best


def add_best_baseline(rows: pd.DataFrame, larger_is_better: Mapping[str, bool]) -> pd.DataFrame:
    """Append the rows of the best baseline of each task, decay and outcome, renamed to `BEST`."""
    best = [
        rows[(rows[["task", "decay", "outcome"]] == list(key)).all(axis=1) & (rows["arm"] == arm)].assign(arm=BEST)
        for key, arm in find_best_baselines(rows, larger_is_better).items()
    ]
    return pd.concat([rows, *best], ignore_index=True)


def default_pairs(arms: Iterable[str]) -> list[tuple[str, str]]:
    """Pair every `lc_` arm with its yoked twin and, if there is a baseline, with the best one (`add_best_baseline`).

    Returns:
        (arm, reference) in the order of the arms; empty if no arm name starts with `lc_`.
    """
    families = group_arms(arms)
    best = [BEST] if families.baselines else []
    pairs = []
    for arm, controls in families.controls.items():
        twins = [control for control in controls if control.startswith("yoked_")]
        pairs += [(arm, reference) for reference in (*twins, *best)]
    return pairs
