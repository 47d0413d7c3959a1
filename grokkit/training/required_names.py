"""The names that a config or a call asks for, and how each is looked up; `stored_code.import_unknown` takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from grokkit import attributions, data, measures, models, policies
from grokkit.config.run_config import RunConfig, Spec
from grokkit.measures import Measure
from grokkit.measures.loss import get_loss
from grokkit.measures.runner import AttributionSpec
from grokkit.optim.build import get_optimizer_class
from grokkit.stored_code import NameRequest


def training_names(config: RunConfig) -> list[NameRequest]:
    """The names that training by this config looks up. Augmentations and clips are not among them: a study cannot
    register one."""
    return [
        *replay_names(config),
        NameRequest(config.data.name, data.find_dataset),
        NameRequest(config.optimizer.name, get_optimizer_class),
        *_policies(config.policy.name, config.policy.options),
        *instrument_names(config.measures, config.attributions),
    ]


def replay_names(config: RunConfig) -> list[NameRequest]:
    """The names that a stored run's model and loss are built from."""
    return [NameRequest(config.model.name, models.registry.get), NameRequest(config.loss, get_loss)]


def instrument_names(
    wanted: Iterable[str | Spec | Measure], plans: Iterable[str | Spec | AttributionSpec] = ()
) -> list[NameRequest]:
    """The names among these measures and attributions; a measure that is an object needs none."""
    taken = [NameRequest(_name(each), measures.registry.get) for each in wanted if isinstance(each, str | Spec)]
    methods = [each.method if isinstance(each, AttributionSpec) else _name(each) for each in plans]
    return [*taken, *(NameRequest(name, attributions.registry.get) for name in methods)]


def _name(wanted: str | Spec) -> str:
    return wanted if isinstance(wanted, str) else wanted.name


def _policies(name: str, options: Mapping[str, Any]) -> list[NameRequest]:
    """A policy, and those inside it where it is a wrapper."""
    found = [NameRequest(name, policies.get_policy_class)]
    inner = options.get("policy")
    if isinstance(inner, str):
        found.append(NameRequest(inner, policies.get_policy_class))
    elif isinstance(inner, Mapping) and "name" in inner:
        found += _policies(inner["name"], inner)
    return found
