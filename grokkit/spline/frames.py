"""Draw orthonormal directions in input space, identical at every step of a run and on every machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grokkit.errors import UsageError
from grokkit.literals import FrameChoice
from grokkit.seeding import make_generator

ORTHONORMAL_TOLERANCE = 1e-4
"""Largest |V V^T - I| accepted for a frame passed by the caller."""


def draw_orthonormal_frame(
    directions: int, size: int, seed: int | torch.Generator = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Draw uniformly distributed orthonormal directions (Haar measure), by QR of a Gaussian matrix.

    They are drawn and factored in float64 on the CPU and only then cast, so that every device uses the same ones.

    Args:
        directions: number of rows P, 1..size.
        size: dimension D of the input space.
        seed: root seed (the stream "frame" is used), or a generator on the CPU, which is advanced.
        dtype: floating dtype of the result.

    Returns:
        V of shape (P, D) on the CPU with V V^T = I.

    Raises:
        UsageError: `directions` is not in 1..size.
    """
    if isinstance(directions, bool) or not isinstance(directions, int) or not 1 <= directions <= size:
        raise UsageError(f"`directions` must be an int in 1..{size} (the input's size); got {directions!r}")
    rng = seed if isinstance(seed, torch.Generator) else make_generator(seed, "frame")
    gaussian = torch.randn(size, directions, generator=rng, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    # LAPACK may choose the sign of each column; making R's diagonal positive makes the factor unique
    frame: Tensor = (q * r.diagonal().sign()).T
    return frame.contiguous().to(dtype)


@dataclass(frozen=True)
class Frames:
    """The directions of every measured point.

    Args:
        shape: shape of one image.
        directions: P.
        seed: root seed of the frames of single points.
        like: a tensor with the device and dtype of the directions.
        common: the (P, D) frame shared by all points; None: each point has a separate frame.
    """

    shape: torch.Size
    directions: int
    seed: int
    like: Tensor
    common: Tensor | None

    def at(self, points: range) -> Tensor:
        """Return the directions of these points: (P, len(points) or 1, *shape)."""
        if self.common is not None:
            return self._cast(self.common.unsqueeze(1))
        frames = [
            draw_orthonormal_frame(self.directions, self.shape.numel(), make_generator(self.seed, "frame", point))
            for point in points
        ]
        return self._cast(torch.stack(frames, dim=1))

    def _cast(self, frame: Tensor) -> Tensor:
        return torch.unflatten(frame.to(self.like.device, self.like.dtype), -1, self.shape)


def make_frames(images: Tensor, directions: int, frames: FrameChoice, seed: int, frame: Tensor | None) -> Frames:
    """Create the frames for the arguments of a public call; a `frame` passed by the caller takes precedence.

    Raises:
        UsageError: unknown `frames`, or a `frame` that is not orthonormal, has another shape, or is combined with
            frames="per_point".
    """
    if frames not in ("shared", "per_point"):
        raise UsageError(f"`frames` must be 'shared' or 'per_point'; got {frames!r}")
    shape = images.shape[1:]
    if frame is not None:
        if not isinstance(frame, Tensor):
            raise UsageError(f"`frame` must be a tensor (P, D), one direction a row; got {type(frame).__name__}")
        if frames == "per_point":
            raise UsageError("`frame` is shared by all points; leave `frames` at 'shared', or `frame` at None")
        return Frames(shape, len(frame), seed, images[:0], _validate_frame(frame, shape.numel()))
    common = draw_orthonormal_frame(directions, shape.numel(), seed)
    return Frames(shape, directions, seed, images[:0], common if frames == "shared" else None)


def _validate_frame(frame: Tensor, size: int) -> Tensor:
    if frame.dim() != 2 or frame.shape[1] != size or not 1 <= len(frame) <= size:
        raise UsageError(
            f"`frame` must have shape (P, {size}) with P in 1..{size}, one direction a row; got {tuple(frame.shape)}"
        )
    rows = frame.detach().double()
    error = (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs().max().item()
    if not error < ORTHONORMAL_TOLERANCE:
        raise UsageError(
            f"`frame` must have orthonormal rows: max |V V^T - I| must be below {ORTHONORMAL_TOLERANCE:g}; got "
            f"{error:.3g}. Orthonormalise it, for example with torch.linalg.qr"
        )
    return rows
