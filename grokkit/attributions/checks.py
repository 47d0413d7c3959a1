"""Check completeness: the values of an image must add up to the logit's difference from the baseline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROUNDING_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}
"""Rounding error allowed, as a share of the summands' size. Float64 is not tighter because Captum casts the weights of
its quadrature to float32.
"""


def completeness_sums(values: Tensor, outputs: Tensor, at_baseline: Tensor, target: Tensor) -> Tensor:
    """Compute both sides of the completeness sum per image, in float64 on the CPU.

    Args:
        values: (n, C, H, W) relevance.
        outputs, at_baseline: (n, classes) logits of the images and of their baselines.
        target: (n,) explained classes.

    Returns:
        (n, 3): sum of the values minus the logit's gain, the gain, the size of the largest summands.
    """
    upper, lower = (logits.gather(1, target[:, None]).squeeze(1).double() for logits in (outputs, at_baseline))
    flat = values.flatten(1).double()
    size = flat.abs().sum(1) + upper.abs() + lower.abs()
    return torch.stack([flat.sum(1) - (upper - lower), upper - lower, size], dim=1).cpu()


def check_completeness(parts: list[Tensor], tolerance: float, dtype: torch.dtype) -> dict[str, Any]:
    """Return the `checks` of an attribution from the chunks of `completeness_sums`; empty if there are none.

    `complete` is true if the gaps of all images together are within `tolerance` of their gains together, plus the
    rounding error of `dtype`. A share per image would be meaningless: it has no bound if a logit gains almost
    nothing.
    """
    if not parts:
        return {}
    gap, gain, size = torch.cat(parts).unbind(1)
    allowed = tolerance * gain.abs().sum() + ROUNDING_TOLERANCE[dtype] * size.sum()
    return {
        "complete": bool(gap.abs().sum() <= allowed),
        "tolerance": tolerance,
        "completeness_gap": gap,
        "output_difference": gain,
    }
