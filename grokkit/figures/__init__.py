"""Draw paper figures: functions from a `FigureData` to a matplotlib figure, by name; they read tables, never a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grokkit.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

registry: Registry[Figure] = Registry("figure", "grokkit.figures")
register, names, create = registry.register, registry.names, registry.create

from grokkit.figures.theme import save_figure  # noqa: E402

__all__ = ["create", "names", "register", "save_figure"]
