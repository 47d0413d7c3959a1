"""Convert a recorded forward pass into a float64 program of affine maps, activations and max-pools.

Raises an error that names the operation if the network is not piecewise affine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.errors import ModelContractError, NumericsError
from grokkit.spline.rule_table import ANYWHERE, build_rule_table, tree_map
from grokkit.spline.tape import BatchRow, Node, Var, fill_arguments, find_freed_variables, record_tape
from grokkit.units import ACTIVATIONS, MAX_POOLS

MapForm = Literal["value", "linear", "magnitude"]
"""Form of an affine map W x + b: the map itself ("value"), W x ("linear"), or |W| x ("magnitude")."""

_SMALL_MAP_PIXELS = 64
_TEMPORARY_BYTES = 2**24
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""Largest difference between a program and its model, relative to the output; far above rounding errors."""

Invocation = tuple[Callable[..., Any], Any, Any]
"""A function with its positional and keyword arguments."""


def _bind_arguments(node: Node, *names: str) -> dict[str, Any]:
    """Return the arguments by name; None for those that were not passed."""
    return {**dict.fromkeys(names), **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _keep_operation(node: Node, form: MapForm) -> Invocation:
    """Return the call unchanged: it selects, rearranges or averages values, with no constant and no negative weight."""
    return node.func, node.args, node.kwargs


def _apply_identity(node: Node, form: MapForm) -> Invocation:
    return (lambda x: x), (node.inputs()[0],), {}


def _apply_layer(node: Node, form: MapForm) -> Invocation:
    """Return the call of a convolution or fully connected layer."""
    arguments = _bind_arguments(node, "input", "weight", "bias")
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
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    arguments = _bind_arguments(node, *names)
    mean, var, weight, bias = (arguments[name] for name in names[1:5])
    _check_constants(node, mean, var, weight, bias)
    if arguments["training"] or mean is None:
        raise _make_error(node, "normalises by the statistics of the batch")
    eps = 1e-5 if arguments["eps"] is None else arguments["eps"]
    scale = (var.double() + eps).rsqrt() if weight is None else weight.double() * (var.double() + eps).rsqrt()
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    return _scale, (arguments["input"], _to_weight(scale, form), shift if form == "value" else None), {}


def _scale(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    columns = (-1, *(1,) * (x.dim() - 2))
    scaled = x * scale.view(columns)
    return scaled if shift is None else scaled.add_(shift.view(columns))


def _bind_operands(node: Node) -> tuple[Any, Any, dict[str, Any]]:
    """Return both operands of a binary operation, and its other options."""
    arguments = _bind_arguments(node, "input", "other")
    return arguments.pop("input"), arguments.pop("other"), arguments


def _multiply(node: Node, form: MapForm) -> Invocation:
    """Return the call of a product of x and a constant, elementwise or as matrices."""
    first, second, _ = _bind_operands(node)
    if isinstance(first, Var) and isinstance(second, Var):
        raise _make_error(node, "multiplies two tensors that both depend on the image")
    operation = torch.matmul if "matmul" in node.name else torch.mul
    return operation, (_to_weight(first, form), _to_weight(second, form)), {}


def _divide(node: Node, form: MapForm) -> Invocation:
    numerator, denominator, options = _bind_operands(node)
    if isinstance(denominator, Var):
        raise _make_error(node, "divides by a tensor that depends on the image")
    if options.get("rounding_mode") is not None:
        raise _make_error(node, "rounds")
    return torch.div, (numerator, _to_weight(denominator, form)), {}


def _make_sum_rule(sign: int, swapped: bool = False) -> Callable[[Node, MapForm], Invocation]:
    """Return the rule for a ± alpha b; a constant operand is an offset."""

    def rule(node: Node, form: MapForm) -> Invocation:
        first, second, options = _bind_operands(node)
        first, second = (second, first) if swapped else (first, second)
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


def _join(node: Node, form: MapForm) -> Invocation:
    """Return the call of a concatenation; a constant operand is an offset."""
    if form == "value":
        return _keep_operation(node, form)
    offsets = tree_map(_to_zero, node.args[0])
    return node.func, (offsets, *node.args[1:]), node.kwargs


def _to_zero(leaf: Any) -> Any:
    if isinstance(leaf, BatchRow):
        return BatchRow(torch.zeros_like(leaf.value))
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf


def _pad(node: Node, form: MapForm) -> Invocation:
    arguments = _bind_arguments(node, "input", "pad", "mode", "value")
    mode, value = arguments["mode"] or "constant", arguments["value"]
    return F.pad, (arguments["input"], arguments["pad"], mode, value if form == "value" else None), {}


def _dropout(node: Node, form: MapForm) -> Invocation:
    arguments = _bind_arguments(node, "input", "p", "training")
    if arguments["training"] is not False:
        raise _make_error(node, "is random: dropout in training mode")
    return _apply_identity(node, form)


def _to_weight(constant: Any, form: MapForm) -> Any:
    """Return a weight; its absolute value in the form "magnitude"."""
    if form != "magnitude" or constant is None or isinstance(constant, Var):
        return constant
    return BatchRow(constant.value.abs()) if isinstance(constant, BatchRow) else abs(constant)


def _check_constants(node: Node, *constants: Any) -> None:
    if any(isinstance(constant, Var) for constant in constants):
        raise _make_error(node, "has weights that depend on the image")


def _make_error(node: Node, reason: str) -> ModelContractError:
    return ModelContractError(
        f"`{node.name}` in {node.layer!r} {reason}, so an exact partition or bound cannot be computed for this network;"
        ' use `grokkit.local_complexity` with method="vertex" or "tangent" instead'
    )


RULES: dict[Any, Callable[[Node, MapForm], Invocation]] = {
    **build_rule_table(
        _keep_operation,
        ANYWHERE,
        "view view_as reshape flatten unflatten permute transpose movedim moveaxis swapaxes swapdims squeeze unsqueeze "
        "chunk split tensor_split unbind narrow select expand expand_as contiguous clone flip roll __getitem__ mean "
        "sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "pixel_shuffle pixel_unshuffle channel_shuffle",
    ),
    **build_rule_table(_apply_identity, ANYWHERE, "detach to float double requires_grad_"),
    **build_rule_table(
        _apply_layer, (torch, F), "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear"
    ),
    **build_rule_table(_apply_batch_norm, (F,), "batch_norm"),
    **build_rule_table(_multiply, ANYWHERE, "mul multiply __mul__ __rmul__ mul_ __imul__ matmul __matmul__"),
    **build_rule_table(_divide, ANYWHERE, "div divide true_divide __truediv__ div_ __itruediv__"),
    **build_rule_table(_make_sum_rule(1), ANYWHERE, "add __add__ __radd__ add_ __iadd__"),
    **build_rule_table(_make_sum_rule(-1), ANYWHERE, "sub subtract __sub__ sub_ __isub__"),
    **build_rule_table(_make_sum_rule(-1, swapped=True), ANYWHERE, "rsub __rsub__"),
    **build_rule_table(_negate, ANYWHERE, "neg negative __neg__"),
    **build_rule_table(_join, (torch,), "cat concat concatenate stack hstack vstack"),
    **build_rule_table(_pad, (F,), "pad"),
    **build_rule_table(_dropout, (F,), "dropout dropout1d dropout2d dropout3d"),
}
"""Affine operations of image networks. Any other call that is not an activation or max-pool raises."""


@dataclass(frozen=True, eq=False)
class ProgramStep:
    """One step of the program, with its constants in float64: an affine map, an activation or a max-pool.

    Args:
        node: the recorded call.
        freed: variables that are not needed after it.
        kinks: the kinks of an activation; else empty.
        is_pool: whether it is a max-pool.
        calls: the calls that compute the three forms of an affine map; else empty.
    """

    node: Node
    freed: list[int]
    kinks: tuple[float, ...]
    is_pool: bool
    calls: dict[MapForm, Invocation]

    def run(self, values: Callable[[Var], Tensor], batch: int, form: MapForm = "value") -> Any:
        """Compute the result of an affine map for `batch` images."""
        func, args, kwargs = self.calls[form]
        args, kwargs = fill_arguments((args, kwargs), values, batch)
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Program:
    """A network in float64: `steps` in order, from variable 0 to variable `output`."""

    steps: list[ProgramStep]
    output: int

    @property
    def nonlinear_steps(self) -> list[ProgramStep]:
        """Activations and max-pools, in call order."""
        return [step for step in self.steps if not step.calls]

    @property
    def layers(self) -> list[str]:
        """Layer names of the `nonlinear_steps`."""
        return [step.node.layer for step in self.nonlinear_steps]

    def forward(self, images: Tensor) -> Tensor:
        """Compute the network's output for (N, ...) float64 images; differentiable."""
        values = {0: images}
        for step in self.steps:
            if step.calls:
                out = step.run(lambda var: values[var.index], len(images))
            else:
                out = apply_nonlinearity(step.node, lambda var: values[var.index].clone(), len(images))
            bind_results(step.node.out, out, values.__setitem__)
            for index in step.freed:
                values.pop(index, None)
        return values[self.output]


def apply_nonlinearity(node: Node, values: Callable[[Var], Tensor], batch: int) -> Any:
    """Apply an activation or max-pool; it may overwrite the input values."""
    args, kwargs = fill_arguments((node.args, node.kwargs), values, batch)
    return node.func(*args, **kwargs)


def bind_results(template: Any, out: Any, assign: Callable[[int, Any], None]) -> None:
    """Call `assign(variable index, value)` for every image-dependent result in `out`."""
    if isinstance(template, Var):
        assign(template.index, out)
    elif isinstance(template, tuple | list):
        for target, value in zip(template, out, strict=True):
            bind_results(target, value, assign)


def build_program(model: nn.Module, images: Tensor) -> Program:
    """Build the float64 program of a model and check it against the model itself.

    Args:
        model: in `measurement_mode`: eval mode, without gradients.
        images: (N, ...) in the model's precision; the control flow is recorded on these.

    Raises:
        ModelContractError: the model is not piecewise affine, or its layers depend on the data; names the operation.
        NumericsError: the model's output is not finite.

    Cost: four forward passes of at most eight images.
    """
    tape = record_tape(model, images)
    assert tape.output is not None
    steps = [_to_step(node, freed) for node, freed in zip(tape.nodes, find_freed_variables(tape), strict=True)]
    program = Program(steps, tape.output.index)
    _check_agreement(program, model, images)
    return program


def _check_agreement(program: Program, model: nn.Module, images: Tensor) -> None:
    # different points from the recorded ones, in a different order
    images = 0.75 * images[:8].flip(0)
    expected, got = model(images.clone()).double(), program.forward(images.double())
    if not expected.isfinite().all():
        raise NumericsError("the model's output is not finite: its weights have diverged")
    error = (expected - got).abs().max() / expected.abs().max().clamp_min(1e-30)
    if not error <= _TOLERANCE[images.dtype]:
        raise ModelContractError(
            f"the recorded program of the model differs from the model by {error:.2g} of its output: its layers depend "
            "on the data, or it calls code that hides its operations"
        )


def _to_step(node: Node, freed: list[int]) -> ProgramStep:
    if node.problem:
        raise _make_error(node, node.problem)
    node = node._replace(args=tree_map(_to_double, node.args), kwargs=tree_map(_to_double, node.kwargs))
    activation = ACTIVATIONS.get(node.func)
    if activation is not None:
        if not activation.exact or activation.name == "hardswish":
            raise _make_error(node, "is not piecewise affine")
        options = {name: value for name, value in node.kwargs.items() if name != "input"}
        return ProgramStep(node, freed, activation.kinks(*node.args, **options), False, {})
    if node.func in MAX_POOLS:
        if not isinstance(node.out, Var):
            raise _make_error(node, "also returns indices")
        return ProgramStep(node, freed, (), True, {})
    rule = RULES.get(node.func)
    if rule is None:
        raise _make_error(node, "has no affine rule")
    forms: tuple[MapForm, ...] = ("value", "linear", "magnitude")
    return ProgramStep(node, freed, (), False, {form: rule(node, form) for form in forms})


def _to_double(leaf: Any) -> Any:
    if isinstance(leaf, BatchRow):
        return BatchRow(_to_double(leaf.value))
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
