"""Run a model without side effects: unwrapped, in eval mode, at strict precision, with all state restored."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grokkit.device.model_check import check_model
from grokkit.errors import ModelContractError
from grokkit.seeding import preserved_rng


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and `torch.compile` wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the first parameter or buffer; the CPU if the model has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter or buffer; float32 if the model has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def require_full_precision(model: nn.Module, subject: str) -> torch.dtype:
    """Return the model's dtype, float32 or float64; raise ModelContractError for any other.

    Args:
        model: any module.
        subject: start of the error message, such as "an attack needs".
    """
    dtype = dtype_of(model)
    if dtype not in (torch.float32, torch.float64):
        raise ModelContractError(f"{subject} a float32 or float64 model; got {dtype}. Pass a `.float()` copy of it")
    return dtype


@contextmanager
def strict_precision() -> Iterator[None]:
    """Compute in full float32: TF32 off in convolutions and matrix products, the caller's autocast off.

    TF32 at the reference radius inflates local complexity 2 to 2.7 times, so measures run inside this context.
    """
    backends: Any = torch.backends
    settings = (
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
    )
    before = [setting.fp32_precision for setting in settings]
    legacy = _get_legacy_precision()
    _set_legacy_precision(legacy and (False, "highest"))
    for setting in settings:
        setting.fp32_precision = "ieee"
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        _set_legacy_precision(legacy)
        for setting, precision in zip(settings, before, strict=True):
            # "none" inherits the global setting; a backend that inherited it before must inherit it again.
            setting.fp32_precision = "none" if precision == backends.fp32_precision != "none" else precision


def _get_legacy_precision() -> tuple[bool, str] | None:
    """Return the legacy TF32 switches; None if the caller has mixed them with the new settings.

    torch raises on reading a mix of both, so they are kept consistent.
    """
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
    """Put every submodule in eval mode; restore each one's training flag at exit, also after an exception."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
    except NotImplementedError as error:
        raise ModelContractError(
            "an exported program has no eval mode and cannot be measured; pass the module from which it was exported"
        ) from error
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def untouched_gradients(model: nn.Module) -> Iterator[None]:
    """Restore `.grad` and `requires_grad` of every parameter at exit."""
    saved = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient, required in saved:
            parameter.grad = gradient
            if parameter.requires_grad != required:  # torch forbids even a redundant call on an inference tensor
                parameter.requires_grad_(required)


@contextmanager
def untouched_buffers(model: nn.Module) -> Iterator[None]:
    """Restore all buffers at exit, also if a forward pass writes to them or replaces them in eval mode."""
    owners = [(module, dict(module._buffers.items())) for module in model.modules()]
    # an inference tensor has no version counter, and cannot be written to outside inference mode
    buffers = [buffer for buffer in model.buffers() if not buffer.is_inference()]
    saved = [(buffer, buffer.clone(), buffer._version) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value, version in saved:
            if _was_written(buffer, value, version):
                buffer.data.copy_(value)  # not counted as a write, which would spoil a backward pass under way
        for module, before in owners:
            now = dict(module._buffers.items())
            for name, entry in before.items():
                if now.get(name) is not entry:
                    module._buffers[name] = entry


def _was_written(buffer: Tensor, value: Tensor, version: int) -> bool:
    """Return whether a buffer may differ from its earlier value: BatchNorm in training mode does not count writes."""
    comparable = buffer.layout == torch.strided and not buffer.is_meta
    return buffer._version != version or (comparable and not torch.equal(buffer, value))


@contextmanager
def _disable_compile() -> Iterator[None]:
    """Run compiled modules and functions in eager mode within the block: a compiled graph hides its calls."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes a second
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        # the global hooks of the interception run twice for a compiled module, which does not change layer names
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        yield


@contextmanager
def preserved_state(model: nn.Module, *, strict: bool = True, allow_meta: bool = False) -> Iterator[nn.Module]:
    """Yield the unwrapped model in eval mode; restore random state, gradients, buffers and training flags at exit.

    Args:
        model: any module, wrapped or not.
        strict: also turn TF32, autocast and compilation off (`strict_precision`, `_disable_compile`).

        allow_meta: accept weights without values, for measures of shapes alone.

    Raises:
        UsageError, ModelContractError: as `check_model`; also for an exported program.
    """
    inner = unwrap(model)
    check_model(inner, allow_meta=allow_meta)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(preserved_rng())
        stack.enter_context(eval_mode(inner))
        stack.enter_context(untouched_gradients(inner))
        stack.enter_context(untouched_buffers(inner))
        if strict:
            stack.enter_context(strict_precision())
            stack.enter_context(_disable_compile())
        yield inner
