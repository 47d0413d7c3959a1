"""The study of this name that ships with grokkit; copy it and change it here."""

from grokkit.recipes.delayed_robustness import batchnorm, no_batchnorm

__all__ = ["batchnorm", "no_batchnorm"]
