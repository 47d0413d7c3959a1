"""The precision that a run trains in. Measures never use it: they run in strict float32 (`preserved_state`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from grokkit.errors import UsageError
from grokkit.literals import Precision, PrecisionChoice
from grokkit.registry import did_you_mean

PRECISIONS: tuple[PrecisionChoice, ...] = get_args(PrecisionChoice)
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""The flags in /proc/cpuinfo for native bfloat16 arithmetic, on x86 and on ARM."""


def resolve_precision(requested: PrecisionChoice, device: torch.device) -> Precision:
    """Return the precision that a run on `device` trains in: `float32`, `bfloat16` or `float16`.

    Args:
        requested: one of `PRECISIONS`. `auto` is bfloat16 on a GPU that supports it (compute capability 8.0 or more),
            float16 with a loss scaler on one with capability 7, float32 everywhere else. A precision that the hardware
            lacks is replaced by that of `auto`, with a UserWarning: emulated it is slower than float32, many times so
            on a CPU.
        device: the device of the run.

    Raises:
        UsageError: an unknown precision.
    """
    if requested not in PRECISIONS:
        raise UsageError(
            f"`precision` must be one of {', '.join(PRECISIONS)}; got "
            f"{requested!r}.{did_you_mean(requested, list(PRECISIONS))}"
        )
    lower = _lower_precisions(device)
    best: Precision = lower[0] if lower and device.type == "cuda" else "float32"
    if requested == "auto":
        return best
    if requested == "float32" or requested in lower:
        return requested
    warnings.warn(f"this {device.type} has no {requested} arithmetic; training in {best} instead", stacklevel=3)
    return best


def describe_precision(device: torch.device) -> str:
    """Return the precision of `auto` on `device`, and the reason."""
    precision = resolve_precision("auto", device)
    if device.type != "cuda":
        return f"{precision}: a CPU uses a lower precision only on request"
    major, minor = torch.cuda.get_device_capability(device)
    reasons = {
        "bfloat16": f"supported by capability {major}.{minor} (8.0 or higher)",
        "float16": f"with a loss scaler: bfloat16 needs capability 8.0 (torch emulates it slowly), this GPU has "
        f"{major}.{minor}",
        "float32": f"lower precisions are not faster on capability {major}.{minor}",
    }
    return f"{precision}: {reasons[precision]}"


def _lower_precisions(device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions below float32 that `device` supports, the preferred one first."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return ("bfloat16", "float16") if major >= 8 else ("float16",) if major == 7 else ()
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if device.type == "cpu" and info.exists() else set()
    return ("bfloat16",) if flags & BFLOAT16_FLAGS else ()


class Autocast:
    """A forward pass whose convolutions and matrix products run in `precision`, with float32 weights and logits.

    Args:
        model: images (N, C, H, W) to logits (N, classes); a module, its compiled form, or a function.
        precision: the result of `resolve_precision`.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], precision: Precision) -> None:
        self._model, self._is_lowered = model, precision != "float32"
        self._dtype = getattr(torch, precision)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._is_lowered:
            return self._model(x)
        # Without the cache of cast weights: a CUDA graph must cast them again at every replay.
        with torch.autocast(x.device.type, self._dtype, cache_enabled=False):
            logits = self._model(x)
        return logits.float()
