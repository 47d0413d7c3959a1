"""How far a classifier's answers survive small, worst-case changes of the pixels."""

from grokkit.robustness.attacks import AttackResult, pgd

__all__ = ["AttackResult", "pgd"]
