"""Convert a recorded forward pass into a float64 program of affine maps, activations and max-pools.

Raises an error that names the operation if the network is not piecewise affine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.device.model_check import run_model
from grokkit.errors import ModelContractError, NumericsError
from grokkit.operations import Activation, Pool, find_operation
from grokkit.spline.rule_table import build_rule_table, get_out_of_place, tree_leaves, tree_map
from grokkit.spline.tape import BatchRow, Node, Var, fill_arguments, find_freed_variables, record_tape

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
    if any(not var.floating for var in node.inputs()):
        raise _make_error(node, "selects by a mask or an index that depends on the image")
    return get_out_of_place(node.func), node.args, node.kwargs


def _apply_identity(node: Node, form: MapForm) -> Invocation:
    if not all(var.floating for var in node.outputs()):
        raise _make_error(node, "rounds")
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
    names: tuple[str, ...] = ("running_mean", "running_var", "weight", "bias")
    # torch.batch_norm has another order than torch.nn.functional.batch_norm
    order = names if node.func is F.batch_norm else (*names[2:], *names[:2])
    arguments = _bind_arguments(node, "input", *order, "training", "momentum", "eps")
    mean, var, weight, bias = (arguments[name] for name in names)
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
    """Return the call of a product of x and constants: elementwise, as matrices, or by einsum."""
    if node.count_inputs() > 1:
        raise _make_error(node, "multiplies two tensors that both depend on the image")
    args, kwargs = tree_map(lambda leaf: _to_factor(leaf, form), (node.args, node.kwargs))
    return get_out_of_place(node.func), args, kwargs


def _to_factor(leaf: Any, form: MapForm) -> Any:
    is_number = isinstance(leaf, int | float) and not isinstance(leaf, bool)
    return _to_weight(leaf, form) if is_number or isinstance(leaf, Tensor | BatchRow) else leaf


def _add_product(node: Node, form: MapForm) -> Invocation:
    """Return the call of beta c + alpha (a @ b), one of whose factors may depend on the image."""
    arguments = _bind_arguments(node, "input", "first", "second", "beta", "alpha")
    factors = [
        arguments[name] if arguments[name] is not None else arguments.get(other)
        for name, other in (("first", "mat1"), ("second", "mat2"))
    ]
    factors = [arguments.get(f"batch{at + 1}", factor) for at, factor in enumerate(factors)]
    if all(isinstance(factor, Var) for factor in factors):
        raise _make_error(node, "multiplies two tensors that both depend on the image")
    weights = [_to_weight(1 if arguments[name] is None else arguments[name], form) for name in ("beta", "alpha")]
    operands = (_to_offset(arguments["input"], form), *(_to_weight(factor, form) for factor in factors))
    return (lambda c, a, b, beta, alpha: beta * c + alpha * (a @ b)), (*operands, *weights), {}


def _choose(node: Node, form: MapForm) -> Invocation:
    """Return the call of a choice between two tensors by a constant mask."""
    names = ("input", "condition", "other") if node.func is Tensor.where else ("condition", "input", "other")
    arguments = _bind_arguments(node, *names)
    if isinstance(arguments["condition"], Var) or arguments["other"] is None:
        raise _make_error(node, "selects by a mask that depends on the image")
    first, second = (_to_offset(arguments[name], form) for name in ("input", "other"))
    return torch.where, (arguments["condition"], first, second), {}


def _fill_masked(node: Node, form: MapForm) -> Invocation:
    arguments = _bind_arguments(node, "input", "mask", "value")
    if isinstance(arguments["mask"], Var):
        raise _make_error(node, "selects by a mask that depends on the image")
    value = arguments["value"]
    first, second = _to_offset(value, form), _to_offset(arguments["input"], form)
    return torch.where, (arguments["mask"], first, second), {}


def _blend(node: Node, form: MapForm) -> Invocation:
    """Return the call of (1 - w) a + w b with a constant w."""
    arguments = _bind_arguments(node, "input", "end", "weight")
    weight = arguments["weight"]
    if isinstance(weight, Var):
        raise _make_error(node, "has weights that depend on the image")
    if isinstance(weight, BatchRow):
        rest: Any = BatchRow(1 - weight.value)
    else:
        rest = 1 - weight
    first, second = (_to_offset(arguments[name], form) for name in ("input", "end"))
    weights = (_to_weight(rest, form), _to_weight(weight, form))
    return (lambda a, b, one, other: a * one + b * other), (first, second, *weights), {}


def _subtract_neighbours(node: Node, form: MapForm) -> Invocation:
    arguments = _bind_arguments(node, "input", "n", "dim", "prepend", "append")
    if arguments["prepend"] is not None or arguments["append"] is not None:
        raise _make_error(node, "has values before or after its own")
    count = 1 if arguments["n"] is None else arguments["n"]
    dim = -1 if arguments["dim"] is None else arguments["dim"]
    sign = 1 if form == "magnitude" else -1

    def subtract(x: Tensor) -> Tensor:
        for _ in range(count):
            x = x.narrow(dim, 1, x.shape[dim] - 1) + sign * x.narrow(dim, 0, x.shape[dim] - 1)
        return x

    return subtract, (arguments["input"],), {}


def _assign(node: Node, form: MapForm) -> Invocation:
    """Return the call of an assignment to a slice, on a copy of what is written to."""
    base, index, value = node.args
    if any(isinstance(leaf, Var) for leaf in tree_leaves(index)):
        raise _make_error(node, "selects by a mask or an index that depends on the image")

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
    if form != "magnitude" or "bicubic" not in tree_leaves((args, kwargs)):
        return func, args, kwargs

    def refuse(*_: Any, **__: Any) -> None:
        raise _make_error(node, "has negative weights in bicubic mode, for which there is no bound")

    return refuse, args, kwargs


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
    names = ("input", "pad", "value") if node.name == "constant_pad_nd" else ("input", "pad", "mode", "value")
    arguments = _bind_arguments(node, *names)
    mode, value = arguments.get("mode") or "constant", arguments["value"]
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


def describe_call(node: Node) -> str:
    """Return the name and place of a call, for a message; an input that was made by unseen code by its place."""
    return f"`{node.name}` in {node.layer!r}" if node.inputs() else repr(node.layer)


def _make_error(node: Node, reason: str) -> ModelContractError:
    return ModelContractError(
        f"{describe_call(node)} {reason}, so an exact partition or bound cannot be computed for this network;"
        ' use `grokkit.local_complexity` with method="vertex" instead'
    )


RULES: dict[str, Callable[[Node, MapForm], Invocation]] = {
    **build_rule_table(
        _keep_operation,
        "view permute transpose movedim t T squeeze unsqueeze chunk split tensor_split hsplit unbind narrow select "
        "expand broadcast_tensors contiguous flip roll rot90 __getitem__ index_select gather take masked_select repeat "
        "repeat_interleave diagonal diag pixel_shuffle pixel_unshuffle channel_shuffle unfold atleast_1d "
        "reflection_pad1d positive mean "
        "sum cumsum tril fold avg_pool1d adaptive_avg_pool1d",
    ),
    **build_rule_table(
        _apply_identity,
        "detach to float cpu requires_grad_",
    ),
    "dropout": _dropout,
    "add": _make_sum_rule(1),
    "sub": _make_sum_rule(-1),
    "rsub": _make_sum_rule(-1, swapped=True),
    "neg": _negate,
    "diff": _subtract_neighbours,
    "interpolate": _interpolate,
    "cat": _join,
    "where": _choose,
    "masked_fill": _fill_masked,
    "lerp": _blend,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "__setitem__": _assign,
    "copy_": _copy,
    "mul": _multiply,
    "matmul": _multiply,
    "div": _divide,
    "addmm": _add_product,
    "linear": _apply_layer,
    "conv1d": _apply_layer,
    "batch_norm": _apply_batch_norm,
}
"""Rules of the rows that are affine. Any other call that is not an activation or max-pool raises."""


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

    @property
    def pool(self) -> Pool:
        """The kind of max-pooling of a step that `is_pool`."""
        operation = self.node.operation
        assert operation is not None and operation.pool is not None
        return operation.pool

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
    nodes = list(_split_comparisons(tape.nodes))
    freed = find_freed_variables(nodes, tape.output)
    program = Program(_to_steps(nodes, freed), tape.output.index)
    _check_agreement(program, model, images)
    return program


def _split_comparisons(nodes: list[Node]) -> Iterator[Node]:
    """Yield the nodes, with maxima, minima and clamps by tensors written as differences, a ReLU of these, and sums.

    max(a, b) = b + relu(a - b), min(a, b) = a - relu(a - b), and a clamp of x is low + relu(x - low) - relu(x - high).
    """
    fresh = itertools.count(1 + max((var.index for node in nodes for var in node.outputs()), default=0))
    for node in nodes:
        activation = node.activation
        bounds = () if activation is None or activation.pair else _bind_kinks(node, activation)
        if activation is None or not (activation.pair or any(isinstance(bound, Tensor | Var) for bound in bounds)):
            yield node
        elif activation.pair:
            first, second, _ = _bind_operands(node)
            gap, excess = Var(next(fresh)), Var(next(fresh))
            yield _make_node(node, torch.sub, (first, second), gap)
            yield _make_node(node, torch.relu, (gap,), excess)
            is_max = activation.name == "maximum"
            func, operand = (torch.add, second) if is_max else (torch.sub, first)
            yield _make_node(node, func, (operand, excess), node.out)
        else:
            yield from _split_clamp(node, bounds, fresh)


def _split_clamp(node: Node, bounds: tuple[Any, ...], fresh: Iterator[int]) -> Iterator[Node]:
    x = _bind_arguments(node, "input")["input"]
    gaps, joined, stacked, excess = ([Var(next(fresh)) for _ in bounds] for _ in range(4))
    for bound, gap in zip(bounds, gaps, strict=True):
        yield _make_node(node, torch.sub, (x, bound), gap)
    yield _make_node(node, torch.broadcast_tensors, tuple(gaps), tuple(joined))
    yield _make_node(node, torch.stack, (joined, 1), stacked[0])
    yield _make_node(node, torch.relu, (stacked[0],), stacked[-1])
    yield _make_node(node, torch.unbind, (stacked[-1], 1), tuple(excess))
    if len(bounds) == 2:
        raised = Var(next(fresh))
        yield _make_node(node, torch.add, (bounds[0], excess[0]), raised)
        yield _make_node(node, torch.sub, (raised, excess[1]), node.out)
    elif _is_upper_bound(node):
        yield _make_node(node, torch.sub, (x, excess[0]), node.out)
    else:
        yield _make_node(node, torch.add, (bounds[0], excess[0]), node.out)


def _is_upper_bound(node: Node) -> bool:
    """Return whether the only bound of a clamp is its upper one."""
    is_clamp_max = node.operation is not None and node.operation.name == "clamp_max"
    arguments = _bind_arguments(node, "input", "min", "max")
    return is_clamp_max or arguments["min"] is None


def _make_node(source: Node, func: Callable[..., Any], args: tuple[Any, ...], out: Any) -> Node:
    """Return a call that is part of a recorded one."""
    operation = find_operation(func)
    return source._replace(func=func, args=args, kwargs={}, out=out, operation=operation, counted=func is torch.relu)


def _bind_kinks(node: Node, activation: Activation) -> tuple[Any, ...]:
    """Return the kinks of an activation: numbers, or the tensors by which it clamps."""
    options = {name: value for name, value in node.kwargs.items() if name != "input"}
    args = node.args if len(node.args) else (node.kwargs["input"],)
    return activation.kinks(*args, **options)


def _check_agreement(program: Program, model: nn.Module, images: Tensor) -> None:
    # different points from the recorded ones, in a different order
    images = 0.75 * images[:8].flip(0)
    expected, got = run_model(model, images.clone()).double(), program.forward(images.double())
    if not expected.isfinite().all():
        raise NumericsError("the model's output is not finite: its weights have diverged")
    error = (expected - got).abs().max() / expected.abs().max().clamp_min(1e-30)
    if not error <= _TOLERANCE[images.dtype]:
        raise ModelContractError(
            f"the recorded program of the model differs from the model by {error:.2g} of its output: its layers depend "
            "on the data, or it calls code that hides its operations"
        )


def _to_steps(nodes: list[Node], freed: list[list[int]]) -> list[ProgramStep]:
    """Convert the calls; one that bends is named rather than one before it that cannot be replayed."""
    steps: list[ProgramStep] = []
    first: ModelContractError | None = None
    for node, unused in zip(nodes, freed, strict=True):
        if not node.problem or _is_smooth(node):
            steps.append(_to_step(node, unused))
        elif first is None:
            first = _make_error(node, node.problem)
    if first is not None:
        raise first
    return steps


def _is_smooth(node: Node) -> bool:
    """Return whether a call is smooth, or multiplies two tensors that depend on the image."""
    kind = None if node.operation is None else node.operation.kind
    return kind == "smooth" or (kind == "multilinear" and node.count_inputs() > 1)


def _to_step(node: Node, freed: list[int]) -> ProgramStep:
    node = node._replace(args=tree_map(_to_double, node.args), kwargs=tree_map(_to_double, node.kwargs))
    activation = node.activation
    if activation is not None:
        if not activation.is_affine or activation.jumps:
            raise _make_error(node, "is not continuous" if activation.jumps else "is not piecewise affine")
        if node.count_inputs() > 1:
            raise _make_error(node, "has parameters that depend on the image")
        return ProgramStep(node, freed, _bind_kinks(node, activation), False, {})
    if node.operation is not None and node.operation.pool is not None:
        if not isinstance(node.out, Var):
            raise _make_error(node, "also returns indices")
        return ProgramStep(node, freed, (), True, {})
    rule = None if node.operation is None else RULES.get(node.operation.name)
    if rule is None:
        raise _make_error(node, _describe_refusal(node))
    forms: tuple[MapForm, ...] = ("value", "linear", "magnitude")
    return ProgramStep(node, freed, (), False, {form: rule(node, form) for form in forms})


def _describe_refusal(node: Node) -> str:
    kind = None if node.operation is None else node.operation.kind
    if not any(var.floating for var in node.outputs()):
        return "compares values, by which a call can select"
    if kind == "smooth":
        return "is not piecewise affine"
    return "selects values by comparing them" if kind in ("selecting", "piecewise") else "has no affine rule"


def _to_double(leaf: Any) -> Any:
    if isinstance(leaf, BatchRow):
        return BatchRow(_to_double(leaf.value))
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
