"""Check a model where it comes in, and run it: what cannot be measured is one error with a remedy."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from grokkit.errors import GrokkitError, ModelContractError, UsageError

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


def check_model(model: nn.Module, *, allow_meta: bool = False) -> None:
    """Raise unless the weights are there, whole, and plain tensors.

    Args:
        model: what the user passed, without wrappers.
        allow_meta: whether weights without values (on the meta device) are accepted.

    Raises:
        UsageError: not a module.
        ModelContractError: lazy, meta, sharded or quantised weights.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"`model` must be a torch.nn.Module; got {type(model).__name__}")
    for name, module in model.named_modules():
        kind = type(module)
        if any(parent.__name__ == "FullyShardedDataParallel" for parent in kind.__mro__):
            raise _make_sharded_error(name or "the model")
        if kind.__module__.startswith(_QUANTISED):
            raise _make_quantised_error(name or "the model", kind.__name__)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelContractError(
                f"{name!r} has no shape yet: a lazy module gets its weights in its first forward pass; run one batch "
                "through the model first"
            )
        if tensor.is_meta and not allow_meta:
            raise ModelContractError(
                f"{name!r} is on the meta device and has no values; call model.to_empty(device=...) and load a state "
                "dict first"
            )
        if tensor.is_quantized:
            raise _make_quantised_error(name, str(tensor.dtype))
        if is_traceable_wrapper_subclass(tensor):
            kind = type(tensor)
            raise _make_sharded_error(name) if kind.__name__ == "DTensor" else _make_quantised_error(name, str(kind))


def _make_sharded_error(name: str) -> ModelContractError:
    return ModelContractError(
        f"{name!r} is sharded over processes; gather the weights and load them into a plain copy of the model: "
        "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, options=StateDictOptions("
        "full_state_dict=True))"
    )


def _make_quantised_error(name: str, kind: str) -> ModelContractError:
    return ModelContractError(
        f"{name!r} is stored in another form than as float tensors ({kind}), so its calls cannot be followed, counted "
        "or differentiated; pass the float model from which it was made"
    )


class WithoutAutocast(TorchFunctionMode):
    """Run every call without autocast, also where the model itself turns it on (`torch.autocast` in its forward)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return func(*args, **(kwargs or {}))
        with ExitStack() as stack:
            for device in filter(torch.is_autocast_enabled, _AUTOCAST_DEVICES):
                stack.enter_context(torch.autocast(device, enabled=False))
            return func(*args, **(kwargs or {}))


def call_model(model: nn.Module, images: Tensor) -> Any:
    """Run a forward pass on images (N, ...), without autocast, and return whatever it returns.

    Raises:
        ModelContractError: the forward pass fails.
    """
    try:
        with WithoutAutocast():
            return model(images)
    except (GrokkitError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelContractError(
            f"the model's forward pass fails on a tensor of images of shape {tuple(images.shape)}: "
            f"{type(error).__name__}: {reason}. If it takes another shape or batch size, or something else than one "
            "tensor, wrap it in a module that takes (N, ...)"
        ) from error


def run_model(model: nn.Module, images: Tensor) -> Tensor:
    """Run a forward pass on images (N, ...), without autocast, and return its output, one row for each image.

    Raises:
        ModelContractError: the forward pass fails, or returns anything but one tensor with a row for each image.
    """
    output = call_model(model, images)
    if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(images):
        raise ModelContractError(
            f"the model must return one tensor with the batch ({len(images)}) as its first dimension; it returned "
            f"{_describe(output)}. Wrap it in a module whose forward returns only the logits"
        )
    return output


def run_classifier(model: nn.Module, images: Tensor) -> Tensor:
    """Run a forward pass on images (N, ...) and return its logits (N, classes).

    Raises:
        ModelContractError: as `run_model`; also for an output of another shape.
    """
    logits = run_model(model, images)
    if logits.dim() != 2:
        raise ModelContractError(
            f"the model must return logits ({len(images)}, classes); it returned {_describe(logits)}. Wrap it in a "
            "module that does"
        )
    return logits


def check_two_classes(logits: Tensor, subject: str) -> None:
    """Raise ModelContractError for logits (N, 1).

    Args:
        logits: (N, classes).
        subject: start of the error message, such as "an attack needs".
    """
    if logits.shape[1] < 2:
        raise ModelContractError(
            f"{subject} logits of two classes or more; the model returns one logit z for each image. Wrap it in a "
            "module that returns torch.cat([torch.zeros_like(z), z], 1)"
        )


def require_gradient(model: nn.Module, image: Tensor) -> None:
    """Raise ModelContractError unless the output for one image (1, ...) has a gradient with respect to it."""
    with torch.enable_grad():
        point = image.detach().clone().requires_grad_()
        compute_gradient(run_model(model, point.clone()).sum(), point)


def compute_gradient(total: Tensor, point: Tensor) -> Tensor:
    """Compute the gradient of a sum of outputs of a model; ModelContractError if there is none."""
    gradient = None
    if total.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(total, point, allow_unused=True)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:
            reason = str(error).split(". Hint:")[0].strip()
            raise ModelContractError(
                f"the model's output cannot be differentiated with respect to its input: {reason}. Change its forward "
                "pass so that `backward()` works"
            ) from error
    if gradient is None:
        raise ModelContractError(
            "the model's output has no gradient with respect to its input; remove `detach`, `no_grad` or rounding from "
            "its forward pass"
        )
    return gradient


def _describe(output: object) -> str:
    return f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
