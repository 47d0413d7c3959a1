"""Rules for propagating a value and its tangents through the operations of image networks.

An operation without a rule is only slower, never less exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grokkit.errors import ModelContractError
from grokkit.operations import OPERATIONS, get_argument_names, get_function_name
from grokkit.spline.dual import (
    Dual,
    apply_forward_ad,
    apply_linear,
    has_dual,
    make_hidden_write_error,
    map_directions,
    round_like_tangent,
    scale_tangent,
)
from grokkit.spline.piecewise_rules import apply_activation, apply_max_pool, apply_steps
from grokkit.spline.rule_table import (
    JOINT_ROWS,
    build_rule_table,
    find_value_positions,
    get_out_of_place,
    tree_map,
    writes_in_place,
)

__all__ = ["Dual"]


def _read_metadata(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that reads no value, or whose result has no derivative."""
    args, kwargs = tree_map(lambda leaf: leaf.primal if isinstance(leaf, Dual) else leaf, (args, kwargs))
    return func(*args, **kwargs)


def _make_constant(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that reads the shape of its first argument."""
    if has_dual(args, kwargs):
        raise ModelContractError(
            f"`{get_function_name(func)}` copies a value that depends on the image into a tensor without derivatives; "
            'use method="vertex", or `clone`'
        )
    return _read_metadata(func, x, *args, **kwargs)


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
    """Apply a view; one in place changes the shape of the same object. Other duals give no more than their shape."""
    args, kwargs = tree_map(lambda leaf: leaf.primal if isinstance(leaf, Dual) else leaf, (args, kwargs))
    out_of_place = get_out_of_place(func)
    if out_of_place is func or not isinstance(x, Dual):
        return apply_linear(func, x, *args, **kwargs) if isinstance(x, Dual) else func(x, *args, **kwargs)
    viewed = apply_linear(out_of_place, x, *args, **kwargs)
    x.primal, x.tangent = viewed.primal, viewed.tangent
    return x


def _set_to_zero(func: Any, x: Dual) -> Dual:
    x.primal.zero_()
    x.tangent.zero_()
    return x


def _apply_dropout(func: Any, x: Dual, p: float = 0.5, training: bool = True, *_: Any, **kwargs: Any) -> Any:
    if kwargs.get("train", training):
        raise ModelContractError(
            f"the model calls `{get_function_name(func)}` in training mode although it is measured in eval mode, so "
            "its output is random; pass `training=self.training` in its forward, or use the dropout module"
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


def _apply_batch_norm(func: Any, *args: Any, **kwargs: Any) -> Any:
    # torch.batch_norm has the statistics behind weight and bias, torch.nn.functional.batch_norm before them
    names = (names[0] for names in get_argument_names(func))
    arguments = dict(zip(names, args, strict=False)) | kwargs
    x, mean, var = (arguments[name] for name in ("input", "running_mean", "running_var"))
    weight, bias = arguments.get("weight"), arguments.get("bias")
    if arguments.get("training") or not isinstance(x, Dual) or has_dual(mean, var, weight, bias):
        return apply_forward_ad(func, *args, **kwargs)
    scale = (var + arguments.get("eps", 1e-5)).rsqrt()
    scale = scale if weight is None else weight * scale
    primal = func(x.primal, *args[1:], **kwargs)
    return Dual(primal, scale_tangent(x.tangent, scale.view(-1, *(1,) * (x.dim() - 2))))


def _multiply(func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    return apply_linear(func, a, b, **kwargs) if isinstance(a, Dual) else apply_linear(func, b, a, **kwargs)


def _pad(func: Any, x: Dual, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    primal = func(x.primal, pad, mode=mode, value=value)
    return Dual(primal, torch.vmap(lambda tangent: func(tangent, pad, mode=mode))(x.tangent))


def _pad_constant(func: Any, x: Dual, pad: Any, value: float = 0) -> Dual:
    return Dual(func(x.primal, pad, value), torch.vmap(lambda tangent: func(tangent, pad, 0))(x.tangent))


def _subtract_neighbours(
    func: Any, x: Any, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Any:
    parts = [part for part in (prepend, x, append) if part is not None]
    return apply_linear(func, x if len(parts) == 1 else torch.cat(parts, dim), n, dim)


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
        tangent = map_directions(func, lambda add, t: add(zero, t, *args, **kwargs), b.tangent)
    elif isinstance(b, Dual):
        tangent = map_directions(func, lambda add, t, u: add(t, u, *args, **kwargs), a.tangent, b.tangent)
    else:
        tangent = map_directions(func, lambda add, t: add(t, 0, *args, **kwargs), a.tangent)
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
    return Dual(primal, map_directions(func, lambda join, *parts: join(parts, *args, **kwargs), *tangents))


def _apply_jointly(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that is affine in its values together."""
    if kwargs.get("reduce") is not None:
        return apply_forward_ad(func, *args, **kwargs)
    return _apply_at(find_value_positions(func, len(args)), func, *args, **kwargs)


def _apply_at(positions: Sequence[int], func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that is affine in the arguments at some positions together; constants there are offsets."""
    others = [arg for at, arg in enumerate(args) if at not in positions]
    if has_dual(others, kwargs) or not has_dual(*args):
        return apply_forward_ad(func, *args, **kwargs)
    if writes_in_place(func) and not isinstance(args[0], Dual):
        raise make_hidden_write_error(func)
    first = next(arg for arg in args if isinstance(arg, Dual))
    primal = func(*(arg.primal if isinstance(arg, Dual) else arg for arg in args), **kwargs)
    moving = [at for at in positions if at < len(args) and isinstance(args[at], Dual)]
    rest = [
        _make_zero(arg, first.tangent.dtype) if at in positions else round_like_tangent(first, arg)
        for at, arg in enumerate(args)
    ]

    def apply(mapped: Any, *tangents: Tensor) -> Any:
        filled = dict(zip(moving, tangents, strict=True))
        return mapped(*(filled.get(at, arg) for at, arg in enumerate(rest)), **kwargs)

    tangent = map_directions(func, apply, *(args[at].tangent for at in moving))
    return args[0] if isinstance(args[0], Dual) and primal is args[0].primal else Dual(primal, tangent)


def _make_zero(offset: Any, dtype: torch.dtype) -> Any:
    return torch.zeros_like(offset, dtype=dtype) if isinstance(offset, Tensor) else 0.0


def _apply_product(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that is linear in each of its factors, which may come as a list."""
    at = next((at for at, arg in enumerate(args) if isinstance(arg, list | tuple) and has_dual(arg)), None)
    if at is not None:
        listed = _pack(func, at, len(args[at]))
        return _apply_product(listed, *args[:at], *args[at], *args[at + 1 :], **kwargs)
    moving = [at for at, arg in enumerate(args) if has_dual(arg)]
    if len(moving) == 1:
        return _apply_at(moving, func, *args, **kwargs)
    return apply_forward_ad(func, *args, **kwargs)


def _pack(func: Any, at: int, count: int) -> Callable[..., Any]:
    """Return an operation with the list that is its argument at a position as `count` arguments."""

    def packed(*args: Any, **kwargs: Any) -> Any:
        return func(*args[:at], list(args[at : at + count]), *args[at + count :], **kwargs)

    packed.__name__ = get_function_name(func)
    return packed


def _add_product(func: Any, c: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    return _apply_at((0, 2) if isinstance(b, Dual) else (0, 1), func, c, a, b, **kwargs)


def _broadcast_together(func: Any, *tensors: Any) -> Any:
    listed = list(tensors[0]) if isinstance(tensors[0], list | tuple) else list(tensors)
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in listed))
    return [tensor.expand(shape) for tensor in listed]


def _assign(func: Any, base: Any, index: Any, value: Any) -> None:
    if not isinstance(base, Dual):
        if has_dual(value):
            raise make_hidden_write_error(func)
        func(base, index.primal if isinstance(index, Dual) else index, value)
        return
    base.primal[index] = value.primal if isinstance(value, Dual) else value
    indices = index if isinstance(index, tuple) else (index,)
    if isinstance(value, Dual) and any(isinstance(part, Tensor | list) for part in indices):
        # several lists of positions move the dimension that they index to the front, before that of the directions
        for part, derivative in zip(base.tangent, value.tangent, strict=True):
            part[index] = derivative.to(part.dtype)
        return
    place = (slice(None), *indices)
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


ROW_RULES: dict[str, Callable[..., Any]] = {
    **{row.name: _read_metadata for row in OPERATIONS.values() if row.kind == "metadata"},
    **{row.name: _make_constant for row in OPERATIONS.values() if row.kind == "constant"},
    **{row.name: _refuse_reading for row in OPERATIONS.values() if row.kind == "reading"},
    **{row.name: apply_activation for row in OPERATIONS.values() if row.activation is not None},
    **{row.name: apply_max_pool for row in OPERATIONS.values() if row.pool is not None},
    **build_rule_table(
        _apply_view,
        "view permute transpose movedim t T squeeze unsqueeze chunk split tensor_split hsplit unbind narrow slice "
        "select as_strided expand contiguous flip roll rot90 __getitem__ index_select gather take masked_select repeat "
        "repeat_interleave diagonal diag diag_embed diagflat unfold atleast_1d adjoint",
    ),
    **build_rule_table(apply_linear, "mean sum cumsum trace tril neg positive conj deg2rad div"),
    **build_rule_table(
        _apply_per_image,
        "avg_pool1d adaptive_avg_pool1d interpolate reflection_pad1d pixel_shuffle pixel_unshuffle channel_shuffle "
        "fold",
    ),
    **build_rule_table(_add, "add sub rsub"),
    **build_rule_table(_cast, "to float cpu"),
    **build_rule_table(_apply_jointly, JOINT_ROWS),
    **build_rule_table(_apply_product, "matmul cross"),
    **build_rule_table(_add_product, "addmm addr addcmul"),
    **build_rule_table(apply_steps, "sign heaviside"),
    "requires_grad_": _keep,
    "detach": _read_data,
    "dropout": _apply_dropout,
    "cat": _join,
    "diff": _subtract_neighbours,
    "broadcast_tensors": _broadcast_together,
    "lerp": partial(_apply_at, (0, 1)),
    "pad": _pad,
    "constant_pad_nd": _pad_constant,
    "__setitem__": _assign,
    "copy_": _copy,
    "zero_": _set_to_zero,
    "mul": _multiply,
    "linear": _apply_fully_connected,
    "conv1d": _apply_convolution,
    "batch_norm": _apply_batch_norm,
}
"""Rules of the rows that are affine or counted. A row without one uses forward-mode AD, one direction after another."""

Dual.rules |= {func: rule for name, rule in ROW_RULES.items() for func in OPERATIONS[name].functions()}
