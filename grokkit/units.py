"""Intercept activation and max-pool calls of any unmodified module, in call order.

Published code registers hooks on named layers, so it misses functional calls, keeps only the last call of a module
that is used several times, and reads values that an in-place activation has already overwritten. A
`TorchFunctionMode` intercepts every call before it runs; hooks on the module tree serve only to name the calls.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from grokkit.errors import ModelContractError


class Activation(NamedTuple):
    """One kind of activation.

    Args:
        name: its name in torch.
        kinks: maps the arguments of a call to the values of the pre-activation at which the slope jumps.
        zone: for a smooth activation, half the width of the zone around 0 in which it is convex; the sign of its
            pre-activation is then a proxy. None if the kinks are real.
        flat: whether it is constant below its first kink, so that its output does not show how far below the kink
            the input was.
    """

    name: str
    kinks: Callable[..., tuple[float, ...]]
    zone: float | None = None
    flat: bool = False

    @property
    def exact(self) -> bool:
        """Whether each kink is a real jump of the slope. Only hardswish is not linear between its kinks."""
        return self.zone is None


class Call(NamedTuple):
    """One activation call, intercepted before it runs.

    Args:
        layer: module path plus, for a functional call, the activation's name; `#2` marks the second call.
        activation: the kind of activation.
        z: pre-activations of shape (batch, ...); for a maximum or minimum of two tensors, their difference.
        kinks: input values at which the slope jumps.
    """

    layer: str
    activation: Activation
    z: Tensor
    kinks: tuple[float, ...]


class Pool(NamedTuple):
    """One kind of max-pooling.

    Args:
        name: its name in torch.
        spatial: number of trailing dimensions that it pools.
        adaptive: whether its argument is the size of its output rather than of its windows.
    """

    name: str
    spatial: int
    adaptive: bool


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


def _zero_kink(*_: Any, **__: Any) -> tuple[float, ...]:
    return (0.0,)


def _hardtanh_kinks(_: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> tuple[float, ...]:
    return (float(min_val), float(max_val))


def _clamp_kinks(_: Tensor, min: Any = None, max: Any = None) -> tuple[float, ...]:
    if any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in (min, max)):
        raise ModelContractError(
            "the model clamps with a tensor of bounds, which has no counting rule; clamp by numbers instead"
        )
    return tuple(float(bound) for bound in (min, max) if bound is not None)


def _clamp_max_kinks(_: Tensor, max: Any) -> tuple[float, ...]:
    return _clamp_kinks(_, None, max)


GELU_ZONE = math.sqrt(2.0)
"""Zero of the second derivative of GELU, (2 - x^2) times the normal density."""
SILU_ZONE = 2.3993572805154677
"""Zero of the second derivative of SiLU: the root of x tanh(x / 2) = 2."""

RELU = Activation("relu", _zero_kink, flat=True)
LEAKY_RELU = Activation("leaky_relu", _zero_kink)
RELU6 = Activation("relu6", lambda *_, **__: (0.0, 6.0), flat=True)
HARDTANH = Activation("hardtanh", _hardtanh_kinks, flat=True)
HARDSWISH = Activation("hardswish", lambda *_, **__: (-3.0, 3.0))
CLAMP = Activation("clamp", _clamp_kinks, flat=True)
CLAMP_MAX = Activation("clamp", _clamp_max_kinks)
ABS = Activation("abs", _zero_kink)
GELU = Activation("gelu", _zero_kink, zone=GELU_ZONE)
SILU = Activation("silu", _zero_kink, zone=SILU_ZONE)
MAXIMUM, MINIMUM = (Activation(name, _zero_kink) for name in ("maximum", "minimum"))

ACTIVATIONS: dict[Callable[..., Any], Activation] = {
    F.relu: RELU,
    F.relu_: RELU,
    torch.relu: RELU,
    torch.relu_: RELU,
    Tensor.relu: RELU,
    Tensor.relu_: RELU,
    F.leaky_relu: LEAKY_RELU,
    F.leaky_relu_: LEAKY_RELU,
    F.prelu: LEAKY_RELU,
    Tensor.prelu: LEAKY_RELU,
    F.relu6: RELU6,
    F.hardtanh: HARDTANH,
    F.hardtanh_: HARDTANH,
    F.hardswish: HARDSWISH,
    torch.clamp: CLAMP,
    torch.clip: CLAMP,
    Tensor.clamp: CLAMP,
    Tensor.clip: CLAMP,
    Tensor.clamp_: CLAMP,
    torch.clamp_min: CLAMP,
    Tensor.clamp_min: CLAMP,
    Tensor.clamp_min_: CLAMP,
    torch.clamp_max: CLAMP_MAX,
    Tensor.clamp_max: CLAMP_MAX,
    Tensor.clamp_max_: CLAMP_MAX,
    torch.abs: ABS,
    torch.abs_: ABS,
    torch.absolute: ABS,
    Tensor.abs: ABS,
    Tensor.abs_: ABS,
    Tensor.absolute: ABS,
    Tensor.absolute_: ABS,
    F.gelu: GELU,
    F.silu: SILU,
}
"""Counted calls on one tensor. `spline/uncounted.py` finds the nonlinear calls that are in none of these tables."""

PAIRS: dict[Callable[..., Any], Activation] = {
    torch.maximum: MAXIMUM,
    Tensor.maximum: MAXIMUM,
    torch.fmax: MAXIMUM,
    Tensor.fmax: MAXIMUM,
    torch.max: MAXIMUM,
    Tensor.max: MAXIMUM,
    torch.minimum: MINIMUM,
    Tensor.minimum: MINIMUM,
    torch.fmin: MINIMUM,
    Tensor.fmin: MINIMUM,
    torch.min: MINIMUM,
    Tensor.min: MINIMUM,
}
"""Counted if called on two tensors; `max` and `min` of one tensor are different operations with the same name."""


def _list_max_pools() -> Iterator[tuple[Callable[..., Any], Pool]]:
    for adaptive in (False, True):
        for spatial in (1, 2, 3):
            name = f"{'adaptive_' * adaptive}max_pool{spatial}d"
            for owner in (F, torch):
                for function in (name, f"{name}_with_indices"):
                    if hasattr(owner, function):
                        yield getattr(owner, function), Pool(name, spatial, adaptive)


MAX_POOLS: dict[Callable[..., Any], Pool] = dict(_list_max_pools())

_RECURRENT = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
REFUSED: dict[Callable[..., Any], str] = {
    F.elu: "elu",
    F.elu_: "elu",
    F.selu: "selu",
    F.celu: "celu",
    F.mish: "mish",
    F.softplus: "softplus",
    F.logsigmoid: "logsigmoid",
    F.softsign: "softsign",
    F.tanhshrink: "tanhshrink",
    F.hardsigmoid: "hardsigmoid",
    F.rrelu: "rrelu",
    F.hardshrink: "hardshrink",
    F.softshrink: "softshrink",
    F.threshold: "threshold",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    Tensor.sigmoid: "sigmoid",
    Tensor.tanh: "tanh",
    F.sigmoid: "sigmoid",
    F.tanh: "tanh",
    Tensor.sigmoid_: "sigmoid",
    Tensor.tanh_: "tanh",
    F.fractional_max_pool2d: "fractional_max_pool2d",
    F.fractional_max_pool3d: "fractional_max_pool3d",
    **{getattr(torch, name): name for name in _RECURRENT.split()},
}
"""Nonlinear calls without a counting rule. They raise, because a count that omits them would look complete."""


def _subtract_pair(input: Any, other: Any = None, *_: Any, **__: Any) -> Any:
    """Return the difference whose sign selects one of two tensors; None for `max` and `min` of one tensor."""
    return input - other if isinstance(other, Tensor) and input.dtype != torch.bool else None


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


class _Constants:
    """Tensors that do not depend on the images: parameters, buffers, and results computed from these alone.

    A call on such tensors (a clamped temperature, the absolute value of a weight, a network that computes a bias from
    a table of positions) adds no boundary in input space, so it is not counted, whatever its shape.
    """

    def __init__(self, model: nn.Module) -> None:
        self._constants: dict[int, tuple[Tensor, int]] = {}
        for buffer in model.buffers():
            self.add(buffer)

    def add(self, tree: Any) -> None:
        for tensor in _iter_tensors((tree,)):
            if not tensor.is_inference():
                self._constants[id(tensor)] = (tensor, tensor._version)  # the reference keeps its id unique

    def contains_all(self, *trees: Any) -> bool:
        """Return whether the arguments hold tensors and all of them are constants not written to since."""
        has_tensors = False
        for tensor in _iter_tensors(trees):
            if type(tensor) is not nn.Parameter:
                entry = self._constants.get(id(tensor))
                if entry is None or entry[1] != tensor._version:
                    return False
            has_tensors = True
        return has_tensors


def _iter_tensors(trees: Iterable[Any]) -> Iterator[Tensor]:
    for tree in trees:
        if isinstance(tree, Tensor):
            yield tree
        elif isinstance(tree, tuple | list):
            yield from _iter_tensors(tree)
        elif isinstance(tree, dict):
            yield from _iter_tensors(tree.values())


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
        self._constants = _Constants(model)
        self._path = path
        self._on_call = on_call
        self._on_pool = on_pool
        self._batch = batch
        self._call_counts: Counter[str] = Counter()
        self._pool_counts: Counter[str] = Counter()
        self._rectified: tuple[weakref.ref[Tensor], str] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._constants.contains_all(args, kwargs):
            out = func(*args, **kwargs)
            self._constants.add(out)
            return out
        call = self._check_call(func, args, kwargs)
        out = func(*args, **kwargs)
        if call is not None:
            # a ReLU's output does not show how far below 0 its dead units are, so a pool needs the ReLU's layer name
            rectified = call.activation.flat and call.kinks[:1] == (0.0,)
            self._rectified = (weakref.ref(out), call.layer) if rectified else None
        elif self._on_pool is not None and func in MAX_POOLS:
            self._on_pool(self._make_pool_call(MAX_POOLS[func], out, args, kwargs))
        return out

    def _check_call(self, func: Any, args: Any, kwargs: Any) -> Call | None:
        """Report a counted call, and raise if a call cannot be counted."""
        if func in ACTIVATIONS or func in PAIRS:
            return self._report_activation(func, args, kwargs)
        if func in REFUSED:
            counted = sorted({a.name for a in (*ACTIVATIONS.values(), *PAIRS.values())})
            raise ModelContractError(
                f"the model calls `{REFUSED[func]}` in {self._path.layer_name(REFUSED[func])!r}, which has no counting "
                f"rule. Counted: {', '.join(counted)}. Use one of those"
            )
        if func is F.multi_head_attention_forward:
            query = args[0] if args else kwargs["query"]
            sizes = query.shape[1:2] if query.dim() == 3 else (1,)
            self._check_batch(sizes, "attention", self._path.layer_name("attention"), "second", query)
        return None

    def _report_activation(self, func: Any, args: Any, kwargs: Any) -> Call | None:
        if func in PAIRS:
            activation = PAIRS[func]
            z, kinks = _subtract_pair(*args, **kwargs), activation.kinks()
        else:
            activation = ACTIVATIONS[func]
            z = args[0] if args else kwargs["input"]
            options = {name: value for name, value in kwargs.items() if name not in ("input", "out")}
            kinks = activation.kinks(z, *args[1:], **options)
        if z is None or not (z.is_floating_point() or z.is_complex()):
            return None  # indices and masks have no slope
        layer = _number_layers(self._call_counts, self._path.layer_name(activation.name))
        if not z.is_floating_point():
            raise ModelContractError(
                f"{activation.name} in {layer!r} is called on complex numbers, which have no sign; measure a model "
                "that processes real and imaginary parts separately"
            )
        self._check_batch(z.shape, activation.name, layer, "first", z)
        call = Call(layer, activation, z, kinks)
        self._on_call(call)
        return call

    def _make_pool_call(self, pool: Pool, out: Any, args: Any, kwargs: Any) -> PoolCall:
        z = args[0] if args else kwargs["input"]
        layer = _number_layers(self._pool_counts, self._path.layer_name(pool.name))
        self._check_batch(z.shape[: z.dim() - pool.spatial], pool.name, layer, "first", z)
        options = {name: value for name, value in kwargs.items() if name != "input"}
        arguments = None if pool.adaptive else normalise_pool_arguments(z, *args[1:], spatial=pool.spatial, **options)
        producer, source = self._rectified or (lambda: None, None)
        pooled = out[0] if isinstance(out, tuple) else out
        return PoolCall(layer, pool, z, pooled, arguments, source if producer() is z else None)

    def _check_batch(self, sizes: Iterable[int], name: str, layer: str, which: str, z: Tensor) -> None:
        if self._batch is not None and tuple(sizes)[:1] != (self._batch,):
            raise ModelContractError(
                f"the input of {name} in {layer!r} must have the batch ({self._batch}) as its {which} dimension, so "
                f"that units are distinguished from images and no image affects another; got shape {tuple(z.shape)}"
                + (". Attention needs batch_first=True if images come first" if which == "second" else "")
            )


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
        batch: number of images, checked to be the first dimension of every reported input; None: not checked.

    Raises:
        ModelContractError: the model calls a nonlinearity without a counting rule, or the batch dimension is not
            first.
    """
    path = ModulePath(model)
    with path.track(), _Interception(model, path, on_call, on_pool, batch):
        yield
