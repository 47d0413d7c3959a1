"""`PolicyLR`: a policy as a torch learning-rate scheduler, for grokkit's training loop or any other."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grokkit import policies
from grokkit.errors import UsageError
from grokkit.optim import decay
from grokkit.policies import Observation, Policy

_NOT_IN_STATE = frozenset({"policy", "_broadcast", "_first", "_unloaded", "_moved"})
"""Attributes that are not in the state_dict: set by the constructor and not loaded."""

MIN_UPDATES_FOR_READINGS = 10
"""Updates after which a reading that was never observed is reported as missing, in short runs."""


class PolicyLR(LRScheduler):
    """Drive an optimizer's learning rates by a policy.

    Call `.observe(readings)` with new readings and `.step()` after each `optimizer.step()`, also if a loss scaler
    skipped that update. Every parameter group has its own base rate; the policy sees that of the first group. The
    rates are multiplied by factors, so that a rate set by hand or a group added later is scaled, too, and the scheduler
    works inside `ChainedScheduler` and `SequentialLR`; there its step count starts at 0 at its milestone. In a chain
    `LambdaLR`, `OneCycleLR`, `CyclicLR` and `CosineAnnealingWarmRestarts` overwrite the changes of other schedulers:
    use `MultiplicativeLR`.

    Each decision in `decisions` is a dict of its `step`, the resulting `lr` of the first group (before later schedulers
    of a chain), and the `reason`. If half of the updates are done, readings were observed, and one that the
    policy needs was never among them, a warning is issued: a name may be misspelt.

    An update shrinks a weight by the share lr * weight_decay, so a schedule of the rate also schedules the decay. A
    group with the key `fixed_decay=True` keeps that share at its base value, whatever else changes its rate:
    `weight_decay` follows the rate, its base value is stored in the group as `initial_weight_decay`. Exact for AdamW
    and for SGD without momentum; with momentum the decay of earlier updates still takes effect at later rates.

    Args:
        optimizer: its rates are the base rates, which correspond to a scale of 1; if an earlier scheduler stored
            `initial_lr` in a group, that is the base rate, as for torch's own schedulers. A new stage with other base
            rates or another decay needs a new optimizer.
        policy: a policy, its name, or a mapping with its name and parameters.
        total_steps: number of optimizer updates that the policy plans for, >= 1.
        last_epoch: only -1, a fresh start; to resume, build a new PolicyLR and call `load_state_dict`. Build all
            schedulers before `optimizer.load_state_dict`, as torch requires: `LinearLR` and `SequentialLR` change the
            rates when they are built. Changes of loaded rates by PolicyLR's own constructor are undone by its
            `load_state_dict`.
        broadcast: in a process group, broadcast the readings of rank 0 to all ranks. False if all ranks have the same
            readings already, or if every rank trains a separate net.

    Raises:
        UsageError: `total_steps` below 1, another `last_epoch`, a loaded state of another policy or `total_steps`, a
            scale of the policy that is not finite and above 0, or a `fixed_decay` that the optimizer cannot keep (Adam,
            RMSprop and the like: they normalise the decay).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        policy: str | Mapping[str, Any] | Policy,
        total_steps: int,
        last_epoch: int = -1,
        *,
        broadcast: bool = True,
    ) -> None:
        if last_epoch != -1:
            raise UsageError(
                f"`last_epoch` must be -1, because a policy has its own state; got {last_epoch}. "
                "To resume, build a new PolicyLR and call load_state_dict"
            )
        # The base class's constructor calls step(), so everything that step() needs comes before it.
        self.policy: Policy = policies.as_policy(policy)
        self.total_steps = policies.as_count("total_steps", total_steps)
        self.decisions: list[dict[str, Any]] = []
        self._news: dict[str, float] = {}
        self._named: list[str] = []  # names of all observed readings, sorted
        self._broadcast = broadcast
        self._unloaded: list[tuple[dict[str, Any], float]] = []
        self._moved, moved = "", _explain_moved_rates(optimizer)
        rates = [float(group["lr"]) for group in getattr(optimizer, "param_groups", ())]
        super().__init__(optimizer, last_epoch)
        self._first = list(zip(optimizer.param_groups, rates, self._last_lr, strict=True))
        self._moved = moved
        decay.validate_keys(optimizer.param_groups)
        # Also before every update: in a chain other schedulers change the rate after this one.
        optimizer.register_step_pre_hook(decay.apply_fixed_decay)

    @property
    def updates(self) -> int:
        """The number of optimizer updates since this scheduler's start."""
        return self._updates

    @property
    def scale(self) -> float:
        """The factor on the base rates for the next update."""
        return self._scale

    def observe(self, readings: Mapping[str, float] | None) -> None:
        """Pass readings (name -> number) to the policy at the next `step()`; the newest value of a name counts.

        In a process group every rank uses the readings of rank 0, because measurements of different ranks differ in
        the last bits and their weights would diverge: every rank must call this after the same updates, with its own
        readings or None.

        Cost: nothing outside of a process group. In one, two small broadcasts per call, for which NCCL waits for the
            GPU: call it when readings are due, not at every update.

        Raises:
            UsageError: `readings` is not a mapping of names to numbers.
        """
        numbers = _to_numbers(readings)
        if received := _broadcast_from_rank_zero(numbers) if self._broadcast else numbers:
            self._news.update(received)
            self._named = sorted({*self._named, *received})

    def step(self, epoch: int | None = None) -> None:
        """Count one update and set the rates for the next one; call it after `optimizer.step()`."""
        if epoch is not None:
            raise UsageError(
                f"PolicyLR cannot jump to epoch {epoch}, because a policy sees every update: call step() without "
                "arguments, and pass readings to observe()"
            )
        if self._unloaded or self._moved:
            self._warn_at_first_step()
        if self.last_epoch < 0:  # a start, or SequentialLR has reset the rates and starts this scheduler
            self._restart()
        decay.remember_decay(self.optimizer)
        reason = self._advance()
        super().step()
        self._factor, self._first = 1.0, []
        decay.apply_fixed_decay(self.optimizer)
        self._log_decision(reason, self.optimizer.param_groups[0]["lr"])

    def get_lr(self) -> list[float | Tensor]:
        """Return the new rates of all groups, from their current ones."""
        return [group["lr"] * self._factor for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as numbers, strings, lists and dicts; of the policy a description to compare on loading."""
        state = {key: value for key, value in super().state_dict().items() if key not in _NOT_IN_STATE}
        for key in ("base_lrs", "_last_lr"):
            state[key] = [float(rate) for rate in state[key]]
        return copy.deepcopy(state) | {"policy": self._describe_policy()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the optimizer's state, with the rates, is loaded separately, before or after this call.

        If the optimizer's state is not loaded at all, the first step warns.
        """
        self.check_state_dict(state_dict)
        self._unloaded = [(group, rate) for group, rate, _ in self._first if _is_close(group["initial_lr"], rate)]
        self._moved = ""
        state = {key: value for key, value in state_dict.items() if key not in _NOT_IN_STATE}
        self._undo_constructor_rates()
        super().load_state_dict(copy.deepcopy(state))
        # Updates were done before; torch would otherwise warn if a resumed run begins with a call of `step`.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]

    def check_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raise UsageError if `load_state_dict` would refuse this state; nothing is loaded."""
        expected = {"policy": self._describe_policy(), "total_steps": self.total_steps}
        for key, value in expected.items():
            if state_dict.get(key) != value:
                raise UsageError(f"the state was saved with {key} {state_dict.get(key)}; this scheduler has {value}")

    def warn_of_unloaded_rates(self) -> None:
        """Warn once if a state was loaded but the optimizer still has the rates that it was built with."""
        current = {id(group) for group in self.optimizer.param_groups}  # loading an optimizer creates new groups
        differences = [
            (rate, float(saved))
            for (group, rate), saved in zip(self._unloaded, self._last_lr, strict=False)
            if id(group) in current and _is_close(group["lr"], rate) and not _is_close(saved, rate)
        ]
        self._unloaded = []
        if differences:
            rate, saved = differences[0]
            warnings.warn(
                f"PolicyLR resumes at a rate of {saved:g}, but the optimizer has {rate:g}, as it was built: "
                "load the optimizer's state too; with a recorder, pass the optimizer to `gk.record`, or to `save` and "
                "`restore` as a part",
                stacklevel=3,
            )

    def _warn_at_first_step(self) -> None:
        self.warn_of_unloaded_rates()
        if self._moved:
            warnings.warn(self._moved, stacklevel=4)
            self._moved = ""

    def _undo_constructor_rates(self) -> None:
        """Undo the constructor's change of the rates, for an optimizer whose state was loaded before it.

        An optimizer that was loaded since then has other groups; rates that were set since then are kept.
        """
        for group, before, after in self._first:
            if float(group["lr"]) == float(after):
                _set_rate(group, before)
        self._first = []

    def _get_closed_form_lr(self) -> list[float | Tensor]:
        """Return the rates at a milestone of `SequentialLR`, at which torch sets the epoch to 0 instead of stepping."""
        self._restart()
        reason = self._advance()
        self._factor = 1.0
        rates = [group.get("initial_lr", group["lr"]) * self._scale for group in self.optimizer.param_groups]
        self._log_decision(reason, rates[0])
        return rates

    def _restart(self) -> None:
        """Reset to the state before the first update; readings that were already observed are kept."""
        self._updates = -1
        self._scale = self._factor = 1.0
        self._policy_state = self.policy.init()
        self.decisions.clear()

    def _advance(self) -> str | None:
        """Compute the next update's scale with the policy; return its reason, or None."""
        self._updates += 1
        if self._updates == max(MIN_UPDATES_FOR_READINGS, self.total_steps // 2):
            self._warn_of_missing_readings()
        base = float(self.base_lrs[0])
        observation = Observation(self._updates, self.total_steps, base, self._news)
        scale, state, reason = self.policy.update(observation, self._policy_state)
        if not 0 < scale < math.inf:
            raise UsageError(
                f"a policy's scale must be finite and above 0; {self._describe_policy()} returned {scale!r} after "
                f"{self._updates} updates"
            )
        self._policy_state, self._news = state, {}
        self._factor, self._scale = scale / self._scale, scale
        return reason

    def _log_decision(self, reason: str | None, rate: float | Tensor) -> None:
        if reason:
            self.decisions.append({"step": self._updates, "lr": float(rate), "reason": reason})

    def _warn_of_missing_readings(self) -> None:
        missing = policies.get_followed_readings(self.policy) - {*self._named}
        if self._named and missing:
            warnings.warn(
                f"half of the updates are done, and {type(self.policy).__name__} has not observed the readings "
                f"{', '.join(sorted(missing))}, which it needs. Observed: {', '.join(self._named)}",
                stacklevel=4,
            )

    def _describe_policy(self) -> str:
        """Return class and parameters of the policy, including nested policies."""
        return _describe(self.policy)


def _describe(value: Any) -> str:
    """Return a `repr` that is equal for NumPy's and Python's numbers and holds no memory address of a policy."""
    if is_dataclass(value) and not isinstance(value, type):
        arguments = ", ".join(f"{each.name}={_describe(getattr(value, each.name))}" for each in fields(value))
        return f"{type(value).__name__}({arguments})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_describe, value))})"
    if isinstance(value, Real):
        return repr(value if isinstance(value, bool) else int(value) if isinstance(value, Integral) else float(value))
    return f"{type(value).__name__}()" if isinstance(value, Policy) else repr(value)


def _explain_moved_rates(optimizer: Optimizer) -> str:
    """Return a warning if an earlier scheduler has changed the rates during a training; else an empty string.

    Schedulers that are built one after another for the same training change the rates too, before the first update;
    torch's marker on `step` distinguishes them from an `initial_lr` that came with a loaded state.
    """
    is_started = getattr(optimizer, "_opt_called", False) or not hasattr(
        getattr(optimizer, "step", None), "_wrapped_by_lr_sched"
    )
    for group in getattr(optimizer, "param_groups", ()) if is_started else ():
        if "initial_lr" in group and not _is_close(group["lr"], group["initial_lr"]):
            return (
                f"PolicyLR was built on an optimizer whose rate an earlier scheduler had changed from "
                f"{float(group['initial_lr']):g} to {float(group['lr']):g}, and scales it from there: to resume, call "
                "load_state_dict before the first step; to start a new stage, use a new optimizer"
            )
    return ""


def _is_close(one: float | Tensor, other: float | Tensor) -> bool:
    return math.isclose(float(one), float(other), rel_tol=1e-6)


def _get_inner_schedulers(part: Any) -> list[Any]:
    """Return the schedulers inside a `ChainedScheduler` or `SequentialLR`."""
    return list(getattr(part, "_schedulers", ())) if isinstance(part, LRScheduler) else []


def check_state(part: Any, state: Any) -> None:
    """Call `check_state_dict` of `part` and of the schedulers inside it, which raise if a state does not fit."""
    if (check := getattr(part, "check_state_dict", None)) is not None:
        check(state)
    for inner, inner_state in zip(
        _get_inner_schedulers(part), state.get("_schedulers", ()) if _get_inner_schedulers(part) else (), strict=False
    ):
        check_state(inner, inner_state)


def warn_of_unloaded_rates(part: Any) -> None:
    """Call `PolicyLR.warn_of_unloaded_rates` for every PolicyLR in `part`."""
    if isinstance(part, PolicyLR):
        part.warn_of_unloaded_rates()
    for inner in _get_inner_schedulers(part):
        warn_of_unloaded_rates(inner)


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the rate of a group, in place if it is a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _to_numbers(readings: Mapping[str, float] | None) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in ({} if readings is None else readings).items()}
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise UsageError(
            f'readings must be numbers by name, such as {{"train_loss": 0.5}}, or None; got {readings!r}'
        ) from error


def _broadcast_from_rank_zero(readings: dict[str, float]) -> dict[str, float]:
    """Return the readings of rank 0 of the process group; outside of one, `readings`."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return readings
    objects = [readings]
    distributed.broadcast_object_list(objects, src=0)
    return objects[0]
