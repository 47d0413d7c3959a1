"""Measures and attributions as people name them: a word, a part with options, or the thing itself."""

from __future__ import annotations

from collections.abc import Iterable

from grokkit import attribution, measures
from grokkit.measures import Measure
from grokkit.measures.take import AttributionPlan
from grokkit.training.config import Part


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
    attribution.registry.get(name)
    own = {key: options.pop(key) for key in ("images", "probe_set") if key in options}
    return AttributionPlan(name, **own, parameters=options)


def as_measures(wanted: str | Iterable[str | Part | Measure]) -> list[Measure]:
    """`as_measure` of each; a single name stands for itself."""
    return [as_measure(each) for each in ([wanted] if isinstance(wanted, str) else wanted)]


def as_plans(wanted: str | Iterable[str | Part | AttributionPlan]) -> list[AttributionPlan]:
    """`as_plan` of each; a single name stands for itself."""
    return [as_plan(each) for each in ([wanted] if isinstance(wanted, str) else wanted)]
