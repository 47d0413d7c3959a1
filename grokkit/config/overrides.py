"""Choices changed from outside a study: other data, other seeds, single keys by their dotted names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from grokkit.config.run_config import RunConfig, Spec
from grokkit.errors import UsageError
from grokkit.registry import did_you_mean


def apply_cli_overrides(config: RunConfig, data: str | None, seed: int | None, steps: int | None) -> RunConfig:
    """The config with what the command line changes; other data keep the numbers of training and validation images
    asked for and whether labels are shuffled."""
    changes: dict[str, object] = {}
    if data is not None:
        kept = {
            name: value
            for name, value in config.data.options.items()
            if name in ("train", "validation", "shuffle_labels")
        }
        changes["data"] = Spec(data, kept)
    if seed is not None:
        changes["seed"] = seed
    if steps is not None:
        changes["steps"] = steps
    return config.replace(**changes)


def parse_seeds(text: str) -> list[int]:
    """The seeds in `0-31`, `0,3,7` or `0-3,8`. Raises UsageError for anything else and for a seed that comes twice."""
    found: list[int] = []
    for word in text.split(","):
        first, _, last = word.partition("-")
        if not re.fullmatch(r"\d+(-\d+)?", word.strip()) or int(first) > int(last or first):
            raise UsageError(f"`seeds` takes numbers and ranges that grow, such as 0-31 or 0,3,7; got {word!r}")
        found += range(int(first), int(last or first) + 1)
    if len(set(found)) < len(found):
        raise UsageError(f"`seeds` names a seed more than once: {text}")
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys: `{"optimizer": {"lr": 0.1}}` becomes `{"optimizer.lr": 0.1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def with_overrides(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """The config with other values at dotted keys, such as `optimizer.lr`, `model` or `probes.train`.

    A part that is replaced as a whole (`model = "cnn"`) loses its options; `model.name = "cnn"` keeps them. Whether the
    thing named takes an option shows when it is built (`build.validate_options`).

    Raises:
        UsageError: a key that no config has, names the nearest; a value that the choice does not take.
    """
    values = config.to_dict()
    known = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for key, value in changes.items():
        first, *rest = key.split(".")
        if first not in known:
            raise UsageError(
                f"a run has no choice {key!r}.{did_you_mean(first, list(known))} It has: {', '.join(known)}"
            )
        place = values
        for depth, name in enumerate(key.split(".")[:-1], start=1):
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                table = ".".join(key.split(".")[:depth])
                raise UsageError(f"{key!r} cannot be changed alone: `{table}` has no named fields; give it as a whole")
        place[key.split(".")[-1]] = value if rest else _as_tables(first, value, known[first])
    return RunConfig.from_dict(values)


def _as_tables(name: str, value: Any, kind: str) -> Any:
    """What stands for a part, or for several, as tables with `name`; a bare name is one without options."""
    if kind.startswith("tuple[Spec"):
        if not isinstance(value, list | tuple):
            raise UsageError(f"`{name}` takes a list of names or of tables with `name`; got {value!r}")
        return [_as_tables(name, each, "Spec") for each in value]
    if not kind.startswith("Spec"):
        return value
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value
    raise UsageError(f"`{name}` takes a name, or a table with `name` and options; got {value!r}")
