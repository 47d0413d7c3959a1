"""The study of this name that ships with grokkit; copy it and change it here."""

from grokkit.recipes.cifar10_in_minutes import resnet9

__all__ = ["resnet9"]
