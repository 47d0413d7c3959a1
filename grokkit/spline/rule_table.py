"""What all that looks at calls of torch shares: arguments as trees, and tables from functions to their rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = TypeVar("Rule")

ANYWHERE = (torch, Tensor, F)
"""Where one operation goes by one name."""


def rule_table(rule: Rule, owners: tuple[Any, ...], names: str) -> dict[Callable[..., Any], Rule]:
    """One rule for each function that an owner has by one of the names (separated by spaces)."""
    found = (getattr(owner, name, None) for owner in owners for name in names.split())
    return {func: rule for func in found if func is not None}


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply to every leaf of nested lists, tuples and dicts."""
    if isinstance(tree, dict):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(map_leaves(function, value) for value in tree))
    if isinstance(tree, list | tuple) and not isinstance(tree, torch.Size):
        return type(tree)(map_leaves(function, value) for value in tree)
    return function(tree)


def leaves(tree: Any) -> list[Any]:
    """The leaves, in order."""
    found: list[Any] = []
    map_leaves(found.append, tree)
    return found
