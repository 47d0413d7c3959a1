"""Put a model into a state in which its partition can be measured, and restore it afterwards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from grokkit.device.preserved_state import preserved_state
from grokkit.errors import GrokkitError, ModelContractError, UsageError


@contextmanager
def measurement_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the unwrapped model in eval mode, strict precision, uncompiled and without gradients; restore it on exit.

    Raises:
        ModelContractError: half precision, a script module, or BatchNorm without running statistics.
    """
    with preserved_state(model) as inner, _disable_compile(inner), torch.no_grad():
        _validate_model(inner)
        yield inner


@contextmanager
def _disable_compile(model: nn.Module) -> Iterator[None]:
    """Run compiled submodules in eager mode within the block, because a compiled graph hides its activations."""
    if not any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        yield
        return
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        # the global hooks of the interception run twice for a compiled module, which does not change layer names
        warnings.filterwarnings("ignore", message="Using `torch.compile\\(module\\)` when there are global hooks")
        yield


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


def run_model(model: nn.Module, images: Tensor) -> Tensor:
    """Run a forward pass on images (N, ...) and return its output, one row for each image.

    Raises:
        ModelContractError: the forward pass fails, or returns anything but one tensor with a row for each image.
    """
    try:
        output = model(images)
    except (GrokkitError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelContractError(
            f"the model's forward pass fails on a tensor of images of shape {tuple(images.shape)}: "
            f"{type(error).__name__}: {reason}. Pass images of the shape that it expects, and wrap a model that takes "
            "more than one tensor, or another batch size only, in a module that takes (N, ...)"
        ) from error
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(images):
        got = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ModelContractError(
            f"the model must return one tensor with the batch ({len(images)}) as its first dimension; it returned "
            f"{got}. Wrap it in a module whose forward returns only the logits"
        )
    return output


def validate_images(images: Tensor) -> None:
    """Raise UsageError unless the images are a finite floating tensor (N, ...)."""
    if not isinstance(images, Tensor) or not images.is_floating_point() or images.dim() < 2 or images.numel() == 0:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"`images` must be a floating tensor (N, ...) with N >= 1; got {got}")
    if not images.isfinite().all():
        bad = int((~images.isfinite().flatten(1).all(dim=1)).sum())
        raise UsageError(f"`images` must be finite; {bad} of {len(images)} hold NaN or infinity")
