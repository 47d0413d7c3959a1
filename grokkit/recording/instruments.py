"""Measures and attributions as people name them: a word, a part with options, or the thing itself."""

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


def as_measure(wanted: str | Spec | Measure) -> Measure:
    """A measure from its name, a part with options, or itself."""
    if isinstance(wanted, str):
        return measures.create(wanted)
    if isinstance(wanted, Spec):
        return measures.create(wanted.name, **wanted.options)
    return wanted


def as_attribution_spec(wanted: str | Spec | AttributionSpec) -> AttributionSpec:
    """A plan from a method's name, a part with options, or itself."""
    if isinstance(wanted, AttributionSpec):
        return wanted
    name, options = (wanted, {}) if isinstance(wanted, str) else (wanted.name, dict(wanted.options))
    attributions.registry.get(name)
    own = {key: options.pop(key) for key in ("images", "probe_set") if key in options}
    return AttributionSpec(name, **own, parameters=options)


def as_list(wanted: str | Iterable[T]) -> list[str | T]:
    """What is asked for as a list; a single name stands for itself."""
    return [wanted] if isinstance(wanted, str) else list(wanted)


def as_measures(wanted: str | Iterable[str | Spec | Measure]) -> list[Measure]:
    """`as_measure` of each; a single name stands for itself."""
    return [as_measure(each) for each in as_list(wanted)]


def as_attribution_specs(wanted: str | Iterable[str | Spec | AttributionSpec]) -> list[AttributionSpec]:
    """`as_attribution_spec` of each; a single name stands for itself."""
    return [as_attribution_spec(each) for each in as_list(wanted)]


def requested_config(
    taken: list[Measure],
    plans: list[AttributionSpec],
    schedule: tuple[int, ...],
    signal: Signal | None,
    rest: dict[str, Any],
) -> dict[str, Any]:
    """What `record` was asked for, as TOML values."""
    listed = [{"name": instrument_name(each), **get_settings(each)} for each in taken]
    maps = [{"name": plan.method, "images": plan.images, **(plan.parameters or {})} for plan in plans]
    told = {**rest, "schedule": list(schedule), "measures": listed, "attributions": maps}
    return told | ({"signal": dataclasses.asdict(signal)} if signal else {})
