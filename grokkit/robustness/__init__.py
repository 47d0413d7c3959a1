"""Attack classifiers: worst-case accuracy under small changes of the pixels."""

from grokkit.robustness.attacks import AttackResult, pgd

__all__ = ["AttackResult", "pgd"]
