"""Profile a net: parameters, multiply-adds, receptive field and counted units, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

from grokkit import units
from grokkit.device.preserved_state import device_of, dtype_of, preserved_state
from grokkit.errors import ModelContractError
from grokkit.models.receptive_field import FieldTracker


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
        macs: multiply-adds of one forward pass of one image, in convolutions and matrix products; biases,
            activations and normalisation are not counted.
        receptive_field: side, in pixels, of the receptive field of the last convolution's output, the largest if
            branches differ; it may exceed the image. None without a 2-D convolution, or if the input of one cannot be
            followed by `FieldTracker`. Global pooling and linear layers see the whole image and are not included.
        counted_units: activation layer -> kinks that local complexity can count in it (one per ReLU unit, two per
            ReLU6 unit); empty if `refused` is set.
        layers: modules that compute something, in call order; one that the forward pass never calls (an auxiliary
            head in eval mode) is not included, but its parameters are in `parameters`.
        refused: reason why the units were not counted; empty if they were.
    """

    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int | None
    counted_units: dict[str, int]
    layers: tuple[LayerProfile, ...]
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
        count = f"{sum(self.counted_units.values()):,} in {len(self.counted_units)} layers"
        return [
            f"input            {'x'.join(map(str, self.input_shape))}",
            f"parameters       {self.parameters:,}",
            f"forward pass     {self.macs:,} MAC = {self.flops:,} FLOP per image",
            f"receptive field  {field}",
            f"counted units    {f'not counted: {self.refused}' if self.refused else count}",
        ]


def profile(model: nn.Module, input_shape: tuple[int, ...]) -> Profile:
    """Run `model` on one all-zero image and return its profile; the model's state is preserved.

    Args:
        model: any module, on any device; the meta device needs no arithmetic.
        input_shape: shape of one image, (C, H, W) for a convolutional net.

    Returns:
        A `Profile`; `str()` formats it as a table.

    Cost: two forward passes in eval mode with a batch of one.
    """
    with preserved_state(model) as inner, torch.no_grad():
        image = torch.zeros(1, *input_shape, dtype=dtype_of(inner), device=device_of(inner))
        tracker = FieldTracker(image)
        with FlopCounterMode(display=False) as flops, _LayerRecorder(inner, flops).record() as layers, tracker:
            inner(image)
        counted, refused = _count_units(inner, torch.zeros_like(image))
        return Profile(
            input_shape=tuple(input_shape),
            parameters=sum(parameter.numel() for parameter in inner.parameters()),
            macs=flops.get_total_flops() // 2,
            receptive_field=tracker.largest,
            counted_units=counted,
            layers=tuple(layers),
            refused=refused,
        )


def _count_units(model: nn.Module, image: Tensor) -> tuple[dict[str, int], str]:
    counted: dict[str, int] = {}

    def count(call: units.Call) -> None:
        counted[call.layer] = call.z.numel() * len(call.kinks)

    try:
        with units.intercept(model, count):
            model(image)
    except ModelContractError as error:
        return {}, str(error)
    return counted, ""


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
        new = [parameter for parameter in parameters if id(parameter) not in self._known_parameters]
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
