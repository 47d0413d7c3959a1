"""Profile a net: parameters, multiply-adds, receptive field and counted units, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from grokkit import units
from grokkit.device.model_check import call_model
from grokkit.device.preserved_state import device_of, dtype_of, preserved_state
from grokkit.errors import ModelContractError, NumericsError, UsageError
from grokkit.models.receptive_field import FieldTracker
from grokkit.spline.call_recorder import record_once
from grokkit.spline.complexity import local_complexity
from grokkit.spline.measurement_mode import measurement_mode
from grokkit.spline.record_tape import BATCHES
from grokkit.spline.uncounted import list_uncounted

_RADIUS = 1e-3
"""Radius at which local complexity is tried; neither its units nor its refusal depend on it."""
_NAMED_AT_MOST = 3
"""Uncounted calls that a printed profile lists."""


@dataclass(frozen=True)
class LayerProfile:
    """Profile of one call of one module.

    Args:
        name: path of the module; `#2` marks its second call, which does not count the parameters again.
        kind: name of its class.
        output_shape: shape of its output for one image, without the batch axis; empty if the output is not a tensor.
        parameters: number of its own parameters, without those of its children.
        macs: multiply-adds for one image, without those of its children.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """Profile of a net, as returned by `profile`.

    Args:
        input_shape: shape of one image.
        parameters: total number of parameter values, shared ones once.
        macs: multiply-adds of one forward pass of one image, in convolutions and matrix products, those of attention
            included; biases, activations and normalisation are not counted.
        receptive_field: side, in pixels, of the receptive field of the last convolution's output, the largest if
            branches differ; it may exceed the image. None without a 2-D convolution, or if the input of one cannot be
            followed by `FieldTracker`. Global pooling and linear layers see the whole image and are not included.
        counted_units: activation layer -> kinks that local complexity can count in it (one per ReLU unit, two per
            ReLU6 unit), of all members of an ensemble under `torch.vmap`; empty if `refused` is set.
        layers: modules that compute something, in call order; one that the forward pass never calls (an auxiliary
            head in eval mode) is not included, but its parameters are in `parameters`.
        uncounted, counted_share: as in `grokkit.spline.results.LocalComplexity`; empty and 0 if `refused` is set.
        refused: reason for which `local_complexity` refuses the net; empty if it measures it.
    """

    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int | None
    counted_units: dict[str, int]
    layers: tuple[LayerProfile, ...]
    uncounted: tuple[str, ...] = ()
    counted_share: float = 1.0
    refused: str = ""

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-add."""
        return 2 * self.macs

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one dict per layer call with `layer`, `kind`, `output`, `parameters`, `macs`."""
        return [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "output": "x".join(map(str, layer.output_shape)),
                "parameters": layer.parameters,
                "macs": layer.macs,
            }
            for layer in self.layers
        ]

    def __str__(self) -> str:
        return "\n".join([*_format_table(self.to_rows()), "", *self._format_summary()])

    def _format_summary(self) -> list[str]:
        field = (
            "none (no 2-D convolution, or not traceable)"
            if self.receptive_field is None
            else f"{self.receptive_field} pixels"
        )
        return [
            f"input            {'x'.join(map(str, self.input_shape))}",
            f"parameters       {self.parameters:,}",
            f"forward pass     {self.macs:,} MAC = {self.flops:,} FLOP per image",
            f"receptive field  {field}",
            f"counted units    {self._format_units()}",
        ]

    def _format_units(self) -> str:
        if self.refused:
            return f"not counted: {self.refused}"
        count = f"{sum(self.counted_units.values()):,} in {len(self.counted_units)} layers"
        if not self.uncounted:
            return count
        names, more = ", ".join(self.uncounted[:_NAMED_AT_MOST]), len(self.uncounted) - _NAMED_AT_MOST
        rest = f" and {more} more" if more > 0 else ""
        return f"{count}, {self.counted_share:.1%} of the nonlinear values; not counted: {names}{rest}"


def _count_recurrent_flops(steps: Any, weight: Any, hidden_weight: Any, *_: Any, **__: Any) -> int:
    """Return the floating-point operations of a recurrent layer from the shapes of its arguments."""
    return 2 * int(math.prod(steps[:-1]) * (math.prod(weight) + math.prod(hidden_weight)))


_UNSEEN_FLOPS = {torch.ops.aten.mkldnn_rnn_layer: _count_recurrent_flops}
"""Fused kernels of the CPU for which the counter has no formula."""


class ForwardCost(NamedTuple):
    """What one forward pass of one image computes; the fields are those of `Profile`."""

    macs: int
    receptive_field: int | None
    layers: tuple[LayerProfile, ...]


def profile(model: nn.Module, input_shape: tuple[int, ...]) -> Profile:
    """Profile `model` on images of one shape; the model's state is preserved.

    Parameters, multiply-adds and receptive field follow from the shapes of a pass of one image of zeros. The units are
    those of `local_complexity`, tried on two random images, so the profile says what it counts, what it does not, and
    why it refuses a net. The meta device needs no arithmetic and holds no values: there the calls are counted and
    named by their kind, but it is not checked that an output depends on its own image alone.

    Args:
        model: any module, on any device.
        input_shape: shape of one image, (C, H, W) for a convolutional net.

    Returns:
        A `Profile`; `str()` formats it as a table.

    Raises:
        ModelContractError: as `check_model`, or the forward pass fails.

    Cost: forward passes of about 14 images in eval mode; no arithmetic on the meta device.
    """
    with preserved_state(model, allow_meta=True) as inner, torch.no_grad():
        cost = measure_cost(inner, input_shape)
        counts = _count_units(inner, input_shape)
        return Profile(
            input_shape=tuple(input_shape),
            parameters=sum(parameter.numel() for parameter in inner.parameters()),
            **cost._asdict(),
            **counts._asdict(),
        )


def measure_cost(model: nn.Module, input_shape: tuple[int, ...]) -> ForwardCost:
    """Run `model` on one image of zeros and return its multiply-adds, receptive field and layers.

    Args:
        model: any module, on any device; its state is preserved.
        input_shape: shape of one image.

    Raises:
        ModelContractError: as `check_model`, or the forward pass fails.

    Cost: one forward pass in eval mode.
    """
    with preserved_state(model, allow_meta=True) as inner, torch.no_grad():
        image = torch.zeros(1, *input_shape, dtype=dtype_of(inner), device=device_of(inner))
        tracker, flops = FieldTracker(image), FlopCounterMode(display=False, custom_mapping=_UNSEEN_FLOPS)
        flops.mod_tracker = _NoModules()
        # on the CPU the counter does not see fused attention
        with sdpa_kernel(SDPBackend.MATH), flops, _LayerRecorder(inner, flops).record() as layers, tracker:
            call_model(inner, image)
    return ForwardCost(flops.get_total_flops() // 2, tracker.largest, tuple(layers))


class _NoModules(ModuleTracker):
    """Stand-in for the counter's own tracker of modules, which needs the graph of parameters that enter a module."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _UnitCounts(NamedTuple):
    """What local complexity counts in a net; the fields are those of `Profile`."""

    counted_units: dict[str, int]
    uncounted: tuple[str, ...]
    counted_share: float
    refused: str = ""


def _count_units(model: nn.Module, input_shape: tuple[int, ...]) -> _UnitCounts:
    device = device_of(model)
    batch = torch.rand(BATCHES[0], *input_shape, dtype=dtype_of(model), generator=torch.Generator().manual_seed(0))
    try:
        if device.type == "meta":
            return _count_without_values(model, batch.to(device))
        found = local_complexity(model, batch, _RADIUS, directions=1)
    except (ModelContractError, NumericsError, UsageError) as error:
        return _UnitCounts({}, (), 0.0, str(error))
    return _UnitCounts(found.units, found.uncounted, found.counted_share)


def _count_without_values(model: nn.Module, batch: Tensor) -> _UnitCounts:
    counted: dict[str, int] = {}

    def count(call: units.Call) -> None:
        counted[call.layer] = call.z.numel() // len(batch) * len(call.kinks)

    with measurement_mode(model, allow_meta=True) as inner:
        uncounted = list_uncounted(record_once(inner, batch)).require_counted()
        with units.intercept(inner, count, batch=len(batch)):
            inner(batch)
    return _UnitCounts(counted, uncounted.layers, uncounted.counted_share)


class _LayerRecorder:
    """Record each module call, with its multiply-adds as the difference of the FLOP counter."""

    def __init__(self, model: nn.Module, flops: FlopCounterMode) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._flops = flops
        self._calls: Counter[str] = Counter()
        self._known_parameters: set[int] = set()
        self._stack: list[list[int]] = []  # per running module: FLOPs at its start, FLOPs of its children
        self._profiles: list[LayerProfile] = []

    @contextmanager
    def record(self) -> Iterator[list[LayerProfile]]:
        handles = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)]
        try:
            yield self._profiles
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        if id(module) in self._names:
            self._stack.append([self._flops.get_total_flops(), 0])

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if id(module) not in self._names:
            return
        start, child_flops = self._stack.pop()
        flops = self._flops.get_total_flops() - start
        if self._stack:
            self._stack[-1][1] += flops
        parameters = list(module.parameters(recurse=False))
        is_leaf = next(module.children(), None) is None
        if is_leaf or parameters or flops > child_flops:
            self._add(module, parameters, (flops - child_flops) // 2, output)

    def _add(self, module: nn.Module, parameters: list[nn.Parameter], macs: int, output: Any) -> None:
        name = self._names[id(module)] or "(root)"
        self._calls[name] += 1
        shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
        stacked = [units.unwrap_vmapped(parameter) for parameter in parameters]
        new = [parameter for parameter in stacked if id(parameter) not in self._known_parameters]
        self._known_parameters.update(map(id, new))
        self._profiles.append(
            LayerProfile(
                name=name if self._calls[name] == 1 else f"{name}#{self._calls[name]}",
                kind=type(module).__name__,
                output_shape=shape,
                parameters=sum(parameter.numel() for parameter in new),
                macs=macs,
            )
        )


def _format_table(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [list(rows[0])] + [
        [f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at >= 3 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
