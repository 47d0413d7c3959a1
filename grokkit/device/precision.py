"""The arithmetic that a run trains in. Measures never use it: they are taken in strict float32 (`preserved_state`)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from grokkit.errors import UsageError
from grokkit.registry import did_you_mean

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""How the kernel names a CPU's own bfloat16 arithmetic, on x86 and on ARM."""


def resolve_precision(wanted: str, device: torch.device) -> str:
    """`float32`, `bfloat16` or `float16`: what a run on `device` trains in.

    Args:
        wanted: `auto` is bfloat16 on a GPU that has it (compute capability 8.0 or more), float16 with a loss scaler on
            one with capability 7, float32 everywhere else. A precision that the hardware lacks is replaced by what
            `auto` gives, with a UserWarning: emulated it is slower than float32, on a CPU many times.

    Raises:
        UsageError: another word.
    """
    if wanted not in PRECISIONS:
        raise UsageError(
            f"`precision` must be one of {', '.join(PRECISIONS)}; got "
            f"{wanted!r}.{did_you_mean(wanted, list(PRECISIONS))}"
        )
    lower = _lower_precisions(device)
    best = lower[0] if lower and device.type == "cuda" else "float32"
    if wanted == "auto":
        return best
    if wanted == "float32" or wanted in lower:
        return wanted
    warnings.warn(f"this {device.type} has no {wanted} arithmetic; training in {best} instead", stacklevel=3)
    return best


def describe_precision(device: torch.device) -> str:
    """What `auto` trains in on `device`, and why."""
    chosen = resolve_precision("auto", device)
    if device.type != "cuda":
        return f"{chosen}: on a CPU nothing lower is taken unless asked for"
    major, minor = torch.cuda.get_device_capability(device)
    reasons = {
        "bfloat16": f"capability {major}.{minor} has it (from 8.0 on)",
        "float16": f"with a loss scaler: capability {major}.{minor} has no bfloat16, which begins at 8.0 (torch "
        "emulates it, slowly)",
        "float32": f"capability {major}.{minor} is too old for lower ones to be faster",
    }
    return f"{chosen}: {reasons[chosen]}"


def _lower_precisions(device: torch.device) -> tuple[str, ...]:
    """Precisions below float32 that `device` computes in, the better one first."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return ("bfloat16", "float16") if major >= 8 else ("float16",) if major == 7 else ()
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if device.type == "cpu" and info.exists() else set()
    return ("bfloat16",) if words & BFLOAT16_FLAGS else ()


class Autocast:
    """A forward pass whose convolutions and products run in `precision`, on float32 weights; logits are float32.

    Args:
        model: images (N, C, H, W) to logits (N, classes); a module, its compiled form, or a function.
        precision: as `resolve_precision` gives it.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], precision: str) -> None:
        self._model, self._lowered = model, precision != "float32"
        self._dtype = getattr(torch, precision)

    def __call__(self, x: Tensor) -> Tensor:
        if not self._lowered:
            return self._model(x)
        # Without the cache of cast weights: a step that is recorded in a graph must cast them anew at every replay.
        with torch.autocast(x.device.type, self._dtype, cache_enabled=False):
            logits = self._model(x)
        return logits.float()
