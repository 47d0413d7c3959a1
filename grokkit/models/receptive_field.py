"""The receptive field of a net, followed through convolutions, pools and adds while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation")
_AVG_POOL = ("input", "kernel_size", "stride")
SLIDING: dict[Callable[..., Any], tuple[str, ...]] = {
    torch.conv2d: _CONV,
    torch.max_pool2d: _MAX_POOL,
    F.max_pool2d: _MAX_POOL,
    F.max_pool2d_with_indices: _MAX_POOL,
    F.avg_pool2d: _AVG_POOL,
}
"""Calls that slide a window over an image -> names of their leading arguments."""


class Window(NamedTuple):
    """What slides over an image, in pixels of that image: (height, width) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]


class Field(NamedTuple):
    """What one position of a feature map sees: `size` pixels of the input; its neighbour sees them `jump`
    further.

    (height, width) each.
    """

    size: tuple[int, int] = (1, 1)
    jump: tuple[int, int] = (1, 1)

    def behind(self, window: Window) -> Field:
        """The field of what `window` makes of this feature map."""
        high, wide = (
            self.size[axis] + (window.kernel[axis] - 1) * window.dilation[axis] * self.jump[axis] for axis in (0, 1)
        )
        down, along = (self.jump[axis] * window.stride[axis] for axis in (0, 1))
        return Field((high, wide), (down, along))


class FieldTracker(TorchFunctionMode):
    """Within this block, knows the field of every feature map that comes from `pixels`.

    A window enlarges the field of its input. A call that pads, or that keeps height and width (activation,
    normalisation, add, concatenation), takes the largest field among its inputs, so of two branches the larger one
    counts. A call that changes height or width in another way (global pooling, flattening, permuting, resizing,
    slicing) is not followed.

    Args:
        pixels: (N, C, H, W) input that the net is going to be given.
    """

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self._fields = WeakTensorKeyDictionary()
        self._fields[pixels] = Field()
        self._largest: int | None = None
        self._lost = False

    @property
    def largest(self) -> int | None:
        """Side, in pixels, of the largest field of any convolution's output so far; None before the first one,
        and where a convolution wider than 1x1 had an input that could not be followed."""
        return None if self._lost else self._largest

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [tensor for tensor in _tensors((args, kwargs)) if tensor in self._fields]
        # Looked up before the call: an in-place one may change its input's shape.
        fields = [(tuple(tensor.shape[-2:]), self._fields[tensor]) for tensor in known]
        result = func(*args, **kwargs)
        if not fields:
            # 1x1 convolutions behind a global pool are the gates of squeeze-and-excitation: they widen nothing.
            self._lost = self._lost or (func is torch.conv2d and max(_window(func, args, kwargs).kernel) > 1)
        elif func in SLIDING:
            self._slide(func, args, kwargs, fields[0][1], result)
        else:
            for output in _tensors(result):
                self._pass_on(func, fields, output)
        return result

    def _slide(self, func: Any, args: Any, kwargs: Any, field: Field, result: Any) -> None:
        behind = field.behind(_window(func, args, kwargs))
        self._fields[next(_tensors(result))] = behind
        if func is torch.conv2d:
            self._largest = max(self._largest or 0, *behind.size)

    def _pass_on(self, func: Any, fields: list[tuple[tuple[int, ...], Field]], output: Tensor) -> None:
        same = [field for side, field in fields if side == tuple(output.shape[-2:]) or func is F.pad]
        if same and output.dim() >= 3:
            self._fields[output] = max(same)
        else:
            self._fields.pop(output, None)


def _window(func: Any, args: Any, kwargs: Any) -> Window:
    given = dict(zip(SLIDING[func], args, strict=False)) | kwargs
    is_conv = func is torch.conv2d
    kernel = _pair(given["weight"].shape[-2:] if is_conv else given["kernel_size"])
    # A pool without a stride moves by its kernel, a convolution by one pixel.
    stride = _pair(given.get("stride") or ((1, 1) if is_conv else kernel))
    return Window(kernel, stride, _pair(given.get("dilation", 1)))


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
