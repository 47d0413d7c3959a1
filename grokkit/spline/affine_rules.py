"""Rules that write a recorded call as an affine map W x + b of its image-dependent arguments, in three forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.errors import ModelContractError
from grokkit.operations import get_argument_names
from grokkit.spline.rule_table import (
    JOINT_ROWS,
    build_rule_table,
    find_value_positions,
    get_out_of_place,
    tree_map,
)
from grokkit.spline.tape import BatchRow, Node, Var
from grokkit.units import list_leaves

MapForm = Literal["value", "linear", "magnitude"]
"""Form of an affine map W x + b: the map itself ("value"), W x ("linear"), or |W| x ("magnitude")."""

_SMALL_MAP_PIXELS = 64
_TEMPORARY_BYTES = 2**24
Invocation = tuple[Callable[..., Any], Any, Any]
"""A function with its positional and keyword arguments."""


def bind_arguments(node: Node, *names: str) -> dict[str, Any]:
    """Return the arguments by name; None for those that were not passed."""
    return {**dict.fromkeys(names), **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _keep_operation(node: Node, form: MapForm) -> Invocation:
    """Return the call unchanged: it selects, rearranges or averages values, with no constant and no negative weight."""
    if any(not var.floating for var in node.inputs()):
        raise make_error(node, "selects by a mask or an index that depends on the image")
    return get_out_of_place(node.func), node.args, node.kwargs


def _apply_identity(node: Node, form: MapForm) -> Invocation:
    if not all(var.floating for var in node.outputs()):
        raise make_error(node, "rounds")
    return (lambda x: x), (node.inputs()[0],), {}


def _apply_layer(node: Node, form: MapForm) -> Invocation:
    """Return the call of a convolution or fully connected layer."""
    arguments = bind_arguments(node, "input", "weight", "bias")
    rest = node.args[3:]
    x, weight, bias = arguments.pop("input"), arguments.pop("weight"), arguments.pop("bias")
    _check_constants(node, weight, bias)
    func = _conv2d if node.func is F.conv2d else node.func
    return func, (x, _to_weight(weight, form), bias if form == "value" else None, *rest), arguments


def _conv2d(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Compute a float64 convolution, with a faster layout on the CPU.

    Deep layers of small maps run in channels_last (two to three times as fast). Large maps run in batches whose
    temporaries stay below the size at which the allocator maps new memory (up to three times as fast).
    """
    if x.device.type != "cpu" or x.shape[0] == 0:
        return F.conv2d(x, weight, *rest, **options)
    kernel, pixels = weight[0].numel(), x.shape[-2:].numel()
    # not for 1x1 kernels: on some builds their channels_last backward crashes with few channels
    if pixels <= _SMALL_MAP_PIXELS and weight.shape[-2:].numel() > 1 and min(weight.shape[:2]) >= 8:
        last = torch.channels_last
        out = F.conv2d(x.contiguous(memory_format=last), weight.contiguous(memory_format=last), *rest, **options)
        return out.contiguous()
    rows = max(1, _TEMPORARY_BYTES // (8 * kernel * pixels))
    return torch.cat([F.conv2d(chunk, weight, *rest, **options) for chunk in torch.split(x, rows)])


def _apply_batch_norm(node: Node, form: MapForm) -> Invocation:
    # torch.batch_norm has another order than torch.nn.functional.batch_norm
    arguments = bind_arguments(node, *(names[0] for names in get_argument_names(node.func)))
    mean, var, weight, bias = (arguments[name] for name in ("running_mean", "running_var", "weight", "bias"))
    _check_constants(node, mean, var, weight, bias)
    if arguments["training"] or mean is None:
        raise make_error(node, "normalises by the statistics of the batch")
    eps = 1e-5 if arguments["eps"] is None else arguments["eps"]
    scale = (var.double() + eps).rsqrt() if weight is None else weight.double() * (var.double() + eps).rsqrt()
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    return _scale, (arguments["input"], _to_weight(scale, form), shift if form == "value" else None), {}


def _scale(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    columns = (-1, *(1,) * (x.dim() - 2))
    scaled = x * scale.view(columns)
    return scaled if shift is None else scaled.add_(shift.view(columns))


def bind_operands(node: Node) -> tuple[Any, Any, dict[str, Any]]:
    """Return both operands of a binary operation, and its other options."""
    arguments = bind_arguments(node, "input", "other")
    return arguments.pop("input"), arguments.pop("other"), arguments


def _multiply(node: Node, form: MapForm) -> Invocation:
    """Return the call of a product of x and constants: elementwise, as matrices, or by einsum."""
    _check_one_factor(node, node.args, node.kwargs)
    args, kwargs = tree_map(lambda leaf: _to_factor(leaf, form), (node.args, node.kwargs))
    return get_out_of_place(node.func), args, kwargs


def _multiply_matrices(node: Node, form: MapForm) -> Invocation:
    """Return the call of a product of matrices; numbers among its arguments are dimensions."""
    _check_one_factor(node, node.args, node.kwargs)
    args, kwargs = tree_map(
        lambda leaf: _to_weight(leaf, form) if isinstance(leaf, Tensor | BatchRow) else leaf, (node.args, node.kwargs)
    )
    return node.func, args, kwargs


def _check_one_factor(node: Node, *factors: Any) -> None:
    if sum(isinstance(factor, Var) for factor in list_leaves(factors)) > 1:
        raise make_error(node, "multiplies two tensors that both depend on the image")


def _to_factor(leaf: Any, form: MapForm) -> Any:
    is_number = isinstance(leaf, int | float) and not isinstance(leaf, bool)
    return _to_weight(leaf, form) if is_number or isinstance(leaf, Tensor | BatchRow) else leaf


_PRODUCTS = {"addmm": torch.matmul, "addr": torch.outer, "addcmul": torch.mul}


def _add_product(node: Node, form: MapForm) -> Invocation:
    """Return the call of beta c + alpha a b, one of whose factors may depend on the image."""
    assert node.operation is not None
    offset, *factors = node.args[:3]
    numbers = [node.kwargs.get(name, 1) for name in ("beta", "alpha" if "alpha" in node.kwargs else "value")]
    if any(isinstance(number, Var) for number in numbers):
        raise make_error(node, "multiplies two tensors that both depend on the image")
    _check_one_factor(node, factors)
    multiply = _PRODUCTS[node.operation.name]
    if form != "value" and not any(isinstance(factor, Var) for factor in factors):
        numbers[1] = 0  # the product is an offset
    weights = [_to_weight(constant, form) for constant in (*factors, *numbers)]
    return (lambda c, a, b, beta, alpha: beta * c + alpha * multiply(a, b)), (_to_offset(offset, form), *weights), {}


def _cross(node: Node, form: MapForm) -> Invocation:
    """Return the call of a cross product, a(i+1) b(i+2) - a(i+2) b(i+1)."""
    arguments = bind_arguments(node, "input", "other", "dim")
    _check_one_factor(node, node.args)
    dim, sign = arguments["dim"], 1 if form == "magnitude" else -1
    if dim is None:
        raise make_error(node, "has no `dim`")

    def cross(a: Tensor, b: Tensor) -> Tensor:
        return a.roll(-1, dim) * b.roll(-2, dim) + sign * a.roll(-2, dim) * b.roll(-1, dim)

    return cross, (_to_weight(arguments["input"], form), _to_weight(arguments["other"], form)), {}


def _stride(node: Node, form: MapForm) -> Invocation:
    """Return the call of a view by strides, of the memory that the recorded tensor had."""
    return (lambda x, *args, **kwargs: x.contiguous().as_strided(*args, **kwargs)), node.args, node.kwargs


def _set_to_zero(node: Node, form: MapForm) -> Invocation:
    return torch.zeros_like, node.args, {}


def _blend(node: Node, form: MapForm) -> Invocation:
    """Return the call of (1 - w) a + w b with a constant w."""
    arguments = bind_arguments(node, "input", "end", "weight")
    weight = arguments["weight"]
    if isinstance(weight, Var):
        raise make_error(node, "has weights that depend on the image")
    if isinstance(weight, BatchRow):
        rest: Any = BatchRow(1 - weight.value)
    else:
        rest = 1 - weight
    first, second = (_to_offset(arguments[name], form) for name in ("input", "end"))
    weights = (_to_weight(rest, form), _to_weight(weight, form))
    return (lambda a, b, one, other: a * one + b * other), (first, second, *weights), {}


def _subtract_neighbours(node: Node, form: MapForm) -> Invocation:
    arguments = bind_arguments(node, "input", "n", "dim", "prepend", "append")
    parts = [arguments[name] for name in ("prepend", "input", "append") if arguments[name] is not None]
    count = 1 if arguments["n"] is None else arguments["n"]
    dim = -1 if arguments["dim"] is None else arguments["dim"]
    sign = 1 if form == "magnitude" else -1

    def subtract(*parts: Tensor) -> Tensor:
        x = torch.cat(parts, dim)
        for _ in range(count):
            x = x.narrow(dim, 1, x.shape[dim] - 1) + sign * x.narrow(dim, 0, x.shape[dim] - 1)
        return x

    return subtract, tuple(_to_offset(part, form) for part in parts), {}


def _assign(node: Node, form: MapForm) -> Invocation:
    """Return the call of an assignment to a slice, on a copy of what is written to."""
    base, index, value = node.args
    if any(isinstance(leaf, Var) for leaf in list_leaves(index)):
        raise make_error(node, "selects by a mask or an index that depends on the image")

    def assign(base: Tensor, value: Any) -> Tensor:
        base = base.clone()
        base[index] = value
        return base

    return assign, (_to_offset(base, form), _to_offset(value, form)), {}


def _copy(node: Node, form: MapForm) -> Invocation:
    base, value = node.args[:2]
    return (lambda base, value: value.expand_as(base)), (base, _to_offset(value, form)), {}


def _interpolate(node: Node, form: MapForm) -> Invocation:
    """Return the call; interpolation that is not cubic has no negative weight."""
    func, args, kwargs = _keep_operation(node, form)
    if form != "magnitude" or "bicubic" not in list_leaves((args, kwargs)):
        return func, args, kwargs

    def refuse(*_: Any, **__: Any) -> None:
        raise make_error(node, "has negative weights in bicubic mode, for which there is no bound")

    return refuse, args, kwargs


def _divide(node: Node, form: MapForm) -> Invocation:
    numerator, denominator, options = bind_operands(node)
    if isinstance(denominator, Var):
        raise make_error(node, "divides by a tensor that depends on the image")
    if options.get("rounding_mode") is not None:
        raise make_error(node, "rounds")
    return torch.div, (numerator, _to_weight(denominator, form)), {}


def _make_sum_rule(sign: int, swapped: bool = False) -> Callable[[Node, MapForm], Invocation]:
    """Return the rule for a ± alpha b; a constant operand is an offset."""

    def rule(node: Node, form: MapForm) -> Invocation:
        first, second, options = bind_operands(node)
        first, second = (second, first) if swapped else (first, second)
        if isinstance(options.get("alpha"), Var):
            raise make_error(node, "multiplies two tensors that both depend on the image")
        factor = sign * options.get("alpha", 1)
        weight = abs(factor) if form == "magnitude" else factor
        return torch.add, (_to_offset(first, form), _to_offset(second, form)), {"alpha": weight}

    return rule


def _to_offset(operand: Any, form: MapForm) -> Any:
    """Return an operand of a sum; a constant becomes zero in every form except "value"."""
    if isinstance(operand, Var):
        return operand
    if isinstance(operand, BatchRow):
        return operand if form == "value" else _to_zero(operand)
    # numbers become float64 tensors, because torch would convert 0.3 to the dtype of a float32 operand
    constant = operand if isinstance(operand, Tensor) else torch.tensor(operand, dtype=torch.float64)
    return constant if form == "value" else torch.zeros_like(constant)


def _negate(node: Node, form: MapForm) -> Invocation:
    return _apply_identity(node, form) if form == "magnitude" else (torch.neg, node.args, {})


def _apply_jointly(node: Node, form: MapForm) -> Invocation:
    """Return the call of an operation that is affine in several arguments together; constants there are offsets."""
    values = find_value_positions(node.func, len(node.args))
    others = [argument for at, argument in enumerate(node.args) if at not in values]
    if any(isinstance(leaf, Var) for leaf in list_leaves((others, node.kwargs))):
        raise make_error(node, "selects by a mask or an index that depends on the image")
    if node.kwargs.get("reduce") is not None:
        raise make_error(node, "combines values otherwise than by their sum")
    args = [_to_part(argument, form) if at in values else argument for at, argument in enumerate(node.args)]
    kwargs = {name: _to_factor(value, form) if name == "alpha" else value for name, value in node.kwargs.items()}
    return get_out_of_place(node.func), args, kwargs


def _to_part(argument: Any, form: MapForm) -> Any:
    """Return a value, or a list of values, with constants as offsets; numbers stay numbers, as torch demands."""
    return argument if form == "value" else tree_map(_to_zero, argument)


def _to_zero(leaf: Any) -> Any:
    if isinstance(leaf, Var):
        return leaf
    if isinstance(leaf, BatchRow):
        return BatchRow(torch.zeros_like(leaf.value))
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else 0.0


def _pad(node: Node, form: MapForm) -> Invocation:
    arguments = bind_arguments(node, *(names[0] for names in get_argument_names(node.func)))
    mode, value = arguments.get("mode") or "constant", arguments["value"]
    if isinstance(value, Var):
        raise make_error(node, "pads with a value that depends on the image")
    return F.pad, (arguments["input"], arguments["pad"], mode, value if form == "value" else None), {}


def _dropout(node: Node, form: MapForm) -> Invocation:
    arguments = bind_arguments(node, "input", "p", "training")
    if arguments["training"] is not False:
        raise make_error(node, "is random: dropout in training mode")
    return _apply_identity(node, form)


def _to_weight(constant: Any, form: MapForm) -> Any:
    """Return a weight; its absolute value in the form "magnitude"."""
    if form != "magnitude" or constant is None or isinstance(constant, Var):
        return constant
    if isinstance(constant, Tensor) and constant.dtype == torch.bool:
        return constant
    return BatchRow(constant.value.abs()) if isinstance(constant, BatchRow) else abs(constant)


def _check_constants(node: Node, *constants: Any) -> None:
    if any(isinstance(constant, Var) for constant in constants):
        raise make_error(node, "has weights that depend on the image")


def describe_call(node: Node) -> str:
    """Return the name and place of a call, for a message; an input that was made by unseen code by its place."""
    return f"`{node.name}` in {node.layer!r}" if node.inputs() else repr(node.layer)


def make_error(node: Node, reason: str) -> ModelContractError:
    return ModelContractError(f"{describe_call(node)} {reason}")


RULES: dict[str, Callable[[Node, MapForm], Invocation]] = {
    **build_rule_table(
        _keep_operation,
        "view permute transpose movedim t T squeeze unsqueeze chunk split tensor_split hsplit unbind narrow slice "
        "select expand contiguous flip roll rot90 __getitem__ index_select gather take masked_select repeat "
        "repeat_interleave diagonal diag diag_embed diagflat pixel_shuffle pixel_unshuffle channel_shuffle unfold "
        "reflection_pad1d atleast_1d adjoint positive mean sum cumsum trace tril fold avg_pool1d adaptive_avg_pool1d "
        "deg2rad",
    ),
    **build_rule_table(_apply_identity, "detach conj to float cpu requires_grad_"),
    **build_rule_table(_apply_jointly, JOINT_ROWS),
    **build_rule_table(_apply_layer, "linear conv1d"),
    **build_rule_table(_add_product, "addmm addr addcmul"),
    **build_rule_table(_pad, "pad constant_pad_nd"),
    "as_strided": _stride,
    "dropout": _dropout,
    "add": _make_sum_rule(1),
    "sub": _make_sum_rule(-1),
    "rsub": _make_sum_rule(-1, swapped=True),
    "neg": _negate,
    "diff": _subtract_neighbours,
    "interpolate": _interpolate,
    "lerp": _blend,
    "__setitem__": _assign,
    "copy_": _copy,
    "zero_": _set_to_zero,
    "mul": _multiply,
    "matmul": _multiply_matrices,
    "cross": _cross,
    "div": _divide,
    "batch_norm": _apply_batch_norm,
}
"""Rules of the rows that are affine. Any other call that is not an activation or max-pool raises."""
