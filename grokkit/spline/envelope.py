"""Max-pooling along segments: where the winner of a window changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.spline.affine import MAX_POOLS, Step
from grokkit.spline.knots import ZERO, Crossings


def windows(size: Sequence[int], out: Sequence[int], options: dict[str, Any], device: torch.device) -> Tensor:
    """int64 (window, entry): flat indices into an image of `size`; the image's size stands for padding."""
    kernel, stride, padding, dilation = (options[name] for name in ("kernel", "stride", "padding", "dilation"))
    rows, columns = (
        torch.arange(out[axis], device=device).unsqueeze(1) * stride[axis]
        - padding[axis]
        + torch.arange(kernel[axis], device=device) * dilation[axis]
        for axis in (0, 1)
    )
    row, column = rows.view(out[0], 1, kernel[0], 1), columns.view(1, out[1], 1, kernel[1])
    outside = (row < 0) | (row >= size[0]) | (column < 0) | (column >= size[1])
    flat = torch.where(outside, size[0] * size[1], row * size[1] + column)
    return flat.reshape(out[0] * out[1], kernel[0] * kernel[1])


def pool_call(step: Step) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """Kernel, stride, padding and dilation of a max-pool as pairs, and the pool itself on (N, channel, height, width);
    a pool over one dimension is one over (1, length)."""
    spatial = MAX_POOLS[step.node.func]
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict.fromkeys(names) | dict(zip(names, step.node.args, strict=False)) | step.node.kwargs

    def pair(value: Any, filler: int) -> tuple[int, ...]:
        values = (value,) * spatial if isinstance(value, int) else tuple(value)
        return (filler, *values) if spatial == 1 else values

    kernel = pair(given["kernel_size"], 1)
    options = {
        "kernel": kernel, "stride": pair(given["stride"], 1) if given["stride"] else kernel,
        "padding": pair(given["padding"] or 0, 0), "dilation": pair(given["dilation"] or 1, 1),
    }  # fmt: skip
    places = (options[name] for name in ("kernel", "stride", "padding", "dilation"))
    return options, partial(
        F.max_pool2d, **dict(zip(names[1:5], places, strict=True)), ceil_mode=bool(given["ceil_mode"])
    )


def switches(z: Tensor, out: Sequence[int], options: dict[str, Any], joined: Tensor) -> Crossings:
    """Places where another entry takes over the maximum of a window of z (knot, channel, height, width), which
    is pooled to (knot, channel, *out)."""
    index = windows(z.shape[-2:], out, options, z.device)
    entries = F.pad(z.flatten(2), (0, 1), value=-torch.inf)
    winner = _winners(entries, index)
    moved = (winner[1:] != winner[:-1]) & joined.view(-1, 1, 1)
    piece, channel, window = moved.nonzero(as_tuple=True)
    start = entries[piece.unsqueeze(1), channel.unsqueeze(1), index[window]]
    end = entries[piece.unsqueeze(1) + 1, channel.unsqueeze(1), index[window]]
    zero = ZERO * z[0].abs().max()
    kept = ~(_wins(start, zero) & _wins(end, zero)).any(dim=1)
    return _envelope(piece[kept], start[kept], end[kept])


def _winners(entries: Tensor, index: Tensor) -> Tensor:
    """Position of the largest entry of every window: int64 (knot, channel, window)."""
    best = entries[..., index[:, 0]]
    winner = torch.zeros_like(best, dtype=torch.int64)
    for position in range(1, index.shape[1]):
        challenger = entries[..., index[:, position]]
        ahead = challenger > best
        best = torch.where(ahead, challenger, best)
        winner.masked_fill_(ahead, position)
    return winner


def _wins(values: Tensor, zero: Tensor) -> Tensor:
    return values >= values.amax(dim=1, keepdim=True) - zero


def _envelope(piece: Tensor, start: Tensor, end: Tensor) -> Crossings:
    """Bends of the maximum of the lines from `start` to `end` (window, entry), all windows one step at a time."""
    pads = start.isinf()
    slope = (end - start).masked_fill(pads, -torch.inf)
    found: list[tuple[Tensor, Tensor]] = []
    # of those that are ahead at the start, the steepest is ahead behind it
    ahead = start >= start.amax(dim=1, keepdim=True)
    current = slope.masked_fill(~ahead, -torch.inf).argmax(dim=1, keepdim=True)
    active = torch.arange(len(piece), device=piece.device)
    while len(active):
        rows, lines = start[active], slope[active]
        gain = lines - lines.gather(1, current[active])
        gap = rows.gather(1, current[active]) - rows
        place = torch.where(gain > 0, gap / gain, torch.inf)
        soonest = place.amin(dim=1, keepdim=True)
        # at a common crossing the steepest goes on
        successor = lines.masked_fill(place > soonest, -torch.inf).argmax(dim=1, keepdim=True)
        inside = (soonest < 1).squeeze(1)
        active, soonest, successor = active[inside], soonest[inside], successor[inside]
        current[active] = successor
        found.append((piece[active], soonest.squeeze(1)))
    if not found:
        return Crossings(piece, start.new_zeros(0), piece)
    pieces, places = (torch.cat(column) for column in zip(*found, strict=True))
    return Crossings(pieces, places, torch.full_like(pieces, -1))
