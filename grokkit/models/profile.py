"""What a net costs and sees: parameters, multiply-adds, receptive field and counted units, layer by layer."""

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
    """One call of one module.

    Args:
        name: path of the module; `#2` marks its second call, whose parameters are not counted again.
        kind: name of its class.
        output_shape: shape of what it returns for one image, without the batch axis; empty if that is no tensor.
        parameters: its own ones, without those of its children.
        macs: multiply-adds for one image, without those of its children.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """What `profile` returns.

    Args:
        input_shape: shape of one image.
        parameters: numbers in all parameters, shared ones once.
        macs: multiply-adds of one forward pass of one image, in convolutions and matrix products; a bias, an
            activation or a normalisation counts nothing.
        receptive_field: side, in pixels, of the square that one position of the last convolution's output sees,
            the largest where branches differ; it may be larger than the image. None without a 2-D convolution, or
            where one is fed by what `FieldTracker` cannot follow. Global pooling and linear layers see the whole
            image and are not part of it.
        counted_units: activation layer -> kinks that a local complexity can count in it (one per ReLU unit, two
            per ReLU6 unit); empty where `refused` says why.
        layers: modules that compute something, in call order; one that the forward pass never calls (an auxiliary
            head in eval mode) is not among them, but its parameters are in `parameters`.
        refused: why the units were not counted; empty where they were.
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
        """Two per multiply-add: one multiplication, one addition."""
        return 2 * self.macs

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict per layer call with `layer`, `kind`, `output`, `parameters`, `macs`."""
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
        return "\n".join([*_format_table(self.to_rows()), "", *self._summary()])

    def _summary(self) -> list[str]:
        field = (
            "none (no 2-D convolution, or not to be followed)"
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
    """Run `model` on one empty image and report what it costs and sees; the model is left as it was.

    Args:
        model: any module, on any device; one on the meta device costs no arithmetic.
        input_shape: shape of one image, (C, H, W) for a convolutional net.

    Returns:
        A `Profile`; `str()` of it is a table.

    Cost: two forward passes in eval mode with a batch of one.
    """
    with preserved_state(model) as inner, torch.no_grad():
        image = torch.zeros(1, *input_shape, dtype=dtype_of(inner), device=device_of(inner))
        follow = FieldTracker(image)
        with FlopCounterMode(display=False) as flops, _Layers(inner, flops).watched() as layers, follow:
            inner(image)
        counted, refused = _count_units(inner, torch.zeros_like(image))
        return Profile(
            input_shape=tuple(input_shape),
            parameters=sum(parameter.numel() for parameter in inner.parameters()),
            macs=flops.get_total_flops() // 2,
            receptive_field=follow.largest,
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


class _Layers:
    """Notes each module call, with its multiply-adds as the difference that the counter makes."""

    def __init__(self, model: nn.Module, flops: FlopCounterMode) -> None:
        self._names = {id(module): name for name, module in model.named_modules()}
        self._flops = flops
        self._calls: Counter[str] = Counter()
        self._known_parameters: set[int] = set()
        self._stack: list[list[int]] = []  # per running module: FLOPs at its start, FLOPs of its children
        self._noted: list[LayerProfile] = []

    @contextmanager
    def watched(self) -> Iterator[list[LayerProfile]]:
        handles = [register_module_forward_pre_hook(self._enter), register_module_forward_hook(self._leave)]
        try:
            yield self._noted
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        if id(module) in self._names:
            self._stack.append([self._flops.get_total_flops(), 0])

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if id(module) not in self._names:
            return
        start, of_children = self._stack.pop()
        spent = self._flops.get_total_flops() - start
        if self._stack:
            self._stack[-1][1] += spent
        own = list(module.parameters(recurse=False))
        is_leaf = next(module.children(), None) is None
        if is_leaf or own or spent > of_children:
            self._note(module, own, (spent - of_children) // 2, output)

    def _note(self, module: nn.Module, own: list[nn.Parameter], macs: int, output: Any) -> None:
        name = self._names[id(module)] or "(root)"
        self._calls[name] += 1
        shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else ()
        new = [parameter for parameter in own if id(parameter) not in self._known_parameters]
        self._known_parameters.update(map(id, new))
        self._noted.append(
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
