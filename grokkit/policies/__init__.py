"""Controllers of the learning rate: pure, with explicit state, blind to the model. Names to controllers."""

from grokkit.registry import Registry

registry = Registry("policy", "grokkit.policies")
register, names, create = registry.register, registry.names, registry.create

from grokkit.policies.base import Decision, Observation, Policy  # noqa: E402

__all__ = ["Decision", "Observation", "Policy", "create", "names", "register"]
