"""Max-pooling along segments: where the winner of a window changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.spline.affine import AffinePiece, apply_nonlinearity
from grokkit.spline.knots import Crossings, zero_tolerance
from grokkit.spline.windows import Windows
from grokkit.units import MAX_POOLS, normalise_pool_arguments


def index_windows(step: AffinePiece, z: Tensor) -> tuple[Tensor, torch.Size]:
    """int64 (window, entry): flat indices into the pooled dimensions of z, whose size stands for padding; and the
    dimensions of the pooled result."""
    pool = MAX_POOLS[step.node.func]
    rest = {name: value for name, value in step.node.kwargs.items() if name != "input"}
    arguments = (
        None if pool.adaptive else normalise_pool_arguments(z, *step.node.args[1:], spatial=pool.spatial, **rest)
    )
    pooled = apply_nonlinearity(step.node, lambda _: z[:1], 1)
    sizes = z.shape[-pool.spatial :]
    places = torch.arange(sizes.numel(), device=z.device).view(1, *sizes)
    entries = Windows(pool, z, pooled, arguments).entries(places, sizes.numel())
    return torch.stack([entry.flatten() for entry in entries], dim=1), pooled.shape[-pool.spatial :]


def find_switches(z: Tensor, index: Tensor, joined: Tensor) -> Crossings:
    """Places where another entry takes over the maximum of a window of z (knot, channel, entry)."""
    entries = F.pad(z, (0, 1), value=-torch.inf)
    winner = _winners(entries, index)
    moved = (winner[1:] != winner[:-1]) & joined.view(-1, 1, 1)
    piece, channel, window = moved.nonzero(as_tuple=True)
    start = entries[piece.unsqueeze(1), channel.unsqueeze(1), index[window]]
    end = entries[piece.unsqueeze(1) + 1, channel.unsqueeze(1), index[window]]
    zero = zero_tolerance(z)
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
