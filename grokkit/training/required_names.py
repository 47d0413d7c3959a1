"""The names that a config or a call asks for, and how each is looked up; `stored_code.import_unknown` takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from grokkit import attributions, data, measures, models, policies
from grokkit.config.run_config import Part, RunConfig
from grokkit.measures import Measure
from grokkit.measures.loss import loss_function
from grokkit.measures.runner import AttributionPlan
from grokkit.optim.build import optimizer_class
from grokkit.stored_code import Wanted


def names_to_train(config: RunConfig) -> list[Wanted]:
    """The names that training by this config looks up. Augmentations and clips are not among them: a study cannot
    register one."""
    return [
        *names_to_replay(config), Wanted(config.data.name, data.find), Wanted(config.optimizer.name, optimizer_class),
        *_policies(config.policy.name, config.policy.options), *names_asked(config.measures, config.attributions),
    ]  # fmt: skip


def names_to_replay(config: RunConfig) -> list[Wanted]:
    """The names that a stored run's model and loss are built from."""
    return [Wanted(config.model.name, models.registry.get), Wanted(config.loss, loss_function)]


def names_asked(
    wanted: Iterable[str | Part | Measure], plans: Iterable[str | Part | AttributionPlan] = ()
) -> list[Wanted]:
    """The names among these measures and attributions; a measure that is an object needs none."""
    taken = [Wanted(_name(each), measures.registry.get) for each in wanted if isinstance(each, str | Part)]
    methods = [each.method if isinstance(each, AttributionPlan) else _name(each) for each in plans]
    return [*taken, *(Wanted(name, attributions.registry.get) for name in methods)]


def _name(wanted: str | Part) -> str:
    return wanted if isinstance(wanted, str) else wanted.name


def _policies(name: str, options: Mapping[str, Any]) -> list[Wanted]:
    """A policy, and those inside it where it is a wrapper."""
    found = [Wanted(name, policies.find)]
    inner = options.get("policy")
    if isinstance(inner, str):
        found.append(Wanted(inner, policies.find))
    elif isinstance(inner, Mapping) and "name" in inner:
        found += _policies(inner["name"], inner)
    return found
