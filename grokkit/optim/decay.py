"""Weight decay that a learning-rate schedule does not scale.

An update takes away the share lr * weight_decay of a weight (AdamW, SGD's L2, Muon), so that a schedule of the rate is
one of the decay too, and what it does to a net is the work of both. In a parameter group with `fixed_decay=True` that
share stays what it was at the base rate, whoever moves the rate.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch.optim import ASGD, Adadelta, Adagrad, Adamax, Optimizer, RMSprop

from grokkit.errors import UsageError

FIXED_DECAY = "fixed_decay"
"""In a parameter group: True keeps lr * weight_decay at its base value."""

_BASE = "lr_of_initial_weight_decay"
"""In a parameter group whose decay is kept: the rate at which it has its own weight decay."""

DECAY_KEYS = frozenset({"initial_weight_decay", _BASE})
"""What is left in a parameter group whose decay is kept."""

_NORMALISING = (Adadelta, Adagrad, Adamax, RMSprop, ASGD)
"""They divide the decay by the gradients' size, as do others of torch that say `decoupled_weight_decay=False`; ASGD has
a rate of its own."""

_ALIKE = 0.7
"""Likeness from which another key is taken for a slip of the pen; `no_decay`, a usual mark, has 0.63."""


def is_fixed(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether one of these parameter groups keeps its decay."""
    return any(group.get(FIXED_DECAY) for group in groups)


def validate_keys(groups: Iterable[dict[str, Any]]) -> None:
    """Raise UsageError for a key that is nearly `fixed_decay`: torch takes any key of a group and says nothing."""
    for number, group in enumerate(groups):
        slips = difflib.get_close_matches(FIXED_DECAY, [key for key in group if key != FIXED_DECAY], n=1, cutoff=_ALIKE)
        if slips:
            raise UsageError(
                f"parameter group {number} has the key {slips[0]!r}, which nobody reads; did you mean {FIXED_DECAY!r}?"
            )


def mark_fixed_decay(optimizer: Optimizer, kept: bool, said: bool) -> None:
    """Mark all groups of `optimizer` as a config chose it; `said`: whether it names the weight decay.

    Raises:
        UsageError: as `remember_decay`, or no decay is named and the optimizer's own default is 0.
    """
    if kept is False:
        return
    for number, group in enumerate(optimizer.param_groups):
        group[FIXED_DECAY] = kept
        _check(optimizer, group, number)
    if not said and not any(group["weight_decay"] for group in optimizer.param_groups):
        raise UsageError(
            f"`{FIXED_DECAY}` keeps lr * weight_decay, and the weight decay of {type(optimizer).__name__} is 0 "
            "unless it is "
            f"named: add `weight_decay`, or leave `{FIXED_DECAY}` out"
        )


def remember_decay(optimizer: Optimizer) -> None:
    """Keep the base values of groups whose decay is to stay, in the groups, where the optimizer's state_dict has them.

    Raises:
        UsageError: a value that is no bool, a group without weight decay, or an optimizer in which lr * weight_decay is
            not what an update takes away.
    """
    for number, group in enumerate(optimizer.param_groups):
        if "initial_weight_decay" in group or not group.get(FIXED_DECAY):
            continue
        _check(optimizer, group, number)
        # a key of its own: some schedulers write their own peak into initial_lr
        group[_BASE] = float(group.get("initial_lr", group["lr"]))
        group["initial_weight_decay"] = group["weight_decay"]


def apply_fixed_decay(optimizer: Optimizer, *_: Any) -> None:
    """Set every kept decay to what goes with the rate of now; at a rate of 0, where nothing decays, to its base value.

    It is computed from the base values each time, so that it does not drift, whatever moved the rate. As a pre-hook of
    the optimizer's step it holds for what other schedulers and hands did after the policy too.

    Cost: a few divisions; a rate that is a tensor on a GPU is waited for.
    """
    remember_decay(optimizer)
    for group in optimizer.param_groups:
        if group.get(FIXED_DECAY):
            rate, base = float(group["lr"]), group[_BASE]
            group["weight_decay"] = group["initial_weight_decay"] * (base / rate if rate else 1.0)


def _check(optimizer: Optimizer, group: dict[str, Any], number: int) -> None:
    kind, kept = type(optimizer).__name__, group[FIXED_DECAY]
    if not isinstance(kept, bool):
        raise UsageError(f"`{FIXED_DECAY}` of parameter group {number} must be True or False; got {kept!r}")
    if "weight_decay" not in group:
        raise UsageError(
            f"`{FIXED_DECAY}` of parameter group {number} keeps lr * weight_decay, and {kind} has no "
            "`weight_decay`: leave it "
            "out, or take an optimizer that has one"
        )
    if isinstance(optimizer, _NORMALISING) or group.get("decoupled_weight_decay") is False:
        raise UsageError(
            f"`{FIXED_DECAY}` of parameter group {number} keeps lr * weight_decay, which is not what {kind} takes "
            "away: it "
            "scales the decay by other things too. Take AdamW, or leave it out"
        )
