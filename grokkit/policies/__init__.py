"""Controllers of the learning rate: pure, with explicit state, blind to the model. Names to controllers.

A policy stands alone; a wrapper is made around a policy and is one itself.
"""

from collections.abc import Mapping
from typing import Any

from grokkit.errors import UnknownNameError, UsageError
from grokkit.registry import Registry, did_you_mean

registry = Registry("policy", "grokkit.policies")
wrapper_registry = Registry("wrapper", "grokkit.policies")
register, names = registry.register, registry.names
register_wrapper, wrapper_names = wrapper_registry.register, wrapper_registry.names


def create(name: str, **parameters: Any) -> Any:
    """The policy or wrapper called `name`. Raises UnknownNameError with the nearest, UsageError for a parameter."""
    return _registry_of(name).create(name, **parameters)


def get_policy_class(name: str) -> Any:
    """The class of the policy or wrapper called `name`. Raises UnknownNameError with the nearest."""
    return _registry_of(name).get(name)


def _registry_of(name: str) -> Registry:
    for known in (registry, wrapper_registry):
        if name in known.names():
            return known
    near = did_you_mean(name, [*names(), *wrapper_names()])
    raise UnknownNameError(
        f"no policy is called {name!r}.{near} Known: {', '.join(names())}; to be put around one of these: "
        f"{', '.join(wrapper_names())}"
    )


def as_policy(wanted: Any) -> Any:
    """A policy from its name, from a mapping with `name` and parameters as a config holds it, or itself."""
    if isinstance(wanted, str):
        return create(wanted)
    if isinstance(wanted, Mapping) and "name" in wanted:
        return create(wanted["name"], **{key: value for key, value in wanted.items() if key != "name"})
    if isinstance(wanted, Policy) and not isinstance(wanted, type):
        return wanted
    raise UsageError(f"`policy` must be a policy or one of {', '.join([*names(), *wrapper_names()])}; got {wanted!r}")


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
