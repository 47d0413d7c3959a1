"""Overrides of a config: another dataset or seed from the command line, single values by dotted keys."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from grokkit.config.run_config import RunConfig, Spec
from grokkit.errors import UsageError
from grokkit.registry import did_you_mean


def apply_cli_overrides(config: RunConfig, data: str | None, seed: int | None, steps: int | None) -> RunConfig:
    """Return the config with the command line's dataset, seed and steps; None leaves a field unchanged.

    Another dataset keeps the options `train`, `validation` and `shuffle_labels`.
    """
    changes: dict[str, object] = {}
    if data is not None:
        options = {
            name: value
            for name, value in config.data.options.items()
            if name in ("train", "validation", "shuffle_labels")
        }
        changes["data"] = Spec(data, options)
    if seed is not None:
        changes["seed"] = seed
    if steps is not None:
        changes["steps"] = steps
    return config.replace(**changes)


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as `0-31`, `0,3,7` or `0-3,8`. Raises UsageError for any other form and for duplicates."""
    seeds: list[int] = []
    for item in text.split(","):
        first, _, last = item.partition("-")
        if not re.fullmatch(r"\d+(-\d+)?", item.strip()) or int(first) > int(last or first):
            raise UsageError(f"`seeds` takes numbers and increasing ranges, such as 0-31 or 0,3,7; got {item!r}")
        seeds += range(int(first), int(last or first) + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"`seeds` contains a seed more than once: {text}")
    return seeds


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted keys: `{"optimizer": {"lr": 0.1}}` becomes `{"optimizer.lr": 0.1}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def with_overrides(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return the config with new values at dotted keys, such as `optimizer.lr`, `model` or `probes.train`.

    A spec that is replaced as a whole (`model = "cnn"`) loses its options; `model.name = "cnn"` keeps them. Options are
    validated when the object is built (`build.validate_options`).

    Raises:
        UsageError: an unknown key (names the nearest one), or a value that the field does not accept.
    """
    values = config.to_dict()
    known = {field.name: str(field.type) for field in dataclasses.fields(config)}
    for key, value in changes.items():
        first, *rest = key.split(".")
        if first not in known:
            raise UsageError(
                f"RunConfig has no field {key!r}.{did_you_mean(first, list(known))} Its fields: {', '.join(known)}"
            )
        table = values
        for depth, name in enumerate(key.split(".")[:-1], start=1):
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                parent = ".".join(key.split(".")[:depth])
                raise UsageError(f"{key!r} cannot be overridden: `{parent}` has no named fields; set it as a whole")
        table[key.split(".")[-1]] = value if rest else _to_tables(first, value, known[first])
    return RunConfig.from_dict(values)


def _to_tables(name: str, value: Any, kind: str) -> Any:
    """Convert the value of a spec field, or of a tuple of specs, to tables with `name`; a bare name has no options."""
    if kind.startswith("tuple[Spec"):
        if not isinstance(value, list | tuple):
            raise UsageError(f"`{name}` takes a list of names or of tables with `name`; got {value!r}")
        return [_to_tables(name, each, "Spec") for each in value]
    if not kind.startswith("Spec"):
        return value
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value
    raise UsageError(f"`{name}` takes a name, or a table with `name` and options; got {value!r}")
