"""Compute the receptive field of a net by tracking convolutions, pools and adds during a forward pass."""

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
"""Functions that slide a window over an image -> names of their leading arguments."""


class Window(NamedTuple):
    """A sliding window, in pixels of its input: (height, width) each."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]


class Field(NamedTuple):
    """Receptive field of a feature map: `size` input pixels per position, `jump` input pixels between neighbours.

    (height, width) each.
    """

    size: tuple[int, int] = (1, 1)
    jump: tuple[int, int] = (1, 1)

    def through(self, window: Window) -> Field:
        """Return the field of the output of `window` on this feature map."""
        high, wide = (
            self.size[axis] + (window.kernel[axis] - 1) * window.dilation[axis] * self.jump[axis] for axis in (0, 1)
        )
        down, along = (self.jump[axis] * window.stride[axis] for axis in (0, 1))
        return Field((high, wide), (down, along))


class FieldTracker(TorchFunctionMode):
    """Track, within this block, the receptive field of every feature map computed from `pixels`.

    A window enlarges the field of its input. A call that pads, or that keeps height and width (activation,
    normalisation, add, concatenation), takes the largest field among its inputs, so of two branches the larger one
    counts. A call that changes height or width in another way (global pooling, flattening, permuting, resizing,
    slicing) is not followed.

    Args:
        pixels: (N, C, H, W) input of the following forward pass.
    """

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self._fields = WeakTensorKeyDictionary()
        self._fields[pixels] = Field()
        self._largest: int | None = None
        self._lost = False

    @property
    def largest(self) -> int | None:
        """Side, in pixels, of the largest field of any convolution's output so far.

        None before the first one, and if a convolution wider than 1x1 had an input that could not be followed.
        """
        return None if self._lost else self._largest

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tracked = [tensor for tensor in _iter_tensors((args, kwargs)) if tensor in self._fields]
        # Look up before the call: an in-place call may change its input's shape.
        fields = [(tuple(tensor.shape[-2:]), self._fields[tensor]) for tensor in tracked]
        result = func(*args, **kwargs)
        if not fields:
            # 1x1 convolutions after a global pool are squeeze-and-excitation gates, which do not enlarge the field.
            self._lost = self._lost or (func is torch.conv2d and max(_read_window(func, args, kwargs).kernel) > 1)
        elif func in SLIDING:
            self._apply_window(func, args, kwargs, fields[0][1], result)
        else:
            for output in _iter_tensors(result):
                self._propagate(func, fields, output)
        return result

    def _apply_window(self, func: Any, args: Any, kwargs: Any, field: Field, result: Any) -> None:
        through = field.through(_read_window(func, args, kwargs))
        self._fields[next(_iter_tensors(result))] = through
        if func is torch.conv2d:
            self._largest = max(self._largest or 0, *through.size)

    def _propagate(self, func: Any, fields: list[tuple[tuple[int, ...], Field]], output: Tensor) -> None:
        candidates = [field for side, field in fields if side == tuple(output.shape[-2:]) or func is F.pad]
        if candidates and output.dim() >= 3:
            self._fields[output] = max(candidates)
        else:
            self._fields.pop(output, None)


def _read_window(func: Any, args: Any, kwargs: Any) -> Window:
    arguments = dict(zip(SLIDING[func], args, strict=False)) | kwargs
    is_conv = func is torch.conv2d
    kernel = _to_pair(arguments["weight"].shape[-2:] if is_conv else arguments["kernel_size"])
    # The default stride is the kernel size for a pool, 1 for a convolution.
    stride = _to_pair(arguments.get("stride") or ((1, 1) if is_conv else kernel))
    return Window(kernel, stride, _to_pair(arguments.get("dilation", 1)))


def _to_pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _iter_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iter_tensors(item)
    elif isinstance(value, dict):
        yield from _iter_tensors(list(value.values()))
