"""A tensor that carries its derivatives along P directions through any unmodified module.

`torch.func.jvp` under `vmap` gives the same numbers several times slower: it recomputes every slope for every
direction, adds biases that no derivative has, and loses the memory format. Here the operations of image nets have
rules; what has no rule goes through forward-mode AD, one direction at a time, which is slower and as exact.
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

from grokkit.errors import ModelContractError
from grokkit.spline.rule_table import leaves, map_leaves

_tangent_dtype: ContextVar[torch.dtype | None] = ContextVar("tangent_dtype", default=None)


@contextmanager
def store_tangents_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Within the block every tangent is stored in `dtype`; None: in the dtype of its value."""
    token = _tangent_dtype.set(dtype)
    try:
        yield
    finally:
        _tangent_dtype.reset(token)


class Dual(Tensor):
    """A value and its P directional derivatives, in step through views and in-place operations.

    Args:
        primal: the value, shape (batch, ...).
        tangent: the derivatives, shape (P, batch, ...); kept with the strides of `primal`, so that whatever is a
            view of the one is a view of the other, and in the dtype that `store_tangents_in` says.
    """

    primal: Tensor
    tangent: Tensor
    rules: ClassVar[dict[Any, Callable[..., Any]]] = {}
    """What is called in place of an operation, with the operation in front; filled by `rules.py`."""

    @staticmethod
    def __new__(cls, primal: Tensor, tangent: Tensor) -> Dual:
        self = Tensor._make_subclass(cls, primal)
        dtype = _tangent_dtype.get() or primal.dtype
        self.primal, self.tangent = primal, _match_strides(primal, tangent.to(dtype))
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        rule = cls.rules.get(func)
        return rule(func, *args, **kwargs) if rule is not None else apply_forward_ad(func, *args, **kwargs)


def _match_strides(primal: Tensor, tangent: Tensor) -> Tensor:
    sizes, ours, theirs = primal.shape, primal.stride(), tangent.stride()[1:]
    if all(a == b or size == 1 for size, a, b in zip(sizes, ours, theirs, strict=True)):
        return tangent
    # torch lays a dense tensor's copy out as the tensor itself; one with gaps is a view, and then so is its tangent
    dense = torch.empty_like(primal).stride()
    if dense != ours:
        return tangent
    return torch.empty_strided(
        tangent.shape, (primal.numel(), *dense), dtype=tangent.dtype, device=tangent.device
    ).copy_(tangent)


def has_dual(*trees: Any) -> bool:
    return any(isinstance(leaf, Dual) for leaf in leaves(trees))


def round_like_tangent(x: Dual, tree: Any) -> Any:
    """Whatever plain floating tensors an operation takes, rounded as the tangents are that they meet."""
    dtype = x.tangent.dtype
    if dtype == x.primal.dtype:
        return tree
    return map_leaves(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree
    )


def scale_tangent(tangent: Tensor, factor: Tensor) -> Tensor:
    """The product in memory of its own (a residual branch may hold the same tangents), rounded once."""
    if tangent.dtype == factor.dtype:
        return tangent * factor
    return torch.mul(tangent, factor, out=torch.empty_like(tangent))


def refuse_hidden_write(func: Any) -> ModelContractError:
    return ModelContractError(
        f"`{_name(func)}` writes a value that depends on the image into a plain tensor of the model's own, where its "
        'derivative cannot follow; use method="vertex", or write the model without this in-place step'
    )


def _name(func: Any) -> str:
    return getattr(func, "__name__", str(func))


def apply_linear(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation that is linear in its first argument alone: the tangents go through the operation itself."""
    if not isinstance(x, Dual) or has_dual(args, kwargs):
        return apply_forward_ad(func, x, *args, **kwargs)
    primal = func(x.primal, *args, **kwargs)
    args, kwargs = round_like_tangent(x, (args, kwargs))
    return _pair(x, primal, torch.vmap(lambda tangent: func(tangent, *args, **kwargs))(x.tangent))


def _pair(x: Dual, primal: Any, tangent: Any) -> Any:
    """`x` itself after an in-place operation, else the new dual (or tuple of duals)."""
    if isinstance(primal, tuple | list):
        return type(primal)(_pair(x, value, slope) for value, slope in zip(primal, tangent, strict=True))
    return x if primal is x.primal else Dual(primal, tangent)


def apply_forward_ad(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation, exactly: forward-mode AD, one direction after the other.

    Raises:
        ModelContractError: the operation has no forward-mode derivative, or writes where none can follow.
    """
    directions = next(len(leaf.tangent) for leaf in leaves((args, kwargs)) if isinstance(leaf, Dual))
    results: list[_Result] = []
    with _level():
        for direction in range(directions):
            one = _Direction(func, args, kwargs, direction)
            if one.is_view():
                return apply_linear(func, *args, **kwargs)
            results.append(_Result(one))
            if not results[0].depends:
                break
    return _merge(results)


@contextmanager
def _level() -> Iterator[None]:
    with warnings.catch_warnings(), ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        # torch's own decompositions, loaded at the first use, are still scripts
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        yield


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, Dual)


class _Direction:
    """One operation with its inputs copied and dual along one direction, as torch's forward-mode AD wants them."""

    def __init__(self, func: Any, args: Any, kwargs: Any, direction: int) -> None:
        self.copies: list[tuple[Dual, Tensor, int]] = []
        arguments = map_leaves(partial(self._copy, direction), (args, kwargs))
        plain = [(leaf, leaf._version) for leaf in leaves((args, kwargs)) if _is_plain(leaf)]
        try:
            self.out = func(*arguments[0], **arguments[1])
        except NotImplementedError as error:
            raise ModelContractError(
                f'`{_name(func)}` has no forward-mode derivative ({str(error).splitlines()[0]}); use method="vertex"'
            ) from error
        if any(leaf._version != version for leaf, version in plain):
            raise refuse_hidden_write(func)

    def _copy(self, direction: int, leaf: Any) -> Any:
        if not isinstance(leaf, Dual):
            return leaf
        for source, copy, _ in self.copies:
            if source is leaf:
                return copy
        copy = ad.make_dual(leaf.primal.clone(), leaf.tangent[direction].to(leaf.primal.dtype, copy=True))
        self.copies.append((leaf, copy, copy._version))
        return copy

    def source(self, leaf: Any) -> Dual | None:
        return next((source for source, copy, _ in self.copies if copy is leaf), None)

    def written(self) -> list[tuple[Dual, Tensor]]:
        return [(source, copy) for source, copy, version in self.copies if copy._version != version]

    def is_view(self) -> bool:
        """Whether the result is a view of the one dual argument; then its tangents have to be views too."""
        if len(self.copies) != 1 or self.written():
            return False
        ((_, copy, _),) = self.copies
        memory = copy.untyped_storage().data_ptr()
        results = [leaf for leaf in leaves(self.out) if isinstance(leaf, Tensor) and leaf is not copy]
        return any(leaf.untyped_storage().data_ptr() == memory for leaf in results)


class _Result:
    """What one direction left behind, taken out of the AD level: plain values and tangents."""

    def __init__(self, one: _Direction) -> None:
        self.tree = one.out
        self.leaves = leaves(one.out)
        self.sources = [one.source(leaf) for leaf in self.leaves]
        self.parts = [self._unpack(leaf) for leaf in self.leaves]
        self.written = [(source, *self._unpack(copy)) for source, copy in one.written()]
        self.depends = bool(self.written) or any(tangent is not None for _, tangent in self.parts)

    @staticmethod
    def _unpack(leaf: Any) -> tuple[Any, Tensor | None]:
        if not isinstance(leaf, Tensor):
            return leaf, None
        primal, tangent = ad.unpack_dual(leaf)
        return primal, tangent


def _stack(primal: Tensor, tangents: list[Tensor | None]) -> Tensor:
    return torch.stack([torch.zeros_like(primal) if tangent is None else tangent for tangent in tangents])


def _merge(results: list[_Result]) -> Any:
    first = results[0]
    for index, (source, primal, _) in enumerate(first.written):
        source.primal.copy_(primal)
        source.tangent.copy_(_stack(primal, [one.written[index][2] for one in results]))
    merged: list[Any] = []
    for index, (primal, tangent) in enumerate(first.parts):
        if first.sources[index] is not None:
            merged.append(first.sources[index])
        elif tangent is None:
            merged.append(primal)
        else:
            merged.append(Dual(primal, _stack(primal, [one.parts[index][1] for one in results])))
    leaves = iter(merged)
    return map_leaves(lambda _: next(leaves), first.tree)
