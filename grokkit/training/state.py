"""All that a run goes on with: the content of a resume slot."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from grokkit.borrow import device_of, unwrap
from grokkit.errors import UsageError


class Stateful(Protocol):
    """Whatever can be saved in a resume slot: an optimizer, a `PolicyLR`."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def full_state(model: nn.Module, optimizer: Optimizer | None, parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state of everything, for `load_state`. Raises UsageError for a part that is called `optimizer`."""
    if "optimizer" in parts:
        raise UsageError("`optimizer` is the name of the recorder's own one: give this part another name")
    return {
        "model": dict(unwrap(model).state_dict()),
        "optimizer": optimizer.state_dict() if optimizer is not None else None,
        "parts": {name: each.state_dict() for name, each in parts.items()},
        "rng": random_state(device_of(model)),
    }


def load_state(
    state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer | None, parts: Mapping[str, Stateful]
) -> None:
    """Put the state of a slot into the things that it is of, and into the random generators.

    Raises:
        UsageError: the slot holds the states of other things; nothing is loaded then.
    """
    _must_match(state, optimizer, parts)
    _must_fit(state, unwrap(model), optimizer)
    unwrap(model).load_state_dict(state["model"])
    if optimizer is not None:
        optimizer.load_state_dict(state["optimizer"])
        _lay_out_as_parameters(optimizer)
    set_random_state(state["rng"], device_of(model))
    for name, each in parts.items():
        each.load_state_dict(state["parts"][name])
        if isinstance(each, Optimizer):
            _lay_out_as_parameters(each)


def _must_match(state: Mapping[str, Any], optimizer: Optimizer | None, parts: Mapping[str, Stateful]) -> None:
    saved = {name for name, each in {**state["parts"], "optimizer": state["optimizer"]}.items() if each is not None}
    given = {name for name, each in {**parts, "optimizer": optimizer}.items() if each is not None}
    if missing := sorted(given - saved):
        raise UsageError(f"the slot holds no state of {', '.join(missing)}; it was saved by a run of another kind")
    if unasked := sorted(saved - given):
        raise UsageError(
            f"the slot holds the state of {', '.join(unasked)} too, and nothing was given to load it into; a run that "
            "goes on without it would be another run"
        )


def _must_fit(state: Mapping[str, Any], model: nn.Module, optimizer: Optimizer | None) -> None:
    saved, now = ({name: list(each.shape) for name, each in of.items()} for of in (state["model"], model.state_dict()))
    for name in sorted({**saved, **now}):
        if saved.get(name) != now.get(name):
            found, wanted = (of.get(name, "not there") for of in (saved, now))
            raise UsageError(f"the slot is of another model: {name!r} is {found} in it and {wanted} in this one")
    if optimizer is not None:
        then, groups = state["optimizer"]["param_groups"], optimizer.param_groups
        if [len(group["params"]) for group in then] != [len(group["params"]) for group in groups]:
            raise UsageError("the slot is of another optimizer: its groups hold other numbers of parameters")


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give loaded moments the strides of their parameters: fused optimizers walk through memory side by side, so that a
    channels_last parameter would be paired with the wrong elements of a contiguous moment, without a word."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                laid_out = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype, device=value.device)
                state[name] = laid_out.copy_(value)


def random_state(device: torch.device) -> dict[str, Any]:
    """That of Python, NumPy, torch and, where the device is a GPU, of it."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}  # noqa: NPY002
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """The inverse of `random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
