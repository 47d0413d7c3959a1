"""Whether everything that trains is on one device: a tensor left behind costs speed, or the run, without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from grokkit.device.preserved_state import unwrap
from grokkit.errors import PlacementError

EVERY = 1000
"""Steps between two checks, after those before and behind the first update."""

LEFT_BEHIND = "a module or parameter kept in a plain list, tuple or dict, which .to() does not see: use nn.ModuleList, \
nn.ModuleDict or nn.ParameterList"
MADE_ALONE = "a tensor made in forward without device=x.device, or a .cpu() there"
MADE_EARLY = "the optimizer was made, or its state loaded, before the model was moved with .to(): make it afterwards"
MOVED = "a .to() or .cpu() on a part of the model, after it was placed as a whole"
NOT_MOVED = "the batch was not moved with .to(device)"


def check_placement(
    device: torch.device, model: nn.Module, optimizer: Optimizer | None = None, **batch: Tensor
) -> None:
    """Check that every parameter, buffer, optimizer tensor and `batch` tensor is on `device`.

    Modules and parameters that the model keeps in plain lists and dicts are looked at, too. Numbers that torch's
    optimizers keep on the CPU on purpose, such as the `step` of Adam, are let pass.

    Args:
        device: where all is to be; `cuda` without a number stands for any one GPU.
        model: parameters and buffers; wrappers are unwrapped.
        optimizer: its parameters and its state.
        batch: tensors by name, such as `x`, `y`, `logits`.

    Raises:
        PlacementError: names the tensor, both devices and the usual cause.

    Cost: a look at every module and tensor; nothing waits for the device.
    """
    inner = unwrap(model)
    _check(device, inner.named_parameters(), "parameter {} of the model", MOVED)
    _check(device, inner.named_buffers(), "buffer {} of the model", MOVED)
    _check(device, _unregistered(inner), "{} of the model", LEFT_BEHIND)
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in inner.named_parameters()}
        _check(device, _optimizer_tensors(optimizer, names), "the optimizer's {}", MADE_EARLY)
    for name, tensor in batch.items():
        cause = NOT_MOVED if name in ("x", "y") else MADE_ALONE
        _check(device, [(name, tensor)], "the batch's {}", cause)


def _check(device: torch.device, tensors: Any, called: str, cause: str) -> None:
    for name, tensor in tensors:
        if not _is_on(tensor.device, device):
            raise PlacementError(
                f"{called.format(name)} is on {tensor.device}, and the run is on {device}. The usual cause: {cause}"
            )


def _is_on(found: torch.device, wanted: torch.device) -> bool:
    return found.type == wanted.type and (wanted.index is None or found.index is None or found.index == wanted.index)


def _unregistered(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the tensors of modules, in plain lists, tuples and dicts of the model's modules."""
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):
                yield from _tensors_in(f"{prefix}{'.' if prefix else ''}{name}", value)


def _tensors_in(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, nn.Parameter):
        yield name, value
    elif isinstance(value, nn.Module):
        for inner, tensor in (*value.named_parameters(), *value.named_buffers()):
            yield f"{name}.{inner}", tensor
    elif isinstance(value, list | tuple):
        for place, each in enumerate(value):
            yield from _tensors_in(f"{name}[{place}]", each)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors_in(f"{name}[{key!r}]", each)


def _optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, Tensor]]:
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            name = names.get(id(parameter), f"group {number}, number {place}")
            yield f"parameter {name}", parameter
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and not (value.dim() == 0 and value.device.type == "cpu"):
                    yield f"{key} of {name}", value


def explain_device_mismatch(update: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The first update, whose own complaint about two devices is told with its usual cause.

    Raises:
        PlacementError: torch found tensors on two devices.
    """
    try:
        return update()
    except RuntimeError as error:
        if "same device" not in str(error) and "expected device" not in str(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise PlacementError(f"the first update mixes devices: {first}. The usual cause: {MADE_ALONE}") from error
