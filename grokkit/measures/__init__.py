"""Measures: frozen dataclasses, one file each; calling one with a `Context` returns a `Reading`."""

from __future__ import annotations

from grokkit.registry import Registry

registry: Registry[Measure] = Registry("measure", "grokkit.measures")
register, names, create = registry.register, registry.names, registry.create

from grokkit.measures.base import Context, Measure  # noqa: E402

__all__ = ["Context", "Measure", "create", "names", "register"]
