"""Helpers for intercepted torch calls: arguments as trees, and rules attached to rows of the table of operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.operations import OPERATIONS

ANYWHERE = (torch, Tensor, F)
"""Namespaces that hold the same operation under the same name."""


Rule = TypeVar("Rule")


def build_rule_table(rule: Rule, rows: str) -> dict[str, Rule]:
    """Attach a rule to the rows of the table of operations with these names, separated by spaces."""
    return {OPERATIONS[name].name: rule for name in rows.split()}


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


def get_out_of_place(func: Any) -> Any:
    """Return the form of an operation that writes into a new tensor."""
    name: str = getattr(func, "__name__", "")
    if name.startswith("__i") and name.endswith("__") and hasattr(Tensor, f"__{name[3:]}"):
        return getattr(Tensor, f"__{name[3:]}")
    if not name.endswith("_") or name.endswith("__"):
        return func
    return next(getattr(owner, name[:-1]) for owner in ANYWHERE if hasattr(owner, name[:-1]))
