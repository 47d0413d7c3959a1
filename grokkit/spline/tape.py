"""Record the forward pass of any unmodified module as a flat list of calls on image-dependent tensors.

Exact partitions and certified bounds replay this program on other kinds of input than a batch of images. Calls are
intercepted by a `TorchFunctionMode`, so functional, re-used and in-place operations and residual adds are recorded
without changes to the model. The network runs at two batch sizes; numbers that differ between the two are multiples
of the batch size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from grokkit.errors import ModelContractError
from grokkit.spline.rule_table import ANYWHERE, build_rule_table, tree_leaves, tree_map
from grokkit.units import ACTIVATIONS, ModulePath

BATCHES = (2, 3)
_SHAPE_ONLY = build_rule_table(
    "constant", ANYWHERE, "zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor"
)
"""Operations that read only the shape of their argument, so that their result is a constant."""


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
        out: its result, likewise.
        layer: module path of the call; for an activation its layer name in local complexity.
        problem: why the call cannot be replayed, or "".
    """

    func: Callable[..., Any]
    args: Any
    kwargs: Any
    out: Any
    layer: str
    problem: str

    @property
    def name(self) -> str:
        """The function's name without its module."""
        path: str = resolve_name(self.func) or getattr(self.func, "__name__", str(self.func))
        return path.split(".")[-1]

    def inputs(self) -> list[Var]:
        """Return the image-dependent arguments, each once, in order."""
        return list(dict.fromkeys(leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Var)))

    def outputs(self) -> list[Var]:
        """Return the image-dependent results."""
        return [leaf for leaf in tree_leaves(self.out) if isinstance(leaf, Var)]


class Tape(NamedTuple):
    """A recorded forward pass.

    Args:
        nodes: its calls, in order.
        output: the variable that the model returned; None if the result is not a recorded tensor.
        result: the returned object itself.
    """

    nodes: list[Node]
    output: Var | None
    result: Any


class _CallRecorder(TorchFunctionMode):
    """Recorder of every call on tensors that depend on the images; keeps them alive so that their ids stay unique."""

    def __init__(self, path: ModulePath, images: Tensor) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._path = path
        self._batch = len(images)
        self._call_counts: Counter[str] = Counter()
        self._alive: list[Tensor] = []
        self._vars: dict[int, Var] = {}
        self._stale: set[int] = set()
        self._count = 0
        self.bind(images)

    def bind(self, tensor: Tensor) -> Var:
        self._alive.append(tensor)
        self._vars[id(tensor)] = Var(self._count, tensor.is_floating_point())
        self._count += 1
        return self._vars[id(tensor)]

    def to_var(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.Size):
            return tuple(leaf)
        return self._vars.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        traced = tree_map(self.to_var, (args, kwargs))
        if func in _SHAPE_ONLY or not any(isinstance(leaf, Var) for leaf in tree_leaves(traced)):
            return func(*args, **kwargs)
        problem = self._find_stale_argument(arguments)
        versions = [(tensor, _get_version(tensor)) for tensor in arguments]
        out = func(*args, **kwargs)
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)) and out is not None:
            return out  # a shape or a bool
        written = [tensor for tensor, version in versions if _get_version(tensor) != version]
        problem = problem or self._find_hidden_write(written, out) or self._find_lost_batch(out)
        self._forget_aliases(written)
        traced_args, traced_kwargs = traced
        self.nodes.append(Node(func, traced_args, traced_kwargs, self._bind_all(out), self._layer_name(func), problem))
        return out

    def _bind_all(self, out: Any) -> Any:
        return tree_map(lambda leaf: self.bind(leaf) if isinstance(leaf, Tensor) else leaf, out)

    def _layer_name(self, func: Any) -> str:
        activation = ACTIVATIONS.get(func)
        base = self._path.layer_name(activation.name if activation else getattr(func, "__name__", str(func)))
        self._call_counts[base] += activation is not None
        return base if self._call_counts[base] < 2 or activation is None else f"{base}#{self._call_counts[base]}"

    def _find_stale_argument(self, arguments: list[Tensor]) -> str:
        stale = any(id(tensor) in self._stale for tensor in arguments)
        return "reads a view of a tensor that was overwritten in place" if stale else ""

    def _find_hidden_write(self, written: list[Tensor], out: Any) -> str:
        hidden = any(tensor is not out for tensor in written)
        return "writes into a tensor that it does not return" if hidden else ""

    def _find_lost_batch(self, out: Any) -> str:
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        has_row_per_image = all(leaf.dim() > 0 and len(leaf) == self._batch for leaf in results)
        return "" if has_row_per_image else f"returns {_format_shapes(results)}, which has no row for each image"

    def _forget_aliases(self, written: list[Tensor]) -> None:
        for tensor in written:
            memory = tensor.untyped_storage().data_ptr()
            self._stale |= {
                id(other)
                for other in self._alive
                if other is not tensor and other.untyped_storage().data_ptr() == memory
            }


def _get_version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; 0 for inference tensors, which do not count writes."""
    return 0 if tensor.is_inference() else tensor._version


def _format_shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "nothing"


def record_once(model: nn.Module, images: Tensor) -> Tape:
    """Record one forward pass of a model in `measurement_mode` on `images` (N, ...), valid for that batch size only."""
    path = ModulePath(model)
    with path.track(), _CallRecorder(path, images) as recorder:
        result = model(images)
    output = recorder.to_var(result)
    return Tape(recorder.nodes, output if isinstance(output, Var) else None, result)


def record_tape(model: nn.Module, images: Tensor) -> Tape:
    """Record the forward pass of a model as a program for any batch size.

    Args:
        model: in `measurement_mode`: eval mode, without gradients.
        images: (N, ...) with N >= 1; the control flow is recorded on these.

    Raises:
        ModelContractError: the calls differ between batch sizes, or the result is not a tensor computed from the
            images.

    Cost: two forward passes, of two and of three images.
    """
    sample = images[torch.arange(BATCHES[1], device=images.device) % len(images)]
    first, second = (record_once(model, sample[:size].clone()) for size in BATCHES)
    if [node.func for node in first.nodes] != [node.func for node in second.nodes]:
        raise ModelContractError(
            "the model calls different operations for different images; only a model whose layers do not depend on the "
            "data can be recorded as one program"
        )
    if first.output is None:
        raise ModelContractError(
            "the model must return one tensor that is computed from the images; wrap it in a module that returns only "
            "the logits"
        )
    nodes = [
        node._replace(
            args=_generalise_batch(node.args, other.args), kwargs=_generalise_batch(node.kwargs, other.kwargs)
        )
        for node, other in zip(first.nodes, second.nodes, strict=True)
    ]
    return first._replace(nodes=nodes)


def _generalise_batch(first: Any, second: Any) -> Any:
    """Return the arguments of one call with batch-dependent leaves replaced by `BatchMultiple` and `BatchRow`."""
    second_leaves = iter(tree_leaves(second))
    return tree_map(lambda leaf: _merge_leaf(leaf, next(second_leaves)), first)


def _merge_leaf(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor) and first.shape != second.shape:
        if (len(first), len(second)) == BATCHES and bool((second == second[:1]).all()):
            return BatchRow(first[:1])
    elif isinstance(first, int) and not isinstance(first, bool) and first != second:
        if first % BATCHES[0] == 0 and first // BATCHES[0] * BATCHES[1] == second:
            return BatchMultiple(first // BATCHES[0])
    elif isinstance(first, Tensor) or first == second:
        return first
    raise ModelContractError(
        f"the model computes with {_format_leaf(first)} for {BATCHES[0]} images and {_format_leaf(second)} for "
        f"{BATCHES[1]}, which is not one row per image"
    )


def _format_leaf(leaf: Any) -> str:
    return f"a tensor {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)


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


def find_freed_variables(tape: Tape) -> list[list[int]]:
    """Return, for each node, the variables that can be freed after it: neither read later nor returned by the model."""
    last = {
        var.index: position for position, node in enumerate(tape.nodes) for var in (*node.inputs(), *node.outputs())
    }
    if tape.output is not None:
        last.pop(tape.output.index, None)
    freed: list[list[int]] = [[] for _ in tape.nodes]
    for index, position in last.items():
        freed[position].append(index)
    return freed
