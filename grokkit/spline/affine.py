"""Convert a recorded forward pass into a float64 program of affine maps, activations and max-pools.

Raises an error that names the operation if the network is not piecewise affine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grokkit.device.model_check import run_model
from grokkit.errors import ModelContractError, NumericsError
from grokkit.operations import Activation, Pool, find_operation
from grokkit.spline.affine_rules import RULES, Invocation, MapForm, bind_arguments, bind_operands, make_error
from grokkit.spline.record_tape import record_tape
from grokkit.spline.rule_table import tree_map
from grokkit.spline.tape import BatchRow, Node, Tape, Var, fill_arguments, find_freed_variables
from grokkit.spline.uncounted import OUTPUT_TOLERANCE, list_uncounted


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
    program = Program(_to_steps(nodes, freed, tape), tape.output.index)
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
        if activation is None or not (activation.pair or any(not isinstance(bound, float) for bound in bounds)):
            yield node
        elif activation.pair:
            first, second = (_to_number(operand) for operand in bind_operands(node)[:2])
            gap, excess = Var(next(fresh)), Var(next(fresh))
            yield _make_node(node, torch.sub, (first, second), gap)
            yield _make_node(node, torch.relu, (gap,), excess)
            is_max = activation.name == "maximum"
            func, operand = (torch.add, second) if is_max else (torch.sub, first)
            yield _make_node(node, func, (operand, excess), node.out)
        else:
            yield from _split_clamp(node, bounds, fresh)


def _split_clamp(node: Node, bounds: tuple[Any, ...], fresh: Iterator[int]) -> Iterator[Node]:
    x, bounds = node.args[0], tuple(map(_to_number, bounds))
    if len(bounds) == 2:
        if any(isinstance(bound, Var) for bound in bounds):
            raise make_error(node, "has two bounds of which one depends on the image, and bends where these meet")
        bounds = (_find_smaller(*bounds), bounds[1])  # torch returns the upper bound where the lower one is above it
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


def _to_number(operand: Any) -> Any:
    """Return a mask as numbers, because torch compares masks with numbers but does not subtract them."""
    return operand.double() if isinstance(operand, Tensor) and operand.dtype == torch.bool else operand


def _find_smaller(first: Any, second: Any) -> Any:
    """Return the elementwise minimum of two constants."""
    one, other = (bound.value if isinstance(bound, BatchRow) else torch.as_tensor(bound) for bound in (first, second))
    smaller = torch.minimum(one.double(), other.double())
    return BatchRow(smaller) if isinstance(first, BatchRow) or isinstance(second, BatchRow) else smaller


def _is_upper_bound(node: Node) -> bool:
    """Return whether the only bound of a clamp is its upper one."""
    is_clamp_max = node.operation is not None and node.operation.name == "clamp_max"
    arguments = bind_arguments(node, "input", "min", "max")
    return is_clamp_max or arguments["min"] is None


def _make_node(source: Node, func: Callable[..., Any], args: tuple[Any, ...], out: Any) -> Node:
    """Return a call that is part of a recorded one."""
    operation = find_operation(func)
    return source._replace(func=func, args=args, kwargs={}, out=out, operation=operation, counted=func is torch.relu)


def _bind_kinks(node: Node, activation: Activation) -> tuple[Any, ...]:
    """Return the kinks of an activation: numbers, or the tensors by which it clamps."""
    options = {name: value for name, value in node.kwargs.items() if name != "out"}
    return activation.kinks(*node.args, **options)


def _check_agreement(program: Program, model: nn.Module, images: Tensor) -> None:
    # different points from the recorded ones, in a different order
    images = 0.75 * images[:8].flip(0)
    expected, got = run_model(model, images.clone()).double(), program.forward(images.double())
    if not expected.isfinite().all():
        raise NumericsError("the model's output is not finite: its weights have diverged")
    error = (expected - got).abs().max() / expected.abs().max().clamp_min(1e-30)
    if not error <= OUTPUT_TOLERANCE[images.dtype]:
        raise ModelContractError(
            f"the recorded program of the model differs from the model by {error:.2g} of its output: its layers depend "
            "on the data, or it calls code that hides its operations"
        )


def _to_steps(nodes: list[Node], freed: list[list[int]], tape: Tape) -> list[ProgramStep]:
    """Return the steps of all calls, or raise an error that names the first one that is not piecewise affine."""
    steps: list[ProgramStep] = []
    errors: list[ModelContractError] = []
    for node, unused in zip(nodes, freed, strict=True):
        try:
            steps.append(_to_step(node, unused))
        except ModelContractError as error:
            errors.append(error)
    # a call that bends says more of a network than one whose result cannot be split into images
    errors += [make_error(node, node.problem) for node in nodes if node.problem]
    if errors:
        remedy = ""
        if list_uncounted(tape).counted_share:
            remedy = '; use `grokkit.local_complexity` with method="vertex" instead'
        raise ModelContractError(
            f"{errors[0]}, so an exact partition or bound cannot be computed for this network{remedy}"
        )
    return steps


def _to_step(node: Node, freed: list[int]) -> ProgramStep:
    node = node._replace(args=tree_map(_to_double, node.args), kwargs=tree_map(_to_double, node.kwargs))
    activation = node.activation
    if activation is not None:
        if not activation.is_affine or activation.jumps:
            raise make_error(node, "is not continuous" if activation.jumps else "is not piecewise affine")
        if node.count_inputs() > 1:
            raise make_error(node, "has parameters that depend on the image")
        return ProgramStep(node, freed, _bind_kinks(node, activation), False, {})
    if node.operation is not None and node.operation.pool is not None:
        if not isinstance(node.out, Var):
            raise make_error(node, "also returns indices")
        return ProgramStep(node, freed, (), True, {})
    rule = None if node.operation is None else RULES.get(node.operation.name)
    if rule is None:
        raise make_error(node, _describe_refusal(node))
    forms: tuple[MapForm, ...] = ("value", "linear", "magnitude")
    return ProgramStep(node, freed, (), False, {form: rule(node, form) for form in forms})


def _describe_refusal(node: Node) -> str:
    kind = None if node.operation is None else node.operation.kind
    if not (node.inputs() and node.outputs()):
        return node.problem
    if not any(var.floating for var in node.outputs()):
        return "compares values, by which a call can select"
    if kind == "smooth":
        return "is not piecewise affine"
    return "selects values by comparing them" if kind in ("selecting", "piecewise") else "has no affine rule"


def _to_double(leaf: Any) -> Any:
    if isinstance(leaf, BatchRow):
        return BatchRow(_to_double(leaf.value))
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
