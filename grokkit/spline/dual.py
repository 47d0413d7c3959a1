"""A tensor that propagates its derivatives along P directions through any unmodified module.

`torch.func.jvp` under `vmap` gives the same numbers several times slower: it recomputes every slope for every
direction, adds biases to derivatives that have none, and loses the memory format. Here the operations of image
networks have rules; an operation without a rule uses forward-mode AD, one direction at a time: slower, equally exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad as ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from grokkit.errors import GrokkitError, ModelContractError
from grokkit.operations import find_operation, get_function_name, place_arguments
from grokkit.spline.rule_table import tree_map, writes_in_place
from grokkit.units import list_leaves

_tangent_dtype: ContextVar[torch.dtype | None] = ContextVar("tangent_dtype", default=None)


@contextmanager
def store_tangents_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Store every tangent in `dtype` within the block; None: in the dtype of its value."""
    token = _tangent_dtype.set(dtype)
    try:
        yield
    finally:
        _tangent_dtype.reset(token)


class Dual(Tensor):
    """A value and its P directional derivatives, consistent through views and in-place operations.

    Args:
        primal: the value, shape (batch, ...).
        tangent: the derivatives, shape (P, batch, ...); stored with the strides of `primal`, so that a view of one
            corresponds to a view of the other, and in the dtype set by `store_tangents_in`.
    """

    primal: Tensor
    tangent: Tensor
    rules: ClassVar[dict[Any, Callable[..., Any]]] = {}
    """Replacement for each operation, called with the operation as first argument; filled by `rules.py`."""

    @staticmethod
    def __new__(cls, primal: Tensor, tangent: Tensor) -> Dual:
        self = Tensor._make_subclass(cls, primal)
        dtype = _tangent_dtype.get() or primal.dtype
        self.primal, self.tangent = primal, _match_strides(primal, tangent.to(dtype))
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = place_arguments(func, args, dict(kwargs or {}))
        rule = cls.rules.get(func) or _find_overload_rule(cls, func) or apply_forward_ad
        try:
            return rule(func, *args, **kwargs)
        except (GrokkitError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # an operation without a derivative raises errors of several kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelContractError(
                f'`{get_function_name(func)}` has no forward-mode derivative ({reason}); use method="vertex"'
            ) from error


def _find_overload_rule(cls: type[Dual], func: Any) -> Callable[..., Any] | None:
    """Return the rule of an operation that is called as `torch.ops.aten...`."""
    operation = find_operation(func)
    return None if operation is None else cls.rules.get(next(operation.functions()))


def _match_strides(primal: Tensor, tangent: Tensor) -> Tensor:
    sizes, value_strides, tangent_strides = primal.shape, primal.stride(), tangent.stride()[1:]
    if all(a == b or size == 1 for size, a, b in zip(sizes, value_strides, tangent_strides, strict=True)):
        return tangent
    # empty_like keeps the strides of a dense tensor; other strides mean that primal, and so its tangent, is a view
    dense = torch.empty_like(primal).stride()
    if dense != value_strides:
        return tangent
    return torch.empty_strided(
        tangent.shape, (primal.numel(), *dense), dtype=tangent.dtype, device=tangent.device
    ).copy_(tangent)


def has_dual(*trees: Any) -> bool:
    """Return whether any leaf of the trees is a `Dual`."""
    return any(isinstance(leaf, Dual) for leaf in list_leaves(trees))


def round_like_tangent(x: Dual, tree: Any) -> Any:
    """Convert the floating tensors in `tree` to the dtype of the tangent of `x`."""
    dtype = x.tangent.dtype
    if dtype == x.primal.dtype:
        return tree
    return tree_map(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree
    )


def scale_tangent(tangent: Tensor, factor: Tensor) -> Tensor:
    """Return tangent * factor, in new memory (a residual branch may share the tangents) and rounded once."""
    if tangent.dtype == factor.dtype:
        return tangent * factor
    return torch.mul(tangent, factor, out=torch.empty_like(tangent))


def make_hidden_write_error(func: Any) -> ModelContractError:
    """Return the error for an operation that writes an image-dependent value into a tensor without tangents."""
    return ModelContractError(
        f"`{get_function_name(func)}` writes a value that depends on the image into a plain tensor of the model, which "
        'cannot hold its derivative; use method="vertex", or rewrite the model without this in-place operation'
    )


def apply_linear(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply an operation that is linear in its first argument alone, by applying it to the tangents too."""
    if not isinstance(x, Dual) or has_dual(args, kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    primal = func(x.primal, *args, **kwargs)
    args, kwargs = round_like_tangent(x, (args, kwargs))
    return _wrap(x, primal, map_directions(func, lambda map_one, t: map_one(t, *args, **kwargs), x.tangent))


_RENAMED: dict[str, Any] = {
    "moveaxis": torch.movedim,
    "unsafe_split_with_sizes": torch.split_with_sizes,
    "native_channel_shuffle": torch.channel_shuffle,
    "mH": Tensor.adjoint,
    "conj": torch.conj,
    "as_strided_copy": lambda x, *args, **kwargs: x.as_strided(*args, **kwargs).clone(),
}
"""Name -> the same operation under a name for which `torch.vmap` has a rule."""
_WITHOUT_RULE = frozenset(
    ("take", "masked_select", "masked_scatter", "put", "column_stack", "chain_matmul", "diagflat")
)
_WRITING_WITH_RULE = frozenset(
    ("add_", "sub_", "mul_", "div_", "add", "sub", "mul", "div", "neg_", "clamp_", "masked_fill_", "fill_", "detach_")
)
"""Names of operations for which `torch.vmap` has no rule; and of those that write in place and have one."""


def map_directions(func: Any, call: Callable[..., Any], *tangents: Tensor) -> Any:
    """Return `call(func, *tangents)` of every direction, stacked.

    Args:
        func: the operation; on tangents, its name for which there is a rule.
        call: calls the operation that it is given.
        tangents: (P, ...) each.
    """
    name = get_function_name(func)
    is_written = writes_in_place(func) and name not in _WRITING_WITH_RULE
    if name in _WITHOUT_RULE or is_written or (name.endswith("_copy") and name not in _RENAMED):
        return _stack([call(func, *parts) for parts in zip(*tangents, strict=True)])
    return torch.vmap(partial(call, _RENAMED.get(name, func)))(*tangents)


def _stack(results: list[Any]) -> Any:
    if isinstance(results[0], tuple | list):
        return [torch.stack(parts) for parts in zip(*results, strict=True)]
    return torch.stack(results)


def _wrap(x: Dual, primal: Any, tangent: Any) -> Any:
    """Return `x` itself after an in-place operation, else the new dual (or tuple of duals)."""
    if isinstance(primal, tuple | list):
        return type(primal)(_wrap(x, value, derivative) for value, derivative in zip(primal, tangent, strict=True))
    return x if primal is x.primal else Dual(primal, tangent)


def apply_forward_ad(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Apply any operation exactly by forward-mode AD, one direction after another.

    Raises:
        ModelContractError: the operation has no forward-mode derivative, or writes into a tensor that cannot hold one.
    """
    directions = next(len(leaf.tangent) for leaf in list_leaves((args, kwargs)) if isinstance(leaf, Dual))
    results: list[_UnpackedCall] = []
    with _enter_dual_level():
        for direction in range(directions):
            call = _DirectionalCall(func, args, kwargs, direction)
            if call.is_view():
                return apply_linear(func, *args, **kwargs)
            results.append(_UnpackedCall(call))
            if not results[0].depends:
                break
    return _merge(results)


@contextmanager
def _enter_dual_level() -> Iterator[None]:
    with warnings.catch_warnings(), ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        # torch's decompositions, loaded at the first use, still use torch.jit.script
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        yield


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, Dual)


class _DirectionalCall:
    """One operation run on copies of its inputs that are dual along one direction, as forward-mode AD requires."""

    def __init__(self, func: Any, args: Any, kwargs: Any, direction: int) -> None:
        self.copies: list[tuple[Dual, Tensor, int]] = []
        arguments = tree_map(partial(self._copy, direction), (args, kwargs))
        plain = [(leaf, leaf._version) for leaf in list_leaves((args, kwargs)) if _is_plain(leaf)]
        self.out = func(*arguments[0], **arguments[1])
        if any(leaf._version != version for leaf, version in plain):
            raise make_hidden_write_error(func)

    def _copy(self, direction: int, leaf: Any) -> Any:
        if not isinstance(leaf, Dual):
            return leaf
        for source, copy, _ in self.copies:
            if source is leaf:
                return copy
        copy = ad.make_dual(leaf.primal.clone(), leaf.tangent[direction].to(leaf.primal.dtype, copy=True))
        self.copies.append((leaf, copy, copy._version))
        return copy

    def find_source(self, leaf: Any) -> Dual | None:
        return next((source for source, copy, _ in self.copies if copy is leaf), None)

    def list_written(self) -> list[tuple[Dual, Tensor]]:
        return [(source, copy) for source, copy, version in self.copies if copy._version != version]

    def is_view(self) -> bool:
        """Return whether the result is a view of the only dual argument; its tangents must then be views too."""
        if len(self.copies) != 1 or self.list_written():
            return False
        ((_, copy, _),) = self.copies
        memory = copy.untyped_storage().data_ptr()
        results = [leaf for leaf in list_leaves(self.out) if isinstance(leaf, Tensor) and leaf is not copy]
        return any(leaf.untyped_storage().data_ptr() == memory for leaf in results)


class _UnpackedCall:
    """The results of one directional call as plain values and tangents, valid outside the dual level."""

    def __init__(self, call: _DirectionalCall) -> None:
        self.tree = call.out
        self.leaves = list_leaves(call.out)
        self.sources = [call.find_source(leaf) for leaf in self.leaves]
        self.values = [self._unpack(leaf) for leaf in self.leaves]
        self.written = [(source, *self._unpack(copy)) for source, copy in call.list_written()]
        self.depends = bool(self.written) or any(tangent is not None for _, tangent in self.values)

    @staticmethod
    def _unpack(leaf: Any) -> tuple[Any, Tensor | None]:
        if not isinstance(leaf, Tensor):
            return leaf, None
        primal, tangent = ad.unpack_dual(leaf)
        return primal, tangent


def _stack_tangents(primal: Tensor, tangents: list[Tensor | None]) -> Tensor:
    return torch.stack([torch.zeros_like(primal) if tangent is None else tangent for tangent in tangents])


def _merge(results: list[_UnpackedCall]) -> Any:
    first = results[0]
    for index, (source, primal, _) in enumerate(first.written):
        source.primal.copy_(primal)
        source.tangent.copy_(_stack_tangents(primal, [result.written[index][2] for result in results]))
    merged: list[Any] = []
    for index, (primal, tangent) in enumerate(first.values):
        if first.sources[index] is not None:
            merged.append(first.sources[index])
        elif tangent is None:
            merged.append(primal)
        else:
            merged.append(Dual(primal, _stack_tangents(primal, [result.values[index][1] for result in results])))
    leaves = iter(merged)
    return tree_map(lambda _: next(leaves), first.tree)
