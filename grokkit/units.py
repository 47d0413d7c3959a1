"""Interception of activation and max-pool calls, in call order, in any unmodified module, also re-used and in place.

Published code puts hooks on named layers and so misses functional calls, keeps only the last call of a re-used
module and reads values that an in-place activation has already overwritten. A `TorchFunctionMode` sees every
call before it happens; the module tree is only watched for names.
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
        name: as it is called in torch.
        kinks: from the arguments of the call, the values of its pre-activation at which the slope jumps.
        zone: for a smooth activation, half the width of the zone around 0 in which it is curved upwards: the sign of
            its pre-activation is a proxy. None where the kinks are real.
        flat: constant below its first kink, so that its output has forgotten how far below that the input was.
    """

    name: str
    kinks: Callable[..., tuple[float, ...]]
    zone: float | None = None
    flat: bool = False

    @property
    def exact(self) -> bool:
        """Whether each kink is a real jump of the slope. Between its kinks only hardswish is not a straight line."""
        return self.zone is None


class Call(NamedTuple):
    """One activation call, seen before it happens.

    Args:
        layer: module path plus, for a functional call, the activation's name; `#2` marks the second call.
        activation: what is called.
        z: pre-activations of shape (batch, ...); the difference of the two for a maximum or minimum of two tensors.
        kinks: input values at which the slope jumps.
    """

    layer: str
    activation: Activation
    z: Tensor
    kinks: tuple[float, ...]


class Pool(NamedTuple):
    """One kind of max-pooling: its name, how many trailing dimensions it pools, and whether its argument is the size
    of its output (`adaptive`) rather than of its windows."""

    name: str
    spatial: int
    adaptive: bool


class PoolCall(NamedTuple):
    """One max-pool call, seen after it happened (it overwrites nothing).

    Args:
        layer: named as an activation call, and numbered apart from those.
        pool: what is called.
        z: its input, (batch, ..., *spatial).
        pooled: its output, the maximum of each window.
        arguments: the rest of the call as (kernel, stride, padding, dilation), each with one int per spatial
            dimension; None for adaptive pooling, whose windows follow from the two shapes.
        source: the layer of the activation that made `z`, where that one is flat below 0 and nothing lies between.
    """

    layer: str
    pool: Pool
    z: Tensor
    pooled: Tensor
    arguments: tuple[tuple[int, ...], ...] | None
    source: str | None


def _at_zero(*_: Any, **__: Any) -> tuple[float, ...]:
    return (0.0,)


def _hardtanh_kinks(_: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> tuple[float, ...]:
    return (float(min_val), float(max_val))


def _clamp_kinks(_: Tensor, min: Any = None, max: Any = None) -> tuple[float, ...]:
    if any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in (min, max)):
        raise ModelContractError("the model clamps by a tensor of bounds, which has no counting rule; clamp by numbers")
    return tuple(float(bound) for bound in (min, max) if bound is not None)


def _clamp_max_kinks(_: Tensor, max: Any) -> tuple[float, ...]:
    return _clamp_kinks(_, None, max)


GELU_ZONE = math.sqrt(2.0)
"""Where the second derivative of GELU, (2 - x^2) times the normal density, changes sign."""
SILU_ZONE = 2.3993572805154677
"""Where the second derivative of SiLU changes sign: the root of x tanh(x / 2) = 2."""

RELU = Activation("relu", _at_zero, flat=True)
LEAKY_RELU = Activation("leaky_relu", _at_zero)
RELU6 = Activation("relu6", lambda *_, **__: (0.0, 6.0), flat=True)
HARDTANH = Activation("hardtanh", _hardtanh_kinks, flat=True)
HARDSWISH = Activation("hardswish", lambda *_, **__: (-3.0, 3.0))
CLAMP = Activation("clamp", _clamp_kinks, flat=True)
CLAMP_MAX = Activation("clamp", _clamp_max_kinks)
ABS = Activation("abs", _at_zero)
GELU = Activation("gelu", _at_zero, zone=GELU_ZONE)
SILU = Activation("silu", _at_zero, zone=SILU_ZONE)
MAXIMUM, MINIMUM = (Activation(name, _at_zero) for name in ("maximum", "minimum"))

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
"""Every counted call of one tensor. What is in no table here and not linear is found by `spline/uncounted.py`."""

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
"""Counted where they take two tensors; `max` and `min` of one tensor are other operations under the same name."""


def _max_pools() -> Iterator[tuple[Callable[..., Any], Pool]]:
    for adaptive in (False, True):
        for spatial in (1, 2, 3):
            name = f"{'adaptive_' * adaptive}max_pool{spatial}d"
            for owner in (F, torch):
                for function in (name, f"{name}_with_indices"):
                    if hasattr(owner, function):
                        yield getattr(owner, function), Pool(name, spatial, adaptive)


MAX_POOLS: dict[Callable[..., Any], Pool] = dict(_max_pools())

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
"""Nonlinear calls that have no counting rule: a number that left them out would look complete and not be."""


def _pair(input: Any, other: Any = None, *_: Any, **__: Any) -> Any:
    """The difference whose sign decides which of two tensors goes on; None for `max` and `min` of one tensor."""
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
    """The windows of a max-pool call as in `PoolCall`, from the call's own arguments."""

    def each(value: Any) -> tuple[int, ...]:
        return tuple(value) * (spatial // len(value)) if isinstance(value, tuple | list) else (value,) * spatial

    kernel = each(kernel_size)
    # without a stride, or with torch's own empty one, a window begins where the last has ended
    return kernel, each(stride) if stride else kernel, each(padding), each(dilation)


class _Constants:
    """What certainly does not depend on the images: parameters, buffers, and what is computed of these alone.

    A call on such values (a clamped temperature, the absolute value of a weight, a net that makes a bias from a
    table of positions) bends nothing in input space: it is no unit, whatever its shape.
    """

    def __init__(self, model: nn.Module) -> None:
        self._known: dict[int, tuple[Tensor, int]] = {}
        for buffer in model.buffers():
            self.add(buffer)

    def add(self, tree: Any) -> None:
        for tensor in _tensors((tree,)):
            if not tensor.is_inference():
                self._known[id(tensor)] = (tensor, tensor._version)  # kept alive, so that its id stays its own

    def hold(self, *trees: Any) -> bool:
        """Whether these arguments have tensors, and none but constant ones that nothing has been written into."""
        found = False
        for tensor in _tensors(trees):
            if type(tensor) is not nn.Parameter:
                known = self._known.get(id(tensor))
                if known is None or known[1] != tensor._version:
                    return False
            found = True
        return found


def _tensors(trees: Iterable[Any]) -> Iterator[Tensor]:
    for tree in trees:
        if isinstance(tree, Tensor):
            yield tree
        elif isinstance(tree, tuple | list):
            yield from _tensors(tree)
        elif isinstance(tree, dict):
            yield from _tensors(tree.values())


class ModulePath:
    """Knows which named module is running, through hooks that are global and borrowed, never the model's own."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[nn.Module] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
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

    def layer(self, function: str) -> str:
        """Name for a call of `function` made now: the path of an activation module, else path plus function."""
        if not self._stack:
            return function
        module = self._stack[-1]
        path = self._names[id(module)]
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
        self._seen: Counter[str] = Counter()
        self._pools: Counter[str] = Counter()
        self._rectified: tuple[weakref.ref[Tensor], str] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._constants.hold(args, kwargs):
            out = func(*args, **kwargs)
            self._constants.add(out)
            return out
        call = self._before(func, args, kwargs)
        out = func(*args, **kwargs)
        if call is not None:
            # the output of a ReLU no longer says how far from life its dead units are, so its name goes along
            rectified = call.activation.flat and call.kinks[:1] == (0.0,)
            self._rectified = (weakref.ref(out), call.layer) if rectified else None
        elif self._on_pool is not None and func in MAX_POOLS:
            self._on_pool(self._pool_call(MAX_POOLS[func], out, args, kwargs))
        return out

    def _before(self, func: Any, args: Any, kwargs: Any) -> Call | None:
        """Report a counted call, and refuse what cannot be counted."""
        if func in ACTIVATIONS or func in PAIRS:
            return self._activation_call(func, args, kwargs)
        if func in REFUSED:
            counted = sorted({a.name for a in (*ACTIVATIONS.values(), *PAIRS.values())})
            raise ModelContractError(
                f"the model calls `{REFUSED[func]}` in {self._path.layer(REFUSED[func])!r}, which has no counting "
                f"rule. Counted: {', '.join(counted)}. Use one of those"
            )
        if func is F.multi_head_attention_forward:
            query = args[0] if args else kwargs["query"]
            sizes = query.shape[1:2] if query.dim() == 3 else (1,)
            self._check_batch(sizes, "attention", self._path.layer("attention"), "second", query)
        return None

    def _activation_call(self, func: Any, args: Any, kwargs: Any) -> Call | None:
        if func in PAIRS:
            activation = PAIRS[func]
            z, kinks = _pair(*args, **kwargs), activation.kinks()
        else:
            activation = ACTIVATIONS[func]
            z = args[0] if args else kwargs["input"]
            rest = {name: value for name, value in kwargs.items() if name not in ("input", "out")}
            kinks = activation.kinks(z, *args[1:], **rest)
        if z is None or not (z.is_floating_point() or z.is_complex()):
            return None  # indices and masks have no slope
        layer = _number_layers(self._seen, self._path.layer(activation.name))
        if not z.is_floating_point():
            raise ModelContractError(
                f"{activation.name} in {layer!r} is called on complex numbers, which have no sign; measure a model "
                "that takes real and imaginary parts apart"
            )
        self._check_batch(z.shape, activation.name, layer, "first", z)
        call = Call(layer, activation, z, kinks)
        self._on_call(call)
        return call

    def _pool_call(self, pool: Pool, out: Any, args: Any, kwargs: Any) -> PoolCall:
        z = args[0] if args else kwargs["input"]
        layer = _number_layers(self._pools, self._path.layer(pool.name))
        self._check_batch(z.shape[: z.dim() - pool.spatial], pool.name, layer, "first", z)
        rest = {name: value for name, value in kwargs.items() if name != "input"}
        arguments = None if pool.adaptive else normalise_pool_arguments(z, *args[1:], spatial=pool.spatial, **rest)
        made, source = self._rectified or (lambda: None, None)
        pooled = out[0] if isinstance(out, tuple) else out
        return PoolCall(layer, pool, z, pooled, arguments, source if made() is z else None)

    def _check_batch(self, sizes: Iterable[int], name: str, layer: str, which: str, z: Tensor) -> None:
        if self._batch is not None and tuple(sizes)[:1] != (self._batch,):
            raise ModelContractError(
                f"the input of {name} in {layer!r} must have the batch ({self._batch}) as its {which} dimension, so "
                f"that units can be told from images and no image sees another; got shape {tuple(z.shape)}"
                + (". Attention needs batch_first=True where images come first" if which == "second" else "")
            )


def _number_layers(seen: Counter[str], base: str) -> str:
    seen[base] += 1
    return base if seen[base] == 1 else f"{base}#{seen[base]}"


@contextmanager
def intercept(
    model: nn.Module,
    on_call: Callable[[Call], None],
    on_pool: Callable[[PoolCall], None] | None = None,
    batch: int | None = None,
) -> Iterator[None]:
    """Within the block, `on_call` sees every counted activation call of one forward pass of `model`, in order.

    Enter the block once per forward pass: the names count calls from its start. Nothing is added to the model. Calls
    on parameters and buffers alone are passed over, and so are calls on integers.

    Args:
        model: any module.
        on_call: is given each activation call before it happens.
        on_pool: is given each max-pool call after it happened.
        batch: number of images; whatever is reported must have it in front.

    Raises:
        ModelContractError: the model calls a nonlinearity that has no counting rule, or the batch is elsewhere.
    """
    path = ModulePath(model)
    with path.watched(), _Interception(model, path, on_call, on_pool, batch):
        yield
