"""Descriptions of model, optimizer and other objects in a resume state, so that others are refused before loading."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from grokkit.device.preserved_state import unwrap
from grokkit.errors import UsageError
from grokkit.optim.decay import DECAY_KEYS

Description = dict[str, Any]
"""JSON values only."""

_IMPLEMENTATION_KEYS = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""They select how an update is computed, not what it computes."""

_SCHEDULER_KEYS = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", *DECAY_KEYS})
"""What schedulers store in a parameter group: part of the state, not a hyper-parameter that the user passed."""

_NOT_HYPERPARAMETERS = frozenset({"params", "param_names", *_IMPLEMENTATION_KEYS, *_SCHEDULER_KEYS})

_CYCLED_KEYS = frozenset({"momentum", "betas"})
"""Changed by `OneCycleLR` and `CyclicLR`, which store `base_momentum` and `max_momentum`."""


def describe(model: nn.Module, optimizer: Optimizer | None, parts: Mapping[str, Any]) -> Description:
    """Describe the objects of a resume state: classes, and each optimizer's groups with parameter names and shapes.

    Returns: `tied`: groups of names under which the model has one parameter. `things`: by name of the part, and
        `optimizer` for the recorder's own, the `class` (root package and name; for a private class its first public
        base) and, for an optimizer, the `default_lr` and the `groups`: each with the sorted `choices` (names of its
        hyper-parameters) and the `parameters` as pairs of name and shape, in order. A parameter that does not belong
        to the model is named by its index in the optimizer, `#0`.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    objects = {**parts, **({} if optimizer is None else {"optimizer": optimizer})}
    return {
        "tied": sorted(sorted(group) for group in names.values() if len(group) > 1),
        "things": {name: _describe(each, names) for name, each in objects.items()},
    }


def _describe(thing: Any, names: Mapping[int, list[str]]) -> Description:
    description: Description = {"class": _class_name(thing)}
    if isinstance(thing, Optimizer):
        indices = iter(range(sum(len(group["params"]) for group in thing.param_groups)))
        description["default_lr"] = _to_plain(getattr(thing, "defaults", {}).get("lr"))
        description["groups"] = [
            {
                "choices": sorted(set(group) - _NOT_HYPERPARAMETERS),
                "parameters": [
                    [names.get(id(parameter), [f"#{index}"])[0], list(parameter.shape)]
                    for parameter, index in zip(group["params"], indices, strict=False)
                ],
            }
            for group in thing.param_groups
        ]
    return description


def _class_name(thing: Any) -> str:
    """Return root package and class name, so that a class that moves within its package still matches."""
    inner = getattr(thing, "optimizer", None)
    if isinstance(thing, Optimizer) and isinstance(inner, Optimizer):  # wrapped, as by accelerate
        return _class_name(inner)
    public = next(base for base in type(thing).__mro__ if not base.__name__.startswith("_"))
    return f"{public.__module__.partition('.')[0]}.{public.__name__}"


def require_same_classes(saved: Description, given: Description) -> None:
    """Raise UsageError if an object has another class than the saved one."""
    for name, now in given["things"].items():
        then = saved["things"][name]
        if not _is_same_class(then["class"], now["class"]):
            raise UsageError(
                f"the resume state holds a {then['class']} as `{name}`, and a {now['class']} was passed to load it "
                "into: build the same class as the run did, or start a new run"
            )


def _is_same_class(one: str, other: str) -> bool:
    """Return whether two class names match; `__main__` matches any package, as a script may also be imported."""
    (root, _, name), (other_root, _, other_name) = one.partition("."), other.partition(".")
    return name == other_name and (root == other_root or "__main__" in (root, other_root))


def require_same_groups(saved: Description, given: Description) -> None:
    """Raise UsageError if parameters or hyper-parameters of an optimizer's groups, or tied parameters, differ.

    Hyper-parameters that a later torch added are no difference: torch gives older states their default.
    """
    if saved["tied"] != given["tied"]:
        raise UsageError(
            f"the resume state belongs to another model: its tied parameters are {saved['tied'] or 'none'} in the "
            f"saved one and {given['tied'] or 'none'} in the given one. Build the model as the run did, or "
            "start a new run"
        )
    for name, now in given["things"].items():
        groups = zip(saved["things"][name].get("groups", ()), now.get("groups", ()), strict=False)
        for number, (then, this) in enumerate(groups):
            _check_group(f"group {number} of `{name}`", then, this, official=now["class"].startswith("torch."))


def _check_group(label: str, then: Description, now: Description, official: bool) -> None:
    for index, (saved, given) in enumerate(zip(then["parameters"], now["parameters"], strict=True)):
        if saved != given:
            raise UsageError(
                f"the resume state belongs to another optimizer: parameter {index} of {label} is "
                f"{_describe_value(saved)} in the saved one and {_describe_value(given)} in the given one. Build it "
                "from the same parameters in the same order, or start a new run"
            )
    missing, new = (sorted(set(one["choices"]) - set(other["choices"])) for one, other in ((then, now), (now, then)))
    if missing or (new and not (official and set(new) <= _ADDED_BY_TORCH)):
        raise UsageError(
            f"the resume state belongs to another optimizer: {label} has the hyper-parameters "
            f"{', '.join(then['choices'])} in the saved one and {', '.join(now['choices'])} in the given one. Build it "
            "with the same ones, or start a new run"
        )


_ADDED_BY_TORCH = frozenset({"maximize", "decoupled_weight_decay"})
"""Hyper-parameters that later versions of torch added to its optimizers."""


def _describe_value(parameter: list[Any]) -> str:
    name, shape = parameter
    return f"one that does not belong to the model ({name}) {shape}" if name.startswith("#") else f"{name!r} {shape}"


def warn_of_other_values(
    state: Mapping[str, Any], saved: Description | None, optimizers: Mapping[str, Optimizer]
) -> None:
    """Warn if optimizers were built with other hyper-parameters than the saved ones, which replace them.

    Call it before the states are loaded. What schedulers change is compared by the base values that they store in the
    groups, a rate without such a value by the optimizer's default, because a loop may change it by hand.

    Args:
        state: the optimizers' saved states, by name.
        saved: the result of `describe`; None: saved by an older version, nothing is compared.
        optimizers: freshly built ones, by name.
    """
    differences = [
        f"{key} of group {number} of `{name}` is {then} and was passed as {now}"
        for name, optimizer in optimizers.items()
        if saved is not None
        for number, (old, new) in enumerate(zip(state[name]["param_groups"], optimizer.param_groups, strict=True))
        for key, then, now in _differing_values(old, new, saved["things"][name]["default_lr"], optimizer)
    ]
    if differences:
        warnings.warn(
            f"the run resumes with the saved hyper-parameters: {'; '.join(differences)}. To change one, set it in "
            "`param_groups` after `restore`, or start a new run",
            stacklevel=4,
        )


def _differing_values(
    old: Mapping[str, Any], new: Mapping[str, Any], default: float | None, optimizer: Optimizer
) -> Iterator[tuple[str, Any, Any]]:
    """Yield name, saved value and new value of every hyper-parameter that differs."""
    cycled = any("max_momentum" in group for group in (old, new))
    is_decay_fixed = bool(old.get("fixed_decay"))
    for key in sorted(set(old) & set(new) - _NOT_HYPERPARAMETERS - {"lr"} - (_CYCLED_KEYS if cycled else set())):
        base_key = "initial_weight_decay" if key == "weight_decay" and is_decay_fixed else key
        then, now = (_to_plain(group.get(base_key, group[key])) for group in (old, new))
        if not _is_close(then, now):
            yield key, then, now
    then, now = _get_base_rates(old, new, default, optimizer)
    if not _is_close(then, now):
        yield "the base rate", then, now


def _get_base_rates(old: Mapping[str, Any], new: Mapping[str, Any], default: float | None, optimizer: Optimizer) -> Any:
    """Return the saved and the new base rate, as far as they are known: a rate set by hand leaves no base value."""
    given = _to_plain(new.get("initial_lr", new["lr"]))
    if "initial_lr" in old:
        return _to_plain(old["initial_lr"]), given
    default_lr = _to_plain(getattr(optimizer, "defaults", {}).get("lr"))
    return (
        (default, given) if default_lr is not None and _is_close(given, default_lr) else (_to_plain(old["lr"]), given)
    )


def _to_plain(value: Any) -> Any:
    """Convert tensors to numbers and tuples to lists."""
    if torch.is_tensor(value):
        return value.tolist()
    return [_to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _is_close(one: Any, other: Any) -> bool:
    """Return whether two values are equal, up to rounding through float32."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_close, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def collect_shapes(state: Mapping[str, Any], with_dtypes: bool) -> dict[str, str]:
    """Return shape and dtype of every tensor of a module's state, and the class name of other entries."""
    return {name: _format_shape(value, with_dtypes) for name, value in state.items()}


def _format_shape(value: Any, with_dtype: bool) -> str:
    if not torch.is_tensor(value):
        return type(value).__name__
    dtype = f" {str(value.dtype).removeprefix('torch.')}" if with_dtype else ""
    return f"{list(value.shape)}{dtype}"
