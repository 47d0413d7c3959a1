"""The study of this name that ships with grokkit; copy it and change it here."""

from grokkit.recipes.cifar10_speed import speednet

__all__ = ["speednet"]
