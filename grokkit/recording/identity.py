"""What a resume slot says of the things that it is of, so that other things are refused before anything is loaded."""

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
from grokkit.optim.decay import DECAY_KEYS as DECAY_MARKS

Description = dict[str, Any]
"""JSON values only."""

_IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
"""How an update is computed, not what it computes."""

_BY_SCHEDULERS = frozenset({"initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr", *DECAY_MARKS})
"""What schedulers leave in a parameter group: part of the state, not a choice of whoever built the optimizer."""

_NO_CHOICE = frozenset({"params", "param_names", *_IMPLEMENTATION, *_BY_SCHEDULERS})

_CYCLED = frozenset({"momentum", "betas"})
"""Moved by `OneCycleLR` and `CyclicLR`, which leave `base_momentum` and `max_momentum`."""


def describe(model: nn.Module, optimizer: Optimizer | None, parts: Mapping[str, Any]) -> Description:
    """Describe what a slot is of: classes, and of each optimizer its groups with names and shapes of the parameters.

    Returns: `tied`: groups of names under which the model has one parameter. `things`: by name of the part, and
        `optimizer` for the recorder's own, the `class` (root package and name; for a private class its first public
        base) and, of an optimizer, the `default_lr` and the `groups`: each with the sorted `choices` (names of its
        hyper-parameters) and the `parameters` as pairs of name and shape, in order. A parameter that is not the
        model's is called by its place in the optimizer, `#0`.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    given = {**parts, **({} if optimizer is None else {"optimizer": optimizer})}
    return {
        "tied": sorted(sorted(each) for each in names.values() if len(each) > 1),
        "things": {name: _describe(each, names) for name, each in given.items()},
    }


def _describe(thing: Any, names: Mapping[int, list[str]]) -> Description:
    described: Description = {"class": _class_of(thing)}
    if isinstance(thing, Optimizer):
        places = iter(range(sum(len(group["params"]) for group in thing.param_groups)))
        described["default_lr"] = _plain(getattr(thing, "defaults", {}).get("lr"))
        described["groups"] = [
            {
                "choices": sorted(set(group) - _NO_CHOICE),
                "parameters": [
                    [names.get(id(each), [f"#{place}"])[0], list(each.shape)]
                    for each, place in zip(group["params"], places, strict=False)
                ],
            }
            for group in thing.param_groups
        ]
    return described


def _class_of(thing: Any) -> str:
    """Root package and name, so that a class that moves within its package stays the same one."""
    inner = getattr(thing, "optimizer", None)
    if isinstance(thing, Optimizer) and isinstance(inner, Optimizer):  # wrapped, as by accelerate
        return _class_of(inner)
    public = next(each for each in type(thing).__mro__ if not each.__name__.startswith("_"))
    return f"{public.__module__.partition('.')[0]}.{public.__name__}"


def require_same_classes(saved: Description, given: Description) -> None:
    """Raise UsageError where a thing is of another class than the saved one."""
    for name, now in given["things"].items():
        then = saved["things"][name]
        if not _same_class(then["class"], now["class"]):
            raise UsageError(
                f"the slot holds the state of a {then['class']} as `{name}` and a {now['class']} was given to load it "
                "into: build it as the run did, or start a new run"
            )


def _same_class(one: str, other: str) -> bool:
    """A class of a script is the same where another module imports the script."""
    (root, _, name), (other_root, _, other_name) = one.partition("."), other.partition(".")
    return name == other_name and (root == other_root or "__main__" in (root, other_root))


def require_same_groups(saved: Description, given: Description) -> None:
    """Raise UsageError where an optimizer's groups hold other parameters or hyper-parameters, or parameters are tied
    otherwise.

    Hyper-parameters that a later torch has added are no difference: it gives older states their default.
    """
    if saved["tied"] != given["tied"]:
        raise UsageError(
            f"the slot is of another model: its tied parameters are {saved['tied'] or 'none'} in it and "
            f"{given['tied'] or 'none'} in this one"
        )
    for name, now in given["things"].items():
        groups = zip(saved["things"][name].get("groups", ()), now.get("groups", ()), strict=False)
        for number, (then, this) in enumerate(groups):
            _check_group(f"group {number} of `{name}`", then, this, official=now["class"].startswith("torch."))


def _check_group(where: str, then: Description, now: Description, official: bool) -> None:
    for place, (saved, given) in enumerate(zip(then["parameters"], now["parameters"], strict=True)):
        if saved != given:
            raise UsageError(
                f"the slot is of another optimizer: parameter {place} of {where} is {_describe_value(saved)} in it and "
                f"{_describe_value(given)} in this one. Build it from the same parameters in the same order"
            )
    lost, new = (sorted(set(one["choices"]) - set(other["choices"])) for one, other in ((then, now), (now, then)))
    if lost or (new and not (official and set(new) <= _ADDED_BY_TORCH)):
        raise UsageError(
            f"the slot is of another optimizer: {where} has the hyper-parameters {', '.join(then['choices'])} in it "
            f"and {', '.join(now['choices'])} in this one. Build it with the same ones"
        )


_ADDED_BY_TORCH = frozenset({"maximize", "decoupled_weight_decay"})
"""Hyper-parameters that torch's optimizers have got over time."""


def _describe_value(parameter: list[Any]) -> str:
    name, shape = parameter
    return f"one that is not the model's ({name}) {shape}" if name.startswith("#") else f"{name!r} {shape}"


def warn_of_other_values(
    state: Mapping[str, Any], saved: Description | None, optimizers: Mapping[str, Optimizer]
) -> None:
    """Warn where optimizers were built with other hyper-parameters than the saved ones, which torch puts there.

    Call it before the states are loaded. What schedulers move is compared by the base values that they keep in the
    groups, a rate without such a mark by the optimizer's default, because a loop may move it by hand.

    Args:
        state: the optimizers' saved states, by name.
        saved: of `describe`; None: of an older version, nothing is compared.
        optimizers: as they were built.
    """
    told = [
        f"{key} of group {number} of `{name}` is {then} and was given as {now}"
        for name, optimizer in optimizers.items()
        if saved is not None
        for number, (old, new) in enumerate(zip(state[name]["param_groups"], optimizer.param_groups, strict=True))
        for key, then, now in _other_values(old, new, saved["things"][name]["default_lr"], optimizer)
    ]
    if told:
        warnings.warn(
            f"the run goes on with the saved hyper-parameters: {'; '.join(told)}. To change one, set it in "
            "`param_groups` after `restore`, or start a new run",
            stacklevel=4,
        )


def _other_values(
    old: Mapping[str, Any], new: Mapping[str, Any], default: float | None, optimizer: Optimizer
) -> Iterator[tuple[str, Any, Any]]:
    """Name, saved and given value of every hyper-parameter that differs."""
    cycled = any("max_momentum" in group for group in (old, new))
    kept = bool(old.get("fixed_decay"))
    for key in sorted(set(old) & set(new) - _NO_CHOICE - {"lr"} - (_CYCLED if cycled else set())):
        mark = "initial_weight_decay" if key == "weight_decay" and kept else key
        then, now = (_plain(group.get(mark, group[key])) for group in (old, new))
        if not _alike(then, now):
            yield key, then, now
    then, now = _base_rates(old, new, default, optimizer)
    if not _alike(then, now):
        yield "the base rate", then, now


def _base_rates(old: Mapping[str, Any], new: Mapping[str, Any], default: float | None, optimizer: Optimizer) -> Any:
    """The saved and the given one, as far as they can be known: what a loop sets by hand leaves no mark."""
    given = _plain(new.get("initial_lr", new["lr"]))
    if "initial_lr" in old:
        return _plain(old["initial_lr"]), given
    own = _plain(getattr(optimizer, "defaults", {}).get("lr"))
    return (default, given) if own is not None and _alike(given, own) else (_plain(old["lr"]), given)


def _plain(value: Any) -> Any:
    """Numbers for tensors, lists for tuples."""
    if torch.is_tensor(value):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _alike(one: Any, other: Any) -> bool:
    """Equal, or a number that went through float32."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def collect_shapes(state: Mapping[str, Any], with_dtypes: bool) -> dict[str, str]:
    """Shape and dtype of every tensor of a module's state, and the class of whatever else it holds, in words."""
    return {name: _shape(value, with_dtypes) for name, value in state.items()}


def _shape(value: Any, with_dtype: bool) -> str:
    if not torch.is_tensor(value):
        return type(value).__name__
    dtype = f" {str(value.dtype).removeprefix('torch.')}" if with_dtype else ""
    return f"{list(value.shape)}{dtype}"
