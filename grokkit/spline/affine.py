"""A recorded forward pass as a float64 program of affine maps, activations and max-pools, or why it is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.errors import ModelContractError, NumericsError
from grokkit.spline.rule_table import ANYWHERE, map_leaves, rule_table
from grokkit.spline.tape import BatchRow, Node, Var, fill_arguments, find_last_uses, record_tape
from grokkit.units import ACTIVATIONS, MAX_POOLS

Facet = Literal["value", "linear", "magnitude"]
"""Which face of an affine map W x + b: itself, W x, or |W| x."""

_SMALL_MAP = 64
_TEMPORARY = 2**24
_AGREES = {torch.float32: 1e-3, torch.float64: 1e-9}
"""How far a program may differ from its model, relative to the output: far above rounding."""

Invocation = tuple[Callable[..., Any], Any, Any]


def _bind_arguments(node: Node, *names: str) -> dict[str, Any]:
    """The arguments by name; None for those that were left out."""
    return {**dict.fromkeys(names), **dict(zip(names, node.args, strict=False)), **node.kwargs}


def _as_is(node: Node, part: Facet) -> Invocation:
    """A selection, rearrangement or average of the values of each image: no constant, no negative weight."""
    return node.func, node.args, node.kwargs


def _apply_same(node: Node, part: Facet) -> Invocation:
    return (lambda x: x), (node.inputs()[0],), {}


def _layer(node: Node, part: Facet) -> Invocation:
    """Convolution and fully connected layer."""
    given = _bind_arguments(node, "input", "weight", "bias")
    rest = node.args[3:]
    x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias")
    _check_constants(node, weight, bias)
    func = _conv2d if node.func is F.conv2d else node.func
    return func, (x, _abs(weight, part), bias if part == "value" else None, *rest), given


def _conv2d(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> Tensor:
    """A float64 convolution as a CPU likes it: deep layers of small maps in channels_last (two to three times as fast),
    large ones in batches whose temporaries stay below the size at which memory is mapped anew (also up to three)."""
    if x.device.type != "cpu" or x.shape[0] == 0:
        return F.conv2d(x, weight, *rest, **options)
    kernel, pixels = weight[0].numel(), x.shape[-2:].numel()
    # never 1x1: on some builds its channels_last backward of few channels crashes
    if pixels <= _SMALL_MAP and weight.shape[-2:].numel() > 1 and min(weight.shape[:2]) >= 8:
        last = torch.channels_last
        out = F.conv2d(x.contiguous(memory_format=last), weight.contiguous(memory_format=last), *rest, **options)
        return out.contiguous()
    rows = max(1, _TEMPORARY // (8 * kernel * pixels))
    return torch.cat([F.conv2d(part, weight, *rest, **options) for part in x.split(rows)])


def _batch_norm(node: Node, part: Facet) -> Invocation:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = _bind_arguments(node, *names)
    mean, var, weight, bias = (given[name] for name in names[1:5])
    _check_constants(node, mean, var, weight, bias)
    if given["training"] or mean is None:
        raise _refuse(node, "normalises by the statistics of the batch")
    eps = 1e-5 if given["eps"] is None else given["eps"]
    scale = (var.double() + eps).rsqrt() if weight is None else weight.double() * (var.double() + eps).rsqrt()
    shift = (0.0 if bias is None else bias.double()) - mean.double() * scale
    return _scale, (given["input"], _abs(scale, part), shift if part == "value" else None), {}


def _scale(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    columns = (-1, *(1,) * (x.dim() - 2))
    scaled = x * scale.view(columns)
    return scaled if shift is None else scaled.add_(shift.view(columns))


def _operands(node: Node) -> tuple[Any, Any, dict[str, Any]]:
    """Both operands of a binary operation, and its other options."""
    given = _bind_arguments(node, "input", "other")
    return given.pop("input"), given.pop("other"), given


def _product(node: Node, part: Facet) -> Invocation:
    """x times a constant, elementwise or as matrices."""
    first, second, _ = _operands(node)
    if isinstance(first, Var) and isinstance(second, Var):
        raise _refuse(node, "multiplies two tensors that both depend on the image")
    pure = torch.matmul if "matmul" in node.name else torch.mul
    return pure, (_abs(first, part), _abs(second, part)), {}


def _quotient(node: Node, part: Facet) -> Invocation:
    numerator, denominator, options = _operands(node)
    if isinstance(denominator, Var):
        raise _refuse(node, "divides by a tensor that depends on the image")
    if options.get("rounding_mode") is not None:
        raise _refuse(node, "rounds")
    return torch.div, (numerator, _abs(denominator, part)), {}


def _sum(sign: int, swapped: bool = False) -> Callable[[Node, Facet], Invocation]:
    """a ± alpha b, where a constant is an offset."""

    def rule(node: Node, part: Facet) -> Invocation:
        first, second, options = _operands(node)
        first, second = (second, first) if swapped else (first, second)
        factor = sign * options.get("alpha", 1)
        weight = abs(factor) if part == "magnitude" else factor
        return torch.add, (_offset(first, part), _offset(second, part)), {"alpha": weight}

    return rule


def _offset(operand: Any, part: Facet) -> Any:
    """An operand of a sum: a constant, in any face but the value's, is nothing."""
    if isinstance(operand, Var):
        return operand
    if isinstance(operand, BatchRow):
        return operand if part == "value" else _zero(operand)
    # a number as the program's float64: torch would read 0.3 as the float32 beside it
    constant = operand if isinstance(operand, Tensor) else torch.tensor(operand, dtype=torch.float64)
    return constant if part == "value" else torch.zeros_like(constant)


def _negative(node: Node, part: Facet) -> Invocation:
    return _apply_same(node, part) if part == "magnitude" else (torch.neg, node.args, {})


def _join(node: Node, part: Facet) -> Invocation:
    """Concatenation, where a constant is an offset."""
    if part == "value":
        return _as_is(node, part)
    offsets = map_leaves(_zero, node.args[0])
    return node.func, (offsets, *node.args[1:]), node.kwargs


def _zero(leaf: Any) -> Any:
    if isinstance(leaf, BatchRow):
        return BatchRow(torch.zeros_like(leaf.value))
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf


def _pad(node: Node, part: Facet) -> Invocation:
    given = _bind_arguments(node, "input", "pad", "mode", "value")
    mode, value = given["mode"] or "constant", given["value"]
    return F.pad, (given["input"], given["pad"], mode, value if part == "value" else None), {}


def _dropout(node: Node, part: Facet) -> Invocation:
    given = _bind_arguments(node, "input", "p", "training")
    if given["training"] is not False:
        raise _refuse(node, "is random: dropout in training mode")
    return _apply_same(node, part)


def _abs(constant: Any, part: Facet) -> Any:
    """A weight's face: its size for `magnitude`."""
    if part != "magnitude" or constant is None or isinstance(constant, Var):
        return constant
    return BatchRow(constant.value.abs()) if isinstance(constant, BatchRow) else abs(constant)


def _check_constants(node: Node, *constants: Any) -> None:
    if any(isinstance(constant, Var) for constant in constants):
        raise _refuse(node, "has weights that depend on the image")


def _refuse(node: Node, why: str) -> ModelContractError:
    return ModelContractError(
        f"`{node.name}` in {node.layer!r} {why}, so an exact partition or bound cannot be computed for this network; "
        '`grokkit.local_complexity` with method="vertex" or "tangent" takes it'
    )


RULES: dict[Any, Callable[[Node, Facet], Invocation]] = {
    **rule_table(
        _as_is,
        ANYWHERE,
        "view view_as reshape flatten unflatten permute transpose movedim moveaxis swapaxes swapdims squeeze unsqueeze "
        "chunk split tensor_split unbind narrow select expand expand_as contiguous clone flip roll __getitem__ mean "
        "sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "pixel_shuffle pixel_unshuffle channel_shuffle",
    ),
    **rule_table(_apply_same, ANYWHERE, "detach to float double requires_grad_"),
    **rule_table(_layer, (torch, F), "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear"),
    **rule_table(_batch_norm, (F,), "batch_norm"),
    **rule_table(_product, ANYWHERE, "mul multiply __mul__ __rmul__ mul_ __imul__ matmul __matmul__"),
    **rule_table(_quotient, ANYWHERE, "div divide true_divide __truediv__ div_ __itruediv__"),
    **rule_table(_sum(1), ANYWHERE, "add __add__ __radd__ add_ __iadd__"),
    **rule_table(_sum(-1), ANYWHERE, "sub subtract __sub__ sub_ __isub__"),
    **rule_table(_sum(-1, swapped=True), ANYWHERE, "rsub __rsub__"),
    **rule_table(_negative, ANYWHERE, "neg negative __neg__"),
    **rule_table(_join, (torch,), "cat concat concatenate stack hstack vstack"),
    **rule_table(_pad, (F,), "pad"),
    **rule_table(_dropout, (F,), "dropout dropout1d dropout2d dropout3d"),
}
"""The affine operations of image nets; anything else that is no activation and no max-pool is refused."""


@dataclass(frozen=True, eq=False)
class AffinePiece:
    """One call of the program, on constants in float64.

    Args:
        node: as recorded.
        dying: variables that are not needed behind it.
        kinks: of an activation.
        pool: whether it is a max-pool.
        calls: for an affine map its faces.
    """

    node: Node
    freed: list[int]
    kinks: tuple[float, ...]
    pool: bool
    calls: dict[Facet, Invocation]

    def run(self, values: Callable[[Var], Tensor], batch: int, part: Facet = "value") -> Any:
        """The result of an affine map for `batch` images."""
        func, args, kwargs = self.calls[part]
        args, kwargs = fill_arguments((args, kwargs), values, batch)
        return func(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Program:
    """A network in float64: `steps` in order, from variable 0 to variable `output`."""

    steps: list[AffinePiece]
    output: int

    @property
    def nonlinear_steps(self) -> list[AffinePiece]:
        """The activations and max-pools, in call order."""
        return [step for step in self.steps if not step.calls]

    @property
    def layers(self) -> list[str]:
        """Their names."""
        return [step.node.layer for step in self.nonlinear_steps]

    def forward(self, images: Tensor) -> Tensor:
        """The network's output, differentiable, for (N, ...) float64 images."""
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
    """The activation or max-pool itself; it may overwrite the values it is given."""
    args, kwargs = fill_arguments((node.args, node.kwargs), values, batch)
    return node.func(*args, **kwargs)


def bind_results(template: Any, out: Any, put: Callable[[int, Any], None]) -> None:
    """Hand every result to `put(variable, value)`."""
    if isinstance(template, Var):
        put(template.index, out)
    elif isinstance(template, tuple | list):
        for place, value in zip(template, out, strict=True):
            bind_results(place, value, put)


def build_program(model: nn.Module, images: Tensor) -> Program:
    """The float64 program of a borrowed model, checked against the model itself.

    Args:
        model: in eval mode, without gradients.
        images: (N, ...) in the model's precision, where its control flow is looked at.

    Raises:
        ModelContractError: the model is not piecewise affine, or its layers depend on the data; names the operation.
        NumericsError: the model's output is not finite.

    Cost: four forward passes of at most eight images.
    """
    tape = record_tape(model, images)
    assert tape.output is not None
    steps = [_to_piece(node, dying) for node, dying in zip(tape.nodes, find_last_uses(tape), strict=True)]
    found = Program(steps, tape.output.index)
    _check(found, model, images)
    return found


def _check(found: Program, model: nn.Module, images: Tensor) -> None:
    # other points than those that were recorded, in other order
    images = 0.75 * images[:8].flip(0)
    expected, got = model(images.clone()).double(), found.forward(images.double())
    if not expected.isfinite().all():
        raise NumericsError("the model's output is not finite: its weights have diverged")
    error = (expected - got).abs().max() / expected.abs().max().clamp_min(1e-30)
    if not error <= _AGREES[images.dtype]:
        raise ModelContractError(
            f"the recorded program of the model differs from the model by {error:.2g} of its output: its layers depend "
            "on the data, or it goes through code that hides its operations"
        )


def _to_piece(node: Node, dying: list[int]) -> AffinePiece:
    if node.problem:
        raise _refuse(node, node.problem)
    node = node._replace(args=map_leaves(_to_double, node.args), kwargs=map_leaves(_to_double, node.kwargs))
    activation = ACTIVATIONS.get(node.func)
    if activation is not None:
        if not activation.exact or activation.name == "hardswish":
            raise _refuse(node, "is curved")
        rest = {name: value for name, value in node.kwargs.items() if name != "input"}
        return AffinePiece(node, dying, activation.kinks(*node.args, **rest), False, {})
    if node.func in MAX_POOLS:
        if not isinstance(node.out, Var):
            raise _refuse(node, "also returns indices")
        return AffinePiece(node, dying, (), True, {})
    rule = RULES.get(node.func)
    if rule is None:
        raise _refuse(node, "has no affine rule")
    parts: tuple[Facet, ...] = ("value", "linear", "magnitude")
    return AffinePiece(node, dying, (), False, {part: rule(node, part) for part in parts})


def _to_double(leaf: Any) -> Any:
    if isinstance(leaf, BatchRow):
        return BatchRow(_to_double(leaf.value))
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
