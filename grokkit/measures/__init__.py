"""Measures: frozen parameters plus `(context) -> Reading`, one small file each."""

from grokkit.registry import Registry

registry = Registry("measure", "grokkit.measures")
register, names, create = registry.register, registry.names, registry.create

from grokkit.measures.base import Context, Measure  # noqa: E402

__all__ = ["Context", "Measure", "create", "names", "register"]
