"""Image classifiers by name; one file per family, all modules of this package are scanned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grokkit.registry import Registry

if TYPE_CHECKING:
    from torch import nn

registry: Registry[nn.Module] = Registry("model", "grokkit.models")
register, names, create = registry.register, registry.names, registry.create
