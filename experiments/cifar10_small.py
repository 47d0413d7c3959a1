"""The study of this name that ships with grokkit; copy it and change it here."""

from grokkit.recipes.cifar10_small import batchnorm, no_batchnorm

__all__ = ["batchnorm", "no_batchnorm"]
