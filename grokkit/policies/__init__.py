"""Learning-rate policies by name: pure functions with explicit state that receive readings only, never the model.

A policy is used directly; a wrapper takes a policy as its parameter and is a policy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from grokkit.errors import UnknownNameError, UsageError
from grokkit.registry import Registry, did_you_mean

registry: Registry[Policy] = Registry("policy", "grokkit.policies")
wrapper_registry: Registry[Policy] = Registry("wrapper", "grokkit.policies")
register, names = registry.register, registry.names
register_wrapper, wrapper_names = wrapper_registry.register, wrapper_registry.names


def create(name: str, **parameters: Any) -> Policy:
    """Create the policy or wrapper registered as `name`.

    Raises:
        UnknownNameError: no such name; the message suggests the nearest one.
        UsageError: an unknown or invalid parameter.
    """
    return _find_registry(name).create(name, **parameters)


def get_policy_class(name: str) -> Callable[..., Policy]:
    """Return the class registered as `name`. Raises UnknownNameError, which suggests the nearest name."""
    return _find_registry(name).get(name)


def _find_registry(name: str) -> Registry[Policy]:
    for candidate in (registry, wrapper_registry):
        if name in candidate.names():
            return candidate
    hint = did_you_mean(name, [*names(), *wrapper_names()])
    raise UnknownNameError(
        f"unknown policy {name!r}.{hint} Policies: {', '.join(names())}. Wrappers (they take a policy): "
        f"{', '.join(wrapper_names())}"
    )


def as_policy(policy: Any) -> Policy:
    """Return a policy, given as a name, as a config mapping with `name` and parameters, or as a policy (unchanged)."""
    if isinstance(policy, str):
        return create(policy)
    if isinstance(policy, Mapping) and "name" in policy:
        return create(policy["name"], **{key: value for key, value in policy.items() if key != "name"})
    if isinstance(policy, Policy) and not isinstance(policy, type):
        return policy
    raise UsageError(f"`policy` must be a policy or one of {', '.join([*names(), *wrapper_names()])}; got {policy!r}")


from grokkit.policies.base import Decision, Observation, Policy, as_count, get_followed_readings  # noqa: E402

__all__ = [
    "Decision",
    "Observation",
    "Policy",
    "as_count",
    "as_policy",
    "create",
    "get_followed_readings",
    "names",
    "register",
    "register_wrapper",
    "wrapper_names",
]
