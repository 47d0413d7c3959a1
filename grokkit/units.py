"""Intercept activation and max-pool calls of any unmodified module, in call order.

Published code registers hooks on named layers, so it misses functional calls, keeps only the last call of a module
that is used several times, and reads values that an in-place activation has already overwritten. A
`TorchFunctionMode` intercepts every call before it runs; hooks on the module tree serve only to name the calls.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import EllipsisType, NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from grokkit.errors import ModelContractError
from grokkit.operations import Activation, Operation, Pool, find_operation, place_arguments, select_values


class Call(NamedTuple):
    """One activation call, intercepted before it runs.

    Args:
        layer: module path plus, for a functional call, the activation's name; `#2` marks the second call.
        activation: the kind of activation.
        z: pre-activations of shape (batch, ...); for a maximum or minimum of two tensors, their difference; for a clamp
            by tensors, (batch, bound, ...): its difference to each of the bounds.
        kinks: values of z at which the slope jumps.
    """

    layer: str
    activation: Activation
    z: Tensor
    kinks: tuple[float, ...]


class PoolCall(NamedTuple):
    """One max-pool call, intercepted after it ran (it overwrites nothing).

    Args:
        layer: named like an activation call, with its own numbering.
        pool: the kind of max-pooling.
        z: its input, (batch, ..., *spatial).
        pooled: its output, the maximum of each window.
        arguments: the other arguments as (kernel, stride, padding, dilation), each with one int per spatial
            dimension; None for adaptive pooling, whose windows follow from the two shapes.
        source: layer of the activation whose output is `z`, if that activation is flat below 0; else None.
    """

    layer: str
    pool: Pool
    z: Tensor
    pooled: Tensor
    arguments: tuple[tuple[int, ...], ...] | None
    source: str | None


def is_counted_call(operation: Operation | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a call is counted: a max-pool or activation of real numbers, but not `max` of one tensor."""
    if operation is None or operation.activation is None:
        return operation is not None and operation.pool is not None
    operands = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor)]
    has_slope = bool(operands) and operands[0].is_floating_point()
    return has_slope and (not operation.activation.pair or len(operands) > 1)


def find_preactivation(
    activation: Activation, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[float, ...]]:
    """Return the tensor whose sides are counted, and its kinks, of a call whose arguments are in their places.

    For two tensors that are compared, and for a clamp by tensors, these are differences with a kink at 0.
    """
    options = {name: value for name, value in kwargs.items() if name != "out"}
    if activation.pair:
        return args[0] - _to_number(args[1]), (0.0,)
    kinks = activation.kinks(*args, **options)
    if any(isinstance(kink, Tensor) for kink in kinks):
        return torch.stack(torch.broadcast_tensors(*(args[0] - _to_number(kink) for kink in kinks)), dim=1), (0.0,)
    return args[0], kinks


def _to_number(operand: Any) -> Any:
    """Return a mask as numbers, because torch compares masks with numbers but does not subtract them."""
    return operand.to(torch.uint8) if isinstance(operand, Tensor) and operand.dtype == torch.bool else operand


def check_full_precision(tensor: Tensor, name: str, layer: str) -> None:
    """Raise ModelContractError if the tensor has fewer digits than float32."""
    if tensor.dtype not in (torch.float32, torch.float64):
        raise ModelContractError(
            f"`{name}` in {layer!r} computes in {str(tensor.dtype).removeprefix('torch.')}, whose rounding counts as "
            "crossings: the model lowers its own precision. Remove that cast, or make it depend on `self.training`"
        )


def normalise_pool_arguments(
    _: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *__: Any,
    spatial: int,
    **___: Any,
) -> tuple[tuple[int, ...], ...]:
    """Convert the arguments of a max-pool call to (kernel, stride, padding, dilation) as in `PoolCall`."""

    def per_dimension(value: Any) -> tuple[int, ...]:
        return tuple(value) * (spatial // len(value)) if isinstance(value, tuple | list) else (value,) * spatial

    kernel = per_dimension(kernel_size)
    # the stride defaults to the kernel size; torch also passes an empty list for "no stride"
    return kernel, per_dimension(stride) if stride else kernel, per_dimension(padding), per_dimension(dilation)


_KNOWN_CONSTANTS: ContextVar[Sequence[Tensor]] = ContextVar("known_constants", default=())


@contextmanager
def known_constants(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Count no calls on these tensors within the block: they were found not to depend on the images."""
    token = _KNOWN_CONSTANTS.set(tensors)
    try:
        yield
    finally:
        _KNOWN_CONSTANTS.reset(token)


class Constants:
    """Tensors that do not depend on the images: parameters, buffers, and results computed from these alone.

    A call on such tensors (a clamped temperature, the absolute value of a weight, a network that computes a bias from
    a table of positions) adds no boundary in input space, so it is not counted, whatever its shape.
    """

    def __init__(self, model: nn.Module) -> None:
        self._constants: dict[int, tuple[Tensor, int]] = {}
        self.add(list(model.buffers()))

    def add(self, tree: Any) -> None:
        """Add the tensors of a call's result."""
        for tensor in list_tensors(tree):
            inner = unwrap_vmapped(tensor)
            if not inner.is_inference():
                self._constants[id(inner)] = (inner, inner._version)  # the reference keeps its id unique

    def contains(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a constant that was not written to since it was added."""
        inner = unwrap_vmapped(tensor)
        if type(inner) is nn.Parameter:
            return True
        entry = self._constants.get(id(inner))
        return entry is not None and entry[1] == inner._version

    def determine(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return whether the result of a call is a constant: it computes with constants, numbers and names alone."""
        return all(
            self.contains(leaf) if isinstance(leaf, Tensor) else isinstance(leaf, _PLAIN)
            for leaf in list_leaves(select_values(func, (args, kwargs)))
        )


_TORCH_NAMES = (torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN = (int, float, complex, str, NoneType, EllipsisType, *_TORCH_NAMES)
"""Arguments that hold no values of images, unless a call read these."""


def list_leaves(tree: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples, dicts and slices, in order; the size of a tensor is one leaf."""
    leaves: list[Any] = []
    _append_leaves(tree, leaves)
    return leaves


def _append_leaves(tree: Any, leaves: list[Any]) -> None:
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        for branch in tree:
            _append_leaves(branch, leaves)
    elif isinstance(tree, dict):
        for branch in tree.values():
            _append_leaves(branch, leaves)
    elif isinstance(tree, slice):
        leaves += (tree.start, tree.stop, tree.step)
    else:
        leaves.append(tree)


def list_tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves."""
    return [leaf for leaf in list_leaves(tree) if isinstance(leaf, Tensor)]


def unwrap_vmapped(tensor: Tensor) -> Tensor:
    """Return the tensor of which `torch.vmap` shows single slices to the code that it runs."""
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def list_vmapped_sizes(tensor: Tensor) -> list[int]:
    """Return the sizes of the dimensions of a tensor that `torch.vmap` hides from the code that it runs."""
    sizes = []
    while functorch.is_batchedtensor(tensor):
        dimension = functorch.maybe_get_bdim(tensor)
        tensor = functorch.get_unwrapped(tensor)
        sizes.append(tensor.shape[dimension])
    return sizes


def expand_vmapped(z: Tensor) -> Tensor:
    """Return pre-activations with the dimensions that `torch.vmap` hides, (batch, members, ...)."""
    while functorch.is_batchedtensor(z):
        z = functorch.get_unwrapped(z).movedim(functorch.maybe_get_bdim(z), 1)
    return z


class ModulePath:
    """Tracker of the named module that is running, by temporary global hooks instead of hooks on the model."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[nn.Module] = []

    @contextmanager
    def track(self) -> Iterator[None]:
        """Track the running module within the block."""

        def enter(module: nn.Module, _: Any) -> None:
            if id(module) in self._names:
                self._stack.append(module)

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            if self._stack and self._stack[-1] is module:
                self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()

    def layer_name(self, function: str) -> str:
        """Return the name of a call of `function` made now: the path of an activation module, else path.function."""
        if not self._stack:
            return function
        module = self._stack[-1]
        path: str = self._names[id(module)]
        is_leaf = next(module.children(), None) is None and next(module.parameters(recurse=False), None) is None
        if is_leaf and path:
            return path
        return f"{path}.{function}" if path else function


class _Interception(TorchFunctionMode):
    def __init__(
        self,
        model: nn.Module,
        path: ModulePath,
        on_call: Callable[[Call], None],
        on_pool: Callable[[PoolCall], None] | None,
        batch: int | None,
    ) -> None:
        super().__init__()
        self._constants = Constants(model)
        self._constants.add(list(_KNOWN_CONSTANTS.get()))
        self._path = path
        self._on_call = on_call
        self._on_pool = on_pool
        self._batch = batch
        self._call_counts: Counter[str] = Counter()
        self._pool_counts: Counter[str] = Counter()
        self._rectified: tuple[weakref.ref[Tensor], str] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = find_operation(func)
        if operation is not None and operation.kind == "metadata":
            return func(*args, **kwargs)
        args, kwargs = place_arguments(func, args, kwargs)
        if self._constants.determine(func, args, kwargs):
            out = func(*args, **kwargs)
            self._constants.add(out)
            return out
        call = None
        if operation is not None and operation.activation is not None and is_counted_call(operation, args, kwargs):
            call = self._report_activation(operation.activation, args, kwargs)
        out = func(*args, **kwargs)
        if call is not None:
            # a ReLU's output does not show how far below 0 its dead units are, so a pool needs the ReLU's layer name
            rectified = call.activation.flat and call.kinks[:1] == (0.0,)
            self._rectified = (weakref.ref(out), call.layer) if rectified else None
        elif self._on_pool is not None and operation is not None and operation.pool is not None:
            self._on_pool(self._make_pool_call(operation.pool, out, args, kwargs))
        return out

    def _report_activation(self, activation: Activation, args: Any, kwargs: Any) -> Call:
        z, kinks = find_preactivation(activation, args, kwargs)
        z = expand_vmapped(z)
        layer = _number_layers(self._call_counts, self._path.layer_name(activation.name))
        check_full_precision(z, activation.name, layer)
        call = Call(layer, activation, self._split_images(z, 0, activation.name, layer), kinks)
        self._on_call(call)
        return call

    def _make_pool_call(self, pool: Pool, out: Any, args: Any, kwargs: Any) -> PoolCall:
        z = args[0]
        layer = _number_layers(self._pool_counts, self._path.layer_name(pool.name))
        arguments = None if pool.adaptive else normalise_pool_arguments(*args, spatial=pool.spatial, **kwargs)
        producer, source = self._rectified or (lambda: None, None)
        pooled = out[0] if isinstance(out, tuple) else out
        images, maxima = (self._split_images(x, pool.spatial, pool.name, layer) for x in (z, pooled))
        return PoolCall(layer, pool, images, maxima, arguments, source if producer() is z else None)

    def _split_images(self, z: Tensor, spatial: int, name: str, layer: str) -> Tensor:
        """Return values (batch, ...) of values whose first dimension may also hold windows or tokens of each image."""
        sizes = tuple(z.shape[: z.dim() - spatial])
        if self._batch is None or sizes[:1] == (self._batch,):
            return z
        if not sizes or sizes[0] % self._batch:
            raise ModelContractError(
                f"the input of {name} in {layer!r} must have the batch ({self._batch}) as its first dimension, so that "
                f"units are distinguished from images and no image affects another; got shape {sizes}"
            )
        images: Tensor = z.unflatten(0, (self._batch, -1))
        return images


def _number_layers(call_counts: Counter[str], base: str) -> str:
    call_counts[base] += 1
    return base if call_counts[base] == 1 else f"{base}#{call_counts[base]}"


@contextmanager
def intercept(
    model: nn.Module,
    on_call: Callable[[Call], None],
    on_pool: Callable[[PoolCall], None] | None = None,
    batch: int | None = None,
) -> Iterator[None]:
    """Pass every counted activation call of one forward pass of `model` to `on_call`, in call order.

    Enter the block once per forward pass: the numbers in layer names count calls from its start. Nothing is added to
    the model. Calls on parameters and buffers alone, and on integers, are skipped.

    Args:
        model: any module.
        on_call: receives each activation call before it runs.
        on_pool: receives each max-pool call after it ran.
        batch: number of images; the first dimension of every reported input is split into images and the rest of it,
            which `spline.uncounted` checks to be in this order. None: the inputs are reported as they are.

    Raises:
        ModelContractError: an activation is called on complex or low-precision values, or the batch dimension is not
            first.
    """
    path = ModulePath(model)
    with path.track(), _Interception(model, path, on_call, on_pool, batch):
        yield
