"""Name measures and attributions that were taken with several settings by the settings that differ."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from grokkit.config.groups import Group, label_groups

LABELLED_PARAMETERS = frozenset({"radii", "directions", "epsilons", "method", "probe_set", "probe_sets", "probes"})
"""Parameters that the labels and selections of a chart name already."""
INDIVIDUAL_PARAMETERS = frozenset({"seed", "targets", "captum"})
"""Settings of attributions that belong to one run: the seed, the classes of its images, and a version."""


class Source(NamedTuple):
    """Origin of curves or maps in one run.

    Args:
        name: the measure or attribution method.
        parameters: its parameters, as stored.
    """

    name: str
    parameters: Mapping[str, Any]


def label_sources(runs: Iterable[Mapping[str, Source]]) -> dict[str, str]:
    """Return what the labels of each source must say beside its name, as in `points=64`; "" if nothing.

    Sources of one name are told apart by the parameters in which they differ, except by those that charts name anyway
    (a run that has two with no other difference is told apart by these, too).

    Args:
        runs: of each run the sources by key; equal keys are the same source.
    """
    runs = list(runs)
    by_name: dict[str, dict[str, Source]] = defaultdict(dict)
    for run in runs:
        for key, source in run.items():
            known = by_name[source.name].get(key, source)
            by_name[source.name][key] = max(known, source, key=lambda each: len(each.parameters))
    labels: dict[str, str] = {}
    for name, sources in by_name.items():
        visible = {key: _hide_labelled(source.parameters) for key, source in sources.items()}
        if any(_has_equal([visible[key] for key in run.keys() & sources.keys()]) for run in runs):
            visible = {key: dict(source.parameters) for key, source in sources.items()}
        labels |= _label_namesakes(name, visible)
    return labels


def _hide_labelled(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in parameters.items() if name not in LABELLED_PARAMETERS | INDIVIDUAL_PARAMETERS
    }


def _has_equal(values: list[Any]) -> bool:
    return any(value in values[:index] for index, value in enumerate(values))


def _label_namesakes(name: str, parameters: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Return the labels of the sources with one name; sources with equal parameters share one."""
    first: dict[str, str] = {}  # key of the first source with these parameters
    texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in parameters.items()}
    groups = {key: Group(name, first.setdefault(text, key).rpartition("-")[2]) for key, text in texts.items()}
    labels = label_groups({group: parameters[key] for key, group in groups.items()})
    # The label is the name, followed by the differences in brackets if there are any.
    return {key: labels[group].removeprefix(name)[2:-1] for key, group in groups.items()}
