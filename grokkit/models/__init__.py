"""Image classifiers by name; one file per family, found by scanning."""

from grokkit.registry import Registry

registry = Registry("model", "grokkit.models")
register, names, create = registry.register, registry.names, registry.create
