"""Conversion of names, specs and objects to measures and attribution specs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from grokkit import attributions, measures
from grokkit.config.run_config import Spec
from grokkit.measures import Measure
from grokkit.measures.base import get_settings
from grokkit.measures.runner import AttributionSpec, instrument_name
from grokkit.recording.signal import Signal

T = TypeVar("T")


def as_measure(value: str | Spec | Measure) -> Measure:
    """Return the measure for a name or a spec; a measure is returned unchanged."""
    if isinstance(value, str):
        return measures.create(value)
    if isinstance(value, Spec):
        return measures.create(value.name, **value.options)
    return value


def as_attribution_spec(value: str | Spec | AttributionSpec) -> AttributionSpec:
    """Return the attribution spec for a method's name or a spec; an AttributionSpec is returned unchanged."""
    if isinstance(value, AttributionSpec):
        return value
    name, options = (value, {}) if isinstance(value, str) else (value.name, dict(value.options))
    attributions.registry.get(name)
    fields = {key: options.pop(key) for key in ("images", "probe_set") if key in options}
    return AttributionSpec(name, **fields, parameters=options)


def as_list(value: str | Iterable[T]) -> list[str | T]:
    """Return a list; a single name becomes a list of one."""
    return [value] if isinstance(value, str) else list(value)


def as_measures(value: str | Iterable[str | Spec | Measure]) -> list[Measure]:
    """Apply `as_measure` to each item; a single name is a list of one."""
    return [as_measure(each) for each in as_list(value)]


def as_attribution_specs(value: str | Iterable[str | Spec | AttributionSpec]) -> list[AttributionSpec]:
    """Apply `as_attribution_spec` to each item; a single name is a list of one."""
    return [as_attribution_spec(each) for each in as_list(value)]


def requested_config(
    measures: list[Measure],
    attribution_specs: list[AttributionSpec],
    schedule: tuple[int, ...],
    signal: Signal | None,
    rest: dict[str, Any],
) -> dict[str, Any]:
    """Return the arguments of `record` as TOML values."""
    measure_tables = [{"name": instrument_name(each), **get_settings(each)} for each in measures]
    maps = [{"name": each.method, "images": each.images, **(each.parameters or {})} for each in attribution_specs]
    config = {**rest, "schedule": list(schedule), "measures": measure_tables, "attributions": maps}
    return config | ({"signal": dataclasses.asdict(signal)} if signal else {})
