"""Helpers for intercepted torch calls: arguments as trees, and tables from functions to rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = TypeVar("Rule")

ANYWHERE = (torch, Tensor, F)
"""Namespaces that hold the same operation under the same name."""


def build_rule_table(rule: Rule, owners: tuple[Any, ...], names: str) -> dict[Callable[..., Any], Rule]:
    """Map every function that an owner has under one of the names (separated by spaces) to the rule."""
    candidates = (getattr(owner, name, None) for owner in owners for name in names.split())
    return {func: rule for func in candidates if func is not None}


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to every leaf of nested lists, tuples and dicts, and return a tree of the results."""
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, value) for value in tree))
    if isinstance(tree, list | tuple) and not isinstance(tree, torch.Size):
        return type(tree)(tree_map(function, value) for value in tree)
    return function(tree)


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves, in order."""
    leaves: list[Any] = []
    tree_map(leaves.append, tree)
    return leaves
