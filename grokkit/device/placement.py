"""Check that model, optimizer and batch are on one device: a stray tensor costs speed or breaks the run, silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from grokkit.device.preserved_state import unwrap
from grokkit.errors import PlacementError

CHECK_INTERVAL = 1000
"""Steps between two checks, after the checks before and after the first update."""

CAUSE_UNREGISTERED = (
    "a module or parameter kept in a plain list, tuple or dict, which .to() does not move: use nn.ModuleList, \
nn.ModuleDict or nn.ParameterList"
)
CAUSE_TENSOR_CREATED_ELSEWHERE = "a tensor created in forward without device=x.device, or a .cpu() there"
CAUSE_OPTIMIZER_BEFORE_MOVE = (
    "the optimizer was created, or its state loaded, before the model was moved with .to(): create it afterwards"
)
CAUSE_PART_MOVED = "a .to() or .cpu() on a part of the model, after the whole model was moved"
CAUSE_BATCH_NOT_MOVED = "the batch was not moved with .to(device)"


def check_placement(
    device: torch.device, model: nn.Module, optimizer: Optimizer | None = None, **batch: Tensor
) -> None:
    """Check that every parameter, buffer, optimizer tensor and `batch` tensor is on `device`.

    Modules and parameters in plain lists, tuples and dicts of the model are checked, too. Scalars that torch's
    optimizers keep on the CPU on purpose, such as the `step` of Adam, are accepted.

    Args:
        device: the expected device; `cuda` without an index matches any GPU.
        model: its parameters and buffers are checked; wrappers are unwrapped.
        optimizer: its parameters and its state are checked.
        batch: tensors by name, such as `x`, `y`, `logits`.

    Raises:
        PlacementError: a tensor is on another device; names the tensor, both devices and the usual cause.

    Cost: one pass over all modules and tensors; nothing waits for the device.
    """
    inner = unwrap(model)
    _check(device, inner.named_parameters(), "parameter {} of the model", CAUSE_PART_MOVED)
    _check(device, inner.named_buffers(), "buffer {} of the model", CAUSE_PART_MOVED)
    _check(device, _iter_unregistered(inner), "{} of the model", CAUSE_UNREGISTERED)
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in inner.named_parameters()}
        _check(device, _iter_optimizer_tensors(optimizer, names), "the optimizer's {}", CAUSE_OPTIMIZER_BEFORE_MOVE)
    for name, tensor in batch.items():
        cause = CAUSE_BATCH_NOT_MOVED if name in ("x", "y") else CAUSE_TENSOR_CREATED_ELSEWHERE
        _check(device, [(name, tensor)], "the batch's {}", cause)


def _check(device: torch.device, tensors: Any, template: str, cause: str) -> None:
    for name, tensor in tensors:
        if not _is_on(tensor.device, device):
            raise PlacementError(
                f"{template.format(name)} is on {tensor.device}, and the run is on {device}. The usual cause: {cause}"
            )


def _is_on(device: torch.device, expected: torch.device) -> bool:
    """Return whether two devices match; one without an index matches any index of its type."""
    return device.type == expected.type and (
        expected.index is None or device.index is None or device.index == expected.index
    )


def _iter_unregistered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters, and the tensors of modules, in plain lists, tuples and dicts of the model's modules."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield from _iter_tensors(f"{prefix}{'.' if prefix else ''}{name}", value)


def _iter_tensors(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, nn.Parameter):
        yield name, value
    elif isinstance(value, nn.Module):
        for inner, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{name}.{inner}", tensor
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _iter_tensors(f"{name}[{index}]", each)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _iter_tensors(f"{name}[{key!r}]", each)


def _iter_optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, Tensor]]:
    for number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            name = names.get(id(parameter), f"group {number}, number {index}")
            yield f"parameter {name}", parameter
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and not (value.dim() == 0 and value.device.type == "cpu"):
                    yield f"{key} of {name}", value


def explain_device_mismatch(update: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Run the first update; if torch finds tensors on two devices, raise an error with the usual cause.

    Raises:
        PlacementError: torch found tensors on two devices.
    """
    try:
        return update()
    except RuntimeError as error:
        if "same device" not in str(error) and "expected device" not in str(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise PlacementError(
            f"the first update mixes devices: {first}. The usual cause: {CAUSE_TENSOR_CREATED_ELSEWHERE}"
        ) from error
