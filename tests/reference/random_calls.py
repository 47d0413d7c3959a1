"""Random calls of torch for random networks: any public function, and ways of computing that hide something."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import get_testing_overrides, resolve_name

from tests.reference.lc_nets import draw

WIDTH = 6
MASK = torch.tensor([True, False, True, True, False, False])
VARIANCE = torch.linspace(0.5, 2.0, WIDTH, dtype=torch.float64)
INDEX = torch.tensor([2, 0, 5, 1, 1, 3])
C, W, KERNEL = draw(WIDTH, seed=1), draw(WIDTH, WIDTH, seed=2), draw(3, 2, 2, 2, seed=3)
_LEFT_OUT = (
    *("set_", "resize_", "resize_as_", "resize_as", "apply_", "map_", "map2_", "share_memory_", "record_stream"),
    *("backward", "pin_memory", "data_ptr", "set_default_dtype", "from_file", "save", "load", "module_load"),
    *("float", "half", "bfloat16", "chalf", "empty_like", "new_empty", "empty"),
)
"""Functions that change the storage of a tensor, round to fewer digits, or return memory that nobody wrote."""
_ELSEWHERE = ("sparse", "quant", "fbgemm", "cudnn", "mkldnn", "cuda", "miopen", "xnnpack", "__set__", "rand")


class Step(NamedTuple):
    """One step of a random network: z (N, 6) -> (N, 6)."""

    name: str
    apply: Callable[[Tensor], Tensor]


def _image(z: Tensor) -> Tensor:
    return z.repeat(1, 6)[:, :32].reshape(-1, 2, 4, 4)


def _sequence(z: Tensor) -> Tensor:
    return z.repeat(1, 3).view(-1, 3, WIDTH)


PATTERNS: dict[str, Callable[[Any, Tensor], Any]] = {
    "z": lambda f, z: f(z),
    "z, 1": lambda f, z: f(z, 1),
    "z, -1": lambda f, z: f(z, -1),
    "z, .3": lambda f, z: f(z, 0.3),
    "z, (1,)": lambda f, z: f(z, (1,)),
    "z, C": lambda f, z: f(z, C),
    "z, W": lambda f, z: f(z, W),
    "z, z": lambda f, z: f(z, z.flip(1)),
    "C, z": lambda f, z: f(C.expand(len(z), WIDTH).clone(), z),
    "z, 1, INDEX": lambda f, z: f(z, 1, INDEX),
    "z, 1, INDEX of rows": lambda f, z: f(z, 1, INDEX.expand(len(z), WIDTH)),
    "z, 1, INDEX, z": lambda f, z: f(z, 1, INDEX.expand(len(z), WIDTH), z * 2),
    "z, 1, INDEX, .5": lambda f, z: f(z, 1, INDEX, 0.5),
    "z, 1, INDEX, z of rows": lambda f, z: f(z, 1, INDEX, z * 3),
    "z, 1, INDEX, z, amax": lambda f, z: f(z, 1, INDEX.expand(len(z), WIDTH), z * 2, "amax"),
    "z, MASK, .5": lambda f, z: f(z, MASK, 0.5),
    "z, MASK, z": lambda f, z: f(z, MASK, z * 2),
    "MASK, C, z": lambda f, z: f(MASK, C, z),
    "z > 0, z, z": lambda f, z: f(z > 0, z, z * 2),
    "z, z > 0, .5": lambda f, z: f(z, z > 0, 0.5),
    "z, C, C": lambda f, z: f(z, C, C),
    "z, z, C": lambda f, z: f(z, z.flip(1), C),
    "C, z, W": lambda f, z: f(C, z, W),
    "z, 1, 0, 2": lambda f, z: f(z, 1, 0, 2),
    "[z, z], 1": lambda f, z: f([z, z * 2], 1),
    "[z, z]": lambda f, z: f([z, z * 2]),
    "image": lambda f, z: f(_image(z)),
    "image, 2": lambda f, z: f(_image(z), 2),
    "image, KERNEL": lambda f, z: f(_image(z), KERNEL),
    "image, (1, 1)": lambda f, z: f(_image(z), (1, 1)),
    "image, 3, 1, 1": lambda f, z: f(_image(z), 3, 1, 1),
    "sequence": lambda f, z: f(_sequence(z)),
    "sequence, 2": lambda f, z: f(_sequence(z), 2),
    "sequence, column": lambda f, z: f(_sequence(z), z.unsqueeze(2)),
    "square": lambda f, z: f(z.repeat(1, 6).view(-1, WIDTH, WIDTH)),
    "equation, z, W": lambda f, z: f("ni,ij->nj", z, W),
    "z, (6,)": lambda f, z: f(z, (WIDTH,)),
    "z, dtype": lambda f, z: f(z, dtype=z.dtype),
    "out": lambda f, z: f(z, out=torch.empty_like(z)),
    "z, C, out": lambda f, z: f(z, C, out=torch.empty_like(z)),
    "a written view": lambda f, z: _write_view(f, z),
    "mapped": lambda f, z: torch.vmap(f, in_dims=1, out_dims=1)(z),
}
"""Ways to call a function on z; most fit few functions."""


def _write_view(f: Any, z: Tensor) -> Tensor:
    view = z[:, 1:4]
    f(view)
    return z


def list_leaves(result: Any) -> list[Tensor]:
    """Return the tensors in nested lists and tuples."""
    if isinstance(result, Tensor):
        return [result]
    return [leaf for part in result for leaf in list_leaves(part)] if isinstance(result, tuple | list) else []


def fit(result: Any, z: Tensor) -> Tensor:
    """Return the floating values of a result as (N, 6), repeated or cut."""
    rows = [leaf for leaf in list_leaves(result) if leaf.is_floating_point() and leaf.dim() and len(leaf) == len(z)]
    joined = torch.cat([leaf.reshape(len(z), -1) for leaf in rows], 1)
    return joined.repeat(1, -(-WIDTH // joined.shape[1]))[:, :WIDTH]


@cache
def list_functions() -> tuple[tuple[str, Any], ...]:
    """Return the public functions of torch, its tensors and its namespaces."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        overrides = get_testing_overrides()
    for function in overrides:
        name = resolve_name(function) or ""
        last = name.removesuffix(".__get__").split(".")[-1]
        is_private = last.startswith("_") and not last.startswith("__")
        if name and last not in _LEFT_OUT and not is_private and not any(word in name for word in _ELSEWHERE):
            found[name] = function
    return tuple(sorted(found.items()))


@cache
def find_steps(name: str) -> tuple[Step, ...]:
    """Return the ways to call a function that work, keep the rows of a batch apart and are not random."""
    function = dict(list_functions())[name]
    return tuple(
        step
        for pattern, call in PATTERNS.items()
        if _works(step := Step(f"{name}({pattern})", lambda z, call=call: fit(call(function, z.clone()), z)))
    )


def _works(step: Step) -> bool:
    z = draw(4, WIDTH, seed=5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            whole, part, again = step.apply(z.clone()), step.apply(z[:2].clone()), step.apply(z.clone())
        except Exception:  # whatever torch raises for arguments that do not fit
            return False
    return bool(whole.isfinite().all()) and torch.allclose(whole[:2], part) and torch.equal(whole, again)


class _Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z * z.abs()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _InNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return torch.from_numpy(np.maximum(z.numpy(), 0.2))


def _assign_where(z: Tensor) -> Tensor:
    out = z.clone()
    out[out < 0] = 0.0
    return out


def _assign_columns(z: Tensor) -> Tensor:
    out = z.clone()
    out[:, [0, 2]] = z[:, 3:5]
    return out


def _assign_own_columns(z: Tensor) -> Tensor:
    out = z.clone()
    out[:, 0] = out[:, 1]
    return out


def _write_through_data(z: Tensor) -> Tensor:
    out = z.clone()
    out.data[:, :2].mul_(out[:, 2:4])
    return out


def _write_into_constant(z: Tensor) -> Tensor:
    out = torch.zeros(len(z), WIDTH, dtype=z.dtype)
    out[:, 1:] = z[:, :-1]
    return out + z


def _copy_over(z: Tensor) -> Tensor:
    return torch.zeros_like(z).copy_(z.flip(1)) + z


def _fill_numpy(z: Tensor) -> Tensor:
    out = z.clone()
    np.maximum(out.numpy(), 0.0, out=out.numpy())
    return out


@cache
def _scripted() -> Any:
    def gate(z: Tensor) -> Tensor:
        return torch.where(z > 0.1, z * 2.0, z)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(gate)


HIDING = tuple(
    Step(name, apply)
    for name, apply in {
        "z[z < 0] = 0": _assign_where,
        "columns assigned": _assign_columns,
        "own columns assigned": _assign_own_columns,
        "a write through data": _write_through_data,
        "a write into zeros": _write_into_constant,
        "copy_": _copy_over,
        "a write in numpy": _fill_numpy,
        "numpy and back": lambda z: torch.from_numpy(np.abs(z.numpy())),
        "numpy beside": lambda z: z + torch.from_numpy(np.abs(z.numpy())),
        "a script": lambda z: _scripted()(z),
        "an autograd function": lambda z: _Squared.apply(z),
        "an autograd function in numpy": lambda z: _InNumpy.apply(z),
        "sorted": lambda z: z.gather(1, z.argsort(1)),
        "the largest": lambda z: z.gather(1, z.argmax(1, keepdim=True)) + z,
        "masked by a product": lambda z: z * (z > 0),
        "masked by a cast": lambda z: z * (z > 0).to(z.dtype),
        "a shape of values": lambda z: z + torch.full_like(z[:, :1], 0.5) * z.new_tensor([1.0]),
        "values as a new tensor": lambda z: z * z.new_tensor(z),
        "a fill by a value": lambda z: torch.full_like(z, 1.0).copy_(z * z[:, :1]),
        "complex": lambda z: torch.view_as_real(torch.polar(z.abs(), z)).flatten(1)[:, :WIDTH],
        "fourier": lambda z: torch.fft.irfft(torch.fft.rfft(z) * 0.5, n=WIDTH),
        "two bounds": lambda z: torch.clamp(z, z.flip(1), C),
        "a slope": lambda z: F.prelu(z, z[0] * 0 + 0.2) + z,
        "chosen columns": lambda z: z[:, INDEX] + z[:, [5, 4, 3, 2, 1, 0]],
        "a mask of columns": lambda z: z[:, MASK].repeat(1, 2),
        "pairs of maxima": lambda z: torch.max(z, z.flip(1)) + torch.minimum(z, C),
        "an integer": lambda z: z + z.long(),
        "rounded by way of text": lambda z: z + torch.tensor([[round(v) for v in row] for row in z.tolist()]),
        "vmapped rows": lambda z: torch.vmap(lambda row: torch.relu(row) + row)(z),
        "vmapped members": lambda z: torch.vmap(lambda w: torch.relu(z @ w))(torch.stack([W, -W])).mean(0),
        "unbound": lambda z: torch.stack([column * 2 for column in z.unbind(1)], 1),
        "square in place": lambda z: z.clone().pow_(2),
        "a shifted sum": lambda z: z.cumsum(1) - z.roll(1, 1),
    }.items()
)
"""Steps by which a model may hide what it does with its images, or seem to."""

CLEAN = tuple(
    Step(name, apply)
    for name, apply in {
        "scale": lambda z: z * C + 0.1,
        "matmul": lambda z: z @ W,
        "linear": lambda z: F.linear(z, W, C),
        "neighbours": lambda z: z - 0.5 * z.roll(1, 1),
        "flip": lambda z: z.flip(1),
        "halves": lambda z: torch.cat([z[:, 3:], z[:, :3] * 2], 1),
        "masked": lambda z: z.masked_fill(MASK, 0.5) + torch.where(MASK, z, C),
        "conv": lambda z: F.conv2d(_image(z), KERNEL).flatten(1)[:, :WIDTH] + z,
        "average": lambda z: F.avg_pool1d(z.unsqueeze(1), 3, 1, 1).squeeze(1),
        "centred": lambda z: z - z.mean(1, keepdim=True),
        "einsum": lambda z: torch.einsum("ni,ij->nj", z, W) / 2.0,
        "resized": lambda z: F.interpolate(z.unsqueeze(1), 12, mode="linear").squeeze(1)[:, ::2],
        "in place": lambda z: z.clone().mul_(1.5).add_(C).sub_(z.flip(1)),
        "scattered": lambda z: z.index_add(1, INDEX, z.flip(1)) + z.scatter(1, INDEX[:3].expand(len(z), 3), 0.2),
        "parts": lambda z: torch.stack(z.chunk(2, 1), 2).flatten(1),
        "blend": lambda z: torch.lerp(z, z.flip(1), 0.3) + torch.addcmul(z, z.flip(1), C, value=0.5),
        "norm": lambda z: F.batch_norm(z, C, VARIANCE),
        "padded": lambda z: F.pad(z, (1, 1), value=0.3)[:, 1:-1].diff(append=C.expand(len(z), WIDTH)[:, :1]),
    }.items()
)
"""Affine steps."""

COUNTED = tuple(
    Step(name, apply)
    for name, apply in {
        "relu": torch.relu,
        "abs": lambda z: z.abs() - 0.3,
        "leaky": lambda z: F.leaky_relu(z, 0.2),
        "clamp": lambda z: z.clamp(-0.5, 0.7) + 0.1 * z,
        "clamp by tensors": lambda z: z.clamp(min=C) - z,
        "hardtanh": lambda z: F.hardtanh(z) + z,
        "maximum": lambda z: torch.maximum(z, z.flip(1) * 0.5),
        "pool": lambda z: F.max_pool1d(torch.relu(z).unsqueeze(1), 3, 1, 1).squeeze(1) + z,
        "relu in place": lambda z: z.clone().relu_() - 0.2 * z,
        "threshold": lambda z: F.softshrink(z, 0.3),
    }.items()
)
"""Piecewise affine steps whose kinks are counted."""


class RandomNet(nn.Module):
    """An affine layer, the steps with scaled skips, and a readout."""

    def __init__(self, steps: list[Step], seed: int) -> None:
        super().__init__()
        self.steps = steps
        self.first, self.last = (nn.Parameter(draw(WIDTH, WIDTH, seed=seed + at)) for at in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = x @ self.first
        for step in self.steps:
            z = step.apply(z)
        return z @ self.last

    def __repr__(self) -> str:
        return " > ".join(step.name for step in self.steps)


def draw_net(seed: int, kind: str) -> RandomNet:
    """Draw a net of 2 to 6 steps; kinds are "clean", "counted", "hiding" and "any", which has one call of torch."""
    chooser = random.Random(f"{kind} {seed}")
    usual = CLEAN if kind == "clean" else CLEAN + COUNTED
    steps = [chooser.choice(usual) for _ in range(chooser.randint(2, 6))]
    if kind == "hiding":
        steps[chooser.randrange(len(steps))] = chooser.choice(HIDING)
    if kind == "any":
        choices: tuple[Step, ...] = ()
        while not choices:
            choices = find_steps(chooser.choice(list_functions())[0])
        steps[chooser.randrange(len(steps))] = chooser.choice(choices)
    return RandomNet(steps, seed)
