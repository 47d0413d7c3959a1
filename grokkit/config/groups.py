"""Group runs that differ only in their seed, and label the groups by what differs between them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from grokkit.config.overrides import flatten
from grokkit.escape import escape_controls

_SEED_SUFFIX = re.compile(r"-s\d+(-[0-9a-f]{8})?$")
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
MAX_VALUE_CHARACTERS = 40
"""Maximum length of a config value in a label."""


class Group(NamedTuple):
    """Identity of the runs that differ only in their seed.

    Args:
        name: the runs' name without seed and config hash, as in `quickstart/constant`.
        config: hash of their config without the seed; empty if it is not known.
    """

    name: str
    config: str


def group_of(name: str, config: Mapping[str, Any]) -> Group:
    """Return the group of a run from its name and its config."""
    rest = {key: value for key, value in config.items() if key != "seed"}
    text = json.dumps(rest, sort_keys=True, default=str)
    return Group(strip_seed(name), hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:8])


def strip_seed(name: str) -> str:
    """Return a run's name without seed and hash: `quickstart/constant-s0-ab12cd34` -> `quickstart/constant`."""
    return _SEED_SUFFIX.sub("", name)


def label_groups(configs: Mapping[Group, Mapping[str, Any]]) -> dict[Group, str]:
    """Return a label for each group, different for each: its name, and the config values in which it differs from the
    groups of the same name, as in `digits/base (optimizer.lr=0.1)`.

    Args:
        configs: of one run of each group.
    """
    by_name: dict[str, list[Group]] = defaultdict(list)
    for group in configs:
        by_name[group.name].append(group)
    return {
        group: label
        for groups in by_name.values()
        for group, label in zip(groups, _label_namesakes(groups, [configs[g] for g in groups]), strict=True)
    }


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Return the labels in order, each once, with numbers in them by size: `lr=0.02` before `lr=0.1`, `b-9` before
    `b-10`."""
    return sorted(set(labels), key=lambda label: ([_sort_key(part) for part in _NUMBER.split(label)], label))


def _sort_key(part: str) -> tuple[str, float]:
    return ("", float(part)) if _NUMBER.fullmatch(part) else (part, 0.0)


def split_common_name(labels: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name that several labels have in common, and what differs: `a/b (lr=1)`, `a/b (lr=2)` -> `a/b`, and
    `lr=1`, `lr=2`; an empty name and the labels themselves if they have no name in common."""
    parts = [label.partition(" (") for label in labels]
    if len(labels) < 2 or len({name for name, *_ in parts}) > 1 or not all(rest for *_, rest in parts):
        return "", list(labels)
    return parts[0][0], [rest.removesuffix(")") for *_, rest in parts]


def _label_namesakes(groups: Sequence[Group], configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the labels of groups with the same name."""
    if len(groups) == 1:
        return [groups[0].name]
    flats = [flatten(_name_entries(config)) for config in configs]
    labels = [", ".join(_format(key, flat) for key in _find_differing(flats)) for flat in flats]
    # Values that are equal as text, or that are cut off, leave the hash as the only difference.
    return [
        f"{group.name} ({label if labels.count(label) == 1 else f'{label}, config {group.config}'.lstrip(', ')})"
        for group, label in zip(groups, labels, strict=True)
    ]


def _name_entries(value: Any) -> Any:
    """Return a config whose lists of tables, such as `measures`, are tables by the names of their entries."""
    if isinstance(value, Mapping):
        return {key: _name_entries(each) for key, each in value.items()}
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and "name" in each for each in value):
        named = {str(each["name"]): _name_entries(each) for each in value}
        return named if len(named) == len(value) else value
    return value


def _find_differing(flats: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys in which the configs differ, seed aside; of several that divide them equally only the first, and
    rather one that all configs have."""
    keys = sorted(
        {key for flat in flats for key in flat} - {"seed"},
        key=lambda key: (not all(key in flat for flat in flats), key),
    )
    divisions: dict[tuple[int, ...], str] = {}
    for key in keys:
        values = [repr(flat.get(key)) for flat in flats]
        division = tuple(values.index(value) for value in values)
        if any(division):
            divisions.setdefault(division, key)
    return list(divisions.values())


def _format(key: str, flat: Mapping[str, Any]) -> str:
    if key not in flat:
        return f"no {key}"
    value = flat[key] if isinstance(flat[key], str) else json.dumps(flat[key], default=str)
    value = escape_controls(value)  # a label is one line
    return f"{key}={value if len(value) <= MAX_VALUE_CHARACTERS else value[:MAX_VALUE_CHARACTERS] + '...'}"
