"""List the registered names that a config uses, so that a run's own experiment.py is imported only if one of them is
unknown."""

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


def list_training_names(config: RunConfig) -> list[NameRequest]:
    """List the names that training with `config` requires.

    Augmentations and clips are left out: a study cannot register any.
    """
    return [
        *list_replay_names(config),
        NameRequest(config.data.name, data.find_dataset),
        NameRequest(config.optimizer.name, get_optimizer_class),
        *_list_policies(config.policy.name, config.policy.options),
        *list_instrument_names(config.measures, config.attributions),
    ]


def list_replay_names(config: RunConfig) -> list[NameRequest]:
    """List the names required to rebuild a stored run's model and loss."""
    return [NameRequest(config.model.name, models.registry.get), NameRequest(config.loss, get_loss)]


def list_instrument_names(
    measure_specs: Iterable[str | Spec | Measure],
    attribution_specs: Iterable[str | Spec | AttributionSpec] = (),
) -> list[NameRequest]:
    """List the names that these measures and attributions require; a measure object requires none."""
    measure_names = [
        NameRequest(_get_name(each), measures.registry.get) for each in measure_specs if isinstance(each, str | Spec)
    ]
    methods = [each.method if isinstance(each, AttributionSpec) else _get_name(each) for each in attribution_specs]
    return [*measure_names, *(NameRequest(name, attributions.registry.get) for name in methods)]


def _get_name(spec: str | Spec) -> str:
    return spec if isinstance(spec, str) else spec.name


def _list_policies(name: str, options: Mapping[str, Any]) -> list[NameRequest]:
    """List a policy's name and, if it is a wrapper, those of the policies inside it."""
    requests = [NameRequest(name, policies.get_policy_class)]
    inner = options.get("policy")
    if isinstance(inner, str):
        requests.append(NameRequest(inner, policies.get_policy_class))
    elif isinstance(inner, Mapping) and "name" in inner:
        requests += _list_policies(inner["name"], inner)
    return requests
