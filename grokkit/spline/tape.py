"""A recorded forward pass: a flat list of calls on tensors that depend on the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from grokkit.operations import Activation, Operation, get_function_name
from grokkit.spline.rule_table import tree_map
from grokkit.units import list_leaves


@dataclass(frozen=True)
class Var:
    """The number of a tensor that depends on the images; 0 is the input. Masks and indices are not `floating`."""

    index: int
    floating: bool = True


@dataclass(frozen=True)
class BatchMultiple:
    """An int that is `per_image` times the batch size."""

    per_image: int


@dataclass(frozen=True, eq=False)
class BatchRow:
    """A constant tensor whose rows, one per image, are all equal; `value` is one row (1, ...)."""

    value: Tensor


class Node(NamedTuple):
    """One recorded call.

    Args:
        func: the function that is called.
        args, kwargs: its arguments, with a `Var` for each tensor that depends on the images.
        out: its result, likewise; for an assignment to a slice, the tensor that is written to.
        layer: module path of the call; for an activation its layer name in local complexity.
        operation: its row in the table of operations, if it has one.
        counted: whether local complexity counts it: an activation or a max-pool.
        size: number of floating-point values that it returns for one image.
        problem: why the call cannot be replayed, or "".
        shapes: shapes of the tensors that it returns or writes to.
    """

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    out: Any
    layer: str
    operation: Operation | None
    counted: bool
    size: int
    problem: str
    shapes: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """The function's name, without its module."""
        return get_function_name(self.func)

    @property
    def activation(self) -> Activation | None:
        """The kind of activation, if the call is a counted activation."""
        return self.operation.activation if self.counted and self.operation is not None else None

    def count_inputs(self) -> int:
        """Return the number of image-dependent arguments; one that is passed twice counts twice."""
        return sum(isinstance(leaf, Var) for leaf in list_leaves((self.args, self.kwargs)))

    def inputs(self) -> list[Var]:
        """Return the image-dependent arguments, each once, in order."""
        return list(dict.fromkeys(leaf for leaf in list_leaves((self.args, self.kwargs)) if isinstance(leaf, Var)))

    def outputs(self) -> list[Var]:
        """Return the image-dependent results."""
        return [leaf for leaf in list_leaves(self.out) if isinstance(leaf, Var)]


class Origin(NamedTuple):
    """A tensor or number that enters a call and was not made by a recorded one.

    Args:
        value: the tensor or number.
        name: name of the function that it enters.
        layer: module path of that call.
        source: the tensor itself, which may be written to later, or the number; None for what depends on the images.
    """

    value: Any
    name: str
    layer: str
    source: Any


class Tape(NamedTuple):
    """A recorded forward pass.

    Args:
        nodes: its calls on image-dependent tensors, in order.
        origins: what entered any call and was not made by a recorded one, in order.
        mapped: module path, and size of the dimension that `torch.vmap` hides, of every argument that has one.
        rows: position in `nodes` -> (N, 2) for every counted call: of its values for each image, a sum with fixed
            weights, and their norm; empty if the values of an image do not lie together.
        output: the variable that the model returned; None if the result is not a recorded tensor.
        result: the returned tensor.
        images: the images (N, ...), as they were before the model ran.
    """

    nodes: list[Node]
    origins: list[Origin]
    mapped: list[tuple[str, int]]
    rows: dict[int, Tensor]
    output: Var | None
    result: Tensor
    images: Tensor


def fill_arguments(tree: Any, values: Callable[[Var], Tensor], batch: int) -> Any:
    """Return the arguments with their variables and batch sizes filled in."""

    def fill(leaf: Any) -> Any:
        if isinstance(leaf, Var):
            return values(leaf)
        if isinstance(leaf, BatchMultiple):
            return leaf.per_image * batch
        if isinstance(leaf, BatchRow):
            return leaf.value.expand(batch, *leaf.value.shape[1:])
        return leaf

    return tree_map(fill, tree)


def find_freed_variables(nodes: list[Node], output: Var) -> list[list[int]]:
    """Return, for each node, the variables that can be freed after it: neither read later nor the output."""
    last = {var.index: position for position, node in enumerate(nodes) for var in (*node.inputs(), *node.outputs())}
    last.pop(output.index, None)
    freed: list[list[int]] = [[] for _ in nodes]
    for index, position in last.items():
        freed[position].append(index)
    return freed
