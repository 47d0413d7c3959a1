"""Compute Integrated Gradients without quadrature: the gradient is constant on each piece of the exact partition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grokkit.errors import UsageError
from grokkit.spline.affine import Program
from grokkit.spline.knots import KnotGrid
from grokkit.spline.measurement_mode import validate_images
from grokkit.spline.segment import prepare_segments, sweep_segments

_BATCH = 16


@dataclass(frozen=True, eq=False)
class ExactIntegratedGradients:
    """Exact Integrated Gradients of several images.

    Args:
        values: float64 (N, ...) on the CPU: relevance of every input value.
        pieces: int64 (N,): activation regions between the baseline and the image.
        gap: float64 (N,): |sum of values - (F(image) - F(baseline))|, 0 but for rounding.
        change: float64 (N,): F(image) - F(baseline).
    """

    values: Tensor
    pieces: Tensor
    gap: Tensor
    change: Tensor


class _Integral:
    """A sink that sums, over the pieces, the gradient at the midpoint times the length of the piece."""

    def __init__(self, program: Program, ends: Tensor, target: Tensor) -> None:
        self._program, self._ends, self._target = program, ends, target
        self.total = torch.zeros_like(ends[:, 0])
        self.pieces = torch.zeros(len(ends), dtype=torch.int64, device=ends.device)

    def consume(self, grid: KnotGrid, outputs: Tensor) -> None:
        """Add the pieces between these knots; the outputs are not used."""
        piece = grid.bounds_piece.nonzero().squeeze(1)
        for rows in torch.split(piece, _BATCH):
            self._add(grid.segment[rows], grid.t[rows], grid.t[rows + 1])

    def _add(self, segment: Tensor, start: Tensor, end: Tensor) -> None:
        shape = (-1, *(1,) * (self._ends.dim() - 2))
        a, b = self._ends[segment].unbind(1)
        with torch.enable_grad():
            middle = torch.lerp(a, b, ((start + end) / 2).view(shape)).requires_grad_()
            logits = self._program.forward(middle).gather(1, self._target[segment].unsqueeze(1)).squeeze(1)
            (gradient,) = torch.autograd.grad((logits * (end - start)).sum(), middle)
        self.total.index_add_(0, segment, gradient)
        self.pieces.index_add_(0, segment, torch.ones_like(segment))


def exact_integrated_gradients(
    model: nn.Module, images: Tensor, target: Tensor | int, baseline: Tensor | None = None
) -> ExactIntegratedGradients:
    """Compute Integrated Gradients (x - x0) * integral of dF_target/dx along the line from x0 to x, exactly.

    On each piece of the segment's exact partition the gradient is constant, so the integral is a sum over pieces of
    gradient times length, without a step size. Float64, also for a float32 model.

    Args:
        model: as for `grokkit.partition_segment`, returning logits (N, classes).
        images: floating tensor (N, ...), in the input space of the model.
        target: class whose logit is explained: one for all, or int64 (N,).
        baseline: x0, of one image's shape or (N, ...); None: zeros.

    Returns:
        `ExactIntegratedGradients`; completeness holds to about 1e-12 of the change in the logit.

    Raises:
        UsageError: images, baseline or target have the wrong type or shape.
        ModelContractError: the model is not piecewise affine.

    Cost: about one float64 forward pass per breakpoint for the partition, and a forward and a backward pass per piece.

    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017; exact by partition in
    Sotoudeh and Thakur, "Computing Linear Restrictions of Neural Networks", NeurIPS 2019.
    """
    validate_images(images)
    start = _to_baselines(images, baseline)
    with prepare_segments(model, start, images, batched=True) as (program, ends, _):
        outputs = torch.stack([program.forward(pair) for pair in ends])
        classes = _to_classes(target, outputs)
        first, last = outputs.gather(2, classes.view(-1, 1, 1).expand(-1, 2, 1)).squeeze(2).unbind(1)
        change = last - first
        integral = _Integral(program, ends, classes)
        sweep_segments(program, ends, integral)
        values = integral.total * (ends[:, 1] - ends[:, 0])
    gap = (values.flatten(1).sum(1) - change).abs()
    return ExactIntegratedGradients(values.cpu(), integral.pieces.cpu(), gap.cpu(), change.cpu())


def _to_baselines(images: Tensor, baseline: Tensor | None) -> Tensor:
    """Return a baseline for every image."""
    if baseline is None:
        return torch.zeros_like(images)
    if not isinstance(baseline, Tensor) or baseline.shape not in (images.shape, images.shape[1:]):
        got = tuple(baseline.shape) if isinstance(baseline, Tensor) else type(baseline).__name__
        raise UsageError(
            f"`baseline` must be a tensor {tuple(images.shape[1:])}, or {tuple(images.shape)} for one per image; "
            f"got {got}"
        )
    return baseline.to(images).expand_as(images)


def _to_classes(target: Tensor | int, outputs: Tensor) -> Tensor:
    """Return int64 (image,): the class to explain, for outputs (image, 2, class)."""
    if outputs.dim() != 3:
        raise UsageError(f"the model must return logits (N, classes); got (N, *{tuple(outputs.shape[2:])})")
    classes, num_classes = torch.as_tensor(target, device=outputs.device), outputs.shape[-1]
    is_valid = classes.dtype == torch.int64 and classes.shape in ((), outputs.shape[:1])
    if not is_valid or not ((classes >= 0) & (classes < num_classes)).all():
        raise UsageError(
            f"`target` must be a class in 0..{num_classes - 1}, or int64 ({len(outputs)},) of them, one per image; "
            f"got {target!r}"
        )
    return classes.expand(len(outputs))
