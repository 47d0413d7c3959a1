"""The content of a resume state: collect it, check that it fits, and load it."""

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
    """An object that can be saved in a resume state, such as an optimizer or a `PolicyLR`.

    It may also have `check_state_dict(state_dict)`, which raises for a state that does not fit, without loading it.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def collect_state(model: nn.Module, optimizer: Optimizer | None, parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Collect the state of model, optimizer, parts and random generators, for `load_state`.

    Raises:
        UsageError: a part is called `optimizer`.
    """
    if "optimizer" in parts:
        raise UsageError(
            "the name `optimizer` is reserved for the recorder's own optimizer: pass this part under another name"
        )
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
    """Load a resume state into model, optimizer, parts and the random generators.

    Before anything is loaded these are compared: names of the parts, classes, the model's names, shapes and dtypes, the
    optimizers' groups with their hyper-parameters, names and shapes, and whatever `check_state_dict` of a part checks.
    A state of grokkit 1.0 or older holds less: only names of parts, shapes and numbers of parameters are compared.

    Parts are loaded first, then the model and the optimizers, which cannot fail any more. If a part raises only while
    it loads, model, optimizers and random state are unchanged, but the parts before it are loaded. Frozen parameters,
    hooks, and whatever is in no `state_dict` are not compared.

    Warns: an optimizer was built with other hyper-parameters than the saved ones, which replace them; or a `PolicyLR`
        was restored without the optimizer's learning rates.

    Raises:
        UsageError: the resume state does not fit these objects; nothing is loaded then.
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
    _check_part_states(state["parts"], parts)
    identity.warn_of_other_values(states, saved, optimizers)
    _load(state, model, {name: each for name, each in parts.items() if name not in optimizers})
    for name, each in optimizers.items():
        each.load_state_dict(states[name])
        _match_parameter_strides(each)
    for part in parts.values():
        warn_of_unloaded_rates(part)


def _load(state: Mapping[str, Any], model: nn.Module, parts: Mapping[str, Stateful]) -> None:
    """Load the parts, which may fail, then the model."""
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
        raise UsageError(
            f"the resume state holds no {', '.join(missing)}; it was saved by a run without it: resume without it, or "
            "start a new run"
        )
    if unexpected := sorted(saved - given):
        raise UsageError(
            f"the resume state also holds {', '.join(unexpected)}, and nothing was passed to load it into: pass it to "
            "`restore`, or an optimizer to `gk.record`; resuming without it would give another run"
        )


def _require_same_shapes(state: Mapping[str, Any], model: nn.Module, *, with_dtypes: bool) -> None:
    _compare_tensors("another model", state["model"], model.state_dict(), with_dtypes)


def _compare_tensors(owner: str, then: Mapping[str, Any], this: Mapping[str, Any], with_dtypes: bool) -> None:
    """Raise UsageError if names or shapes of two modules' states differ, or their dtypes if `with_dtypes`."""
    for dtypes in (False, True) if with_dtypes else (False,):
        saved, now = (identity.collect_shapes(each, dtypes) for each in (then, this))
        for name in sorted({**saved, **now}):
            if saved.get(name) != now.get(name):
                expected, actual = (shapes.get(name, "missing") for shapes in (saved, now))
                raise UsageError(
                    f"the resume state belongs to {owner}: {name!r} is {expected} in the saved one and {actual} in the "
                    "given one. Build it as the run did, or start a new run"
                )


def _require_same_count(name: str, state: Mapping[str, Any], optimizer: Optimizer) -> None:
    then, now = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if then != now:
        raise UsageError(
            f"the resume state belongs to another optimizer: its groups hold other numbers of parameters, `{name}` has "
            f"{then} in the saved one and {now} in the given one. Build it as the run did, or start a new run"
        )


def _check_part_states(states: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
    """Raise if a part that can check its state before loading refuses it."""
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            _compare_tensors(f"another module as `{name}`", states[name], part.state_dict(), True)
        check_state(part, states[name])


def _match_parameter_strides(optimizer: Optimizer) -> None:
    """Give loaded moments the strides of their parameters.

    Fused optimizers walk through the memory of both in parallel, so that a channels_last parameter would silently be
    paired with the wrong elements of a contiguous moment.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                strided = torch.empty_strided(value.shape, parameter.stride(), dtype=value.dtype, device=value.device)
                state[name] = strided.copy_(value)


def get_random_state(device: torch.device) -> dict[str, Any]:
    """Return the random state of Python, NumPy, torch on the CPU and, if `device` is a GPU, of that GPU."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}  # noqa: NPY002
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the random generators to a state from `get_random_state`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
