"""Paper figures: a `FigureData` in, a matplotlib figure out. Names to functions; reads tables, never a run."""

from grokkit.registry import Registry

registry = Registry("figure", "grokkit.figures")
register, names, create = registry.register, registry.names, registry.create

from grokkit.figures.theme import save_figure  # noqa: E402

__all__ = ["create", "names", "register", "save_figure"]
