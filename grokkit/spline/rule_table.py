"""Helpers for intercepted torch calls: arguments as trees, and rules attached to rows of the table of operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.operations import OPERATIONS, get_argument_names

ANYWHERE = (torch, Tensor, F)
"""Namespaces that hold the same operation under the same name."""


JOINT_ROWS = (
    "where masked_fill masked_scatter cat broadcast_tensors fill scatter scatter_add index_add index_copy index_fill "
    "index_put put slice_scatter select_scatter diagonal_scatter"
)
"""Rows that are affine in several arguments together, each with weights that are not negative."""
_VALUES = ("input", "other", "tensors", "value", "values", "src", "source")
"""Names of the arguments that these rows rearrange and add."""

Rule = TypeVar("Rule")


def build_rule_table(rule: Rule, rows: str) -> dict[str, Rule]:
    """Attach a rule to the rows of the table of operations with these names, separated by spaces."""
    return {OPERATIONS[name].name: rule for name in rows.split()}


def find_value_positions(func: Callable[..., Any], count: int) -> list[int]:
    """Return the positions of the values among `count` arguments of a row that is affine in several."""
    names = [names[0] for names in get_argument_names(func)]
    padded = names + names[-1:] * (count - len(names)) if names == ["tensors"] else names
    return [at for at, name in enumerate(padded[:count]) if name in _VALUES]


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply a function to every leaf of nested lists, tuples, dicts and slices, and return a tree of the results."""
    if isinstance(tree, dict):
        return {key: tree_map(function, value) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(function, value) for value in tree))
    if isinstance(tree, list | tuple) and not isinstance(tree, torch.Size):
        return type(tree)(tree_map(function, value) for value in tree)
    if isinstance(tree, slice):
        return slice(*(function(bound) for bound in (tree.start, tree.stop, tree.step)))
    return function(tree)


def writes_in_place(func: Any) -> bool:
    """Return whether an operation writes into its first argument, by its name."""
    name: str = getattr(func, "__name__", "").split(".")[0]
    is_augmented = name.startswith("__i") and name.endswith("__") and hasattr(Tensor, f"__{name[3:]}")
    return is_augmented or func is Tensor.__setitem__ or (name.endswith("_") and not name.endswith("__"))


def get_out_of_place(func: Any) -> Any:
    """Return the form of an operation that writes into a new tensor; the operation itself if there is none."""
    name: str = getattr(func, "__name__", "").split(".")[0]
    if not writes_in_place(func) or func is Tensor.__setitem__:
        return func
    if name.endswith("__"):
        return getattr(Tensor, f"__{name[3:]}")
    return next((getattr(owner, name[:-1]) for owner in ANYWHERE if hasattr(owner, name[:-1])), func)
