"""Compute the receptive field of a net by tracking convolutions, pools and adds during a forward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from grokkit.operations import Operation, find_operation, get_function_name
from grokkit.units import list_tensors

_SLIDING: dict[str, tuple[str, ...]] = {
    "conv2d": ("input", "weight", "bias", "stride", "padding", "dilation"),
    "max_pool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("input", "kernel_size", "stride"),
}
"""Operations that slide a window over an image -> names of their leading arguments."""
_PADS = frozenset(("pad", "constant_pad_nd", "reflection_pad1d"))
"""Rows of padding."""
_POINTWISE = frozenset(("mul", "div", "batch_norm"))
"""Multilinear rows that keep every value in its place; matrix products mix the values of a line."""
_MIXING = frozenset(
    (
        *("scaled_dot_product_attention", "multi_head_attention_forward", "bilinear", "grid_sample", "cdist"),
        *("cumsum", "cumprod", "cummax", "cummin", "sort", "msort", "flip", "roll", "rot90"),
        *("t", "T", "transpose", "movedim", "take", "gather", "index_select"),
    )
)
"""Rows that mix the places of an image, or move values to others, even if they keep its height and width."""


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
    slicing), a matrix product, attention, and a function without a row in the table of operations are not followed.

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
        tracked = [tensor for tensor in list_tensors((args, kwargs)) if tensor in self._fields]
        # Look up before the call: an in-place call may change its input's shape.
        fields = [(tuple(tensor.shape[-2:]), self._fields[tensor]) for tensor in tracked]
        operation = find_operation(func)
        name = _get_sliding_name(func, operation)
        result = func(*args, **kwargs)
        if not fields:
            # 1x1 convolutions after a global pool are squeeze-and-excitation gates, which do not enlarge the field.
            self._lost = self._lost or (name == "conv2d" and max(_read_window(name, args, kwargs).kernel) > 1)
        elif get_function_name(func).startswith("conv_transpose"):
            self._lost = True  # a window that spreads values
        elif name:
            self._apply_window(name, args, kwargs, fields[0][1], result)
        else:
            # an assignment to a slice returns nothing, and its first argument has the new values
            for output in list_tensors(args[0] if _is_assignment(operation) else result):
                self._propagate(operation, fields, output)
        return result

    def _apply_window(self, name: str, args: Any, kwargs: Any, field: Field, result: Any) -> None:
        through = field.through(_read_window(name, args, kwargs))
        self._fields[list_tensors(result)[0]] = through
        if name == "conv2d":
            self._largest = max(self._largest or 0, *through.size)

    def _propagate(
        self, operation: Operation | None, fields: list[tuple[tuple[int, ...], Field]], output: Tensor
    ) -> None:
        is_pad = operation is not None and operation.name in _PADS
        kept = [field for side, field in fields if side == tuple(output.shape[-2:]) or is_pad]
        is_whole = len(kept) == len(fields) or not _is_assignment(operation)
        if kept and is_whole and output.dim() >= 3 and _keeps_places(operation):
            self._fields[output] = max(kept)
        else:
            self._fields.pop(output, None)


def _get_sliding_name(func: Any, operation: Operation | None) -> str:
    """Return the name in `_SLIDING` of a function under any of its aliases; "" if it slides no window over an image."""
    if operation is None:
        return ""
    name = get_function_name(func) if operation.pool is None else operation.pool.name
    return name if name in _SLIDING else ""


def _is_assignment(operation: Operation | None) -> bool:
    """Return whether a call assigns to a slice of its first argument."""
    return operation is not None and operation.name == "__setitem__"


def _keeps_places(operation: Operation | None) -> bool:
    """Return whether an operation that keeps height and width also keeps every value in its place."""
    if operation is None or operation.name in _MIXING:
        return False
    return operation.kind != "multilinear" or operation.name in _POINTWISE


def _read_window(name: str, args: Any, kwargs: Any) -> Window:
    arguments = dict(zip(_SLIDING[name], args, strict=False)) | kwargs
    is_conv = name == "conv2d"
    kernel = _to_pair(arguments["weight"].shape[-2:] if is_conv else arguments["kernel_size"])
    # The default stride is the kernel size for a pool, 1 for a convolution.
    stride = _to_pair(arguments.get("stride") or ((1, 1) if is_conv else kernel))
    return Window(kernel, stride, _to_pair(arguments.get("dilation", 1)))


def _to_pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])
