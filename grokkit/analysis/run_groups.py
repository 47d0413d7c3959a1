"""Which rows of a table belong to runs that differ only in their seed: the column `group`, a label for each group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from grokkit.config.groups import Group, label_groups, strip_seed

_KEYS = ["run", "seed", "group", "config"]


def label_rows(rows: pd.DataFrame, configs: Mapping[Group, Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows whose `group` is a group's name with the group's label in its place; `configs` as for
    `grokkit.config.groups.label_groups`."""
    labels = label_groups(configs)
    keys = rows[["group", "config"]].drop_duplicates().itertuples(index=False, name=None)
    return _relabel(rows, ["group", "config"], [labels[Group(*key)] for key in keys])


def complete_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with a `group` for every row, and none that holds runs of different configurations.

    A table that was written by an older version, or by hand, has no groups: there they are the runs' names without the
    seed, or, if a seed then has several runs, the runs' whole names. Groups of different tables that have the same
    label are told apart by the hash of their configuration, and one group with different labels gets the longest.
    """
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *_KEYS])))
    for column in ("group", "config"):
        if table[column].isna().any():
            table[column] = table[column].astype(object).fillna("")
    keys = table[_KEYS].drop_duplicates()
    names = keys["run"].astype(str).map(strip_seed)
    is_ambiguous = keys.assign(name=names).groupby(["name", "seed"], dropna=False)["run"].transform("nunique") > 1
    whole = keys["run"].astype(str).where(names.isin(names[is_ambiguous & (keys["group"] == "")]), names)
    labels = _unify_labels(keys, names).where(keys["group"] != "", whole)
    several = keys["config"].groupby(labels).transform("nunique") > 1
    suffixes = " (config " + keys["config"].replace("", "unknown") + ")"
    unique = labels.where(~several, labels + suffixes)
    if unique.equals(keys["group"]):  # as in every table that was completed before
        return table
    return _relabel(table, _KEYS, unique.tolist())


def _unify_labels(keys: pd.DataFrame, names: pd.Series) -> pd.Series:
    """Return the labels, with one for each group: that of `a/b` in a table of its own is `a/b (lr=0.1)` in a table that
    also has others of this name; the longest is used."""
    own = (keys["group"].map(lambda label: label.partition(" (")[0]) == names) & (keys["config"] != "")
    by_length = keys.assign(name=names)[own].sort_values("group", key=lambda labels: labels.str.len(), kind="stable")
    return keys["group"].where(~own, by_length.groupby(["name", "config"])["group"].transform("last"))


def _relabel(rows: pd.DataFrame, keys: list[str], labels: list[str]) -> pd.DataFrame:
    """Return the rows with new groups: one label for each combination of `keys`, in order of appearance."""
    places = rows.groupby(keys, sort=False, dropna=False).ngroup()
    groups = pd.Series(np.array([*labels, ""], dtype=object)[places.to_numpy(int)], rows.index)
    return rows.assign(group=groups.astype(rows["run"].dtype))
