"""Rules for propagating a value and its tangents through the operations of image networks.

An operation without a rule is only slower, never less exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.errors import ModelContractError
from grokkit.operations import OPERATIONS, RELU, Operation, find_operation, get_function_name
from grokkit.spline.dual import (
    Dual,
    apply_forward_ad,
    apply_linear,
    has_dual,
    make_hidden_write_error,
    round_like_tangent,
    scale_tangent,
)
from grokkit.spline.rule_table import build_rule_table, get_out_of_place, tree_leaves, tree_map

__all__ = ["Dual"]


def _read_metadata(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that reads no value, or whose result has no derivative."""
    args, kwargs = tree_map(lambda leaf: leaf.primal if isinstance(leaf, Dual) else leaf, (args, kwargs))
    return func(*args, **kwargs)


def _cast(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(x, Dual):
        return func(x, *_read_metadata(lambda *tree: tree, *args), **kwargs)  # the dtype and device of a dual
    args, kwargs = tree_map(lambda leaf: leaf.primal if isinstance(leaf, Dual) else leaf, (args, kwargs))
    primal = func(x.primal, *args, **kwargs)
    if not (isinstance(primal, Tensor) and primal.is_floating_point()):
        return primal
    return x if primal is x.primal else Dual(primal, func(x.tangent, *args, **kwargs))


def _refuse_reading(func: Any, *args: Any, **kwargs: Any) -> Any:
    raise ModelContractError(
        f"`{get_function_name(func)}` hands values to code that is not seen, where derivatives end; use "
        'method="vertex", or compute with tensors'
    )


def _keep(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Dual:
    return x


def _read_data(func: Any, x: Dual) -> Dual:
    return Dual(x.primal.detach(), x.tangent.detach())


def _apply_view(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a view; one in place changes the shape of the same object."""
    out_of_place = get_out_of_place(func)
    if out_of_place is func or not isinstance(x, Dual):
        return apply_linear(func, x, *args, **kwargs)
    viewed = apply_linear(out_of_place, x, *args, **kwargs)
    x.primal, x.tangent = viewed.primal, viewed.tangent
    return x


def _apply_dropout(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("training", True):
        raise ModelContractError(
            f"the model calls `{func.__name__}` in training mode although it is measured in eval mode, so its output "
            "is random; pass `training=self.training` in its forward, or use the dropout module"
        )
    return x


def _apply_convolution(func: Any, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Convolve value and tangents separately, each as one flat batch, with the bias only on the value."""
    if not isinstance(x, Dual) or x.dim() != weight.dim() or has_dual(weight, bias):
        return apply_forward_ad(func, x, weight, bias, *args, **kwargs)
    tangent = func(x.tangent.flatten(0, 1), round_like_tangent(x, weight), None, *args, **kwargs)
    return Dual(func(x.primal, weight, bias, *args, **kwargs), tangent.unflatten(0, x.tangent.shape[:2]))


def _apply_per_image(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply a linear operation on single images; tangents as one flat batch, because vmap lacks some of the rules."""
    if not isinstance(x, Dual) or x.dim() < 3 or has_dual(args, kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    tangent = func(x.tangent.flatten(0, 1), *args, **kwargs)
    return Dual(func(x.primal, *args, **kwargs), tangent.unflatten(0, x.tangent.shape[:2]))


def _apply_fully_connected(func: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    if not isinstance(x, Dual) or has_dual(weight, bias):
        return apply_forward_ad(func, x, weight, bias)
    return Dual(func(x.primal, weight, bias), func(x.tangent, round_like_tangent(x, weight)))


def _apply_batch_norm(
    func: Any,
    x: Dual,
    mean: Any,
    var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    is_other_order = func is not F.batch_norm  # torch.batch_norm has the statistics behind weight and bias
    if training or is_other_order or not isinstance(x, Dual) or has_dual(mean, var, weight, bias):
        return apply_forward_ad(func, x, mean, var, weight, bias, training, momentum, eps)
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    primal = func(x.primal, mean, var, weight, bias, False, momentum, eps)
    return Dual(primal, scale_tangent(x.tangent, scale.view(-1, *(1,) * (x.dim() - 2))))


def _multiply(func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    return apply_linear(func, a, b, **kwargs) if isinstance(a, Dual) else apply_linear(func, b, a, **kwargs)


def _pad(func: Any, x: Dual, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    primal = func(x.primal, pad, mode=mode, value=value)
    return Dual(primal, torch.vmap(lambda tangent: func(tangent, pad, mode=mode))(x.tangent))


def _pad_constant(func: Any, x: Dual, pad: Any, value: float = 0) -> Dual:
    return Dual(func(x.primal, pad, value), torch.vmap(lambda tangent: func(tangent, pad, 0))(x.tangent))


def _add(func: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> Any:
    """Compute a ± b; the tangent of an operand that is not dual is zero."""
    if has_dual(args, kwargs) or not isinstance(a, Dual | Tensor | float | int):
        return apply_forward_ad(func, a, b, *args, **kwargs)
    first, second = (x.primal if isinstance(x, Dual) else x for x in (a, b))
    version = getattr(first, "_version", None)
    primal = func(first, second, *args, **kwargs)
    if not isinstance(a, Dual):
        if getattr(first, "_version", None) != version:
            raise make_hidden_write_error(func)
        zero = torch.zeros((), dtype=b.tangent.dtype, device=b.tangent.device)
        tangent = torch.vmap(lambda t: func(zero, t, *args, **kwargs))(b.tangent)
    elif isinstance(b, Dual):
        tangent = torch.vmap(lambda t, u: func(t, u, *args, **kwargs))(a.tangent, b.tangent)
    else:
        tangent = torch.vmap(lambda t: func(t, 0, *args, **kwargs))(a.tangent)
    if isinstance(a, Dual) and primal is a.primal:
        return a
    return Dual(
        primal, tangent.expand(-1, *primal.shape) if tangent[0].shape == primal.shape else _broadcast(tangent, primal)
    )


def _broadcast(tangent: Tensor, primal: Tensor) -> Tensor:
    """Broadcast the tangent to the shape of the value, in new memory."""
    missing = primal.dim() - tangent.dim() + 1
    aligned = tangent.reshape(len(tangent), *(1,) * missing, *tangent.shape[1:])
    return aligned.expand(-1, *primal.shape).contiguous()


def _join(func: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:
    duals = [x for x in tensors if isinstance(x, Dual)]
    if has_dual(args, kwargs) or not duals:
        return apply_forward_ad(func, tensors, *args, **kwargs)
    primal = func([x.primal if isinstance(x, Dual) else x for x in tensors], *args, **kwargs)
    count = len(duals[0].tangent)
    tangents = [x.tangent if isinstance(x, Dual) else x.new_zeros(()).expand(count, *x.shape) for x in tensors]
    return Dual(primal, torch.vmap(lambda *parts: func(parts, *args, **kwargs))(*tangents))


def _apply_jointly(positions: tuple[int, ...], func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that is affine in the arguments at some positions together; constants there are offsets."""
    others = [arg for at, arg in enumerate(args) if at not in positions]
    written = bool(args) and isinstance(args[0], Tensor) and not isinstance(args[0], Dual) and func.__name__[-1] == "_"
    if written or has_dual(others, kwargs) or not has_dual(*args):
        return apply_forward_ad(func, *args, **kwargs)
    first = next(arg for arg in args if isinstance(arg, Dual))
    primal = func(*(arg.primal if isinstance(arg, Dual) else arg for arg in args), **kwargs)
    moving = [at for at in positions if at < len(args) and isinstance(args[at], Dual)]
    rest: list[Any] = [
        torch.zeros_like(arg, dtype=first.tangent.dtype) if at in positions and isinstance(arg, Tensor) else arg
        for at, arg in enumerate(round_like_tangent(first, args))
    ]
    rest = [0.0 if at in positions and not isinstance(arg, Tensor) else arg for at, arg in enumerate(rest)]

    def apply(*tangents: Tensor) -> Any:
        filled = dict(zip(moving, tangents, strict=True))
        return func(*(filled.get(at, arg) for at, arg in enumerate(rest)), **kwargs)

    tangent = torch.vmap(apply)(*(args[at].tangent for at in moving))
    return args[0] if isinstance(args[0], Dual) and primal is args[0].primal else Dual(primal, tangent)


def _choose(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _apply_jointly((0, 2) if func is Tensor.where else (1, 2), func, *args, **kwargs)


def _apply_product(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that is linear in each of its factors."""
    moving = [at for at, arg in enumerate(args) if has_dual(arg)]
    if len(moving) == 1 and isinstance(args[moving[0]], Dual):
        return _apply_jointly((moving[0],), func, *args, **kwargs)
    return apply_forward_ad(func, *args, **kwargs)


def _add_product(func: Any, c: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    return _apply_jointly((0, 2) if isinstance(b, Dual) else (0, 1), func, c, a, b, **kwargs)


def _assign(func: Any, base: Any, index: Any, value: Any) -> None:
    if not isinstance(base, Dual):
        if has_dual(value):
            raise make_hidden_write_error(func)
        func(base, index.primal if isinstance(index, Dual) else index, value)
        return
    base.primal[index] = value.primal if isinstance(value, Dual) else value
    place = (slice(None), *(index if isinstance(index, tuple) else (index,)))
    if isinstance(value, Dual):
        missing = base.tangent[place].dim() - value.tangent.dim()
        tangent = value.tangent.reshape(len(value.tangent), *(1,) * missing, *value.tangent.shape[1:])
        base.tangent[place] = tangent.to(base.tangent.dtype)
    else:
        base.tangent[place] = 0


def _copy(func: Any, base: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(base, Dual):
        raise make_hidden_write_error(func)
    _assign(Tensor.__setitem__, base, ..., value)
    return base


def _apply_activation(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an activation; each unit's slope is computed once and used for every direction."""
    activation = _get_row(func).activation
    clamps_by_tensor = (
        any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs)))
        and activation is not None
        and activation.name == "clamp"
    )
    if not isinstance(x, Dual) or activation is None or activation.pair or clamps_by_tensor or has_dual(args, kwargs):
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


def _compute_value_and_slope(activation: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Compute value and slope by reverse-mode AD on a copy; also return whether the activation worked in place."""
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        unit = leaf.clone()
        out = activation(unit)
        (slope,) = torch.autograd.grad(out.sum(), leaf)
    return out.detach(), slope, out is unit


def _apply_max_pool(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Any:
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


def _apply_steps(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
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


ROW_RULES: dict[str, Callable[..., Any]] = {
    **{row.name: _read_metadata for row in OPERATIONS.values() if row.kind in ("metadata", "constant")},
    **{row.name: _refuse_reading for row in OPERATIONS.values() if row.kind == "reading"},
    **{row.name: _apply_activation for row in OPERATIONS.values() if row.activation is not None},
    **{row.name: _apply_max_pool for row in OPERATIONS.values() if row.pool is not None},
    **build_rule_table(
        _apply_view,
        "view permute transpose movedim t T squeeze unsqueeze chunk split tensor_split hsplit unbind narrow select "
        "expand contiguous flip roll rot90 __getitem__ index_select gather take repeat repeat_interleave diagonal diag "
        "unfold atleast_1d",
    ),
    **build_rule_table(
        apply_linear,
        "mean sum cumsum diff tril neg positive div",
    ),
    **build_rule_table(
        _apply_per_image,
        "avg_pool1d adaptive_avg_pool1d interpolate pixel_shuffle pixel_unshuffle channel_shuffle fold",
    ),
    **build_rule_table(
        _add,
        "add sub rsub",
    ),
    **build_rule_table(
        _cast,
        "to float cpu",
    ),
    "requires_grad_": _keep,
    "detach": _read_data,
    "dropout": _apply_dropout,
    "cat": _join,
    "where": _choose,
    "masked_fill": partial(_apply_jointly, (0, 2)),
    "lerp": partial(_apply_jointly, (0, 1)),
    "pad": _pad,
    "constant_pad_nd": _pad_constant,
    "__setitem__": _assign,
    "copy_": _copy,
    "mul": _multiply,
    "matmul": _apply_product,
    "addmm": _add_product,
    "linear": _apply_fully_connected,
    "conv1d": _apply_convolution,
    "batch_norm": _apply_batch_norm,
    "sign": _apply_steps,
    "heaviside": _apply_steps,
}
"""Rules of the rows that are affine or counted. A row without one uses forward-mode AD, one direction after another."""

Dual.rules |= {func: rule for name, rule in ROW_RULES.items() for func in OPERATIONS[name].functions()}
