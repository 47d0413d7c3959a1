"""The study of this name that ships with grokkit; copy it and change it here."""

from grokkit.recipes.quickstart import constant, decay_at_peak

__all__ = ["constant", "decay_at_peak"]
