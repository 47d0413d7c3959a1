"""A model borrowed without a trace: unwrapped, in eval mode, at strict precision, with the random state kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from grokkit.errors import ModelContractError, UsageError
from grokkit.seeding import preserved_rng


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module below DataParallel, DistributedDataParallel and `torch.compile` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU for a model that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """Floating dtype of the first floating parameter or buffer; float32 for a model that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def full_precision(model: nn.Module, what: str) -> torch.dtype:
    """The model's dtype, float32 or float64; a ModelContractError that says `what` needs it for another one."""
    dtype = dtype_of(model)
    if dtype not in (torch.float32, torch.float64):
        raise ModelContractError(f"{what} a float32 or float64 model; got {dtype}. Pass a `.float()` copy of it")
    return dtype


@contextmanager
def strict_precision() -> Iterator[None]:
    """Full float32 arithmetic: TF32 off in convolutions and matrix products, autocast off.

    TF32 at the reference radius inflates local complexity 2 to 2.7 times, so measures run inside this.
    """
    backends: Any = torch.backends
    knobs = (
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
    )
    before = [knob.fp32_precision for knob in knobs]
    legacy = _legacy_precision()
    _set_legacy_precision(legacy and (False, "highest"))
    for knob in knobs:
        knob.fp32_precision = "ieee"
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        _set_legacy_precision(legacy)
        for knob, precision in zip(knobs, before, strict=True):
            # What was inherited from the global setting goes on inheriting it.
            knob.fp32_precision = "none" if precision == backends.fp32_precision != "none" else precision


def _legacy_precision() -> tuple[bool, str] | None:
    """The older switches beside the knobs, kept in step with them because torch refuses to read a mix of the two; None
    where the caller has mixed them already."""
    try:
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _set_legacy_precision(switches: tuple[bool, str] | None) -> None:
    if switches is not None:
        torch.backends.cudnn.allow_tf32, matmul = switches
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode; each one's own training flag is handed back, also after an exception."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def untouched_gradients(model: nn.Module) -> Iterator[None]:
    """`.grad` and `requires_grad` of every parameter are handed back as they were."""
    kept = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient, required in kept:
            parameter.grad = gradient
            if parameter.requires_grad != required:  # torch forbids even a needless call on an inference tensor
                parameter.requires_grad_(required)


@contextmanager
def untouched_buffers(model: nn.Module) -> Iterator[None]:
    """The values of all buffers are handed back, also where a forward pass writes to them in eval mode."""
    # an inference tensor has no version, and outside inference mode nobody can write to it
    buffers = [buffer for buffer in model.buffers() if not buffer.is_inference()]
    kept = [(buffer, buffer.clone(), buffer._version) for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value, version in kept:
                # Only where it was written to: a needless write would spoil a backward pass that still needs it.
                if buffer._version != version:
                    buffer.copy_(value)


@contextmanager
def preserved_state(model: nn.Module, *, strict: bool = True) -> Iterator[nn.Module]:
    """The unwrapped model in eval mode; random state, gradients, buffers and flags are restored on the way out.

    Args:
        model: any module, wrapped or not.
        strict: also switch TF32 and autocast off (`strict_precision`).

    Raises:
        UsageError: `model` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"`model` must be a torch.nn.Module; got {type(model).__name__}")
    inner = unwrap(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(preserved_rng())
        stack.enter_context(eval_mode(inner))
        stack.enter_context(untouched_gradients(inner))
        stack.enter_context(untouched_buffers(inner))
        if strict:
            stack.enter_context(strict_precision())
        yield inner
