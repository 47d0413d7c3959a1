"""Record the forward pass of any unmodified module as a flat list of calls on image-dependent tensors.

Exact partitions and certified bounds replay this program on other kinds of input than a batch of images, and the search
for uncounted calls reads it. Calls are intercepted by a `TorchFunctionMode`, so functional, re-used and in-place
operations and residual adds are recorded without changes to the model. The network runs at two batch sizes, on
different images; numbers that differ between the two are multiples of the batch size.

A tensor depends on the images if a recorded call made it from one that does. Whatever else enters a call is either made
by recorded calls from parameters, buffers and numbers, or comes from elsewhere: an `Origin`. An origin that differs
between the two passes was computed from the images by code that was not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grokkit.device.model_check import run_model
from grokkit.errors import ModelContractError
from grokkit.interrupt import check_interrupt
from grokkit.operations import Activation, Operation, find_operation, get_function_name
from grokkit.spline.rule_table import get_out_of_place, tree_leaves, tree_map
from grokkit.units import Constants, ModulePath, check_full_precision, is_counted_call, iter_tensors, unwrap_vmapped

BATCHES = (2, 3)
DATA_DEPENDENT_CALLS = (
    "the model calls different operations for different batches of images; only a model whose layers do not depend on "
    "the data can be measured"
)


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
        return sum(isinstance(leaf, Var) for leaf in tree_leaves((self.args, self.kwargs)))

    def inputs(self) -> list[Var]:
        """Return the image-dependent arguments, each once, in order."""
        return list(dict.fromkeys(leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Var)))

    def outputs(self) -> list[Var]:
        """Return the image-dependent results."""
        return [leaf for leaf in tree_leaves(self.out) if isinstance(leaf, Var)]


class Origin(NamedTuple):
    """A tensor or number that enters a call and was not made by a recorded one.

    Args:
        value: the tensor or number.
        name: name of the function that it enters.
        layer: module path of that call.
    """

    value: Any
    name: str
    layer: str


class Tape(NamedTuple):
    """A recorded forward pass.

    Args:
        nodes: its calls on image-dependent tensors, in order.
        origins: what entered any call and was not made by a recorded one, in order.
        output: the variable that the model returned; None if the result is not a recorded tensor.
        result: the returned tensor.
    """

    nodes: list[Node]
    origins: list[Origin]
    output: Var | None
    result: Tensor


class _CallRecorder(TorchFunctionMode):
    """Recorder of every call on tensors that depend on the images; keeps them alive so that their ids stay unique."""

    def __init__(self, model: nn.Module, path: ModulePath, images: Tensor, unseen: frozenset[int]) -> None:
        super().__init__()
        self._unseen = unseen
        self.nodes: list[Node] = []
        self.origins: list[Origin] = []
        self._path = path
        self._batch = len(images)
        self._constants = Constants(model)
        self._call_counts: Counter[str] = Counter()
        self._alive: list[Tensor] = []
        self._vars: dict[int, Var] = {}
        self._versions: dict[int, int] = {}
        self._memory: dict[int, Var] = {}
        self._stale: set[int] = set()
        self.bind(images)

    def bind(self, tensor: Tensor) -> Var:
        """Return a new variable for a tensor, which replaces the one that it had."""
        inner = unwrap_vmapped(tensor)
        var = Var(len(self._alive), tensor.is_floating_point())
        self._alive.append(inner)
        self._vars[id(inner)] = var
        self._versions[id(inner)] = _get_version(inner)
        self._memory[_get_address(inner)] = var
        return var

    def to_var(self, leaf: Any) -> Any:
        """Return the variable of an image-dependent tensor; any other argument unchanged."""
        if isinstance(leaf, torch.Size):
            return tuple(leaf)
        return self._vars.get(id(unwrap_vmapped(leaf)), leaf) if isinstance(leaf, Tensor) else leaf

    def _bind_view(self, tensor: Tensor) -> Var | None:
        """Bind a tensor that shares memory with one that depends on the images; return None for any other."""
        inner = unwrap_vmapped(tensor)
        source = self._memory.get(_get_address(inner))
        if source is None or id(inner) in self._vars:
            return None
        problem = "is a view that was made by code that is not seen"
        self._append(Tensor.view, (source,), self.bind(inner), self._path.layer_name("view"), problem)
        return source

    def _append(self, func: Any, args: Any, out: Var, layer: str, problem: str) -> None:
        """Append a node for a tensor that no recorded call made."""
        size = self._count_values([self._alive[out.index]])
        self.nodes.append(Node(func, args, {}, out, layer, find_operation(func), False, size, problem))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = find_operation(func)
        if operation is not None and operation.kind == "metadata":
            return func(*args, **kwargs)
        self._note_origins(func, (args, kwargs))
        traced = tree_map(self.to_var, (args, kwargs))
        reads_no_values = operation is not None and operation.kind == "constant"
        if reads_no_values or not any(isinstance(leaf, Var) for leaf in tree_leaves(traced)):
            out = func(*args, **kwargs)
            self._constants.add(out)
            return out
        return self._record(func, operation, args, kwargs, traced)

    def _record(self, func: Any, operation: Operation | None, args: Any, kwargs: Any, traced: Any) -> Any:
        counted = is_counted_call(operation, args, kwargs)
        layer = self._layer_name(func, operation, counted)
        if operation is not None and operation.kind == "deciding":
            raise ModelContractError(
                f"`{get_function_name(func)}` in {layer!r} turns a value that depends on the images into a Python "
                "value, on which the model can decide what to compute for a whole batch; compute with tensors, or read "
                "such values only under `if self.training`"
            )
        arguments = list(iter_tensors((args, kwargs)))
        problem = self._find_stale_argument(arguments)
        versions = [(tensor, _get_version(tensor)) for tensor in arguments]
        node_args, node_kwargs = self._copy_target(func, traced)
        out = func(*args, **kwargs)
        results = list(iter_tensors((out,)))
        written = [tensor for tensor, version in versions if _get_version(tensor) != version]
        hidden = [tensor for tensor in written if all(tensor is not result for result in results)]
        if not results and not hidden:
            if operation is None or operation.kind == "reading":
                problem, size = "hands values to code that is not seen", self._count_values(arguments)
                self.nodes.append(Node(func, node_args, node_kwargs, None, layer, operation, False, size, problem))
            return out
        results += hidden
        for tensor in results:
            if tensor.is_floating_point():
                check_full_precision(tensor, get_function_name(func), layer)
        problem = problem or self._find_hidden_write(func, hidden) or self._find_lost_batch(results)
        self._forget_aliases(written)
        bound = tree_map(lambda leaf: self.bind(leaf) if isinstance(leaf, Tensor) else leaf, out)
        if hidden:
            bound = self.bind(hidden[0]) if out is None and len(hidden) == 1 else [bound, *map(self.bind, hidden)]
        size = self._count_values(results)
        self.nodes.append(Node(func, node_args, node_kwargs, bound, layer, operation, counted, size, problem))
        return out

    def _note_origins(self, func: Any, arguments: Any) -> None:
        """Append what enters a call and no recorded call made: numbers, and tensors of unknown origin."""
        for leaf in tree_leaves(arguments):
            is_number = isinstance(leaf, int | float | complex)
            if not (is_number or (isinstance(leaf, Tensor) and self._is_unseen(leaf) and not self._bind_view(leaf))):
                continue
            name = get_function_name(func)
            layer = self._path.layer_name(name)
            if len(self.origins) in self._unseen and not is_number:
                problem = "was computed by code that is not seen"
                self._append(Tensor.clone, (), self.bind(leaf), f"{layer} (an input)", problem)
            value = leaf if is_number else unwrap_vmapped(leaf).clone()
            self.origins.append(Origin(value, name, layer))

    def _is_unseen(self, tensor: Tensor) -> bool:
        """Return whether a tensor, or its present value, was made by no recorded call."""
        inner = unwrap_vmapped(tensor)
        if id(inner) in self._vars:
            return self._versions[id(inner)] != _get_version(inner)
        return not self._constants.contains(inner)

    @staticmethod
    def _copy_target(func: Any, traced: Any) -> Any:
        """Return the arguments of a call with a copy of the constant into which it is about to write."""
        args, kwargs = traced
        writes = func is Tensor.__setitem__ or get_out_of_place(func) is not func
        return ((args[0].clone(), *args[1:]), kwargs) if writes and args and isinstance(args[0], Tensor) else traced

    def _layer_name(self, func: Any, operation: Operation | None, counted: bool) -> str:
        if not counted or operation is None or operation.activation is None:
            return self._path.layer_name(get_function_name(func))
        base = self._path.layer_name(operation.activation.name)
        self._call_counts[base] += 1
        return base if self._call_counts[base] == 1 else f"{base}#{self._call_counts[base]}"

    def _count_values(self, tensors: list[Tensor]) -> int:
        return sum(unwrap_vmapped(x).numel() for x in tensors if x.is_floating_point()) // self._batch

    def _find_stale_argument(self, arguments: list[Tensor]) -> str:
        stale = any(id(tensor) in self._stale for tensor in arguments)
        return "reads a view of a tensor that was overwritten in place" if stale else ""

    @staticmethod
    def _find_hidden_write(func: Any, hidden: list[Tensor]) -> str:
        is_assignment = func is Tensor.__setitem__
        return "writes into a tensor that it does not return" if hidden and not is_assignment else ""

    def _find_lost_batch(self, results: list[Tensor]) -> str:
        has_row_per_image = all(leaf.dim() > 0 and len(leaf) == self._batch for leaf in results)
        return "" if has_row_per_image else f"returns {_format_shapes(results)}, which has no row for each image"

    def _forget_aliases(self, written: list[Tensor]) -> None:
        """Mark the views of tensors that a recorded call has written to; writes move the version of all of them."""
        memories = {_get_address(unwrap_vmapped(tensor)) for tensor in written}
        if not memories:
            return
        for other in self._alive:
            if _get_address(other) in memories:
                self._versions[id(other)] = _get_version(other)
                if all(other is not unwrap_vmapped(tensor) for tensor in written):
                    self._stale.add(id(other))


def _get_version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; 0 for inference tensors, which do not count writes."""
    return 0 if tensor.is_inference() else tensor._version


def _get_address(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; of its storage if it has no memory (on the meta device, or empty)."""
    storage = tensor.untyped_storage()
    return storage.data_ptr() or storage._cdata


def _format_shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors) or "nothing"


def record_once(model: nn.Module, images: Tensor, unseen: frozenset[int] = frozenset()) -> Tape:
    """Record one forward pass of a model in `measurement_mode`, valid for that batch size only.

    Args:
        model: the model.
        images: (N, ...).
        unseen: positions in `origins` of tensors that are known to depend on the images.
    """
    check_interrupt()
    path = ModulePath(model)
    with path.track(), _CallRecorder(model, path, images, unseen) as recorder:
        result = run_model(model, images)
        output = recorder.to_var(result)
    return Tape(recorder.nodes, recorder.origins, output if isinstance(output, Var) else None, result)


def record_twice(model: nn.Module, images: Tensor) -> tuple[Tape, Tape]:
    """Record the forward passes of two images, and of the same two behind a third one.

    Args:
        model: in `measurement_mode`.
        images: (N, ...) with N >= 1.

    Raises:
        ModelContractError: the calls differ between the two, or a value that depends on the images is turned into a
            Python value.
    """
    pair = images[torch.arange(BATCHES[0], device=images.device) % len(images)]
    batches = pair, torch.cat([0.75 * pair[:1].flip(-1), pair])
    unseen: frozenset[int] = frozenset()
    has_run = False
    while True:
        first, second = (record_once(model, batch.clone(), unseen) for batch in batches)
        if _list_calls(first) != _list_calls(second):
            if not has_run:  # the first pass may have filled a cache that spares later ones a call
                has_run = True
                continue
            raise ModelContractError(DATA_DEPENDENT_CALLS)
        new = _find_unseen(first, second, unseen)
        if new is None:
            return first, second
        unseen |= {new}


def _list_calls(tape: Tape) -> tuple[list[Any], list[str]]:
    return [node.func for node in tape.nodes], [origin.name for origin in tape.origins]


def _find_unseen(first: Tape, second: Tape, known: frozenset[int]) -> int | None:
    """Return the position of the first origin that differs between the passes, and so depends on the images."""
    for position, (origin, other) in enumerate(zip(first.origins, second.origins, strict=True)):
        if position not in known and not _is_same(origin.value, other.value):
            if not isinstance(origin.value, Tensor):
                raise ModelContractError(
                    f"`{origin.name}` in {origin.layer!r} computes with the number {origin.value!r} for one batch and "
                    f"{other.value!r} for another, so images mix; compute with tensors that have a row for each image"
                )
            return position
    return None


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
    first, second = record_twice(model, images)
    if first.output is None:
        raise ModelContractError("the model's output is not computed from the images by calls that are seen")
    nodes = [
        node._replace(
            args=_generalise_batch(node.args, other.args), kwargs=_generalise_batch(node.kwargs, other.kwargs)
        )
        for node, other in zip(first.nodes, second.nodes, strict=True)
    ]
    return first._replace(nodes=nodes)


def _is_same(first: Any, second: Any) -> bool:
    """Return whether a tensor or number is the same in both passes, but for the batch size."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        short, long = (x[: BATCHES[0]] if x.dim() else x for x in (first, second))
        return first.shape[1:] == second.shape[1:] and bool(
            short.shape == long.shape and ((short == long) | ((short != short) & (long != long))).all()
        )
    return bool(first == second or first * BATCHES[1] == second * BATCHES[0])


def _generalise_batch(first: Any, second: Any) -> Any:
    """Return the arguments of one call with batch-dependent leaves replaced by `BatchMultiple` and `BatchRow`."""
    second_leaves = iter(tree_leaves(second))
    return tree_map(lambda leaf: _merge_leaf(leaf, next(second_leaves)), first)


def _merge_leaf(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor) and first.shape != second.shape:
        if (len(first), len(second)) == BATCHES and bool((second == second[:1]).all() and _is_same(first, second)):
            return BatchRow(first[:1])
    elif isinstance(first, int) and not isinstance(first, bool) and first != second:
        if first % BATCHES[0] == 0 and first // BATCHES[0] * BATCHES[1] == second:
            return BatchMultiple(first // BATCHES[0])
    elif first is second or (_is_same(first, second) if isinstance(first, Tensor) else first == second):
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


def find_freed_variables(nodes: list[Node], output: Var) -> list[list[int]]:
    """Return, for each node, the variables that can be freed after it: neither read later nor the output."""
    last = {var.index: position for position, node in enumerate(nodes) for var in (*node.inputs(), *node.outputs())}
    last.pop(output.index, None)
    freed: list[list[int]] = [[] for _ in nodes]
    for index, position in last.items():
        freed[position].append(index)
    return freed
