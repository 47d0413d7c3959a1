"""The study of this name that ships with grokkit; copy it and change it here."""

from grokkit.recipes.negative_control import shuffled_labels, true_labels

__all__ = ["shuffled_labels", "true_labels"]
