"""All that a run goes on with: the content of a resume slot."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from grokkit.device.preserved_state import device_of, unwrap
from grokkit.errors import UsageError
from grokkit.optim.policy_lr import check_state, warn_of_unloaded_rates
from grokkit.recording import identity


class Stateful(Protocol):
    """Whatever can be saved in a resume slot: an optimizer, a `PolicyLR`.

    One that refuses some states may have `check_state_dict(state_dict)` too, which raises without loading anything.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def collect_state(model: nn.Module, optimizer: Optimizer | None, parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state of everything, for `load_state`. Raises UsageError for a part that is called `optimizer`."""
    if "optimizer" in parts:
        raise UsageError("`optimizer` is the name of the recorder's own one: give this part another name")
    return {
        "model": dict(unwrap(model).state_dict()),
        "optimizer": optimizer.state_dict() if optimizer is not None else None,
        "parts": {name: each.state_dict() for name, each in parts.items()},
        "rng": get_random_state(device_of(model)),
        "identity": identity.describe(model, optimizer, parts),
    }


def load_state(
    state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer | None, parts: Mapping[str, Stateful]
) -> None:
    """Put the state of a slot into the things that it is of, and into the random generators.

    Before anything is loaded these are compared: names of the parts, classes, the model's names, shapes and dtypes, the
    optimizers' groups with their hyper-parameters, names and shapes, and whatever `check_state_dict` of a part looks
    at. A slot of grokkit 1.0 or older says less; of it names of parts, shapes and numbers of parameters are compared.

    Parts are loaded first, then the model and the optimizers, which cannot fail any more. What a part refuses only
    while it loads cannot be known before: model, optimizers and random state are untouched then, but parts before it
    are loaded. Frozen parameters, hooks, and what is in no `state_dict` are not compared.

    Warns: an optimizer was built with other values of hyper-parameters than the saved ones, which replace them; or the
        rates that a `PolicyLR` goes on with were not restored.

    Raises:
        UsageError: the slot holds the states of other things; nothing is loaded then.
        Exception: whatever a part raises while it loads.
    """
    _require_same_parts(state, optimizer, parts)
    given, saved = identity.describe(model, optimizer, parts), state.get("identity")
    if saved is not None:
        identity.require_same_classes(saved, given)
    _require_same_shapes(state, unwrap(model), with_dtypes=saved is not None)
    states = {**state["parts"], "optimizer": state["optimizer"]}
    things: dict[str, Stateful] = {**parts, **({} if optimizer is None else {"optimizer": optimizer})}
    optimizers = {name: each for name, each in things.items() if isinstance(each, Optimizer)}
    for name, each in optimizers.items():
        _require_same_count(name, states[name], each)
    if saved is not None:
        identity.require_same_groups(saved, given)
    _require_accepted(state["parts"], parts)
    identity.warn_of_other_values(states, saved, optimizers)
    _load(state, model, {name: each for name, each in parts.items() if name not in optimizers})
    for name, each in optimizers.items():
        each.load_state_dict(states[name])
        _match_parameter_strides(each)
    for part in parts.values():
        warn_of_unloaded_rates(part)


def _load(state: Mapping[str, Any], model: nn.Module, parts: Mapping[str, Stateful]) -> None:
    """Load what may fail, then the model."""
    device = device_of(model)
    before = get_random_state(device)
    set_random_state(state["rng"], device)
    try:
        for name, each in parts.items():
            each.load_state_dict(state["parts"][name])
    except BaseException:
        set_random_state(before, device)
        raise
    unwrap(model).load_state_dict(state["model"])


def _require_same_parts(state: Mapping[str, Any], optimizer: Optimizer | None, parts: Mapping[str, Stateful]) -> None:
    saved = {name for name, each in {**state["parts"], "optimizer": state["optimizer"]}.items() if each is not None}
    given = {name for name, each in {**parts, "optimizer": optimizer}.items() if each is not None}
    if missing := sorted(given - saved):
        raise UsageError(f"the slot holds no state of {', '.join(missing)}; it was saved by a run of another kind")
    if unasked := sorted(saved - given):
        raise UsageError(
            f"the slot holds the state of {', '.join(unasked)} too, and nothing was given to load it into; a run that "
            "goes on without it would be another run"
        )


def _require_same_shapes(state: Mapping[str, Any], model: nn.Module, *, with_dtypes: bool) -> None:
    _compare_tensors("another model", state["model"], model.state_dict(), with_dtypes)


def _compare_tensors(whose: str, then: Mapping[str, Any], this: Mapping[str, Any], with_dtypes: bool) -> None:
    """Raise UsageError where the states of two modules have other names or shapes, or else other dtypes."""
    for dtypes in (False, True) if with_dtypes else (False,):
        saved, now = (identity.collect_shapes(each, dtypes) for each in (then, this))
        for name in sorted({**saved, **now}):
            if saved.get(name) != now.get(name):
                found, wanted = (of.get(name, "not there") for of in (saved, now))
                raise UsageError(f"the slot is of {whose}: {name!r} is {found} in it and {wanted} in this one")


def _require_same_count(name: str, state: Mapping[str, Any], optimizer: Optimizer) -> None:
    then, now = ([len(group["params"]) for group in of] for of in (state["param_groups"], optimizer.param_groups))
    if then != now:
        raise UsageError(
            f"the slot is of another optimizer: its groups hold other numbers of parameters, `{name}` has {then} in it "
            f"and {now} in this one"
        )


def _require_accepted(states: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
    """Ask the parts that can tell before whether they would take their states."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            _compare_tensors(f"another module as `{name}`", states[name], part.state_dict(), True)
        check_state(part, states[name])


def _match_parameter_strides(optimizer: Optimizer) -> None:
    """Give loaded moments the strides of their parameters: fused optimizers walk through memory side by side, so that a
    channels_last parameter would be paired with the wrong elements of a contiguous moment, without a word."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                laid_out = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype, device=value.device)
                state[name] = laid_out.copy_(value)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """That of Python, NumPy, torch and, where the device is a GPU, of it."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}  # noqa: NPY002
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `get_random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
