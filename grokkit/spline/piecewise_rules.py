"""Rules for propagating a value and its tangents through activations and max-pools."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.operations import RELU, Operation, find_operation
from grokkit.spline.dual import Dual, apply_forward_ad, has_dual, make_hidden_write_error, scale_tangent
from grokkit.spline.rule_table import get_out_of_place, tree_map, writes_in_place
from grokkit.units import is_counted_call, list_leaves


def apply_activation(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an activation; each unit's slope is computed once and used for every direction."""
    activation = _get_row(func).activation
    if not is_counted_call(_get_row(func), (x, *args), kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    compares = any(isinstance(leaf, Tensor) for leaf in list_leaves((args, kwargs)))
    if activation is not None and compares and (activation.pair or activation.name == "clamp"):
        return _apply_comparison(func, x, *args, **kwargs)
    if not isinstance(x, Dual) or has_dual(args, kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    if activation is RELU:
        value = func(x.primal, *args, **kwargs)
        slope, in_place = value.sign(), value is x.primal
    else:
        value, slope, in_place = _compute_value_and_slope(lambda unit: func(unit, *args, **kwargs), x.primal)
    if in_place:
        x.primal.copy_(value)
        x.tangent.mul_(slope)
        return x
    return Dual(value, scale_tangent(x.tangent, slope))


def _apply_comparison(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an activation that compares tensors, by its slope in each of them."""
    if writes_in_place(func) and not isinstance(args[0], Dual):
        raise make_hidden_write_error(func)
    duals = list({id(leaf): leaf for leaf in list_leaves((args, kwargs)) if isinstance(leaf, Dual)}.values())
    shape = torch.broadcast_shapes(*(leaf.shape for leaf in list_leaves((args, kwargs)) if isinstance(leaf, Tensor)))
    with torch.enable_grad():
        leaves = {id(dual): dual.primal.detach().expand(shape).clone().requires_grad_() for dual in duals}
        filled_args, filled_kwargs = tree_map(lambda leaf: leaves.get(id(leaf), leaf), (args, kwargs))
        out = get_out_of_place(func)(*filled_args, **filled_kwargs)
        slopes = torch.autograd.grad(out.sum(), list(leaves.values()))
    changes = [scale_tangent(_align(dual.tangent, shape), slope) for dual, slope in zip(duals, slopes, strict=True)]
    result = Dual(out.detach(), functools.reduce(torch.add, changes))
    if not writes_in_place(func):
        return result
    args[0].primal.copy_(result.primal)
    args[0].tangent.copy_(result.tangent)
    return args[0]


def _align(tangent: Tensor, shape: torch.Size) -> Tensor:
    """Broadcast the tangents of a tensor to those of one of a larger shape."""
    missing = len(shape) + 1 - tangent.dim()
    return tangent.reshape(len(tangent), *(1,) * missing, *tangent.shape[1:]).expand(-1, *shape)


def _compute_value_and_slope(activation: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Compute value and slope by reverse-mode AD on a copy; also return whether the activation worked in place."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        unit = leaf.clone()
        out = activation(unit)
        (slope,) = torch.autograd.grad(out.sum(), leaf)
    return out.detach(), slope, out is unit


def apply_max_pool(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Any:
    """Apply a max-pool; the tangent of a maximum is the tangent of its winner."""
    pool = _get_row(func).pool
    assert pool is not None
    if x.dim() != pool.spatial + 2 or has_dual(args, kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    value, winners = getattr(F, f"{pool.name}_with_indices")(x.primal, *args, **kwargs)
    flat = winners.flatten(-pool.spatial).expand(len(x.tangent), *winners.shape[:2], -1)
    slopes = x.tangent.flatten(-pool.spatial).gather(-1, flat)
    pooled = Dual(value, torch.unflatten(slopes, -1, winners.shape[-pool.spatial :]))
    return (pooled, winners) if func.__name__.endswith("_with_indices") or func is torch.adaptive_max_pool1d else pooled


def apply_steps(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an activation that is constant between its jumps."""
    if not isinstance(x, Dual):
        return apply_forward_ad(func, x, *args, **kwargs)
    value = func(x.primal, *args, **kwargs)
    if value is x.primal:
        x.tangent.zero_()
        return x
    return Dual(value, torch.zeros_like(x.tangent))


def _get_row(func: Any) -> Operation:
    row = find_operation(func)
    assert row is not None
    return row
