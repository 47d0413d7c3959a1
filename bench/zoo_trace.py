"""What a network computes, as the kernels of torch see it: an account that grokkit has no part in.

A `TorchDispatchMode` sees every call of an ATen kernel, below the functions and methods that grokkit intercepts.
Whether a kernel is affine is found by calling it three times, not by its name; the only names here are those of the
kernels whose kinks are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_AFFINE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest distance of a kernel's result from the chord, relative to the result, that is still rounding."""


def _bounds(z: Tensor, low: Any = None, high: Any = None) -> list[Any]:
    return [bound for bound in (low, high) if bound is not None]


KINKED: dict[str, Callable[..., list[Any]]] = {
    "relu": lambda *_: [0.0],
    "leaky_relu": lambda *_: [0.0],
    "_prelu_kernel": lambda *_: [0.0],
    "hardtanh": lambda z, low=-1.0, high=1.0: [low, high],
    "hardsigmoid": lambda *_: [-3.0, 3.0],
    "hardswish": lambda *_: [-3.0, 3.0],
    "clamp": lambda z, min=None, max=None: _bounds(z, min, max),
    "clamp_min": lambda z, min: [min],
    "clamp_max": lambda z, max: [max],
    "abs": lambda *_: [0.0],
    "threshold": lambda z, threshold, value: [threshold],
    "softshrink": lambda z, lambd=0.5: [-lambd, lambd],
    "hardshrink": lambda z, lambd=0.5: [-lambd, lambd],
    "sign": lambda *_: [0.0],
    "sgn": lambda *_: [0.0],
    "heaviside": lambda *_: [0.0],
    "gelu": lambda *_, **__: [0.0],
    "silu": lambda *_: [0.0],
    "maximum": lambda a, b: [b],
    "minimum": lambda a, b: [b],
    "fmax": lambda a, b: [b],
    "fmin": lambda a, b: [b],
}
"""Kernels whose kinks are counted, and the values of the first argument at which they bend or jump."""

BENT = ("hardswish", "gelu", "silu")
"""Those that also bend between their kinks."""
JUMPING = ("threshold", "hardshrink", "sign", "sgn", "heaviside")
"""Those that jump at their kinks."""
POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d")


def get_kernel_name(func: Any) -> str:
    """Return the name of a kernel without the mark of its in-place form."""
    name: str = func.overloadpacket.__name__
    return name.removesuffix("_")


class Op(NamedTuple):
    """One call of a kernel on values that depend on the image, and that is not affine in them, or has counted kinks.

    Args:
        path: module that is running.
        function: function or method of torch that the module called.
        name: kernel.
        call: number of the call of that function.
        counted: whether it is one whose kinks are counted, or a max-pool.
        bends: whether a chord of its arguments was not mapped to a chord.
    """

    path: str
    function: str
    name: str
    call: int
    counted: bool
    bends: bool

    @property
    def is_piecewise_affine(self) -> bool:
        """Whether it is continuous and affine between counted kinks."""
        return self.counted and self.name not in BENT + JUMPING

    def __str__(self) -> str:
        return f"{self.name} in {self.path or 'the model'!r}"


class Place(TorchFunctionMode):
    """Where a model is: the path of the module that is running, and the function of torch that it called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._paths: list[str] = []
        self.function = ""
        self.sizes: list[int] = []  # of the results of every call, in floating-point values

    @property
    def path(self) -> str:
        """Path of the module that is running."""
        return self._paths[-1] if self._paths else ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.function = func.__name__
        self.sizes.append(0)
        out = func(*args, **(kwargs or {}))
        leaves = tree_flatten(out)[0]
        self.sizes[-1] = sum(x.numel() for x in leaves if isinstance(x, Tensor) and x.is_floating_point())
        return out

    @contextmanager
    def track(self) -> Iterator[None]:
        """Track the model within the block."""

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: self._paths.append(path)

        handles = []
        for path, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(path)))
            handles.append(module.register_forward_hook(lambda *_: (self._paths.pop(), None)[1], always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()


class _Structure(TorchDispatchMode):
    """Follow what depends on the image by its memory, and test each kernel that it enters."""

    def __init__(self, images: Tensor, place: Place) -> None:
        super().__init__()
        self._place = place
        self._tainted = {_memory(images)}
        self._random = torch.Generator().manual_seed(0)
        self.ops: list[Op] = []
        self.is_rounded = False
        self.depends: list[bool] = []  # for every call of a counted kernel and pool, in order

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = get_kernel_name(func)
        leaves, _ = tree_flatten((args, kwargs))
        if name == "lift_fresh":  # a constant that no kernel has made, perhaps in memory that was freed
            self._tainted.discard(_memory(args[0]))
        tainted = [isinstance(leaf, Tensor) and _memory(leaf) in self._tainted for leaf in leaves]
        is_counted = name in KINKED or name in POOLS
        if is_counted:
            self.depends.append(any(tainted))
        reads_shape_only = name.endswith("_like") or name.startswith("new_")
        bends = (
            any(tainted) and not reads_shape_only and not _is_view(func) and self._bends(func, args, kwargs, tainted)
        )
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
        for leaf in results:
            written = any(leaf is argument for argument in leaves)
            if any(tainted) and not reads_shape_only:
                self._tainted.add(_memory(leaf))
            elif not written and not _is_view(func):
                self._tainted.discard(_memory(leaf))  # memory that was freed is used again
        if any(tainted) and (bends or is_counted):
            call = len(self._place.sizes) - 1
            self.ops.append(Op(self._place.path, self._place.function, name, call, is_counted, bends))
        if any(tainted) and any(x.dtype == torch.float32 for x in results):
            self.is_rounded = True
        return out

    def _bends(self, func: Any, args: Any, kwargs: Any, tainted: list[bool]) -> bool:
        """Return whether a kernel does not map the middle of two arguments to the middle of its results."""
        leaves, spec = tree_flatten((args, kwargs))
        moving = [at for at, is_tainted in enumerate(tainted) if is_tainted]
        here = {at: leaves[at] for at in moving}
        other = {at: _roll(leaf) for at, leaf in here.items()}

        def call(values: dict[int, Tensor]) -> list[Tensor]:
            filled = [values.get(at, leaf) for at, leaf in enumerate(leaves)]
            copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in filled]
            new_args, new_kwargs = tree_unflatten(copies, spec)
            results = tree_flatten(func(*new_args, **new_kwargs))[0]
            return [leaf for leaf in results if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel()]

        first = call(here)
        if not first:
            return False  # masks and indices bend nothing until they are used
        if any(not leaf.is_floating_point() for leaf in here.values()):
            chosen = {at: leaf if leaf.is_floating_point() else _choose_others(leaf) for at, leaf in here.items()}
            return _differ(first, call(chosen))
        if _misses_chord(call, here, other, first):
            return True
        wide = {at: 4 * torch.randn(leaf.shape, generator=self._random, dtype=leaf.dtype) for at, leaf in here.items()}
        return _misses_chord(call, here, wide, first)


def _misses_chord(
    call: Callable[[dict[int, Tensor]], list[Tensor]],
    here: dict[int, Tensor],
    there: dict[int, Tensor],
    first: list[Tensor],
) -> bool:
    second = call(there)
    middle = call({at: (leaf + there[at]) / 2 for at, leaf in here.items()})
    tolerance = max(_AFFINE[leaf.dtype] for leaf in (*here.values(), *first))
    for a, b, between in zip(first, second, middle, strict=True):
        scale = torch.maximum(a.abs().max(), b.abs().max())
        if bool(((between - (a + b) / 2).abs() > tolerance * scale).any()):
            return True
    return False


def _differ(first: list[Tensor], second: list[Tensor]) -> bool:
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _roll(leaf: Tensor) -> Tensor:
    return leaf.roll(1, 0) if leaf.dim() and len(leaf) > 1 else leaf.clone()


def _choose_others(leaf: Tensor) -> Tensor:
    """Return other masks or indices."""
    return ~leaf if leaf.dtype == torch.bool else leaf.flatten().roll(1).reshape(leaf.shape)


def _memory(leaf: Tensor) -> int:
    return int(leaf.untyped_storage()._cdata)


def _is_view(func: Any) -> bool:
    infos = [result.alias_info for result in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


class Structure(NamedTuple):
    """The kernels of one forward pass that matter.

    Args:
        ops: those that bend or are counted, on values that depend on the image, in order.
        depends: for every call of a counted kernel, also on constants, whether it depends on the image.
        sizes: floating-point values that every call of a function returned.
        is_rounded: whether a value that depends on the image is float32.
    """

    ops: list[Op]
    depends: list[bool]
    sizes: list[int]
    is_rounded: bool

    @property
    def smooth(self) -> list[Op]:
        """Kernels that are not piecewise affine with counted kinks."""
        return [op for op in self.ops if not op.is_piecewise_affine]

    @property
    def unseen(self) -> list[Op]:
        """Kernels that bend and are not counted."""
        return [op for op in self.ops if not op.counted]


@torch.no_grad()
def trace_structure(model: nn.Module, images: Tensor) -> Structure:
    """Trace one pass of two images, float64; five calls of every kernel."""
    place = Place(model)
    inputs = images.clone()
    with place.track(), _Structure(inputs, place) as mode:
        model(inputs)
    return Structure(mode.ops, mode.depends, place.sizes, mode.is_rounded)


def find_scale(z: Tensor) -> float:
    """Return the largest finite magnitude."""
    return float(z.abs().nan_to_num_(posinf=0.0).max()) if z.numel() else 0.0


class Kinks(NamedTuple):
    """One call of a counted kernel.

    Args:
        path: module that is running.
        function: function or method of torch that the module called.
        name: kernel.
        gaps: for each kink, the distance of the units to it, (rows, unit).
        scale: the largest pre-activation.
    """

    path: str
    function: str
    name: str
    gaps: list[Tensor]
    scale: float

    @property
    def units(self) -> int:
        """Pairs of unit and kink of one image."""
        return sum(gap.shape[1] for gap in self.gaps)


class Pooled(NamedTuple):
    """One call of a max-pool: its input, result, the winners' positions, and the rest of its arguments."""

    path: str
    name: str
    z: Tensor
    pooled: Tensor
    winners: Tensor
    arguments: tuple[Any, ...]


class _Counter(TorchDispatchMode):
    def __init__(
        self,
        rows: int,
        depends: list[bool],
        place: Place,
        on_kinks: Callable[[Kinks], None],
        on_pool: Callable[[Pooled], None],
    ) -> None:
        super().__init__()
        self._rows, self._depends, self._place = rows, iter(depends), place
        self._on_kinks, self._on_pool = on_kinks, on_pool

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = get_kernel_name(func)
        is_counted = (name in KINKED or name in POOLS) and next(self._depends)
        if is_counted and name in KINKED:
            self._on_kinks(self._read(name, args, kwargs))  # before it overwrites them
        out = func(*args, **kwargs)
        if is_counted and name in POOLS:
            self._on_pool(Pooled(self._place.path, name, args[0], out[0], out[1], tuple(args[1:])))
        return out

    def _read(self, name: str, args: Any, kwargs: Any) -> Kinks:
        z = args[0]
        kinks = KINKED[name](*args, **kwargs)
        gaps = [z - kink for kink in kinks]
        if any(gap.dim() == 0 or len(gap) % self._rows for gap in gaps):
            gaps = [gap.new_zeros(self._rows, 0) for gap in gaps]  # images are not in front: cannot be counted
        # the first dimension may hold windows or tokens of each image
        rows = [gap.reshape(self._rows, -1) for gap in gaps]
        return Kinks(self._place.path, self._place.function, name, rows, find_scale(z))


@torch.no_grad()
def trace_kinks(
    model: nn.Module,
    images: Tensor,
    depends: list[bool],
    on_kinks: Callable[[Kinks], None],
    on_pool: Callable[[Pooled], None] = lambda pooled: None,
) -> Tensor:
    """Run one pass and report every call of a counted kernel that depends on the image, in order."""
    place = Place(model)
    with place.track(), _Counter(len(images), depends, place, on_kinks, on_pool):
        output: Tensor = model(images.clone())
    return output
