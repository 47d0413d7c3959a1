"""Measures and attributions as people name them: a word, a part with options, or the thing itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from grokkit import attributions, measures
from grokkit.config.run_config import Part
from grokkit.measures import Measure
from grokkit.measures.base import settings_of
from grokkit.measures.runner import AttributionPlan, name_of
from grokkit.recording.signal import Signal

Wanted = TypeVar("Wanted")


def as_measure(wanted: str | Part | Measure) -> Measure:
    """A measure from its name, a part with options, or itself."""
    if isinstance(wanted, str):
        return measures.create(wanted)
    if isinstance(wanted, Part):
        return measures.create(wanted.name, **wanted.options)
    return wanted


def as_plan(wanted: str | Part | AttributionPlan) -> AttributionPlan:
    """A plan from a method's name, a part with options, or itself."""
    if isinstance(wanted, AttributionPlan):
        return wanted
    name, options = (wanted, {}) if isinstance(wanted, str) else (wanted.name, dict(wanted.options))
    attributions.registry.get(name)
    own = {key: options.pop(key) for key in ("images", "probe_set") if key in options}
    return AttributionPlan(name, **own, parameters=options)


def as_list(wanted: str | Iterable[Wanted]) -> list[str | Wanted]:
    """What is asked for as a list; a single name stands for itself."""
    return [wanted] if isinstance(wanted, str) else list(wanted)


def as_measures(wanted: str | Iterable[str | Part | Measure]) -> list[Measure]:
    """`as_measure` of each; a single name stands for itself."""
    return [as_measure(each) for each in as_list(wanted)]


def as_plans(wanted: str | Iterable[str | Part | AttributionPlan]) -> list[AttributionPlan]:
    """`as_plan` of each; a single name stands for itself."""
    return [as_plan(each) for each in as_list(wanted)]


def asked_for(
    taken: list[Measure],
    plans: list[AttributionPlan],
    schedule: tuple[int, ...],
    signal: Signal | None,
    rest: dict[str, Any],
) -> dict[str, Any]:
    """What `record` was asked for, as TOML values."""
    listed = [{"name": name_of(each), **settings_of(each)} for each in taken]
    maps = [{"name": plan.method, "images": plan.images, **(plan.parameters or {})} for plan in plans]
    told = {**rest, "schedule": list(schedule), "measures": listed, "attributions": maps}
    return told | ({"signal": dataclasses.asdict(signal)} if signal else {})
