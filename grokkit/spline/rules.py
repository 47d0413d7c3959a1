"""Rules for propagating a value and its tangents through the operations of image networks.

An operation without a rule is only slower, never less exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.errors import ModelContractError
from grokkit.spline.dual import (
    Dual,
    apply_forward_ad,
    apply_linear,
    has_dual,
    make_hidden_write_error,
    round_like_tangent,
    scale_tangent,
)
from grokkit.spline.rule_table import ANYWHERE, build_rule_table
from grokkit.units import ACTIVATIONS, MAX_POOLS, RELU

__all__ = ["Dual"]


def _read_metadata(func: Any, x: Dual, *args: Any, **kwargs: Any) -> Any:
    return func(x.primal, *args, **kwargs)


def _read_data(func: Any, x: Dual) -> Dual:
    return Dual(func(x.primal), func(x.tangent))


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
    if training or not isinstance(x, Dual) or has_dual(mean, var, weight, bias):
        return apply_forward_ad(func, x, mean, var, weight, bias, training, momentum, eps)
    scale = (var + eps).rsqrt() if weight is None else weight * (var + eps).rsqrt()
    primal = func(x.primal, mean, var, weight, bias, False, momentum, eps)
    return Dual(primal, scale_tangent(x.tangent, scale.view(-1, *(1,) * (x.dim() - 2))))


def _multiply(func: Any, a: Any, b: Any, **kwargs: Any) -> Any:
    return apply_linear(func, a, b, **kwargs) if isinstance(a, Dual) else apply_linear(func, b, a, **kwargs)


def _pad(func: Any, x: Dual, pad: Any, mode: str = "constant", value: float | None = None) -> Any:
    primal = func(x.primal, pad, mode=mode, value=value)
    return Dual(primal, torch.vmap(lambda tangent: func(tangent, pad, mode=mode))(x.tangent))


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


def _apply_activation(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an activation; each unit's slope is computed once and used for every direction."""
    if not isinstance(x, Dual) or has_dual(args, kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    if ACTIVATIONS[func] is RELU:
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
    pool = MAX_POOLS[func]
    if x.dim() != pool.spatial + 2 or has_dual(args, kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    value, winners = getattr(F, f"{pool.name}_with_indices")(x.primal, *args, **kwargs)
    flat = winners.flatten(-pool.spatial).expand(len(x.tangent), *winners.shape[:2], -1)
    slopes = x.tangent.flatten(-pool.spatial).gather(-1, flat)
    pooled = Dual(value, torch.unflatten(slopes, -1, winners.shape[-pool.spatial :]))
    return (pooled, winners) if func.__name__.endswith("_with_indices") or func is torch.adaptive_max_pool1d else pooled


_PROPERTIES = {
    "shape": _read_metadata,
    "ndim": _read_metadata,
    "dtype": _read_metadata,
    "device": _read_metadata,
    "data": _read_data,
}
Dual.rules |= {
    **build_rule_table(
        apply_linear,
        ANYWHERE,
        "view view_as reshape flatten unflatten permute transpose movedim squeeze unsqueeze chunk split unbind narrow "
        "select expand expand_as repeat contiguous clone detach flip roll __getitem__ t mean sum neg __neg__ "
        "__imul__ mul_ div __truediv__ __itruediv__ div_ matmul __matmul__",
    ),
    **build_rule_table(
        _apply_per_image,
        (torch, F),
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "interpolate upsample pixel_shuffle pixel_unshuffle channel_shuffle",
    ),
    **build_rule_table(_add, ANYWHERE, "add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ rsub"),
    **build_rule_table(_multiply, ANYWHERE, "mul __mul__ __rmul__ multiply"),
    **build_rule_table(_join, (torch,), "cat concat concatenate stack hstack vstack"),
    **build_rule_table(
        _apply_convolution, (torch, F), "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
    ),
    **build_rule_table(_apply_fully_connected, (F,), "linear"),
    **build_rule_table(_apply_batch_norm, (F,), "batch_norm"),
    **build_rule_table(_pad, (F,), "pad"),
    **build_rule_table(
        _apply_dropout, (F,), "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
    ),
    **build_rule_table(
        _read_metadata, (Tensor,), "size dim ndimension numel nelement stride is_contiguous is_floating_point __len__"
    ),
    **{getattr(Tensor, name).__get__: rule for name, rule in _PROPERTIES.items()},
    **dict.fromkeys(ACTIVATIONS, _apply_activation),
    **dict.fromkeys(MAX_POOLS, _apply_max_pool),
}
