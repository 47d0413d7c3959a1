"""Put a model into a state in which its partition can be measured, and restore it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from grokkit.device.preserved_state import preserved_state
from grokkit.errors import ModelContractError, UsageError


@contextmanager
def measurement_mode(model: nn.Module, *, allow_meta: bool = False) -> Iterator[nn.Module]:
    """Yield the unwrapped model in eval mode, strict precision, uncompiled, without gradients; restore it on exit.

    Args:
        model: any module, wrapped or not.
        allow_meta: accept weights without values.

    Raises:
        ModelContractError: as `check_model`; also half precision, a script module, or BatchNorm without statistics.
    """
    with preserved_state(model, allow_meta=allow_meta) as inner, torch.no_grad():
        _validate_model(inner)
        yield inner


def _validate_model(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
            raise ModelContractError(
                "local complexity and exact partitions need float32 or float64, because half precision's "
                "rounding counts as crossings; "
                f"{name!r} is {tensor.dtype}. Measure a copy: copy.deepcopy(model).float()"
            )
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelContractError(
                f"{name or 'the model'!r} is a script module, which hides its activations; pass the original module"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ModelContractError(
                f"{name!r} normalises by the statistics of the batch even in eval mode, so the count would depend on "
                "the batch; use track_running_stats=True, or GroupNorm"
            )


def validate_images(images: Tensor) -> None:
    """Raise UsageError unless the images are a finite floating tensor (N, ...)."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 2 or images.numel() == 0:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"`images` must be a floating tensor (N, ...) with N >= 1; got {got}")
    if not images.isfinite().all():
        bad = int((~images.isfinite().flatten(1).all(dim=1)).sum())
        raise UsageError(f"`images` must be finite; {bad} of {len(images)} hold NaN or infinity")
