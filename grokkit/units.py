"""Interception of activation calls, in call order, in any unmodified module: functional, re-used or in place.

Published code puts hooks on named layers and so misses functional calls, keeps only the last call of a re-used
module and reads values that an in-place activation has already overwritten. A `TorchFunctionMode` sees every
call before it happens; the module tree is only watched for names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from grokkit.errors import ModelContractError


class Activation(NamedTuple):
    """One kind of activation: its name, the input values at which its slope jumps, and whether it is piecewise
    linear (`exact`); for a smooth one the sign of its input is a proxy."""

    name: str
    kinks: Callable[..., tuple[float, ...]]
    exact: bool = True


class Call(NamedTuple):
    """One activation call, seen before it happens.

    Args:
        layer: module path plus, for a functional call, the activation's name; `#2` marks the second call.
        activation: what is called.
        z: pre-activations of shape (batch, ...).
        kinks: input values at which the slope jumps.
    """

    layer: str
    activation: Activation
    z: Tensor
    kinks: tuple[float, ...]


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


RELU = Activation("relu", _at_zero)
LEAKY_RELU = Activation("leaky_relu", _at_zero)
RELU6 = Activation("relu6", lambda *_, **__: (0.0, 6.0))
HARDTANH = Activation("hardtanh", _hardtanh_kinks)
HARDSWISH = Activation("hardswish", lambda *_, **__: (-3.0, 3.0))
CLAMP = Activation("clamp", _clamp_kinks)
CLAMP_MAX = Activation("clamp", _clamp_max_kinks)
GELU = Activation("gelu", _at_zero, exact=False)
SILU = Activation("silu", _at_zero, exact=False)

ACTIVATIONS: dict[Callable[..., Any], Activation] = {
    F.relu: RELU, F.relu_: RELU, torch.relu: RELU, torch.relu_: RELU, Tensor.relu: RELU, Tensor.relu_: RELU,
    F.leaky_relu: LEAKY_RELU, F.leaky_relu_: LEAKY_RELU, F.prelu: LEAKY_RELU, Tensor.prelu: LEAKY_RELU,
    F.relu6: RELU6, F.hardtanh: HARDTANH, F.hardtanh_: HARDTANH, F.hardswish: HARDSWISH,
    torch.clamp: CLAMP, torch.clip: CLAMP, Tensor.clamp: CLAMP, Tensor.clip: CLAMP, Tensor.clamp_: CLAMP,
    torch.clamp_min: CLAMP, Tensor.clamp_min: CLAMP, Tensor.clamp_min_: CLAMP,
    torch.clamp_max: CLAMP_MAX, Tensor.clamp_max: CLAMP_MAX, Tensor.clamp_max_: CLAMP_MAX,
    F.gelu: GELU, F.silu: SILU,
}  # fmt: skip
"""Every counted call. What is not here and not linear is either max-pooling, or refused (`REFUSED`)."""

REFUSED: dict[Callable[..., Any], str] = {
    F.elu: "elu", F.elu_: "elu", F.selu: "selu", F.celu: "celu", F.mish: "mish", F.softplus: "softplus",
    F.logsigmoid: "logsigmoid", F.softsign: "softsign", F.tanhshrink: "tanhshrink", F.hardsigmoid: "hardsigmoid",
    F.rrelu: "rrelu", F.hardshrink: "hardshrink", F.softshrink: "softshrink", F.threshold: "threshold",
    torch.sigmoid: "sigmoid", torch.tanh: "tanh", Tensor.sigmoid: "sigmoid", Tensor.tanh: "tanh",
    F.sigmoid: "sigmoid", F.tanh: "tanh", Tensor.sigmoid_: "sigmoid", Tensor.tanh_: "tanh",
}  # fmt: skip
"""Nonlinear calls that have no counting rule: a number that left them out would look complete and not be."""


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
    def __init__(self, path: ModulePath, on_call: Callable[[Call], None]) -> None:
        super().__init__()
        self._path = path
        self._on_call = on_call
        self._seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        activation = ACTIVATIONS.get(func)
        if activation is not None:
            z = args[0] if args else kwargs["input"]
            rest = {name: value for name, value in kwargs.items() if name != "input"}
            self._on_call(Call(self._name(activation), activation, z, activation.kinks(z, *args[1:], **rest)))
        elif func in REFUSED:
            raise ModelContractError(
                f"the model calls `{REFUSED[func]}` in {self._path.layer(REFUSED[func])!r}, which has no counting "
                f"rule. Counted: {', '.join(sorted({a.name for a in ACTIVATIONS.values()}))}. Use one of those"
            )
        return func(*args, **kwargs)

    def _name(self, activation: Activation) -> str:
        base = self._path.layer(activation.name)
        self._seen[base] += 1
        return base if self._seen[base] == 1 else f"{base}#{self._seen[base]}"


@contextmanager
def intercept(model: nn.Module, on_call: Callable[[Call], None]) -> Iterator[None]:
    """Within the block, `on_call` sees every counted activation call of one forward pass of `model`, in order.

    Enter the block once per forward pass: the names count calls from its start. Nothing is added to the model.

    Raises:
        ModelContractError: the model calls a nonlinearity that has no counting rule.
    """
    path = ModulePath(model)
    with path.watched(), _Interception(path, on_call):
        yield
