"""Sample calls of every row of the table of operations: bodies `f, x -> result` for images x of shape (N, 2, 4, 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokkit.operations import OPERATIONS, Operation
from tests.reference.lc_nets import draw

Body = Callable[[Any, Tensor], Any]

MASK = draw(2, 4, 4, seed=3) > 0
C, COLUMN, SQUARE, W = draw(2, 4, 4, seed=4), draw(32, seed=5), draw(4, 4, seed=6), draw(32, 5, seed=7)
INDEX = torch.tensor([5, 0, 31, 5, 7])
FIRST, ODD = torch.tensor([0, 0]), torch.tensor([1, 3])
K1, K2, K3 = draw(3, 2, 3, seed=8), draw(3, 2, 2, 2, seed=9), draw(3, 1, 1, 2, 2, seed=10)
BIAS = draw(3, seed=11)
SCALES = draw(2, seed=12), draw(2, seed=13).abs() + 0.5, draw(2, seed=14), draw(2, seed=15)
"""Mean, variance, weight and bias of a batch norm."""


def _rows(x: Tensor) -> Tensor:
    return x.flatten(1)


def _turned(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _after(result: Any, x: Tensor) -> Tensor:
    return x


def _batched(constant: Tensor, x: Tensor) -> Tensor:
    return constant.expand(len(x), *constant.shape)


def _unpooled(f: Any, x: Tensor, spatial: int, *size: Any) -> Any:
    shaped = {1: x.flatten(2), 2: x, 3: x.unsqueeze(2)}[spatial]
    kernel = 2 if spatial < 3 else (1, 2, 2)
    values, indices = getattr(F, f"max_pool{spatial}d")(shaped, kernel, return_indices=True)
    return f(values, indices, *(size or (kernel,)))


def _layer(kind: type[nn.Module]) -> Body:
    layer = kind(16, 3, batch_first=True).double()
    return lambda f, x: layer(x.flatten(2))[0]


def _cell(kind: Any, *options: Any) -> Body:
    layer = kind(32, 3, *options).double()

    def body(f: Any, x: Tensor) -> Any:
        out = layer(x.flatten(1))
        return out[0] if isinstance(out, tuple) else out

    return body


_ATTENTION = nn.MultiheadAttention(4, 2, batch_first=True).double()
_SAMPLES = torch.full((1, 2, 2), 0.3, dtype=torch.float64)

CALLS: dict[str, tuple[Body, ...]] = {
    # views
    "view": (lambda f, x: f(x, (len(x), -1)), lambda f, x: f(x, (len(x), 8, 4))),
    "view_as": (lambda f, x: f(x, x.flatten(2)),),
    "flatten": (lambda f, x: f(x, 1),),
    "unflatten": (lambda f, x: f(x, 2, (2, -1)),),
    "ravel": (lambda f, x: f(x).view(x.shape),),
    "permute": (lambda f, x: f(x, (0, 2, 3, 1)),),
    "transpose": (lambda f, x: f(x, 1, 2),),
    "movedim": (lambda f, x: f(x, 1, 3),),
    "t": (lambda f, x: f(f(_rows(x))),),
    "T": (lambda f, x: f(f(_rows(x))),),
    "mT": (lambda f, x: f(x),),
    "squeeze": (lambda f, x: f(x.unsqueeze(1), 1),),
    "unsqueeze": (lambda f, x: f(x, 1),),
    "chunk": (lambda f, x: f(x, 2, 1),),
    "split": (lambda f, x: f(x, 1, 1),),
    "split_with_sizes": (lambda f, x: f(x, (1, 3), 2),),
    "tensor_split": (lambda f, x: f(x, 2, 1), lambda f, x: f(x, (1, 3), 2)),
    "hsplit": (lambda f, x: f(x, 2),),
    "vsplit": (lambda f, x: [_turned(part) for part in f(_turned(x), 2)],),
    "unbind": (lambda f, x: f(x, 1),),
    "narrow": (lambda f, x: f(x, 2, 1, 2),),
    "select": (lambda f, x: f(x, 1, 1),),
    "slice": (lambda f, x: f(x, 2, 1, 3),),
    "as_strided": (lambda f, x: f(x, (len(x), 3, 2), (32, 1, 5), 2),),
    "diag_embed": (lambda f, x: f(x),),
    "diagflat": (lambda f, x: f(x).sum(1).view(x.shape),),
    "adjoint": (lambda f, x: f(x),),
    "conj": (lambda f, x: f(x),),
    "trace": (lambda f, x: f(_rows(x)).expand(len(x), 1),),
    "masked_scatter": (lambda f, x: f(x, MASK, x.flip(3)[:, MASK]), lambda f, x: f(x, MASK, torch.ones_like(x))),
    "fill": (lambda f, x: f(x, 0.5),),
    "zero_": (lambda f, x: f(x),),
    "scatter": (
        lambda f, x: f(_rows(x), 1, _batched(INDEX, x), 0.5),
        lambda f, x: f(_rows(x), 1, _batched(INDEX[:3], x), x[:, 1, 3, :3].clone()),
        lambda f, x: f(_rows(x), 1, _batched(INDEX[:3], x), _batched(C[0, 0], x)),
    ),
    "scatter_add": (
        lambda f, x: f(_rows(x)[:, :16], 1, _batched(INDEX[[0, 1, 3, 4]], x), x[:, 1, 3].clone()),
        lambda f, x: f(_rows(x), 1, _batched(INDEX[:4], x), _batched(C[0, 0], x)),
    ),
    "index_add": (
        lambda f, x: f(x[..., :2], 3, torch.tensor([1, 1]), x[..., 2:].clone()),
        lambda f, x: f(x[..., :2], 3, torch.tensor([1]), x[..., 3:].clone(), alpha=-2.0),
    ),
    "index_copy": (
        lambda f, x: f(x, 3, torch.tensor([2, 0]), x[..., 1:3].clone()),
        lambda f, x: f(x, 3, torch.tensor([2]), torch.ones_like(x[..., :1])),
    ),
    "index_fill": (lambda f, x: f(x, 3, torch.tensor([2, 0]), 0.5),),
    "index_put": (
        lambda f, x: f(x, (MASK.expand_as(x),), torch.tensor(0.5, dtype=x.dtype)),
        lambda f, x: f(x, (torch.arange(len(x)), torch.tensor(1)), x[:, 0].clone()),
    ),
    "put": (lambda f, x: f(x, torch.arange(len(x))[:, None] * 32 + INDEX, torch.ones(len(x), 5, dtype=x.dtype)),),
    "slice_scatter": (
        lambda f, x: f(x, x[:, 1:].clone(), 1, 0, 1),
        lambda f, x: f(x, torch.ones_like(x[..., 1:]), 3, 1),
    ),
    "select_scatter": (lambda f, x: f(x, x[:, 1].clone(), 1, 0), lambda f, x: f(x, torch.ones_like(x[:, 1]), 1, 0)),
    "diagonal_scatter": (
        lambda f, x: f(x, x[..., 0].clone(), 0, 2, 3),
        lambda f, x: f(x, torch.ones_like(x[..., 0]), 0, 2, 3),
    ),
    "expand": (lambda f, x: f(x.unsqueeze(1), (len(x), 3, 2, 4, 4)),),
    "expand_as": (lambda f, x: f(x[:, :1], x),),
    "broadcast_tensors": (lambda f, x: f(x[:, :1], C),),
    "aten.broadcast_tensors": (lambda f, x: f([x[:, :1], C]),),
    "contiguous": (lambda f, x: f(x),),
    "flip": (lambda f, x: f(x, (1, 3)),),
    "fliplr": (lambda f, x: f(x),),
    "flipud": (lambda f, x: _turned(f(_turned(x))),),
    "roll": (lambda f, x: f(x, (1,), (2,)), lambda f, x: f(x, (1, 2), (2, 3))),
    "rot90": (lambda f, x: f(x, 1, (2, 3)),),
    "__getitem__": (
        lambda f, x: f(x, (slice(None), 1)),
        lambda f, x: f(x, (slice(None), torch.tensor([1, 0, 1]))),
        lambda f, x: f(x, (..., None, slice(0, 3))),
        lambda f, x: f(x, (slice(None), MASK)),
    ),
    "index_select": (lambda f, x: f(_rows(x), 1, INDEX),),
    "gather": (lambda f, x: f(_rows(x), 1, _batched(INDEX, x)),),
    "take_along_dim": (lambda f, x: f(_rows(x), INDEX[None], 1),),
    "take": (lambda f, x: f(x, torch.arange(len(x))[:, None] * 32 + INDEX),),
    "masked_select": (lambda f, x: f(x, MASK).view(len(x), -1),),
    "repeat": (lambda f, x: f(x, (1, 2, 1, 3)),),
    "repeat_interleave": (lambda f, x: f(x, 2, 1), lambda f, x: f(x, torch.tensor([1, 2]), 1)),
    "diagonal": (lambda f, x: f(x, 0, 2, 3),),
    "linalg.diagonal": (lambda f, x: f(x),),
    "diag": (lambda f, x: f(x.flatten()).sum(1).view(x.shape),),
    "pixel_shuffle": (lambda f, x: f(x.view(len(x), 8, 2, 2), 2),),
    "pixel_unshuffle": (lambda f, x: f(x, 2),),
    "channel_shuffle": (lambda f, x: f(x, 2),),
    "unfold": (lambda f, x: f(x, 2, 2, 1),),
    "F.unfold": (lambda f, x: f(x, 2), lambda f, x: f(x, 3, 1, 1, 2)),
    "atleast_1d": (lambda f, x: f(x),),
    "detach": (lambda f, x: f(x),),
    "to": (lambda f, x: f(x, torch.float64),),
    "type_as": (lambda f, x: f(x, C),),
    "_to_copy": (lambda f, x: f(x, dtype=torch.float64),),
    "float": (lambda f, x: f(x).double(),),
    "cpu": (lambda f, x: f(x),),
    "requires_grad_": (lambda f, x: f(x),),
    "dropout": (lambda f, x: f(x, 0.5, False),),
    "dropout1d": (lambda f, x: f(x.flatten(2), 0.5, False),),
    "dropout3d": (lambda f, x: f(x.unsqueeze(2), 0.5, False),),
    # affine
    "add": (
        lambda f, x: f(x, x.flip(3)),
        lambda f, x: f(x, C),
        lambda f, x: f(x, -0.5),
        lambda f, x: f(x, x.flip(3), alpha=-2.0),
    ),
    "sub": (
        lambda f, x: f(x, x.flip(3)),
        lambda f, x: f(x, C),
        lambda f, x: f(x, -0.5),
        lambda f, x: f(x, C, alpha=-2.0),
    ),
    "__add__": (lambda f, x: f(x, x.flip(3)), lambda f, x: f(x, C), lambda f, x: f(x, -0.5)),
    "rsub": (lambda f, x: f(x, C), lambda f, x: f(x, 1.5)),
    "neg": (lambda f, x: f(x),),
    "positive": (lambda f, x: f(x),),
    "mean": (lambda f, x: f(x, (1,)), lambda f, x: f(x, (2, 3), True)),
    "sum": (lambda f, x: f(x, (1,)), lambda f, x: f(x, (2, 3), True)),
    "cumsum": (lambda f, x: f(x, 2),),
    "diff": (
        lambda f, x: f(x),
        lambda f, x: f(x, 2, 2),
        lambda f, x: f(x, 1, 3, torch.ones_like(x[..., :1]), x[..., :2].clone()),
    ),
    "tril": (lambda f, x: f(x), lambda f, x: f(x, -1)),
    "fold": (lambda f, x: f(F.unfold(x, 2), (4, 4), 2),),
    "avg_pool1d": (lambda f, x: f(x.flatten(2), (3,), (2,), (1,)),),
    "avg_pool2d": (lambda f, x: f(x, (2, 2)), lambda f, x: f(x, (3, 3), (1, 1), (1, 1), False, False)),
    "avg_pool3d": (lambda f, x: f(x.unsqueeze(1), (1, 2, 2)),),
    "adaptive_avg_pool1d": (lambda f, x: f(x.flatten(2), (3,)),),
    "adaptive_avg_pool2d": (lambda f, x: f(x, (3, 2)),),
    "adaptive_avg_pool3d": (lambda f, x: f(x.unsqueeze(1), (1, 3, 2)),),
    "interpolate": (
        lambda f, x: f(x, scale_factor=2),
        lambda f, x: f(x, scale_factor=1.5, mode="bilinear"),
        lambda f, x: f(x, size=(3, 3), mode="area"),
    ),
    "upsample_nearest": (lambda f, x: f(x, scale_factor=2),),
    "cat": (
        lambda f, x: f([x, x.flip(3)], 1),
        lambda f, x: f((x, torch.ones_like(x)), 1),
        lambda f, x: f([_batched(C, x), x], 2),
    ),
    "stack": (lambda f, x: f([x, x.flip(3)], 1), lambda f, x: f([x, torch.ones_like(x)], 1)),
    "hstack": (lambda f, x: f([x, x.flip(3)]), lambda f, x: f([_batched(C, x), x])),
    "vstack": (lambda f, x: _turned(f([_turned(x), _turned(x.flip(3))])),),
    "where": (
        lambda f, x: f(MASK, x, C),
        lambda f, x: f(MASK, x, 0.5),
        lambda f, x: f(MASK, x.flip(3), x),
    ),
    "Tensor.where": (lambda f, x: f(x, MASK, C), lambda f, x: f(x.flip(3), MASK, x)),
    "masked_fill": (lambda f, x: f(x, MASK, 0.5), lambda f, x: f(x, MASK, torch.tensor(0.5, dtype=x.dtype))),
    "lerp": (
        lambda f, x: f(x, C, 0.3),
        lambda f, x: f(x, _batched(C, x), C),
        lambda f, x: f(x, x.flip(3), 1.5),
    ),
    "pad": (
        lambda f, x: f(x, (1, 1, 0, 2)),
        lambda f, x: f(x, (1, 1), "constant", 0.7),
        lambda f, x: f(x, (1, 1, 1, 1), "reflect"),
        lambda f, x: f(x, (1, 2, 0, 1), "circular"),
        lambda f, x: f(x, (1, 1, 1, 1), "replicate"),
    ),
    "constant_pad_nd": (lambda f, x: f(x, (1, 1), 0.7),),
    **{
        f"{kind}_pad{spatial}d": (body,)
        for kind in ("reflection", "replication")
        for spatial, body in (
            (1, lambda f, x: f(x.flatten(2), (1, 2))),
            (2, lambda f, x: f(x, (1, 2, 0, 1))),
            (3, lambda f, x: f(x.unsqueeze(1), (1, 2, 0, 1, 0, 1))),
        )
    },
    "_pad_circular": (lambda f, x: f(x, (1, 2, 0, 1)),),
    "__setitem__": (
        lambda f, x: _after(f(x, (slice(None), 1), C[1]), x),
        lambda f, x: _after(f(x, (slice(None), 0), x[:, 1].clone()), x),
        lambda f, x: _after(f(x, (slice(None), MASK), 0.5), x),
        # positions around a slice come first
        lambda f, x: _after(f(x, (slice(None), FIRST, slice(None), ODD), x[..., :2].mean(1).permute(2, 0, 1)), x),
    ),
    "copy_": (lambda f, x: f(x, x.flip(3)), lambda f, x: f(x, x[:, :1].clone())),
    # multilinear
    "mul": (lambda f, x: f(x, C), lambda f, x: f(x, -2.0), lambda f, x: f(x, MASK)),
    "div": (lambda f, x: f(x, C), lambda f, x: f(x, -2.0)),
    "matmul": (lambda f, x: f(x, SQUARE),),
    "__rmatmul__": (lambda f, x: f(x, SQUARE),),
    "mm": (lambda f, x: f(_rows(x), W),),
    "bmm": (lambda f, x: f(x.flatten(2), W.view(1, 16, 10).expand(len(x), 16, 10)),),
    "mv": (lambda f, x: f(_rows(x), COLUMN),),
    "dot": (lambda f, x: f(_rows(x)[0], COLUMN).expand(len(x), 1),),
    "inner": (lambda f, x: f(x, SQUARE),),
    "outer": (lambda f, x: f(x.flatten(), COLUMN).view(len(x), -1),),
    "einsum": (lambda f, x: f("nchw,wk->nchk", x, SQUARE), lambda f, x: f("nchw->nc", x)),
    "aten.einsum": (lambda f, x: f("nchw,wk->nchk", [x, SQUARE]),),
    "addmm": (
        lambda f, x: f(_rows(x[:, 0])[:, :5], _rows(x[:, 1]), W[:16]),
        lambda f, x: f(_rows(x[:, 0])[:, :5], _rows(x[:, 1]), W[:16], beta=0.5, alpha=-2.0),
    ),
    "baddbmm": (
        lambda f, x: f(x[:, :1].flatten(2)[..., :10], x[:, 1:].flatten(2), _batched(W.view(16, 10), x)),
        lambda f, x: f(x[:, :1].flatten(2)[..., :10], x[:, 1:].flatten(2), _batched(W.view(16, 10), x), beta=-1.0),
    ),
    "addmv": (lambda f, x: f(x[:, 0, 0, 0], _rows(x[:, 1]), COLUMN[:16]),),
    "addr": (lambda f, x: f(x[:, 0, 0, :3], x[:, 1, 1, 1], BIAS, beta=-0.5, alpha=2.0),),
    "addcmul": (
        lambda f, x: f(x, x.flip(3), C, value=-0.5),
        lambda f, x: f(x, C, C),
        lambda f, x: f(x, C, x.flip(3)),
    ),
    "cross": (lambda f, x: f(x[..., :3], C[..., :3].expand(len(x), 2, 4, 3), dim=3),),
    "vecdot": (lambda f, x: f(x, C.expand_as(x), dim=3),),
    "kron": (lambda f, x: f(x, C[None]),),
    "tensordot": (lambda f, x: f(x, SQUARE, 1),),
    "aten.tensordot": (lambda f, x: f(x, SQUARE, (3,), (0,)),),
    "chain_matmul": (lambda f, x: f(_rows(x), W),),
    "aten.chain_matmul": (lambda f, x: f([_rows(x), W]),),
    "multi_dot": (lambda f, x: f([_rows(x), W]),),
    "linear": (lambda f, x: f(_rows(x), W.T, W[0]), lambda f, x: f(_rows(x), W.T)),
    "conv1d": (lambda f, x: f(x.flatten(2), K1, BIAS), lambda f, x: f(x.flatten(2), K1, None, (2,), (1,))),
    "conv2d": (lambda f, x: f(x, K2, BIAS), lambda f, x: f(x, K2, None, (2, 2), (1, 1))),
    "conv3d": (lambda f, x: f(x.unsqueeze(1), K3, BIAS),),
    "conv_transpose1d": (lambda f, x: f(x.flatten(2), K1.transpose(0, 1), BIAS),),
    "conv_transpose2d": (lambda f, x: f(x, K2.transpose(0, 1), BIAS, (2, 2)),),
    "conv_transpose3d": (lambda f, x: f(x.unsqueeze(1), K3.transpose(0, 1), BIAS),),
    "batch_norm": (lambda f, x: f(x, SCALES[2], SCALES[3], SCALES[0], SCALES[1], False, 0.1, 1e-5, False),),
    "F.batch_norm": (
        lambda f, x: f(x, *SCALES, False, 0.1, 1e-5),
        lambda f, x: f(x, *SCALES[:2]),
    ),
    # piecewise
    "relu": (lambda f, x: f(x),),
    "leaky_relu": (lambda f, x: f(x, 0.2),),
    "prelu": (lambda f, x: f(x, torch.tensor([0.2, -0.7], dtype=x.dtype)),),
    "rrelu": (lambda f, x: f(x, 0.1, 0.3, False),),
    "relu6": (lambda f, x: f(x * 6),),
    "hardtanh": (lambda f, x: f(x, -0.5, 0.7),),
    "hardsigmoid": (lambda f, x: f(x * 4),),
    "clamp": (lambda f, x: f(x, -0.5, 0.7), lambda f, x: f(x, C, C + 1), lambda f, x: f(x, C)),
    "clamp_min": (lambda f, x: f(x, -0.5), lambda f, x: f(x, C)),
    "clamp_max": (lambda f, x: f(x, 0.7), lambda f, x: f(x, C)),
    "abs": (lambda f, x: f(x),),
    "threshold": (lambda f, x: f(x, 0.2, -0.1),),
    "hardshrink": (lambda f, x: f(x, 0.4),),
    "sign": (lambda f, x: f(x),),
    "heaviside": (lambda f, x: f(x, C),),
    "gelu": (lambda f, x: f(x),),
    "maximum": (lambda f, x: f(x, x.flip(3)), lambda f, x: f(x, C)),
    # pools
    "max_pool1d": (lambda f, x: f(x.flatten(2), (3,), (2,)),),
    "max_pool2d": (lambda f, x: f(x, (2, 2)), lambda f, x: f(x, (3, 3), (1, 1), (1, 1))),
    "max_pool3d": (lambda f, x: f(x.unsqueeze(1), (1, 2, 2)),),
    "adaptive_max_pool1d": (lambda f, x: f(x.flatten(2), (3,)),),
    "adaptive_max_pool2d": (lambda f, x: f(x, (3, 2)),),
    "adaptive_max_pool3d": (lambda f, x: f(x.unsqueeze(1), (1, 3, 2)),),
    # selecting
    "amax": (lambda f, x: f(x, (1,)),),
    "aminmax": (lambda f, x: f(x, dim=1),),
    "sort": (lambda f, x: f(x, 1),),
    "msort": (lambda f, x: _turned(f(_turned(x))),),
    "topk": (lambda f, x: f(x, 2, 3),),
    "kthvalue": (lambda f, x: f(x, 1, 1),),
    "unique": (lambda f, x: f(x)[0] if isinstance(f(x), tuple) else f(x).view(1, -1),),
    "quantile": (lambda f, x: f(x, 0.4, 1),),
    "round": (lambda f, x: f(x * 3),),
    "fmod": (lambda f, x: f(x * 3, 1.0),),
    "copysign": (lambda f, x: f(x, x.flip(3)),),
    "renorm": (lambda f, x: f(x, 2.0, 0, 0.5),),
    "fractional_max_pool2d": (lambda f, x: f(x, (2, 2), (2, 2), None, False, _SAMPLES.expand(len(x), 2, 2)),),
    "aten.fractional_max_pool2d": (lambda f, x: f(x, (2, 2), (2, 2), _SAMPLES.expand(len(x), 2, 2)),),
    "fractional_max_pool3d": (
        lambda f, x: f(x.unsqueeze(1), (1, 2, 2), (1, 2, 2), None, False, torch.full((len(x), 1, 3), 0.3).double()),
    ),
    "aten.fractional_max_pool3d": (
        lambda f, x: f(x.unsqueeze(1), (1, 2, 2), (1, 2, 2), torch.full((len(x), 1, 3), 0.3).double()),
    ),
    "_nn.fractional_max_pool2d": (lambda f, x: f(x, (2, 2), (2, 2), _SAMPLES.expand(len(x), 2, 2)),),
    "_nn.fractional_max_pool3d": (
        lambda f, x: f(x.unsqueeze(1), (1, 2, 2), (1, 2, 2), torch.full((len(x), 1, 3), 0.3).double()),
    ),
    "max_unpool1d": (lambda f, x: _unpooled(f, x, 1),),
    "max_unpool2d": (lambda f, x: _unpooled(f, x, 2),),
    "max_unpool3d": (lambda f, x: _unpooled(f, x, 3),),
    "aten.max_unpool2d": (lambda f, x: _unpooled(f, x, 2, (4, 4)),),
    "aten.max_unpool3d": (lambda f, x: _unpooled(f, x, 3, (2, 4, 4), (1, 2, 2), (0, 0, 0)),),
    # smooth
    "glu": (lambda f, x: f(x, 1),),
    "pow": (lambda f, x: f(x, 3.0),),
    "__rtruediv__": (lambda f, x: f(x, 2.0),),
    "__rpow__": (lambda f, x: f(x, 2.0),),
    "atan2": (lambda f, x: f(x, x.flip(3)),),
    "softmax": (lambda f, x: f(x, 1),),
    "std": (lambda f, x: f(x, (2, 3)),),
    "norm": (lambda f, x: f(x, 2.0, (1,)),),
    "matrix_norm": (lambda f, x: f(x),),
    "cumprod": (lambda f, x: f(x, 1),),
    "cosine_similarity": (lambda f, x: f(x, C[None]),),
    "cdist": (lambda f, x: f(x.flatten(2), W.view(1, 10, 16).expand(len(x), 10, 16)),),
    "dist": (lambda f, x: f(x, C).expand(len(x), 1),),
    "addcdiv": (lambda f, x: f(x, C, x.flip(3)),),
    "layer_norm": (lambda f, x: f(x, (2, 4, 4)),),
    "group_norm": (lambda f, x: f(x, 1),),
    "instance_norm": (lambda f, x: f(x, None, None, None, None, True, 0.1, 1e-5, False),),
    "F.instance_norm": (lambda f, x: f(x),),
    "local_response_norm": (lambda f, x: f(x, 2, 1.0),),
    "lp_pool1d": (lambda f, x: f(x.flatten(2), 3.0, 2),),
    "lp_pool2d": (lambda f, x: f(x, 3.0, 2),),
    "lp_pool3d": (lambda f, x: f(x.unsqueeze(1), 3.0, (1, 2, 2)),),
    "bilinear": (lambda f, x: f(_rows(x), _rows(x), W.view(5, 4, 8).repeat(1, 8, 4), None),),
    "scaled_dot_product_attention": (lambda f, x: f(x, x, x),),
    "multi_head_attention_forward": (lambda f, x: _ATTENTION(*[x.flatten(1, 2)] * 3)[0],),
    "grid_sample": (lambda f, x: f(x, x.permute(0, 2, 3, 1), "bilinear", "zeros", False),),
    "lstm": (_layer(nn.LSTM),),
    "gru": (_layer(nn.GRU),),
    "rnn_tanh": (_layer(nn.RNN),),
    "rnn_relu": (_cell(nn.RNNCell, True, "relu"),),
    "lstm_cell": (_cell(nn.LSTMCell),),
    "gru_cell": (_cell(nn.GRUCell),),
    "rnn_tanh_cell": (_cell(nn.RNNCell),),
    "rnn_relu_cell": (_cell(nn.RNNCell, True, "relu"),),
    # constants
    "full_like": (lambda f, x: f(x, 2.0),),
    "randint_like": (lambda f, x: f(x, 5),),
    "new_zeros": (lambda f, x: f(x, (len(x), 3)),),
    "new_full": (lambda f, x: f(x, (len(x), 3), 2.0),),
    "new_empty_strided": (lambda f, x: f(x, (len(x), 3), (3, 1)),),
    "new_tensor": (lambda f, x: f(x, [1.0, 2.0]).expand(len(x), 2),),
    # deciding and reading
    "item": (lambda f, x: f(x.sum()),),
    "equal": (lambda f, x: f(x, x + 1),),
    "__contains__": (lambda f, x: f(x, 0.5),),
    "__reduce_ex__": (lambda f, x: f(x, 4),),
}
"""Name of a row, alias, or owner.alias -> calls. An alias without calls has those of the first alias of its row before
it that has some; the calls of a row without any are `f(x)`."""

_SAME_AS = {
    "view": "reshape _unsafe_view",
    "view_as": "reshape_as",
    "transpose": "swapaxes",
    "split_with_sizes": "unsafe_split_with_sizes",
    "expand": "broadcast_to",
    "upsample_nearest": "upsample_bilinear",
    "interpolate": "upsample",
    "hstack": "column_stack dstack",
    "__add__": "__radd__ __iadd__ __sub__ __isub__",
    "outer": "ger",
    "dot": "vdot",
    "round": "special.round floor ceil trunc frac",
    "hardshrink": "softshrink",
    "hardsigmoid": "hardswish",
    "relu": "silu",
    "maximum": "minimum",
    "amax": "amin",
    "sort": "median nanmedian mode cummax cummin",
    "quantile": "nanquantile",
    "fmod": "remainder floor_divide",
    "atan2": "hypot logaddexp xlogy",
    "softmax": "log_softmax softmin logsumexp prod",
    "std": "var std_mean var_mean",
    "norm": "vector_norm",
    "cosine_similarity": "pairwise_distance",
    "layer_norm": "rms_norm",
    "new_zeros": "new_ones new_empty",
    "item": "is_nonzero __bool__ __int__ __index__ __float__ __complex__",
    "__rtruediv__": "__rdiv__",
    "equal": "allclose",
    "matmul": "__matmul__",
    "F.unfold": "_nn.unfold",
    "dropout": "dropout2d alpha_dropout feature_alpha_dropout feature_dropout",
    "to": "type",
    "vecdot": "linalg.vecdot",
    "cumprod": "logcumsumexp",
    "aten.max_unpool2d": "_nn.max_unpool2d",
    "aten.max_unpool3d": "_nn.max_unpool3d",
}
"""Name -> the names that have the same calls."""
SAME_AS = {name: key for key, names in _SAME_AS.items() for name in names.split()}

NOT_CALLED = {
    "Tensor.cuda": "needs a GPU",
    "aten.__getitem__": "indexes lists",
    "aten.__contains__": "searches lists",
    "aten.data": "is not for Python",
    "aten.cpu": "is not for Python",
    "aten.cuda": "needs a GPU",
    "torch.float": "is a dtype",
    "torch.double": "is a dtype",
    "torch.cpu": "is a module",
    "torch.cuda": "is a module",
    "torch.storage": "is a module",
    **{f"{owner}.__reduce_ex__": "copies a module" for owner in ("torch", "F", "special", "linalg", "_nn", "aten")},
    "Tensor.__cuda_array_interface__": "needs a GPU",
    "Tensor.__div__": "is __truediv__ in Python 3",
}


class Form(NamedTuple):
    """One function of torch.

    Args:
        label: its namespace and name.
        function: the function.
        calls: sample calls of it.
    """

    label: str
    function: Callable[..., Any]
    calls: tuple[Body, ...]


OWNERS = {
    "torch": torch,
    "Tensor": Tensor,
    "F": F,
    "special": torch.special,
    "linalg": torch.linalg,
    "_nn": torch._C._nn,
    "aten": torch.ops.aten,
}


def iter_forms(row: Operation) -> Iterator[Form]:
    """Yield every function of torch with the name of an alias of a row, or that name and an underscore."""
    for alias in row.aliases:
        for owner, namespace in OWNERS.items():
            for name in (alias,) if row.kind == "metadata" else (alias, f"{alias}_", f"{alias}_copy"):
                function = getattr(namespace, name, None)
                if isinstance(function, property) or (function is not None and not callable(function)):
                    function = getattr(vars(Tensor).get(alias, vars(torch._C.TensorBase).get(alias)), "__get__", None)
                label = f"{owner}.{name}"
                if function is not None and label not in NOT_CALLED:
                    yield Form(label, function, _find_calls(row, owner, alias))


def _find_calls(row: Operation, owner: str, alias: str) -> tuple[Body, ...]:
    for key in (f"{owner}.{alias}", alias, row.name):
        key = SAME_AS.get(key, key)
        if key in CALLS:
            return CALLS[key]
    return (lambda f, x: f(x),)


def draw_images(row: Operation, label: str, images: int = 3) -> Tensor:
    """Draw (N, 2, 4, 4) images on which a row is defined."""
    drawn = draw(images, 2, 4, 4)
    if row.kind != "smooth":
        return drawn
    name = label.split(".")[1].rstrip("_")
    shift = {"acosh": 1.0, "arccosh": 1.0, "elu": -1.0, "selu": -1.0, "celu": -1.0}.get(name, 0.0)
    return 0.1 + 0.8 * torch.special.ndtr(drawn) + shift


ROWS = list(OPERATIONS.values())
