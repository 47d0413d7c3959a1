"""Find the places along segments at which the winner of a max-pool window changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from grokkit.spline.affine import ProgramStep, apply_nonlinearity
from grokkit.spline.knots import Crossings, compute_zero_tolerance
from grokkit.spline.windows import Windows
from grokkit.units import normalise_pool_arguments


def index_windows(step: ProgramStep, z: Tensor) -> tuple[Tensor, torch.Size]:
    """Return the entries of every max-pool window and the shape of the pooled dimensions.

    Returns:
        int64 (window, entry): flat indices into the pooled dimensions of z; their total size marks padding.
        Size of the pooled dimensions of the result.
    """
    pool = step.pool
    rest = {name: value for name, value in step.node.kwargs.items() if name != "input"}
    arguments = (
        None if pool.adaptive else normalise_pool_arguments(z, *step.node.args[1:], spatial=pool.spatial, **rest)
    )
    pooled = apply_nonlinearity(step.node, lambda _: z[:1], 1)
    sizes = z.shape[-pool.spatial :]
    positions = torch.arange(sizes.numel(), device=z.device).view(1, *sizes)
    entries = Windows(pool, z, pooled, arguments).iter_entries(positions, sizes.numel())
    return torch.stack([entry.flatten() for entry in entries], dim=1), pooled.shape[-pool.spatial :]


def find_switches(z: Tensor, index: Tensor, is_piece: Tensor) -> Crossings:
    """Find the positions at which the maximum of a window of z (knot, channel, entry) moves to another entry."""
    entries = F.pad(z, (0, 1), value=-torch.inf)
    winner = _find_winners(entries, index)
    has_changed = (winner[1:] != winner[:-1]) & is_piece.view(-1, 1, 1)
    piece, channel, window = has_changed.nonzero(as_tuple=True)
    start = entries[piece.unsqueeze(1), channel.unsqueeze(1), index[window]]
    end = entries[piece.unsqueeze(1) + 1, channel.unsqueeze(1), index[window]]
    zero = compute_zero_tolerance(z)
    is_switch = ~(_is_winner(start, zero) & _is_winner(end, zero)).any(dim=1)
    return _trace_envelope(piece[is_switch], start[is_switch], end[is_switch])


def _find_winners(entries: Tensor, index: Tensor) -> Tensor:
    """Return the position of the largest entry of every window: int64 (knot, channel, window)."""
    best = entries[..., index[:, 0]]
    winner = torch.zeros_like(best, dtype=torch.int64)
    for position in range(1, index.shape[1]):
        challenger = entries[..., index[:, position]]
        is_larger = challenger > best
        best = torch.where(is_larger, challenger, best)
        winner.masked_fill_(is_larger, position)
    return winner


def _is_winner(values: Tensor, zero: Tensor) -> Tensor:
    return values >= values.amax(dim=1, keepdim=True) - zero


def _trace_envelope(piece: Tensor, start: Tensor, end: Tensor) -> Crossings:
    """Find the breakpoints of the upper envelope of the lines from `start` to `end`, both (window, entry).

    All windows advance together, one breakpoint per iteration.
    """
    is_padding = start.isinf()
    slope = (end - start).masked_fill(is_padding, -torch.inf)
    crossings: list[tuple[Tensor, Tensor]] = []
    # of the lines that are largest at the start, the steepest is largest right after it
    is_larger = start >= start.amax(dim=1, keepdim=True)
    current = slope.masked_fill(~is_larger, -torch.inf).argmax(dim=1, keepdim=True)
    active = torch.arange(len(piece), device=piece.device)
    while len(active):
        values, lines = start[active], slope[active]
        gain = lines - lines.gather(1, current[active])
        gap = values.gather(1, current[active]) - values
        position = torch.where(gain > 0, gap / gain, torch.inf)
        nearest = position.amin(dim=1, keepdim=True)
        # of the lines that meet at one crossing, the steepest is largest after it
        next_line = lines.masked_fill(position > nearest, -torch.inf).argmax(dim=1, keepdim=True)
        inside = (nearest < 1).squeeze(1)
        active, nearest, next_line = active[inside], nearest[inside], next_line[inside]
        current[active] = next_line
        crossings.append((piece[active], nearest.squeeze(1)))
    if not crossings:
        return Crossings(piece, start.new_zeros(0), piece)
    pieces, positions = (torch.cat(column) for column in zip(*crossings, strict=True))
    return Crossings(pieces, positions, torch.full_like(pieces, -1))
