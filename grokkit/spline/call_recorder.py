"""Record one forward pass of any unmodified module as a flat list of calls on image-dependent tensors.

Calls are intercepted by a `TorchFunctionMode`, so functional, re-used and in-place operations and residual adds are
recorded without changes to the model.

A tensor depends on the images if a recorded call made it from one that does. Whatever else enters a call is either made
by recorded calls from parameters, buffers and numbers, or comes from elsewhere: an `Origin`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grokkit.device.model_check import run_model
from grokkit.errors import ModelContractError
from grokkit.interrupt import check_interrupt
from grokkit.operations import Operation, find_operation, get_function_name, place_arguments, select_values
from grokkit.spline.rule_table import tree_map, writes_in_place
from grokkit.spline.tape import Node, Origin, Tape, Var
from grokkit.units import (
    Constants,
    ModulePath,
    check_full_precision,
    expand_vmapped,
    is_counted_call,
    list_leaves,
    list_tensors,
    list_vmapped_sizes,
    unwrap_vmapped,
)

_STEP = (5**0.5 - 1) / 2
"""Radians between the phases of two weights of a sum; irrational, so that no two weights are alike."""


class _CallRecorder(TorchFunctionMode):
    """Recorder of every call on tensors that depend on the images; keeps them alive so that their ids stay unique."""

    def __init__(self, model: nn.Module, path: ModulePath, images: Tensor, unseen: frozenset[int]) -> None:
        super().__init__()
        self._unseen = unseen
        self.nodes: list[Node] = []
        self.origins: list[Origin] = []
        self.mapped: list[tuple[str, int]] = []
        self.rows: dict[int, Tensor] = {}
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
        var = Var(len(self._alive), tensor.is_floating_point() or tensor.is_complex())
        self._alive.append(inner)
        self._vars[id(inner)] = var
        self._versions[id(inner)] = _get_version(inner)
        self._memory[_get_memory(inner)] = var
        return var

    def to_var(self, leaf: Any) -> Any:
        """Return the variable of an image-dependent tensor; any other argument unchanged."""
        if isinstance(leaf, torch.Size):
            return tuple(leaf)
        return self._vars.get(id(unwrap_vmapped(leaf)), leaf) if isinstance(leaf, Tensor) else leaf

    def _bind_view(self, tensor: Tensor) -> Var | None:
        """Bind a tensor that shares memory with one that depends on the images; return None for any other."""
        inner = unwrap_vmapped(tensor)
        source = self._memory.get(_get_memory(inner))
        if source is None or id(inner) in self._vars:
            return None
        problem = "is a view that was made by code that is not seen"
        self._append(Tensor.view, (source,), self.bind(inner), self._path.layer_name("view"), problem)
        return source

    def _append(self, func: Any, args: Any, out: Var, layer: str, problem: str) -> None:
        """Append a node for a tensor that no recorded call made."""
        size = self._count_values([self._alive[out.index]])
        self.nodes.append(Node(func, args, {}, out, layer, find_operation(func), False, size, problem, ()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = find_operation(func)
        if operation is not None and operation.kind == "metadata":
            return func(*args, **kwargs)
        args, kwargs = place_arguments(func, args, kwargs)
        self._note_origins(func, (args, kwargs))
        traced = tree_map(self.to_var, (args, kwargs))
        if not any(isinstance(leaf, Var) for leaf in list_leaves(select_values(func, traced))):
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
        arguments = list_tensors((args, kwargs))
        self.mapped += [(layer, size) for tensor in arguments for size in list_vmapped_sizes(tensor)]
        problem = self._find_stale_argument(arguments) or _find_strides(operation, args)
        problem = problem or self._find_split_batch(operation, args, kwargs)
        versions = [(tensor, _get_version(tensor)) for tensor in arguments]
        node_args, node_kwargs = self._copy_target(func, traced)
        out = func(*args, **kwargs)
        results = list_tensors(out)
        written = [tensor for tensor, version in versions if _get_version(tensor) != version]
        # views of one tensor are written to together; the result, or the first of them, is the one that is meant
        meant = results or written[:1]
        memories = {_get_memory(tensor) for tensor in meant}
        hidden = [tensor for tensor in written if _get_memory(tensor) not in memories] + ([] if results else meant)
        if not results and not hidden:
            if operation is None or operation.kind == "reading":
                problem, size = "hands values to code that is not seen", self._count_values(arguments)
                self.nodes.append(Node(func, node_args, node_kwargs, None, layer, operation, False, size, problem, ()))
            return out
        results += hidden
        for tensor in results:
            if tensor.is_floating_point():
                check_full_precision(tensor, get_function_name(func), layer)
        problem = problem or self._find_hidden_write(func, hidden) or self._find_lost_batch(results)
        self._forget_aliases(written, results)
        bound = tree_map(lambda leaf: self.bind(leaf) if isinstance(leaf, Tensor) else leaf, out)
        if hidden:
            bound = self.bind(hidden[0]) if out is None and len(hidden) == 1 else [bound, *map(self.bind, hidden)]
        size = self._count_values(results)
        if counted:
            self.rows[len(self.nodes)] = _project_rows(expand_vmapped(results[0]), self._batch)
        shapes = tuple(tuple(unwrap_vmapped(tensor).shape) for tensor in results)
        self.nodes.append(Node(func, node_args, node_kwargs, bound, layer, operation, counted, size, problem, shapes))
        return out

    def _note_origins(self, func: Any, arguments: Any) -> None:
        """Append what enters a call and no recorded call made: numbers, and tensors of unknown origin."""
        name = get_function_name(func)
        layer = self._path.layer_name(name)
        for leaf in list_leaves(arguments):
            is_number = isinstance(leaf, int | float | complex)
            if not (is_number or (isinstance(leaf, Tensor) and self._is_unseen(leaf) and not self._bind_view(leaf))):
                continue
            is_unseen = len(self.origins) in self._unseen and not is_number
            if is_unseen:
                problem = "was computed by code that is not seen"
                self._append(Tensor.clone, (), self.bind(leaf), f"{layer} (an input)", problem)
            value = leaf if is_number else unwrap_vmapped(leaf).clone()
            self.origins.append(Origin(value, name, layer, None if is_unseen else leaf))

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
        is_constant = bool(args) and isinstance(args[0], Tensor)
        return ((args[0].clone(), *args[1:]), kwargs) if is_constant and writes_in_place(func) else traced

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

    def _find_split_batch(self, operation: Operation | None, args: Any, kwargs: Any) -> str:
        """Return why a call that takes the images apart cannot be replayed for another number of images."""
        if operation is None or operation.name not in ("split", "chunk", "tensor_split", "unbind"):
            return ""
        position = 1 if operation.name == "unbind" else 2
        dim = args[position] if len(args) > position else kwargs.get("dim", 0)
        return "takes the images of a batch apart" if dim in (0, -args[0].dim()) else ""

    def _find_lost_batch(self, results: list[Tensor]) -> str:
        has_row_per_image = all(leaf.dim() > 0 and len(leaf) == self._batch for leaf in results)
        return "" if has_row_per_image else f"returns {_format_shapes(results)}, which has no row for each image"

    def _forget_aliases(self, written: list[Tensor], results: list[Tensor]) -> None:
        """Mark the views of tensors that a recorded call has written to; writes move the version of all of them."""
        memories = {_get_memory(tensor) for tensor in written}
        if not memories:
            return
        for other in self._alive:
            if _get_memory(other) in memories:
                self._versions[id(other)] = _get_version(other)
                if all(other is not unwrap_vmapped(tensor) for tensor in results):
                    self._stale.add(id(other))


def _find_strides(operation: Operation | None, args: tuple[Any, ...]) -> str:
    is_by_strides = operation is not None and operation.name == "as_strided"
    is_whole = is_by_strides and args[0].is_contiguous() and args[0].storage_offset() == 0
    return "reads the memory around a view" if is_by_strides and not is_whole else ""


def _project_rows(values: Tensor, batch: int) -> Tensor:
    """Return (batch, 2): of the values of each image, a sum with fixed weights, and their norm.

    Empty if the first dimension is no multiple of the batch.
    """
    if values.dim() == 0 or len(values) % batch:
        return values.new_zeros(0, 2)
    rows = values.detach().reshape(batch, -1).double()
    weights = torch.arange(1, rows.shape[1] + 1, dtype=torch.float64, device=rows.device).mul_(_STEP).cos_()
    return torch.stack([rows @ weights, rows.norm(dim=1)], dim=1)


def _get_memory(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor shares with its views; of its storage if that has no memory."""
    storage = unwrap_vmapped(tensor).untyped_storage()
    return storage.data_ptr() or storage._cdata  # on the meta device, or empty


def _get_version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; 0 for inference tensors, which do not count writes."""
    return 0 if tensor.is_inference() else tensor._version


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
    inputs = images.clone()  # a model may overwrite its input
    with path.track(), _CallRecorder(model, path, inputs, unseen) as recorder:
        result = run_model(model, inputs)
        output = recorder.to_var(result)
    return Tape(
        recorder.nodes,
        recorder.origins,
        recorder.mapped,
        recorder.rows,
        output if isinstance(output, Var) else None,
        result,
        images,
    )
