"""Weight decay that a learning-rate schedule does not scale.

An update shrinks a weight by the share lr * weight_decay (AdamW, SGD's L2, Muon), so that a schedule of the rate also
schedules the decay, and their effects on a net cannot be separated. In a parameter group with `fixed_decay=True` that
share stays at its value for the base rate, whatever changes the rate.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch.optim import ASGD, Adadelta, Adagrad, Adamax, Optimizer, RMSprop

from grokkit.errors import UsageError

FIXED_DECAY = "fixed_decay"
"""Key of a parameter group: True keeps lr * weight_decay at its base value."""

_BASE = "lr_of_initial_weight_decay"
"""Key of a parameter group with fixed decay: the base rate, for which `initial_weight_decay` holds."""

DECAY_KEYS = frozenset({"initial_weight_decay", _BASE})
"""Keys that are added to a parameter group with fixed decay."""

_NORMALISING = (Adadelta, Adagrad, Adamax, RMSprop, ASGD)
"""They divide the decay by the gradients' size, as do torch's optimizers with `decoupled_weight_decay=False`; ASGD has
a separate rate."""

_ALIKE = 0.7
"""Similarity above which another key counts as a typo; `no_decay`, a common key, has 0.63."""


def is_fixed(groups: Iterable[dict[str, Any]]) -> bool:
    """Return whether any of these parameter groups has fixed decay."""
    return any(group.get(FIXED_DECAY) for group in groups)


def validate_keys(groups: Iterable[dict[str, Any]]) -> None:
    """Raise UsageError for a misspelt `fixed_decay`: torch silently accepts any key of a parameter group."""
    for number, group in enumerate(groups):
        typos = difflib.get_close_matches(FIXED_DECAY, [key for key in group if key != FIXED_DECAY], n=1, cutoff=_ALIKE)
        if typos:
            raise UsageError(f"Unknown key {typos[0]!r} in parameter group {number}; did you mean {FIXED_DECAY!r}?")


def mark_fixed_decay(optimizer: Optimizer, is_fixed: bool, has_decay_option: bool) -> None:
    """Set `fixed_decay` in all parameter groups as configured.

    Args:
        optimizer: its parameter groups are changed.
        is_fixed: the option `fixed_decay`.
        has_decay_option: whether the options contain `weight_decay`.

    Raises:
        UsageError: as `remember_decay`, or `weight_decay` is not set and the optimizer's default is 0.
    """
    if is_fixed is False:
        return
    for number, group in enumerate(optimizer.param_groups):
        group[FIXED_DECAY] = is_fixed
        _check_fixed_decay(optimizer, group, number)
    if not has_decay_option and not any(group["weight_decay"] for group in optimizer.param_groups):
        raise UsageError(
            f"`{FIXED_DECAY}` keeps lr * weight_decay constant, but the default weight decay of "
            f"{type(optimizer).__name__} is 0: add `weight_decay`, or remove `{FIXED_DECAY}`"
        )


def remember_decay(optimizer: Optimizer) -> None:
    """Store the base values of groups with fixed decay in the groups, so that the optimizer's state_dict holds them.

    Raises:
        UsageError: a value that is not a bool, a group without weight decay, or an optimizer in which an update does
            not shrink weights by lr * weight_decay.
    """
    for number, group in enumerate(optimizer.param_groups):
        if "initial_weight_decay" in group or not group.get(FIXED_DECAY):
            continue
        _check_fixed_decay(optimizer, group, number)
        # a separate key, because some schedulers write their peak rate into initial_lr
        group[_BASE] = float(group.get("initial_lr", group["lr"]))
        group["initial_weight_decay"] = group["weight_decay"]


def apply_fixed_decay(optimizer: Optimizer, *_: Any) -> None:
    """Set the weight decay of groups with fixed decay to match their current rate; at a rate of 0 to its base value.

    It is computed from the base values each time, so that it does not drift, whatever changed the rate. As a pre-hook
    of the optimizer's step it also covers changes that other schedulers or the user make after the policy.

    Cost: a few divisions; waits for the GPU if a rate is a tensor on it.
    """
    remember_decay(optimizer)
    for group in optimizer.param_groups:
        if group.get(FIXED_DECAY):
            rate, base = float(group["lr"]), group[_BASE]
            group["weight_decay"] = group["initial_weight_decay"] * (base / rate if rate else 1.0)


def _check_fixed_decay(optimizer: Optimizer, group: dict[str, Any], number: int) -> None:
    name, is_fixed = type(optimizer).__name__, group[FIXED_DECAY]
    if not isinstance(is_fixed, bool):
        raise UsageError(f"`{FIXED_DECAY}` of parameter group {number} must be True or False; got {is_fixed!r}")
    if "weight_decay" not in group:
        raise UsageError(
            f"`{FIXED_DECAY}` of parameter group {number} keeps lr * weight_decay constant, but {name} has no "
            f"`weight_decay`: remove `{FIXED_DECAY}`, or use an optimizer with weight decay"
        )
    if isinstance(optimizer, _NORMALISING) or group.get("decoupled_weight_decay") is False:
        raise UsageError(
            f"`{FIXED_DECAY}` of parameter group {number} keeps lr * weight_decay constant, but {name} also scales "
            f"the decay by other factors. Use AdamW, or remove `{FIXED_DECAY}`"
        )
